"""Exchange messages with auth, the kernel and maildir actors for the clients' sessions."""

import os
from collections.abc import Sequence
from typing import Any

from popkernel.actors.listener.admission import Admission
from popkernel.actors.listener.connection import Connection
from popkernel.actors.listener.connections import Connections
from popkernel.actors.listener.reports import Reports
from popkernel.actors.listener.session.actions import Action
from popkernel.kernel.runtime.actor import Actor
from popkernel.kernel.runtime.channel import Channel, Message, watch
from popkernel.kernel.runtime.loop import Timer
from popkernel.kernel.runtime.tap import note
from popkernel.proto import messages as m
from popkernel.proto.access.login_times import answer_by
from popkernel.proto.topology import edge

__all__ = ["Peers"]

_ASKS = 2  # auth processes a login is sent to, should the first end without an answer


class Peers:
    """Hold the channels of one listener, and the logins that wait for answers."""

    __slots__ = (
        "_actor",
        "_admission",
        "_always",
        "_asks",
        "_auth_patience",
        "_connections",
        "_heard",
        "_held",
        "_listing_patience",
        "_maildir_patience",
        "auth",
        "awaiting",
        "reports",
        "timer",
        "watching",
    )

    def __init__(self, actor: Actor, admission: Admission, connections: Connections, *, always: bool) -> None:
        """`always`: check all the time for late answers.

        Otherwise only while one is due, for there may be ten thousand of these processes.
        """
        self._actor = actor
        self._admission = admission
        self._connections = connections
        self._always = always
        self.watching = always
        self.timer: Timer | None = None  # timer of `watch_answers`
        self.auth: Channel | None = None
        # clients whose login waits for its turn, for auth or for the kernel
        self.awaiting: dict[int, Connection] = {}
        self.reports = Reports(actor)
        self._asks: list[m.LoginRequest] = []  # logins of this turn
        self._held: list[m.LoginRequest] = []  # until the kernel has LoginStarted
        self._heard = 0.0  # when auth or the kernel last answered a login
        self._auth_patience = edge("listener", "auth").deadline
        self._maildir_patience = edge("listener", "maildir.{user}").deadline
        self._listing_patience = edge("kernel", "maildir.{user}").deadline

    def settings(self) -> dict[str, Any]:
        """Return the state that a replay of this listener begins with."""
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
    def take_auth(self, message: m.PeerChannel, fds: list[int]) -> None:
        """Take the channel to auth, the first or a new process's.

        Logins that the old process did not answer are sent again.
        """
        # a reload replaces an auth that is well: its logins may be sent once more than those of one that died
        again = self.auth is not None and not self.auth.closed
        if self.auth is not None:
            self.auth.close()
        self.auth = self._actor.world.channel(
            self._actor.loop,
            fds[0],
            self._actor.boot.name,
            message.name,
            self.on_auth,
            self.on_auth_gone,
        )
        self._held.clear()  # they are sent again
        unsent = {login.session for login in self._asks}
        for client in [c for number, c in self.awaiting.items() if number not in unsent]:
            if not client.asked or client.login is None:  # it waits for its turn here
                continue
            if again:
                client.asked -= 1
            if client.asked < _ASKS:
                self.ask(client, client.login)
            else:  # this very login may make auth fail
                self.refuse_login(client.session.id, "SYS/TEMP", "can't check passwords now, try again")

    def opened(self, message: m.SessionAdmitted, fds: list[int]) -> None:
        """Take the session's channel: the kernel admitted it."""
        client = self.awaiting.pop(message.session, None)
        if client is None:  # the client is gone; closing the channel ends the session at the other end
            os.close(fds[0])
            return
        client.login = None
        client.admitted_at = self._heard = self._actor.loop.now
        client.session.admitted(message.user)
        self.login_over(message.session)
        client.asked_at = self._actor.loop.now
        client.channel = self._actor.world.channel(
            self._actor.loop,
            fds[0],
            self._actor.boot.name,
            f"maildir.{message.user}",
            self._on_maildir,
            self._on_maildir_gone,
        )
        client.channel.tag, client.channel.views = client, True

    def lost(self, message: Message) -> None:
        """Refuse the login if there was no room for the channel's descriptor."""
        if isinstance(message, m.SessionAdmitted):
            self.refuse_login(message.session, "SYS/TEMP", "the server is full now, try again later")

    def refused(self, message: m.SessionRefused, fds: list[int]) -> None:
        """End a login that the kernel refuses."""
        del fds
        self._heard = self._actor.loop.now
        # The client gets the usual answer, but its password was right: this is no failed login that may get
        # its address banned.
        self.refuse_login(
            message.session, message.code, message.text, "nomailbox" if message.code == "AUTH" else ""
        )

    def refuse_login(self, session: int, code: str, text: str, why: str = "") -> None:
        """End a login that waits. `why`: for the kernel."""
        client = self.awaiting.pop(session, None)
        if client is not None:
            self.login_over(session)
            client.login = None
            client.asked_at = 0.0
            self._tell_failed(client, why or code)
            self._deny(client, code, text)

    def _deny(self, client: Connection, code: str, text: str) -> None:
        """Answer a failed login: it is the client's turn again."""
        self._admission.limits.waits(client.session.id, client.host, self._actor.loop.now)
        self._connections.act(client, client.session.denied(code, text))

    def _tell_failed(self, client: Connection, why: str) -> None:
        authorization = client.session.authorization
        waited = int((self._actor.loop.now - client.login_at) * 1000)
        self._actor.send(
            m.LoginFailed(
                authorization.id, authorization.user, authorization.address, why or "refused", waited
            )
        )

    # -- from auth
    def on_auth(self, channel: Channel, message: Message, fds: list[int]) -> None:
        """Refuse a login that auth refuses. Its grants come through the kernel."""
        del channel, fds
        assert isinstance(message, m.LoginRefused)
        self._heard = self._actor.loop.now
        self.refuse_login(message.session, message.code, message.text, "auth")

    def on_auth_gone(self, channel: Channel, why: str) -> None:
        """Keep the logins waiting for the next auth, as long as their clients stay."""
        if why:
            self._actor.refuse(channel, why)

    def log_in(self, client: Connection, login: m.LoginRequest) -> None:
        """Have a login checked in its turn, unless it is under way."""
        if login.session in self.awaiting:
            return
        turn = self.turn_of(login, client.host)
        self._admission.limits.serve(login.session)
        self.awaiting[login.session] = client
        client.asked = 0
        client.login_at = client.login_asked_at = self._actor.loop.now
        client.admitted_at = client.opened_at = 0.0
        if turn:
            self.refuse_login(login.session, "SYS/TEMP", turn)
        elif turn is not None:
            self.ask(client, login)
        else:
            client.asked_at = self._actor.loop.now

    def hung_up(self, client: Connection) -> None:
        """Tell the others that a client shut its sending side, if it has a login under way or a maildrop."""
        self._tell_hung_up(client)
        self._withdraw_if_last(client)

    def _tell_hung_up(self, client: Connection) -> None:
        if client.eof and (client.channel is not None or client.session.id in self.awaiting):
            self._actor.send(m.ClientHungUp(client.session.id))

    def _withdraw_if_last(self, client: Connection) -> None:
        """Tell auth of a client that can say no more after its login.

        Most likely it has gone, and the login is worth a check only if it need not wait.
        """
        session = client.session
        if client.eof and client.asked and session.id in self.awaiting and session.nothing_follows:
            self._withdraw(session.id, answer=True)

    def kicked(self, client: Connection) -> None:
        """Have the log say why a client's login, if one is under way, fails now."""
        if client.session.state == "login":
            self._tell_failed(client, "kicked")

    def withdraw(self, session: int) -> bool:
        """Forget a session's login, for its client is gone. Returns whether it waited for an answer."""
        client = self.awaiting.pop(session, None)
        if client is not None and client.asked:
            self._withdraw(session, answer=False)
        self.login_over(session)
        return client is not None

    def _withdraw(self, session: int, *, answer: bool) -> None:
        """Tell auth that a login need not be checked. It may not have it yet: then it does nothing."""
        if self.auth is not None:
            self.auth.send(m.LoginWithdrawn(session, answer))

    def turn_of(self, login: m.LoginRequest, host: str) -> str | None:
        """Count a login as `Limits.login` does.

        The result depends on others' logins, so a recording of one session notes it.
        """
        turn = self._admission.limits.login(login.session, login.user, host)
        if turn:
            self._admission.report(turn, host)
        if turn != "" and watch.tap is not None:
            note("Queued", login.session, {"refused": turn or ""})
        return turn

    def login_over(self, session: int) -> None:
        """Count out a login that is answered or withdrawn, and send the next one."""
        following = self.awaiting.get(self._admission.limits.logged_in(session) or 0)
        if following is not None and following.login is not None:
            note("Turn", following.session.id, {"refused": ""})
            self.ask(following, following.login)

    def ask(self, client: Connection, login: m.LoginRequest) -> None:
        """Send a login to auth at the end of this turn of the loop."""
        client.asked += 1
        client.asked_at = self._actor.loop.now
        if client.asked == 1:
            client.login_asked_at = client.asked_at
        self._asks.append(login)
        if len(self._asks) == 1:
            self._actor.loop.soon(self._send_asks)
        if not self.watching:
            self.watch_answers()

    def _send_asks(self) -> None:
        """Send the logins of this turn of the loop together: to the kernel first, then to auth."""
        asks, self._asks = self._wanted(self._asks), []
        if asks and self._actor.kernel is not None:
            awaiting = self.awaiting
            self._actor.kernel.send_all(
                [
                    m.LoginStarted(x.session, x.user, x.address, awaiting[x.session].tls, x.mechanism)
                    for x in asks
                ]
            )
            for login in asks:
                self._tell_hung_up(self.awaiting[login.session])
            self._held += asks
            if self._actor.kernel.waiting:
                # LoginStarted must reach the kernel before auth's grant
                self._actor.kernel.on_drained = self._ask_auth
            else:
                self._ask_auth()

    def _ask_auth(self) -> None:
        asks, self._held = self._wanted(self._held), []
        if asks and self.auth is not None:
            self.auth.send_all(asks)
            for login in asks:
                self._withdraw_if_last(self.awaiting[login.session])

    def _wanted(self, logins: list[m.LoginRequest]) -> list[m.LoginRequest]:
        """Return the logins whose clients still wait."""
        awaiting = self.awaiting
        return [x for x in logins if x.session in awaiting and awaiting[x.session].login is x]

    # -- from a maildir actor
    def _on_maildir(self, channel: Channel, message: Message, fds: list[int]) -> None:
        del fds
        client: Connection = channel.tag
        session = client.session
        actions: Sequence[Action] = ()
        if type(message) is m.MaildropReady:
            if session.state == "login":
                client.asked_at = 0.0
                client.opened_at = self._actor.loop.now
                self._admission.limits.entered(session.id)
                self._connections.arm(client, self._connections.policy.idle_seconds)
                actions = session.ready(message)
            elif session.entered:
                self._bad_maildir(client, "a second MaildropReady")
                return
        elif type(message) is m.MaildropUnready:
            self._unready(client, message)
            return
        else:
            try:
                actions = session.answered(message)
            except ValueError as error:
                self._bad_maildir(client, str(error))
                return
            client.asked_at = self._actor.loop.now if session.replies.pending else 0.0
        self._connections.act(client, actions)

    def _unready(self, client: Connection, message: m.MaildropUnready) -> None:
        assert client.channel is not None
        if message.code == "AUTH":  # auth's answer: the log would say that the password was wrong
            self._bad_maildir(client, "MaildropUnready.code: not a maildrop's")
            return
        client.channel.close()
        client.channel = None
        client.asked_at = 0.0
        if client.session.state == "login":
            self._tell_failed(client, message.code)
            self._deny(client, message.code, message.text)
        else:
            self._connections.act(client, client.session.maildir_gone())

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
            self._tell_failed(client, "SYS/TEMP")
            self._deny(client, "SYS/TEMP", "the mailbox is not available now, try again")
        else:
            self._connections.act(client, client.session.maildir_gone())

    # -- late answers
    def go_on_watching(self) -> None:
        """Check again, unless no answer is due."""
        self.watching = self._always or any(
            client.asked_at for client in self._connections.by_session.values()
        )
        if self.watching:
            self.watch_answers()

    def watch_answers(self) -> None:
        """Check for late answers now, and regularly: a deadline is kept to within a fifth."""
        self.watching = True
        patience = min(self._auth_patience, self._maildir_patience, self._listing_patience)
        self.timer = self._actor.loop.later(patience / 5, self.go_on_watching)
        for client in [c for c in self._connections.by_session.values() if c.asked_at]:
            if client.unsent:  # the client does not take what it has, so no more is sent to it
                client.asked_at = self._actor.loop.now
            elif client.session.id in self.awaiting:
                self._check_login(client)
            elif client.channel is not None and client.session.state == "login":
                # The first listing of a maildrop may take long; the client's time to log in bounds it. A
                # stopped actor is reported.
                if self._actor.loop.now - client.asked_at > self._listing_patience:
                    self.complain(client)
                    client.asked_at = self._actor.loop.now
            elif (
                client.channel is not None and self._actor.loop.now - client.asked_at > self._maildir_patience
            ):
                self.complain(client)
                client.channel.close()
                self._maildir_over(client)

    def _check_login(self, client: Connection) -> None:
        """Refuse a login that waits for auth or the kernel if the client's time to log in is nearly over."""
        now, session = self._actor.loop.now, client.session.id
        if now - max(client.asked_at, self._heard) > self._auth_patience:
            self.complain(client)
        seconds = self._connections.policy.login_seconds
        if now >= client.deadline - seconds + answer_by(seconds):
            self._withdraw(session, answer=False)
            self._admission.count("login_seconds")
            self.refuse_login(session, "SYS/TEMP", "can't check passwords now, try again")

    def complain(self, client: Connection) -> None:
        """Have the kernel check whether that actor still makes progress.

        Of auth, only if it has answered none of its logins for long: many may wait for their turn.
        """
        if client.session.id not in self.awaiting:
            self._actor.send(m.PeerTimeout(f"maildir.{client.session.authorization.user}"))
        elif self.auth is not None and self._actor.loop.now - self._heard > self._auth_patience:
            self._heard = self._actor.loop.now  # one complaint for all that wait
            self._actor.send(m.PeerTimeout(self.auth.peer))

    # -- the log
    def report(self, ended: m.ConnectionEnded, *, leased: bool) -> None:
        """Report the end of a connection. `leased`: it has, or is about to get, a maildrop."""
        self.reports.add(ended, leased=leased)
