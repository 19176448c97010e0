"""Run the auth actor: read its table, answer logins, hash in threads on all cores.

It knows names and hashes, but no uid and no path. Its grant gives a session its user. The grant goes to the
kernel, which alone knows where each user's mail lies, and which accepts it only for a session that the
listener announced.
"""

import contextlib
import math
import os
import socket
import threading
import time
from collections import deque
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple

from popkernel.actors.auth.hand_over import Memory, Receiver, Sender, Settings, Taken
from popkernel.actors.auth.passwords import DENIED, Table, fits, usable, warm
from popkernel.actors.auth.repeated_failures import REPEATS_SECONDS, Repeats
from popkernel.actors.auth.schemes import without_missing
from popkernel.kernel.config.regular_files import UnreadableError, read_named
from popkernel.kernel.runtime.actor import Actor, Boot
from popkernel.kernel.runtime.channel import Channel, Message, watch
from popkernel.kernel.runtime.scheduling import processors
from popkernel.kernel.runtime.tap import note
from popkernel.proto import messages as m
from popkernel.proto.access.fairness import FairByOwner
from popkernel.proto.access.login_times import answer_by
from popkernel.proto.access.networks import host_of, prefix_of
from popkernel.proto.access.user_names import case_conflicts, domain_conflicts
from popkernel.proto.files.password_schemes import scheme_of
from popkernel.proto.files.tables import MAX_TABLE, first_findings, parse_auth
from popkernel.proto.log_levels import DEBUG, INFO, NOTICE, WARNING
from popkernel.proto.pop3.sasl import MECHANISMS, TOKENS
from popkernel.proto.trace.session_names import session_of

if TYPE_CHECKING:
    from popkernel.actors.auth.tokens import Tokens

_MOST_SAID = 10  # users named in the log who cannot log in because their entry is no valid hash
# logins queued for each thread: one that it checks and three that wait, so that a slow turn of the loop
# leaves no core idle
_QUEUED = 4
# Logins of one connection, where a listener serves only that: it may lie about its client's address, so no
# penalty of an address slows it.
_MOST_ALONE = 100
_LONG = 1.0  # seconds: a login that waits longer is reported to the kernel
_REPORTS = 10.0  # seconds between two reports while logins wait
_KNOWN = frozenset(("", "PASS", *MECHANISMS))  # values of LoginRequest.mechanism


class Attempt(NamedTuple):
    """A login to be checked now or later, its user spelled as in the table.

    `came`: by the loop's clock. `waited`: its penalty is over, so that it gets no other. `number`: of this
    login among all. `delayed`, `hashed`: seconds that it waited for its penalty, and that its password was
    hashed.
    """

    listener: str
    login: m.LoginRequest
    came: float
    waited: bool = False
    number: int = 0
    delayed: float = 0.0
    hashed: float = 0.0


