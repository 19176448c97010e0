"""Run a recorded actor again: its own shell, with the recorded clock and with channels that only take notes.

Each actor's `replay.py` makes its shell with the boot that `Harness.boot` returns. `Harness.play` sets the
clock frame by frame, `Harness.tell` gives the actor what it received, and `Harness.said` collects what it
sends; comparison.py compares that with the recording. Nothing outside of the actor is replaced, so the
process may have actors of its own.
"""

import itertools
import os
import socket
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, NoReturn, cast

from popkernel.kernel.config.keys import Config, actor_settings
from popkernel.kernel.replay.loop import ReplayLoop
from popkernel.kernel.runtime.actor import Actor, Boot
from popkernel.kernel.runtime.channel import Channel, codec
from popkernel.kernel.runtime.loop import Loop
from popkernel.kernel.runtime.world import World
from popkernel.proto.codec import whole
from popkernel.proto.log_levels import DEBUG
from popkernel.proto.messages import CARRIES, TraceStart, TraceStop
from popkernel.proto.schema import BadMessageError, Field, compile_check, fields_of
from popkernel.proto.topology import edge, kind_of
from popkernel.proto.trace.recording import Frame, RecordingError
from popkernel.proto.trace.redaction import SECRET, is_cut, shown

__all__ = [
    "Harness",
    "LeftError",
    "Readings",
    "ReplayChannel",
    "ReplaySocket",
    "Said",
    "message_of",
    "no_socket",
]

_numbers = itertools.count(1_000_000)  # descriptors that are none


class LeftError(Exception):
    """The actor would have ended its process here."""


class Said(NamedTuple):
    """A message that the replayed actor sent.

    `after`: index of the frame that was being played. `turn`: the loop's clock, nanoseconds.
    """

    peer: str
    name: str
    session: int
    fields: dict[str, Any]
    octets: int
    after: int
    turn: int


class ReplaySocket:
    """Stand for a channel's or a client's socket."""

    def __init__(self) -> None:
        self._number = next(_numbers)

    def fileno(self) -> int:
        """A number that no descriptor has."""
        return self._number

    def close(self) -> None:
        """There is nothing to close."""


class ReplayChannel:
    """Stand for a Channel: report to the harness what the actor sends, and take what the harness gives."""

    def __init__(
        self,
        harness: "Harness",
        me: str,
        peer: str,
        on_message: Callable[..., None],
        on_dropped: Callable[..., None],
    ) -> None:
        self._harness = harness
        self.on_message = on_message
        self.on_dropped = on_dropped
        self.me = me
        self.peer = peer
        self.sock = ReplaySocket()
        self.fd = self.sock.fileno()
        self.closed = False
        self.waiting = False
        self.on_drained: Callable[[], None] | None = None
        self.on_lost: Callable[[tuple[Any, ...]], None] | None = None
        self.tag: Any = None

    def send(self, message: tuple[Any, ...], fds: Sequence[int] = ()) -> None:
        del fds
        if not self.closed:
            codec(kind_of(self.me), kind_of(self.peer)).encode(message)
            self._harness.hears(self, message)

    def send_all(self, messages: Sequence[tuple[Any, ...]]) -> None:
        for message in messages:
            self.send(message)

    def send_bulk(self, message: tuple[Any, ...], data: bytes) -> int:
        self.send(whole(message, data))
        return len(data)

    def release(self) -> ReplaySocket:
        self.closed = True
        return self.sock

    def close(self) -> None:
        self.closed = True


