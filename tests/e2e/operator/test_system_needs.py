"""Withhold rights and resources: `start` and `check` give the same line, or work without them."""

import contextlib
import os
import re
import resource
import shutil
import subprocess
import sys

import pytest
from popkernel.kernel.init import requirements as needs_module
from popkernel.kernel.runtime import scheduling
from popkernel.kernel.sandbox import syscalls

from tests.support.pop3 import RawPop3
from tests.support.processes import stop_process
from tests.support.service import POPKERNEL, serve
from tests.support.waiting import wait_for

MENDS = {
    "ulimit -n 12; exec": (
        71,
        (
            "limits: the limit of 12 descriptors (RLIMIT_NOFILE) leaves no room to serve: with one "
            "listener 104 are the least; raise it: Limit"
        ),
    ),
    "ulimit -v 60000; exec": (
        71,
        (
            "limits: each process may have 60000 KiB of address space (RLIMIT_AS), and needs 65536 without "
            "one session; raise it: ulimit -Hv"
        ),
    ),
}
MENDS |= {
    "ulimit -n 5; exec": (
        71,
        (
            "limits: the limit of 5 descriptors (RLIMIT_NOFILE) leaves no room to serve: with one listener "
            "104 are the least; raise it: Limit"
        ),
    ),
    "ulimit -f 0; exec": (
        71,
        (
            "limits: each file may have 0 KiB (RLIMIT_FSIZE), and 1024 are the least for tables and "
            "mailboxes; raise it: ulimit -f"
        ),
    ),
    "ulimit -d 20000; exec": (
        71,
        (
            "limits: each process may have 20000 KiB of data (RLIMIT_DATA), and needs 32768 without one "
            "session; raise it: ulimit -d"
        ),
    ),
}
AS_ROOT = {
    "exec setpriv --bounding-set=-all,+net_bind_service,+setuid": (
        77,
        "root: lacks CAP_SETGID, to become listener_user; give it (Capability",
    ),
    "exec setpriv --bounding-set=-all,+net_bind_service,+setgid": (
        77,
        "root: lacks CAP_SETUID, to become listener_user; give it (Capability",
    ),
    "exec unshare -Ur": (
        77,
        (
            "root: cannot become listener_user, 64301:64301: this user namespace does not allow it; map "
            "these ids, or start as an"
        ),
    ),
}


@pytest.fixture(scope="module")
def site():
    """Make a site without a server."""
    with serve(mail=()) as service:
        assert service.stop() == 0
        yield service


def run(before, *arguments):
    """Run `popkernel ARGUMENTS` after the shell command `before`."""
    command = ["sh", "-c", f'{before} "$@"', "sh", *POPKERNEL, *arguments]
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20, check=False
    )


def says_the_same(site, before, code, words):
    if before.startswith("exec unshare") and run("exec unshare -Ur true").returncode:
        pytest.skip("no user namespaces here")
    if words.startswith("root: cannot"):
        words = words.replace(
            "64301:64301", ":".join(map(str, (site.config.listener_user.partition(":")[::2])))
        )
    start = run(before, "start", "-f", site.toml, "--log", "stderr")
    check = run(before, "check", "-f", site.toml)
    assert (start.returncode, check.returncode) == (code, code), (start, check)
    assert start.stderr.startswith(f"popkernel: {words}") and start.stderr.count("\n") == 1, start.stderr
    assert start.stderr.removeprefix("popkernel: ").strip() in check.stdout
    assert not os.path.exists(site.config.run_dir)


@pytest.mark.parametrize("before", MENDS)
def test_too_little_of_a_resource_is_reported_with_the_mend(site, before):
    says_the_same(site, before, *MENDS[before])


@pytest.mark.root("only root has capabilities and ids to withhold")
@pytest.mark.skipif(not shutil.which("setpriv"), reason="needs setpriv(1)")
@pytest.mark.parametrize("before", AS_ROOT)
def test_a_root_that_cannot_change_uids_gets_the_reason(site, before):
    says_the_same(site, before, *AS_ROOT[before])


@pytest.mark.root("only root has capabilities and ids to withhold")
@pytest.mark.skipif(not shutil.which("setpriv"), reason="needs setpriv(1)")
def test_a_root_that_cannot_chown_the_mail_server_s_socket(site, tmp_path):
    before = "exec setpriv --bounding-set=-all,+setuid,+setgid,+dac_read_search,+dac_override"
    toml = tmp_path / "c.toml"
    with open(site.toml) as file:
        toml.write_text(re.sub("(?m)^lmtp = .*$", "", file.read()) + 'mta_users = ["64777:64778"]\n')
    start, check = (
        run(before, "start", "-f", str(toml), "--log", "stderr"),
        run(before, "check", "-f", str(toml)),
    )
    assert (start.returncode, check.returncode) == (77, 77), (start, check)
    said = "root: lacks CAP_CHOWN, to give a socket to group 64778 of mta_users; give it (Capability"
    assert start.stderr.startswith(f"popkernel: {said}") and start.stderr.count("\n") == 1, start.stderr
    assert start.stderr.removeprefix("popkernel: ").strip() in check.stdout


