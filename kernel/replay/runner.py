"""Replay: feed what a recorded actor was told to a fresh one, and compare what it says.

    from popkernel.kernel.replay.runner import replay
    from popkernel.proto.trace.recording import read

    with open("alice.rec", "rb") as file:
        for result in replay(read(file.read())):
            print(result.actor, result.compared, result.differences)

The actor is its own shell and core, in a harness (harness.py); the kernel's decisions are replayed by supervisor.py. What can't be
replayed is named in the result's notes, and nothing is left out in silence.
"""

import os
import shutil
import tempfile
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from popkernel.kernel.operator.viewers import Wish, WishError, named
from popkernel.kernel.replay import comparison
from popkernel.kernel.replay.comparison import Difference, Result
from popkernel.kernel.replay.harness import Stage
from popkernel.kernel.replay.snapshots import SnapshotError, put, take
from popkernel.kernel.replay.supervisor import decide
from popkernel.proto import topology
from popkernel.proto.codec import BadMessageError
from popkernel.proto.trace.recording import Frame, Recording, RecordingError
from popkernel.proto.trace.redaction import is_cut

__all__ = ["Difference", "Result", "replay", "updated"]

_PLAYED = ("listener", "auth", "maildir.{user}", "mda")
_CHANGES = ("Post", "Commit", "Quit")
_MOVES = ("Open", "Wake")  # put mail from new/ into cur/


def replay(recording: Recording, *, actor: str = "", maildir: str = "") -> list[Result]:
    """Every actor in the recording, or those that go by the name `actor`. `maildir`: copied where the recording has none with it.

    RecordingError where the recording is of another topology, beyond what can be played.
    """
    results: list[Result] = []
    known = {frame.actor for frame in recording.frames if frame.actor}
    if actor and not any(named(actor, name) for name in known):
        raise RecordingError(f"no actor {actor!r} in it; there are: {', '.join(sorted(known)) or 'none'}")
    wish = _wish(recording)
    for name in sorted(known):
        if actor and not named(actor, name):
            continue
        frames = _of(recording.frames, name)
        try:
            if name == "kernel":
                results += _kernel(frames)
            elif _kind(name) in _PLAYED:
                results.append(_actor(recording, name, frames, wish, maildir=maildir))
        except RecordingError as error:
            raise RecordingError(f"{name}: {error}{_other_table(recording)}") from None
        except (SnapshotError, MemoryError):
            raise
        except Exception as error:  # a recording may say anything, and the actor on the stage takes it for what was decoded
            raise RecordingError(f"{name}: can't be played: {_what(error)}{_other_table(recording)}") from error
    return results


def _wish(recording: Recording) -> Wish:
    """What was asked for when it was made."""
    try:
        return Wish(recording.header.get("watches", {}))
    except WishError as error:
        raise RecordingError(f"no popkernel recording: its header asks for what nobody can: {error}") from None


def _kind(name: str) -> str:
    try:
        return topology.kind_of(name)
    except KeyError:
        raise RecordingError("no actor of this program's") from None


def _what(error: Exception) -> str:
    """What went wrong, and where, for whoever looks whether the recording is damaged or an actor has a fault."""
    at = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {str(error)[:200]} ({os.path.basename(at.filename)}:{at.lineno})"


def _of(frames: Sequence[Frame], name: str) -> list[Frame]:
    """An actor's, as it told them: a recording of one user has the beginning of a session only once it says whose it is."""
    return sorted((f for f in frames if f.actor == name), key=lambda f: f.time)


def _other_table(recording: Recording) -> str:
    there, here = recording.header.get("topology"), topology.digest()
    return "" if there == here else f" (it was made with topology {there}, this program has {here})"


def _until_lost(recording: Recording, name: str, frames: list[Frame]) -> tuple[list[Frame], list[str], bool]:
    """The frames up to where some are missing."""
    notes = [recording.damage] if recording.damage else []
    for index, frame in enumerate(frames):
        if frame.lost:
            return frames[:index], [*notes, f"{frame.lost} frames are missing behind frame {index}: replayed up to there"], True
    lost = next((i for i, f in enumerate(recording.frames) if f.name == "Lost"), None)
    if lost is not None:
        kept = _of(recording.frames[:lost], name)
        return kept, [*notes, f"frames are missing behind frame {len(kept)}: replayed up to there"], True
    return frames, notes, bool(recording.damage)


