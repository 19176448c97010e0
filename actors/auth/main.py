"""The auth actor's shell: its table, its channels, and threads that hash on all cores.

It knows names and hashes, no uid and no path. Its word makes a session somebody's: it goes to the kernel, which alone knows whose
mail lies where, and which believes it only of a session that the listener announced.
"""

import contextlib
import hmac
import math
import os
import threading
import time
from collections import deque
from secrets import token_bytes
from typing import TYPE_CHECKING, Any, NamedTuple

from popkernel.actors.auth.guessing import Guard
from popkernel.actors.auth.passwords import DENIED, Table, decoys, fits, usable, warm
from popkernel.actors.auth.repeated_failures import REPEATS_SECONDS, Repeats, Wrong
from popkernel.kernel.config.regular_files import UnreadableError, read_named
from popkernel.kernel.runtime.actor import Actor, Boot
from popkernel.kernel.runtime.channel import Channel, Message, adopt, watch
from popkernel.kernel.runtime.scheduling import processors
from popkernel.kernel.runtime.tap import note
from popkernel.proto import messages as m
from popkernel.proto.access.fairness import Fair
from popkernel.proto.access.networks import host_of, prefix_of
from popkernel.proto.access.user_names import twins
from popkernel.proto.files.tables import MAX_TABLE, few, parse_auth
from popkernel.proto.pop3.sasl import MECHANISMS, TOKENS

if TYPE_CHECKING:
    from popkernel.actors.auth.tokens import Tokens

_MOST_SAID = 10  # users named in the log who cannot log in because of what stands in place of their hash
_MOST_WAITING = 20000  # logins that wait for a thread
_MOST_SECONDS = 50.0  # how long one may have to wait: its listener gives up at 60, and hashing for nobody keeps others waiting
_AHEAD = 4  # logins given to each thread: one that it checks and three that wait, so that a slow turn of the loop leaves no core idle
_COMPLAINTS = 60.0  # seconds between two lines of the log about logins that are not looked at
_KNOWN = frozenset(("", "PASS", *MECHANISMS))  # what Login.mechanism may be


class Attempt(NamedTuple):
    """A login that is looked at, now or later, with its user as the table writes the name. `came`: by the loop's clock.

    `waited`: it has had to wait for those who guess, and need not again.
    """

    listener: str
    login: m.Login
    came: float
    waited: bool = False


