"""Run the mda: LMTP connections, and channels to the maildir actors that the mail is for.

It has no user table and opens no file. The kernel says whose mail a recipient's is and whether this sender
may deliver there, and makes the channel to that user's maildir actor. That answer holds until the channel
ends or the kernel sends RecipientsChanged, so that mail to a busy mailbox needs no lookup. The system says
who the sender is: the uid at the other end of the unix socket. routing.py has the channels.
"""

import errno
import os
import select
import socket
from collections.abc import Sequence
from typing import Any

from popkernel.actors.mda.connection import Ask, Client
from popkernel.actors.mda.limits import TCP, Limits
from popkernel.actors.mda.route import Route
from popkernel.actors.mda.routing import Routes
from popkernel.actors.mda.transaction import Answer, Copy, Transaction
from popkernel.kernel.operator.control import peer_uid
from popkernel.kernel.runtime.actor import Actor, Boot
from popkernel.kernel.runtime.channel import Channel, Message, watch
from popkernel.kernel.runtime.loop import READ, WRITE, Timer
from popkernel.kernel.runtime.memory import give_back
from popkernel.kernel.runtime.tap import note, piece
from popkernel.proto import messages as m
from popkernel.proto.lmtp.actions import Action, Cancel, Close, FindRecipient, Finish, PassOn, Refused, Reply
from popkernel.proto.lmtp.session import Lmtp
from popkernel.proto.log_levels import ERROR, INFO, NOTICE
from popkernel.proto.topology import edge
from popkernel.proto.trace.client_input import lmtp_commands

_CHUNK = 64 * 1024  # octets read from a client at once
_EARLY = 20  # recipients of a message whose maildir actors are started while its content still comes
# seconds a maildir actor may take for a message: half of a client's timeout in RFC 5321 section 4.5.3.2.6
_ANSWER_SECONDS = 300
SWEEP_SECONDS = 1.0  # seconds between two checks of the deadlines
_MOST_KNOWN = 20000  # recipients whose user is remembered
_OTHER_FDS = 32  # besides connections and channels: listening sockets, the kernel's channel, a tap
_IDLE = 0.25  # seconds without a message after which a connection makes room for another
# connections accepted on the public socket from untrusted users, in so many seconds
_UNTRUSTED, _PAUSE = 64, 0.1
_MUCH = 4 << 20  # octets of mail after which memory is returned in the next quiet second
_DRAINING = "4.3.2 no mail is taken now, try again later"
_BUSY = "4.3.2 the mailbox is not available now, try again later"


