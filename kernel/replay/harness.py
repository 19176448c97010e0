"""Where a recorded actor is played again: its own shell, with the recorded clock, and without a loop, a socket or a channel that is real.

Every actor's `supervisor.py` puts its shell on this stage. `Stage.perform` feeds it what the recording says it was told, frame by frame,
and collects what it says; comparison.py judges that.
"""

import contextlib
import heapq
import itertools
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any, NamedTuple

from popkernel.kernel.config.keys import Config, told
from popkernel.kernel.runtime.actor import Actor, Boot
from popkernel.kernel.runtime.loop import Loop, Timer
from popkernel.proto import codec
from popkernel.proto.messages import CARRIES
from popkernel.proto.schema import BadMessageError, compile_check, fields_of
from popkernel.proto.topology import edge, kind_of
from popkernel.proto.trace.recording import Frame, RecordingError
from popkernel.proto.trace.redaction import SECRET, is_cut, shown

__all__ = ["LeftError", "Said", "Stage", "StageChannel", "StageLoop", "StageSocket", "message_of"]

_numbers = itertools.count(1_000_000)  # descriptors that are none
_SLACK = 0.005  # seconds: a note may be made a little behind what it tells of
_STALL = 1.0  # seconds a timer may be late because its actor was busy
_SIGNALS = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGPIPE, signal.SIGQUIT)


class LeftError(Exception):
    """The actor has ended its process, or would have."""


class Said(NamedTuple):
    """What the actor said on the stage: to whom, what, in which session; `after`: the frame it was being told."""

    peer: str
    name: str
    session: int
    fields: dict[str, Any]
    octets: int
    after: int
    turn: int


class _StageTimer(Timer):
    """One whose making lies between two frames: it may have been due as early as `early`, and no later than `due`."""

    __slots__ = ("early",)

    def __init__(self, call: Callable[[], None], early: float, due: float, session: int) -> None:
        super().__init__(call, due, session)
        self.early = early


class StageLoop(Loop):
    """Timers by the recorded clock; no descriptor is ever ready by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.precise = 0.0  # the clock itself, which goes on while a turn lasts: timers run from there, as the real loop's do
        self.since = 0.0  # the clock at the frame that is played; `precise` is that at the next of its turn
        self.turns = False  # whether the recording tells of a turn's end, and whose a timer is
        self.fired: set[int] = set()  # whose timers were called in this turn
        self._before = 0.0  # the turn before this one

    def add(self, fd: int, call: Callable[[int], None], events: int = 1) -> None:
        del events
        self._calls[fd] = call

    def change(self, fd: int, events: int) -> None:
        del fd, events

    def remove(self, fd: int) -> None:
        self._calls.pop(fd, None)

    def later(self, seconds: float, call: Callable[[], None], session: int = 0) -> Timer:
        timer = _StageTimer(call, max(self.now, self.since) + seconds, max(self.now, self.precise) + seconds, session)
        heapq.heappush(self._timers, (timer.due, next(self._sequence), timer))
        return timer

    def settle(self) -> None:
        """What a turn of the loop does at its end."""
        while self._soon:
            todo, self._soon = self._soon, []
            for call in todo:
                call()

    def advance(self, now: float, *, late: bool = False) -> None:
        """Let the clock come to `now`; what falls due on the way is called at its time, or at `now` where the recording has it `late`."""
        while self._timers and self._timers[0][0] <= now:
            self._call(now if late else self._timers[0][0])
        self.advance_clock(now)

    def _call(self, now: float) -> None:
        timer = heapq.heappop(self._timers)[2]
        self.now = self.precise = max(self.now, now)
        if timer.call is not None:
            timer.call()
        if not self.turns:
            self.settle()

    def fire(self, now: float, session: int) -> None:
        """In the recording a timer of that session was called now: the first that is due, or may be: its making is not known exactly."""
        self.advance_clock(now)
        if self._fire(now + _SLACK, session) or self._fire(now + _SLACK, session, early=True):
            self.fired.add(session)

    def _fire(self, until: float, session: int, *, early: bool = False) -> bool:
        its = [entry for entry in self._timers if entry[2].session == session and entry[2].call is not None]
        due = [entry for entry in its if (getattr(entry[2], "early", entry[0]) if early else entry[0]) <= until]
        if not due:
            return False
        timer = min(due)[2]
        call, timer.call = timer.call, None
        assert call is not None
        call()
        return True

    def end(self) -> None:
        """The end of a turn: whose timers were called, all their due ones were; and what was put off is done."""
        for session in self.fired:
            while self._fire(self.now, session):
                pass
        self.fired.clear()
        self.settle()
        self._before = self.now

    def fire_all(self, now: float) -> None:
        """As `fire`, where the recording does not say whose."""
        while self._timers and self._timers[0][2].call is None:
            heapq.heappop(self._timers)
        if self._timers and now < self._timers[0][0] <= now + _SLACK:
            self._call(now)
        self.advance(now, late=True)

    def follow(self, now: float) -> None:
        """In the recording no timer was called before `now`; but one that this program alone has does not wait for ever.

        Nor does it wait less than a turn of the loop that it was not called in.
        """
        self.advance(min(now - _STALL, self._before) if self.turns else now - _STALL, late=True)
        self.advance_clock(now)

    def advance_clock(self, now: float) -> None:
        """The clock alone."""
        self.now = max(self.now, now)
        self.precise = max(self.precise, self.now)


class StageSocket:
    """In the place of a channel's socket."""

    def __init__(self) -> None:
        self._number = next(_numbers)

    def fileno(self) -> int:
        """A number that no descriptor has."""
        return self._number

    def close(self) -> None:
        """There is nothing to close."""


