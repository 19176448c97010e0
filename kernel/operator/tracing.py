"""Who watches, and what they are shown: the kernel's side of the taps.

A viewer is a client of the control socket. What it asked for decides which actors are told to Watch; what they tap comes here over a
channel each, is matched against what every viewer wants, and is pushed as one msgpack map a frame. A viewer that does not read
loses frames, and is told how many. Nothing here is on the way of a message unless somebody watches.
"""

import contextlib
import errno
import os
import socket
import time
from collections.abc import Callable
from typing import Any

import msgpack
from popkernel.kernel.decisions import leases
from popkernel.kernel.decisions.deliveries import Deliveries
from popkernel.kernel.decisions.recorded_state import freeze
from popkernel.kernel.operator.control import Client
from popkernel.kernel.operator.viewers import Viewer, Wish, WishError, named, row_of
from popkernel.kernel.processes import Exit, Process, Processes
from popkernel.kernel.runtime.channel import Channel, Message, codec, pair, watch
from popkernel.kernel.runtime.loop import Loop
from popkernel.proto import messages as m
from popkernel.proto import topology
from popkernel.proto.bus.zmtp import Reader, ZmtpError
from popkernel.proto.codec import BadMessageError
from popkernel.proto.trace.redaction import shown

__all__ = ["Taps"]

_WATCHED = frozenset(e.source for e in topology.EDGES if e.target == "tap")  # rows that can be told to Watch
_TURN = 256 * 1024  # octets read from one actor's tap before others get their turn
_LISTENERS = 1 << 40  # sessions from here on are a listener's, and one user's; below, an LMTP connection's, for any number of them
_MOST_KNOWN = 20000  # sessions whose user is remembered
_DEEPEST = 8  # fields within fields; who made them may be anybody by now, and what shows them walks through them
# Others are the kernel's own.
_NOTES = frozenset({"Settings", "Checked", "Full", "Clock", "Random", "Timer", "Unsent", "Queued", "Turn", "Known"})
_CLIENTS = (("client", "listener"), ("listener", "client"), ("client", "mda"), ("mda", "client"))  # edges that no actor is at the end of
_PEERS = {
    row: frozenset({"client", *(end for e in topology.EDGES if row in (e.source, e.target) for end in (e.source, e.target))})
    for row in _WATCHED
}
_DECISIONS = {
    leases.Core: (
        "awaits", "granted", "closed", "ended", "listener_gone", "maildir_gone", "sweep", "ending", "retire_all", "died", "parked",
        "woken", "sleeper_gone", "login_over", "short",
    ),
    Deliveries: ("recipient", "busy", "maildir_gone", "mda_gone"),
}


def _too_deep(value: Any, left: int) -> bool:
    inner = value.values() if type(value) is dict else value
    return left == 0 or any(_too_deep(v, left - 1) for v in inner if type(v) is dict or type(v) is list)


class TapEnd:
    """The kernel's end of one actor's tap."""

    def __init__(self, loop: Loop, sock: socket.socket, process: Process, taps: "Taps") -> None:
        self._loop = loop
        self._sock = sock
        self._process = process
        self._taps = taps
        incoming = codec(process.kind, "tap")
        self._decode = incoming.decode
        self._reader = Reader(incoming.octets)
        self.told: set[Viewer] = set()  # who has had its Settings; those of later concern only viewers that came later
        self.closed = False
        loop.add(sock.fileno(), lambda _: self.read(_TURN))

    def read(self, most: int) -> None:
        """Take what is there, up to so many octets."""
        while most > 0 and not self.closed:
            try:
                data = self._sock.recv(65536)
                if not data:  # maybe before it showed anything: a listener's seat that nobody took
                    self.close()
                    return
                frames = self._reader.feed(data)
                for frame in frames:
                    self._take(self._decode(frame))
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EINTR):
                    self.close()
                return
            except (ZmtpError, BadMessageError, ValueError, msgpack.exceptions.UnpackException) as error:
                self.close()
                self._taps.bad_tap(self._process, str(error))
                return
            most -= len(data)

    def _take(self, message: Message) -> None:
        assert isinstance(message, m.Tapped)
        fields = msgpack.unpackb(message.fields, max_ext_len=0)
        if type(fields) is not dict or _too_deep(fields, _DEEPEST):
            raise BadMessageError("Tapped.fields: no map, or too deep a one")
        self._check(message.way, message.peer, message.name)
        frame = {
            "time": message.time, "turn": message.turn, "actor": self._process.name, "way": message.way, "peer": message.peer,
            "name": message.name, "session": message.session, "octets": message.octets, "fields": fields,
        }
        if message.ending:
            frame["ending"] = True
        if message.lost:
            self._taps.missed(self._process.name, message.lost)
        if message.name == "Settings" and message.way == "note":
            self._taps.set_scene(self, frame)
        else:
            self._taps.pass_on(frame)

    def _check(self, way: str, peer: str, name: str) -> None:
        """It may show what passes at itself, and no events that only the kernel can know."""
        if way == "note":
            good = name in _NOTES and not peer
        else:
            good = way in ("in", "out") and row_of(peer) in _PEERS[self._process.kind]
        if not good:
            raise BadMessageError(f"Tapped: {way} {name} of {peer!r} is nothing that it can show")

    def close(self) -> None:
        """The end. Twice is once."""
        if not self.closed:
            self.closed = True
            self._loop.remove(self._sock.fileno())
            self._sock.close()