class Mda(Actor):
    """Serve all LMTP connections, and keep a route for each user that mail has come for."""

    def __init__(self, boot: Boot) -> None:
        super().__init__(boot, many=True)
        config = boot.config
        self.hostname: str = config["hostname"]
        self.seconds = int(config["seconds"])
        self.limits = Limits(int(config["most"]), int(config["each"]), config["trusted"])
        self.message_octets = int(config["message_octets"])
        self.clients: set[Client] = set()
        self.listening: list[socket.socket] = []
        self.public = -1  # descriptor of the socket that all users may connect to
        self.untrusted, self.untrusted_since = 0, 0.0  # connections of untrusted users there
        self.routes = Routes(self, self._ask, self._answer, self._resume)
        self.known: dict[tuple[int, str], str] = {}  # (sender's uid, address) -> user
        self.asked: dict[int, Ask] = {}  # lookups under way, by request, the oldest first
        self.patience = edge("mda", "kernel").deadline
        self.taken = 0  # octets from clients since memory was last returned
        self.taken_before = 0
        self.number = 0
        self.serial = 0  # number of the last connection
        self.sweeping: Timer | None = None
        self.stopping = False
        self.draining = False  # no new clients
        self.handlers |= {
            m.RecipientFound: self._maildrop,
            m.RecipientUnknown: self._no_maildrop,
            m.RecipientsChanged: self._anew,
            m.ServiceDrain: self._drain,
        }

    def begin(self) -> None:
        """Lock the sandbox, greet the kernel, serve."""
        for fd in (*self.boot.config["unix_fds"], *self.boot.config["tcp_fds"]):
            sock = socket.socket(fileno=fd)
            sock.setblocking(False)
            self.listening.append(sock)
        self.public = self.boot.config["public_fd"]
        self.lock()
        room = self.nofile - _OTHER_FDS  # fewer than configured if the system's hard limit is low
        self.limits.most = min(self.limits.most, room // 2)
        self.routes.most = min(self.routes.most, room - self.limits.most)
        self.routes.connections = self.limits.most
        self.connect()
        self._listen()
        self.sweeping = self.loop.later(SWEEP_SECONDS, self.sweep)
        self.run()

    def sessions(self) -> int:
        """Return the number of connections."""
        return len(self.clients)

    # -- watched
    def _typed(self, client: Client, data: bytes) -> None:
        """Trace what a client sends: its commands, and mail as its size.

        With --payload, mail too.
        """
        shown = piece(data)
        commands = lmtp_commands(data) if client.lmtp.state == "command" and not client.half else None
        client.half = not data.endswith(b"\n")
        lines = [shown] if commands is None or "content" in shown else commands
        note("Typed", client.id, {"lines": lines}, way="in", peer="client", octets=len(data))

    def _said(self, client: Client, data: bytes) -> None:
        if watch.tap is not None:
            note("Reply", client.id, {"said": [data]}, way="out", peer="client", octets=len(data))

    def session_of(self, channel: Channel, message: Message) -> int:
        """Return the connection that a lookup or a delivery is for; 0 if that is over."""
        owner: Any = None
        if isinstance(channel.tag, Route):
            copy = channel.tag.copies.get(message[0]) if message else None
            owner = None if copy is None else copy.transaction.owner
        elif isinstance(message, (m.RecipientLookup, m.RecipientFound, m.RecipientUnknown)):
            ask = self.asked.get(message.request)
            owner = ask.asker if ask is not None else None
            if isinstance(owner, str):
                owner = next((copy.transaction.owner for copy in self.routes.wanting.get(owner, ())), None)
        return owner.id if isinstance(owner, Client) else 0

    def settings(self) -> dict[str, Any]:
        now = self.loop.now
        return self.told() | {
            "number": self.number,
            "draining": self.draining,
            "routes": list(self.routes.by_user),
            "clients": [
                [
                    c.id,
                    c.uid,
                    c.counted,
                    c.lmtp.rest if not (c.out or c.half or c.transaction) else [],
                    max(0.0, c.deadline - now),
                ]
                for c in self.clients
            ],
            "asked": [
                [n, a.asker.uid, a.asker.lmtp.recipients[-1]]
                for n, a in self.asked.items()
                if isinstance(a.asker, Client)
            ],
            "sweep": max(0.0, self.sweeping.due - now) if self.sweeping is not None else SWEEP_SECONDS,
            "known": [[uid, address, user] for (uid, address), user in self.known.items()],
        }

    def next_number(self) -> int:
        """Return a new number for a request or a delivery."""
        self.number += 1
        return self.number

    # -- clients
    def _listen(self) -> None:
        for sock in self.listening:
            self._listen_on(sock)

    def _listen_on(self, sock: socket.socket) -> None:
        """Accept connections on a listening socket, unless it is closed."""
        if sock in self.listening:
            self.loop.remove(sock.fileno())
            self.loop.add(sock.fileno(), lambda _: self._accept(sock))

    def _check_listening(self) -> None:
        """End the actor if a listening socket was shut down; the next mda gets new ones.

        accept(2) does not report that for a unix socket (EAGAIN), and epoll(7) only when somebody connects.
        """
        poll = select.poll()
        for sock in self.listening:
            poll.register(sock, 0)
        if poll.poll(0):
            self.fail(75, "a listening socket was shut down; LMTP begins anew")

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(16):
            if listening.fileno() == self.public and self._crowded(listening):
                return
            try:
                sock, _ = listening.accept()
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self.log(ERROR, "lmtp.accept_failed", error=os.strerror(error.errno))
                    # connections wait in the queue meanwhile; the loop would report them again and again
                    for waiting in self.listening:
                        self.loop.remove(waiting.fileno())
                    self.loop.later(1.0, self._listen)
                else:
                    self._check_listening()
                return
            sock.setblocking(False)
            if sock.family == socket.AF_UNIX:
                uid = peer_uid(sock)
                if uid < 0:
                    sock.close()
                    continue
                self.untrusted += listening.fileno() == self.public and uid not in self.limits.trusted
            else:
                uid = TCP
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.connected(sock, uid)

    def _crowded(self, listening: socket.socket) -> bool:
        """Return whether the public socket must wait for a moment.

        Users who connect to it without end must not delay the mail server's own socket.
        """
        now = self.loop.now
        if now - self.untrusted_since >= _PAUSE:
            self.untrusted, self.untrusted_since = 0, now
        if self.untrusted < _UNTRUSTED:
            return False
        self.loop.remove(listening.fileno())
        self.loop.later(self.untrusted_since + _PAUSE - now, lambda: self._listen_on(listening))
        return True

    def _make_room(self, uid: int) -> bool:
        """End the connection that has been idle for longest, to make room. Returns whether there was one.

        An untrusted user's connection replaces only one of the same user.
        """
        idle = [
            c
            for c in self.clients
            if c.counted
            and c.lmtp.rest
            and not (c.out or c.half)
            and (uid in self.limits.trusted or c.uid == uid)
        ]
        oldest = min(idle, key=lambda client: client.deadline, default=None)
        if oldest is None or oldest.deadline - self.loop.now > self.seconds - _IDLE:
            return False
        self._end(oldest, "4.3.2 idle, and another connection needs its place")
        self._over(oldest)
        return True

    def connected(self, sock: socket.socket, uid: int) -> None:
        self.serial += 1
        client = Client(sock, uid, Lmtp(self.hostname, self.message_octets), self.serial)
        self.clients.add(client)
        if watch.tap is not None:
            note("Connected", client.id, {"uid": uid}, way="in", peer="client")
        self.loop.add(sock.fileno(), lambda events: self.ready(client, events))
        refusal = _DRAINING if self.draining else self.limits.take(uid)
        if refusal and not self.draining and self._make_room(uid):
            refusal = self.limits.take(uid)
        client.counted = not refusal
        self._do(client, client.lmtp.end(refusal) if refusal else client.lmtp.begin())
        self._progress(client)

    def ready(self, client: Client, events: int) -> None:
        if events & WRITE and not self._flush(client):
            return
        if events & ~WRITE:
            try:
                data = client.sock.recv(_CHUNK)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                data = b""
            if not data:
                self._lost(client)
                return
            if watch.tap is not None:
                self._typed(client, data)
            self.taken += len(data)
            self._do(client, client.lmtp.feed(data))
        self._progress(client)

    def _do(self, client: Client, actions: Sequence[Action]) -> None:
        """Do the actions of a client's LMTP session, in order."""
        for action in actions:
            match action:
                case Reply(octets):
                    client.replies.append(octets)
                case PassOn(data):
                    assert client.transaction is not None
                    self.routes.do(client.transaction.content(data))
                case FindRecipient(address):
                    self.recipient(client, address)
                case Finish():
                    assert client.transaction is not None
                    client.deadline = self.loop.now + _ANSWER_SECONDS
                    self.routes.do(client.transaction.done())
                case Refused():
                    self._refused(client, action)
                case Cancel():
                    self._cancel(client)
                case Close():
                    client.closing = True

    def _refused(self, client: Client, refused: Refused) -> None:
        """Log a refusal, for the history too. That of an unknown recipient is no fault here."""
        self.tell(
            INFO if refused.reply.startswith("550 5.1.") else NOTICE,
            "delivery.refused",
            mailbox=self.known.get((client.uid, refused.recipient), ""),
            sender=refused.sender,
            recipient=refused.recipient,
            reply=refused.reply,
        )

    def _progress(self, client: Client) -> None:
        """Continue with the client's octets, as far as possible now."""
        lmtp = client.lmtp
        while not (client.transaction is not None and client.transaction.paused):
            actions = lmtp.go_on()
            if not actions:
                break
            self._do(client, actions)
        ours = lmtp.state == "answering" or (client.transaction is not None and client.transaction.paused)
        client.deadline = self.loop.now + (_ANSWER_SECONDS if ours else self.seconds)
        self._flush(client)

    def _end(self, client: Client, text: str) -> None:
        self._do(client, client.lmtp.end(text))
        self._flush(client)

    def _flush(self, client: Client) -> bool:
        """Send what the client takes. Returns False if the connection ended."""
        out = client.out
        if client.replies:
            said = b"".join(client.replies)
            client.replies.clear()
            self._said(client, said)
            out += said
        if out:
            try:
                sent = client.sock.send(out)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError:
                self._lost(client)
                return False
            client.out = out[sent:]
        if client.closing and not client.out:
            self._over(client)
            return False
        paused = client.transaction is not None and client.transaction.paused
        reading = client.lmtp.wants and not paused and len(client.out) < _CHUNK
        events = (READ if reading else 0) | (WRITE if client.out else 0)
        if events != client.events:
            client.events = events
            self.loop.change(client.sock.fileno(), events)
        return True

    def _lost(self, client: Client) -> None:
        """End a connection for a reason from outside LMTP, which a replay must be told."""
        if watch.tap is not None and client in self.clients:
            note("Gone", client.id, {"why": "connection lost"}, way="in", peer="client")
        self._over(client)

    def _over(self, client: Client) -> None:
        if client not in self.clients:
            return
        self.clients.discard(client)
        if client.counted:
            self.limits.leave(client.uid)
        self._cancel(client)
        self.asked.pop(client.asking, None)
        self.loop.remove(client.sock.fileno())
        client.sock.close()
        self._done_stopping()

    def _cancel(self, client: Client) -> None:
        transaction, client.transaction = client.transaction, None
        if transaction is not None:
            routes = {copy.route for copy in transaction.open if isinstance(copy.route, Route)}
            for copy in [c for c in transaction.open if c.wanted]:
                self.routes.withdraw(copy)
            self.routes.do(transaction.cancel())
            for route in routes:
                self.routes.tidy(route)

    def sweep(self) -> None:
        """End silent connections, and answer for maildir actors and the kernel that took too long."""
        self.sweeping = self.loop.later(SWEEP_SECONDS, self.sweep)
        self._check_listening()
        self._silent_kernel()
        self.routes.sweep()
        for client in [c for c in self.clients if c.deadline < self.loop.now and not c.asking]:
            if client.transaction is not None and (
                client.lmtp.state == "answering" or client.transaction.paused
            ):
                self.routes.do(client.transaction.late())
                self._progress(client)
            else:
                self._end(client, "4.4.2 idle for too long")
                self._over(client)
        if (
            self.taken > _MUCH
            and self.taken == self.taken_before
            and not any(c.transaction is not None for c in self.clients)
        ):
            # in the middle of a message little would be returned, and the count would begin again
            self.taken = 0
            give_back()
        self.taken_before = self.taken

    def _silent_kernel(self) -> None:
        """Refuse recipients that the kernel did not answer for in time.

        A late answer's channel is still used.
        """
        for request, ask in list(self.asked.items()):
            if ask.due > self.loop.now:
                break
            del self.asked[request]
            if isinstance(ask.asker, Client):
                self._decided(ask.asker, _BUSY, user="")
            else:
                self.routes.refused(ask.asker, _BUSY)

    # -- recipients
    def recipient(self, client: Client, address: str) -> None:
        user = self.known.get((client.uid, address))
        if user is not None and user in self.routes.by_user:
            if watch.tap is not None:
                note("Known", client.id, {"address": address, "user": user})
            self._decided(client, "", user=user, resume=False)
            return
        look = client.transaction is not None and len(client.transaction.copies) >= _EARLY
        client.asking = self._question(client)
        self.send(m.RecipientLookup(client.asking, address, client.uid, look=look, lost=False))

    def _question(self, asker: Client | str) -> int:
        number = self.next_number()
        self.asked[number] = Ask(asker, self.loop.now + self.patience)
        return number

    def _ask(self, user: str, copy: Copy) -> None:
        """Ask the kernel for a channel to that user's actor, for this copy's sender."""
        self.send(
            m.RecipientLookup(
                self._question(user), copy.address, copy.transaction.owner.uid, look=False, lost=True
            )
        )

    def _decided(self, client: Client, refusal: str, *, user: str, resume: bool = True) -> None:
        """Answer the client's recipient with the kernel's decision, new or remembered."""
        client.asking = 0
        lmtp = client.lmtp
        if refusal:
            self._do(client, lmtp.recipient(refusal, taken=False))
        else:
            if client.transaction is None:
                client.transaction = Transaction(client, lmtp.sender or "", self.next_number, lmtp.announced)
            client.transaction.add(lmtp.recipients[-1], user)
            self._do(client, lmtp.recipient("2.1.5 ok"))
        if resume:
            self._progress(client)

    def _answer(self, answer: Answer) -> None:
        """Answer a client for one recipient."""
        client: Client = answer.owner
        self._do(client, client.lmtp.answer(answer.recipient, answer.text, taken=answer.taken))
        if client.lmtp.state != "answering":
            client.transaction = None
            if self.draining:
                self._do(client, client.lmtp.end(_DRAINING))
        self._resume(client)

    def _resume(self, client: Client) -> None:
        """Continue with a client before the loop waits again."""

        def resume() -> None:
            if client in self.clients:
                self._progress(client)

        self.loop.soon(resume)

    # -- from the kernel
    def lost(self, message: Message) -> None:
        super().lost(message)
        if isinstance(message, m.RecipientFound):
            self._no_maildrop(
                m.RecipientUnknown(message.request, "4.3.2", "the server is full now, try again later"), []
            )

    def _maildrop(self, message: m.RecipientFound, fds: list[int]) -> None:
        user = message.user
        if message.fresh:
            self.routes.join(user, fds[0])
        ask = self.asked.pop(message.request, None)
        if ask is None:
            return
        asker = ask.asker
        if isinstance(asker, Client):
            if len(self.known) >= _MOST_KNOWN:
                self.known.clear()
            self.known[asker.uid, asker.lmtp.recipients[-1]] = user
            self._decided(asker, "", user=user)
        else:
            self.routes.found(asker)

    def _no_maildrop(self, message: m.RecipientUnknown, fds: list[int]) -> None:
        del fds
        ask = self.asked.pop(message.request, None)
        text = f"{message.status} {message.text}"
        if ask is not None and isinstance(ask.asker, Client):
            self._decided(ask.asker, text, user="")
        elif ask is not None:
            self.routes.refused(str(ask.asker), text)

    def _anew(self, message: m.RecipientsChanged, fds: list[int]) -> None:
        """Forget all recipients: the user table has changed."""
        del message, fds
        self.known.clear()

    # -- the end
    def _drain(self, message: m.ServiceDrain, fds: list[int]) -> None:
        """Take no more mail: end connections before or after the message under way. Or take it again."""
        del fds
        self.draining = message.on
        for client in list(self.clients):
            if self.draining and client.lmtp.state == "command":
                self._end(client, _DRAINING)

    def stop(self, seconds: int) -> None:
        """Accept no more clients; messages under way may end."""
        self.stopping = True
        for sock in self.listening:
            self.loop.remove(sock.fileno())
            sock.close()
        self.listening.clear()
        self.loop.later(max(0.1, seconds - 1), self.end)
        for client in list(self.clients):
            if client.lmtp.state == "command":
                self._end(client, "4.3.2 the service ends")
        self._done_stopping()

    def _done_stopping(self) -> None:
        if self.stopping and not self.clients:
            self.end()


def main(boot: Boot) -> None:
    """Run as the mda."""
    Mda(boot).begin()
