"""The mda's shell: LMTP connections, and channels to the maildir actors that its mail is for.

It has no user table and sees no file: whose a recipient is, and whether that sender may deliver there, the kernel says, who
also makes the channel to that user's maildir actor. What the kernel said holds until that channel ends or the kernel says
`Anew`, so that mail to a mailbox that gets much of it costs no question. Who the sender is, the system says: the uid at the
other end of the unix socket. The channels are routing.py's.
"""

import errno
import os
import select
import socket
from typing import Any

from popkernel.actors.mda.connection import Ask, Client
from popkernel.actors.mda.limits import TCP, Limits
from popkernel.actors.mda.route import Route
from popkernel.actors.mda.routing import Routes
from popkernel.actors.mda.transaction import Copy, Transaction
from popkernel.kernel.operator.control import peer_uid
from popkernel.kernel.runtime.actor import Actor, Boot
from popkernel.kernel.runtime.channel import Channel, Message, watch
from popkernel.kernel.runtime.loop import READ, WRITE, Timer
from popkernel.kernel.runtime.memory import give_back
from popkernel.kernel.runtime.tap import note, piece
from popkernel.proto import messages as m
from popkernel.proto.lmtp.session import Cancelled, Content, Done, Lmtp, Rcpt
from popkernel.proto.topology import edge
from popkernel.proto.trace.client_input import lmtp_commands

_CHUNK = 64 * 1024  # octets read from a client at once
_EARLY = 20  # recipients of a message whose maildir actors are made ready while its content still comes
_ANSWER_SECONDS = 300  # a maildir actor may take for a message: half of what RFC 5321 section 4.5.3.2.6 has clients wait
_SWEEP = 1.0  # seconds between two looks at the deadlines
_MOST_KNOWN = 20000  # recipients whose owner is remembered
_OTHER_FDS = 32  # besides connections and channels: listening sockets, the kernel's channel, a tap
_IDLE = 0.25  # seconds without a message after which a connection makes room for another
_GUESTS, _PAUSE = 64, 0.1  # connections that are taken on the public socket of users not trusted, in so many seconds
_MUCH = 4 << 20  # octets of mail after which memory is given back as soon as there is a quiet second
_BUSY = "4.3.2 the mailbox is not available now, try again later"