class Taps:
    """All viewers and all taps."""

    def __init__(
        self, loop: Loop, processes: Processes, core: leases.Core, deliveries: Deliveries, *, version: str, nofile: int,
        left: Callable[[], int],
    ) -> None:
        """`nofile`: descriptors that the kernel may have; `left`: how many of them it may still take."""
        self._loop = loop
        self._processes = processes
        self._core = core
        self._deliveries = deliveries
        self._version = version
        self._nofile = nofile
        self._left = left
        self._viewers: list[Viewer] = []
        self._ends: dict[str, TapEnd] = {}
        self._known: dict[int, str] = {}  # session -> user
        self._homes: dict[int, str] = {}  # session -> listener
        self._decisions = Decisions(core, deliveries, self)
        self._digest = topology.digest()  # now, while what it imports can still be read

    def __len__(self) -> int:
        return len(self._ends)

    # -- viewers
    def attach(self, client: Client, request: dict[str, Any]) -> None:
        """A client asks to watch; it is answered once, and pushed frames from then on."""
        try:
            wish = Wish(request)
            if wish.payload and client.uid != 0:
                raise WishError("mail content is shown to root only: ask as root, or without --payload", "noperm")
            self._check(wish)
            self._fits(wish)
        except WishError as error:
            client.answer({"ok": False, "error": str(error), "code": error.code})
            return
        viewer = Viewer(client, wish)
        client.answer(
            {
                "ok": True,
                "topology": self._digest,
                "version": self._version,
                "wall": time.time_ns(),
                "monotonic": time.monotonic_ns(),
                "watches": wish.asked(),
                "running": [p.name for p in self._processes if p.state != "ahead"],
                "awaits": self._awaited(wish),
                **self._maildir(wish),
            }
        )
        for user, key in self._core.leases.items():
            self._known[key.session] = user
            self._homes[key.session] = key.listener
        self._viewers.append(viewer)
        client.on_room = viewer.tell_lost
        client.on_end = lambda: self._detach(viewer)
        self._adjust(viewer)
        if wish.decisions:
            self._state(viewer)

    def _awaited(self, wish: Wish) -> list[str]:
        """Those who will say Settings as soon as they are watched: a viewer that has all of these misses nothing from then on."""
        serving = [p for p in self._processes if p.state in ("serving", "draining")]
        return [p.name for p in serving if p.kind in _WATCHED and wish.watches(p.name) and self._concerns(p, wish)]

    def _concerns(self, process: Process, wish: Wish) -> bool:
        """Not so where it serves one session alone, and not the one that is asked for."""
        if wish.session and process.kind == "maildir.{user}":  # one's of whom it is not known yet is not shown
            lease = self._core.leases.get(process.name.removeprefix("maildir."))
            return lease is not None and lease.session == wish.session
        lease = self._core.leases.get(wish.user)
        its = wish.session or (lease.session if lease is not None else 0)
        return not process.session or not (wish.session or wish.user) or process.session == its

    def _maildir(self, wish: Wish) -> dict[str, bytes]:
        """Where the mail of the one user that is watched lies: a recording may take it along."""
        user = wish.user or (wish.actor.removeprefix("maildir.") if wish.actor.startswith("maildir.") else "")
        row = self._core.users.get(user)
        return {} if row is None else {"maildir": os.fsencode(row.maildir)}

    def _check(self, wish: Wish) -> None:
        """Refuse what can never be seen, and say what could."""
        names = ["kernel", "init", *(p.name for p in self._processes if p.state != "ahead")]
        if wish.actor and not any(named(wish.actor, name) for name in names):
            user = wish.actor.removeprefix("maildir.")
            known = user != wish.actor and user in self._core.users
            if user != wish.actor and not known:
                raise WishError(f"no user {user!r} in the user table, so no actor {wish.actor!r}", "nouser")
            if not known and wish.actor not in {row.name.split(".")[0] for row in topology.ACTORS}:
                raise WishError(f"no actor {wish.actor!r} here; there are: {', '.join(sorted(names))}")
        if wish.user and wish.user not in self._core.users:
            raise WishError(f"no user {wish.user!r} in the user table", "nouser")
        edges = [*((e.source, e.target) for e in topology.EDGES if e.target != "tap"), *_CLIENTS]
        if wish.edge and not any(wish.on_edge(*edge) for edge in edges):
            raise WishError(f"no edge {':'.join(wish.edge)!r}; there are: {', '.join(map(':'.join, edges))}")

    def _fits(self, wish: Wish) -> None:
        """A tap is a descriptor for each actor that is watched."""
        new = sum(p.kind in _WATCHED and p.name not in self._ends and wish.watches(p.name) for p in self._processes)
        if new > max(0, self._left()):
            text = f"no room to watch {new} actors at once: the kernel may have {self._nofile} descriptors (RLIMIT_NOFILE); name one"
            raise WishError(text, "tempfail")

    def _detach(self, viewer: Viewer) -> None:
        with contextlib.suppress(ValueError):
            self._viewers.remove(viewer)
        for end in self._ends.values():
            end.told.discard(viewer)
        self._adjust()

    # -- actors
    def _adjust(self, newcomer: Viewer | None = None) -> None:
        """Have those actors watch themselves, and only those, that somebody wants to see."""
        watch.tap = self._own if self._viewers else None
        self._decisions.record(on=bool(self._viewers))
        for process in self._processes:
            self.started(process, newcomer)
        if not self._viewers:
            self._known.clear()
            self._homes.clear()

    def started(self, process: Process, newcomer: Viewer | None = None) -> None:
        """An actor's channel has just been made (or its viewers have changed): Watch comes before anything else.

        For a newcomer it is said once more: what the actor said when others came is no longer so.
        """
        if not self._viewers and not self._ends:
            return
        viewers = [v for v in self._viewers if v.wish.watches(process.name)]
        end = self._ends.get(process.name)
        if process.kind not in _WATCHED:
            return
        if not viewers:
            if end is not None and not end.closed:  # it closes its end, having said all
                process.channel.send(m.Unwatch())
                del self._ends[process.name]
            return
        payload = any(v.wish.payload for v in viewers)
        if end is not None and not end.closed and newcomer not in viewers:
            return
        try:
            mine, its = self._pair()
        except OSError:  # it is not watched; who wants to see it is told that something is missing
            for viewer in viewers:
                viewer.missed()
            return
        if end is None or end.closed:
            self._ends[process.name] = TapEnd(self._loop, mine, process, self)
        else:
            mine.close()  # the actor keeps the tap it has
        with contextlib.suppress(OSError), its:  # no room for what has to wait: its end is the tap's
            process.channel.send(m.Watch(payload), [its.fileno()])

    def _pair(self) -> tuple[socket.socket, socket.socket]:
        """Actors come first: a tap is none of those that have a place in reserve."""
        if self._left() <= 0:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return pair()

    def on_exit(self, process: Process, end: Exit) -> None:
        """A process is no more: what it still had to show is read."""
        tap = self._ends.pop(process.name, None)
        if tap is not None:
            tap.read(1 << 30)
            tap.close()
        self.note("Ended", process.name, how=end.how)

    def bad_tap(self, process: Process, why: str) -> None:
        """An actor does not keep to the rules on its tap."""
        self._processes.on_gone(process.channel, f"{why} (on its tap)")

    # -- frames
    def _own(self, way: str, channel: Channel, message: Message) -> None:
        """The kernel's own tap."""
        if type(message) in (m.Watch, m.Unwatch):
            return
        if way == "gone":
            fields, octets, name = {"why": message[0]}, 0, "Gone"
        else:
            (fields, octets), name = shown(message, payload=False), type(message).__name__
        self.pass_on({
            "time": time.monotonic_ns(), "turn": round(self._loop.now * 1e9), "actor": "kernel",
            "way": "in" if way == "gone" else way, "peer": channel.peer, "name": name,
            "session": int(getattr(message, "session", 0)), "octets": octets, "fields": fields,
        })

    def note(self, what: str, about: str, session: int = 0, **fields: Any) -> None:
        """Something that is no message: an actor began or ended, a lease was given, a message was refused."""
        if self._viewers:
            self.pass_on(self._note(what, about, session, fields))

    def _note(self, what: str, about: str, session: int, fields: dict[str, Any]) -> dict[str, Any]:
        return {
            "time": time.monotonic_ns(),
            "turn": round(self._loop.now * 1e9),
            "actor": "kernel",
            "way": "note",
            "peer": about,
            "name": what,
            "session": session,
            "octets": 0,
            "fields": fields,
        }

    def set_scene(self, end: TapEnd, frame: dict[str, Any]) -> None:
        """An actor's Settings, to those whose story begins with it."""
        for viewer in self._viewers:
            if viewer not in end.told:
                end.told.add(viewer)
                viewer.see(frame, self._known, twin=False)

    def missed(self, actor: str, frames: int) -> None:
        """An actor had no room for some: everybody it was watched for is told, whatever they would have been about."""
        for viewer in self._viewers:
            if viewer.wish.watches(actor):
                viewer.gaps[actor] = viewer.gaps.get(actor, 0) + frames

    def pass_on(self, frame: dict[str, Any]) -> None:
        """To all who want it."""
        session, fields = frame["session"], frame["fields"]
        if session >= _LISTENERS and not frame["actor"].startswith("maildir.") and type(fields.get("user")) is str and fields["user"]:
            self._known[session] = fields["user"]
            if len(self._known) > _MOST_KNOWN:
                del self._known[next(iter(self._known))]
        if frame["name"] == "Granted" and frame["actor"] == "kernel":
            self._homes[session] = str(fields["listener"])
            if len(self._homes) > _MOST_KNOWN:
                del self._homes[next(iter(self._homes))]
        if frame["peer"] == "listener":  # a maildir actor does not know which
            frame["peer"] = self._homes.get(session, "listener")
        other_end = frame["way"] == "out" and (frame["peer"] == "kernel" or frame["peer"] in self._ends)
        for viewer in self._viewers:
            viewer.see(frame, self._known, twin=other_end and viewer.wish.watches(frame["peer"]))

    def decided(self, fields: dict[str, Any]) -> None:
        """For those who record the kernel's own decisions."""
        for viewer in self._viewers:
            if viewer.wish.decisions:
                viewer.push(self._note("Decision", "", 0, fields))

    def _state(self, viewer: Viewer) -> None:
        """What the kernel knows when a recording of it begins."""
        state = {"core": freeze(self._core), "deliveries": freeze(self._deliveries, (leases.Core,))}
        viewer.push(self._note("State", "", 0, state))


