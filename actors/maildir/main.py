"""Run a maildir actor: one user's maildir, under that user's ids, for one session and deliveries.

It is forked from the spawner's warm image, where everything it needs is imported already. Only this process
touches its user's files.
"""

import os
import time
from typing import Any

from popkernel.actors.maildir.actions import Note, Over
from popkernel.actors.maildir.delivery_channels import DeliveryChannels
from popkernel.actors.maildir.session import Session
from popkernel.actors.maildir.store.errors import IN_USE, StoreError
from popkernel.actors.maildir.store.listing import Listing
from popkernel.actors.maildir.store.maildrop import Maildrop
from popkernel.actors.maildir.store.policy import policy_of
from popkernel.kernel.runtime.actor import Actor, Boot
from popkernel.kernel.runtime.channel import Channel, Message
from popkernel.kernel.runtime.loop import Timer
from popkernel.kernel.runtime.memory import give_back, peak
from popkernel.proto import messages as m
from popkernel.proto.log_levels import WARNING

_ALIVE_SECONDS = 2.0  # seconds between two reports to the kernel while a mailbox is listed
_TIDY_AFTER = 5.0  # seconds after a session's end: a client that polls often must not wait for it
# seconds after the last file was moved; then a directory's times show every change (proto/files/popcache.py)
_SETTLED_AFTER = 2.1
_NOTES = 20  # notes of a session that are logged; a maildir may give thousands

# before the maildir is opened; made once, for an exception made in each child costs pages
_UNOPENED = StoreError("SYS/PERM", "the mailbox can't be opened")


