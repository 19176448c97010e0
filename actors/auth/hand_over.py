"""Hand over to the next auth what this one remembers of logins: verified and wrong passwords, penalties.

At a reload that replaces auth, the kernel makes a channel between the old auth and the new one, and keeps no
end of it. `Sender` is in the old auth, which serves on meanwhile: it sends all that it remembers, and after
that each change, until it ends. `Receiver` is in the new one, which gets no login before it has told the
kernel that it is ready. So no client waits for a reload, and no login between is lost.

A password never leaves auth, nor a hash: what goes over are digests, with the key that they were made with.
They cover the hash, so a login with a changed one is checked by bcrypt, and users that the new table does not
have are dropped.

The old auth may be stopped or hostile. Then the new one takes nothing over, and serves all the same: in two
seconds without a message, or eight in all, or with a message that cannot be true, it gives up and says so. A
hostile auth can hand over digests of passwords of its own choice. It could have granted the same logins
itself; what ends them too is a start, or a reload with `auth_cache_seconds` = 0.
"""

import hmac
from collections.abc import Callable, Iterator
from secrets import token_bytes
from typing import NamedTuple

from popkernel.actors.auth.guessing import Guard
from popkernel.actors.auth.passwords import Table
from popkernel.actors.auth.repeated_failures import WrongPasswords
from popkernel.actors.auth.verified_passwords import Verified
from popkernel.kernel.runtime.channel import Channel, Message
from popkernel.kernel.runtime.loop import Loop, Timer
from popkernel.proto import messages as m

__all__ = ["Memory", "Receiver", "Sender", "Settings", "Taken"]

_SILENT_SECONDS = 2.0  # without a message
_MOST_SECONDS = 8.0  # until LoginMemoryEnd; less than the kernel waits for LoginMemoryTaken
_CHANGES_SECONDS = 10.0  # after that; the old auth has ended by then
_MOST_ENTRIES = 2_000_000  # of all kinds: more than a table of the largest size and full caches make
_LONGEST_CLIENT, _USER_OCTETS = 64, 8  # an address or prefix in characters; a digest of Guard.keys


class Settings(NamedTuple):
    """The keys of the configuration that the memory depends on."""

    cache_seconds: int
    penalty_seconds: int
    prefix: int


class Taken(NamedTuple):
    """What was taken over, as in LoginMemoryTaken."""

    passwords: int = 0
    penalties: int = 0
    added: int = 0
    removed: int = 0
    changed: int = 0


class Memory:
    """What auth remembers of logins. The parts have keys of their own, made of one that is handed over."""

    __slots__ = ("_accounts", "cache", "guard", "key", "wrong")

    def __init__(self, settings: Settings, key: bytes = b"") -> None:
        """`key`: 32 octets; random ones by default."""
        self.key = key or token_bytes(32)
        self._accounts = self._part(b"accounts")
        self.cache = Verified(settings.cache_seconds, self._part(b"verified"))
        self.guard = Guard(settings.penalty_seconds, settings.prefix, self._part(b"users"))
        self.wrong = WrongPasswords(self._part(b"wrong"))

    def _part(self, name: bytes) -> bytes:
        return hmac.digest(self.key, name, "sha256")

    def account(self, user: str, hashed: bytes) -> bytes:
        """Return a digest of a line of the table, which tells a successor whether its own is the same."""
        return hmac.digest(self._accounts, user.encode() + b"\0" + hashed, "sha256")[:16]


