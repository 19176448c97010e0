"""Run the Makefile with stand-ins for Python: a broken environment is removed, and both test runs happen."""

import os
import shutil
import subprocess

import pytest

MAKEFILE = os.path.join(
    os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), "Makefile"
)
# As Debian's Python without python3-venv: half the environment exists when ensurepip is missed.
PYTHON = """#!/bin/sh
case "$*" in
*"-m venv"*)
    mkdir -p .venv/bin && cp "$0" .venv/bin/python
    if [ -e no-ensurepip ]; then echo "ensurepip is not available. apt install python3-venv"; exit 1; fi;;
*"-m pip"*) [ ! -e no-pip ];;
*"-m pytest"*) echo "pytest $*" >>runs; [ ! -e failing ] || ! rm failing;;
esac
"""


@pytest.fixture
def make(tmp_path):
    if not shutil.which("make"):
        pytest.skip("needs make(1)")
    shutil.copy(MAKEFILE, tmp_path)
    (tmp_path / "tests").mkdir()
    for path in ("pyproject.toml", "tests/packages.sh"):
        (tmp_path / path).touch()
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}

    def run(*arguments):
        return subprocess.run(
            ["make", f"PYTHON={tmp_path}/python", *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    return run


@pytest.mark.parametrize("lack", ["no-ensurepip", "no-pip"])
def test_half_an_environment_does_not_stay(make, tmp_path, lack):
    (tmp_path / lack).touch()
    first = make("venv")
    assert first.returncode != 0
    assert "apt install python3-venv" in first.stderr and "make PYTHON=" in first.stderr
    assert not (tmp_path / ".venv").exists()
    (tmp_path / lack).unlink()  # as the message says
    again = make("venv")
    assert again.returncode == 0, again
    assert (tmp_path / ".venv/.installed").exists()


def test_an_environment_that_was_interrupted_is_made_anew(make, tmp_path):
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/python").write_text("#!/bin/sh\necho no pip\nexit 1\n")
    (tmp_path / ".venv/bin/python").chmod(0o755)
    assert make("venv").returncode == 0


def test_an_installed_environment_is_left_alone(make, tmp_path):
    assert make("venv").returncode == 0
    (tmp_path / ".venv/.made").unlink()  # as made by an earlier release
    (tmp_path / ".venv/mine").touch()
    assert make("venv").returncode == 0
    assert (tmp_path / ".venv/mine").exists()


def test_both_test_runs_happen_and_either_can_fail(make, tmp_path):
    assert make("venv").returncode == 0
    for name in ("ruff", "mypy"):
        shutil.copy("/bin/true", tmp_path / ".venv/bin" / name)
    assert make("test").returncode == 0
    (tmp_path / "failing").touch()
    assert make("test").returncode != 0
    assert len((tmp_path / "runs").read_text().splitlines()) == 4
