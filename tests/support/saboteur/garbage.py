"""What a broken or hostile actor might say on its channels: raw octets, and messages that are whole but not its to send."""

import os
import socket
import sys

import msgpack
from popkernel.kernel.runtime.channel import watch
from popkernel.proto import messages as m
from popkernel.proto.bus.zmtp import PREFACE, frame_head
from popkernel.proto.codec import Codec


def framed(*fields):
    data = msgpack.packb(list(fields))
    return frame_head(len(data)) + data


KINDS = {
    "octets": lambda: b"\xff" * 100,
    "unknown code": lambda: framed(99),
    "unknown field": lambda: framed(1, 1, 1, 1, 1, 1, 1),
    "wrong type": lambda: framed(1, "x", 5, 5),
    "no array": lambda: frame_head(4) + b"\x81\x01\x01\x01",
    "too deep": lambda: frame_head(2000) + b"\x91" * 1999 + b"\xc0",
    "giant": lambda: b"\2" + (1 << 40).to_bytes(8, "big"),
    "multipart": lambda: b"\1\1x",
    "endless multipart": lambda: b"\1\1x" * 50_000,
    "trailing": lambda: frame_head(3) + b"\x91\x01\x00",
}


def pour(channel, kind):
    """Past every check of our own side."""
    data = KINDS[kind]()
    if not channel._said:
        channel._said = True
        data = PREFACE + data
    channel.sock.send(data)


def stray_descriptors(channel):
    """Descriptors that no message carries."""
    fds = [os.dup(0) for _ in range(4)]
    channel.sock.sendmsg([framed(5, 6, "descriptors")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, b"".join(f.to_bytes(4, sys.byteorder) for f in fds))])
    for fd in fds:
        os.close(fd)


def misbehave(actor, plan, other):
    """`plan`: "kernel KIND", "other KIND" (the channel at hand), or "say WHAT" for whole messages that are not true."""
    where, _, what = plan.partition(" ")
    if where == "kernel":
        pour(actor.kernel, what)
    elif where == "other":
        pour(other(), what)
    else:
        {**SAYINGS, **LISTENER, **AUTH}[what](actor)


MUCH = 1500  # messages: more than the log takes of one actor, fewer than the kernel ends a maildir actor for
FILE = [os.open(__file__, os.O_RDONLY)]  # a descriptor that nobody can wait for


def twice(actor):
    actor.kernel.send(m.Hello(os.getpid(), "none", ""))


def tapped(way, peer, name, fields):
    """To whoever watches, past what the tap itself would show."""
    if watch.tap is not None:
        data = watch.tap._encode(m.Tapped(1, 1, False, way, peer, name, 0, 0, 0, fields))
        watch.tap._held += frame_head(len(data)) + data
        watch.tap.flush()


def accuse(name):
    return lambda actor: actor.kernel.send(m.Refused("x", name, "a lie"))


def granted(listener, session, user):
    """Past our own check: as the edge from auth to the kernel has it."""
    data = Codec("auth", "kernel").encode(m.Granted(listener, session, user))
    return frame_head(len(data)) + data


def flood(messages):
    """As many messages as the channel takes, again and again."""
    return lambda actor: actor.kernel.send_all(messages(actor))


