"""Deliver one message: write to tmp/, sync, link into new/, add the popcache line, confirm.

After `commit` has returned, the message survives a power failure. Before that nobody sees it; a crash leaves
at most a file in tmp/, which the sweep removes. The popcache line is optional: if the disk has no room for
it, the next listing measures the message.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from popkernel.actors.maildir.store import files, popcache_file
from popkernel.actors.maildir.store.errors import TEMP, MovedError, StoreError, from_os
from popkernel.actors.maildir.store.listing import uidl_of
from popkernel.proto.files import popcache
from popkernel.proto.pop3.octets import SizeCounter

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from popkernel.actors.maildir.store.mailbox import Mailbox

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_TRIES = 100


def _first_free(make_name: Callable[[], bytes], take: Callable[[bytes], bool]) -> bytes:
    """Return the first fresh name that `take` accepts."""
    for _ in range(_TRIES):
        name = make_name()
        if take(name):
            return name
    raise StoreError(TEMP, f"no free file name in {_TRIES} tries: the randomness may be broken")


class Delivery:
    """A message being delivered; made by `Maildrop.deliver_begin`.

    As a context manager it aborts what was not committed.

    All methods raise StoreError; after one, only `abort` may be called.
    """

    __slots__ = ("_counter", "_drop", "_fd", "_name", "_source")

    def __init__(self, drop: Mailbox) -> None:
        self._drop = drop
        self._counter = SizeCounter()
        self._fd = -1
        try:
            drop.refresh("tmp", "new")
        except OSError as error:
            raise from_os(error, "maildir") from None
        self._source = self._name = _first_free(drop.fresh_name, self._create)

    def _create(self, name: bytes) -> bool:
        try:
            self._fd = os.open(name, _CREATE, 0o600, dir_fd=self._drop.tmp)
        except FileExistsError:
            return False
        except OSError as error:
            raise from_os(error, "tmp") from None
        return True

    @property
    def name(self) -> bytes:
        """Return the name of its file in tmp/."""
        return self._source

    def write(self, data: bytes) -> None:
        """Append octets as they are (LF or CR LF line ends)."""
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            raise from_os(error, "tmp") from None
        self._counter.feed(data)

    def commit(self) -> str:
        """Make the message part of the maildrop, safe on disk. Returns its file name in new/.

        The lock is taken before the message becomes visible; if it cannot be had, StoreError SYS/TEMP, and
        nothing happened. Nothing happened either if the next session would not look there: MovedError, or
        StoreError SYS/TEMP if only new/ was replaced.
        """
        drop = self._drop
        try:
            os.fsync(self._fd)
            drop.at("deliver:synced")
            self._show()
            files.sync(drop.new)
        except OSError as error:
            self._take_back()
            raise from_os(error, "tmp or new") from None
        drop.at("deliver:done")
        os.close(self._fd)
        self._fd = -1
        return self._name.decode("ascii")

    def _show(self) -> None:
        """Under the lock, link the file into new/ and add its popcache line."""
        drop = self._drop
        lock = self._lock()
        try:
            drop.at("deliver:locked")
            if not self._move(self._source):
                self._name = _first_free(drop.fresh_name, self._move)
            drop.at("deliver:shown")
            try:
                self._compare()
            except BaseException:
                self._take_back()
                raise
            line = popcache.format_line(self._name, self._counter.finish(), uidl_of(self._name))
            try:
                if lock < 0:
                    raise PermissionError
                popcache_file.append(lock, line)
            except OSError:
                drop.forget()  # the message is there, and the listing finds it without a line
            drop.at("deliver:told")
        finally:
            if lock >= 0:
                os.close(lock)

    def _lock(self) -> int:
        """Take the popcache lock; -1 if this user can't write the popcache at all."""
        try:
            return self._drop.take_lock(TEMP)
        except StoreError as error:
            if error.number not in popcache_file.UNUSABLE:
                raise
            return -1

    def _compare(self) -> None:
        """Check that new/ is still where the next session will look."""
        if self._drop.moved():
            raise MovedError
        if not self._drop.holds("new"):
            raise StoreError(TEMP, "new was replaced while the message came in")

    def _move(self, name: bytes) -> bool:
        return files.move_no_replace(self._drop.tmp, self._source, self._drop.new, name)

    def _take_back(self) -> None:
        """Unlink a message that could not be made safe.

        The sender tries again and must not deliver it twice.
        """
        new = self._drop.new
        try:
            mine, there = os.fstat(self._fd), os.stat(self._name, dir_fd=new, follow_symlinks=False)
            if (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino):
                os.unlink(self._name, dir_fd=new)
        except OSError:
            # It never became visible, or a session has moved it: then it is delivered, and a duplicate is the
            # lesser evil.
            return

    def abort(self) -> None:
        """Remove the file in tmp/. Does nothing after `commit` or a first `abort`."""
        if self._fd < 0:
            return
        os.close(self._fd)
        self._fd = -1
        try:
            os.unlink(self._source, dir_fd=self._drop.tmp)
        except OSError:
            return  # the sweep of tmp/ removes it

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.abort()
