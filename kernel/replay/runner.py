"""Replay a recording: give fresh actors what the recorded ones received, and compare what they send.

    from popkernel.kernel.replay.runner import replay
    from popkernel.proto.trace.recording import read

    with open("alice.rec", "rb") as file:
        for result in replay(read(file.read())):
            print(result.actor, result.compared, result.differences)

harness.py runs an actor's own shell and core; decisions.py replays the kernel's decisions. What can't be
replayed is named in the result's notes.
"""

import os
import shutil
import tempfile
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from popkernel.kernel.operator.viewers import FilterError, TraceFilter, matches_instance
from popkernel.kernel.replay import comparison
from popkernel.kernel.replay.comparison import Difference, Result
from popkernel.kernel.replay.decisions import decide
from popkernel.kernel.replay.harness import Harness
from popkernel.kernel.replay.snapshots import SnapshotError, put, take
from popkernel.proto import topology
from popkernel.proto.schema import BadMessageError
from popkernel.proto.trace.recording import Frame, Recording, RecordingError
from popkernel.proto.trace.redaction import is_cut

__all__ = ["replay", "updated"]

_PLAYED = ("listener", "auth", "maildir.{user}", "mda")
_CHANGES = ("DeliveryWhole", "DeliveryCommit", "Quit")
_MOVES = ("SessionOpen", "SessionWake")  # put mail from new/ into cur/


def replay(recording: Recording, *, actor: str = "", maildir: str = "") -> list[Result]:
    """Replay every actor in the recording, or those that the name `actor` matches.

    `maildir`: path of a maildir to copy where the recording has none.

    Raises:
        RecordingError: no such actor, another topology's messages, or a damaged recording.
    """
    results: list[Result] = []
    known = {frame.actor for frame in recording.frames if frame.actor}
    if actor and not any(matches_instance(actor, name) for name in known):
        raise RecordingError(f"no actor {actor!r} in it; there are: {', '.join(sorted(known)) or 'none'}")
    wish = _wish(recording)
    for name in sorted(known):
        if actor and not matches_instance(actor, name):
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
        except Exception as error:
            # a recording may hold anything, and the replayed actor relies on decoded, valid messages
            raise RecordingError(
                f"{name}: can't be played: {_what(error)}{_other_table(recording)}"
            ) from error
    return results


def _wish(recording: Recording) -> TraceFilter:
    """Return the filter with which the recording was made."""
    try:
        return TraceFilter(recording.header.get("watches", {}))
    except FilterError as error:
        raise RecordingError(
            f"no popkernel recording: its header asks for what nobody can: {error}"
        ) from None


def _kind(name: str) -> str:
    try:
        return topology.kind_of(name)
    except KeyError:
        raise RecordingError("no actor of this program's") from None


def _what(error: Exception) -> str:
    """Name the error and its place: either the recording is damaged, or an actor has a fault."""
    at = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {str(error)[:200]} ({os.path.basename(at.filename)}:{at.lineno})"


def _of(frames: Sequence[Frame], name: str) -> list[Frame]:
    """Return an actor's frames by time.

    A recording of one user has a session's first frames behind the one that names the user.
    """
    return sorted((f for f in frames if f.actor == name), key=lambda f: f.time)


def _other_table(recording: Recording) -> str:
    there, here = recording.header.get("topology"), topology.digest()
    return "" if there == here else f" (it was made with topology {there}, this program has {here})"


def _until_lost(recording: Recording, name: str, frames: list[Frame]) -> tuple[list[Frame], list[str], bool]:
    """Return an actor's frames up to the first missing one, notes, and whether any are missing."""
    notes = [recording.damage] if recording.damage else []
    for index, frame in enumerate(frames):
        if frame.lost:
            return (
                frames[:index],
                [*notes, f"{frame.lost} frames are missing behind frame {index}: replayed up to there"],
                True,
            )
    lost = next((i for i, f in enumerate(recording.frames) if f.name == "Lost"), None)
    if lost is not None:
        kept = _of(recording.frames[:lost], name)
        return kept, [*notes, f"frames are missing behind frame {len(kept)}: replayed up to there"], True
    return frames, notes, bool(recording.damage)


