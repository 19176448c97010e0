"""Collect the frames of traced actors, and push them to viewers: the kernel's side of the taps.

A viewer is a client of the control socket. Its filter decides which actors get TraceStart. Each of these
sends its frames over a channel of its own, the tap. The kernel matches a frame with each viewer's filter, and
pushes it as one msgpack map. A viewer that reads too slowly loses frames, and is told how many. Without
viewers, messages do not pass through this module.
"""

import contextlib
import errno
import os
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgpack
from popkernel.kernel.decisions import leases
from popkernel.kernel.decisions.deliveries import Deliveries
from popkernel.kernel.decisions.recorded_state import freeze
from popkernel.kernel.operator.control import Client
from popkernel.kernel.operator.session_list import Announced
from popkernel.kernel.operator.viewers import FilterError, TraceFilter, Viewer, matches_instance, row_of
from popkernel.kernel.processes import Exit, Process, Processes
from popkernel.kernel.runtime.channel import Channel, Message, codec, pair, watch
from popkernel.kernel.runtime.log import Log
from popkernel.kernel.runtime.loop import Loop
from popkernel.proto import messages as m
from popkernel.proto import topology
from popkernel.proto.access.networks import host_of
from popkernel.proto.bus.zmtp import Reader, ZmtpError
from popkernel.proto.log_levels import NOTICE
from popkernel.proto.schema import BadMessageError, printable
from popkernel.proto.trace.redaction import shown

__all__ = ["Taps"]

_WATCHED = frozenset(e.source for e in topology.EDGES if e.target == "tap")  # rows that can be traced
_TURN = 256 * 1024  # octets read from one actor's tap before other events get their turn
# numbers from here on are sessions of listeners, with one user each; below, LMTP connections with any number
_LISTENERS = 1 << 40
_MOST_KNOWN = 20000  # sessions whose user is remembered
_MOST_HOSTS = 100_000  # sessions whose client's address is remembered
_LONGEST_ADDRESS = 64  # characters
# levels of nested fields: the sender may be hostile, and those who show them recurse
_DEEPEST = 8
# Notes that actors may send. All others are the kernel's own.
_NOTES = frozenset(
    {
        "Settings",
        "Checked",
        "Full",
        "Clock",
        "Random",
        "Timer",
        "Unsent",
        "Queued",
        "Turn",
        "Known",
        "TakenOver",
        "Untrue",
    }
)
# edges to and from clients, which are no actors
_CLIENTS = (("client", "listener"), ("listener", "client"), ("client", "mda"), ("mda", "client"))
_PEERS = {
    row: frozenset(
        {
            "client",
            *(end for e in topology.EDGES if row in (e.source, e.target) for end in (e.source, e.target)),
        }
    )
    for row in _WATCHED
}
_DECISIONS = {
    leases.Core: (
        "awaits",
        "granted",
        "closed",
        "client_hung_up",
        "ended",
        "listener_gone",
        "maildir_gone",
        "sweep",
        "ending",
        "retire_all",
        "retire_changed",
        "died",
        "parked",
        "woken",
        "sleeper_gone",
        "login_over",
        "kicked",
        "stuck",
        "drain",
        "short",
        "measured",
        "let_go",
    ),
    Deliveries: ("recipient", "busy", "maildir_gone", "mda_gone"),
}


def _too_deep(value: Any, left: int) -> bool:
    inner = value.values() if type(value) is dict else value
    return left == 0 or any(_too_deep(v, left - 1) for v in inner if type(v) is dict or type(v) is list)


