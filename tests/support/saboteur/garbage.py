"""Send what a broken or hostile actor might: raw octets, and whole messages it has no right to send."""

import os
import socket
import sys

import msgpack
from popkernel.kernel.runtime.channel import watch
from popkernel.proto import messages as m
from popkernel.proto.bus.zmtp import PREFACE, frame_head
from popkernel.proto.codec import Codec
from popkernel.proto.topology import edge


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


def send_raw(channel, kind):
    """Write octets that the sender's own checks would refuse."""
    data = KINDS[kind]()
    if not channel._said:
        channel._said = True
        data = PREFACE + data
    channel.sock.send(data)


def stray_descriptors(channel):
    """Send descriptors that belong to no message."""
    fds = [os.dup(0) for _ in range(4)]
    channel.sock.sendmsg(
        [framed(5, 4, "maildir.note", {"note": "descriptors"})],
        [(socket.SOL_SOCKET, socket.SCM_RIGHTS, b"".join(f.to_bytes(4, sys.byteorder) for f in fds))],
    )
    for fd in fds:
        os.close(fd)


def misbehave(actor, plan, other):
    """Send what `plan` names.

    "kernel KIND" or "other KIND" (the channel at hand) sends octets; "say WHAT" sends whole messages that are
    untrue.
    """
    where, _, what = plan.partition(" ")
    if where == "kernel":
        send_raw(actor.kernel, what)
    elif where == "other":
        send_raw(other(), what)
    else:
        {**SAYINGS, **LISTENER, **AUTH}[what](actor)


# messages: over the log's quota of an actor, under the number for which the kernel ends a maildir actor
MUCH = 1500
FILE = [os.open(__file__, os.O_RDONLY)]  # a descriptor that epoll refuses


def second_hello(actor):
    actor.kernel.send(m.Hello(os.getpid(), "none", ""))


def show_frame(way, peer, name, fields):
    """Send viewers a frame that the tap itself would not show."""
    if watch.tap is not None:
        data = watch.tap._encode(m.TraceFrame(1, 1, False, way, peer, name, 0, 0, 0, fields))
        watch.tap._held += frame_head(len(data)) + data
        watch.tap.flush()


def accuse(name):
    return lambda actor: actor.kernel.send(m.PeerRefused("x", name, "a lie"))


def encoded_grant(listener, session, user):
    """Encode a grant on the edge from auth to the kernel, which this actor may not use."""
    data = Codec("auth", "kernel").encode(m.LoginGranted(listener, session, user))
    return frame_head(len(data)) + data


def logs(level, event, fields):
    """Send an event that this side would not encode."""
    code = edge("maildir.{user}", "kernel").messages.index(m.LogEvent) + 1
    return lambda actor: actor.kernel.sock.send(framed(code, level, event, fields))


def fill_channel(messages):
    """Fill the channel with messages, again and again."""
    return lambda actor: actor.kernel.send_all(messages(actor))


def started(session):
    return m.LoginStarted(session, "user0", "192.0.2.66:1", 13, "PASS")


