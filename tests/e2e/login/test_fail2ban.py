"""Test packaging/fail2ban: the filter finds every wrong password and nothing that a client can forge."""

import contextlib
import json
import os
import shutil
import socket
import subprocess

import pytest
from popkernel.proto.log_events import EVENTS

from tests.support.pop3 import RawPop3
from tests.support.ports import free_ports
from tests.support.service import Service

PACKAGING = os.path.join(os.path.dirname(__file__), "..", "..", "..", "packaging", "fail2ban")
UNPACKED = os.environ.get("POPKERNEL_FAIL2BAN", "/var/tmp/popkernel-tests/fail2ban")  # by tests/packages.sh


def fail2ban_regex():
    """Return the command and its environment, installed or unpacked; None for neither.

    An unpacked one runs with the system's Python.
    """
    if found := shutil.which("fail2ban-regex"):
        return [found], None
    script = f"{UNPACKED}/usr/bin/fail2ban-regex"
    if os.path.exists(script) and os.path.exists("/usr/bin/python3"):
        path = f"{UNPACKED}/usr/lib/python3/dist-packages"
        return ["/usr/bin/python3", script, "-c", f"{UNPACKED}/etc/fail2ban"], {
            **os.environ,
            "PYTHONPATH": path,
        }
    return None


REGEX = fail2ban_regex()
needs_fail2ban = pytest.mark.skipif(REGEX is None, reason="needs fail2ban-regex(1)")
FORGED = "203.0.113.66"
NAMES = [  # names by which a client might get somebody else banned
    "nobody",
    f"x address={FORGED}:1 session=1.1 reason=password waited_ms=1 user=y",
    f"address={FORGED}:1",
    f"login failed: address={FORGED}:1 session=1.1 reason=password waited_ms=1 user=y",
    f'x","address":"{FORGED}:1","reason":"password',
    f'"}}\u2028popkernel: login failed: address={FORGED}:1 session=1.1 reason=password waited_ms=1 user=y',
    f"2026-11-23T10:00:00+00:00\u00a0popkernel:\u00a0login\u00a0failed:\u00a0address={FORGED}:1",
    "-",
    '"',
    "\\",
    "é",
    "x" * 200,
]


def has_ipv6():
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        return True
    return False


def log_of(form):
    """Return the log of guesses under all names from each address, and of a user whose mailbox is in use."""
    v4, v6 = free_ports()
    listen = [f"127.0.0.1:{v4}", *([f"[::1]:{v6}"] if has_ipv6() else [])]
    with Service(mail=(), lmtp=False, listen=listen, log_format=form) as service:
        for name in NAMES:
            guess(service, service.config.listen[0], name)
        if has_ipv6():
            guess(service, service.config.listen[1], "nobody")
        with RawPop3(service) as one, RawPop3(service) as other:
            assert one.login().startswith(b"+OK")
            assert other.login().startswith(b"-ERR [IN-USE]")
            service.wait_log("in-use")
        service.stop()
        return service.read_log().splitlines()


def guess(service, address, name):
    with RawPop3(service, address=address) as client:
        client.send(f"USER {name}\r\nPASS wrong\r\nQUIT\r\n".encode())
        assert b"-ERR" in client.line() + client.line(), name


@pytest.fixture(scope="module", params=["text", "json"])
def lines(request):
    return request.param, log_of(request.param)


def matched(lines, tmp_path):
    """Return the addresses that the filter would count."""
    path = tmp_path / "log"
    path.write_text("".join(f"{line}\n" for line in lines))
    program, env = REGEX
    command = [*program, "-o", "ip", str(path), os.path.join(PACKAGING, "filter.d", "popkernel.conf")]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    return [line for line in result.stdout.splitlines() if line.strip()]


def as_syslog(line, form):
    """Return a line of standard error as syslogd would write it, with its own time and tag."""
    words = line if form == "json" else line.partition(" popkernel: ")[2]
    return f"Nov 23 10:00:00 mail popkernel[1234]: {words}"


def as_journal(line):
    """Return a line as the journal has it for a log on standard error under systemd."""
    return f"Nov 23 10:00:00 mail popkernel[1234]: {line}"


@needs_fail2ban
def test_the_filter_finds_every_guess_and_nothing_else(lines, tmp_path):
    form, log = lines
    failures = [
        line for line in log if ("login failed" in line or "login.failed" in line) and "reason" in line
    ]
    guesses = [line for line in failures if "in-use" not in line]
    assert len(failures) == len(guesses) + 1
    assert len(guesses) >= 5 + has_ipv6()
    assert any(FORGED in line for line in guesses)
    ready = [line for line in log if "ready" in line or "session" in line]
    expected = ["127.0.0.1"] * (len(guesses) - has_ipv6()) + ["::1"] * has_ipv6()
    assert matched(log, tmp_path) == expected, log
    assert (
        matched([as_syslog(line, form) for line in log if line not in ready or line in failures], tmp_path)
        == expected
    )
    assert matched([as_journal(line) for line in log], tmp_path) == expected


@needs_fail2ban
def test_an_actor_s_line_does_not_pass_for_the_kernel_s(tmp_path):
    """A mail user's own process may put any text into the log."""
    forged = f"login failed: address={FORGED}:1 session=1.1 reason=password waited_ms=1 user=x"
    when = "2026-11-23T10:00:00.000+00:00"
    row = {
        "time": when,
        "level": "notice",
        "actor": "maildir.bob",
        "event": "login.failed",
        "address": f"{FORGED}:1",
        "session": "1.1",
        "reason": "password",
        "waited_ms": 1,
        "user": "x",
    }
    lines = [
        f"{when} popkernel: maildir.bob: {forged}",
        f"{when} popkernel: maildir.bob: popkernel: {forged}",
        f"Nov 23 10:00:00 mail popkernel[1]: maildir.bob: {forged}",
        f"Nov 23 10:00:00 mail evil[1]: popkernel: {forged}",
        json.dumps(row),
        json.dumps(
            {
                "time": when,
                "level": "notice",
                "actor": "maildir.bob",
                "event": "maildir.note",
                "note": json.dumps(row | {"actor": "kernel"}),
            }
        ),
    ]
    assert matched(lines, tmp_path) == []
    row["actor"] = "kernel"  # the test would notice the same text from the kernel
    assert matched([json.dumps(row), f"{when} popkernel: {forged}"], tmp_path) == [FORGED] * 2


def test_json_lines_are_whole(lines):
    """Each line is one object with its fields and the name as sent."""
    form, log = lines
    if form == "text":
        assert all(line.isprintable() for line in log)
        return
    rows = [json.loads(line) for line in log]
    assert all(list(row)[:4] == ["time", "level", "actor", "event"] for row in rows)
    assert all(
        row["event"] in EVENTS
        and row.keys() <= {"time", "level", "actor", "event", *EVENTS[row["event"]].example}
        for row in rows
    )
    failed = [row for row in rows if row["event"] == "login.failed"]
    assert {row["user"] for row in failed} <= {*NAMES, "alice"} and len({row["user"] for row in failed}) >= 5
    over = [row for row in rows if row["event"] == "session.over" and row["user"] == "alice"]
    assert len(over) == 1 and over[0]["session"] not in {row["session"] for row in failed}
    numbers = ("commands", "octets_in", "octets_out", "retrieved", "marked", "removed", "ms")
    assert all(type(over[0][name]) is int for name in numbers)
    assert rows[0]["time"][-6] in "+-" and "popkernel" not in rows[0]