# A listener's; `evil.session` is that of the login it misbehaves at.
LISTENER = {
    "grant": lambda actor: actor.kernel.sock.send(granted(actor.boot.name, actor.evil.session, "bob")),
    "end others": lambda actor: [
        actor.kernel.send(m.Ended(n, "user0", "192.0.2.66:1", "a lie", 0, 0, 0, 0, 0, 0, 0)) for n in [*range(50), *(actor.connections.serial + k for k in range(-9, 9))]
        if n > 0 and n not in actor.connections.by_session
    ],
    "fail others": lambda actor: actor.kernel.send(m.LoginFailed(1, "forged\nlogin failed: user=forged", "192.0.2.66:1", "AUTH", 0)),
    "await flood": flood(lambda actor: [m.Awaiting(n) for n in range(1 << 50, (1 << 50) + 101_000)]),
    "late flood": flood(lambda actor: [m.Late(name) for name in ("auth", "kernel", "init", "spawner", "mda", "maildir.user0", "nobody", "listener.0", "listener.1")] * 3000),
    "refuse flood": lambda actor: refuse(actor),
    "refuse others": flood(lambda actor: [m.Refused("x", name, "a lie") for name in (*(f"maildir.user{n}" for n in range(30)), "listener.0", "listener.1", "kernel", "spawner")]),
    "event flood": flood(
        lambda actor: [m.LoginFailed(actor.evil.session, "forged", "192.0.2.66:1", "AUTH", 0)] * 2500
        + [m.Ended(1 << 50, "forged", "192.0.2.66:1", "a lie", 0, 0, 0, 0, 0, 0, 0)] * 1500,
    ),
    "counters": flood(lambda actor: [m.Counters(1, 2, 3)] * 5000),
    "login flood": lambda actor: actor.peers.auth.send_all([m.Login(n, f"user{n % 30}", b"guess", "192.0.2.66:1", "PASS") for n in range(1 << 50, (1 << 50) + 2000)]),
    "login twice": lambda actor: actor.peers.auth.send_all([actor.evil._replace(user="user9", secret=b"guess"), actor.evil._replace(user="user8", secret=b"guess")]),
    "login unannounced": lambda actor: actor.peers.auth.send(m.Login(1 << 51, "user7", b"secret", "192.0.2.66:1", "PASS")),
    "no mechanism": lambda actor: actor.peers.auth.send(actor.evil._replace(mechanism="EXTERNAL")),
}
# Auth's: `evil` is the login it misbehaves at, `asker` the listener it came from.
AUTH = {
    "grant unasked": lambda actor: [actor.kernel.send(m.Granted(*grant)) for grant in ((actor.asker, 1 << 52, "bob"), ("listener.9", 1, "bob"), ("kernel", 1, "bob"), ("auth", 1, "bob"))],
    "grant nobody": lambda actor: actor.kernel.send(m.Granted(actor.asker, actor.evil.session, "dave-who-is-not")),
    "grant again": lambda actor: again(actor),
}


def refuse(actor):
    """Every auth there is, until somebody puts an end to it."""
    actor.kernel.send_all([m.Refused("x", "auth", "a lie")] * 300)
    actor.loop.later(0.1, lambda: refuse(actor))


def park(actor, session, state, fd):
    """At once, whatever waits in the channel; and so whenever it is woken."""
    actor.handlers[m.Wake] = lambda message, fds: park(actor, message.session, message.state, fds[0])
    actor.kernel.send(m.Parked(session, state), [fd])
    if fd != actor.channel.fd:
        os.close(fd)


def without_end(messages):
    """More than the kernel takes of a maildir actor in a second (kernel/processes.py), and again, until somebody puts an end to it."""
    def go_on(actor):
        actor.kernel.send_all(messages)
        actor.loop.later(0.05, lambda: go_on(actor))

    return go_on


def again(actor):
    """A grant that is true, and the same many times: at once, and when the session is over."""
    grant = m.Granted(actor.asker, actor.evil.session, "bob")
    actor.kernel.send_all([grant] * 500)
    for n in range(1, 40):
        actor.loop.later(n / 10, lambda: actor.kernel.send_all([grant] * 10))


