"""Raise unexpected errors in actors: one line of the log, without anything that a client sent."""

import os
import sys

import pytest

from tests.support.pop3 import RawPop3
from tests.support.service import serve

BREAKS = """
import sys
from popkernel.cli.main import main
from popkernel.kernel.init import main as init
init.BOOT = ["-c", {within!r}]
sys.exit(main())
"""
AT_THE_LOCK = """
from popkernel.kernel.runtime import singleton_boot
from popkernel.kernel.sandbox import lock
def compile_promises(*_, **__):
    raise ImportError("cannot import\\nname 'compiler'")
lock.compile_promises = compile_promises
singleton_boot.main()
"""
IN_A_SESSION = """
from popkernel.actors.listener.session import session
from popkernel.actors.maildir.session import Session
from popkernel.kernel.runtime import singleton_boot
act, top = session.Session._act, Session._top
def breaks(self, line):
    if line.startswith(b"XBREAK"):
        raise KeyError(line.decode())
    act(self, line)
def breaks_too(self, number, lines):
    if lines == 99:
        raise KeyError(f"hunter2 {number}")
    return top(self, number, lines)
session.Session._act, Session._top = breaks, breaks_too
singleton_boot.main()
"""


def broken(within, **options):
    return serve(command=[sys.executable, "-c", BREAKS.format(within=within)], **options)


@pytest.mark.parametrize("verbose", [0, 2])
def test_several_failures_at_the_start_give_one_line(verbose):
    with broken(AT_THE_LOCK, lmtp=True, expect_ready=False, verbose=verbose) as service:
        assert service.process.wait(20) == os.EX_SOFTWARE
        *before, last = service.read_log().splitlines()
    assert "failed by a fault of its own: ImportError: cannot import name 'compiler' (" in last
    assert last.endswith(" compile_promises); -v shows the way there")
    assert bool(before) == bool(verbose)
    assert all(" popkernel: " in line for line in before), before
    if verbose:
        name = last.split()[1]
        assert any(f" {name}: " in line and line.endswith(" compile_promises") for line in before), (
            name,
            before,
        )


@pytest.mark.parametrize("isolation", ["shared", "connection"])
def test_client_input_is_in_no_line(isolation):
    with broken(IN_A_SESSION, isolation=isolation) as service:
        with RawPop3(service) as client:
            assert client.login().startswith(b"+OK")
            client.send(b"TOP 1 99\r\n")
            assert client.line().startswith(b"-ERR [SYS/TEMP]")
        log = service.wait_log("maildir.alice failed by a fault of its own: KeyError (")
        with RawPop3(service) as client:
            client.send(b"XBREAK hunter2\r\n")
            assert client.end() == b""
        log = service.wait_log("failed by a fault of its own: KeyError (", count=2)
        assert " breaks); -v shows" in log and " breaks_too); -v shows" in log
        assert service.stop() == 0
        assert "hunter2" not in service.log.decode() and "Traceback" not in service.log.decode()