class StageChannel:
    """In the place of a Channel: what is sent is noted, what comes is given by the stage."""

    def __init__(
        self, stage: "Stage", me: str, peer: str, on_message: Callable[..., None], on_gone: Callable[..., None],
    ) -> None:
        self._stage = stage
        self.on_message = on_message
        self.on_gone = on_gone
        self.me = me
        self.peer = peer
        self.sock = StageSocket()
        self.fd = self.sock.fileno()
        self.gone = False
        self.waiting = False
        self.on_drained: Callable[[], None] | None = None
        self.tag: Any = None

    def send(self, message: tuple[Any, ...], fds: Sequence[int] = ()) -> None:
        del fds
        if not self.gone:
            codec.Codec(kind_of(self.me), kind_of(self.peer)).encode(message)
            self._stage.hears(self, message)

    def send_all(self, messages: Sequence[tuple[Any, ...]]) -> None:
        for message in messages:
            self.send(message)

    def send_bulk(self, message: tuple[Any, ...], data: bytes) -> int:
        self.send(codec.whole(message, data))
        return len(data)

    def release(self) -> StageSocket:
        self.gone = True
        return self.sock

    def close(self) -> None:
        self.gone = True


class Stage:
    """One actor's performance. `payload`: whether the recording shows mail content. `user`: whose story it is, "" for everybody's.

    `session`: which it is, 0 for all.
    """

    def __init__(self, *, payload: bool, user: str = "", session: int = 0, strange: bool = False) -> None:
        self.loop = StageLoop()
        self.channels: list[StageChannel] = []
        self.said: list[Said] = []
        self.payload = payload
        self.user = user
        self.actor: Actor | None = None
        self.at = 0  # the frame that is being played
        self.skipped: set[int] = set()  # sessions that had begun before the recording did
        self.session = session
        self.whole = not (user or session)  # all that this actor was told is in the recording, and not a share of it
        self.strange = strange  # the maildir is not what it was in the recording: what sessions would see can't be known
        self.unknown: set[int] = set()  # deliveries that had, and can't be gone on with
        self.until = 0  # frames that are judged, where not all are
        self.remarks: list[str] = []
        self._taken: set[int] = set()  # notes that were given by `behind`

    def hears(self, channel: StageChannel, message: tuple[Any, ...]) -> None:
        """The actor says something on a channel."""
        assert self.actor is not None
        fields, octets = shown(message, payload=self.payload)
        session = self.actor.session_of(channel, message)  # type: ignore[arg-type]
        self.notes(channel.peer, type(message).__name__, session, fields, octets)

    def notes(self, peer: str, name: str, session: int, fields: dict[str, Any], octets: int = 0) -> None:
        """It says something, to whomever."""
        self.said.append(Said(peer, name, session, fields, octets, self.at, round(self.loop.now * 1e9)))

    def channel(self, loop: Loop, sock: Any, me: str, peer: str, on_message: Any, on_gone: Any, *, resumed: bool = False) -> StageChannel:
        """What the shell's room finds in the place of Channel."""
        del loop, sock, resumed
        channel = StageChannel(self, me, peer, on_message, on_gone)
        self.channels.append(channel)
        return channel

    @contextlib.contextmanager
    def set_up(self, *rooms: ModuleType, **more: Any) -> Iterator[None]:
        """Put the stage's things in the place of the real ones in the rooms of a shell, for as long as it plays."""
        things = {"Channel": self.channel, "adopt": _adopt, **more}
        before = [(room, name, getattr(room, name)) for room in rooms for name in things if hasattr(room, name)]
        end: Any = Actor.end
        setattr(Actor, "end", _leave)  # noqa: B010  an assignment that the type checker need not judge
        handlers = [(number, signal.getsignal(number)) for number in _SIGNALS]
        try:
            for room, name, _ in before:
                setattr(room, name, things[name])
            yield
        finally:
            for room, name, thing in before:
                setattr(room, name, thing)
            setattr(Actor, "end", end)  # noqa: B010
            for number, handler in handlers:
                signal.signal(number, handler)

    def enter(self, actor: Actor, start: float) -> None:
        """The shell comes on, its channel to the kernel with it. `start`: the clock then."""
        self.actor = actor
        self.loop.now = start
        actor.loop = self.loop
        actor.kernel = self.channel(self.loop, None, actor.boot.name, "kernel", actor._on_kernel, None)  # type: ignore[assignment]  # noqa: SLF001

    def remark(self, text: str) -> None:
        """Say, once, what is left out."""
        if text not in self.remarks:
            self.remarks.append(text)

    def halt(self, why: str) -> None:
        """What comes from this frame on depends on what is not known."""
        self.until = max(1, self.at)
        self.remark(f"{why}: replayed up to there")

    def left(self, frames: Sequence[Frame]) -> None:
        """The actor has ended. That may be too early where it has nothing to stay for but what was left out.

        What the recorded one said because of this very frame it may have said as it ended, too: that is judged.
        """
        turn = frames[self.at].turn
        rest = itertools.dropwhile(lambda f: f.turn == turn and f.way != "in" and f.name != "Timer", frames[self.at + 1 :])
        if (self.skipped or not self.whole) and any(frame.way == "out" for frame in rest):
            self.until = self.at + 1
            self.remark("it was kept by sessions that are left out: replayed up to where it would have ended")

    @property
    def guided(self) -> bool:
        """Whether what others' sessions decided is to be taken from the recording: they are not in it, and it says what they decided."""
        return not self.whole and self.loop.turns

    def play(self, frames: Sequence[Frame]) -> Iterator[Frame]:
        """Frame by frame, and between two turns of the actor's loop what a turn does at its end: what came in one goes out as one."""
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
        """The next note of that name that the recorded actor made of a session because of the frame that is being played."""
        for at in range(self.at + 1, len(frames)):
            frame = frames[at]
            if frame.way == "in" or frame.name == "Timer":
                break
            if frame.name == name and frame.session == session and at not in self._taken and fields.items() <= frame.fields.items():
                self._taken.add(at)
                return frame
        return None

    def clock(self, frames: Sequence[Frame]) -> None:
        """Let the clock come to the frame that is to be played. One that is said, not told, a timer has caused: then that was its time."""
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
        """Give a recorded message, or the end of a channel, to the channel it came on; False where there is none."""
        channel = self.find(frame)
        if channel is None:
            return False
        if frame.name == "Gone":
            channel.gone = True
            channel.on_gone(channel, frame.fields.get("why", ""))
            return True
        message = message_of(frame, kind_of(frame.peer), kind_of(channel.me))
        many = CARRIES.get(type(message), 0) or int(getattr(message, "fresh", False))
        channel.on_message(channel, message, [os.open(os.devnull, os.O_RDONLY) for _ in range(many)])
        return True

    def find(self, frame: Frame) -> StageChannel | None:
        """The open channel a frame belongs to: to such a peer, and of that session where it is one session's."""
        assert self.actor is not None
        kind = kind_of(frame.peer)
        fitting = [c for c in self.channels if not c.gone and kind_of(c.peer) == kind]
        fitting = [c for c in fitting if c.peer in {frame.peer, kind}] or ([] if kind == "auth" else fitting)
        sessions = [(c, self.actor.session_of(c, ())) for c in fitting]  # type: ignore[arg-type]
        return next((c for c, session in sessions if session == frame.session), None) or next((c for c, s in sessions if not s), None)