def _actor(
    recording: Recording, name: str, frames: list[Frame], wish: TraceFilter, *, maildir: str
) -> Result:
    frames, notes, cut_off = _until_lost(recording, name, frames)
    kind = topology.kind_of(name)
    module: Any = import_module(topology.actor(name).module.rpartition(".")[0] + ".replay")
    starts = [i for i, f in enumerate(frames) if f.name == "Settings"]
    out = Result(name, frames, [], [], notes, 0)
    if wish.types or wish.edge:
        notes.append(
            "chosen messages only (--type, --edge), not all that the actor received: nothing can be replayed"
        )
        return out
    if not starts:
        notes.append("its settings are not in the recording: nothing can be replayed")
        return out
    if any(is_cut(frames[i].fields) >= 0 for i in starts):
        notes.append("the actor's state was too large to be recorded: nothing can be replayed")
        return out
    with tempfile.TemporaryDirectory(prefix="popkernel-replay.") as where:
        more: list[str] = []
        if kind == "maildir.{user}":
            if not _lay_out(recording, maildir, where):
                notes.append(
                    "no maildir: record with --with-maildir, or give --maildir; nothing was replayed"
                )
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
        # each Settings frame begins a new run: the actor ended, and was started again
        for number, start in enumerate(starts):
            life = frames[start : starts[number + 1] if number + 1 < len(starts) else len(frames)]
            harness = Harness(payload=wish.payload, user=wish.user, session=wish.session, strange=strange)
            try:
                module.play(harness, name, life[0].fields, life, *more)
            except BadMessageError as error:
                differences.append(
                    Difference(
                        name,
                        start + harness.at,
                        f"sends a message that is not allowed: {error}",
                        [],
                        life[max(0, harness.at - 3) : harness.at + 1],
                    )
                )
            if harness.until:
                unjudged |= set(range(start + harness.until, start + len(life)))
                life = life[: harness.until]
            strange = harness.strange
            spoken = [one for one in harness.said if comparison.recorded_of(wish, name, sessions, one)]
            aside += len(harness.said) - len(spoken)
            notes += [remark for remark in harness.remarks if remark not in notes]
            differences += [
                d._replace(where=d.where + start)
                for d in comparison.compare(name, life, spoken, skipped=harness.skipped, cut_off=cut_off)
            ]
            said += [
                one._replace(after=one.after + start) for one in spoken if one.session not in harness.skipped
            ]
            skipped |= harness.skipped
            compared += sum(f.way == "out" and f.session not in harness.skipped for f in life)
    if aside:
        notes.append(f"{aside} messages outside of the recording's filter: left out")
    if not whole:
        skipped &= sessions  # Settings names all of the actor's sessions, not only the recording's
    if skipped:
        notes.append(f"{len(skipped)} sessions had begun before the recording, or can't be played: left out")
    return Result(name, frames, said, differences, notes, compared, frozenset(unjudged))


def _changed_meanwhile(recording: Recording, frames: list[Frame], notes: list[str]) -> bool:
    """Return whether this actor may have changed the maildir while it was copied into the recording."""
    begun, done = recording.header.get("maildir_taken", (0, 0))
    told = [f for f in frames if f.way == "in" and f.time <= done]
    if not any(f.name in _CHANGES or (f.name in _MOVES and f.time >= begun) for f in told):
        return False
    notes.append("the maildir changed while it was taken along: sessions are left out")
    return True


def _lay_out(recording: Recording, maildir: str, where: str) -> bool:
    """Make a copy of the maildir in `where`, for the actor to change; return False if there is no maildir."""
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
        return []  # the kernel's messages were recorded, but not its decisions
    differences = []
    for index, recorded, now in decisions:
        if recorded != now:
            fields = frames[index].fields
            title = f"{fields['room']}.{fields['method']} returns other actions"
            lines = [f"recorded: {_plain(recorded)}", f"now:      {_plain(now)}"]
            differences.append(Difference("kernel", index, title, lines, frames[max(0, index - 3) : index]))
    return [Result("kernel", frames, [], differences, [], len(decisions))]


def _plain(effects: Any) -> str:
    """Return frozen effects as a short text."""
    if isinstance(effects, list):
        return "[" + ", ".join(_plain(e) for e in effects) + "]"
    if isinstance(effects, dict) and "is" in effects:
        return f"{effects['is']}({', '.join(_plain(e) for e in effects.get('of', ()))})"
    return repr(effects)


def updated(recording: Recording, results: Sequence[Result]) -> list[Frame]:
    """Return the recording's frames, with the replayed output in the place of each differing actor's."""
    anew: dict[str, list[Frame]] = {}
    for result in results:
        if not result.differences:
            continue
        if result.actor == "kernel":
            anew["kernel"] = _decided(result)
        else:
            anew[result.actor] = comparison.rewritten(
                result, {f.session for f in result.frames} - {s.session for s in result.said} - {0}
            )
    kept = [f for f in recording.frames if f.actor not in anew]
    # stable: an actor's own order stays
    return sorted([*kept, *(f for frames in anew.values() for f in frames)], key=lambda f: f.time)


def _decided(result: Result) -> list[Frame]:
    now = {index: effects for index, _, effects in decide(result.frames)}
    return [
        f._replace(fields={**f.fields, "effects": now[i]}) if i in now else f
        for i, f in enumerate(result.frames)
    ]
