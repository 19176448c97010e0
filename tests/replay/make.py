"""Make the recordings of this folder with real clients on a real server.

`python -m tests.replay.make [NAME ...]` makes all or those named; so does `pytest --replay-update
tests/replay`. Each scenario has the arguments of `trace`, its site, its actions and the frames to wait for.
"""

import base64
import contextlib
import inspect
import os
import pathlib
import signal
import smtplib
import socket
import subprocess
import sys
import tempfile
from typing import NamedTuple

from popkernel.kernel.client import Client
from popkernel.proto.trace.recording import Recording, end, header, pack, read

from tests.support import processes
from tests.support.pop3 import RawPop3
from tests.support.programs import mail_clients
from tests.support.service import POPKERNEL, Service
from tests.support.waiting import wait_for

HERE = pathlib.Path(__file__).parent
MAIL = [
    b"From: a@example.org\nSubject: one\n\nFirst.\n",
    b"From: b@example.org\nSubject: two\n\n.dot\n..\nlast without end",
    b"From: c@example.org\nSubject: three\n\n" + b"line of text\n" * 20,
]
ALICE = ("--user", "alice", "--with-maildir")


class Scenario(NamedTuple):
    act: object  # act(service, tmp); if it yields, the part before the yield is not recorded
    trace: tuple = ALICE
    until: object = None  # until(recording): everything is recorded
    site: dict = {}
    needs: str = ""  # a client program


def has(name, many=1, *, actor="", way=""):
    """Return a condition: `many` frames of that name, by actor (a name's beginning) and way."""
    return lambda recording: (
        sum(f.name == name and f.actor.startswith(actor) and f.way.startswith(way) for f in recording.frames)
        >= many
    )


def ends(many=1):
    """Return a condition: `many` connections have ended."""
    return has("ConnectionEnded", many, way="in")


def asks(service, user, tls="tls"):
    """Return a client whose password check is running or queued."""
    raw = service.keep(RawPop3(service, tls, timeout=20))
    raw.ask(b"USER " + user.encode())
    raw.send(b"PASS secret\r\n")
    return raw


def seen(service, tls="tls"):
    """Wait until a listener has read earlier input, by serving others."""
    for _ in range(2):
        with RawPop3(service, tls, timeout=20) as other:
            other.ask(b"CAPA")


def kicked(service, tmp):
    """The operator ends a session, and has no new one taken for a moment."""
    operator = Client(service.config.run_dir)
    alice, bob = service.keep(RawPop3(service, user="alice")), service.keep(RawPop3(service))
    alice.ask(b"DELE 1")
    operator.ask("kick", who="alice")
    alice.end()
    operator.ask("drain", on=True)
    assert bob.login("bob").startswith(b"-ERR [SYS/TEMP]")
    operator.ask("drain", on=False)
    assert bob.login("bob").startswith(b"+OK")
    bob.ask(b"QUIT")


def client(name):
    return Scenario(
        lambda service, tmp: getattr(mail_clients, name)(service, "alice", "tls", tmp, len(MAIL)),
        until=ends(),
        needs=name,
    )


def with_poplib(service, tmp):
    """Use every POP3 command."""
    pop = service.pop3()
    pop.capa(), pop.stat(), pop.list(), pop.uidl(), pop.list(2), pop.uidl(3), pop.noop()
    pop.retr(1), pop.top(3, 2), pop.dele(1), pop.stat(), pop.rset(), pop.retr(2), pop.retr(3)
    for wrong in (lambda: pop.retr(9), lambda: pop.dele(0), lambda: pop._shortcmd("XYZZY")):
        try:
            wrong()
        except Exception:
            pass
    pop.dele(2), pop.dele(3), pop.list(), pop.stat(), pop.quit()


def pipelined(service, tmp):
    with RawPop3(service, "tls", user="alice", timeout=20) as raw:
        raw.send(
            b"STAT\r\nRETR 1\r\nRETR 2\r\nDELE 1\r\nDELE 2\r\nDELE 2\r\nSTAT\r\nLIST\r\nRSET\r\nDELE "
            b"3\r\nQUIT\r\n"
        )
        raw.end()


def delivery(service, tmp):
    mda = smtplib.LMTP(f"{service.config.run_dir}/lmtp.sock")
    mda.sendmail("sender@example.org", ["alice"], b"Subject: new\r\n\r\nDelivered.\r\n")
    try:
        mda.sendmail("sender@example.org", ["nobody"], b"Subject: new\r\n\r\nNot delivered.\r\n")
    except smtplib.SMTPRecipientsRefused:
        pass
    mda.sendmail(
        "sender@example.org", ["alice+list"], b"Subject: lines\r\n\r\n" + b".a line with a dot\r\n" * 50
    )
    mda.quit()
    pop = service.pop3()
    pop.list(), pop.uidl(), pop.retr(4), pop.dele(4), pop.quit()


