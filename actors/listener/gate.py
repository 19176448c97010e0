"""Run a gate (isolation = "connection"): accept connections, and fork a warm listener for each client.

It has the keys in memory and applies the limits. Of a client's octets it reads only a PROXY header. A child
closes all descriptors but its own, locks its sandbox as a listener, and only then talks to its client
(single_listener.py). The child's channels to the kernel and auth are sent to the gate beforehand, as a *seat*
(kernel/supervisor/gates.py). Clients get seats in turns of their addresses, a few in each turn of the loop.
If there is none, they wait here.

A TLS client sends first: until its first record is complete, it costs a socket here and no process.
"""

import os
import resource
import select
import socket
from collections import deque
from typing import NamedTuple, NoReturn

from popkernel.actors.listener.acceptor import Acceptor, read_keys
from popkernel.actors.listener.admission import Admission
from popkernel.actors.listener.limits import TOO_MANY, TOO_MANY_ADDRESS, group
from popkernel.actors.listener.rehearsal import rehearse
from popkernel.actors.listener.session.client_faults import silent_fault
from popkernel.actors.listener.single_listener import SingleListener, configuration
from popkernel.kernel.decisions import gate_room
from popkernel.kernel.runtime.actor import SOFTWARE, TEMPFAIL, Actor, Boot, become, hard_limit
from popkernel.kernel.runtime.channel import Message
from popkernel.kernel.runtime.child_process import do_and_leave
from popkernel.kernel.runtime.loop import READ, Timer
from popkernel.kernel.runtime.memory import keep_memory
from popkernel.kernel.sandbox import lock as sandbox
from popkernel.kernel.spawner.children import Children
from popkernel.proto import messages as m
from popkernel.proto.access.fairness import Fair
from popkernel.proto.access.networks import with_port
from popkernel.proto.log_levels import DEBUG, NOTICE
from popkernel.proto.topology import actor as row_of
from popkernel.proto.trace.session_names import listener_name, session_number

# Listeners forked in a turn of the loop, which accepts 64 connections. A fork takes milliseconds. With more
# forks a flood would fill the system's queue of connections, which may hold thousands, faster than it is
# emptied, and an honest client at its end would wait.
_FORKS = 8
_REFUSING = 64  # connections at a time that get an error reply; more are closed without one
_GRACE = 5.0  # seconds such a connection has
_END_SECONDS = 10.0  # seconds a listener may stay after its client's time is over, to send its last reply
# seconds to wait for a place when all are taken: a client sees the end of its old connection before the gate
# does
_PASSING = 0.25
# report each arrival once, epoll(7); without it the first octet is enough
_ONCE: int = getattr(select, "EPOLLET", 0)
# octets of a TLS record's head, and the type of a handshake record, RFC 8446 section 5.1
_HEAD, _HANDSHAKE = 5, 22
_RECORD = 16384


class Client:
    """An accepted connection: `sock` until it has its listener, then `session`."""

    __slots__ = ("came", "host", "number", "port", "refused", "session", "sock", "timer", "tls")

    def __init__(
        self, number: int, sock: socket.socket, host: str, port: int, *, tls: bool, refused: str, came: float
    ) -> None:
        self.number = number
        self.sock: socket.socket | None = sock
        self.host = host
        self.port = port
        self.tls = tls
        self.refused = refused
        self.came = came
        self.session = 0
        self.timer: Timer | None = None


class Waiting(NamedTuple):
    """A connection that found no place, and waits a moment for one."""

    host: str
    port: int
    tls: bool
    why: str
    timer: Timer