class Sender:
    """Hand over a memory to a successor. `verified` and `checked` send changes from `begin` on."""

    def __init__(
        self, channel: Channel, memory: Memory, table: Table, prefix: int, clock: Callable[[], float]
    ) -> None:
        """`prefix`: bits of an IPv6 address that the memory's penalties are of. `clock`: the loop's."""
        self._channel = channel
        self._memory = memory
        self._table = table
        self._prefix = prefix
        self._clock = clock
        self._messages = self._all()

    def begin(self) -> None:
        """Send everything, as fast as the successor reads."""
        self._channel.on_drained = self._go_on
        self._go_on()

    def _go_on(self) -> None:
        channel = self._channel
        while not channel.closed and not channel.waiting:
            message = next(self._messages, None)
            if message is None:
                channel.on_drained = None
                return
            channel.send(message)

    def _all(self) -> Iterator[Message]:
        """Yield all messages. Each is made when it is due, from what is remembered then."""
        memory, clock = self._memory, self._clock
        yield m.LoginMemoryBegin(memory.key, self._prefix)
        accounts = list(self._table.items())
        for at in range(0, len(accounts), m.BATCH):
            part = accounts[at : at + m.BATCH]
            yield m.KnownAccounts([user for user, _ in part], [memory.account(*account) for account in part])
        users = memory.cache.users()
        for at in range(0, len(users), m.BATCH):
            yield self._passwords(users[at : at + m.BATCH])
        wrong = memory.wrong.rows(clock())
        for at in range(0, len(wrong), m.BATCH):
            part_ = wrong[at : at + m.BATCH]
            yield m.FailedPasswords([digest for digest, _ in part_], [left for _, left in part_])
        entries = memory.guard.entries()
        for at in range(0, len(entries), m.BATCH):
            yield self._penalties(entries[at : at + m.BATCH])
        yield m.LoginMemoryEnd()

    def _passwords(self, users: list[str]) -> Message:
        now = self._clock()
        rows = [(user, *row) for user in users if (row := self._memory.cache.row(user, now)) is not None]
        return m.VerifiedPasswords(
            [user for user, _, _ in rows], [digest for _, digest, _ in rows], [left for _, _, left in rows]
        )

    def _penalties(self, entries: list[tuple[str, bytes]]) -> Message:
        now = self._clock()
        rows = [(entry, row) for entry in entries if (row := self._memory.guard.row(*entry, now)) is not None]
        return m.LoginPenalties(
            [client for (client, _), _ in rows],
            [user for (_, user), _ in rows],
            [number for _, row in rows for number in row],
        )

    # -- changes
    def verified(self, user: str) -> None:
        """Send that a user's password was found right."""
        self._channel.send(self._passwords([user]))

    def checked(self, user: str, address: str) -> None:
        """Send the scores that a login of that user from that address has changed."""
        client, digest = self._memory.guard.keys(user, address)
        self._channel.send(self._penalties([(client, b""), ("", digest), (client, digest)]))

    def failed(self) -> None:
        """Send the wrong password that was remembered last."""
        newest = self._memory.wrong.newest()
        if newest is not None:
            self._channel.send(m.FailedPasswords([newest[0]], [newest[1]]))

    def end(self) -> None:
        """Send nothing more."""
        self._channel.close()


