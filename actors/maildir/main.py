"""The maildir actor's shell: one user's maildir, under that user's ids, and one channel for the session that is open.

Forked from the spawner's warm image: everything it needs is imported there. Only this process touches its user's files.
"""

import os
import time
from typing import Any

from popkernel.actors.maildir.delivery_channels import Reception
from popkernel.actors.maildir.session import Session
from popkernel.actors.maildir.store.errors import IN_USE
from popkernel.actors.maildir.store.listing import Listing
from popkernel.actors.maildir.store.maildrop import Maildrop, StoreError
from popkernel.actors.maildir.store.policy import policy_of
from popkernel.kernel.runtime.actor import Actor, Boot
from popkernel.kernel.runtime.channel import Channel, Message, adopt, watch
from popkernel.kernel.runtime.loop import Timer
from popkernel.kernel.runtime.memory import give_back
from popkernel.kernel.runtime.tap import note
from popkernel.proto import messages as m

_ALIVE_SECONDS = 2.0  # between two signs of life while a mailbox is listed
_TIDY_AFTER = 5.0  # seconds from the last session's end; who polls again and again shall not wait
_SETTLED_AFTER = 2.1  # seconds from the last that was moved, after which a directory's times tell of every change (proto/files/popcache.py)
_NOTES = 20  # messages left out of a session that the log names; a maildir may hold thousands of such

_UNOPENED = StoreError("SYS/PERM", "the mailbox can't be opened")  # until it was tried; an exception made in each child is dear


