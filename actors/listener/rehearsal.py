"""Rehearse the life of a single listener in the gate, before the first fork.

CPython and OpenSSL write to memory when they do something for the first time (specialized code, fetched
algorithms, the key's precomputed tables). The rehearsal makes them do it in the gate, so that the children
share those pages. No client's secret is involved: the client is simulated, its context is discarded, and
OpenSSL's generators reseed after a fork (RAND_bytes(3), "fork-safe").
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

_ROUNDS = 12  # CPython specializes a function after some eight calls, a loop sooner
_MAIL = b"lines as they come in mail, of no great length\r\n" * 20
_NAME = "listener.0"


def rehearse(config: dict[str, Any], *, sandboxed: bool) -> None:
    """Rehearse with a listener's configuration, its keys loaded.

    `sandboxed`: rehearse the sandbox too, without the calls that restrict this process.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    for _ in range(_ROUNDS):
        if sandboxed:
            sandbox.rehearse([])
        _rehearse_once(config, context)
    counts.messages_in = counts.messages_out = 0


def _end(loop: Loop, me: str) -> tuple[Channel, socket.socket]:
    """Return a channel's end held by `me`, and the socket for the listener."""
    ours, theirs = pair()
    return Channel(loop, ours, me, _NAME, lambda *_: None, lambda *_: None), theirs


def _rehearse_once(config: dict[str, Any], context: ssl.SSLContext) -> None:
    loop = Loop()
    kernel, its = _end(loop, "kernel")
    auth, for_auth = _end(loop, "auth")
    maildir, for_maildir = _end(loop, "maildir.rehearsal")
    actor = SingleListener(Boot(_NAME, its, os.getuid(), os.getgid(), config, sandboxed=False))
    actor.connect()
    kernel.send(m.PeerChannel("auth"), [for_auth.fileno()])
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
    auth.receive()
    kernel.send(m.SessionAdmitted(session, "rehearsal"), [for_maildir.fileno()])
    for_maildir.close()
    actor.loop.turn()
    maildir.send(m.MaildropReady(2, 2 * len(_MAIL)))
    actor.loop.turn()
    for line, answer in (
        (b"STAT", None),
        (b"LIST", m.MessageSizes(1, [len(_MAIL)] * 2, True)),
        (b"RETR 1", None),
        (b"QUIT", m.QuitDone(0, 0)),
    ):
        _say(actor, client, line)
        maildir.receive()
        if line.startswith(b"RETR"):
            maildir.send_bulk(m.MailContent([1, len(_MAIL), len(_MAIL), 1], b""), _MAIL)
            actor.loop.turn()
        elif answer is not None:
            maildir.send(answer)
            actor.loop.turn()
    actor.peers.reports.send()
    kernel.receive()
    client.close()
    for channel in (kernel, auth, maildir, actor.kernel, actor.peers.auth):
        if channel is not None:
            channel.close()


def _shaken(actor: SingleListener, client: ssl.SSLSocket) -> ssl.SSLSocket:
    """Do the handshake, turn by turn."""
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