class Auth(Actor):
    """Answers Login with Denied to the listener or Granted to the kernel."""

    def __init__(self, boot: Boot) -> None:
        super().__init__(boot, many=True)
        self.shut_out: list[tuple[int, str]] = []  # level and line for the log, once there is one
        self.table = self._read(boot.config["auth_table"], fold=boot.config["login_case"] == "fold")
        self.tokens = self._read_keys(boot.config["oauth"])
        self.guard = Guard(int(boot.config["penalty_seconds"]), int(boot.config["ipv6_prefix"]))
        self.handlers |= {m.Peer: self._peer}
        self.prefix = int(boot.config["ipv6_prefix"])
        self.queue: Fair[int, Attempt] = Fair()  # by address, what the threads are not given yet
        self.serial = 0
        self.given = 0  # what they are given and have not given back
        self.work: deque[Attempt] = deque()
        self.ready = threading.Condition()  # held by who puts into `work` or takes from it
        self.done: deque[tuple[Attempt, bool]] = deque()
        self.woken = self.wake = -1  # a pipe for the threads, once there are to be any: a replay has none
        self.seconds = 0.0  # what a check takes, lately
        self.hashers = processors()
        self.listeners: dict[str, Channel] = {}
        self.granted: list[Message] = []  # in this turn
        self.check = fits
        self.cache = Verified(int(boot.config["auth_cache_seconds"]))
        self.wrong = Wrong()
        self.repeats = Repeats()
        self.complained = -_COMPLAINTS

    def _read(self, path: str, *, fold: bool) -> Table:
        try:
            data = read_named("auth_table", path, MAX_TABLE)
        except UnreadableError as error:
            self.fail(error.code, str(error))
        table = parse_auth(data, path)
        if table.errors:
            self.fail(65, "\n".join(map(str, table.errors[:20])))
        said = few(list(table.shut_out.values()), "more users cannot log in, see `popkernel check`", _MOST_SAID)
        self.shut_out = [(4, str(finding)) for finding in said]
        if table.locked:
            self.shut_out.append((6, f"{path}: {len(table.locked)} user{'s are' if len(table.locked) > 1 else ' is'} locked"))
        names = table.names()
        if fold:
            self.shut_out += [(4, str(finding)) for finding in twins(names, data, path)]
        return Table(table.hashes, decoys(), fold=fold, names=names)

    def _read_keys(self, oauth: dict[str, str]) -> "Tokens | None":
        """Keys for tokens, where there are to be any; what checks them is loaded then and only then, and used once."""
        if not oauth:
            return None
        from popkernel.actors.auth import tokens

        path = oauth["jwks"]
        try:
            data = read_named("oauth_jwks", path, tokens.MOST_OCTETS)
        except UnreadableError as error:
            self.fail(error.code, str(error))
        keys, findings = tokens.parse_jwks(data, path)
        if findings:
            self.fail(65, "\n".join(map(str, findings[:20])))
        tokens.warm(time.time())
        return tokens.Tokens(keys, oauth["issuer"], oauth["audience"], oauth["user_claim"], oauth["scope"])

    def begin(self) -> None:
        """Lock in, say hello, serve."""
        self.woken, self.wake = os.pipe()
        os.set_blocking(self.woken, False)
        os.set_blocking(self.wake, False)
        warm()
        self.lock(threads=self._start_threads)
        self.loop.add(self.woken, self._answers)
        self.connect()
        for level, line in self.shut_out:
            self.log(level, line)
        self.run()

    def _start_threads(self) -> None:
        for _ in range(self.hashers):
            threading.Thread(target=self._hash, daemon=True).start()

    def _hash(self) -> None:
        """A thread: takes logins, hashes without the interpreter's lock, puts back what it found."""
        while True:
            with self.ready:
                self.ready.wait_for(lambda: self.work)
                attempt = self.work.popleft()
            began = time.monotonic()
            good = self._judge(attempt)
            self.seconds += (time.monotonic() - began - self.seconds) / 16  # a sliding mean; a race between threads costs nothing
            self.done.append((attempt, good))
            with contextlib.suppress(BlockingIOError):  # the pipe is full of wake-ups already
                os.write(self.wake, b"\0")

    def _judge(self, attempt: Attempt) -> bool:
        """Whether it may log in. Who is not known, or has a password that bcrypt can't judge, costs what everybody does."""
        secret = attempt.login.secret
        expected, known = self.table.hash_of(attempt.login.user)
        fit = usable(secret)
        good = self.check(secret if fit else b"\xff", expected)
        return good and known and fit

    # -- messages
    def _peer(self, message: m.Peer, fds: list[int]) -> None:
        old = self.listeners.pop(message.name, None)
        if old is not None:
            old.close()
        self.listeners[message.name] = Channel(
            self.loop, adopt(fds[0]), self.boot.name, message.name, self._on_login, self._on_listener_gone,
        )

    def _on_listener_gone(self, channel: Channel, why: str) -> None:
        self.listeners.pop(channel.peer, None)
        if why:
            self.refuse(channel, why)

    def _on_login(self, channel: Channel, message: Message, fds: list[int]) -> None:
        del fds
        assert isinstance(message, m.Login)
        if message.mechanism not in _KNOWN:
            self.listeners.pop(channel.peer, None)
            self.refuse(channel, "Login.mechanism: no such mechanism")
            return
        login = message._replace(user=self.table.name_of(message.user))
        attempt = Attempt(channel.peer, login, self.loop.now)
        if self.wrong.holds(login, self._client(login), self.loop.now):  # by its other ways to log in a client learns nothing more
            self._checked(attempt, good=False)
        elif self._may_be_looked_at(attempt):
            self._look(attempt)

    def _client(self, login: m.Login) -> str:
        """Whom the address belongs to."""
        return prefix_of(host_of(login.address), self.prefix)

    def _may_be_looked_at(self, attempt: Attempt) -> bool:
        """Whether now; else it is later, or was answered that it is not."""
        login = attempt.login
        wait = self.guard.admit(login.user, login.address, self.loop.now)
        if wait > self.guard.most:
            seconds = math.ceil(wait)
            text = f"too many failed logins from your address, try again in {seconds} seconds"
            self._refuse(attempt.listener, login, text, "guard", seconds)
        elif wait:
            self.loop.later(wait, lambda: self._look(attempt._replace(waited=True)), login.session)
        return not wait

    def _look(self, attempt: Attempt) -> None:
        """Check a login whose time has come."""
        login = attempt.login
        if attempt.listener not in self.listeners:
            return
        expected, known = self.table.hash_of(login.user)
        if login.mechanism in TOKENS:  # some hundred microseconds: no work for threads
            user = self.tokens.user_of(login.secret) if self.tokens is not None else None
            self._checked(attempt, good=known and user == login.user)  # to the letter: what is typed is folded, a claim is not
            return
        if known and usable(login.secret) and self.cache.holds(login.user, login.secret, expected, self.loop.now):
            self._checked(attempt, good=True)
            return
        if not self.queue and self.given < _AHEAD * self.hashers:
            self._give(attempt)
        elif self._room(attempt):
            self.serial += 1
            self.queue.put(self._client(login), self.serial, attempt)

    def _give(self, attempt: Attempt) -> None:
        """To the threads."""
        self.given += 1
        with self.ready:
            self.work.append(attempt)
            self.ready.notify()

    def _give_more(self) -> None:
        """Those whose turn it is; who waited beside others that failed meanwhile is asked about anew."""
        while self.queue and self.given < _AHEAD * self.hashers:
            _, attempt = self.queue.take()
            if attempt.listener in self.listeners and (attempt.waited or self._may_be_looked_at(attempt)):
                self._give(attempt)

    def _room(self, attempt: Attempt) -> bool:
        """Whether it may wait for a thread: where too many do, the address with most of them has one less."""
        waiting = len(self.queue) + self.given
        seconds = waiting * self.seconds / self.hashers
        if waiting < _MOST_WAITING and seconds <= _MOST_SECONDS:
            return True
        if self.loop.now - self.complained >= _COMPLAINTS:
            self.complained = self.loop.now
            self.log(4, f"logins are refused: {waiting} wait for their passwords to be checked, which takes {seconds:.0f} s here")
        other = self.queue.spare(self._client(attempt.login))
        refused = self.queue.remove(other) if other is not None else attempt
        if refused is not None and refused.listener in self.listeners:
            self._refuse(refused.listener, refused.login, "too many logins at once, try again later")
        return refused is not attempt

    def _refuse(self, listener: str, login: m.Login, text: str, why: str = "", seconds: int = 0) -> None:
        """Not looked at: whether the password is right, nobody knows (RFC 3206 section 4: SYS/TEMP)."""
        note("Full", login.session, {"listener": listener, "text": text, "why": why, "seconds": seconds})
        self.listeners[listener].send(m.Denied(login.session, "SYS/TEMP", text, why, seconds))

    def _answers(self, events: int) -> None:
        del events
        try:
            os.read(self.woken, 4096)
        except BlockingIOError:
            return
        while self.done:
            attempt, good = self.done.popleft()
            login = attempt.login
            if good:
                self.cache.put(login.user, login.secret, self.table.hash_of(login.user)[0], self.loop.now)
            self.given -= 1
            self._checked(attempt, good=good)
        self._give_more()

    def _checked(self, attempt: Attempt, *, good: bool) -> None:
        """The outcome is known; a bad one is told when its wait is over."""
        listener, login, now = attempt.listener, attempt.login._replace(secret=b""), self.loop.now
        if good:
            self.guard.succeeded(login.user, login.address, now)
            self._answer(listener, login, good=True)
            return
        if self.wrong.put(attempt.login, self._client(login), now):
            # At once: it tells nothing new, for a right one is not held back, and each that is held is one of max_logins.
            self._answer(listener, login, good=False, why="repeat")
            self._tell_repeats(self._client(login))
            return
        wait = attempt.came + self.guard.failed(login.user, login.address, now) - now
        if wait > 0:
            self.loop.later(wait, lambda: self._answer(listener, login, good=False), login.session)
        else:
            self._answer(listener, login, good=False)

    def _tell_repeats(self, client: str) -> None:
        """Each repeat is told to who asks for more of the log; of an address with very many everybody's log has a line."""
        many = self.repeats.count(client, self.loop.now)
        if many:
            what = f"{many} times within {REPEATS_SECONDS:.0f} s"
            self.log(5, f"{self.boot.name}: {client} repeats passwords found wrong a moment ago: {what}")

    def settings(self) -> dict[str, Any]:
        return {"listeners": list(self.listeners)}

    def _answer(self, listener: str, login: m.Login, *, good: bool, why: str = "") -> None:
        if watch.tap is not None:
            note("Checked", login.session, {"listener": listener, "user": login.user, "good": good, "why": why})
        channel = self.listeners.get(listener)
        if channel is None:  # gone, and its sessions with it
            return
        if good:
            self.granted.append(m.Granted(listener, login.session, login.user))
            if len(self.granted) == 1:
                self.loop.soon(self._tell_granted)
        else:
            channel.send(m.Denied(login.session, *DENIED, why, 0))

    def _tell_granted(self) -> None:
        """Those of a turn of the loop travel together."""
        granted, self.granted = self.granted, []
        if self.kernel is not None:
            self.kernel.send_all(granted)