def _leave(actor: Actor) -> None:
    """In the place of an actor's end."""
    del actor
    raise LeftError


def _adopt(fd: int) -> StageSocket:
    os.close(fd)
    return StageSocket()


def message_of(frame: Frame, source: str, target: str) -> tuple[Any, ...]:
    """The message that a frame shows. RecordingError where this program's table has no such message there.

    A secret becomes its mark, cut content as many octets of nothing in particular.
    """
    row = edge(source, target)
    found = next((c for c in row.messages if c.__name__ == frame.name), None)
    if found is None:
        raise RecordingError(f"{frame.name} may not go {source}>{target} any more: record it anew")
    kinds = fields_of(found)
    if set(kinds) != set(frame.fields):
        raise RecordingError(f"{frame.name} has other fields now ({', '.join(kinds)}): record it anew")
    values = [_value(frame.fields[name]) for name in kinds]
    try:
        compile_check(found)(values)
    except BadMessageError as error:
        raise RecordingError(f"{error}: record it anew") from None
    make: Any = found
    made: tuple[Any, ...] = make(*values)
    return made


def _value(value: Any) -> Any:
    if value == SECRET:
        return SECRET.encode()
    if type(value) is dict:
        return value["content"] if "content" in value else b"x" * max(0, is_cut(value))
    return value


def boot_of(name: str, config: dict[str, Any]) -> Boot:
    """For an actor on the stage: it is never locked in, for it never serves. Keys that `config` lacks have their defaults."""
    keys = told(Config(), kind_of(name).partition(".")[0])
    return Boot(name, None, 0, 0, {**keys, "verbose": 9, **config}, sandboxed=False)  # type: ignore[arg-type]
