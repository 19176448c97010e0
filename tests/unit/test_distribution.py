"""What is given away and installed: the source distribution holds the tree, the wheel the package, and an editable installation needs no more."""

import email
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile

import pytest

TREE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PARTS = ("actors", "benchmarks", "cli", "docs", "kernel", "packaging", "popkernel", "proto", "tests")
LINKS = {f"popkernel/{part}": f"../{part}" for part in ("actors", "cli", "kernel", "proto")}
MADE = ("__pycache__", ".hypothesis", "*.pyc", "*.rec.new")


def copy_of_the_tree(source):
    """What a build leaves behind stays out of the tree itself."""
    for part in PARTS:
        shutil.copytree(f"{TREE}/{part}", source / part, symlinks=True, ignore=shutil.ignore_patterns(*MADE))
    for name in os.listdir(TREE):
        if os.path.isfile(f"{TREE}/{name}"):
            shutil.copy(f"{TREE}/{name}", source)
    return source


def environment(place):
    """Its Python and a pip command for it, which has this one's packages at hand, setuptools too, and asks nobody."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    packages = sysconfig.get_path("purelib")
    name = "python{}.{}".format(*sys.version_info)
    (place / f"lib/{name}/site-packages/these.pth").write_text(packages + "\n")  # .pth files in there count nothing
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(place / "bin/python"), "install", "-q"]
    return place / "bin/python", [*command, "--no-deps", "--no-index", "--no-build-isolation"]


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """Paths of both; the wheel is built from the source distribution."""
    place = tmp_path_factory.mktemp("distribution")
    source = copy_of_the_tree(place / "source")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(place / "dist"), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "Deprecat" not in done.stdout + done.stderr
    sdist, wheel = sorted((place / "dist").iterdir(), key=lambda path: path.suffix != ".gz")
    return sdist, wheel


def tree():
    found = {name for name in ("CHANGELOG.md", "LICENSE", "MANIFEST.in", "Makefile", "README.md", "pyproject.toml", "setup.py") if os.path.isfile(f"{TREE}/{name}")}
    for part in PARTS:  # links to folders are not followed, nor listed
        for folder, folders, names in os.walk(f"{TREE}/{part}"):
            folders[:] = [name for name in folders if name not in MADE]
            found |= {os.path.relpath(f"{folder}/{name}", TREE) for name in names if not name.endswith(".pyc")}
    return found


def test_the_source_distribution_is_the_tree(distributions):
    with tarfile.open(distributions[0]) as archive:
        members = {member.name.partition("/")[2]: member for member in archive.getmembers() if not member.isdir()}
    assert {name: member.linkname for name, member in members.items() if member.issym()} == LINKS
    held = set(members) - set(LINKS)
    assert tree() <= held
    assert {name for name in held - tree() if ".egg-info" not in name} == {"PKG-INFO", "setup.cfg"}


def test_the_wheel_is_the_package(distributions):
    names = zipfile.ZipFile(distributions[1]).namelist()
    code = [name for name in names if ".dist-info/" not in name]
    assert all(name.startswith("popkernel/") for name in code)
    assert {os.path.splitext(name)[1] for name in code} == {".py", ".typed"}
    named = {name if name.startswith("popkernel/") else f"popkernel/{name}" for name in tree()}
    assert sorted(code) == sorted(name for name in named if name.split("/")[1] in {*os.listdir(f"{TREE}/popkernel")})


def test_its_metadata(distributions):
    wheel = zipfile.ZipFile(distributions[1])
    (name,) = [name for name in wheel.namelist() if name.endswith("/METADATA")]
    metadata = email.message_from_bytes(wheel.read(name))
    assert metadata["License-Expression"] == "ISC"
    assert metadata["License-File"] == "LICENSE"
    assert metadata["Author"] == "popkernel developers"
    assert metadata["Requires-Python"] == ">=3.11"
    assert "maildir" in metadata["Keywords"]
    assert "Topic :: Communications :: Email :: Post-Office :: POP3" in metadata.get_all("Classifier")
    assert not [line for line in metadata.get_all("Classifier") if line.startswith("License ::")]


def test_the_wheel_can_be_installed(distributions, tmp_path):
    _, install = environment(tmp_path / "v")
    subprocess.run([*install, str(distributions[1])], check=True, timeout=120)
    said = subprocess.run([tmp_path / "v/bin/popkernel", "--version"], capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    assert said.startswith("popkernel ")


EVERY_MODULE = """
import collections, importlib, os, pkgutil, sys, popkernel
for one in pkgutil.walk_packages(popkernel.__path__, "popkernel."):
    if not one.name.endswith("__main__"):
        importlib.import_module(one.name)
names = collections.defaultdict(set)
for name, module in list(sys.modules.items()):
    if getattr(module, "__file__", None):
        names[os.path.realpath(module.__file__)].add(name)
"""


def test_an_editable_installation_needs_no_more_and_sees_new_files(tmp_path):
    """`pip install -e .` as it is: by one plain path, which type checkers read too."""
    source = copy_of_the_tree(tmp_path / "source")
    python, install = environment(tmp_path / "v")
    subprocess.run([*install, "-e", str(source)], check=True, timeout=120)
    (path,) = (tmp_path / "v").glob("lib/*/site-packages/*popkernel*.pth")
    assert path.read_text().strip() == str(source)
    (source / "kernel/new").mkdir()
    (source / "kernel/new/__init__.py").write_text("NUMBER: int = 1\n")
    (source / "actors/new.py").write_text("from popkernel.kernel.new import NUMBER\nword: str = NUMBER\n")
    code = "import popkernel.kernel as k, os; from popkernel.actors.new import word; print(word, os.path.realpath(k.__file__))"
    ran = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert ran.stdout.split() == ["1", str(source / "kernel/__init__.py")]
    said = subprocess.run([tmp_path / "v/bin/popkernel", "--version"], capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    assert said.startswith("popkernel ")
    command = [sys.executable, "-m", "mypy", "--python-executable", python, "--config-file=", "--follow-imports=silent", "-c", "import popkernel.actors.new as n; n.word.x"]
    typed = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert '"str" has no attribute "x"' in typed.stdout and "import-not-found" not in typed.stdout, typed.stdout + typed.stderr


def test_no_module_is_there_under_two_names():
    code = EVERY_MODULE + "print([(path, *sorted(found)) for path, found in names.items() if 'popkernel' in str(found) and len(found) > 1])"
    code += "\nprint(len(names))"
    twice, many = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=TREE).stdout.splitlines()
    assert twice == "[]" and int(many) > 150


def test_tools_meet_each_file_once():
    """By its place at the top of the repository, not by the links of popkernel/."""
    said = subprocess.run([sys.executable, "-m", "ruff", "check", "--show-files"], capture_output=True, text=True, check=True, cwd=TREE).stdout
    shown = [os.path.relpath(path, TREE) for path in said.split()]
    assert {path for path in shown if path.startswith("popkernel/")} == {"popkernel/__init__.py", "popkernel/__main__.py"}
    assert "kernel/runtime/channel.py" in shown