class Decisions:
    """Watches the pure rooms of the kernel while somebody records: each outermost call, and what it decided; and who has which lease."""

    def __init__(self, core: leases.Core, deliveries: Deliveries, taps: Taps) -> None:
        self._core = core
        self._deliveries = deliveries
        self._taps = taps
        self._on = False
        self._deep = 0
        self._users: Any = None

    def record(self, *, on: bool) -> None:
        """Put the wrappers around the decisions, or take them off: nobody pays for them when nobody watches."""
        if on == self._on:
            return
        self._on = on
        self._users = self._core.users
        for room in (self._core, self._deliveries):
            for name in _DECISIONS[type(room)]:
                if on:
                    setattr(room, name, self._wrapped(type(room).__name__, name, getattr(room, name)))
                else:
                    delattr(room, name)

    def _wrapped(self, room: str, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if self._deep:
                return method(*arguments)
            self._deep += 1
            try:
                return self._decide(room, name, method, arguments)
            finally:
                self._deep -= 1

        return call

    def _decide(self, room: str, name: str, method: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        core = self._core
        before = dict(core.leases)
        fields = {"room": room, "method": name, "arguments": freeze(list(arguments))}
        if core.users is not self._users:
            self._users = core.users
            fields["users"] = freeze(core.users)
        result = method(*arguments)
        fields["effects"] = freeze(result)
        self._taps.decided(fields)
        if before != core.leases:
            for user, key in before.items():
                if core.leases.get(user) != key:
                    self._taps.note("LeaseOver", f"maildir.{user}", key.session, user=user, listener=key.listener)
            for user, key in core.leases.items():
                if before.get(user) != key:
                    self._taps.note("Lease", f"maildir.{user}", key.session, user=user, listener=key.listener)
        return result
