"""What is given away: the source distribution holds the tree, the wheel the package and nothing else, and it can be installed."""

import email
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest

TREE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PARTS = ("actors", "benchmarks", "cli", "docs", "kernel", "packaging", "proto", "tests")
MADE = ("__pycache__", ".hypothesis", "*.pyc", "*.rec.new")


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """Paths of both, built from a copy of the tree: what a build leaves behind stays out of it."""
    place = tmp_path_factory.mktemp("distribution")
    source = place / "source"
    for part in PARTS:
        shutil.copytree(f"{TREE}/{part}", source / part, ignore=shutil.ignore_patterns(*MADE))
    for name in os.listdir(TREE):
        if os.path.isfile(f"{TREE}/{name}"):
            shutil.copy(f"{TREE}/{name}", source)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(place / "dist"), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "Deprecat" not in done.stdout + done.stderr
    sdist, wheel = sorted((place / "dist").iterdir(), key=lambda path: path.suffix != ".gz")
    return sdist, wheel


def tree():
    found = {name for name in ("CHANGELOG.md", "LICENSE", "MANIFEST.in", "Makefile", "README.md", "pyproject.toml") if os.path.isfile(f"{TREE}/{name}")}
    for part in PARTS:
        for folder, folders, names in os.walk(f"{TREE}/{part}"):
            folders[:] = [name for name in folders if name not in MADE]
            found |= {os.path.relpath(f"{folder}/{name}", TREE) for name in names if not name.endswith(".pyc")}
    return found


def test_the_source_distribution_is_the_tree(distributions):
    with tarfile.open(distributions[0]) as archive:
        held = {name.partition("/")[2] for name in archive.getnames() if not archive.getmember(name).isdir()}
    assert tree() <= held
    assert {name for name in held - tree() if ".egg-info" not in name} == {"PKG-INFO", "setup.cfg"}


def test_the_wheel_is_the_package(distributions):
    names = zipfile.ZipFile(distributions[1]).namelist()
    code = [name for name in names if ".dist-info/" not in name]
    assert all(name.startswith("popkernel/") for name in code)
    assert {os.path.splitext(name)[1] for name in code} == {".py", ".typed"}
    assert {"popkernel/cli/main.py", "popkernel/kernel/sandbox/lock.py", "popkernel/actors/maildir/main.py", "popkernel/py.typed"} <= set(code)


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
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "v")], check=True)
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(tmp_path / "v/bin/python"), "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*command, str(distributions[1])], check=True, timeout=120)
    said = subprocess.run([tmp_path / "v/bin/popkernel", "--version"], capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    assert said.startswith("popkernel ")
