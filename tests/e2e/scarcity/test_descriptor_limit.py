"""Meet the limit of descriptors (RLIMIT_NOFILE): idle actors go, logins and mail get temporary errors.

Nothing ends.
"""

import contextlib
import poplib
import subprocess

import pytest

from tests.support.lmtp import RawLmtp, deliver
from tests.support.pop3 import connect
from tests.support.service import POPKERNEL, Service
from tests.support.waiting import wait_for

LIMIT = 160
USERS = [f"user{n:03}" for n in range(140)]


def limited(limit, **site):
    command = ["sh", "-c", f'ulimit -n {limit}; exec "$@"', "sh", *POPKERNEL]
    return Service(command=command, **{"mail": (), **site})


def refused(service, user, held):
    """Log in; return the error if there is no room, else None with the session in `held`."""
    try:
        held[user] = service.pop3(user)
    except poplib.error_proto as error:
        return str(error)
    return None


def answered(service, user):
    """Return the reply to RCPT TO, or to the mail."""
    with RawLmtp(service) as raw:
        raw.say(b"LHLO t\r\nMAIL FROM:<>\r\n", b"250", b"250")
        raw.send(b"RCPT TO:<%b>\r\n" % user.encode())
        return raw.answer()


@pytest.mark.parametrize("isolation", ["shared", "connection"])
def test_more_users_than_descriptors(isolation):
    """The kernel must not end with EMFILE."""
    with limited(
        LIMIT, users=USERS, listeners=4 if isolation == "shared" else 2, isolation=isolation
    ) as service:
        kernel = service.actor("kernel")["pid"]
        for user in USERS[:40]:
            service.pop3(user).quit()
        held, why = {}, None
        for user in USERS[40:]:
            why = why or refused(service, user, held)
        assert "SYS/TEMP" in why, why
        most = 60 if isolation == "shared" else 8
        assert len(held) >= most, len(held)
        rows = service.status()
        assert len(rows["sessions"]) == len(held) and rows["actors"][0]["pid"] == kernel
        if isolation == "shared":
            log = service.wait_log("no room for ")
            assert log.count("no room for ") == 1 and "RLIMIT_NOFILE" in log and "LimitNOFILE=" in log
            assert sum(row["name"].startswith("maildir.") for row in rows["actors"]) <= len(held) + 2, (
                "idle actors ended before a login was refused"
            )
            # Mail waits. A descriptor that was on its way to an actor at that login may be free by now.
            others = iter(USERS[:40])
            wait_for(lambda: answered(service, next(others))[:9] in (b"451 4.3.2", b"450 4.3.2"))
            assert deliver(service, next(iter(held)))[:3] == b"250", "a user with an actor is served"
        assert service.command("status").returncode == 0
        for client in held.values():
            assert client.noop().startswith(b"+OK")
            client.close()
        wait_for(lambda: not service.status()["sessions"])
        for user in USERS[:3]:
            wait_for(lambda user=user: not refused(service, user, {}))
        assert deliver(service, USERS[0])[:3] == b"250"
        assert service.actor("kernel")["pid"] == kernel and "Too many open files" not in service.read_log()
        service.change_files()
        service.command("reload")
        assert service.stop() == 0


def test_a_start_without_room_reports_it_and_ends():
    with limited(64, expect_ready=False) as service:
        assert service.process.wait(20) == 71
        log = service.read_log()
        assert "leaves no room to serve" in log and "ulimit -n" in log and "Traceback" not in log, log
        assert log.count("\n") == 1


def test_gates_without_room_for_a_few_sessions_say_so_and_end():
    """With 128 descriptors a gate's share would be 0, which must not mean "no bound"."""
    with limited(143, expect_ready=False, listeners=1, isolation="connection") as service:
        assert service.process.wait(20) == 71
        log = service.read_log()
        said = (
            "limits: the limit of 143 descriptors (RLIMIT_NOFILE) leaves no room to serve: with one "
            'listener and isolation = "connection" 144 are the least; '
        )
        assert said in log and "ulimit -n" in log and log.count("\n") == 1, log
        check = subprocess.run(
            ["sh", "-c", 'ulimit -n 143; exec "$@"', "sh", *POPKERNEL, "check", "-f", service.toml],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
        assert (check.returncode, said in check.stdout) == (71, True), check


def test_a_gate_accepts_no_more_than_it_has_room_for():
    with (
        limited(144, users=USERS[:18], listeners=1, isolation="connection") as service,
        contextlib.ExitStack() as stack,
    ):
        service.wait_log("gate.0: the hard limit of 144 descriptors leaves room for 16 sessions, not 10000")
        for user in USERS[:16]:
            stack.enter_context(contextlib.closing(service.pop3(user)))
        with pytest.raises((poplib.error_proto, OSError, EOFError)):
            service.pop3(USERS[16])
        assert len(service.status()["sessions"]) == 16
        service.wait_log("the limit of 144 descriptors (RLIMIT_NOFILE) is met (16 sessions in this process")


@pytest.mark.parametrize(("site", "level"), [({"max_sessions": 5000}, "warning: "), ({}, "")])
def test_one_warning_if_the_configuration_needs_more(site, level):
    """The default settings give no warning."""
    with limited(1024, listeners=2, **site) as service:
        log = service.wait_log("leaves room for ")
        (line,) = [line for line in log.splitlines() if "leaves room for" in line and "listener." not in line]
        assert ("warning: " in line) == bool(level) and "--listeners" not in log and "max_sessions" in line
        service.change_files()
        service.command("reload")
        assert service.read_log().count("lower max_sessions") == 1
        check = subprocess.run(
            ["sh", "-c", 'ulimit -n 1024; exec "$@"', "sh", *POPKERNEL, "check", "-f", service.toml],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
        said = line[line.index("limits: ") :]
        assert (f"warning: {said}\n" in check.stdout) == bool(level) and (
            "max_sessions" in check.stdout
        ) == bool(level), check


def test_the_log_names_the_limit_of_descriptors_if_it_is_met():
    with limited(LIMIT, users=USERS[:2]) as service, contextlib.ExitStack() as stack:
        for _ in range(60):
            sock = stack.enter_context(connect(service.tls))
            sock.setblocking(False)
        said = (
            f"the limit of {LIMIT} descriptors (RLIMIT_NOFILE) is met (48 sessions in this process; raise "
            f"it: LimitNOFILE= in the unit, ulimit -n"
        )
        log = service.wait_log(f"127.0.0.1: another made room: {said}")
        assert "max_sessions is met" not in log