def late(service, tmp):
    """Start recording late: a session with a mark, one before login, LMTP idle and mid-message."""
    open_, asking = service.pop3(), service.pop3(login=False)
    open_.retr(1), open_.dele(2), asking.user("alice")
    rest, half = (smtplib.LMTP(f"{service.config.run_dir}/lmtp.sock") for _ in range(2))
    rest.sendmail("sender@example.org", ["alice"], b"Subject: before\r\n\r\nDelivered.\r\n")
    half.ehlo(), half.mail("sender@example.org"), half.rcpt("alice"), half.docmd("DATA")
    half.sock.sendall(b"Subject: half\r\n\r\n" + b"half of it, in lines of which there are few\r\n" * 3500)
    folder = pathlib.Path(service.site.mail_users["alice"].maildir, "tmp")
    wait_for(lambda: any(file.stat().st_size > 100_000 for file in folder.iterdir()))
    yield
    half.sock.sendall(b"the other half\r\n.\r\n")
    half.getreply(), half.quit()
    rest.sendmail("sender@example.org", ["alice"], b"Subject: after\r\n\r\nDelivered.\r\n")
    rest.quit()
    open_.stat(), open_.dele(3), open_.quit()
    asking.pass_("secret"), asking.stat(), asking.uidl(), asking.retr(2), asking.quit()
    pop = service.pop3()
    pop.list(), pop.top(3, 2), pop.quit()


def reload(service, tmp):
    """Reload: nothing has changed; the authorization table has, so that auth hands over; all mail has."""
    before = service.pop3("alice")
    service.command("reload")
    with open(service.site.auth_table, "a") as file:
        file.write("# changed\n")
    service.command("reload")
    after = service.pop3("bob")
    with open(service.toml, "a") as file:
        file.write("set_seen = false\n")
    service.command("reload")  # of a setting of all maildir actors
    before.retr(1), before.quit()
    after.stat(), after.quit()


def killed(service, tmp):
    pop = service.pop3()
    pop.dele(1)
    os.kill(service.actor("maildir.alice")["pid"], signal.SIGKILL)
    try:
        pop.stat(), pop.retr(1)
    except Exception:
        pass
    pop.close()
    wait_for(lambda: service.actor("maildir.alice") is None)
    again = service.pop3()
    assert again.stat()[0] == len(MAIL)
    again.quit()


def attack(service, tmp):
    """Send garbage before and after login, guesses, endless lines, misplaced commands."""
    with RawPop3(service, "tls", timeout=20) as raw:
        raw.send(b"RETR 1\r\n\xff\xfe\x00garbage\r\nPASS first\r\nUSER alice\r\nPASS guess\r\n")
        raw.line(), raw.line(), raw.line(), raw.line(), raw.line()
        raw.send(
            b"USER " + b"a" * 5000 + b"\r\nuser alice secret\r\nUSER alice\r\nPASS\tsecret\r\npass secret\r\n"
        )
        for _ in range(5):
            raw.line()
        raw.send(
            b"RETR 99999999999999999999\r\nTOP 1\r\nTOP 1 -1\r\nDELE two\r\nUSER bob\r\nAUTH PLAIN "
            b"AGFsaWNlAHNlY3JldA==\r\nSTLS\r\n"
        )
        for _ in range(7):
            raw.line()
        raw.send(b"x\r\n" * 60)
        raw.end()