class Harness:
    """Provide the world and the channels of one replayed actor, and collect what it sends.

    `payload`: whether the recording shows mail content. `user`, `session`: whose recording it is, "" and 0
    for all. `strange`: the maildir is not what it was when the recording was made.
    """

    def __init__(self, *, payload: bool, user: str = "", session: int = 0, strange: bool = False) -> None:
        self.loop = ReplayLoop()
        self.world = World(self._loop, self.channel, _no_clock, bytes, _leave)
        self.channels: list[ReplayChannel] = []
        self.said: list[Said] = []
        self.payload = payload
        self.user = user
        self.actor: Actor | None = None
        self.at = 0  # the frame that is being played
        self.skipped: set[int] = set()  # sessions that had begun before the recording did
        self.session = session
        # the recording has all that this actor received
        self.whole = not (user or session)
        self.strange = strange  # then nobody knows what sessions would see
        self.unknown: set[int] = set()  # deliveries begun before the recording that can't continue
        self.until = 0  # how many frames are compared; 0: all
        self.remarks: list[str] = []
        self._taken: set[int] = set()  # notes that `behind` has returned

    def hears(self, channel: ReplayChannel, message: tuple[Any, ...]) -> None:
        """Note what the actor sends on a channel."""
        assert self.actor is not None
        fields, octets = shown(message, payload=self.payload)
        session = self.actor.session_of(channel, message)  # type: ignore[arg-type]
        self.notes(channel.peer, type(message).__name__, session, fields, octets)

    def notes(self, peer: str, name: str, session: int, fields: dict[str, Any], octets: int = 0) -> None:
        """Note a message that the actor sends, or octets to a client."""
        self.said.append(Said(peer, name, session, fields, octets, self.at, round(self.loop.now * 1e9)))

    def channel(
        self,
        loop: Loop,
        end: socket.socket | int,
        me: str,
        peer: str,
        on_message: Callable[[Channel, tuple[Any, ...], list[int]], None],
        on_dropped: Callable[[Channel, str], None],
        *,
        resumed: bool = False,
    ) -> Channel:
        """Open a channel of this actor, as its world does. A descriptor is closed."""
        del loop, resumed
        if isinstance(end, int):
            os.close(end)
        channel = ReplayChannel(self, me, peer, on_message, on_dropped)
        self.channels.append(channel)
        return cast("Channel", channel)

    def _loop(self, *, many: bool = False) -> Loop:
        del many
        return self.loop

    def boot(self, name: str, config: dict[str, Any], start: float, **world: Any) -> Boot:
        """Make the boot of an actor in this harness. Such an actor is never locked in, for it never serves.

        `config`: keys that it lacks have their defaults. `start`: the clock when the actor is made, seconds.
        `world`: `clock` or `random`, where the actor reads these (else time 0.0 and zero octets).
        """
        self.loop.now = start
        keys = actor_settings(Config(), kind_of(name).partition(".")[0])
        return Boot(
            name,
            no_socket(),
            0,
            0,
            {**keys, "log_level": DEBUG, **config},
            sandboxed=False,
            world=self.world._replace(**world),
        )

    def enter(self, actor: Actor) -> None:
        """Connect the actor to the kernel. Its Hello is dropped, for recordings begin behind it."""
        self.actor = actor
        actor.connect()
        self.said.clear()

    def remark(self, text: str) -> None:
        """Add a remark on what is left out, once."""
        if text not in self.remarks:
            self.remarks.append(text)

    def halt(self, why: str) -> None:
        """Compare nothing from this frame on, for it depends on data that the recording lacks."""
        self.until = max(1, self.at)
        self.remark(f"{why}: replayed up to there")

    def left(self, frames: Sequence[Frame]) -> None:
        """Note that the actor has ended: too early, if sessions that are left out kept the recorded actor.

        The messages that the recorded actor sent in this frame's turn are still compared.
        """
        turn = frames[self.at].turn
        rest = itertools.dropwhile(
            lambda f: f.turn == turn and f.way != "in" and f.name != "Timer", frames[self.at + 1 :]
        )
        if (self.skipped or not self.whole) and any(frame.way == "out" for frame in rest):
            self.until = self.at + 1
            self.remark("it was kept by sessions that are left out: replayed up to where it would have ended")

    @property
    def guided(self) -> bool:
        """Return whether the recording lacks other sessions, but notes their effects on the ones it has."""
        return not self.whole and self.loop.turns

    def play(self, frames: Sequence[Frame]) -> Iterator[Frame]:
        """Yield each frame when the clock has come to it; between two turns of the loop, end the earlier one.

        So messages that came in one turn go out as one.
        """
        self.loop.turns = bool(frames[0].fields.get("timers") and frames[0].fields.get("turns"))
        for at, frame in enumerate(frames):
            before = frames[self.at]
            if at and (not self.loop.turns or frame.ending or frame.turn != before.turn):
                self.loop.end()
            self.at = at
            self.clock(frames)
            yield frame
        self.loop.end()

    def behind(self, frames: Sequence[Frame], name: str, session: int, **fields: Any) -> Frame | None:
        """Return the next such note that the frame being played caused, None for no such note."""
        for at in range(self.at + 1, len(frames)):
            frame = frames[at]
            if frame.way == "in" or frame.name == "Timer":
                break
            if (
                frame.name == name
                and frame.session == session
                and at not in self._taken
                and fields.items() <= frame.fields.items()
            ):
                self._taken.add(at)
                return frame
        return None

    def clock(self, frames: Sequence[Frame]) -> None:
        """Advance the clock to the frame that is to be played.

        In recordings without Timer frames, a frame that the actor sent shows that a timer was called then.
        """
        frame = frames[self.at]
        if not frames[0].fields.get("timers"):  # recorded by an older program
            self.loop.advance(frame.turn / 1e9, late=frame.way != "in")
        elif frame.name == "Timer" and not self.loop.turns:
            self.loop.fire_all(frame.turn / 1e9)
        elif frame.name == "Timer":
            self.loop.precise = max(self.loop.precise, frame.time / 1e9)
            self.loop.fire(frame.turn / 1e9, frame.session)
        else:
            self.loop.follow(frame.turn / 1e9)
        self.loop.since = frame.time / 1e9
        following = frames[self.at + 1] if self.at + 1 < len(frames) else frame
        self.loop.precise = (following if following.turn == frame.turn else frame).time / 1e9

    def tell(self, frame: Frame) -> bool:
        """Give a recorded message, or the end of a channel, to its channel; return False if none is open."""
        channel = self.find(frame)
        if channel is None:
            return False
        if frame.name == "Gone":
            channel.closed = True
            channel.on_dropped(channel, frame.fields.get("why", ""))
            return True
        message = message_of(frame, kind_of(frame.peer), kind_of(channel.me))
        if isinstance(message, TraceStart | TraceStop):  # this process's own tap would be set
            raise RecordingError(f"{frame.name} is never recorded")
        many = CARRIES.get(type(message), 0) or int(getattr(message, "fresh", False))
        channel.on_message(channel, message, [os.open(os.devnull, os.O_RDONLY) for _ in range(many)])
        return True

    def find(self, frame: Frame) -> ReplayChannel | None:
        """Find the open channel of a frame: to its peer, and of its session where the channel has one."""
        assert self.actor is not None
        kind = kind_of(frame.peer)
        fitting = [c for c in self.channels if not c.closed and kind_of(c.peer) == kind]
        fitting = [c for c in fitting if c.peer in {frame.peer, kind}] or ([] if kind == "auth" else fitting)
        sessions = [(c, self.actor.session_of(c, ())) for c in fitting]  # type: ignore[arg-type]
        return next((c for c, session in sessions if session == frame.session), None) or next(
            (c for c, s in sessions if not s), None
        )


