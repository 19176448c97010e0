"""Miss the table's deadlines: the requester gives up, the kernel checks, and a hung actor is replaced.

The table's seconds are shortened for these tests in every process.
"""

import sys

from tests.support.pop3 import RawPop3
from tests.support.processes import stop_process
from tests.support.service import Service
from tests.support.waiting import wait_for

MAIL = [b"Subject: one\n\none\n", b"Subject: two\n\ntwo\n"]
SHORTEN = (
    "from popkernel.proto import topology as t; "
    "t.EDGES = tuple(e._replace(deadline=min(e.deadline, 20 if e.target == 'init' else 1)) for e in "
    "t.EDGES); "
)
DRIVER = (
    f"{SHORTEN}"
    "from popkernel.kernel.init import main as init; "
    f"init.BOOT = ['-c', \"{SHORTEN} from popkernel.kernel.runtime.singleton_boot import main; main()\"]; "
    "from popkernel.cli.main import main; raise SystemExit(main())"
)


def serve(**site):
    return Service(command=[sys.executable, "-c", DRIVER], lmtp=False, **site)


def pid_of(service, name):
    return next((row["pid"] for row in service.status()["actors"] if row["name"] == name), 0)


def test_a_maildir_actor_that_hangs():
    with serve(mail=MAIL) as service, RawPop3(service) as client:
        assert client.login().startswith(b"+OK")
        hung = pid_of(service, "maildir.alice")
        stop_process(hung)
        assert client.ask(b"RETR 1") == b"-ERR [SYS/TEMP] the mailbox is not available now, try again\r\n"
        service.wait_log("maildir.alice is not alive: it has not answered for 1 s; ended")
        with RawPop3(service) as again:
            assert again.login().startswith(b"+OK")
            assert again.ask(b"RETR 1").startswith(b"+OK")
            assert pid_of(service, "maildir.alice") not in (hung, 0)


def test_a_maildir_actor_with_a_client_that_does_not_read():
    """The client is the slow one: nobody is ended."""
    big = b"From: a\n\n" + b"x" * 70 + b"\n" + b"0123456789\n" * 2_000_000
    with serve(mail=[big]) as service, RawPop3(service, buffer=4096) as client:
        assert client.login().startswith(b"+OK")
        pid = pid_of(service, "maildir.alice")
        client.send(b"RETR 1\r\n")
        client.some(1000)
        with RawPop3(service) as other:  # longer than three deadlines
            end = service.status()["uptime"] + 3.5
            wait_for(lambda: service.status()["uptime"] > end, seconds=10)
            assert other.greeting.startswith(b"+OK")
        assert pid_of(service, "maildir.alice") == pid
        client.some(len(big))


def test_an_auth_that_hangs():
    with serve(mail=MAIL) as service, RawPop3(service) as client:
        hung = pid_of(service, "auth")
        stop_process(hung)
        assert client.login().startswith(b"+OK")  # the next auth answers it
        service.wait_log("auth is not alive: it has not answered for 1 s; ended")
        assert pid_of(service, "auth") not in (hung, 0)