class TapEnd:
    """Read the kernel's end of one actor's tap, and check its frames."""

    def __init__(self, loop: Loop, sock: socket.socket, process: Process, taps: "Taps") -> None:
        self._loop = loop
        self._sock = sock
        self._process = process
        self._taps = taps
        incoming = codec(process.kind, "tap")
        self._decode = incoming.decode
        self._reader = Reader(incoming.octets)
        # viewers that have had its Settings, and get no later ones
        self.informed: set[Viewer] = set()
        self.closed = False
        loop.add(sock.fileno(), lambda _: self.read(_TURN))

    def read(self, most: int) -> None:
        """Read what has come, up to `most` octets."""
        while most > 0 and not self.closed:
            try:
                data = self._sock.recv(65536)
                if not data:  # perhaps before its first frame: a listener's seat that was not used
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
        assert isinstance(message, m.TraceFrame)
        fields = msgpack.unpackb(message.fields, max_ext_len=0)
        if type(fields) is not dict or _too_deep(fields, _DEEPEST):
            raise BadMessageError("TraceFrame.fields: no map, or too deep a one")
        self._check(message.way, message.peer, message.name)
        frame = {
            "time": message.time,
            "turn": message.turn,
            "actor": self._process.name,
            "way": message.way,
            "peer": message.peer,
            "name": message.name,
            "session": message.session,
            "octets": message.octets,
            "fields": fields,
        }
        if message.ending:
            frame["ending"] = True
        if message.lost:
            self._taps.missed(self._process.name, message.lost)
        if message.name == "Settings" and message.way == "note":
            self._taps.show_settings(self, frame)
        else:
            self._taps.pass_on(frame)

    def _check(self, way: str, peer: str, name: str) -> None:
        """Refuse frames about other actors' messages, and notes that are the kernel's."""
        if way == "note":
            good = name in _NOTES and not peer
        else:
            good = way in ("in", "out") and row_of(peer) in _PEERS[self._process.kind]
        if not good:
            raise BadMessageError(f"TraceFrame: {way} {name} of {peer!r} is nothing that it can show")

    def close(self) -> None:
        """Close the tap; a second call does nothing."""
        if not self.closed:
            self.closed = True
            self._loop.remove(self._sock.fileno())
            self._sock.close()


