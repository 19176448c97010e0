"""Be a gate (isolation = "connection"): accept connections, and fork a listener process for each client from a warm image.

It has the keys in memory and the bounds in force, and takes no octet of a client but a PROXY header. A child closes all that is not
its own, locks itself in as a listener, and only then speaks with its client (single_listener.py). What it speaks with the kernel and
auth on was sent ahead, as a *seat* (kernel/supervisor/gates.py). Clients have their seats by turns of their addresses, a few in a turn of
the loop; where none is left, they wait for one here.

A client of TLS speaks first: until its first words are whole, it costs a socket here and no process.
"""

import os
import resource
import select
import socket
from collections import deque
from typing import NamedTuple, NoReturn

from popkernel.actors.listener.acceptor import Acceptor, read_keys
from popkernel.actors.listener.admission import Admission
from popkernel.actors.listener.limits import TOO_MANY, TOO_MANY_ADDRESS, TOO_MANY_HANDSHAKES, group
from popkernel.actors.listener.rehearsal import rehearse
from popkernel.actors.listener.single_listener import SingleListener, configuration
from popkernel.kernel.decisions import gate_room
from popkernel.kernel.runtime.actor import SOFTWARE, TEMPFAIL, Actor, Boot, become, hard_limit
from popkernel.kernel.runtime.channel import Message
from popkernel.kernel.runtime.child_process import do_and_leave
from popkernel.kernel.runtime.loop import READ, Timer
from popkernel.kernel.runtime.memory import keep_memory
from popkernel.kernel.sandbox import lock as sandbox
from popkernel.kernel.spawner.children import Brood
from popkernel.proto import messages as m
from popkernel.proto.access.fairness import Fair
from popkernel.proto.topology import actor as row_of
from popkernel.proto.trace.session_names import listener_name, session_number

# Listeners forked in a turn of the loop, which takes 64 connections. A fork takes milliseconds: after more of them the system's queue of
# connections, in which thousands may wait, would be emptied more slowly than a flood fills it, and an honest client waits at its end.
_FORKS = 8
_REFUSING = 64  # connections at a time that are told why they are not served; more are closed without a word
_GRACE = 5.0  # seconds such a one has
_END_SECONDS = 10.0  # that a listener may stay when its client's time is over: it says goodbye
_PASSING = 0.25  # seconds a full house may turn out to be one whose guest is just leaving: a client sees its end before the gate can
_ONCE: int = getattr(select, "EPOLLET", 0)  # told once of what has come, epoll(7); without it the first octet is enough
_HEAD, _HANDSHAKE = 5, 22  # octets of a TLS record's head, and the kind of a record that a client begins with, RFC 8446 section 5.1
_RECORD = 16384


class Guest:
    """A connection that was taken: `sock` until it has its listener, from then on `session`."""

    __slots__ = ("came", "host", "number", "port", "refused", "session", "sock", "timer", "tls")

    def __init__(self, number: int, sock: socket.socket, host: str, port: int, *, tls: bool, refused: str, came: float) -> None:
        self.number = number
        self.sock: socket.socket | None = sock
        self.host = host
        self.port = port
        self.tls = tls
        self.refused = refused
        self.came = came
        self.session = 0
        self.timer: Timer | None = None


class Turned(NamedTuple):
    """One that found no room, and waits a moment for somebody's end."""

    host: str
    port: int
    tls: bool
    why: str
    timer: Timer


