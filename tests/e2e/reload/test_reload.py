"""Test reloads: open sessions go on, new ones use the new files, a bad file changes nothing."""

import contextlib
import os
import shutil
import signal
import ssl
import threading

import bcrypt
from popkernel.cli.common.sample_site import make_certificate
from popkernel.kernel.client import Client

from tests.support.awkward import BIG, sent
from tests.support.maildirs import mail_of
from tests.support.pop3 import RawPop3
from tests.support.processes import wait_all_ended
from tests.support.service import ROOT, serve
from tests.support.waiting import wait_for

USERS = [f"user{n:02d}" for n in range(50)]
HASH = bcrypt.hashpw(b"changed", bcrypt.gensalt(4)).decode()


def rewrite(path, change):
    """Replace a file by a new one, as an editor does."""
    with open(path) as file:
        text = file.read()
    write(path, change(text).encode())


def write(path, data):
    with open(path + ".new", "wb") as file:
        file.write(data)
    shutil.copystat(path, path + ".new")
    os.rename(path + ".new", path)


def new_certificate(service):
    certificate, key = make_certificate()
    write(service.site.cert, certificate)
    write(service.site.key, key)
    return ssl.PEM_cert_to_DER_cert(certificate.decode())


def answer_of(service, user, password="secret"):
    with RawPop3(service) as client:
        answer = client.login(user, password)
        if answer.startswith(b"+OK"):
            stat = client.ask(b"STAT")
            assert client.ask(b"QUIT").startswith(b"+OK")
            return stat
        return answer


def test_under_fifty_sessions():
    mail = {"user00": [BIG], **dict.fromkeys(USERS[1:], [b"Subject: 1\n\nx\n"] * 2)}
    with serve(users=USERS, mail=mail) as service, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(RawPop3(service, buffer=65536 if n == 0 else 0)) for n in range(50)]
        for user, client in zip(USERS, clients, strict=True):
            assert client.login(user).startswith(b"+OK")
        before = clients[0].certificate()
        assert clients[0].ask(b"RETR 1").startswith(b"+OK")
        clients[0].some(100_000)
        move_users(service)
        wanted = new_certificate(service)
        old = {a["name"]: a["pid"] for a in service.status()["actors"]}
        service.signal(signal.SIGHUP)  # the tests below use the command
        service.wait_log("reloaded: 51 users")
        clients[0].some(300_000)
        with RawPop3(service) as new:
            assert new.certificate() == wanted != before
        assert answer_of(service, "added").startswith(b"+OK 1 ")
        assert answer_of(service, "user01").startswith(b"-ERR [AUTH]")  # the old password
        # the right one, but the old session goes on
        assert answer_of(service, "user01", "changed").startswith(b"-ERR [IN-USE]")
        for client in clients[1:]:
            assert client.ask(b"STAT") == b"+OK 2 34\r\n"
            assert client.ask(b"RETR 2").startswith(b"+OK")
            assert client.message() == b"Subject: 1\r\n\r\nx\r\n"
            assert client.ask(b"DELE 1").startswith(b"+OK")
            assert client.ask(b"QUIT").startswith(b"+OK")
        assert clients[0].message() == sent(BIG)
        assert clients[0].ask(b"QUIT").startswith(b"+OK")
        assert answer_of(service, "user01", "changed").startswith(b"+OK 1 ")
        assert answer_of(service, "user02").startswith(b"-ERR [AUTH]")  # removed
        # moved, though its old actor was in use during the reload
        assert answer_of(service, "user03").startswith(b"+OK 3 ")
        # DELE before the reload's end, QUIT after it
        assert {len(mail_of(service, u)) for u in USERS[1:]} == {1}
        wait_all_ended([old["auth"], old["listener.0"]])
        assert service.actor("spawner")["pid"] == old["spawner"], "all maildirs lie where they did"


def move_users(service):
    """Add a user, change a password, remove a user, move a maildir (as root: to another uid too)."""
    site = service.site
    base = os.path.dirname(site.mail_users["user00"].maildir)
    homes = {"added": 1, "moved": 3}
    uid = 64990 if ROOT else os.geteuid()
    for home, many in homes.items():
        for sub in ("", "/tmp", "/new", "/cur"):
            os.mkdir(f"{base}/{home}{sub}", 0o700)
            os.chown(f"{base}/{home}{sub}", uid, uid if ROOT else os.getegid())
        for n in range(many):
            path = f"{base}/{home}/new/{n}.x.localhost"
            with open(path, "wb") as file:
                file.write(b"Subject: y\n\nz\n")
            os.chown(path, uid, uid if ROOT else os.getegid())
    gid = uid if ROOT else os.getegid()
    with open(site.auth_table) as file:
        same = next(line for line in file if line.startswith("user00 ")).split()[1]

    def auth(text):
        lines = [line for line in text.splitlines() if line.split()[0] not in ("user01", "user02")]
        return "\n".join([*lines, f"user01 {HASH}", f"added {same}", f"ghost {same}"]) + "\n"

    def users(text):
        lines = [line for line in text.splitlines() if line.split()[0] not in ("user02", "user03")]
        new = [
            f"user03 {uid}:{gid}:{base}/moved",
            f"added {uid}:{gid}:{base}/added",
            f"nobody {uid}:{gid}:{base}/added",
        ]
        return "\n".join([*lines, *new]) + "\n"

    rewrite(site.auth_table, auth)
    rewrite(site.user_table, users)