class Taps:
    """Keep all viewers and all taps, and pass frames between them."""

    def __init__(
        self,
        loop: Loop,
        processes: Processes,
        core: leases.Core,
        deliveries: Deliveries,
        log: Log,
        *,
        version: str,
        nofile: int,
        left: Callable[[], int],
        announced: Callable[[], Mapping[leases.Key, Announced]] = dict,
    ) -> None:
        """Begin without viewers.

        Args:
            loop: of the kernel.
            processes: the registry.
            core: leases, whose decisions can be recorded.
            deliveries: likewise.
            log: for viewers of mail.
            version: popkernel's.
            nofile: number of descriptors that the kernel may have.
            left: returns how many of them it may still use for taps.
            announced: returns what listeners said about the sessions that are open.
        """
        self._loop = loop
        self._processes = processes
        self._core = core
        self._deliveries = deliveries
        self._log = log
        self._version = version
        self._nofile = nofile
        self._left = left
        self._announced = announced
        self._viewers: list[Viewer] = []
        self._ends: dict[str, TapEnd] = {}
        self._known: dict[int, str] = {}  # session -> user
        self._hosts: dict[int, str] = {}  # session -> its client's address, without the port
        self._listeners: dict[int, str] = {}  # session -> listener
        self._decisions = Decisions(core, deliveries, self)
        self._digest = topology.digest()  # before the sandbox hides the modules that it imports

    def __len__(self) -> int:
        return len(self._ends)

    # -- viewers
    def attach(self, client: Client, request: dict[str, Any]) -> None:
        """Answer a client's request to trace, and push frames to it from then on."""
        try:
            wanted = TraceFilter(request)
            if wanted.payload and client.uid != 0:
                raise FilterError(
                    "mail content is shown to root only: ask as root, or without --payload", "noperm"
                )
            self._check(wanted)
            self._fits(wanted)
        except FilterError as error:
            client.answer({"ok": False, "error": str(error), "code": error.code})
            return
        viewer = Viewer(client, wanted)
        if wanted.payload:
            given = wanted.asked().items()
            chosen = " ".join(f"{key}={value}" for key, value in given if type(value) in (str, int))
            self._log(
                NOTICE, "trace.payload", **client.author, **({"filter": printable(chosen)} if chosen else {})
            )
        client.answer(
            {
                "ok": True,
                "topology": self._digest,
                "version": self._version,
                "wall": time.time_ns(),
                "monotonic": time.monotonic_ns(),
                "watches": wanted.asked(),
                "running": [p.name for p in self._processes if p.state != "ahead"],
                "awaits": self._awaited(wanted),
                **self._maildir(wanted),
            }
        )
        for user, key in self._core.leases.items():
            self._known[key.session] = user
            self._listeners[key.session] = key.listener
        for key, said in self._announced().items():
            self._hosts[key.session] = host_of(said.address)
        self._viewers.append(viewer)
        client.on_room = viewer.tell_lost
        client.on_end = lambda: self._detach(viewer)
        self._adjust(viewer)
        if wanted.decisions:
            self._state(viewer)

    def _awaited(self, wanted: TraceFilter) -> list[str]:
        """Return the actors that will send Settings. After the last of these, a viewer misses no frame."""
        serving = [p for p in self._processes if p.state in ("serving", "draining")]
        return [
            p.name
            for p in serving
            if p.kind in _WATCHED and wanted.watches(p.name) and self._concerns(p, wanted)
        ]

    def _concerns(self, process: Process, wanted: TraceFilter) -> bool:
        """Return whether an actor may serve the wanted session: not if it serves a single other one."""
        # the frames of a maildir actor are not shown before its user's session is known
        if wanted.session and process.kind == "maildir.{user}":
            lease = self._core.leases.get(process.name.removeprefix("maildir."))
            return lease is not None and lease.session == wanted.session
        lease = self._core.leases.get(wanted.user)
        its = wanted.session or (lease.session if lease is not None else 0)
        return not process.session or not (wanted.session or wanted.user) or process.session == its

    def _maildir(self, wanted: TraceFilter) -> dict[str, bytes]:
        """Return the maildir of a trace's only user, so that a recording can copy it."""
        user = wanted.user or (
            wanted.actor.removeprefix("maildir.") if wanted.actor.startswith("maildir.") else ""
        )
        row = self._core.users.get(user)
        return {} if row is None else {"maildir": os.fsencode(row.maildir)}

    def _check(self, wanted: TraceFilter) -> None:
        """Refuse a filter that no frame can match.

        Raises:
            FilterError: with what exists instead.
        """
        names = ["kernel", "init", *(p.name for p in self._processes if p.state != "ahead")]
        if wanted.actor and not any(matches_instance(wanted.actor, name) for name in names):
            user = wanted.actor.removeprefix("maildir.")
            known = user != wanted.actor and user in self._core.users
            if user != wanted.actor and not known:
                raise FilterError(
                    f"no user {user!r} in the user table, so no actor {wanted.actor!r}", "nouser"
                )
            if not known and wanted.actor not in {row.name.split(".")[0] for row in topology.ACTORS}:
                raise FilterError(f"no actor {wanted.actor!r} here; there are: {', '.join(sorted(names))}")
        if wanted.user and wanted.user not in self._core.users:
            raise FilterError(f"no user {wanted.user!r} in the user table", "nouser")
        edges = [*((e.source, e.target) for e in topology.EDGES if e.target != "tap"), *_CLIENTS]
        if wanted.edge and not any(wanted.on_edge(*edge) for edge in edges):
            raise FilterError(
                f"no edge {':'.join(wanted.edge)!r}; there are: {', '.join(map(':'.join, edges))}"
            )

    def _fits(self, wanted: TraceFilter) -> None:
        """Refuse a trace of more actors than the kernel has descriptors for: a tap takes one.

        Raises:
            FilterError: there are too few.
        """
        new = sum(
            p.kind in _WATCHED and p.name not in self._ends and wanted.watches(p.name)
            for p in self._processes
        )
        if new > max(0, self._left()):
            text = (
                f"no room to watch {new} actors at once: the kernel may have {self._nofile} descriptors "
                "(RLIMIT_NOFILE); name one"
            )
            raise FilterError(text, "tempfail")

    def _detach(self, viewer: Viewer) -> None:
        with contextlib.suppress(ValueError):
            self._viewers.remove(viewer)
        for end in self._ends.values():
            end.informed.discard(viewer)
        self._adjust()

    # -- actors
    def _adjust(self, newcomer: Viewer | None = None) -> None:
        """Trace exactly those actors that a viewer's filter names."""
        watch.tap = self._own if self._viewers else None
        self._decisions.record(on=bool(self._viewers))
        for process in self._processes:
            self.started(process, newcomer)
        if not self._viewers:
            self._known.clear()
            self._hosts.clear()
            self._listeners.clear()

    def started(self, process: Process, newcomer: Viewer | None = None) -> None:
        """Begin or stop tracing an actor whose channel was made, or whose viewers have changed.

        TraceStart is the first message on a new channel. For a `newcomer` among the viewers it is sent again,
        so that the actor sends its present Settings.
        """
        if not self._viewers and not self._ends:
            return
        viewers = [v for v in self._viewers if v.wanted.watches(process.name)]
        end = self._ends.get(process.name)
        if process.kind not in _WATCHED:
            return
        if not viewers:
            if end is not None and not end.closed:  # the actor sends what it holds, and closes its end
                process.channel.send(m.TraceStop())
                del self._ends[process.name]
            return
        payload = any(v.wanted.payload for v in viewers)
        if end is not None and not end.closed and newcomer not in viewers:
            return
        try:
            mine, its = self._pair()
        except OSError:  # it is not traced; its viewers are told that frames are lost
            for viewer in viewers:
                viewer.missed()
            return
        if end is None or end.closed:
            self._ends[process.name] = TapEnd(self._loop, mine, process, self)
        else:
            mine.close()  # the actor keeps the tap it has
        with contextlib.suppress(OSError), its:  # no room for the message: then the tap is closed with `its`
            process.channel.send(m.TraceStart(payload), [its.fileno()])

    def _pair(self) -> tuple[socket.socket, socket.socket]:
        """Make the channel of a tap, unless actors need the descriptors that are left.

        Raises:
            OSError: there is no room.
        """
        if self._left() <= 0:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return pair()

    def on_exit(self, process: Process, end: Exit) -> None:
        """Read the rest of the tap of a process that ended."""
        tap = self._ends.pop(process.name, None)
        if tap is not None:
            tap.read(1 << 30)
            tap.close()
        self.note("Ended", process.name, how=end.how)

    def bad_tap(self, process: Process, why: str) -> None:
        """End an actor that broke the rules on its tap."""
        self._processes.on_dropped(process.channel, f"{why} (on its tap)")

    # -- frames
    def _own(self, way: str, channel: Channel, message: Message) -> None:
        """Pass on a message of the kernel's own channels."""
        if type(message) in (m.TraceStart, m.TraceStop):
            return
        if way == "gone":
            fields, octets, name = {"why": message[0]}, 0, "Gone"
        else:
            (fields, octets), name = shown(message, payload=False), type(message).__name__
        self.pass_on(
            {
                "time": time.monotonic_ns(),
                "turn": round(self._loop.now * 1e9),
                "actor": "kernel",
                "way": "in" if way == "gone" else way,
                "peer": channel.peer,
                "name": name,
                "session": int(getattr(message, "session", 0)),
                "octets": octets,
                "fields": fields,
            }
        )

    def note(self, what: str, about: str, session: int = 0, **fields: Any) -> None:
        """Pass on an event that is no message: an actor's begin or end, a lease, a refused message."""
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

    def show_settings(self, end: TapEnd, frame: dict[str, Any]) -> None:
        """Pass an actor's Settings to the viewers that have not had them."""
        for viewer in self._viewers:
            if viewer not in end.informed:
                end.informed.add(viewer)
                viewer.see(frame, self._known, self._hosts, twin=False)

    def missed(self, actor: str, frames: int) -> None:
        """Count frames that an actor had no room for, for all its viewers: their sessions are unknown."""
        for viewer in self._viewers:
            if viewer.wanted.watches(actor):
                viewer.gaps[actor] = viewer.gaps.get(actor, 0) + frames

    def pass_on(self, frame: dict[str, Any]) -> None:
        """Pass a frame to all viewers whose filter it meets."""
        session, fields = frame["session"], frame["fields"]
        if (
            session >= _LISTENERS
            and not frame["actor"].startswith("maildir.")
            and type(fields.get("user")) is str
            and fields["user"]
        ):
            self._known[session] = fields["user"]
            if len(self._known) > _MOST_KNOWN:
                del self._known[next(iter(self._known))]
        if session >= _LISTENERS and type(fields.get("address")) is str and fields["address"]:
            self._hosts[session] = host_of(fields["address"][:_LONGEST_ADDRESS])
            if len(self._hosts) > _MOST_HOSTS:
                del self._hosts[next(iter(self._hosts))]
        if frame["name"] == "LoginGranted" and frame["actor"] == "kernel":
            self._listeners[session] = str(fields["listener"])
            if len(self._listeners) > _MOST_KNOWN:
                del self._listeners[next(iter(self._listeners))]
        if frame["peer"] == "listener":  # a maildir actor does not know which listener it is
            frame["peer"] = self._listeners.get(session, "listener")
        other_end = frame["way"] == "out" and (frame["peer"] == "kernel" or frame["peer"] in self._ends)
        for viewer in self._viewers:
            twin = other_end and viewer.wanted.watches(frame["peer"])
            viewer.see(frame, self._known, self._hosts, twin=twin)

    def decided(self, fields: dict[str, Any]) -> None:
        """Pass a decision of the kernel to viewers that record them."""
        for viewer in self._viewers:
            if viewer.wanted.decisions:
                viewer.push(self._note("Decision", "", 0, fields))

    def _state(self, viewer: Viewer) -> None:
        """Push the kernel's state, with which a recording of its decisions begins."""
        state = {"core": freeze(self._core), "deliveries": freeze(self._deliveries, (leases.Core,))}
        viewer.push(self._note("State", "", 0, state))