# A listener's. `evil.session` is the session of the login at which it misbehaves.
LISTENER = {
    "grant": lambda actor: actor.kernel.sock.send(encoded_grant(actor.boot.name, actor.evil.session, "bob")),
    "end others": lambda actor: [
        actor.kernel.send(m.ConnectionEnded(n, "user0", "192.0.2.66:1", "a lie", 0, 0, 0, 0, 0, 0, 0))
        for n in [*range(50), *(actor.connections.serial + k for k in range(-9, 9))]
        if n > 0 and n not in actor.connections.by_session
    ],
    "fail others": lambda actor: actor.kernel.send(
        m.LoginFailed(1, "forged\nlogin failed: user=forged", "192.0.2.66:1", "AUTH", 0)
    ),
    "await flood": fill_channel(lambda actor: [started(n) for n in range(1 << 50, (1 << 50) + 101_000)]),
    "late flood": fill_channel(
        lambda actor: (
            [
                m.PeerTimeout(name)
                for name in (
                    "auth",
                    "kernel",
                    "init",
                    "spawner",
                    "mda",
                    "maildir.user0",
                    "nobody",
                    "listener.0",
                    "listener.1",
                )
            ]
            * 3000
        )
    ),
    "refuse flood": lambda actor: accuse_every_auth(actor),
    "refuse others": fill_channel(
        lambda actor: [
            m.PeerRefused("x", name, "a lie")
            for name in (
                *(f"maildir.user{n}" for n in range(30)),
                "listener.0",
                "listener.1",
                "kernel",
                "spawner",
            )
        ]
    ),
    "event flood": fill_channel(
        lambda actor: (
            [m.LoginFailed(actor.evil.session, "forged", "192.0.2.66:1", "AUTH", 0)] * 2500
            + [m.ConnectionEnded(1 << 50, "forged", "192.0.2.66:1", "a lie", 0, 0, 0, 0, 0, 0, 0)] * 1500
        ),
    ),
    "own flood": lambda actor: swing(actor),
    "counters": fill_channel(lambda actor: [m.Counters(1, 2, 3)] * 5000),
    "login flood": lambda actor: actor.peers.auth.send_all(
        [
            m.LoginRequest(n, f"user{n % 30}", b"guess", "192.0.2.66:1", "PASS")
            for n in range(1 << 50, (1 << 50) + 2000)
        ]
    ),
    "login twice": lambda actor: actor.peers.auth.send_all(
        [
            actor.evil._replace(user="user9", secret=b"guess"),
            actor.evil._replace(user="user8", secret=b"guess"),
        ]
    ),
    "login unannounced": lambda actor: actor.peers.auth.send(
        m.LoginRequest(1 << 51, "user7", b"secret", "192.0.2.66:1", "PASS")
    ),
    "no mechanism": lambda actor: actor.peers.auth.send(actor.evil._replace(mechanism="EXTERNAL")),
}
# Auth's. `evil` is the login at which it misbehaves, `asker` the listener that asked.
AUTH = {
    "grant unasked": lambda actor: [
        actor.kernel.send(m.LoginGranted(*grant))
        for grant in (
            (actor.asker, 1 << 52, "bob"),
            ("listener.9", 1, "bob"),
            ("kernel", 1, "bob"),
            ("auth", 1, "bob"),
        )
    ],
    "grant nobody": lambda actor: actor.kernel.send(
        m.LoginGranted(actor.asker, actor.evil.session, "dave-who-is-not")
    ),
    "grant again": lambda actor: repeat_grant(actor),
}


def swing(actor):
    """Begin logins of its own session and let them fail, without end."""
    if not actor.kernel.waiting:
        failed = m.LoginFailed(actor.evil.session, "forged", "192.0.2.66:1", "AUTH", 0)
        actor.kernel.send_all([started(actor.evil.session), failed] * 3000)
    actor.loop.later(0.0, lambda: swing(actor))


def accuse_every_auth(actor):
    """Accuse every auth until one is ended."""
    actor.kernel.send_all([m.PeerRefused("x", "auth", "a lie")] * 300)
    actor.loop.later(0.1, lambda: accuse_every_auth(actor))


def park(actor, session, state, fd):
    """Park at once, with messages still waiting in the channel, and again after each wake."""
    actor.handlers[m.SessionWake] = lambda message, fds: park(actor, message.session, message.state, fds[0])
    actor.kernel.send(m.SessionParked(session, state, 0), [fd])
    if fd != actor.channel.fd:
        os.close(fd)


def send_without_end(messages):
    """Send more than the kernel takes of a maildir actor in a second (kernel/processes.py), until ended."""

    def go_on(actor):
        actor.kernel.send_all(messages)
        actor.loop.later(0.05, lambda: go_on(actor))

    return go_on


def repeat_grant(actor):
    """Repeat a true grant many times: at once, and after the session has ended."""
    grant = m.LoginGranted(actor.asker, actor.evil.session, "bob")
    actor.kernel.send_all([grant] * 500)
    for n in range(1, 40):
        actor.loop.later(n / 10, lambda: actor.kernel.send_all([grant] * 10))


