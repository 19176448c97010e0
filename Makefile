# Two commands do everything: `make run` (a demo server) and `make test`. `make dist` and `make deb` make packages.
# The system's own Python where it will do: everybody may run it (users' deliveries do), only root may change it, and it is built for speed.
PYTHON ?= $(shell /usr/bin/python3 -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo /usr/bin/python3 || echo python3)
VENV := .venv
BIN := $(VENV)/bin
WHOLE := $(VENV)/.made
STAMP := $(VENV)/.installed
DEVSTAMP := $(VENV)/.installed-dev
PIP := $(BIN)/python -m pip --disable-pip-version-check -q

.PHONY: run venv dev test check bench debian13 dist deb clean

run: venv
	$(BIN)/popkernel demo

venv: $(STAMP)

dev: $(DEVSTAMP)

# Half an environment (no ensurepip, or interrupted) does not stay.
$(WHOLE):
	@test -e $(STAMP) || { rm -rf $(VENV) && $(PYTHON) -c "$$NEW_ENOUGH" && $(PYTHON) -m venv $(VENV) && $(BIN)/python -m pip --version >/dev/null; } \
		|| { rm -rf $(VENV); echo "$$NO_VENV" >&2; exit 1; }
	@touch $@

define NEW_ENOUGH
import sys
sys.version_info >= (3, 11) or sys.exit('Python 3.11 or later is needed, and this is %d.%d: $(PYTHON)' % sys.version_info[:2])
endef
define NO_VENV

No virtual environment could be made with $(PYTHON), which says why above. Debian: apt install python3-venv; or name
another Python, 3.11 or later, that has venv and ensurepip: make PYTHON=/path/to/python3
endef
export NEW_ENOUGH NO_VENV

$(STAMP): pyproject.toml | $(WHOLE)
	$(PIP) install -e .
	touch $@

$(DEVSTAMP): pyproject.toml | $(WHOLE)
	$(PIP) install -e '.[dev]'
	touch $(STAMP) $@

check: dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Most tests wait, so three processes share two cores, by file; those that bound seconds of the wall come afterwards, alone.
JOBS := 3
ALONE := tests/e2e/scale/test_ten_thousand_users.py tests/e2e/scale/test_spawned_actor.py \
	tests/e2e/delivery/test_concurrent_delivery.py

# Both are run, whatever the first gives.
test: dev check
	sh tests/packages.sh
	@failed=0; set -x; \
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ALONE:%=--ignore=%) || failed=1; \
	$(BIN)/python -m pytest $(ALONE) || failed=1; \
	exit $$failed

# ARGS: arguments, as in benchmarks/README.md: make bench ARGS='--rows A,C,F'
bench: dev
	$(BIN)/python -m benchmarks $(ARGS)

# What was committed, in a Debian 13 of its own: as root; FOR=user as an ordinary user, TARGET=run the demo, TARGET=bench
# the benchmark. See there for the rest.
debian13:
	@IN='$(IN)' FOR='$(FOR)' TARGET='$(TARGET)' ARGS='$(ARGS)' sh tests/debian13.sh

# Source distribution and wheel, in dist/; from an empty build/, since setuptools packs what an earlier build left.
dist: dev
	rm -rf build/lib build/bdist.*
	$(BIN)/python -m build --outdir dist
	$(BIN)/python -m twine check --strict dist/*.whl dist/popkernel-*.tar.gz

# Debian's package, in dist/: on Debian 13; elsewhere what was committed, in a Debian 13 of its own, as root.
deb:
	@if grep -qs '^VERSION_CODENAME=trixie' /etc/os-release; then sh packaging/make-deb.sh; \
	else IN='$(IN)' TARGET=deb sh tests/debian13.sh; fi

clean:
	rm -rf $(VENV) build dist *.egg-info
