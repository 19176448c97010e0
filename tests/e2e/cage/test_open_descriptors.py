"""Test open descriptors: the kernel alone has the log; nothing of the starting process remains."""

import contextlib
import os
import subprocess
import sys

import pytest
from popkernel.proto.topology import kind_of

from tests.support.ports import free_ports
from tests.support.service import POPKERNEL, Service

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
LEFT_OPEN = ["sh", "-c", 'exec 5<"$SECRET" 9<"$SECRET"; exec "$@"', "sh", *POPKERNEL]


@pytest.fixture(scope="module")
def secret(tmp_path_factory):
    path = tmp_path_factory.mktemp("secret") / "shadow"
    path.write_text("secret")
    path.chmod(0o600)
    return str(path)


@pytest.fixture(scope="module", params=["shared", "connection"])
def service(request, secret):
    """Leave both open at a start, as a shell without FD_CLOEXEC does."""
    options = {"users": ("alice",), "mail": (b"a: b\n\nc\n",), "lmtp": True, "isolation": request.param}
    with Service(command=LEFT_OPEN, env={**os.environ, "SECRET": secret}, **options) as one:
        one.held = one.pop3("alice")
        yield one
        one.held.quit()


def links(pid):
    found = {}
    for fd in sorted(map(int, os.listdir(f"/proc/{pid}/fd"))):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found[fd] = os.readlink(f"/proc/{pid}/fd/{fd}")
    return found


def actors(service):
    return {actor["name"]: actor["pid"] for actor in service.status()["actors"]}


def test_the_first_three_of_every_actor_are_nothing_and_the_kernel_alone_has_the_log(service):
    log = os.readlink(f"/proc/{service.process.pid}/fd/2")
    assert log.startswith("pipe:")
    seen = set()
    for name, pid in actors(service).items():
        found = links(pid)
        assert [found.get(fd) for fd in (0, 1)] == ["/dev/null"] * 2, name
        assert found.get(2) == (log if name == "kernel" else "/dev/null"), name
        assert list(found.values()).count(log) == (name == "kernel"), name
        seen.add(kind_of(name))
    assert {"kernel", "spawner", "auth", "listener", "maildir.{user}", "mda"} <= seen


def test_nothing_that_was_open_at_the_start_is_in_any_process(service, secret):
    for name, pid in {**actors(service), "init": service.process.pid}.items():
        assert secret not in links(pid).values(), name


def test_a_start_with_its_first_three_closed_makes_no_file_of_its_own_the_log():
    """Otherwise the lock would be descriptor 0, and descriptor 2 some file to which errors are written."""
    command = ["sh", "-c", 'exec <&- >&-; exec "$@"', "sh", *POPKERNEL]
    with Service(command=command, users=("alice",), mail=(b"a: b\n\nc\n",)) as service:
        assert [links(service.process.pid)[fd] for fd in (0, 1)] == ["/dev/null"] * 2
        service.pop3("alice").quit()


def test_the_demo_and_its_processes_have_nothing_either(secret):
    tls, stls = free_ports()
    command = [*LEFT_OPEN, "demo", "--tls-port", str(tls), "--stls-port", str(stls)]
    with subprocess.Popen(
        command,
        env={**os.environ, "SECRET": secret},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as demo:
        try:
            assert any("ready: " in line for line in demo.stderr)
            for pid in [demo.pid, *below(demo.pid)]:
                assert secret not in links(pid).values()
        finally:
            demo.terminate()
            demo.communicate(timeout=20)


def below(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        children = [int(word) for word in file.read().split()]
    return children + [one for child in children for one in below(child)]