def sasl(service, tmp):
    """Use AUTH in its forms: in one or more steps, cancelled, malformed, wrong, for another user, too long.

    Each time the session goes on.
    """

    def b64(data):
        return base64.b64encode(data)

    for tls, lines in (
        ("tls", [b"AUTH PLAIN " + b64(b"\0alice\0secret"), b"STAT"]),
        ("stls", [b"AUTH PLAIN", b64(b"alice\0alice\0secret"), b"RETR 1"]),
        ("tls", [b"AUTH LOGIN", b64(b"alice"), b64(b"secret"), b"LIST 2"]),
        ("tls", [b"AUTH LOGIN " + b64(b"alice"), b64(b"secret"), b"AUTH PLAIN"]),
        (
            "tls",
            [
                b"AUTH",
                b"AUTH PLAIN",
                b"*",
                b"AUTH PLAIN =",
                b"AUTH PLAIN !",
                b"AUTH CRAM-MD5",
                b"AUTH LOGIN",
                b64(b"bob"),
                b64(b"wrong"),
                b"AUTH PLAIN " + b64(b"bob\0alice\0secret"),
                b"AUTH PLAIN " + b"A" * 13000,
                b"AUTH LOGIN",
                b64(b"alice"),
                b64(b"secret"),
                b"NOOP",
            ],
        ),
    ):
        with RawPop3(service, tls, timeout=20) as raw:
            for line in lines:
                raw.ask(line)
                if line in (b"AUTH", b"RETR 1"):
                    raw.rest()
            raw.ask(b"QUIT")
    # all in one packet, and a client that disconnects in an exchange
    with RawPop3(service, "tls", timeout=20) as raw:
        raw.send(
            b"AUTH PLAIN\r\n"
            + b64(b"\0alice\0wrong")
            + b"\r\nUTF8\r\nAUTH LOGIN\r\n"
            + b64(b"alice")
            + b"\r\n"
            + b64(b"secret")
            + b"\r\nSTAT\r\nDELE 9\r\nDELE 1\r\nRSET\r\nQUIT\r\n"
        )
        raw.end()
    with RawPop3(service, "tls", timeout=20) as raw:
        raw.ask(b"AUTH PLAIN")


def waits(service, tmp):
    """Guess until logins are delayed and then refused unseen; a known user logs in meanwhile."""
    service.pop3("bob").quit()
    clients = []
    for number in range(12):
        clients.append(service.pop3(login=False))
        clients[-1].user(f"user{number}")
        if number < 7:
            try:
                clients[-1].pass_("guess")
            except Exception:
                pass
        else:
            clients[-1]._putcmd("PASS guess")
    service.pop3("bob").quit()
    for pop in clients[7:]:
        pop._getline()
    for pop in clients:
        pop.quit()


def guesses(service, tmp):
    """Log in as an unknown user and with a wrong password: same cost, same reply.

    Two clients want one mailbox.
    """
    for user, word in (("nobody", "secret"), ("alice", "wrong"), ("alice", "")):
        pop = service.pop3(login=False)
        pop.user(user)
        try:
            pop.pass_(word)
        except Exception:
            pass
        pop.close()
    first = service.pop3()
    second = service.pop3(login=False)
    second.user("alice")
    try:
        second.pass_("secret")
    except Exception:
        pass
    first.quit(), second.close()


def parked(service, tmp):
    pop = service.pop3()
    pop.dele(2)
    service.wait_for_parked() if hasattr(service, "wait_for_parked") else wait_for(
        lambda: service.actor("maildir.alice") is None, seconds=30
    )
    pop.stat(), pop.quit()


def restarts(service, tmp):
    """Kill singletons, which restart.

    A delivery waits for a session, and a session for a delivery's actor.
    """
    before = service.pop3()
    for name in ("auth", "mda", "listener", "spawner"):
        pid = service.actor(name)["pid"]
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: (service.actor(name) or {}).get("pid") not in (None, 0, pid))  # noqa: B023
    before.close()
    wait_for(lambda: all(a["state"] in ("serving", "running") for a in service.status()["actors"]))
    mda = smtplib.LMTP(f"{service.config.run_dir}/lmtp.sock")
    mda.sendmail("sender@example.org", ["alice"], b"Subject: new\r\n\r\nDelivered.\r\n")
    mda.quit()
    first, second = service.pop3("alice"), service.pop3("bob")
    # both sessions are parked
    wait_for(lambda: not any(a["name"].startswith("maildir.") for a in service.status()["actors"]))
    second.close()
    first.stat(), first.quit()


def timeouts(service, tmp):
    """Let clients be silent, send half a line or log in too slowly; one client is quick."""
    silent, half, slow = (service.keep(RawPop3(service, how, timeout=20)) for how in ("", "stls", "tls"))
    half.send(b"USER al")
    slow.send(b"USER alice\r\n")
    slow.line()
    pop = service.pop3("bob")
    for client in (silent, half, slow):
        client.end()
        client.sock.close()
    pop.noop(), pop.quit()


def stopped(service, *names):
    """Stop those actors while the context is active."""
    return processes.stopped(*(service.actor(name)["pid"] for name in names))


def others(service, tmp):
    """Let another user's session begin and fail before alice's; her recording must have nothing of it."""
    first = service.pop3(login=False)
    first.user("bob")
    try:
        first.pass_("wrong")
    except Exception:
        pass
    first.close()
    pop = service.pop3()
    pop.stat(), pop.uidl(), pop.retr(1), pop.dele(1), pop.quit()


