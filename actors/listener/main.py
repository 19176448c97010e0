"""The listener's shell: its channels to auth, the kernel and the maildir actors. Its front to the network is connections.py.

It knows its TLS keys and what its clients type, sees no file once it serves, and can only ask auth about a password; what it then gets
is one channel, which is one session of one user.
"""

import os
from typing import Any

from popkernel.actors.listener.connection import Client
from popkernel.actors.listener.connections import Front
from popkernel.actors.listener.limits import TOO_MANY_LOGINS
from popkernel.kernel.runtime.actor import Boot
from popkernel.kernel.runtime.channel import Channel, Message, adopt, watch
from popkernel.kernel.runtime.loop import Timer
from popkernel.kernel.runtime.tap import note
from popkernel.proto import messages as m
from popkernel.proto.topology import edge

_ASKS = 2  # auths that are asked about one login, should the first end before it answers
_REPORT_SECONDS = 0.1  # how long the log may wait for the line of a session
_MOST_REPORTS = 64


class Listener(Front):
    """What the clients' sessions need of the other actors."""

    def __init__(self, boot: Boot) -> None:
        super().__init__(boot)
        self.auth: Channel | None = None
        self.reports: list[Message] = []
        self.asks: list[m.Login] = []  # of this turn
        self.held: list[m.Login] = []  # until the kernel has what it must know before
        self.watching: Timer | None = None
        self.auth_patience = edge("listener", "auth").deadline
        self.maildir_patience = edge("listener", "maildir.{user}").deadline
        self.listing_patience = edge("kernel", "maildir.{user}").deadline
        self.handlers |= {m.Peer: self._peer, m.Opened: self._opened, m.Turned: self._turned, m.Drain: self._drain}

    def connect(self) -> None:
        super().connect()
        self._watch_answers()

    def session_of(self, channel: Channel, message: Message) -> int:
        """The channel to a maildir actor is a session."""
        tag = channel.tag
        return tag.session.id if type(tag) is Client else super().session_of(channel, message)

    def settings(self) -> dict[str, Any]:
        return {
            "policy": list(self.policy),
            "bounds": list(self.limits.bounds),
            "serial": self.serial,
            "sessions": list(self.clients),
            "logins": self.limits.logins(),
            "turn": self.limits.turn,
            "draining": self.draining,
            "watch": max(0.0, self.watching.due - self.loop.now) if self.watching is not None else -1.0,
            "auth": self.auth.peer if self.auth is not None else "",
        }

    # -- from the kernel
    def _peer(self, message: m.Peer, fds: list[int]) -> None:
        """A channel to auth, the first or a new one's. Logins that the old one did not answer are asked again."""
        if self.auth is not None:
            self.auth.close()
        else:
            for sock, tls in self.listening:
                self._listen(sock, tls)
        self.auth = Channel(self.loop, adopt(fds[0]), self.boot.name, message.name, self._on_auth, self._on_auth_gone)
        self.held.clear()  # they are asked again
        unsent = {login.session for login in self.asks}
        for client in [c for number, c in self.awaiting.items() if number not in unsent]:
            if client.asked >= _ASKS:  # it may be this very login that ends them
                self._no(client.session.id, "SYS/TEMP", "can't check passwords now, try again")
            elif client.asked and client.session.authorization.login is not None:
                self._ask(client, client.session.authorization.login)

    def _opened(self, message: m.Opened, fds: list[int]) -> None:
        client = self.awaiting.pop(message.session, None)
        if client is None:  # gone meanwhile: closing the channel ends the session at the other end
            os.close(fds[0])
            return
        client.session.authorization.login = None
        client.session.authorization.user = message.user  # as the tables write it
        self._login_over(message.session)
        client.asked_at = self.loop.now
        client.channel = Channel(
            self.loop, adopt(fds[0]), self.boot.name, f"maildir.{message.user}",
            self._on_maildir, self._on_maildir_gone,
        )
        client.channel.tag, client.channel.views = client, True

    def lost(self, message: Message) -> None:
        super().lost(message)
        if isinstance(message, m.Opened):
            self._no(message.session, "SYS/TEMP", "the server is full now, try again later")

    def _turned(self, message: m.Turned, fds: list[int]) -> None:
        del fds
        # The client hears what everybody hears, but its password was right: no failure that anybody is to be shut out for.
        self._no(message.session, message.code, message.text, "nomailbox" if message.code == "AUTH" else "")

    def _no(self, session: int, code: str, text: str, why: str = "", seconds: int = 0) -> None:
        client = self.awaiting.pop(session, None)
        if client is not None:
            self._login_over(session)
            client.session.authorization.login = None
            client.asked_at = 0.0
            self._tell_failed(client, why or code, seconds)
            client.session.denied(code, text)
            self._progress(client)

    def _tell_failed(self, client: Client, why: str, seconds: int = 0) -> None:
        authorization = client.session.authorization
        self.tell(m.LoginFailed(authorization.id, authorization.user, authorization.address, why or "refused", seconds))

    def _drain(self, message: m.Drain, fds: list[int]) -> None:
        del message, fds
        self.draining = True
        self._close_listening()
        self._done_draining()

    def stop(self, seconds: int) -> None:
        """No more clients; those there are are told, and have that long to take it."""
        self._close_listening()
        self.draining = True
        for client in list(self.clients.values()):
            client.session.stopping()
            self._progress(client)
        self.loop.later(max(0.1, seconds - 1), self.end)
        self._done_draining()

    # -- from auth
    def _on_auth(self, channel: Channel, message: Message, fds: list[int]) -> None:
        del channel, fds
        assert isinstance(message, m.Denied)
        self._no(message.session, message.code, message.text, message.why, message.seconds)

    def _on_auth_gone(self, channel: Channel, why: str) -> None:
        """Logins wait for the next auth, as long as their clients do."""
        if why:
            self.refuse(channel, why)

    def _log_in(self, client: Client, login: m.Login) -> None:
        turn = self._turn_of(login, client.host)
        self.awaiting[login.session] = client
        client.asked = 0
        if turn:
            self._no(login.session, "SYS/TEMP", turn)
        elif turn is not None:
            self._ask(client, login)

    def _turn_of(self, login: m.Login, host: str) -> str | None:
        """As `Limits.login`; it depends on others' logins, so a recording of one session has to say."""
        turn = self.limits.login(login.session, login.user, host)
        other = self.limits.spare_login(host) if turn == TOO_MANY_LOGINS else None
        if other is not None:
            note("Turn", other, {"refused": TOO_MANY_LOGINS})
            self._no(other, "SYS/TEMP", TOO_MANY_LOGINS)
            turn = self.limits.login(login.session, login.user, host)
        if turn or other is not None:
            self._bound(turn or TOO_MANY_LOGINS, host)
        if turn != "" and watch.tap is not None:
            note("Queued", login.session, {"refused": turn or ""})
        return turn

    def _login_over(self, session: int) -> None:
        following = self.awaiting.get(self.limits.logged_in(session) or 0)
        if following is not None and following.session.authorization.login is not None:
            note("Turn", following.session.id, {"refused": ""})
            self._ask(following, following.session.authorization.login)

    def _ask(self, client: Client, login: m.Login) -> None:
        client.asked += 1
        client.asked_at = self.loop.now
        self.asks.append(login)
        if len(self.asks) == 1:
            self.loop.soon(self._send_asks)

    def _send_asks(self) -> None:
        """The logins of a turn of the loop travel together. The kernel is told of each before auth is."""
        asks, self.asks = self._wanted(self.asks), []
        if asks and self.kernel is not None:
            self.kernel.send_all([m.Awaiting(login.session) for login in asks])
            self.held += asks
            if self.kernel.waiting:
                self.kernel.on_drained = self._ask_auth  # what auth says must not be there before what the kernel is told
            else:
                self._ask_auth()

    def _ask_auth(self) -> None:
        asks, self.held = self._wanted(self.held), []
        if asks and self.auth is not None:
            self.auth.send_all(asks)

    def _wanted(self, logins: list[m.Login]) -> list[m.Login]:
        """Those whose clients still wait for them."""
        awaiting = self.awaiting
        return [x for x in logins if x.session in awaiting and awaiting[x.session].session.authorization.login is x]

    # -- from a maildir actor
    def _on_maildir(self, channel: Channel, message: Message, fds: list[int]) -> None:
        del fds
        client: Client = channel.tag
        session = client.session
        if type(message) is m.Ready:
            if session.state == "login":
                client.asked_at = 0.0
                self.limits.entered(session.id)
                self._arm(client, self.policy.idle_seconds)
                session.ready(message)
            elif session.entered:
                self._bad_maildir(client, "ready twice")
                return
        elif type(message) is m.Unready:
            self._unready(client, message)
            return
        else:
            try:
                session.answered(message)
            except ValueError as error:
                self._bad_maildir(client, str(error))
                return
            client.asked_at = self.loop.now if session.replies.pending else 0.0
        self._progress(client)

    def _unready(self, client: Client, message: m.Unready) -> None:
        assert client.channel is not None
        client.channel.close()
        client.channel = None
        client.asked_at = 0.0
        if client.session.state == "login":
            self._tell_failed(client, message.code)
            client.session.denied(message.code, message.text)
        else:
            client.session.maildir_gone()
        self._progress(client)

    def _bad_maildir(self, client: Client, why: str) -> None:
        if client.channel is not None:
            self.refuse(client.channel, why)
        self._maildir_over(client)

    def _on_maildir_gone(self, channel: Channel, why: str) -> None:
        if why:
            self.refuse(channel, why)
        self._maildir_over(channel.tag)

    def _maildir_over(self, client: Client) -> None:
        client.channel = None
        client.asked_at = 0.0
        if client.session.state == "login":
            client.session.denied("SYS/TEMP", "the mailbox is not available now, try again")
        else:
            client.session.maildir_gone()
        self._progress(client)

    # -- answers that do not come
    def _watch_answers(self) -> None:
        """Look after them now and then: a deadline is kept to within a fifth."""
        self.watching = self.loop.later(min(self.auth_patience, self.maildir_patience, self.listing_patience) / 5, self._watch_answers)
        for client in [c for c in self.clients.values() if c.asked_at]:
            if client.unsent:  # the client itself does not take what there is, so no more is sent to it
                client.asked_at = self.loop.now
            elif client.session.id in self.awaiting:
                if self.loop.now - client.asked_at > self.auth_patience:
                    self._unanswered(client)
                    self._no(client.session.id, "SYS/TEMP", "can't check passwords now, try again")
            elif client.channel is not None and client.session.state == "login":
                # A maildrop that was never listed may take its time, which the client's own time to log in bounds; a stopped actor may not.
                if self.loop.now - client.asked_at > self.listing_patience:
                    self._unanswered(client)
                    client.asked_at = self.loop.now
            elif client.channel is not None and self.loop.now - client.asked_at > self.maildir_patience:
                self._unanswered(client)
                client.channel.close()
                self._maildir_over(client)

    def _unanswered(self, client: Client) -> None:
        """The kernel looks whether that actor still does anything."""
        if client.session.id not in self.awaiting:
            self.tell(m.Late(f"maildir.{client.session.authorization.user}"))
        elif self.auth is not None:
            self.tell(m.Late(self.auth.peer))

    # -- the log
    def _account(self, ended: m.Ended, *, leased: bool) -> None:
        """Several travel together, for the kernel is woken once for them: only the log waits.

        Not so where a session ended without QUIT and has, or is about to have, a maildrop: its user's next login may be here before the
        maildir actor has seen the end.
        """
        self.reports.append(ended)
        if leased and ended.why != "quit":
            self._send_reports()
        elif len(self.reports) == 1:
            self.loop.later(_REPORT_SECONDS, self._send_reports)
        elif len(self.reports) >= _MOST_REPORTS:
            self._send_reports()

    def _send_reports(self) -> None:
        if self.reports and self.kernel is not None:
            reports, self.reports = self.reports, []
            self.kernel.send_all(reports)

    def end(self) -> None:
        """Leave, with nothing untold."""
        self._send_reports()
        super().end()


def main(boot: Boot) -> None:
    """Become a listener."""
    Listener(boot).begin()