class Mda(Actor):
    """All LMTP connections, and a route for each user that mail has come for."""

    def __init__(self, boot: Boot) -> None:
        super().__init__(boot, many=True)
        config = boot.config
        self.hostname: str = config["hostname"]
        self.seconds = int(config["seconds"])
        self.limits = Limits(int(config["most"]), int(config["each"]), config["trusted"])
        self.message_octets = int(config["message_octets"])
        self.clients: set[Client] = set()
        self.listening: list[socket.socket] = []
        self.public = -1  # the descriptor of the socket that everybody may connect to
        self.guests, self.guests_since = 0, 0.0  # who came there, of users not trusted
        self.routes = Routes(self, self._ask, self._resume)
        self.known: dict[tuple[int, str], str] = {}  # (sender's uid, address) -> user
        self.asked: dict[int, Ask] = {}  # by request, the oldest first
        self.patience = edge("mda", "kernel").deadline
        self.taken = 0  # octets that clients sent since memory was last given back
        self.taken_before = 0
        self.number = 0
        self.serial = 0  # of connections
        self.sweeping: Timer | None = None
        self.stopping = False
        self.handlers |= {m.Maildrop: self._maildrop, m.NoMaildrop: self._no_maildrop, m.Anew: self._anew}

    def begin(self) -> None:
        """Lock in, say hello, serve."""
        for fd in (*self.boot.config["unix_fds"], *self.boot.config["tcp_fds"]):
            sock = socket.socket(fileno=fd)
            sock.setblocking(False)
            self.listening.append(sock)
        self.public = self.boot.config["public_fd"]
        self.lock()
        room = self.nofile - _OTHER_FDS  # fewer than asked for where the system's hard limit is low
        self.limits.most = min(self.limits.most, room // 2)
        self.routes.most = min(self.routes.most, room - self.limits.most)
        self.routes.connections = self.limits.most
        self.connect()
        self._listen()
        self.sweeping = self.loop.later(_SWEEP, self._sweep)
        self.run()

    def sessions(self) -> int:
        """Connections."""
        return len(self.clients)

    # -- watched
    def _typed(self, client: Client, data: bytes) -> None:
        """What a client sends, for who watches: its commands, and mail as its size. Whole where mail was asked for."""
        shown = piece(data)
        commands = lmtp_commands(data) if client.lmtp.state == "command" and not client.half else None
        client.half = not data.endswith(b"\n")
        lines = [shown] if commands is None or "content" in shown else commands
        note("Typed", client.id, {"lines": lines}, way="in", peer="client", octets=len(data))

    def _said(self, client: Client, data: bytes) -> None:
        if data:
            note("Reply", client.id, {"said": [data]}, way="out", peer="client", octets=len(data))

    def session_of(self, channel: Channel, message: Message) -> int:
        """The connection that a recipient is asked for, or a delivery is made for; 0 where that is over."""
        owner: Any = None
        if isinstance(channel.tag, Route):
            copy = channel.tag.copies.get(message[0]) if message else None
            owner = None if copy is None else copy.transaction.owner
        elif isinstance(message, (m.Recipient, m.Maildrop, m.NoMaildrop)):
            ask = self.asked.get(message.request)
            owner = ask.asker if ask is not None else None
            if isinstance(owner, str):
                owner = next((copy.transaction.owner for copy in self.routes.wanting.get(owner, ())), None)
        return owner.id if isinstance(owner, Client) else 0

    def settings(self) -> dict[str, Any]:
        now = self.loop.now
        return self.told() | {
            "number": self.number,
            "routes": list(self.routes.by_user),
            "clients": [
                [c.id, c.uid, c.counted, c.lmtp.rest if not (c.out or c.half or c.transaction) else [], max(0.0, c.deadline - now)]
                for c in self.clients
            ],
            "asked": [[n, a.asker.uid, a.asker.lmtp.recipients[-1]] for n, a in self.asked.items() if isinstance(a.asker, Client)],
            "sweep": max(0.0, self.sweeping.due - now) if self.sweeping is not None else _SWEEP,
            "known": [[uid, address, user] for (uid, address), user in self.known.items()],
        }

    def next_number(self) -> int:
        """For a request or a delivery."""
        self.number += 1
        return self.number

    # -- clients
    def _listen(self) -> None:
        for sock in self.listening:
            self._listen_on(sock)

    def _listen_on(self, sock: socket.socket) -> None:
        """Take connections there, if that is not done already."""
        if sock in self.listening:
            self.loop.remove(sock.fileno())
            self.loop.add(sock.fileno(), lambda _: self._accept(sock))

    def _hear(self) -> None:
        """End where a listening socket was shut down, by this very process: the next one is given new sockets.

        accept(2) does not tell of a unix socket (EAGAIN), and epoll(7) only when somebody tries to connect.
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
                    self.log(3, f"no more LMTP connections can be taken: {os.strerror(error.errno)}")
                    for waiting in self.listening:  # who waits is still there in a second, and would be reported until then
                        self.loop.remove(waiting.fileno())
                    self.loop.later(1.0, self._listen)
                else:
                    self._hear()
                return
            sock.setblocking(False)
            if sock.family == socket.AF_UNIX:
                uid = peer_uid(sock)
                if uid < 0:
                    sock.close()
                    continue
                self.guests += listening.fileno() == self.public and uid not in self.limits.trusted
            else:
                uid = TCP
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._begin(sock, uid)

    def _crowded(self, listening: socket.socket) -> bool:
        """Whether the public socket has to wait: who connects to it without end must not keep the mail server's socket waiting."""
        now = self.loop.now
        if now - self.guests_since >= _PAUSE:
            self.guests, self.guests_since = 0, now
        if self.guests < _GUESTS:
            return False
        self.loop.remove(listening.fileno())
        self.loop.later(self.guests_since + _PAUSE - now, lambda: self._listen_on(listening))
        return True

    def _make_room(self, uid: int) -> bool:
        """End the connection that has been without a message for longest; among those that are not of a trusted user, its own only."""
        idle = [
            c for c in self.clients if c.counted and c.lmtp.rest and not (c.out or c.half) and (uid in self.limits.trusted or c.uid == uid)
        ]
        oldest = min(idle, key=lambda client: client.deadline, default=None)
        if oldest is None or oldest.deadline - self.loop.now > self.seconds - _IDLE:
            return False
        oldest.lmtp.end("4.3.2 the place is wanted for another connection")
        self._flush(oldest)
        self._over(oldest)
        return True

    def _begin(self, sock: socket.socket, uid: int) -> None:
        self.serial += 1
        client = Client(sock, uid, Lmtp(self.hostname, self.message_octets), self.serial)
        self.clients.add(client)
        if watch.tap is not None:
            note("Connected", client.id, {"uid": uid}, way="in", peer="client")
        self.loop.add(sock.fileno(), lambda events: self._ready(client, events))
        refusal = self.limits.take(uid)
        if refusal and self._make_room(uid):
            refusal = self.limits.take(uid)
        client.counted = not refusal
        if refusal:
            client.lmtp.take_out()
            client.lmtp.end(refusal)
        self._progress(client)

    def _ready(self, client: Client, events: int) -> None:
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
            client.lmtp.feed(data)
        self._progress(client)

    def _progress(self, client: Client) -> None:
        """Do what the client's octets ask for, as far as that goes now."""
        lmtp = client.lmtp
        while not (client.transaction is not None and client.transaction.paused):
            event = lmtp.next()
            if event is None:
                break
            kind = type(event)
            if kind is Content:
                assert client.transaction is not None
                client.transaction.content(event.data)  # type: ignore[union-attr]
            elif kind is Rcpt:
                self._recipient(client, event.address)  # type: ignore[union-attr]
            elif kind is Done:
                assert client.transaction is not None
                client.deadline = self.loop.now + _ANSWER_SECONDS
                client.transaction.done()
            elif kind is Cancelled:
                self._cancel(client)
        ours = lmtp.state == "answering" or (client.transaction is not None and client.transaction.paused)
        client.deadline = self.loop.now + (_ANSWER_SECONDS if ours else self.seconds)
        self._flush(client)

    def _flush(self, client: Client) -> bool:
        """Send what there is to be sent; False where that was the client's end."""
        out = client.out + client.lmtp.take_out()
        if out:
            if watch.tap is not None:
                self._said(client, out[len(client.out) :])
            try:
                sent = client.sock.send(out)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError:
                self._lost(client)
                return False
            client.out = out[sent:]
        if client.lmtp.closing and not client.out:
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
        """The end of a connection that nothing said before has led to, so a replay has to be told."""
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
            transaction.cancel()
            for route in routes:
                self.routes.tidy(route)

    def _sweep(self) -> None:
        """Who is silent too long is told so; who has waited too long for a maildir actor or the kernel has an answer anyway."""
        self.sweeping = self.loop.later(_SWEEP, self._sweep)
        self._hear()
        self._silent_kernel()
        self.routes.sweep()
        for client in [c for c in self.clients if c.deadline < self.loop.now and not c.asking]:
            if client.transaction is not None and (client.lmtp.state == "answering" or client.transaction.paused):
                client.transaction.late()
                self._progress(client)
            else:
                client.lmtp.end("4.4.2 you have said nothing for too long")
                self._flush(client)
                self._over(client)
        if self.taken > _MUCH and self.taken == self.taken_before and not any(c.transaction is not None for c in self.clients):
            self.taken = 0  # a quiet second in the middle of messages would have given nothing back, and counted as if it had
            give_back()
        self.taken_before = self.taken

    def _silent_kernel(self) -> None:
        """Questions that it has not answered in time are answered for it. What it says later of a channel still counts."""
        for request, ask in list(self.asked.items()):
            if ask.due > self.loop.now:
                break
            del self.asked[request]
            if isinstance(ask.asker, Client):
                self._judged(ask.asker, _BUSY, user="")
            else:
                self.routes.refused(ask.asker, _BUSY)

    # -- recipients
    def _recipient(self, client: Client, address: str) -> None:
        user = self.known.get((client.uid, address))
        if user is not None and user in self.routes.by_user:
            if watch.tap is not None:
                note("Known", client.id, {"address": address, "user": user})
            self._judged(client, "", user=user, resume=False)
            return
        look = client.transaction is not None and len(client.transaction.copies) >= _EARLY
        client.asking = self._question(client)
        self.tell(m.Recipient(client.asking, address, client.uid, look=look, lost=False))

    def _question(self, asker: Client | str) -> int:
        number = self.next_number()
        self.asked[number] = Ask(asker, self.loop.now + self.patience)
        return number

    def _ask(self, user: str, copy: Copy) -> None:
        """For a channel to that user's actor, in the name of who sent that copy."""
        self.tell(m.Recipient(self._question(user), copy.address, copy.transaction.owner.uid, look=False, lost=True))

    def _judged(self, client: Client, refusal: str, *, user: str, resume: bool = True) -> None:
        """The kernel's word, of now or before, on the client's recipient."""
        client.asking = 0
        lmtp = client.lmtp
        if refusal:
            lmtp.recipient(refusal, taken=False)
        else:
            if client.transaction is None:
                client.transaction = self._transaction(client)
            client.transaction.add(lmtp.recipients[-1], user)
            lmtp.recipient("2.1.5 ok")
        if resume:
            self._progress(client)

    def _transaction(self, client: Client) -> Transaction:
        def answer(index: int, text: str, taken: bool) -> None:
            client.lmtp.answer(index, text, taken=taken)
            if client.lmtp.state != "answering":
                client.transaction = None
            self._resume(client)

        return Transaction(client, client.lmtp.sender or "", self.next_number, self.routes.want, answer, client.lmtp.announced)

    def _resume(self, client: Client) -> None:
        """Something a client waited for has come: go on with it, before the loop waits again."""

        def resume() -> None:
            if client in self.clients:
                self._progress(client)

        self.loop.soon(resume)

    # -- from the kernel
    def lost(self, message: Message) -> None:
        super().lost(message)
        if isinstance(message, m.Maildrop):
            self._no_maildrop(m.NoMaildrop(message.request, "4.3.2", "the server is full now, try again later"), [])

    def _maildrop(self, message: m.Maildrop, fds: list[int]) -> None:
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
            self._judged(asker, "", user=user)
        else:
            self.routes.found(asker)

    def _no_maildrop(self, message: m.NoMaildrop, fds: list[int]) -> None:
        del fds
        ask = self.asked.pop(message.request, None)
        text = f"{message.status} {message.text}"
        if ask is not None and isinstance(ask.asker, Client):
            self._judged(ask.asker, text, user="")
        elif ask is not None:
            self.routes.refused(str(ask.asker), text)

    def _anew(self, message: m.Anew, fds: list[int]) -> None:
        """The user table has changed."""
        del message, fds
        self.known.clear()

    # -- the end
    def stop(self, seconds: int) -> None:
        """No more clients; messages under way may end."""
        self.stopping = True
        for sock in self.listening:
            self.loop.remove(sock.fileno())
            sock.close()
        self.listening.clear()
        self.loop.later(max(0.1, seconds - 1), self.end)
        for client in list(self.clients):
            if client.lmtp.state == "command":
                client.lmtp.end("4.3.2 the service ends")
                self._flush(client)
        self._done_stopping()

    def _done_stopping(self) -> None:
        if self.stopping and not self.clients:
            self.end()


def main(boot: Boot) -> None:
    """Become the mda."""
    Mda(boot).begin()