class MaildirActor(Actor):
    """Serve at most one session at a time, and deliveries meanwhile."""

    def __init__(self, boot: Boot) -> None:
        super().__init__(boot)
        self.path: bytes = boot.config["maildir"]
        self.drop: Maildrop | None = None
        self.trouble = _UNOPENED
        self.session: Session | None = None
        self.number = 0
        self.noted = 0  # notes logged for this session
        self.channel: Channel | None = None
        self.leaving = False
        self.final = False  # it leaves even if a delivery comes
        self.stopping = False
        self.delivery_channels = DeliveryChannels(self)
        self.park_seconds = 0
        self.silent_since = 0.0
        self.reported_at = time.monotonic()
        self.parking: Timer | None = None
        self.tidying: Timer | None = None
        self.handlers |= {
            m.SessionOpen: self._open,
            m.SessionWake: self._wake,
            m.ActorRetire: self._retire,
            m.DeliveryChannel: self.delivery_channels.receive,
        }

    def begin(self) -> None:
        """Open the maildir, lock the sandbox, greet the kernel, serve."""
        paths: list[tuple[bytes | str, str]] = []
        self.drop_ids()
        try:
            config = self.boot.config
            self.drop = Maildrop(
                self.path,
                hostname=config["hostname"],
                clock=self.world.clock,
                random=self.world.random,
                policy=policy_of(config),
            )
            self.drop.alive = self.alive
            paths = [(self.path, "rwc")]
        except StoreError as error:
            self.trouble = error
        self.lock(paths)
        self.connect()
        if self.drop is None:
            self.log(WARNING, "maildir.unusable", error=str(self.trouble), path=os.fsdecode(self.path))
        self.run()

    def sessions(self) -> int:
        return int(self.session is not None)

    def alive(self) -> None:
        """Report to the kernel during a long listing.

        The first listing of a large mailbox takes minutes, and the kernel must see that the actor does not
        hang.
        """
        now = time.monotonic()
        if now - self.reported_at > _ALIVE_SECONDS:
            self.reported_at = now
            self._report(m.CountersRequest(), [])

    # -- watched
    def session_of(self, channel: Channel, message: Message) -> int:
        """Return the session of a channel to the listener."""
        return int(channel.tag or 0) if channel.peer == "listener" else super().session_of(channel, message)

    def settings(self) -> dict[str, Any]:
        now = self.loop.now
        return self.told() | {
            "wall": time.time(),
            "named": list(self.drop.named) if self.drop is not None else [],
            "leaving": self.leaving,
            "stopping": self.stopping,
            "session": [self.number, self.park_seconds, now - self.silent_since]
            if self.channel is not None
            else [],
            "tidying": self.tidying.due - now if self.tidying is not None else -1.0,
            "parking": self.parking.due - now if self.parking is not None else -1.0,
            "state": self.session.park() if self.session is not None else None,
            **self.delivery_channels.settings(now),
        }

    # -- from the kernel
    def _open(self, message: m.SessionOpen, fds: list[int]) -> None:
        self._start(message, fds[0])

    def _start(self, message: m.SessionOpen | m.SessionWake, fd: int) -> None:
        listing = self._begin(message, fd, resumed=False)
        if listing is None or self.drop is None or self.channel is None:
            return
        self._set_session(Session(self.drop, listing))
        for said in listing.notes[:_NOTES]:
            self.log(WARNING, "maildir.note", note=said)
        if self.session is not None:
            self.channel.send(self.session.ready())

    def _set_session(self, session: Session) -> None:
        self.session = session
        self.noted = 0

    def _note(self, event: str, fields: dict[str, str | int]) -> None:
        """Log a note of a session. Their number is bounded, for a client may cause them again and again."""
        self.noted += 1
        if self.noted <= _NOTES:
            self.log(WARNING, event, **fields)

    def _wake(self, message: m.SessionWake, fds: list[int]) -> None:
        """Resume a session that this process or an earlier one parked.

        Its next command waits in its channel.
        """
        if not message.state:
            self._start(message, fds[0])
            return
        listing = self._begin(message, fds[0], resumed=True)
        if listing is None or self.drop is None:
            return
        try:
            self._set_session(Session.wake(self.drop, listing, message.state))
        except StoreError as error:  # the maildir was listed, so it is sound, and deliveries go on
            self._unready(error)

    def lost(self, message: Message) -> None:
        """Give up a session whose channel found no free descriptor.

        Its listener sees the channel end, and the lease is free.
        """
        super().lost(message)
        if isinstance(message, m.SessionOpen | m.SessionWake):
            self.send(m.SessionClosed(message.session, 0, 0, 0, []))

    def _begin(self, message: m.SessionOpen | m.SessionWake, fd: int, *, resumed: bool) -> Listing | None:
        """Take a session's channel and list the maildrop.

        Returns None if that failed: then the listener was told, or the next actor gets the session.
        """
        if self.drop is not None and self.drop.proven and self.drop.moved():
            self._hand_back(message, fd)
            return None
        channel = self.world.channel(
            self.loop,
            fd,
            self.boot.name,
            "listener",
            self.on_session,
            self.on_session_gone,
            resumed=resumed,
        )
        if self.channel is not None:
            channel.close()  # the kernel gives one lease at a time: this must not happen
            return None
        channel.on_drained, channel.tag = self.answer, message.session
        self.channel, self.number, self.park_seconds = channel, message.session, message.park
        self._stay_awake()
        try:
            if self.drop is None:
                raise self.trouble
            return self.drop.listing()
        except StoreError as error:
            self._listing_failed(error)
        return None

    def _hand_back(self, message: m.SessionOpen | m.SessionWake, fd: int) -> None:
        """Return a session to the kernel for the next actor.

        The path leads to another directory now, which this process can't open. The next actor opens it as it
        is. If it fails, it answers so, and nobody tries again for ever.
        """
        self.leave()
        self.send(
            m.SessionMoved(message.session, message.state if isinstance(message, m.SessionWake) else b""),
            [fd],
        )
        os.close(fd)
        self.delivery_channels.moved()
        self.rest()

    def leave(self) -> None:
        """Tell the kernel, once, that the next session and delivery are for another process.

        To be sent before any message that makes a peer ask for one.
        """
        self.final = True
        if not self.leaving:
            self.leaving = True
            self.send(m.ActorLeaving())

    def _listing_failed(self, error: StoreError) -> None:
        if error is not self.trouble:  # else maildir.unusable has said it
            self.log(WARNING, "maildir.failed", error=str(error))
        # the sandbox is fixed, and what failed is not trusted: once mended, the maildir needs a new actor
        if error.code != IN_USE:
            self.leave()  # before SessionClosed, upon which the kernel gives the maildrop to the next session
            self.delivery_channels.failed()  # else the others would wait for the end of a large message
        self._close(0, 0, m.MaildropUnready(error.code, error.said))

    def _unready(self, error: StoreError) -> None:
        """Refuse this session; the next one may succeed."""
        self.log(WARNING, "maildir.failed", error=str(error))
        self._close(0, 0, m.MaildropUnready(error.code, error.said))

    # -- parking
    def _stay_awake(self) -> None:
        self.silent_since = self.loop.now
        if self.parking is None and self.park_seconds:
            self.parking = self.loop.later(self.park_seconds, self.park)

    def park(self) -> None:
        """Park a session that has long been silent: give its state and its channel to the kernel.

        The next command on that channel wakes it.
        """
        self.parking = None
        if self.session is None or self.channel is None:
            return
        left = self.silent_since + self.park_seconds - self.loop.now
        state = self.session.park() if left < 0.01 else None
        sock = self.channel.release() if state is not None else None
        if state is None or sock is None:
            self.parking = self.loop.later(max(left, 1.0), self.park)
            return
        self.send(m.SessionParked(self.number, state, peak()), [sock.fileno()])
        sock.close()
        self.channel = self.session = None
        give_back()
        self.rest()

    def rest(self) -> None:
        """Schedule `tidy`, and end the actor if it is to leave and nothing is open."""
        if self.session is None and self.drop is not None and self.drop.untidy:
            if self.tidying is not None:
                self.tidying.cancel()
            self.tidying = self.loop.later(_TIDY_AFTER, self.tidy)
        if self.leaving and self.session is None and self.delivery_channels.left():
            self.end()

    def tidy(self) -> None:
        """Move mail that a large listing left in new/ to cur/, a little at a time.

        Not while a session is open.
        """
        self.tidying = None
        if self.drop is not None and self.channel is None:
            more = self.drop.tidy()
            self.tidying = self.loop.later(
                0.0 if more else _SETTLED_AFTER, self.tidy if more else self._settle
            )

    def _settle(self) -> None:
        self.tidying = None
        if self.drop is not None and self.channel is None:
            self.drop.settle()

    def _retire(self, message: m.ActorRetire, fds: list[int]) -> None:
        del message, fds
        if self.delivery_channels.busy:
            self.send(m.RetireRefused())
            return
        self.leaving = True
        self.rest()

    def stop(self, seconds: int) -> None:
        """Leave once the listener and the mda have closed their channels.

        So a QUIT that is under way completes.
        """
        self.leaving = self.stopping = True
        self.loop.later(max(0.1, seconds - 0.5), self.end)
        self.rest()

    # -- from the listener
    def on_session(self, channel: Channel, message: Message, fds: list[int]) -> None:
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
        self.answer()

    def answer(self) -> None:
        """Send the answers that may be sent. Called again when the channel or the credit allows more."""
        session, channel = self.session, self.channel
        while session is not None and channel is not None and not channel.closed:
            if channel.waiting:
                return  # on_drained calls again
            action = session.step()
            if type(action) is m.MailContent:  # not in the `match`: a pattern takes twice as long
                channel.send_bulk(action, action.data)
                continue
            match action:
                case None:
                    return
                case m.QuitDone():
                    # before the client sees it: its next login must find the lease free
                    self.send(m.SessionClosed(self.number, *action, peak(), session.marked()))
                    self.number = 0
                    channel.send(action)
                case Over():
                    self.channel = self.session = None  # SessionOpen may come before the last answer is sent
                    channel.on_drained = channel.close
                    if not channel.waiting:
                        channel.close()
                    self.rest()
                    return
                case Note(event, fields):  # last: each class that a child touches costs it a page
                    self._note(event, fields)
                case _:
                    channel.send(action)

    def on_session_gone(self, channel: Channel, why: str) -> None:
        """End a session without QUIT: nothing is removed."""
        if channel is not self.channel:
            return
        if why:
            self.refuse(channel, why)
        self._close(0, 0)

    def _close(self, removed: int, failed: int, word: Message | None = None) -> None:
        """Close the session. `word`: the last message to the listener.

        The kernel is told first, for the client may log in again at once.
        """
        if self.channel is None:
            return
        uidls = [] if self.session is None else self.session.marked()
        self.send(m.SessionClosed(self.number, removed, failed, peak(), uidls))
        if word is not None:
            self.channel.send(word)
        if self.channel.waiting:
            self.channel.on_drained = self.channel.close
        else:
            self.channel.close()
        self.channel = self.session = None
        self.rest()


def main(boot: Boot) -> None:
    """Run as a maildir actor."""
    MaildirActor(boot).begin()