def queued(service, tmp):
    """Queue a login behind another user's, which the recording does not have."""
    clients = []
    with stopped(service, "auth"):
        for user in ("bob", "alice"):
            clients.append(asks(service, user))
            seen(service)
    for raw in clients:
        raw.line()
        raw.ask(b"QUIT")


def hung_up(service, tmp):
    """Let a client shut its sending side while its password is checked."""
    with RawPop3(service, "", timeout=20) as raw:
        raw.ask(b"USER alice")
        with stopped(service, "auth"):
            raw.send(b"PASS secret\r\n")
            raw.sock.shutdown(socket.SHUT_WR)
            seen(service)
        raw.line()


def lone(service, tmp):
    """Let a listener of one connection serve alice, after one that served bob."""
    service.pop3("bob").quit()
    pop = service.pop3("alice")
    pop.stat(), pop.stat(), pop.quit()


def batch(service, tmp):
    """Let two mailboxes answer in one turn of the mda, so that its client gets both answers at once."""
    folders = [pathlib.Path(service.site.mail_users[user].maildir, "new") for user in ("alice", "bob")]
    mda = service.keep(smtplib.LMTP(f"{service.config.run_dir}/lmtp.sock"))
    mda.ehlo(), mda.mail("sender@example.org"), mda.rcpt("alice"), mda.rcpt("bob")
    wait_for(
        lambda: all(
            (service.actor(name) or {}).get("state") == "serving" for name in ("maildir.alice", "maildir.bob")
        )
    )
    with contextlib.ExitStack() as until_both_have_answered:
        with stopped(service, "maildir.alice", "maildir.bob"):
            mda.docmd("DATA")
            mda.sock.sendall(b"Subject: two\r\n\r\nFor two.\r\n.\r\n")
            other = smtplib.LMTP(f"{service.config.run_dir}/lmtp.sock")
            other.ehlo(), other.quit()  # earlier commands have been passed on by now
            until_both_have_answered.enter_context(stopped(service, "mda"))
        wait_for(lambda: all(len(list(folder.iterdir())) > len(MAIL) for folder in folders))
    mda.getreply(), mda.getreply(), mda.quit()


EVERYBODY = ()
SCENARIOS = {
    "curl": client("curl"),
    "fetchmail": client("fetchmail"),
    "getmail6": client("getmail"),
    "mpop": client("mpop"),
    "poplib": Scenario(with_poplib, until=ends()),
    "pipelined": Scenario(pipelined, until=ends()),
    "sasl": Scenario(sasl, EVERYBODY, ends(7)),
    "delivery": Scenario(delivery, (*ALICE, "--payload"), ends()),
    "late": Scenario(late, (*ALICE, "--payload"), ends(3)),
    "reload": Scenario(reload, EVERYBODY, ends(2)),
    "killed": Scenario(killed, EVERYBODY, ends(2)),
    "attack": Scenario(attack, ALICE, ends()),
    "guesses": Scenario(guesses, EVERYBODY, ends(5)),
    "waits": Scenario(waits, EVERYBODY, ends(14), {"penalty_seconds": 1}),
    "restarts": Scenario(restarts, EVERYBODY, ends(2), {"park_seconds": 1, "warm_seconds": 1}),
    "timeouts": Scenario(
        timeouts, EVERYBODY, ends(4), {"login_seconds": 1, "park_seconds": 1, "warm_seconds": 1}
    ),
    "others": Scenario(others, ALICE, ends()),
    "kicked": Scenario(kicked, EVERYBODY, ends(2)),
    "queued": Scenario(queued, ("--user", "alice"), ends(), {"max_logins": 1}),
    "hung_up": Scenario(hung_up, EVERYBODY, ends(1), {"allow_plaintext": True}),
    "lone": Scenario(lone, ("--user", "alice"), ends(), {"isolation": "connection"}),
    "batch": Scenario(
        batch,
        ("mda", "--payload"),
        lambda recording: any(
            b"221" in said for f in recording.frames[-1:] for said in f.fields.get("said", ())
        ),
    ),
    "parked": Scenario(parked, ALICE, ends(), {"park_seconds": 1, "warm_seconds": 1}),
}


def make(name, path=None):
    """Make one recording; return its path."""
    scenario = SCENARIOS[name]
    path = path or HERE / f"{name}.rec"
    with (
        tempfile.TemporaryDirectory() as tmp,
        Service(mail=MAIL, users=["alice", "bob"], **scenario.site) as service,
    ):
        if inspect.isgeneratorfunction(scenario.act):
            steps = scenario.act(service, pathlib.Path(tmp))
            next(steps)
            record(service, scenario.trace, lambda: next(steps, None), scenario.until, path)
        else:
            record(
                service,
                scenario.trace,
                lambda: scenario.act(service, pathlib.Path(tmp)),
                scenario.until,
                path,
            )
    return path