class Verified:
    """Passwords that bcrypt has found good lately, as keyed digests under a key that never leaves this process's memory.

    A table line that changes comes with a new process, which begins with nothing. `seconds` 0 turns it off.
    """

    __slots__ = ("_digests", "_key", "_seconds")

    _MOST = 100_000

    def __init__(self, seconds: int) -> None:
        self._key = token_bytes(32)
        self._seconds = seconds
        self._digests: dict[str, tuple[bytes, float]] = {}

    def _digest(self, user: str, secret: bytes, hashed: bytes) -> bytes:
        return hmac.digest(self._key, b"\0".join((user.encode(), hashed, secret)), "sha256")

    def holds(self, user: str, secret: bytes, hashed: bytes, now: float) -> bool:
        """Whether this very password was found good for this very hash within the time to live."""
        known = self._digests.get(user)
        if known is None or not self._seconds:
            return False
        if known[1] < now:
            del self._digests[user]
            return False
        return hmac.compare_digest(known[0], self._digest(user, secret, hashed))

    def put(self, user: str, secret: bytes, hashed: bytes, now: float) -> None:
        """Remember a password that was found good."""
        if self._seconds:
            self._digests.pop(user, None)
            if len(self._digests) >= self._MOST:
                self._digests.pop(next(iter(self._digests)))
            self._digests[user] = (self._digest(user, secret, hashed), now + self._seconds)


def main(boot: Boot) -> None:
    """Become auth."""
    Auth(boot).begin()