def _actor(recording: Recording, name: str, frames: list[Frame], wish: Wish, *, maildir: str) -> Result:
    frames, notes, cut_off = _until_lost(recording, name, frames)
    kind = topology.kind_of(name)
    room: Any = import_module(topology.actor(name).module.rpartition(".")[0] + ".replay")
    starts = [i for i, f in enumerate(frames) if f.name == "Settings"]
    out = Result(name, frames, [], [], notes, 0)
    if wish.types or wish.edge:
        notes.append("chosen messages only (--type, --edge), and not all that it was told: nothing can be replayed")
        return out
    if not starts:
        notes.append("its settings are not in the recording: nothing can be replayed")
        return out
    if any(is_cut(frames[i].fields) >= 0 for i in starts):
        notes.append("what was under way when the recording began was too much to be recorded: nothing can be replayed")
        return out
    with tempfile.TemporaryDirectory(prefix="popkernel-replay.") as where:
        more: list[str] = []
        if kind == "maildir.{user}":
            if not _lay_out(recording, maildir, where):
                notes.append("no maildir: record with --with-maildir, or give --maildir; nothing was replayed")
                return out
            more = [where]
        skipped: set[int] = set()
        unjudged: set[int] = set()
        compared = 0
        strange = bool(more and not maildir) and _changed_meanwhile(recording, frames[starts[0] :], notes)
        said: list[Any] = []
        sessions = {frame.session for frame in frames} - {0}
        whole = not (wish.user or wish.session)
        aside = 0
        differences: list[Difference] = []
        for number, start in enumerate(starts):  # each Settings begins a life: an actor that ended and was made anew
            life = frames[start : starts[number + 1] if number + 1 < len(starts) else len(frames)]
            stage = Stage(payload=wish.payload, user=wish.user, session=wish.session, strange=strange)
            try:
                room.play(stage, name, life[0].fields, life, *more)
            except BadMessageError as error:
                differences.append(
                    Difference(name, start + stage.at, f"says what it may not: {error}", [], life[max(0, stage.at - 3) : stage.at + 1])
                )
            if stage.until:
                unjudged |= set(range(start + stage.until, start + len(life)))
                life = life[: stage.until]
            strange = stage.strange
            spoken = [one for one in stage.said if comparison.recorded_of(wish, name, sessions, one)]
            aside += len(stage.said) - len(spoken)
            notes += [remark for remark in stage.remarks if remark not in notes]
            differences += [
                d._replace(where=d.where + start)
                for d in comparison.compare(name, life, spoken, skipped=stage.skipped, cut_off=cut_off)
            ]
            said += [one._replace(after=one.after + start) for one in spoken if one.session not in stage.skipped]
            skipped |= stage.skipped
            compared += sum(f.way == "out" and f.session not in stage.skipped for f in life)
    if aside:
        notes.append(f"{aside} messages of no session, or not of what was asked for: left out")
    if not whole:
        skipped &= sessions  # an actor names all it had when the recording began
    if skipped:
        notes.append(f"{len(skipped)} sessions had begun before the recording, or can't be played: left out")
    return Result(name, frames, said, differences, notes, compared, frozenset(unjudged))


def _changed_meanwhile(recording: Recording, frames: list[Frame], notes: list[str]) -> bool:
    """Whether the maildir was taken along while this actor changed it."""
    begun, done = recording.header.get("maildir_taken", (0, 0))
    told = [f for f in frames if f.way == "in" and f.time <= done]
    if not any(f.name in _CHANGES or (f.name in _MOVES and f.time >= begun) for f in told):
        return False
    notes.append("the maildir changed while it was taken along: sessions are left out")
    return True


def _lay_out(recording: Recording, maildir: str, where: str) -> bool:
    """A copy of the maildir, for the actor to change; False where there is none."""
    snapshot = recording.header.get("maildir")
    if maildir:
        snapshot = take(os.fsencode(maildir))
    if not isinstance(snapshot, dict):
        return False
    shutil.rmtree(where)
    os.mkdir(where, 0o700)
    put(snapshot, where)
    return True


def _kernel(frames: list[Frame]) -> list[Result]:
    decisions = decide(frames)
    if not any(f.name == "State" for f in frames):
        return []  # watched, but not asked for its decisions: its part in a story, which the others tell
    differences = []
    for index, recorded, now in decisions:
        if recorded != now:
            fields = frames[index].fields
            title = f"{fields['room']}.{fields['method']} decides otherwise"
            lines = [f"recorded: {_plain(recorded)}", f"now:      {_plain(now)}"]
            differences.append(Difference("kernel", index, title, lines, frames[max(0, index - 3) : index]))
    return [Result("kernel", frames, [], differences, [], len(decisions))]


def _plain(effects: Any) -> str:
    """Frozen effects, short."""
    if isinstance(effects, list):
        return "[" + ", ".join(_plain(e) for e in effects) + "]"
    if isinstance(effects, dict) and "is" in effects:
        return f"{effects['is']}({', '.join(_plain(e) for e in effects.get('of', ()))})"
    return repr(effects)


def updated(recording: Recording, results: Sequence[Result]) -> list[Frame]:
    """The recording's frames with what was replayed in the place of what was recorded, actor by actor."""
    anew: dict[str, list[Frame]] = {}
    for result in results:
        if not result.differences:
            continue
        if result.actor == "kernel":
            anew["kernel"] = _decided(result)
        else:
            anew[result.actor] = comparison.rewritten(result, {f.session for f in result.frames} - {s.session for s in result.said} - {0})
    kept = [f for f in recording.frames if f.actor not in anew]
    return sorted([*kept, *(f for frames in anew.values() for f in frames)], key=lambda f: f.time)  # stable: an actor's own order stays


def _decided(result: Result) -> list[Frame]:
    now = {index: effects for index, _, effects in decide(result.frames)}
    return [f._replace(fields={**f.fields, "effects": now[i]}) if i in now else f for i, f in enumerate(result.frames)]