def follow(service, session, act, until, path):
    """Record a session that does not exist yet, which `trace` would not wait for."""
    with (
        Client(service.config.run_dir).follow(session=session) as watcher,
        pathlib.Path(path).open("wb") as file,
    ):
        file.write(pack(header(watcher.answer)))
        act()
        frames = []
        while not until(Recording({}, frames)):
            frame = watcher.next_frame(15)
            assert frame is not None, frames
            frames.append(frame)
            file.write(pack(frame))
        file.write(pack(end(len(frames), watcher.lost)))


def record(service, arguments, act, until, path):
    """Run `trace --record` around `act` until the recording satisfies `until`."""
    with subprocess.Popen(
        [
            *POPKERNEL,
            "trace",
            "--run-dir",
            service.config.run_dir,
            "--record",
            str(path),
            "--force",
            *arguments,
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as trace:
        try:
            assert "attached" in trace.stderr.readline()
            act()
            wait_for(lambda: until(read(pathlib.Path(path).read_bytes())))
        finally:
            trace.terminate()
            rest = trace.communicate(timeout=20)[1]
    assert trace.returncode == 0, rest


def spoil(name, how, change):
    """Make a known-bad recording: change one frame of a good one as a faulty program would have."""
    recording = read((HERE / f"{name}.rec").read_bytes())
    frames = change(list(recording.frames))
    data = [pack(recording.header), *map(pack, frames), pack(end(len(frames), 0))]
    (HERE / "bad").mkdir(exist_ok=True)
    (HERE / "bad" / f"{how}.rec").write_bytes(b"".join(data))


def _reply_text(frames):
    at = next(
        i for i, f in enumerate(frames) if f.name == "Reply" and f.fields["said"] == [b"+OK marked\r\n"]
    )
    frames[at] = frames[at]._replace(fields={"said": [b"+OK deleted\r\n"]})
    return frames


def _lost_dele(frames):
    lost = next(
        i
        for i, f in enumerate(frames)
        if f.name == "Delete" and f.actor == "maildir.alice" and f.fields["first"] == 3
    )
    return frames[:lost] + frames[lost + 1 :]


def _octets(frames):
    at = next(i for i, f in enumerate(frames) if f.name == "MaildropReady" and f.way == "out")
    frames[at] = frames[at]._replace(fields={**frames[at].fields, "octets": frames[at].fields["octets"] + 1})
    return frames


def _lease(frames):
    at = next(
        i
        for i, f in enumerate(frames)
        if f.name == "Decision" and f.fields["method"] == "granted" and "IN-USE" in str(f.fields["effects"])
    )
    frames[at] = frames[at]._replace(fields={**frames[at].fields, "effects": []})
    return frames


def _ended(frames):
    at = next(i for i, f in enumerate(frames) if f.name == "ConnectionEnded" and f.way == "out")
    frames[at] = frames[at]._replace(
        fields={**frames[at].fields, "commands": frames[at].fields["commands"] + 1}
    )
    return frames


def _never_asked(frames):
    turn = next(i for i, f in enumerate(frames) if f.name == "Turn")
    return [
        f
        for i, f in enumerate(frames)
        if i < turn or f.way != "out" or f.name not in ("LoginStarted", "LoginRequest")
    ]


def _half(frames):
    both = b"250 2.0.0 safe\r\n" * 2
    at = next(i for i, f in enumerate(frames) if f.name == "Reply" and f.fields["said"] == [both])
    frames[at] = frames[at]._replace(fields={"said": [both[: len(both) // 2]]})
    return frames


BAD = {
    "changed-reply-text": ("poplib", _reply_text),
    "lost-dele": ("poplib", _lost_dele),
    "wrong-octet-count": ("poplib", _octets),
    "lost-in-use": ("guesses", _lease),
    "changed-report": ("others", _ended),
    "never-asked": ("queued", _never_asked),
    "half-a-batch": ("batch", _half),
}


def make_bad():
    for how, (name, change) in BAD.items():
        spoil(name, how, change)


if __name__ == "__main__":
    for wanted in sys.argv[1:] or SCENARIOS:
        print(wanted, make(wanted).stat().st_size)
    if all((HERE / f"{name}.rec").exists() for name, _ in BAD.values()):
        make_bad()
