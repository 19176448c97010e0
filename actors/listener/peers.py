"""Speak for the clients' sessions with the other actors: auth, the kernel and the maildir actors."""

import os
from typing import Any

from popkernel.actors.listener.admission import Admission
from popkernel.actors.listener.connection import Connection
from popkernel.actors.listener.connections import Connections
from popkernel.actors.listener.limits import TOO_MANY_LOGINS
from popkernel.actors.listener.reports import Reports
from popkernel.kernel.runtime.actor import Actor
from popkernel.kernel.runtime.channel import Channel, Message, adopt, watch
from popkernel.kernel.runtime.loop import Timer
from popkernel.kernel.runtime.tap import note
from popkernel.proto import messages as m
from popkernel.proto.topology import edge

__all__ = ["Peers"]

_ASKS = 2  # auths that are asked about one login, should the first end before it answers


class Peers:
    """The channels of one listener, and the logins that wait for their answers."""

    __slots__ = (
        "_actor", "_admission", "_always", "_asks", "_auth_patience", "_connections", "_held", "_listing_patience", "_maildir_patience",
        "auth", "awaiting", "reports", "timer", "watching",
    )

    def __init__(self, actor: Actor, admission: Admission, connections: Connections, *, always: bool) -> None:
        """`always`: watch for answers all the time; else only while one is owed, for there may be ten thousand of these processes."""
        self._actor = actor
        self._admission = admission
        self._connections = connections
        self._always = always
        self.watching = always
        self.timer: Timer | None = None  # of that
        self.auth: Channel | None = None
        self.awaiting: dict[int, Connection] = {}  # those whose login waits for its turn, for auth or for the kernel
        self.reports = Reports(actor)
        self._asks: list[m.Login] = []  # of this turn
        self._held: list[m.Login] = []  # until the kernel has what it must know before
        self._auth_patience = edge("listener", "auth").deadline
        self._maildir_patience = edge("listener", "maildir.{user}").deadline
        self._listing_patience = edge("kernel", "maildir.{user}").deadline

    def settings(self) -> dict[str, Any]:
        """What a replay of this listener begins with."""
        connections, limits = self._connections, self._admission.limits
        return {
            "policy": list(connections.policy),
            "bounds": list(limits.bounds),
            "serial": connections.serial,
            "sessions": list(connections.by_session),
            "logins": limits.logins(),
            "turn": limits.turn,
            "draining": connections.draining,
            "watch": max(0.0, self.timer.due - self._actor.loop.now) if self.timer is not None else -1.0,
            "auth": self.auth.peer if self.auth is not None else "",
        }

    # -- from the kernel
    def take_auth(self, message: m.Peer, fds: list[int]) -> None:
        """A channel to auth, the first or a new one's. Logins that the old one did not answer are asked again."""
        if self.auth is not None:
            self.auth.close()
        self.auth = Channel(self._actor.loop, adopt(fds[0]), self._actor.boot.name, message.name, self.on_auth, self.on_auth_gone)
        self._held.clear()  # they are asked again
        unsent = {login.session for login in self._asks}
        for client in [c for number, c in self.awaiting.items() if number not in unsent]:
            if client.asked >= _ASKS:  # it may be this very login that ends them
                self.refuse_login(client.session.id, "SYS/TEMP", "can't check passwords now, try again")
            elif client.asked and client.session.authorization.login is not None:
                self.ask(client, client.session.authorization.login)

    def opened(self, message: m.Opened, fds: list[int]) -> None:
        """The kernel has opened a maildrop."""
        client = self.awaiting.pop(message.session, None)
        if client is None:  # gone meanwhile: closing the channel ends the session at the other end
            os.close(fds[0])
            return
        client.session.authorization.login = None
        client.session.authorization.user = message.user  # as the tables write it
        self.login_over(message.session)
        client.asked_at = self._actor.loop.now
        client.channel = Channel(
            self._actor.loop, adopt(fds[0]), self._actor.boot.name, f"maildir.{message.user}",
            self._on_maildir, self._on_maildir_gone,
        )
        client.channel.tag, client.channel.views = client, True

    def lost(self, message: Message) -> None:
        """There was no room for a message's descriptor."""
        if isinstance(message, m.Opened):
            self.refuse_login(message.session, "SYS/TEMP", "the server is full now, try again later")

    def turned(self, message: m.Turned, fds: list[int]) -> None:
        """The kernel opens no maildrop."""
        del fds
        # The client hears what everybody hears, but its password was right: no failure that anybody is to be shut out for.
        self.refuse_login(message.session, message.code, message.text, "nomailbox" if message.code == "AUTH" else "")

    def refuse_login(self, session: int, code: str, text: str, why: str = "", seconds: int = 0) -> None:
        """End a login that waits. `why` for the kernel; `seconds`: until it may be tried again."""
        client = self.awaiting.pop(session, None)
        if client is not None:
            self.login_over(session)
            client.session.authorization.login = None
            client.asked_at = 0.0
            self._tell_failed(client, why or code, seconds)
            client.session.denied(code, text)
            self._connections.progress(client)

    def _tell_failed(self, client: Connection, why: str, seconds: int = 0) -> None:
        authorization = client.session.authorization
        self._actor.tell(m.LoginFailed(authorization.id, authorization.user, authorization.address, why or "refused", seconds))

    # -- from auth
    def on_auth(self, channel: Channel, message: Message, fds: list[int]) -> None:
        """Auth refuses a login. What it grants comes by way of the kernel."""
        del channel, fds
        assert isinstance(message, m.Denied)
        self.refuse_login(message.session, message.code, message.text, message.why, message.seconds)

    def on_auth_gone(self, channel: Channel, why: str) -> None:
        """Logins wait for the next auth, as long as their clients do."""
        if why:
            self._actor.refuse(channel, why)

    def log_in(self, client: Connection, login: m.Login) -> None:
        """Have a login checked in its turn, unless it is under way."""
        if login.session in self.awaiting:
            return
        turn = self._turn_of(login, client.host)
        self.awaiting[login.session] = client
        client.asked = 0
        if turn:
            self.refuse_login(login.session, "SYS/TEMP", turn)
        elif turn is not None:
            self.ask(client, login)

    def withdraw(self, session: int) -> bool:
        """Forget a session's login, for its client has gone; whether it waited for the answer."""
        awaited = self.awaiting.pop(session, None) is not None
        self.login_over(session)
        return awaited

    def _turn_of(self, login: m.Login, host: str) -> str | None:
        """As `Limits.login`; it depends on others' logins, so a recording of one session has to say."""
        turn = self._admission.limits.login(login.session, login.user, host)
        other = self._admission.limits.spare_login(host) if turn == TOO_MANY_LOGINS else None
        if other is not None:
            note("Turn", other, {"refused": TOO_MANY_LOGINS})
            self.refuse_login(other, "SYS/TEMP", TOO_MANY_LOGINS)
            turn = self._admission.limits.login(login.session, login.user, host)
        if turn or other is not None:
            self._admission.report(turn or TOO_MANY_LOGINS, host)
        if turn != "" and watch.tap is not None:
            note("Queued", login.session, {"refused": turn or ""})
        return turn

    def login_over(self, session: int) -> None:
        """A login has been answered, or nobody waits for its answer any more: the next has its turn."""
        following = self.awaiting.get(self._admission.limits.logged_in(session) or 0)
        if following is not None and following.session.authorization.login is not None:
            note("Turn", following.session.id, {"refused": ""})
            self.ask(following, following.session.authorization.login)

    def ask(self, client: Connection, login: m.Login) -> None:
        """Have auth check a login at the end of this turn of the loop."""
        client.asked += 1
        client.asked_at = self._actor.loop.now
        self._asks.append(login)
        if len(self._asks) == 1:
            self._actor.loop.soon(self._send_asks)
        if not self.watching:
            self.watch_answers()

    def _send_asks(self) -> None:
        """The logins of a turn of the loop travel together. The kernel is told of each before auth is."""
        asks, self._asks = self._wanted(self._asks), []
        if asks and self._actor.kernel is not None:
            self._actor.kernel.send_all([m.Awaiting(login.session) for login in asks])
            self._held += asks
            if self._actor.kernel.waiting:
                self._actor.kernel.on_drained = self._ask_auth  # what auth says must not be there before what the kernel is told
            else:
                self._ask_auth()

    def _ask_auth(self) -> None:
        asks, self._held = self._wanted(self._held), []
        if asks and self.auth is not None:
            self.auth.send_all(asks)

    def _wanted(self, logins: list[m.Login]) -> list[m.Login]:
        """Those whose clients still wait for them."""
        awaiting = self.awaiting
        return [x for x in logins if x.session in awaiting and awaiting[x.session].session.authorization.login is x]

    # -- from a maildir actor
    def _on_maildir(self, channel: Channel, message: Message, fds: list[int]) -> None:
        del fds
        client: Connection = channel.tag
        session = client.session
        if type(message) is m.Ready:
            if session.state == "login":
                client.asked_at = 0.0
                self._admission.limits.entered(session.id)
                self._connections.arm(client, self._connections.policy.idle_seconds)
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
            client.asked_at = self._actor.loop.now if session.replies.pending else 0.0
        self._connections.progress(client)

    def _unready(self, client: Connection, message: m.Unready) -> None:
        assert client.channel is not None
        client.channel.close()
        client.channel = None
        client.asked_at = 0.0
        if client.session.state == "login":
            self._tell_failed(client, message.code)
            client.session.denied(message.code, message.text)
        else:
            client.session.maildir_gone()
        self._connections.progress(client)

    def _bad_maildir(self, client: Connection, why: str) -> None:
        if client.channel is not None:
            self._actor.refuse(client.channel, why)
        self._maildir_over(client)

    def _on_maildir_gone(self, channel: Channel, why: str) -> None:
        if why:
            self._actor.refuse(channel, why)
        self._maildir_over(channel.tag)

    def _maildir_over(self, client: Connection) -> None:
        client.channel = None
        client.asked_at = 0.0
        if client.session.state == "login":
            client.session.denied("SYS/TEMP", "the mailbox is not available now, try again")
        else:
            client.session.maildir_gone()
        self._connections.progress(client)

    # -- answers that do not come
    def go_on_watching(self) -> None:
        """Look again, unless no answer is owed."""
        self.watching = self._always or any(client.asked_at for client in self._connections.by_session.values())
        if self.watching:
            self.watch_answers()

    def watch_answers(self) -> None:
        """Look after them now and then: a deadline is kept to within a fifth."""
        self.watching = True
        patience = min(self._auth_patience, self._maildir_patience, self._listing_patience)
        self.timer = self._actor.loop.later(patience / 5, self.go_on_watching)
        for client in [c for c in self._connections.by_session.values() if c.asked_at]:
            if client.unsent:  # the client itself does not take what there is, so no more is sent to it
                client.asked_at = self._actor.loop.now
            elif client.session.id in self.awaiting:
                if self._actor.loop.now - client.asked_at > self._auth_patience:
                    self.complain(client)
                    self.refuse_login(client.session.id, "SYS/TEMP", "can't check passwords now, try again")
            elif client.channel is not None and client.session.state == "login":
                # A maildrop that was never listed may take its time, which the client's own time to log in bounds; a stopped actor may not.
                if self._actor.loop.now - client.asked_at > self._listing_patience:
                    self.complain(client)
                    client.asked_at = self._actor.loop.now
            elif client.channel is not None and self._actor.loop.now - client.asked_at > self._maildir_patience:
                self.complain(client)
                client.channel.close()
                self._maildir_over(client)

    def complain(self, client: Connection) -> None:
        """The kernel looks whether that actor still does anything."""
        if client.session.id not in self.awaiting:
            self._actor.tell(m.Late(f"maildir.{client.session.authorization.user}"))
        elif self.auth is not None:
            self._actor.tell(m.Late(self.auth.peer))

    # -- the log
    def report(self, ended: m.Ended, *, leased: bool) -> None:
        """A connection is over. `leased`: it has, or is about to have, a maildrop."""
        self.reports.add(ended, leased=leased)