class Auth(Actor):
    """Answer LoginRequest with LoginRefused to the listener or LoginGranted to the kernel."""

    def __init__(self, boot: Boot, table: Table | None = None) -> None:
        """`table`: used instead of the file in the configuration."""
        super().__init__(boot, many=True)
        # for the log: findings about the table, and why users of it cannot log in
        self.doubts: list[str] = []
        self.shut_out: dict[str, str] = {}
        if table is None:
            table = self._read(boot.config["auth_table"])
        self.table = table
        self.tokens = self._read_keys(boot.config["oauth"])
        self.handlers |= {m.PeerChannel: self._peer}
        self.handlers |= {m.SuccessorChannel: self._hand_over}
        self.handlers |= {m.PredecessorChannel: self._take_over}
        self.prefix = int(boot.config["ipv6_prefix"])
        self.remembers = Settings(
            int(boot.config["auth_cache_seconds"]), int(boot.config["penalty_seconds"]), self.prefix
        )
        self.sender: Sender | None = None  # to the successor, once a reload has started one
        self.remember(Memory(self.remembers))
        # attempts not given to the threads yet, and those that wait for their penalty: by listener, then by
        # the address that it names, then by user; most of each
        self.queue: FairByOwner[int, Attempt] = FairByOwner()
        self.delayed: FairByOwner[int, Attempt] = FairByOwner()
        self.most = int(boot.config["max_sessions"])
        self.patience = answer_by(float(boot.config["login_seconds"]))  # seconds an attempt is worth a check
        # by listener and session: the number of the login that is to be answered
        self.live: dict[str, dict[int, int]] = {}
        self.alone: dict[str, int] = {}  # logins so far of each listener that serves one connection
        self.serial = 0
        self.given = 0  # attempts given to the threads and not returned
        self.work: SimpleQueue[Attempt] = SimpleQueue()  # attempts for the threads
        self.done: deque[tuple[Attempt, bool | None]] = deque()
        self.woken = self.wake = -1  # a pipe by which threads wake the loop; a replay has none
        self.hashers = processors()
        self.listeners: dict[str, Channel] = {}
        self.granted: list[Message] = []  # in this turn of the loop
        self.check = fits
        self.repeats = Repeats()
        self.checks = self.hits = self.misses = 0  # for LoginLoad
        self.refused: dict[str, int] = {}  # logins refused since the last report, by bound
        self.reported: m.LoginLoad | None = None
        self.reporting = False  # a report is due
        self.handlers |= {m.AccountLookup: self._account}

    def remember(self, memory: Memory) -> None:
        """Use this memory of logins from now on."""
        self.memory = memory
        self.guard, self.cache, self.wrong = memory.guard, memory.cache, memory.wrong

    def _read(self, path: str) -> Table:
        try:
            data = read_named("auth_table", path, MAX_TABLE)
        except UnreadableError as error:
            self.fail(error.code, str(error))
        table, missing = without_missing(parse_auth(data, path), data, path)
        if table.errors:
            self.fail(65, "\n".join(map(str, table.errors[:20])))
        said = first_findings(
            list(table.shut_out.values()), "more users cannot log in, see `popkernel check`", _MOST_SAID
        )
        self.doubts = [str(finding) for finding in [*missing, *said]]
        self.shut_out = dict.fromkeys(table.shut_out, "unusable") | dict.fromkeys(table.locked, "locked")
        names = table.names()
        fold, domain = self.boot.config["login_case"] == "fold", self.boot.config["default_domain"]
        found = case_conflicts(names, data, path) if fold else []
        found += domain_conflicts(names, data, path, domain, folds=fold) if domain else []
        self.doubts += [str(finding) for finding in found]
        return Table(table.hashes, fold=fold, names=names, domain=domain)

    def _read_keys(self, oauth: dict[str, str]) -> "Tokens | None":
        """Return the checker of tokens, or None if tokens are not configured.

        Its libraries are loaded only here.
        """
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
        """Start the threads, lock the sandbox, greet the kernel, serve."""
        self.woken, self.wake = os.pipe()
        os.set_blocking(self.woken, False)
        os.set_blocking(self.wake, False)
        warm()
        self.lock(threads=self._start_threads)
        self.loop.add(self.woken, self._answers)
        self.connect("auth_table.doubt", self.doubts)
        locked = [*self.shut_out.values()].count("locked")
        if locked:
            self.log(DEBUG, "auth_table.locked", path=self.boot.config["auth_table"], users=locked)
        self.run()

    def _start_threads(self) -> None:
        for _ in range(self.hashers):
            threading.Thread(target=self._hash, daemon=True).start()

    def _hash(self) -> None:
        """Check logins in a thread. bcrypt and Argon2 release the interpreter's lock."""
        while True:
            attempt = self.work.get()
            began = time.monotonic()
            good = self._judge(attempt)
            self.done.append((attempt._replace(hashed=time.monotonic() - began), good))
            with contextlib.suppress(BlockingIOError):  # the pipe is full: the loop wakes anyway
                os.write(self.wake, b"\0")

    def _judge(self, attempt: Attempt) -> bool | None:
        """Return whether the password is right; None if there was no memory to check it.

        An unknown user, or a password that can't be checked, costs the same time.
        """
        secret = attempt.login.secret
        expected, known = self.table.hash_of(attempt.login.user)
        fit = usable(secret, expected)
        try:
            good = self.check(secret if fit else b"\xff", expected)
        except MemoryError:
            return None
        return good and known and fit

    # -- messages
    def _peer(self, message: m.PeerChannel, fds: list[int]) -> None:
        self.join(message.name, fds[0])

    def join(self, listener: str, end: socket.socket | int) -> None:
        """Open the channel to a listener, in place of an earlier one of that name."""
        old = self.listeners.get(listener)
        if old is not None:
            old.close()
            self._forget(listener)
        self.listeners[listener] = self.world.channel(
            self.loop, end, self.boot.name, listener, self._on_listener, self._on_listener_gone
        )

    def _on_listener_gone(self, channel: Channel, why: str) -> None:
        self._forget(channel.peer)
        if why:
            self.refuse(channel, why)

    def _forget(self, listener: str) -> None:
        """Forget a listener that is gone, and its logins."""
        self.listeners.pop(listener, None)
        self.alone.pop(listener, None)
        for number in self.live.pop(listener, {}).values():
            self._unqueue(number)

    def _unqueue(self, number: int) -> Attempt | None:
        """Take a login out of the queue, or out of those that wait for their penalty."""
        return self.queue.remove(number) or self.delayed.remove(number)

    def _on_listener(self, channel: Channel, message: Message, fds: list[int]) -> None:
        if isinstance(message, m.LoginWithdrawn):
            self.withdraw(channel.peer, message)
        else:
            self._on_login(channel, message, fds)

    # -- a reload that replaces auth: hand_over.py
    def _hand_over(self, message: m.SuccessorChannel, fds: list[int]) -> None:
        """Hand over to the auth that is about to replace this one."""
        if self.sender is not None:  # the successor of a reload that failed
            self.sender.end()

        def refuse(channel: Channel, *_: Any) -> None:
            channel.close()  # a successor says nothing
            self.sender = None

        channel = self.world.channel(self.loop, fds[0], self.boot.name, message.name, refuse, refuse)
        self.sender = Sender(channel, self.memory, self.table, self.prefix, lambda: self.loop.now)
        self.sender.begin()

    def _take_over(self, message: m.PredecessorChannel, fds: list[int]) -> None:
        """Take over from the auth that this one is about to replace."""
        receiver = Receiver(self.loop, self.remembers, self.table, self.taken_over)

        def take(channel: Channel, message: Message, fds: list[int]) -> None:
            del fds
            try:
                receiver.take(message)
            except ValueError as error:
                note("Untrue", 0, {"why": str(error)})
                gone(channel, str(error))

        def gone(channel: Channel, why: str) -> None:
            receiver.fail(why or "it ended")  # first: the kernel then ends an auth that is replaced already
            if why:
                self.refuse(channel, why)

        receiver.channel = self.world.channel(self.loop, fds[0], self.boot.name, message.name, take, gone)

    def taken_over(self, memory: Memory | None, taken: Taken, why: str) -> None:
        """Use the memory that was taken over, and tell the kernel that this auth is ready.

        `memory`: None if there is none, with the reason in `why`.
        """
        note("TakenOver", 0, {"complete": memory is not None, **taken._asdict()})
        if memory is not None:
            self.remember(memory)
            self.log(INFO, "auth.memory_taken", passwords=taken.passwords, penalties=taken.penalties)
        else:
            self.log(WARNING, "auth.memory_lost", why=why)
        self.send(m.LoginMemoryTaken(memory is not None, *taken))

    # -- logins
    def _on_login(self, channel: Channel, message: Message, fds: list[int]) -> None:
        del fds
        assert isinstance(message, m.LoginRequest)
        untrue, own = "", session_of(channel.peer)  # own: the one that the listener may name; 0: any
        if message.mechanism not in _KNOWN:
            untrue = "LoginRequest.mechanism: no such mechanism"
        elif own not in (0, message.session):
            untrue = "LoginRequest.session: it is not its own"
        if untrue:
            self._forget(channel.peer)
            self.refuse(channel, untrue)
            return
        login = message._replace(user=self.table.name_of(message.user))
        self.serial += 1
        attempt = Attempt(channel.peer, login, self.loop.now, number=self.serial)
        live = self.live.setdefault(channel.peer, {})
        self._unqueue(live.get(login.session, 0))  # a session has one login at a time
        live[login.session] = self.serial
        if own:
            many = self.alone[channel.peer] = self.alone.get(channel.peer, 0) + 1
            if many > _MOST_ALONE:
                self._refuse(attempt, "too many logins in one connection")
                return
        if not self._known_wrong(attempt) and self._is_due(attempt):
            self.verify(attempt)

    def withdraw(self, listener: str, message: m.LoginWithdrawn) -> None:
        """Take a login out of the queue. One that is being checked gets its answer only if that is wanted."""
        live = self.live.get(listener, {})
        attempt = self._unqueue(live.get(message.session, 0))
        if not message.answer:
            live.pop(message.session, None)
        elif attempt is not None:
            self._refuse(attempt, "the connection was closed before the password could be checked")

    def _is_live(self, attempt: Attempt) -> bool:
        """Return whether somebody waits for this login's answer."""
        return self.live.get(attempt.listener, {}).get(attempt.login.session) == attempt.number

    def _end(self, attempt: Attempt) -> bool:
        """Note that this login gets its answer now. Returns whether it is wanted."""
        live = self._is_live(attempt)
        if live:
            del self.live[attempt.listener][attempt.login.session]
        return live

    def _line(self, login: m.LoginRequest) -> bytes:
        """Return the hash in the user's line; empty without one, since a decoy is another after a reload."""
        hashed, known = self.table.hash_of(login.user)
        return hashed if known else b""

    def _known_wrong(self, attempt: Attempt) -> bool:
        """Answer a login whose secret was found wrong a moment ago: the client tries its other mechanisms."""
        login = attempt.login
        wrong = self.wrong.holds(login, self._client(login), self._line(login), self.loop.now)
        if wrong:
            self._checked(attempt, good=False)
        return wrong

    def _known_right(self, attempt: Attempt) -> bool:
        """Answer a login whose password was found right lately."""
        login = attempt.login
        expected, known = self.table.hash_of(login.user)
        right = (
            known
            and usable(login.secret, expected)
            and self.cache.holds(login.user, login.secret, expected, self.loop.now)
        )
        if right:
            self.hits += 1
            self._checked(attempt, good=True)
        return right

    def _client(self, login: m.LoginRequest) -> str:
        """Return the address or IPv6 prefix that counts as one client."""
        return prefix_of(host_of(login.address), self.prefix)

    def _is_due(self, attempt: Attempt) -> bool:
        """Return whether to check it now. Otherwise it is delayed or refused here."""
        login = attempt.login
        wait = self.guard.admit(login.user, login.address, self.loop.now)
        if wait > self.guard.most:
            seconds = math.ceil(wait)
            text = f"too many failed logins from your address, try again in {seconds} seconds"
            self._count_refused("penalty_seconds")
            self._refuse(attempt, text, "guard", seconds)
        elif wait:
            number = attempt.number
            self._put(self.delayed, attempt._replace(waited=True, delayed=wait))
            self.loop.later(wait, lambda: self._penalty_over(number), login.session)
        return not wait

    def _penalty_over(self, number: int) -> None:
        attempt = self.delayed.remove(number)
        if attempt is not None:
            self.verify(attempt)

    def verify(self, attempt: Attempt) -> None:
        """Check a login: a token here, a password by the cache or in a thread."""
        login = attempt.login
        if not self._is_live(attempt):
            return
        if login.mechanism in TOKENS:  # takes some hundred microseconds: not worth a thread
            self.checks += 1
            self.misses += 1
            claim = self.tokens.user_of(login.secret) if self.tokens is not None else None
            # a typed name is folded, a claim is not
            named = claim is not None and self.table.claimed(claim) == login.user
            self._checked(attempt, good=self.table.hash_of(login.user)[1] and named)
            return
        if self._known_right(attempt):
            return
        self.misses += 1
        if not self.queue and self.given < _QUEUED * self.hashers:
            self._give(attempt)
        else:
            self._put(self.queue, attempt)
            if not self.reporting:
                self._report_in(_LONG)

    def _give(self, attempt: Attempt) -> None:
        """Give an attempt to the threads."""
        self.given += 1
        self.work.put(attempt)

    def _give_more(self) -> None:
        """Give waiting attempts to the threads, in turn.

        Listeners take turns: one that invents an address for each login delays no other's clients. The answer
        may be known by now, and others may have failed, so the penalty is asked for again.
        """
        while self.queue and self.given < _QUEUED * self.hashers:
            _, attempt = self.queue.take()
            if not self._is_live(attempt):  # the listener sent another login of that session
                continue
            if self.loop.now - attempt.came > self.patience:  # the listener gives up at the same time
                self._count_refused("login_seconds")
                self._refuse(attempt, "the server is too busy to check passwords in time, try again later")
            elif (
                not self._known_wrong(attempt)
                and not self._known_right(attempt)
                and (attempt.waited or self._is_due(attempt))
            ):
                self._give(attempt)

    def _put(self, queue: FairByOwner[int, Attempt], attempt: Attempt) -> None:
        """Let an attempt wait, for a thread or for the end of its penalty.

        As many wait as there may be sessions, so this bound refuses nobody but a listener that lies, whose
        secrets would fill the memory. If too many wait, the latest is refused of the listener with most of
        them, and there of the address with most.
        """
        owner, client = _owner(attempt.listener), self._client(attempt.login)
        if len(queue) >= self.most:
            other = queue.spare(owner, client)
            refused = attempt if other is None else queue.remove(other)
            assert refused is not None
            self._count_refused("max_sessions")
            self._refuse(refused, "too many logins at once, try again later")
            if refused is attempt:
                return
        queue.put(owner, client, attempt.number, attempt, attempt.login.user)

    # -- load
    def _count_refused(self, bound: str) -> None:
        self.refused[bound] = self.refused.get(bound, 0) + 1
        if not self.reporting:
            self._report_in(_LONG)

    def _report_in(self, seconds: float) -> None:
        self.reporting = True
        self.loop.later(seconds, self._report_load)

    def _report_load(self) -> None:
        """Tell the kernel about the load, again and again while logins wait long."""
        self.reporting = False
        first = self.queue.oldest()
        if first is not None and self.loop.now - first[1].came < _LONG and not self.refused:
            self._report_in(_LONG)
            return
        self._tell_load()
        if self.reported is not None and self.reported.waiting:
            self._report_in(_REPORTS)

    def _tell_load(self) -> None:
        """Tell the kernel what has changed since it was told last."""
        first, now = self.queue.oldest(), self.loop.now
        oldest = 0 if first is None else round(1000 * (now - first[1].came))
        load = m.LoginLoad(
            len(self.queue), oldest, self.checks, self.hits, self.misses, self.guard.penalised(now)
        )
        if load != self.reported:
            self.reported = load
            self.send(load)
        for bound, clients in self.refused.items():
            self.send(m.PlacesRefused(bound, clients))
        self.refused.clear()

    def _report(self, message: m.CountersRequest, fds: list[int]) -> None:
        self._tell_load()
        super()._report(message, fds)

    # -- answers
    def _refuse(self, attempt: Attempt, text: str, reason: str = "temp", seconds: int = 0) -> None:
        """Refuse an attempt unchecked, if its answer is wanted."""
        if self._end(attempt):
            self.refuse_login(attempt, text, reason, seconds)

    def refuse_login(self, attempt: Attempt, text: str, reason: str, seconds: int) -> None:
        """Refuse a login unchecked (RFC 3206 section 4: SYS/TEMP)."""
        fields = {"user": attempt.login.user, "text": text, "reason": reason, "seconds": seconds}
        note("Full", attempt.login.session, {"listener": attempt.listener, **fields})
        self._deny(attempt, "SYS/TEMP", text, reason, seconds)

    def _deny(self, attempt: Attempt, code: str, text: str, reason: str, seconds: int = 0) -> None:
        """Refuse a login. The kernel learns the true reason; the listener and its client do not."""
        login = attempt.login
        waited = int((self.loop.now - attempt.came) * 1000)
        self.send(
            m.LoginDenied(attempt.listener, login.session, login.user, login.address, reason, seconds, waited)
        )
        self.listeners[attempt.listener].send(m.LoginRefused(login.session, code, text))

    def _reason(self, login: m.LoginRequest) -> str:
        """Return why credentials that were checked are wrong, for the log."""
        if not self.table.hash_of(login.user)[1]:
            return self.shut_out.get(login.user, "unknown")
        return "token" if login.mechanism in TOKENS else "password"

    def _answers(self, events: int) -> None:
        del events
        try:
            os.read(self.woken, 4096)
        except BlockingIOError:
            return
        while self.done:
            attempt, good = self.done.popleft()
            login = attempt.login
            self.given -= 1
            self.checks += 1
            if good is None:
                self._refuse(attempt, "the server has no memory now, try again later")
                continue
            if good:
                self.cache.put(login.user, login.secret, self.table.hash_of(login.user)[0], self.loop.now)
                if self.sender is not None:
                    self.sender.verified(login.user)
            self._checked(attempt, good=good)
        self._give_more()

    def _checked(self, attempt: Attempt, *, good: bool) -> None:
        """Act on the outcome of a check. A failure is answered when its delay is over."""
        login, now = attempt.login, self.loop.now
        if good:
            self.guard.succeeded(login.user, login.address, now)
            if self.sender is not None:
                self.sender.checked(login.user, login.address)
            self._answer(attempt)
            return
        if self.wrong.put(login, self._client(login), self._line(login), now):
            # At once: it gives nothing away, since a success is never delayed.
            self._answer(attempt, "repeat")
            self._tell_repeats(self._client(login))
            return
        attempt = attempt._replace(login=login._replace(secret=b""))
        reason = self._reason(login)
        wait = attempt.came + self.guard.failed(login.user, login.address, now) - now
        if self.sender is not None:
            self.sender.failed()
            self.sender.checked(login.user, login.address)
        if wait > 0:
            self.loop.later(wait, lambda: self._answer(attempt, reason), login.session)
        else:
            self._answer(attempt, reason)

    def _answer(self, attempt: Attempt, reason: str = "") -> None:
        """Grant a login, or refuse it for a reason, if its answer is wanted."""
        if self._end(attempt):
            self.answer(attempt, reason)

    def _tell_repeats(self, client: str) -> None:
        """Log an address that repeats failed logins often."""
        many = self.repeats.count(client, self.loop.now)
        if many:
            self.log(NOTICE, "login.repeated", address=client, times=many, seconds=round(REPEATS_SECONDS))

    def _account(self, message: m.AccountLookup, fds: list[int]) -> None:
        """Tell the operator how a user stands here, and whether a login would have to wait."""
        del fds
        user = self.table.name_of(message.user) if message.user else ""
        wait = self.guard.wait(user, message.address, self.loop.now) if message.address or user else 0.0
        hashed, known = self.table.hash_of(user)
        entry = "present" if known else self.shut_out.get(user, "absent")
        scheme = scheme_of(hashed) if known else ""
        found = "" if entry == "absent" else user
        self.send(m.AccountState(message.request, found, entry, scheme, round(wait * 1000)))

    def settings(self) -> dict[str, Any]:
        return {"listeners": list(self.listeners)}

    def answer(self, attempt: Attempt, reason: str) -> None:
        """Grant the login, or refuse it for a reason."""
        listener, login = attempt.listener, attempt.login
        if watch.tap is not None:
            note("Checked", login.session, {"listener": listener, "user": login.user, "reason": reason})
        if listener not in self.listeners:  # the listener ended, and its sessions with it
            return
        if reason:
            self._deny(attempt, *DENIED, reason)
            return
        queue = hashed = delayed = 0
        if attempt.hashed or attempt.delayed:
            hashed, delayed = int(attempt.hashed * 1000), int(attempt.delayed * 1000)
            queue = max(0, int((self.loop.now - attempt.came) * 1000) - hashed - delayed)
        self.granted.append(m.LoginGranted(listener, login.session, login.user, queue, hashed, delayed))
        if len(self.granted) == 1:
            self.loop.soon(self._tell_granted)

    def _tell_granted(self) -> None:
        """Send the grants of this turn of the loop together."""
        granted, self.granted = self.granted, []
        if self.kernel is not None:
            self.kernel.send_all(granted)


def _owner(listener: str) -> str:
    """Return whose logins share the time for hashing with other listeners' logins.

    A listener may lie about its clients' addresses, not about itself: its channel is the kernel's. Those of
    one connection have one login at a time, and share as one: by connections, an address that makes many
    would gain.
    """
    return listener.rpartition(".")[0] if session_of(listener) else listener


def main(boot: Boot) -> None:
    """Run as auth."""
    Auth(boot).begin()
