"""A helper to measure mail with, for the one listing of very much that nobody has measured yet: a second process beside the actor.

Nearly all of that time is the system's, so two processors do it in half of it. (Two threads do not: each call gives the interpreter's lock
away and wants it back, and who does not get it at once sleeps; measured, a third of the time.) The helper is forked while the actor locks
itself in and is caged more tightly (kernel/actor.py): it reads that maildir, is told names, tells sizes, and ends with that listing.
Who has little mail, or mail that the popcache knows, has none.
"""

from __future__ import annotations

import contextlib
import os
import select
from array import array
from collections import deque
from typing import TYPE_CHECKING

from popkernel.actors.maildir import cachefile, directory

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from popkernel.actors.maildir.directory import File, Size
    from popkernel.actors.maildir.mailbox import Mailbox

__all__ = ["Beside", "much_unmeasured", "serve"]

_MUCH = 256 << 10  # octets of directories: some 6,000 names
_HEAD = 4  # octets of a question's length
_OCTETS = 8  # of a number in an answer, which is short enough to come in one piece (PIPE_BUF, pipe(7))
_PATIENCE = 4.0  # seconds to wait for an answer when all else is done; the kernel's for who does not say that it is alive is longer
_NONE = -1  # what is no file; below it -2 - errno of one that can't be read


def much_unmeasured(drop: Mailbox) -> bool:
    """Whether the next listing may measure thousands of messages: the directories are large and the popcache is not.

    A guess, by sizes alone: directories that were large once keep theirs on some file systems, and then it is wrong.
    """
    try:
        names = os.fstat(drop.cur).st_size + os.fstat(drop.new).st_size
        if names < _MUCH:
            return False
        return os.stat(cachefile.NAME, dir_fd=drop.root, follow_symlinks=False).st_size < names // 2
    except OSError:
        return True


class Beside:
    """The actor's end: `ask`, take `answers`, and `dismiss` when there is nothing (more) to measure."""

    __slots__ = ("_answers", "_ask", "_asked", "there")

    def __init__(self, pipes: tuple[int, int]) -> None:
        """`pipes`: the one to read and the one to write; closed by `dismiss`."""
        self._answers, self._ask = pipes
        self._asked: deque[tuple[int, Sequence[File]]] = deque()
        self.there = True
        for pipe in pipes:
            os.set_blocking(pipe, False)

    def ask(self, number: int, files: Sequence[File]) -> None:
        """Have the helper measure these; `number` comes back with what it found."""
        self._asked.append((number, files))
        if not self.there:
            return
        data = b"\0".join(_entries(files))
        question = len(data).to_bytes(_HEAD, "big") + data
        try:
            taken = os.write(self._ask, question)
        except OSError:  # it is gone, or does not read
            taken = 0
        if taken < len(question):  # a pipe may be small, pipe(7): nobody waits for room in it
            self.dismiss()

    def answers(self, *, wait: bool) -> Iterator[tuple[int, list[Size]]]:
        """What is there by now, or with `wait` all that is owed. What a helper owes that has gone, or does not answer, is measured here."""
        while self._asked:
            number, files = self._asked[0]
            try:
                found = self._receive(len(files), wait=wait)
            except BlockingIOError:
                return
            except OSError:
                self.dismiss()
                found = directory.measure_some(files)
            self._asked.popleft()
            yield number, found

    def _receive(self, many: int, *, wait: bool) -> list[Size]:
        if not self.there:
            raise ConnectionError
        if wait and not select.select([self._answers], [], [], _PATIENCE)[0]:
            raise TimeoutError
        data = os.read(self._answers, many * _OCTETS)
        if len(data) != many * _OCTETS:
            raise ConnectionError
        return [size if size >= 0 else None if size == _NONE else OSError(-2 - size, os.strerror(-2 - size)) for size in array("q", data)]

    def dismiss(self) -> None:
        """Let it end."""
        if self.there:
            self.there = False
            os.close(self._answers)
            os.close(self._ask)


def serve(questions: int, answer: int) -> None:
    """The helper: measure what is asked until nobody asks any more. It has the maildir's descriptors from before the fork."""
    with directory.Ahead() as ahead:
        owes = False
        while True:
            if owes and not select.select([questions], [], [], 0)[0]:  # nothing to have read meanwhile
                _answer(answer, ahead.measure(()))
                owes = False
            files = _question(questions)
            if files is None:
                return
            found = ahead.measure(files)
            if owes:
                _answer(answer, found)
            owes = True


def _question(pipe: int) -> list[File] | None:
    """None at the end: nobody asks any more, or was dismissed in the middle of it."""
    head = _exactly(pipe, _HEAD)
    octets = int.from_bytes(head, "big")
    if len(head) < _HEAD or len(question := _exactly(pipe, octets)) < octets:
        return None
    return _files(question.split(b"\0"))


def _exactly(pipe: int, octets: int) -> bytes:
    data = os.read(pipe, octets)
    while 0 < len(data) < octets and (more := os.read(pipe, octets - len(data))):
        data += more
    return data


def _answer(pipe: int, found: list[Size]) -> None:
    with contextlib.suppress(BrokenPipeError):  # dismissed: the next question is the end
        os.write(pipe, array("q", [_NONE if x is None else -2 - (x.errno or 0) if isinstance(x, OSError) else x for x in found]))


def _entries(files: Sequence[File]) -> list[bytes]:
    """The names; before one that lies elsewhere than the one before it, or says something else of its size, what no name begins with."""
    entries: list[bytes] = []
    said = None
    for fd, name, claimed in files:
        if (fd, claimed) != said:
            said = fd, claimed
            entries.append(b"/%d %d %d" % (fd, *(claimed or (-1, -1))))
        entries.append(name)
    return entries


def _files(entries: list[bytes]) -> list[File]:
    files: list[File] = []
    fd, claimed = -1, None
    for entry in entries:
        if entry.startswith(b"/"):
            fd, size, wire = map(int, entry[1:].split(b" "))
            claimed = (size, wire) if size >= 0 else None
        else:
            files.append((fd, entry, claimed))
    return files
