"""Rehearse the life of a maildir actor in the spawner, before the first fork.

CPython specializes code as it runs, by writing into it. If that is done in the image, no child does it again,
nor pays for the copied pages: a third of a spawned actor's processor time, measured. No user's data is
touched: the maildir is made in the run directory and removed again.
"""

import contextlib
import errno
import gc
import os
import socket
import sys
from collections.abc import Mapping
from types import CodeType, FunctionType
from typing import Any, NoReturn, cast

from popkernel.actors.maildir.main import MaildirActor
from popkernel.actors.maildir.store.errors import StoreError
from popkernel.actors.maildir.store.maildrop import Maildrop
from popkernel.actors.maildir.store.policy import Policy
from popkernel.kernel.runtime.actor import Boot
from popkernel.kernel.runtime.channel import Channel, counts, pair
from popkernel.kernel.runtime.loop import Loop
from popkernel.kernel.runtime.memory import note_inherited
from popkernel.kernel.runtime.process_title import set_title
from popkernel.kernel.sandbox import lock as sandbox
from popkernel.proto import messages as m
from popkernel.proto.log_levels import INFO

__all__ = ["MAIL", "rehearse", "remove"]

_ran: set[CodeType] = set()
_ROUNDS = 14  # CPython specializes a function after some eight calls, a loop sooner
MAIL = (
    b"From: a@example.org\nSubject: rehearsal\n\n.a line\n"
    + b"lines as they come in mail, of no great length\n" * 40
)


def rehearse(directory: str, settings: Mapping[str, Any], *, sandboxed: bool) -> None:
    """Rehearse in `directory`, which must be writable.

    `sandboxed`: rehearse the sandbox too, without the calls that restrict this process.

    `settings`: those of the actors to be forked. Settings about mail are replaced by their defaults.

    Raises:
        OSError: the file system is full, for instance. Nothing stays open.
    """
    path = os.path.join(directory, f"rehearsal-{os.getpid()}")
    os.mkdir(path, 0o700)
    # Nothing here must be durable, so fsync(2) is replaced. The replacement is called in the same way, or the
    # code would be specialized again.
    fsync, os.fsync = os.fsync, cast("Any", os.stat)
    sys.setprofile(lambda frame, *_: _ran.add(frame.f_code))  # only in the first round
    try:
        for number in range(_ROUNDS):
            if sandboxed:
                sandbox.rehearse([(path, "rwc")])
            _rehearse_once(path, number, settings)
            if number == 0:
                sys.setprofile(None)
                _copy_code()
    except StoreError as error:
        raise OSError(error.number or errno.EIO, error.text) from None
    finally:
        sys.setprofile(None)
        os.fsync = fsync
        remove(path)
        counts.messages_in = counts.messages_out = 0


def _copy_code() -> None:
    """Copy the code that ran, so that it lies together in memory.

    A child writes to all code that it runs, and each page it writes to is copied. The old code is kept, or
    children would allocate in its place. Measured: 2.49 to 2.44 MiB an idle actor (docs/performance.md).
    """
    for function in gc.get_objects():
        if isinstance(function, FunctionType) and function.__code__ in _ran:
            function.__code__ = function.__code__.replace()


def _rehearse_once(path: str, life: int, settings: Mapping[str, Any]) -> None:
    set_title("spawner")  # the name it has already
    note_inherited()
    mine, its = pair()
    maildir = os.fsencode(path)
    config = {
        **settings,
        "maildir": maildir,
        "log_level": INFO,
        "hostname": "localhost",
        "quota": "",
        "quota_temporary": False,
    }
    config |= Policy()._asdict()
    actor = MaildirActor(Boot("maildir.rehearsal", its, os.getuid(), os.getgid(), config, sandboxed=False))
    actor.drop = Maildrop(maildir, hostname="localhost", clock=actor.world.clock, random=actor.world.random)
    actor.drop.alive = actor.alive
    channels: list[Channel] = []
    try:
        _serve(actor, path, life, mine, channels)
    finally:  # what is open in the image is open in each child
        for channel in (*channels, *actor.delivery_channels.channels):
            channel.close()
        if actor.kernel is not None:
            actor.kernel.close()
        actor.drop.close()


def _serve(actor: MaildirActor, path: str, life: int, mine: socket.socket, channels: list[Channel]) -> None:
    """Have the actor take mail from another program and from mda, and serve a session.

    `mine`: the kernel's end of its channel. `channels`: all other ends are added, for the caller to close.
    """
    with open(os.path.join(path, "new", f"1.{life}.localhost"), "wb") as file:
        file.write(MAIL)
    actor.connect()
    loop = Loop()
    kernel = Channel(loop, mine, "kernel", "maildir.rehearsal", lambda *_: None, lambda *_: None)
    channels.append(kernel)
    ours, theirs = pair()
    mda = Channel(loop, ours, "mda", "maildir.rehearsal", lambda *_: None, lambda *_: None)
    channels.append(mda)
    kernel.send(m.DeliveryChannel("mda"), [theirs.fileno()])
    theirs.close()
    _turn(actor)
    for number in (1, 2):
        mda.send_bulk(m.DeliveryWhole(number, "a@example.org", "b@example.org", b""), MAIL)
        _turn(actor)
        mda.receive()
    ours, theirs = pair()
    listener = Channel(loop, ours, "listener", "maildir.rehearsal", lambda *_: None, lambda *_: None)
    channels.append(listener)
    kernel.send(m.SessionOpen(1, 0), [theirs.fileno()])
    theirs.close()
    _turn(actor)
    for asked in (
        [m.Retrieve(1, 2, 0)],
        [m.List(1, 2), m.Uidl(1, 1), m.Top(1, 3)],
        [m.Delete(1, 2), m.FlowCredit(1000)],
        [m.Quit([])],
    ):
        listener.send_all(asked)
        _turn(actor)
        listener.receive()
    kernel.receive()


def _turn(actor: MaildirActor) -> None:
    """Let the actor take what was sent. It is there at once, unless the actor has closed that channel."""
    late = actor.loop.later(0.5, _late)
    actor.loop.turn()
    late.cancel()


def _late() -> NoReturn:
    raise OSError(errno.EPIPE, "the actor gave up, as it does when its mailbox cannot be used")


def remove(path: str) -> None:
    """Remove a maildir."""
    for part in ("cur", "new", "tmp", ""):
        where = os.path.join(path, part)
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(where):
                with contextlib.suppress(IsADirectoryError, PermissionError):
                    os.unlink(os.path.join(where, name))
            os.rmdir(where)