def half(data):
    return data[: len(data) // 2]


BAD = {
    "authorization table half-edited": ("auth_table", lambda d: d + b"dave"),
    "authorization table with a line that does not parse": ("auth_table", lambda d: d + b"dave\n"),
    "authorization table full of NUL": ("auth_table", lambda d: bytes(4096)),
    "authorization table gone": ("auth_table", None),
    "user table half-edited": ("user_table", lambda d: d[:-8]),
    "user table with root": ("user_table", lambda d: d + b"dave 0:0:/home/dave\n"),
    "user table gone": ("user_table", None),
    "certificate cut": ("cert", half),
    "certificate gone": ("cert", None),
    "certificate of another key": ("cert", lambda d: make_certificate()[0]),
    "key is garbage": ("key", lambda d: b"garbage\n"),
    "configuration with an unknown key": ("toml", lambda d: d + b"lissten = 3\n"),
    "configuration that is no TOML": ("toml", lambda d: d + b"= =\n"),
    "configuration gone": ("toml", None),
}


# A start's exit codes; for the certificate, the key and the configuration 78.
CODES = {
    what: 66 if what.endswith("gone") else 65
    for what, (which, _) in BAD.items()
    if which in ("auth_table", "user_table")
}


def test_bad_files_change_nothing():
    with serve(mail=[b"Subject: 1\n\nx\n"]) as service, RawPop3(service) as client:
        assert client.login("bob").startswith(b"+OK")
        certificate = client.certificate()
        assert answer_of(service, "alice").startswith(b"+OK")  # its actor stays warm
        pids = sorted(service.pids())
        for count, (what, (which, change)) in enumerate(BAD.items(), 1):
            path = service.toml if which == "toml" else getattr(service.site, which)
            with open(path, "rb") as file:
                good = file.read()
            if change is None:
                os.rename(path, path + ".away")
            else:
                write(path, change(good))
            result = service.command("reload", check=False)
            assert result.returncode == CODES.get(what, 78), (what, result)
            # place and mend
            assert path in result.stderr and "; " in result.stderr, (what, result.stderr)
            service.signal(signal.SIGHUP)
            log = service.wait_log("not reloaded, what is in force stays", count=2 * count)
            assert path in log
            with RawPop3(service, verify=False) as new:
                assert new.certificate() == certificate, what
                assert new.login().startswith(b"+OK"), what
                assert new.ask(b"QUIT").startswith(b"+OK")
            if change is None:
                os.rename(path + ".away", path)
            else:
                write(path, good)
        assert client.ask(b"STAT").startswith(b"+OK")
        assert service.command("reload").stdout.startswith("reloaded\n")
        assert client.ask(b"QUIT").startswith(b"+OK")
        wait_for(lambda: len(service.pids()) <= len(pids))


def test_settings_that_need_a_restart_are_named():
    with serve(mail=()) as service:
        rewrite(service.toml, lambda text: text + "listeners = 3\nidle_seconds = 700\n")
        said = service.command("reload").stdout.splitlines()
        assert said[0] == "reloaded" and said[-1] == "only from the next start on: listeners"
        log = service.wait_log("reloaded:")
        assert "in force only after the next start: listeners" in log and "idle_seconds" not in log


def test_two_at_once():
    """The second is refused, or done after the first; neither is dropped silently."""
    with serve(mail=()) as service:
        results = []
        threads = [
            threading.Thread(target=lambda: results.append(service.command("reload", check=False)))
            for _ in range(3)
        ]
        for _ in range(3):
            service.signal(signal.SIGHUP)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(r.returncode == 0 or "not now" in r.stderr for r in results), results
        wait_for(lambda: service.command("reload", check=False).returncode == 0)


def descriptors(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


def memory(pid):
    with open(f"/proc/{pid}/smaps_rollup") as file:
        return sum(int(line.split()[1]) for line in file if line.startswith("Private_"))


def test_twenty_in_a_row_leave_nothing():
    with serve(mail=[b"Subject: 1\n\nx\n"], warm_seconds=0) as service:
        kernel = service.actor("kernel")["pid"]
        init = service.process.pid

        def settled():
            return len(service.pids()) == 5  # init, kernel, spawner, auth, listener

        def reload():
            service.change_files()
            assert Client(service.config.run_dir).ask("reload")["ok"]
            assert answer_of(service, "alice").startswith(b"+OK")

        for _ in range(3):  # growth that happens once happens now
            reload()
        wait_for(settled)
        before = descriptors(init), descriptors(kernel)
        kib = memory(init), memory(kernel)
        for _ in range(20):
            reload()
        wait_for(settled)
        wait_for(lambda: (descriptors(init), descriptors(kernel)) <= before)
        grown = memory(init) - kib[0], memory(kernel) - kib[1]
        print(f"20 reloads: descriptors {before}, grown by {grown} KiB (init, kernel)")
        assert max(grown) < 1024