class Readings:
    """Return the recorded actor's clock readings or random octets, in the same order.

    Each reading follows the frame that caused it.
    """

    def __init__(self, harness: Harness, frames: Sequence[Frame], name: str, field: str) -> None:
        self._harness = harness
        self._read: dict[int, deque[Any]] = {}
        cause = 0
        for index, frame in enumerate(frames):
            if frame.way == "in" or frame.name == "Timer":
                cause = index
            elif frame.name == name:
                self._read.setdefault(cause, deque()).append(frame.fields[field])

    def next(self) -> Any:
        """Return the frame's next reading; None where the recorded program did not read."""
        there = self._read.get(self._harness.at)
        return there.popleft() if there else None


def no_socket() -> socket.socket:
    """Return the end of a replayed channel: nothing is sent on it."""
    return cast("socket.socket", ReplaySocket())


def _leave(status: int) -> NoReturn:
    """Stand for os._exit."""
    del status
    raise LeftError


def _no_clock() -> float:
    """Stand for wall time, which only maildir actors read."""
    return 0.0


def message_of(frame: Frame, source: str, target: str) -> tuple[Any, ...]:
    """Make the message that a frame shows; RecordingError if this program's topology has no such message.

    A secret becomes its mark, a list of secrets is empty, and cut content as many octets `x`.
    """
    row = edge(source, target)
    found = next((c for c in row.messages if c.__name__ == frame.name), None)
    if found is None:
        raise RecordingError(f"{frame.name} may not go {source}>{target} any more: record it anew")
    kinds = fields_of(found)
    if set(kinds) != set(frame.fields):
        raise RecordingError(f"{frame.name} has other fields now ({', '.join(kinds)}): record it anew")
    values = [_value(frame.fields[name], field) for name, field in kinds.items()]
    try:
        compile_check(found)(values)
    except BadMessageError as error:
        raise RecordingError(f"{error}: record it anew") from None
    make: Any = found
    made: tuple[Any, ...] = make(*values)
    return made


def _value(value: Any, field: Field) -> Any:
    if value == SECRET:
        return SECRET.encode() if field.kind == "bytes" else []
    if type(value) is dict:
        return value["content"] if "content" in value else b"x" * max(0, is_cut(value))
    return value
