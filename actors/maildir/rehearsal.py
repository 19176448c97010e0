"""Rehearsal: the life of a maildir actor, played through in the spawner before the first one is forked.

CPython adapts the code it runs to what it sees, by writing into it. Done once in the image, this is neither done again in every child
nor paid for in copied pages: measured, a third of a spawned actor's processor time. Nothing of a user is touched: the maildir is made
in the run directory and removed again.
"""

import contextlib
import gc
import os
import sys
from collections.abc import Mapping
from types import CodeType, FunctionType
from typing import Any, cast

from popkernel.actors.maildir.main import MaildirActor
from popkernel.actors.maildir.store.maildrop import Maildrop
from popkernel.actors.maildir.store.policy import Policy
from popkernel.kernel.runtime.actor import Boot
from popkernel.kernel.runtime.channel import Channel, counts, pair
from popkernel.kernel.runtime.loop import Loop
from popkernel.kernel.runtime.process_title import set_title
from popkernel.kernel.sandbox import lock as sandbox
from popkernel.proto import messages as m

__all__ = ["rehearse"]

_ran: set[CodeType] = set()
_ROUNDS = 14  # a function is adapted after some eight calls, a loop sooner
_MAIL = b"From: a@example.org\nSubject: rehearsal\n\n.a line\n" + b"lines as they come in mail, of no great length\n" * 40


def rehearse(directory: str, settings: Mapping[str, Any], *, sandboxed: bool) -> None:
    """Play it through; `directory` must be ours to write in. `sandboxed`: locking in as well, but for what binds.

    `settings`: of those that follow. What says what is done with mail is left at its default.
    """
    path = os.path.join(directory, f"rehearsal-{os.getpid()}")
    os.mkdir(path, 0o700)
    # Nothing here is to last, and no disk is waited for. What stands in for it is called in the same way, or it would be adapted to anew.
    fsync, os.fsync = os.fsync, cast("Any", os.stat)
    sys.setprofile(lambda frame, *_: _ran.add(frame.f_code))  # in the first round
    try:
        for number in range(_ROUNDS):
            if sandboxed:
                sandbox.rehearse([(path, "rwc")])
            _one_life(path, number, settings)
            if number == 0:
                sys.setprofile(None)
                _put_together()
    finally:
        sys.setprofile(None)
        os.fsync = fsync
        _remove(path)
        counts.messages_in = counts.messages_out = 0


def _put_together() -> None:
    """Make the code that ran anew, side by side: a child writes to all that it runs, and each page that it writes to is copied.

    The old stays, or children would fill its places. Measured: 2.49 to 2.44 MiB an idle actor (docs/performance.md).
    """
    for function in gc.get_objects():
        if isinstance(function, FunctionType) and function.__code__ in _ran:
            function.__code__ = function.__code__.replace()


def _one_life(path: str, life: int, settings: Mapping[str, Any]) -> None:
    set_title("spawner")  # its name already
    mine, its = pair()
    maildir = os.fsencode(path)
    config = {**settings, "maildir": maildir, "verbose": 0, "hostname": "localhost", "quota": "", "quota_temporary": False}
    config |= Policy()._asdict()
    actor = MaildirActor(Boot("maildir.rehearsal", its, os.getuid(), os.getgid(), config, sandboxed=False))
    actor.drop = Maildrop(maildir, hostname="localhost")
    actor.drop.alive = actor.alive
    with open(os.path.join(path, "new", f"1.{life}.localhost"), "wb") as file:  # mail that another program has put there
        file.write(_MAIL)
    actor.connect()
    loop = Loop()
    kernel = Channel(loop, mine, "kernel", "maildir.rehearsal", lambda *_: None, lambda *_: None)
    ours, theirs = pair()
    mda = Channel(loop, ours, "mda", "maildir.rehearsal", lambda *_: None, lambda *_: None)
    kernel.send(m.Receive("mda"), [theirs.fileno()])
    theirs.close()
    actor.loop.turn()
    for number in (1, 2):
        mda.send_bulk(m.Post(number, "a@example.org", "b@example.org", b""), _MAIL)
        actor.loop.turn()
        mda.read()
    ours, theirs = pair()
    listener = Channel(loop, ours, "listener", "maildir.rehearsal", lambda *_: None, lambda *_: None)
    kernel.send(m.Open(1, 0), [theirs.fileno()])
    theirs.close()
    actor.loop.turn()
    for asked in ([m.Retrieve(1, 2, 0)], [m.List(1, 2), m.Uidl(1, 1), m.Top(1, 3)], [m.Delete(1, 2), m.Credit(1000)], [m.Quit([])]):
        listener.send_all(asked)
        actor.loop.turn()
        listener.read()
    kernel.read()
    for channel in (listener, kernel, mda, *actor.reception.channels):
        channel.close()
    if actor.kernel is not None:
        actor.kernel.close()
    actor.drop.close()


def _remove(path: str) -> None:
    for part in ("cur", "new", "tmp", ""):
        where = os.path.join(path, part)
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(where):
                with contextlib.suppress(IsADirectoryError, PermissionError):
                    os.unlink(os.path.join(where, name))
            os.rmdir(where)