# Stand for the profile of a container or unit: refuse calls by number, then exec the program.
PROFILE = """
import ctypes, os, struct, sys
numbers = [int(n) for n in sys.argv[1].split(",")]
rows = [(0x20, 0, 0, 0)]
for number in numbers:
    rows += [(0x15, 0, 1, number), (0x06, 0, 0, 0x00050001)]
code = b"".join(struct.pack("=HBBI", *row) for row in [*rows, (0x06, 0, 0, 0x7FFF0000)])
text = ctypes.create_string_buffer(code)
program = struct.pack("@HP", len(code) // 8, ctypes.addressof(text))
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program, 0, 0) == 0
os.execv(sys.argv[2], sys.argv[2:])
"""
SANDBOX = "actors can't be locked in here: prctl(2) is refused (Operation not permitted)"


@pytest.mark.skipif(os.uname().machine not in ("x86_64", "aarch64"), reason="numbers of two processors")
@pytest.mark.parametrize(
    "call",
    ["prlimit64", "prctl", "epoll_create1", "socketpair", "getrandom", "flock", "capget", "capset", "clone"],
)
def test_start_and_check_report_a_profile_that_refuses_a_call(site, call):
    number = syscalls.numbers(os.uname().machine)[call]
    before = [sys.executable, "-c", PROFILE, str(number), *POPKERNEL]
    start, check = (
        subprocess.run(
            [*before, *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
        for words in (("start", "-f", site.toml, "--log", "stderr"), ("check", "-f", site.toml))
    )
    assert (start.returncode, check.returncode) == (71, 71), (start, check)
    assert start.stderr.count("\n") == 1 and "Traceback" not in check.stderr, (start, check)
    said = start.stderr.removeprefix("popkernel: ").strip()
    if call == "prctl":
        assert said.startswith(SANDBOX) and "sandbox: prctl(2) is refused" in check.stdout, (start, check)
    else:
        assert said in check.stdout and "; allow it (SystemCallFilter= of the unit" in said, (start, check)
    assert not os.path.exists(site.config.run_dir)


@pytest.mark.root("only root has capabilities and ids to withhold")
@pytest.mark.skipif(not shutil.which("setpriv"), reason="needs setpriv(1)")
def test_a_low_port_without_its_capability(site):
    result = run(
        "exec setpriv --bounding-set=-all,+setuid,+setgid", "start", "-f", site.toml, "-l", "127.0.0.1:995"
    )
    assert (
        result.returncode == 77
        and "127.0.0.1:995: root lacks CAP_NET_BIND_SERVICE for a port below 1024; give it, or"
        in result.stderr
    ), result


def test_a_low_memory_limit_is_kept_and_warned_of():
    command = ["sh", "-c", 'ulimit -v 600000; exec "$@"', "sh", *POPKERNEL]
    with serve(mail=(), command=command) as service:
        log = service.read_log()
        assert (
            "warning: limits: each process may have 585 MiB of address space (RLIMIT_AS); with many "
            "sessions listener uses 4096; raise"
        ) in log
        with open(f"/proc/{service.actor('auth')['pid']}/limits") as file:
            assert f" {600000 * 1024} " in next(line for line in file if line.startswith("Max address space"))
        with RawPop3(service) as client:
            assert client.login().startswith(b"+OK")
            assert client.ask(b"QUIT").startswith(b"+OK")
        check = run("ulimit -v 600000; exec", "check", "-f", service.toml)
        assert "warning: limits: each process may have 585 MiB" in check.stdout


@pytest.mark.root("only root has capabilities and ids to withhold")
@pytest.mark.skipif(not shutil.which("setpriv"), reason="needs setpriv(1)")
def test_without_cap_kill_it_serves_reloads_and_ends_hung_actors():
    """Root cannot end other users' processes then; a process of that uid can."""
    command = [
        "setpriv",
        "--bounding-set=-all,+setuid,+setgid,+net_bind_service,+dac_read_search",
        *POPKERNEL,
    ]
    with serve(mail=(), command=command) as service, RawPop3(service) as client:
        assert client.login().startswith(b"+OK")
        with broken(service.site.cert):
            result = service.command("reload", check=False)  # init ends the new actors
            assert result.returncode == 78, result
        wait_for(lambda: not any("~2" in a["name"] for a in service.status()["actors"]))
        assert service.command("reload").stdout.startswith("reloaded\n")
        assert client.ask(b"STAT").startswith(b"+OK")
        auth = service.actor("auth")["pid"]
        stop_process(auth)  # stopped, so it ends by SIGKILL only
        assert service.stop(40) == 0
        assert not os.path.exists(f"/proc/{auth}")


@contextlib.contextmanager
def broken(path):
    with open(path, "rb") as file:
        good = file.read()
    with open(path, "wb") as file:
        file.write(b"x")
    yield
    with open(path, "wb") as file:
        file.write(good)


def test_a_system_without_sched_getaffinity(monkeypatch):
    def refused(_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_getaffinity", refused)
    assert scheduling.processors() == (os.cpu_count() or 1)


def test_no_limit_no_warning(monkeypatch, site):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert needs_module.needs(site.config, {}) == ([], [])