class Gate(Actor):
    """Accept connections and fork a listener for each."""

    def __init__(self, boot: Boot) -> None:
        super().__init__(boot, many=True)
        config = boot.config
        self.admission = Admission(self, self._drop)
        self.admission.begin = self._begin_handshake
        self.admission.stalled = lambda _: True
        self.acceptor = Acceptor(self, self.admission, self._admit)
        self.login_seconds = float(config["login_seconds"])
        self.children = Children(self.loop, self._exited, self._done)
        self.handlers |= {
            m.GateSeat: self._seat,
            m.GateSeatLogin: self._logs_in,
            m.GateSeatLoggedIn: self._entered,
            m.ProcessKill: self._kill,
            m.ServiceDrain: self._service_drain,
            m.ListenerDrain: self._drain,
        }
        served = read_keys(self)
        self.warnings = served.warnings
        row = row_of("listener")
        program = sandbox.compile_promises(row.promises) if boot.sandboxed else None
        theirs = configuration({**config, "die_with_parent": self.children.die_with_parent}, served)
        self.children.prepare()
        rehearse(theirs, sandboxed=boot.sandboxed)
        self.listener = SingleListener(
            Boot(
                row.name, boot.channel, boot.uid, boot.gid, theirs, sandboxed=boot.sandboxed, program=program
            ),
        )
        self.serial = 0
        self.clients: dict[int, Client] = {}
        self.seated: dict[int, Client] = {}  # by session
        # session number, and the descriptor of its listener's channel
        self.seats: deque[tuple[int, int]] = deque()
        self.seating = False  # _take_seats is scheduled
        self.unseated: Fair[int, Client] = Fair()  # connections that wait for a listener
        self.waiting: dict[socket.socket, Waiting] = {}
        self.refusing = 0
        self.open = self.draining = False

    def begin(self) -> NoReturn:
        """Lock the sandbox, greet the kernel, serve."""
        self.acceptor.take_sockets()
        self.children.tried()
        hard = min(row_of("kernel").nofile, hard_limit(resource.RLIMIT_NOFILE))
        self.lock(nofile=self.admission.most + 256)
        keep_memory(1 << 20)  # children inherit it
        self.children.begin()
        self.connect("certificate.doubt", self.warnings)
        self.children.report(self.boot.name, self.log)
        self.admission.fit(hard, gate_room.sessions(hard, int(self.boot.config["listeners"])))
        self.run()

    def sessions(self) -> int:
        """Return the number of connections, logged in or not."""
        return len(self.clients)

    def _report(self, message: m.CountersRequest, fds: list[int]) -> None:
        self.admission.tell()
        super()._report(message, fds)

    # -- clients come
    def _admit(self, sock: socket.socket, host: str, port: int, tls: bool, refused: str) -> None:
        if refused in (TOO_MANY, TOO_MANY_ADDRESS) and len(self.waiting) < _REFUSING:
            timer = self.loop.later(_PASSING, lambda: self._refuse_after_wait(sock))
            self.waiting[sock] = Waiting(host, port, tls, refused, timer)
        else:
            self._take_in(sock, host, port, tls=tls, refused=refused)

    def _refuse_after_wait(self, sock: socket.socket) -> None:
        one = self.waiting.pop(sock)
        self._take_in(sock, one.host, one.port, tls=one.tls, refused=one.why)

    def _retry_waiting(self) -> None:
        """Admit waiting connections that now find a place."""
        for sock, one in list(self.waiting.items()):
            if not self.admission.limits.come(one.host, self.loop.now):
                del self.waiting[sock]
                one.timer.cancel()
                self._take_in(sock, one.host, one.port, tls=one.tls, refused="")

    def _take_in(self, sock: socket.socket, host: str, port: int, *, tls: bool, refused: str) -> None:
        if refused and (self.refusing >= _REFUSING or not self.admission.limits.room_to_shake()):
            sock.close()
            return
        self.serial += 1
        client = Client(self.serial, sock, host, port, tls=tls, refused=refused, came=self.loop.now)
        self.clients[client.number] = client
        if refused:
            self.refusing += 1
        else:
            self.admission.limits.waits(client.number, host, self.loop.now)
        client.timer = self.loop.later(
            _GRACE if refused else self.login_seconds, lambda: self._cut(client, "logged in too slowly")
        )
        if tls:
            self.loop.add(sock.fileno(), lambda _: self._first_octets(client, sock), READ | _ONCE)
        else:
            self._ask_for_seat(client)

    def _first_octets(self, client: Client, sock: socket.socket) -> None:
        """Read ahead what a TLS client sends: ask for a seat when its first record is complete."""
        try:
            there = sock.recv(_HEAD + _RECORD if _ONCE else 1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            there = b""
        if there and _ONCE and not _whole(there):
            return
        self.loop.remove(sock.fileno())
        if not there:
            self._cut(client, "connection lost")
        else:
            self._ask_for_seat(client)

    def _may_shake(self, client: Client) -> bool:
        """Count a client that gets a process as one in its TLS handshake, until it logs in.

        Only its listener sees when the handshake ends. If there are too many, it waits here for its turn.
        """
        return bool(client.refused) or self.admission.shake(client.number, client.host)

    def _begin_handshake(self, number: int) -> None:
        """Ask for a seat for a client that waited for its turn to shake hands."""
        self._ask_for_seat(self.clients[number])

    def _drop(self, session: int, why: str) -> None:
        self._cut(self.clients[session], why)

    # -- seats
    def _seat(self, message: m.GateSeat, fds: list[int]) -> None:
        self.seats.append((message.session, fds[0]))
        self._schedule_seats()
        if not self.open and not self.draining:
            self.open = True
            self.acceptor.begin()

    def lost(self, message: Message) -> None:
        """Give back a seat whose channel found no free descriptor: the kernel sends another."""
        super().lost(message)
        if isinstance(message, m.GateSeat):
            self.send(m.ProcessExited(listener_name(message.session), os.getpid(), TEMPFAIL << 8))

    def _ask_for_seat(self, client: Client) -> None:
        """Queue a client for a seat; seats are taken at the end of this turn."""
        self.unseated.put(group(client.host, self.admission.limits.bounds.prefix_v6), client.number, client)
        self._schedule_seats()

    def _schedule_seats(self) -> None:
        if self.seats and self.unseated and not self.seating:
            self.seating = True
            self.loop.soon(self._take_seats)

    def _take_seats(self) -> None:
        """Fork listeners for some of those that wait.

        All forks come one after the other: pages this process writes to in between would be copied for each.
        Before them, the kernel is told who the clients are.
        """
        self.seating = False
        taken: list[tuple[Client, int, int]] = []
        while self.seats and self.unseated and len(taken) < _FORKS:
            client = self.unseated.take()[1]
            if self._may_shake(client):
                taken.append((client, *self.seats.popleft()))
        if self.kernel is not None:
            self.kernel.send_all(
                [
                    m.GateSeatTaken(session, with_port(client.host, client.port))
                    for client, session, _ in taken
                ]
            )
        begun = []
        for client, session, channel in taken:
            if client.sock is None or client.number not in self.clients:  # it was dropped for a later one
                self.seats.append((session, channel))
            elif self._fork(client, client.sock, session, channel):
                begun.append((client, client.sock, session, channel))
        for client, sock, session, channel in begun:
            self._hand_over(client, sock, session, channel)
        if self.seats and self.unseated:
            self.loop.later(0.0, self._schedule_seats)  # in the next turn, which accepts connections first

    def _fork(self, client: Client, sock: socket.socket, session: int, channel: int) -> bool:
        try:
            pid = self.children.fork(listener_name(session))
        except OSError as error:
            self.seats.appendleft((session, channel))
            self.acceptor.complain("listener.not_forked", error.strerror or "")
            self._cut(client, "no process for it")
            return False
        if pid == 0:
            do_and_leave(lambda: self._become(client, sock, session, channel), SOFTWARE)
        return True

    def _hand_over(self, client: Client, sock: socket.socket, session: int, channel: int) -> None:
        """Close the descriptors that the child has now, and wait for its end."""
        os.close(channel)
        sock.close()
        client.sock, client.session = None, session
        self.seated[session] = client
        if client.timer is not None:
            client.timer.cancel()
        left = _GRACE if client.refused else client.came + self.login_seconds - self.loop.now
        client.timer = self.loop.later(
            max(0.0, left) + _END_SECONDS, lambda: self._cut(client, "its listener did not end")
        )

    def _become(self, client: Client, sock: socket.socket, session: int, channel: int) -> NoReturn:
        """Run in the child: close every descriptor that is not its own, then run the listener."""
        below, above = sorted((sock.fileno(), channel))
        for first, end in ((3, below), (below + 1, above), (above + 1, self.nofile)):
            if first < end:  # closerange(n, n) would close all
                os.closerange(first, end)
        left = _GRACE if client.refused else client.came + self.login_seconds - self.loop.now
        address = (client.host, client.port)
        tls, refused, left = client.tls, client.refused, max(0.1, left)
        become(
            self.listener.boot,
            lambda _: self.listener.serve(
                session, channel, sock, address, tls=tls, refused=refused, left=left
            ),
        )

    def _logs_in(self, message: m.GateSeatLogin, fds: list[int]) -> None:
        """Keep the place of a client that waits for a login; it has said what it had to."""
        del fds
        client = self.seated.get(message.session)
        if client is not None and message.begun:
            self.admission.limits.serve(client.number)
            self.admission.shaken(client.number)
        elif client is not None:
            self.admission.limits.waits(client.number, client.host, self.loop.now)

    def _entered(self, message: m.GateSeatLoggedIn, fds: list[int]) -> None:
        del fds
        client = self.seated.get(message.session)
        if client is not None:
            self.admission.limits.entered(client.number)
            self.admission.shaken(client.number)
            if client.timer is not None:
                client.timer.cancel()

    # -- clients go
    def _cut(self, client: Client, why: str) -> None:
        """End a connection, and its listener."""
        where = with_port(client.host, client.port)
        if client.sock is None:
            milliseconds = int((self.loop.now - client.came) * 1000)
            self.send(m.ConnectionEnded(client.session, "", where, why, 0, 0, 0, 0, 0, 0, milliseconds))
            self.children.kill(listener_name(client.session))
        else:
            self.loop.remove(client.sock.fileno())
            client.sock.close()
            # the kernel logs the same line for connections with a listener
            self.log(DEBUG, "session.over", address=where, why=why, user="")
            reason = silent_fault(self.loop.now - client.came) if client.tls and not client.refused else ""
            if reason:
                self.log(NOTICE, "tls.failed", address=where, reason=reason)
        self._forget(client)
        self._done()

    def _forget(self, client: Client) -> None:
        """Remove a connection from all counts."""
        if self.clients.pop(client.number, None) is None:
            return
        self.seated.pop(client.session, None)
        self.unseated.remove(client.number)
        if client.timer is not None:
            client.timer.cancel()
        if client.refused:
            self.refusing -= 1
        else:
            self.admission.gone(client.host)
        self.admission.limits.entered(client.number)
        self.admission.shaken(client.number)
        if self.waiting:
            self._retry_waiting()

    # -- children
    def _exited(self, name: str, pid: int, status: int) -> None:
        self.send(m.ProcessExited(name, pid, status))
        client = self.seated.get(session_number(name.partition(".")[2]))
        if client is not None:
            self._forget(client)

    def _kill(self, message: m.ProcessKill, fds: list[int]) -> None:
        del fds
        self.children.kill(message.name)

    # -- the end
    def _service_drain(self, message: m.ServiceDrain, fds: list[int]) -> None:
        del fds
        self.admission.drain(on=message.on)

    def _drain(self, message: m.ListenerDrain, fds: list[int]) -> None:
        """Accept no more; serve the accepted connections to their end."""
        del message, fds
        self._leave()

    def stop(self, seconds: int) -> None:
        """Close connections that have no listener yet. The kernel stops the listeners itself."""
        self._leave()
        for client in [g for g in self.clients.values() if g.sock is not None]:
            self._cut(client, "the service ends")
        self.loop.later(max(0.1, seconds - 0.5), self.end)
        self._done()

    def _leave(self) -> None:
        self.draining, self.open = True, False
        self.acceptor.close()
        for sock, one in self.waiting.items():
            one.timer.cancel()
            sock.close()
        self.waiting.clear()
        self._done()

    def _done(self) -> None:
        if self.draining and not self.clients and not self.children:
            self.end()


def _whole(data: bytes) -> bool:
    """Return whether a client's first record is complete, or is no TLS: then its listener answers it."""
    octets = int.from_bytes(data[3:_HEAD], "big")
    return data[0] != _HANDSHAKE or octets > _RECORD or (len(data) >= _HEAD and len(data) >= _HEAD + octets)


def main(boot: Boot) -> None:
    """Run as the gate."""
    Gate(boot).begin()