SAYINGS = {
    "hello twice": twice,
    "another session": lambda actor: actor.kernel.send(m.Awaiting(actor.connections.serial + 1)),
    "parked another": lambda actor: actor.kernel.send(m.Parked(1, b"x"), [actor.kernel.fd]),
    "parked a file": lambda actor: actor.kernel.send(m.Parked(actor.number, b"x"), [FILE[0]]),
    "parked a channel": lambda actor: actor.kernel.send(m.Parked(actor.number, b"x"), [actor.kernel.fd]),
    "moved another": lambda actor: actor.kernel.send(m.Moved(1, b"x"), [actor.kernel.fd]),
    "moved a file": lambda actor: actor.kernel.send(m.Moved(actor.number, b"x"), [FILE[0]]),
    "moved a channel": lambda actor: actor.kernel.send(m.Moved(actor.number, b"x"), [actor.kernel.fd]),
    "park again": lambda actor: park(actor, actor.number, actor.session.park(), actor.channel.fd),
    "fds": lambda actor: stray_descriptors(actor.kernel),
    "broke": lambda actor: actor.kernel.send(m.Broke("execve", "exec\n1970-01-01 forged line")),
    "log": lambda actor: actor.kernel.send(m.Log(4, "session: user=bob\nlogin failed: user=forged")),
    "log much": flood(lambda actor: [m.Log(4, f"line {n}") for n in range(MUCH)]),
    "log flood": without_end([m.Log(4, f"line {n}") for n in range(3000)]),
    "tap deep": lambda actor: tapped("in", "kernel", "Open", b"\x81\xa1a" * 900 + b"\xc0"),
    "tap no map": lambda actor: tapped("in", "kernel", "Open", b"\x93\x01\x02\x03"),
    "tap note": lambda actor: tapped("note", "auth", "Ended", b"\x81\xa3how\xadsignal forged"),
    "tap others": lambda actor: tapped("in", "auth", "Granted", b"\x81\xa4user\xa6forged"),
    "accuse much": flood(lambda actor: [m.Refused("x", "listener", "a lie")] * MUCH),
    "accuse flood": without_end([m.Refused("x", "auth", "a lie")] * 3000),
    "closed another": lambda actor: [actor.kernel.send(m.Closed(n, 9, 9)) for n in (1, 2, 1 << 40, (1 << 40) + 1) if n != actor.number],
    "accuse auth": accuse("auth"),
    "accuse spawner": accuse("spawner"),
    "accuse bob": accuse("maildir.bob"),
    "accuse listener": accuse("listener"),
    "accuse kernel": accuse("kernel"),
}


def install(actor, plan, first):
    """When it is to misbehave: a maildir actor when its session is open, auth and listener at a login of "evil"."""
    kind = type(actor).__name__
    if not plan or not first:
        return
    if kind == "MaildirActor":
        handler = actor.handlers[m.Open]

        def on_open(message, fds):
            handler(message, fds)
            actor.loop.later(0.05, lambda: misbehave(actor, plan, lambda: actor.channel))

        actor.handlers[m.Open] = on_open
    elif kind in ("Listener", "SingleListener"):
        ask = actor.peers.ask

        def on_ask(client, login):
            if login.user.startswith("evil-maildir."):
                user, _, kind = login.user[13:].partition("-")
                pour(next(c.channel for c in actor.connections.by_session.values() if c.channel and c.session.authorization.user == user), kind.replace("-", " "))
            elif login.user.startswith("evil-"):
                actor.evil = login
                actor.tell(m.Awaiting(login.session))
                misbehave(actor, login.user[5:].replace("-", " "), lambda: actor.peers.auth)
            else:
                ask(client, login)

        type(actor.peers).ask = lambda self, client, login: on_ask(client, login)
    elif kind == "Auth":
        login = actor._on_login

        def on_login(channel, message, fds):
            if message.user.startswith("evil-"):
                actor.evil, actor.asker = message, channel.peer
                misbehave(actor, message.user[5:].replace("-", " "), lambda: channel)
            else:
                login(channel, message, fds)

        type(actor)._on_login = lambda self, channel, message, fds: on_login(channel, message, fds)
    elif kind == "Spawner":
        actor.handlers[m.Spawn] = lambda message, fds: misbehave(actor, plan, lambda: actor.kernel)


def install_init(init, plan):
    if plan:
        init.loop.later(0.05, lambda: init.kernel.sock.send(KINDS[plan]()))