class Gate(Actor):
    """Takes connections, forks listeners."""

    def __init__(self, boot: Boot) -> None:
        super().__init__(boot, many=True)
        config = boot.config
        self.admission = Admission(self, self._drop)
        self.acceptor = Acceptor(self, self.admission, self._admit)
        self.login_seconds = float(config["login_seconds"])
        self.children = Brood(self.loop, self._exited, self._done)
        self.handlers |= {m.Seat: self._seat, m.Entered: self._entered, m.Kill: self._kill, m.Drain: self._drain}
        served = read_keys(self)
        self.warnings = served.warnings
        row = row_of("listener")
        program = sandbox.compile_promises(row.promises) if boot.sandboxed else None
        theirs = configuration({**config, "die_with_parent": self.children.die_with_parent}, served)
        rehearse(theirs, sandboxed=boot.sandboxed)
        self.listener = SingleListener(
            Boot(row.name, boot.channel, boot.uid, boot.gid, theirs, sandboxed=boot.sandboxed, program=program),
        )
        self.serial = 0
        self.guests: dict[int, Guest] = {}
        self.seated: dict[int, Guest] = {}  # by session
        self.seats: deque[tuple[int, int]] = deque()  # session, and the descriptor of its listener's channel
        self.seating = False  # whether seats are about to be taken
        self.unseated: Fair[int, Guest] = Fair()  # they are to have a listener
        self.turned: dict[socket.socket, Turned] = {}
        self.refusing = 0
        self.open = self.draining = False

    def begin(self) -> NoReturn:
        """Lock in, say hello, serve."""
        self.acceptor.take_sockets()
        hard = min(row_of("kernel").nofile, hard_limit(resource.RLIMIT_NOFILE))
        self.lock(nofile=self.admission.most + 256)
        keep_memory(1 << 20)  # children inherit it
        self.children.begin()
        self.connect()
        for text in self.warnings:
            self.log(4, text)
        self.admission.fit(hard, gate_room.sessions(hard, int(self.boot.config["listeners"])))
        self.run()

    def sessions(self) -> int:
        """Connections, logged in or not."""
        return len(self.guests)

    # -- clients come
    def _admit(self, sock: socket.socket, host: str, port: int, tls: bool, refused: str) -> None:
        if refused in (TOO_MANY, TOO_MANY_ADDRESS) and len(self.turned) < _REFUSING:
            timer = self.loop.later(_PASSING, lambda: self._turn_away_after_all(sock))
            self.turned[sock] = Turned(host, port, tls, refused, timer)
        else:
            self._take_in(sock, host, port, tls=tls, refused=refused)

    def _turn_away_after_all(self, sock: socket.socket) -> None:
        one = self.turned.pop(sock)
        self._take_in(sock, one.host, one.port, tls=one.tls, refused=one.why)

    def _room_again(self) -> None:
        """Somebody has gone."""
        for sock, one in list(self.turned.items()):
            if not self.admission.limits.come(one.host, self.loop.now):
                del self.turned[sock]
                one.timer.cancel()
                self._take_in(sock, one.host, one.port, tls=one.tls, refused="")

    def _take_in(self, sock: socket.socket, host: str, port: int, *, tls: bool, refused: str) -> None:
        if refused and (self.refusing >= _REFUSING or not self.admission.limits.room_to_shake()):
            sock.close()
            return
        self.serial += 1
        guest = Guest(self.serial, sock, host, port, tls=tls, refused=refused, came=self.loop.now)
        self.guests[guest.number] = guest
        if refused:
            self.refusing += 1
        else:
            self.admission.limits.waits(guest.number, host, self.loop.now)
        guest.timer = self.loop.later(_GRACE if refused else self.login_seconds, lambda: self._cut(guest, "logged in too slowly"))
        if tls:
            self.loop.add(sock.fileno(), lambda _: self._speaks(guest, sock), READ | _ONCE)
        else:
            self._ask_for_seat(guest)

    def _speaks(self, guest: Guest, sock: socket.socket) -> None:
        """A client of TLS has begun, or gone."""
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
            self._cut(guest, "connection lost")
        else:
            self._ask_for_seat(guest)

    def _may_shake(self, guest: Guest) -> bool:
        """A client that gets a process counts as one that shakes hands, until it has logged in: only its listener sees more."""
        room = bool(guest.refused) or self.admission.shake(guest.number, guest.host)
        if not room:
            self._cut(guest, TOO_MANY_HANDSHAKES)
        return room

    def _drop(self, session: int, why: str) -> None:
        self._cut(self.guests[session], why)

    # -- seats
    def _seat(self, message: m.Seat, fds: list[int]) -> None:
        self.seats.append((message.session, fds[0]))
        self._call_to_seats()
        if not self.open and not self.draining:
            self.open = True
            self.acceptor.begin()

    def lost(self, message: Message) -> None:
        """A seat whose channel had no room here is given back: the kernel sends another."""
        super().lost(message)
        if isinstance(message, m.Seat):
            self.tell(m.Exited(listener_name(message.session), os.getpid(), TEMPFAIL << 8))

    def _ask_for_seat(self, guest: Guest) -> None:
        """Give a client its listener at the end of this turn, or when it has its turn among those that wait for one."""
        self.unseated.put(group(guest.host, self.admission.limits.bounds.prefix_v6), guest.number, guest)
        self._call_to_seats()

    def _call_to_seats(self) -> None:
        if self.seats and self.unseated and not self.seating:
            self.seating = True
            self.loop.soon(self._take_seats)

    def _take_seats(self) -> None:
        """For some of those that wait: forked one right after the other, for what this process writes to in between, it copies anew."""
        self.seating = False
        taken: list[tuple[Guest, int, int]] = []
        while self.seats and self.unseated and len(taken) < _FORKS:
            guest = self.unseated.take()[1]
            if self._may_shake(guest):
                taken.append((guest, *self.seats.popleft()))
        begun = []
        for guest, session, channel in taken:
            if guest.sock is None or guest.number not in self.guests:  # it made room for one behind it
                self.seats.append((session, channel))
            elif self._fork(guest, guest.sock, session, channel):
                begun.append((guest, guest.sock, session, channel))
        for guest, sock, session, channel in begun:
            self._sits(guest, sock, session, channel)
        if self.seats and self.unseated:
            self.loop.later(0.0, self._call_to_seats)  # in the next turn, which takes connections first

    def _fork(self, guest: Guest, sock: socket.socket, session: int, channel: int) -> bool:
        try:
            pid = self.children.fork(listener_name(session))
        except OSError as error:
            self.seats.appendleft((session, channel))
            self.acceptor.complain(f"no more listeners can be forked: {error.strerror}")
            self._cut(guest, "no process for it")
            return False
        if pid == 0:
            do_and_leave(lambda: self._become(guest, sock, session, channel), SOFTWARE)
        return True

    def _sits(self, guest: Guest, sock: socket.socket, session: int, channel: int) -> None:
        """It has its listener, and this process keeps the count."""
        os.close(channel)
        sock.close()
        guest.sock, guest.session = None, session
        self.seated[session] = guest
        if guest.timer is not None:
            guest.timer.cancel()
        left = _GRACE if guest.refused else guest.came + self.login_seconds - self.loop.now
        guest.timer = self.loop.later(max(0.0, left) + _END_SECONDS, lambda: self._cut(guest, "its listener did not end"))

    def _become(self, guest: Guest, sock: socket.socket, session: int, channel: int) -> NoReturn:
        """In the child: lose every descriptor that is not its own, then be the listener."""
        below, above = sorted((sock.fileno(), channel))
        for first, end in ((3, below), (below + 1, above), (above + 1, self.nofile)):
            if first < end:  # closerange(n, n) closes all
                os.closerange(first, end)
        left = _GRACE if guest.refused else guest.came + self.login_seconds - self.loop.now
        address = (guest.host, guest.port)
        tls, refused, left = guest.tls, guest.refused, max(0.1, left)
        become(self.listener.boot, lambda _: self.listener.serve(session, channel, sock, address, tls=tls, refused=refused, left=left))

    def _entered(self, message: m.Entered, fds: list[int]) -> None:
        del fds
        guest = self.seated.get(message.session)
        if guest is not None:
            self.admission.limits.entered(guest.number)
            self.admission.limits.shaken(guest.number)
            if guest.timer is not None:
                guest.timer.cancel()

    # -- clients go
    def _cut(self, guest: Guest, why: str) -> None:
        """End a connection, its listener with it."""
        where = f"[{guest.host}]:{guest.port}" if ":" in guest.host else f"{guest.host}:{guest.port}"
        if guest.sock is None:
            milliseconds = int((self.loop.now - guest.came) * 1000)
            self.tell(m.Ended(guest.session, "", where, why, 0, 0, 0, 0, 0, 0, milliseconds))
            self.children.kill(listener_name(guest.session))
        else:
            self.loop.remove(guest.sock.fileno())
            guest.sock.close()
            self.log(7, f'session over: address={where} why="{why}" user=-')  # as the kernel's line of those that had a listener
        self._forget(guest)
        self._done()

    def _forget(self, guest: Guest) -> None:
        """Take it out of all counts."""
        if self.guests.pop(guest.number, None) is None:
            return
        self.seated.pop(guest.session, None)
        self.unseated.remove(guest.number)
        if guest.timer is not None:
            guest.timer.cancel()
        if guest.refused:
            self.refusing -= 1
        else:
            self.admission.limits.gone(guest.host)
        self.admission.limits.entered(guest.number)
        self.admission.limits.shaken(guest.number)
        if self.turned:
            self._room_again()

    # -- children
    def _exited(self, name: str, pid: int, status: int) -> None:
        self.tell(m.Exited(name, pid, status))
        guest = self.seated.get(session_number(name.partition(".")[2]))
        if guest is not None:
            self._forget(guest)

    def _kill(self, message: m.Kill, fds: list[int]) -> None:
        del fds
        self.children.kill(message.name)

    # -- the end
    def _drain(self, message: m.Drain, fds: list[int]) -> None:
        """Another takes connections now; who was taken here is served to the end."""
        del message, fds
        self._leave()

    def stop(self, seconds: int) -> None:
        """The kernel tells the listeners themselves; who has none yet is not served any more."""
        self._leave()
        for guest in [g for g in self.guests.values() if g.sock is not None]:
            self._cut(guest, "the service ends")
        self.loop.later(max(0.1, seconds - 0.5), self.end)
        self._done()

    def _leave(self) -> None:
        self.draining, self.open = True, False
        self.acceptor.close()
        for sock, one in self.turned.items():
            one.timer.cancel()
            sock.close()
        self.turned.clear()
        self._done()

    def _done(self) -> None:
        if self.draining and not self.guests and not self.children:
            self.end()


def _whole(data: bytes) -> bool:
    """Whether a client's first record has come, or what is none: it has a listener tell it so."""
    octets = int.from_bytes(data[3:_HEAD], "big")
    return data[0] != _HANDSHAKE or octets > _RECORD or (len(data) >= _HEAD and len(data) >= _HEAD + octets)


def main(boot: Boot) -> None:
    """Become the gate."""
    Gate(boot).begin()