SAYINGS = {
    "hello twice": second_hello,
    "another session": lambda actor: actor.kernel.send(started(actor.connections.serial + 1)),
    "parked another": lambda actor: actor.kernel.send(m.SessionParked(1, b"x", 0), [actor.kernel.fd]),
    "parked a file": lambda actor: actor.kernel.send(m.SessionParked(actor.number, b"x", 0), [FILE[0]]),
    "parked a channel": lambda actor: actor.kernel.send(
        m.SessionParked(actor.number, b"x", 0), [actor.kernel.fd]
    ),
    "moved another": lambda actor: actor.kernel.send(m.SessionMoved(1, b"x"), [actor.kernel.fd]),
    "moved a file": lambda actor: actor.kernel.send(m.SessionMoved(actor.number, b"x"), [FILE[0]]),
    "moved a channel": lambda actor: actor.kernel.send(m.SessionMoved(actor.number, b"x"), [actor.kernel.fd]),
    "park again": lambda actor: park(actor, actor.number, actor.session.park(), actor.channel.fd),
    "fds": lambda actor: stray_descriptors(actor.kernel),
    "broke": lambda actor: actor.kernel.send(m.PromiseBroken("execve", "exec\n1970-01-01 forged line")),
    "log": lambda actor: actor.log(4, "maildir.note", note="session: user=bob\nlogin failed: user=forged"),
    "log lines": logs(4, "maildir.note", {"note": "a\nlogin failed: user=forged"}),
    "log nested": logs(4, "maildir.note", {"note": {"note": "x"}}),
    "log others": logs(5, "login.failed", {"address": "192.0.2.66:1", "why": "AUTH", "user": "forged"}),
    "log level": logs(3, "maildir.note", {"note": "forged"}),
    "log fields": logs(4, "maildir.note", {"note": "forged", "actor": "kernel"}),
    "log less": logs(4, "maildir.unusable", {"error": "forged"}),
    "log much": fill_channel(
        lambda actor: [m.LogEvent(4, "maildir.note", {"note": f"line {n}"}) for n in range(MUCH)]
    ),
    "log flood": send_without_end(
        [m.LogEvent(4, "maildir.note", {"note": f"line {n}"}) for n in range(3000)]
    ),
    "tap deep": lambda actor: show_frame("in", "kernel", "SessionOpen", b"\x81\xa1a" * 900 + b"\xc0"),
    "tap no map": lambda actor: show_frame("in", "kernel", "SessionOpen", b"\x93\x01\x02\x03"),
    "tap note": lambda actor: show_frame("note", "auth", "Ended", b"\x81\xa3how\xadsignal forged"),
    "tap others": lambda actor: show_frame("in", "auth", "LoginGranted", b"\x81\xa4user\xa6forged"),
    "accuse much": fill_channel(lambda actor: [m.PeerRefused("x", "listener", "a lie")] * MUCH),
    "accuse flood": send_without_end([m.PeerRefused("x", "auth", "a lie")] * 3000),
    "closed another": lambda actor: [
        actor.kernel.send(m.SessionClosed(n, 9, 9, 0, []))
        for n in (1, 2, 1 << 40, (1 << 40) + 1)
        if n != actor.number
    ],
    "accuse auth": accuse("auth"),
    "accuse spawner": accuse("spawner"),
    "accuse bob": accuse("maildir.bob"),
    "accuse listener": accuse("listener"),
    "accuse kernel": accuse("kernel"),
}


def install(actor, plan, first):
    """Arrange when to misbehave: a maildir actor at session open, auth and listener at a login of "evil"."""
    kind = type(actor).__name__
    if not plan or not first:
        return
    if kind == "MaildirActor":
        handler = actor.handlers[m.SessionOpen]

        def on_open(message, fds):
            handler(message, fds)
            actor.loop.later(0.05, lambda: misbehave(actor, plan, lambda: actor.channel))

        actor.handlers[m.SessionOpen] = on_open
    elif kind in ("Listener", "SingleListener"):
        ask = actor.peers.ask

        def on_ask(client, login):
            if login.user.startswith("evil-maildir."):
                user, _, kind = login.user[13:].partition("-")
                send_raw(
                    next(
                        c.channel
                        for c in actor.connections.by_session.values()
                        if c.channel and c.session.authorization.user == user
                    ),
                    kind.replace("-", " "),
                )
            elif login.user.startswith("evil-"):
                actor.evil = login
                actor.send(started(login.session))
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
        actor.handlers[m.ActorSpawn] = lambda message, fds: misbehave(actor, plan, lambda: actor.kernel)


def install_init(init, plan):
    if plan:
        init.loop.later(0.05, lambda: init.kernel.sock.send(KINDS[plan]()))
