"""The maildir actor's shell: one user's maildir, under that user's ids, and one channel for the session that is open.

Forked from the spawner's warm image: everything it needs is imported there. Only this process touches its user's files.
"""

import os

from popkernel.actors.maildir.core import Session
from popkernel.actors.maildir.store import Maildrop, StoreError
from popkernel.kernel.actor import Actor, Boot
from popkernel.kernel.channel import Channel, Message, adopt
from popkernel.proto import messages as m

_NOTES = 20  # messages left out of a session that the log names; a maildir may hold thousands of such


class MaildirActor(Actor):
    """Serves at most one session at a time, and deliveries beside it."""

    def __init__(self, boot: Boot) -> None:
        super().__init__(boot)
        self.path: bytes = boot.config["maildir"]
        self.drop: Maildrop | None = None
        self.trouble = StoreError("SYS/PERM", "the mailbox can't be opened")
        self.session: Session | None = None
        self.number = 0
        self.channel: Channel | None = None
        self.leaving = False
        self.handlers |= {m.Open: self._open, m.Retire: self._retire}

    def begin(self) -> None:
        """Lock in, say hello, serve."""
        paths: list[tuple[bytes | str, str]] = []
        self.drop_ids()
        try:
            self.drop = Maildrop(self.path, hostname=self.boot.config["hostname"])
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

    # -- from the kernel
    def _open(self, message: m.Open, fds: list[int]) -> None:
        listener = Channel(
            self.loop, adopt(fds[0]), self.boot.name, "listener", self._on_session, self._on_session_gone,
        )
        if self.channel is not None:
            listener.close()  # the kernel gives one lease at a time; a second one is nobody's
            return
        listener.on_drained = self._answer
        self.channel, self.number = listener, message.session
        try:
            if self.drop is None:
                raise self.trouble
            listing = self.drop.listing()
            self.session = Session(self.drop, listing)
        except StoreError as error:
            self.log(4, f"{self.boot.name}: {error}")
            listener.send(m.Unready(error.code, str(error)))
            self.leaving |= self.drop is None  # what it may see is settled: once mended, the maildir is a new actor's
            self._close(0, 0)
            return
        for note in listing.notes[:_NOTES]:
            self.log(4, f"{self.boot.name}: {note}")
        listener.send(self.session.ready())

    def _retire(self, message: m.Retire, fds: list[int]) -> None:
        del message, fds
        self.leaving = True
        if self.session is None:
            self.end()

    def stop(self, seconds: int) -> None:
        """Sessions are the listener's to end; this waits for that, so that a QUIT under way is done whole."""
        self.leaving = True
        if self.session is None:
            self.end()
        else:
            self.loop.later(max(0.1, seconds - 0.5), self.end)

    # -- from the listener
    def _on_session(self, channel: Channel, message: Message, fds: list[int]) -> None:
        del fds
        if self.session is None:
            return
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
            if bulk is None:
                channel.send(message)
            else:
                channel.send_bulk(message, bulk)
        if session is not None and session.finished is not None and channel is not None and not channel.waiting:
            self._close(*session.finished)

    def _on_session_gone(self, channel: Channel, why: str) -> None:
        """No QUIT: nothing is removed."""
        if channel is not self.channel:
            return
        if why:
            self.refuse(channel, why)
        self._close(0, 0)

    def _close(self, removed: int, failed: int) -> None:
        if self.channel is None:
            return
        self.channel.close()
        self.channel = self.session = None
        self.tell(m.Closed(self.number, removed, failed))
        if self.leaving:
            self.end()


def main(boot: Boot) -> None:
    """Become a maildir actor."""
    MaildirActor(boot).begin()