class Decisions:
    """Record calls of the kernel's pure parts and changes of leases, while there are viewers."""

    def __init__(self, core: leases.Core, deliveries: Deliveries, taps: Taps) -> None:
        self._core = core
        self._deliveries = deliveries
        self._taps = taps
        self._on = False
        self._deep = 0
        self._users: Any = None

    def record(self, *, on: bool) -> None:
        """Wrap the methods that decide, or unwrap them: without viewers they cost nothing."""
        if on == self._on:
            return
        self._on = on
        self._users = self._core.users
        for part in (self._core, self._deliveries):
            for name in _DECISIONS[type(part)]:
                if on:
                    setattr(part, name, self._wrapped(type(part).__name__, name, getattr(part, name)))
                else:
                    delattr(part, name)

    def _wrapped(self, part: str, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if self._deep:
                return method(*arguments)
            self._deep += 1
            try:
                return self._decide(part, name, method, arguments)
            finally:
                self._deep -= 1

        return call

    def _decide(self, part: str, name: str, method: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        core = self._core
        before = dict(core.leases)
        fields = {"room": part, "method": name, "arguments": freeze(list(arguments))}
        if core.users is not self._users:
            self._users = core.users
            fields["users"] = freeze(core.users)
        result = method(*arguments)
        fields["effects"] = freeze(result)
        self._taps.decided(fields)
        if before != core.leases:
            for user, key in before.items():
                if core.leases.get(user) != key:
                    self._taps.note(
                        "LeaseOver", f"maildir.{user}", key.session, user=user, listener=key.listener
                    )
            for user, key in core.leases.items():
                if before.get(user) != key:
                    self._taps.note("Lease", f"maildir.{user}", key.session, user=user, listener=key.listener)
        return result
