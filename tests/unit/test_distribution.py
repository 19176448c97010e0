"""Check the source distribution, the wheel, and an editable installation."""

import email
import os
import poplib
import shutil
import ssl
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile

import pytest

from tests.support.ports import free_ports

TREE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PARTS = ("actors", "benchmarks", "cli", "docs", "kernel", "packaging", "popkernel", "proto", "tests")
LINKS = {f"popkernel/{part}": f"../{part}" for part in ("actors", "cli", "kernel", "proto")}
MADE = ("__pycache__", ".hypothesis", "*.pyc", "*.rec.new")


def copy_of_the_tree(source):
    """Copy the tree, so that a build leaves nothing behind in it."""
    for part in PARTS:
        shutil.copytree(f"{TREE}/{part}", source / part, symlinks=True, ignore=shutil.ignore_patterns(*MADE))
    for name in os.listdir(TREE):
        if os.path.isfile(f"{TREE}/{name}"):
            shutil.copy(f"{TREE}/{name}", source)
    return source


def environment(place):
    """Make a virtual environment; return its Python and an offline pip command for it.

    The packages of this environment, setuptools included, are visible to it.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    packages = sysconfig.get_path("purelib")
    name = "python{}.{}".format(*sys.version_info)
    # .pth files in that directory are ignored
    (place / f"lib/{name}/site-packages/these.pth").write_text(packages + "\n")
    command = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "--python",
        str(place / "bin/python"),
        "install",
        "-q",
    ]
    return place / "bin/python", [*command, "--no-deps", "--no-index", "--no-build-isolation"]


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """Build both and return their paths; the wheel is built from the source distribution."""
    place = tmp_path_factory.mktemp("distribution")
    source = copy_of_the_tree(place / "source")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(place / "dist"), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "Deprecat" not in done.stdout + done.stderr
    sdist, wheel = sorted((place / "dist").iterdir(), key=lambda path: path.suffix != ".gz")
    return sdist, wheel


def tree():
    found = {
        name
        for name in (
            "CHANGELOG.md",
            "LICENSE",
            "MANIFEST.in",
            "Makefile",
            "README.md",
            "pyproject.toml",
            "setup.py",
        )
        if os.path.isfile(f"{TREE}/{name}")
    }
    for part in PARTS:  # links to folders are neither followed nor listed
        for folder, folders, names in os.walk(f"{TREE}/{part}"):
            folders[:] = [name for name in folders if name not in MADE]
            found |= {
                os.path.relpath(f"{folder}/{name}", TREE) for name in names if not name.endswith(".pyc")
            }
    return found


def test_the_source_distribution_is_the_tree(distributions):
    with tarfile.open(distributions[0]) as archive:
        members = {
            member.name.partition("/")[2]: member for member in archive.getmembers() if not member.isdir()
        }
    assert {name: member.linkname for name, member in members.items() if member.issym()} == LINKS
    held = set(members) - set(LINKS)
    assert tree() <= held
    assert {name for name in held - tree() if ".egg-info" not in name} == {"PKG-INFO", "setup.cfg"}


def test_the_wheel_is_the_package(distributions):
    names = zipfile.ZipFile(distributions[1]).namelist()
    code = [name for name in names if ".dist-info/" not in name and ".data/" not in name]
    assert all(name.startswith("popkernel/") for name in code)
    assert {os.path.splitext(name)[1] for name in code} == {".py", ".typed"}
    named = {name if name.startswith("popkernel/") else f"popkernel/{name}" for name in tree()}
    assert sorted(code) == sorted(
        name for name in named if name.split("/")[1] in {*os.listdir(f"{TREE}/popkernel")}
    )


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


def test_debian_s_package_has_the_same_version():
    with open(f"{TREE}/pyproject.toml", "rb") as file:
        version = tomllib.load(file)["project"]["version"]
    with open(f"{TREE}/packaging/debian/changelog") as changelog:
        assert changelog.readline().startswith(f"popkernel ({version}) ")


def test_twine_accepts_both(distributions):
    command = [sys.executable, "-m", "twine", "check", "--strict", *map(str, distributions)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_wheel_can_be_installed(distributions, tmp_path):
    """It brings the manual page and the completions, and its demo can be read."""
    _, install = environment(tmp_path / "v")
    subprocess.run([*install, str(distributions[1])], check=True, timeout=120)
    share = tmp_path / "v/share"
    with open(f"{TREE}/docs/popkernel.8") as page:
        assert (share / "man/man8/popkernel.8").read_text() == page.read()
    for path in (
        "bash-completion/completions/popkernel",
        "zsh/site-functions/_popkernel",
        "fish/vendor_completions.d/popkernel.fish",
    ):
        assert "import-uidl" in (share / path).read_text(), path
    read_the_demo([tmp_path / "v/bin/popkernel", "demo"], tmp_path)
    said = subprocess.run(
        [tmp_path / "v/bin/popkernel", "--version"], capture_output=True, text=True, check=True, cwd=tmp_path
    ).stdout
    assert said.startswith("popkernel ")


def read_the_demo(command, folder):
    """Start a demo on free ports, read alice's first message, and end it."""
    tls, stls = free_ports()
    command = [*command, "--tls-port", str(tls), "--stls-port", str(stls)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=folder) as demo:
        said = b""
        try:
            for line in demo.stdout:
                said += line
                if line.startswith(b"Ctrl-C"):
                    break
            context = ssl._create_unverified_context()
            client = poplib.POP3_SSL("127.0.0.1", tls, context=context, timeout=20)
            client.user("alice")
            client.pass_("secret")
            assert client.retr(1)[1]
            client.quit()
            demo.terminate()
            demo.communicate(timeout=20)
        except BaseException:
            demo.kill()
            print(said.decode())
            raise
        assert demo.returncode == 0


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
    """`pip install -e .` writes one plain path, which type checkers read too."""
    source = copy_of_the_tree(tmp_path / "source")
    python, install = environment(tmp_path / "v")
    subprocess.run([*install, "-e", str(source)], check=True, timeout=120)
    (path,) = (tmp_path / "v").glob("lib/*/site-packages/*popkernel*.pth")
    assert path.read_text().strip() == str(source)
    (source / "kernel/new").mkdir()
    (source / "kernel/new/__init__.py").write_text("NUMBER: int = 1\n")
    (source / "actors/new.py").write_text("from popkernel.kernel.new import NUMBER\nword: str = NUMBER\n")
    code = (
        "import popkernel.kernel as k, os; from popkernel.actors.new import word; print(word, "
        "os.path.realpath(k.__file__))"
    )
    ran = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert ran.stdout.split() == ["1", str(source / "kernel/__init__.py")]
    said = subprocess.run(
        [tmp_path / "v/bin/popkernel", "--version"], capture_output=True, text=True, check=True, cwd=tmp_path
    ).stdout
    assert said.startswith("popkernel ")
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--python-executable",
        python,
        "--config-file=",
        "--follow-imports=silent",
        "-c",
        "import popkernel.actors.new as n; n.word.x",
    ]
    typed = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert '"str" has no attribute "x"' in typed.stdout and "import-not-found" not in typed.stdout, (
        typed.stdout + typed.stderr
    )


def test_no_module_is_there_under_two_names():
    code = EVERY_MODULE + (
        "print([(path, *sorted(found)) for path, found in names.items() if 'popkernel' in str(found) "
        "and len(found) > 1])"
    )
    code += "\nprint(len(names))"
    twice, many = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=TREE
    ).stdout.splitlines()
    assert twice == "[]" and int(many) > 150


def test_tools_meet_each_file_once():
    """Tools see files at the top of the repository, not through the links of popkernel/."""
    said = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--show-files"],
        capture_output=True,
        text=True,
        check=True,
        cwd=TREE,
    ).stdout
    shown = [os.path.relpath(path, TREE) for path in said.split()]
    assert {path for path in shown if path.startswith("popkernel/")} == {
        "popkernel/__init__.py",
        "popkernel/__main__.py",
    }
    assert "kernel/runtime/channel.py" in shown