class Receiver:
    """Take over a predecessor's memory. `over` is called once: with the memory, or with None and a reason."""

    def __init__(
        self,
        loop: Loop,
        settings: Settings,
        table: Table,
        over: Callable[[Memory | None, Taken, str], None],
    ) -> None:
        self._loop = loop
        self._settings = settings
        self._table = table
        self._over: Callable[[Memory | None, Taken, str], None] | None = over
        self._memory: Memory | None = None
        self._same_prefix = False
        self._entries = 0
        self._seen = self._removed = self._changed = 0
        self._began = loop.now
        self._lately = False  # a message came since the last check
        self._timer: Timer = loop.later(_SILENT_SECONDS, self._check)
        self.channel: Channel | None = None

    def _check(self) -> None:
        if self._over is None:
            self._close()
        elif not self._lately or self._loop.now - self._began > _MOST_SECONDS:
            self.fail("it did not hand them over in time")
        else:
            self._lately = False
            self._timer = self._loop.later(_SILENT_SECONDS, self._check)

    def _close(self) -> None:
        if self.channel is not None:
            self.channel.close()

    def fail(self, why: str) -> None:
        """Take nothing over. After the end of the handing over, this does nothing: the channel may end."""
        self._close()
        if self._over is not None:
            over, self._over = self._over, None
            self._timer.cancel()
            over(None, Taken(), why)

    def take(self, message: Message) -> None:
        """Take a message.

        Raises:
            ValueError: it cannot be true; the text gives the reason, and quotes nothing.

        """
        self._lately = True
        if isinstance(message, m.LoginMemoryBegin):
            if self._memory is not None or len(message.key) != 32:
                raise ValueError("a second beginning, or a key of another size")
            self._memory = Memory(self._settings, message.key)
            self._same_prefix = message.prefix == self._settings.prefix
            return
        memory = self._memory
        if memory is None:
            raise ValueError("no beginning")
        if isinstance(message, m.LoginMemoryEnd):
            self._end(memory)
            return
        self._entries += max(1, len(message[0]))
        if self._entries > _MOST_ENTRIES:
            raise ValueError("more entries than there can be")
        if isinstance(message, m.KnownAccounts):
            self._accounts(memory, message)
        elif isinstance(message, m.VerifiedPasswords):
            self._passwords(memory, message)
        elif isinstance(message, m.FailedPasswords):
            self._failed(memory, message)
        elif isinstance(message, m.LoginPenalties):
            self._penalties(memory, message)

    def _accounts(self, memory: Memory, message: m.KnownAccounts) -> None:
        _same(len(message.users), len(message.digests))
        for user, digest in zip(message.users, message.digests, strict=True):
            hashed, known = self._table.hash_of(user)
            self._seen += known
            self._removed += not known
            self._changed += known and digest != memory.account(user, hashed)

    def _passwords(self, memory: Memory, message: m.VerifiedPasswords) -> None:
        _same(len(message.users), len(message.digests), len(message.milliseconds))
        now = self._loop.now
        for user, digest, left in zip(message.users, message.digests, message.milliseconds, strict=True):
            if len(digest) != 32:
                raise ValueError("a digest of another size")
            if self._table.hash_of(user)[1]:
                memory.cache.restore(user, digest, left, now)

    def _failed(self, memory: Memory, message: m.FailedPasswords) -> None:
        _same(len(message.digests), len(message.milliseconds))
        now = self._loop.now
        for digest, left in zip(message.digests, message.milliseconds, strict=True):
            if len(digest) != 32:
                raise ValueError("a digest of another size")
            memory.wrong.restore(digest, left, now)

    def _penalties(self, memory: Memory, message: m.LoginPenalties) -> None:
        clients, users, numbers = message
        _same(5 * len(clients), 5 * len(users), len(numbers))
        if any(len(client) > _LONGEST_CLIENT for client in clients):
            raise ValueError("a client of another size")
        if any(user and len(user) != _USER_OCTETS for user in users):
            raise ValueError("a digest of another size")
        now = self._loop.now
        for at, (client, user) in enumerate(zip(clients, users, strict=True)):
            # what counts as one IPv6 client may be another prefix now
            if (client or user) and (self._same_prefix or ":" not in client):
                memory.guard.restore(client, user, numbers[5 * at : 5 * at + 5], now, len(self._table))

    def _end(self, memory: Memory) -> None:
        if self._over is None:
            raise ValueError("a second end")
        over, self._over = self._over, None
        self._timer.cancel()
        self._timer = self._loop.later(_CHANGES_SECONDS, self._check)
        added = max(0, len(self._table) - self._seen)
        passwords, penalties = len(memory.cache), memory.guard.penalised(self._loop.now)
        over(memory, Taken(passwords, penalties, added, self._removed, self._changed), "")


def _same(*lengths: int) -> None:
    if len(set(lengths)) != 1:
        raise ValueError("lists of different lengths")