class MaildirActor(Actor):
    """Serves at most one session at a time, and deliveries beside it."""

    def __init__(self, boot: Boot) -> None:
        super().__init__(boot)
        self.path: bytes = boot.config["maildir"]
        self.drop: Maildrop | None = None
        self.trouble = _UNOPENED
        self.session: Session | None = None
        self.number = 0
        self.noted = 0  # lines for the log that this session has caused
        self.channel: Channel | None = None
        self.leaving = False
        self.final = False  # it leaves for good, whatever comes in
        self.stopping = False
        self.reception = Reception(self)
        self.park_seconds = 0
        self.silent_since = 0.0
        self.said_alive = time.monotonic()
        self.parking: Timer | None = None
        self.tidying: Timer | None = None
        self.handlers |= {m.Open: self._open, m.Wake: self._wake, m.Retire: self._retire, m.Receive: self.reception.receive}

    def begin(self) -> None:
        """Lock in, say hello, serve."""
        paths: list[tuple[bytes | str, str]] = []
        self.drop_ids()
        try:
            config = self.boot.config
            self.drop = Maildrop(
                self.path, hostname=config["hostname"], clock=self.clock, random=random_octets, policy=policy_of(config),
            )
            self.drop.alive = self.alive
            paths = [(self.path, "rwc")]
        except StoreError as error:
            self.trouble = error
        self.lock(paths)
        self.connect()
        if self.drop is None:
            self.log(4, f"{self.boot.name}: {self.trouble}: {os.fsdecode(self.path)!r}")
        self.run()

    def sessions(self) -> int:
        return int(self.session is not None)

    def alive(self) -> None:
        """A large mailbox that nobody has listed before takes minutes: meanwhile the kernel is to see that this does not hang."""
        now = time.monotonic()
        if now - self.said_alive > _ALIVE_SECONDS:
            self.said_alive = now
            self._report(m.Report(), [])

    # -- watched
    def session_of(self, channel: Channel, message: Message) -> int:
        """A channel to a listener is a session."""
        return int(channel.tag or 0) if channel.peer == "listener" else super().session_of(channel, message)

    def settings(self) -> dict[str, Any]:
        now = self.loop.now
        return self.told() | {
            "wall": time.time(),
            "named": list(self.drop.named) if self.drop is not None else [],
            "leaving": self.leaving,
            "stopping": self.stopping,
            "session": [self.number, self.park_seconds, now - self.silent_since] if self.channel is not None else [],
            "tidying": self.tidying.due - now if self.tidying is not None else -1.0,
            "parking": self.parking.due - now if self.parking is not None else -1.0,
            "state": self.session.park() if self.session is not None else None,
            **self.reception.settings(now),
        }

    @staticmethod
    def clock() -> float:
        """Wall time in seconds; a replay reads what was read here."""
        now = time.time()
        if watch.tap is not None:
            note("Clock", 0, {"seconds": now})
        return now

    # -- from the kernel
    def _open(self, message: m.Open, fds: list[int]) -> None:
        self._start(message, fds[0])

    def _start(self, message: m.Open | m.Wake, fd: int) -> None:
        listing = self._begin(message, fd, resumed=False)
        if listing is None or self.drop is None or self.channel is None:
            return
        self._has(Session(self.drop, listing))
        for reason in listing.notes[:_NOTES]:
            self.log(4, f"{self.boot.name}: {reason}")
        if self.session is not None:
            self.channel.send(self.session.ready())

    def _has(self, session: Session) -> None:
        self.session = session
        session.log = self._note
        self.noted = 0

    def _note(self, text: str) -> None:
        """What the operator may want to know of a session; a client may ask for what is not there again and again."""
        self.noted += 1
        if self.noted <= _NOTES:
            self.log(4, f"{self.boot.name}: {text}")

    def _wake(self, message: m.Wake, fds: list[int]) -> None:
        """Go on with a session that was parked, by this process or by one before it. Its next command waits in its channel."""
        if not message.state:
            self._start(message, fds[0])
            return
        listing = self._begin(message, fds[0], resumed=True)
        if listing is None or self.drop is None:
            return
        try:
            self._has(Session.wake(self.drop, listing, message.state))
        except StoreError as error:  # it was listed, so nothing is wrong with the maildir: deliveries go on
            self._unready(error)

    def lost(self, message: Message) -> None:
        """A session whose channel had no room here: its listener sees that channel end, and the lease is free."""
        super().lost(message)
        if isinstance(message, m.Open | m.Wake):
            self.tell(m.Closed(message.session, 0, 0))

    def _begin(self, message: m.Open | m.Wake, fd: int, *, resumed: bool) -> Listing | None:
        """Take a session's channel and list the maildrop; None where that can't be, and the listener told, or the next actor is to."""
        if self.drop is not None and self.drop.proven and self.drop.moved():
            self._hand_back(message, fd)
            return None
        channel = Channel(self.loop, adopt(fd), self.boot.name, "listener", self._on_session, self._on_session_gone, resumed=resumed)
        if self.channel is not None:
            channel.close()  # the kernel gives one lease at a time; a second one is nobody's
            return None
        channel.on_drained, channel.tag = self._answer, message.session
        self.channel, self.number, self.park_seconds = channel, message.session, message.park
        self._stay_awake()
        try:
            if self.drop is None:
                raise self.trouble
            return self.drop.listing()
        except StoreError as error:
            self._cannot(error)
        return None

    def _hand_back(self, message: m.Open | m.Wake, fd: int) -> None:
        """The path leads to another directory by now, which this process can't see: the session is for the next one.

        It finds things as they are, for it looked just now; where it does not, that is an answer, and no reason to try again for ever.
        """
        self.leave()
        self.tell(m.Moved(message.session, message.state if isinstance(message, m.Wake) else b""), [fd])
        os.close(fd)
        self.reception.moved()
        self.rest()

    def leave(self) -> None:
        """Tell the kernel, once, that whoever comes next is for another process. Said before anything that makes somebody ask for one."""
        self.final = True
        if not self.leaving:
            self.leaving = True
            self.tell(m.Leaving())

    def _cannot(self, error: StoreError) -> None:
        self.log(4, f"{self.boot.name}: {error}")
        if error.code != IN_USE:  # what it may see is settled, and what failed is not trusted: once mended, the maildir is a new actor's
            self.leave()  # before Closed, at which the kernel gives the maildrop to who comes next
            self.reception.failed()  # or a large message on its way in would keep everybody out until its end
        self._close(0, 0, m.Unready(error.code, error.said))

    def _unready(self, error: StoreError) -> None:
        """The session can't be; the next one may."""
        self.log(4, f"{self.boot.name}: {error}")
        self._close(0, 0, m.Unready(error.code, error.said))

    # -- asleep
    def _stay_awake(self) -> None:
        self.silent_since = self.loop.now
        if self.parking is None and self.park_seconds:
            self.parking = self.loop.later(self.park_seconds, self._park)

    def _park(self) -> None:
        """A session long silent is handed to the kernel: what there is to it, and its channel, on which the next command wakes it."""
        self.parking = None
        if self.session is None or self.channel is None:
            return
        left = self.silent_since + self.park_seconds - self.loop.now
        state = self.session.park() if left < 0.01 else None
        sock = self.channel.release() if state is not None else None
        if state is None or sock is None:
            self.parking = self.loop.later(max(left, 1.0), self._park)
            return
        self.tell(m.Parked(self.number, state), [sock.fileno()])
        sock.close()
        self.channel = self.session = None
        give_back()
        self.rest()

    def rest(self) -> None:
        """Something has ended: go, if that is wanted and nothing is open any more."""
        if self.session is None and self.drop is not None and self.drop.untidy:
            if self.tidying is not None:
                self.tidying.cancel()
            self.tidying = self.loop.later(_TIDY_AFTER, self._tidy)
        if self.leaving and self.session is None and self.reception.left():
            self.end()

    def _tidy(self) -> None:
        """Mail that a session of very much was served from new/ goes to cur/ when nobody is there, a little at a time."""
        self.tidying = None
        if self.drop is not None and self.channel is None:
            more = self.drop.tidy()
            self.tidying = self.loop.later(0.0 if more else _SETTLED_AFTER, self._tidy if more else self._settle)

    def _settle(self) -> None:
        self.tidying = None
        if self.drop is not None and self.channel is None:
            self.drop.settle()

    def _retire(self, message: m.Retire, fds: list[int]) -> None:
        del message, fds
        if self.reception.busy:
            self.tell(m.Busy())
            return
        self.leaving = True
        self.rest()

    def stop(self, seconds: int) -> None:
        """Sessions are the listener's to end, deliveries the mda's; this waits for both, so that a QUIT under way is done whole."""
        self.leaving = self.stopping = True
        self.loop.later(max(0.1, seconds - 0.5), self.end)
        self.rest()

    # -- from the listener
    def _on_session(self, channel: Channel, message: Message, fds: list[int]) -> None:
        del fds
        if self.session is None or channel is not self.channel:
            return
        self._stay_awake()
        try:
            self.session.take(message)
        except ValueError as error:
            self.refuse(channel, str(error))
            self._close(0, 0)
            return
        self._answer()

    def _answer(self) -> None:
        """Send what may be sent; the loop calls again when the channel or the listener's credit lets more through."""
        session, channel = self.session, self.channel
        while session is not None and channel is not None and not channel.gone:
            if channel.waiting:
                return  # on_drained calls again
            answer = session.step()
            if answer is None:
                break
            message, bulk = answer
            if type(message) is m.Bye and session.finished is not None:
                self.tell(m.Closed(self.number, *session.finished))  # before the client can know: its next login finds the lease free
                self.number = 0
            if bulk is None:
                channel.send(message)
            else:
                channel.send_bulk(message, bulk)
        if session is not None and session.finished is not None and channel is not None:
            self.channel = self.session = None  # an Open may be here before the last answer is out
            channel.on_drained = channel.close
            if not channel.waiting:
                channel.close()
            self.rest()

    def _on_session_gone(self, channel: Channel, why: str) -> None:
        """No QUIT: nothing is removed."""
        if channel is not self.channel:
            return
        if why:
            self.refuse(channel, why)
        self._close(0, 0)

    def _close(self, removed: int, failed: int, word: Message | None = None) -> None:
        """`word`: the last to the listener; the kernel is told first, for the client may log in again at once."""
        if self.channel is None:
            return
        self.tell(m.Closed(self.number, removed, failed))
        if word is not None:
            self.channel.send(word)
        if self.channel.waiting:
            self.channel.on_drained = self.channel.close
        else:
            self.channel.close()
        self.channel = self.session = None
        self.rest()


def random_octets(many: int) -> bytes:
    """As os.urandom; a replay gets what was got here."""
    octets = os.urandom(many)
    if watch.tap is not None:
        note("Random", 0, {"octets": octets})
    return octets


def main(boot: Boot) -> None:
    """Become a maildir actor."""
    MaildirActor(boot).begin()
