"""Rehearsal: the life of a listener for one connection, played through in the gate before the first one is forked.

As in the spawner: what CPython and OpenSSL write when they do a thing for the first time (adapted code, fetched algorithms, the key's
precomputed tables) is written once, into pages that the children share. No client's secrets come of it: the client is played here, its
context thrown away, and OpenSSL's generators take new seed after a fork (RAND_bytes(3), "fork-safe").
"""

import os
import socket
import ssl
from typing import Any

from popkernel.actors.listener.single_listener import SingleListener
from popkernel.kernel.runtime.actor import Boot
from popkernel.kernel.runtime.channel import Channel, counts, pair
from popkernel.kernel.runtime.loop import Loop
from popkernel.kernel.sandbox import lock as sandbox
from popkernel.proto import messages as m

__all__ = ["rehearse"]

_ROUNDS = 12  # a function is adapted after some eight calls, a loop sooner
_MAIL = b"lines as they come in mail, of no great length\r\n" * 20
_NAME = "listener.0"


def rehearse(config: dict[str, Any], *, sandboxed: bool) -> None:
    """Play it through; `config` is a listener's, with its keys in memory. `sandboxed`: locking in as well, but for what binds."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    for _ in range(_ROUNDS):
        if sandboxed:
            sandbox.rehearse([])
        _one_life(config, context)
    counts.messages_in = counts.messages_out = 0


def _end(loop: Loop, me: str) -> tuple[Channel, socket.socket]:
    """A channel's end held by `me`, and the socket for the listener."""
    ours, theirs = pair()
    return Channel(loop, ours, me, _NAME, lambda *_: None, lambda *_: None), theirs


def _one_life(config: dict[str, Any], context: ssl.SSLContext) -> None:
    loop = Loop()
    kernel, its = _end(loop, "kernel")
    auth, for_auth = _end(loop, "auth")
    maildir, for_maildir = _end(loop, "maildir.rehearsal")
    actor = SingleListener(Boot(_NAME, its, os.getuid(), os.getgid(), config, sandboxed=False))
    actor.connect()
    kernel.send(m.Peer("auth"), [for_auth.fileno()])
    for_auth.close()
    actor.loop.turn()
    near, far = socket.socketpair()
    near.setblocking(False)
    far.setblocking(False)
    actor.admission.limits.come("192.0.2.1", actor.loop.now)
    actor.connections.admit(near, "192.0.2.1", 1, True, "")
    client = _shaken(actor, context.wrap_socket(far, do_handshake_on_connect=False))
    session = actor.connections.serial
    for line in (b"CAPA", b"USER rehearsal", b"PASS x"):
        _say(actor, client, line)
    auth.read()
    kernel.send(m.Opened(session, "rehearsal"), [for_maildir.fileno()])
    for_maildir.close()
    actor.loop.turn()
    maildir.send(m.Ready(2, 2 * len(_MAIL)))
    actor.loop.turn()
    for line, answer in ((b"STAT", None), (b"LIST", m.Sizes(1, [len(_MAIL)] * 2, True)), (b"RETR 1", None), (b"QUIT", m.Bye(0, 0))):
        _say(actor, client, line)
        maildir.read()
        if line.startswith(b"RETR"):
            maildir.send_bulk(m.Mail([1, len(_MAIL), len(_MAIL), 1], b""), _MAIL)
            actor.loop.turn()
        elif answer is not None:
            maildir.send(answer)
            actor.loop.turn()
    actor.peers.reports.send()
    kernel.read()
    client.close()
    for channel in (kernel, auth, maildir, actor.kernel, actor.peers.auth):
        if channel is not None:
            channel.close()


def _shaken(actor: SingleListener, client: ssl.SSLSocket) -> ssl.SSLSocket:
    """The handshake, in turns."""
    while True:
        try:
            client.do_handshake()
        except ssl.SSLWantReadError:
            actor.loop.turn()
        else:
            actor.loop.turn()
            return client


def _say(actor: SingleListener, client: ssl.SSLSocket, line: bytes) -> None:
    client.send(line + b"\r\n")
    actor.loop.turn()
