"""`popkernel replay`: feed recordings to fresh actors, and print the differences."""

import argparse
import contextlib
import os
import stat
import sys

from popkernel.cli.common.parser import DIRECTORY, FILE, CommandParser, complete
from popkernel.cli.common.replay_bounds import MEMORY, TooExpensiveError, bounded, read_file
from popkernel.cli.common.trace_scenes import Pretty
from popkernel.cli.common.trace_story import Scene
from popkernel.kernel.replay.comparison import Difference, Result
from popkernel.kernel.replay.runner import replay, updated
from popkernel.kernel.replay.snapshots import SnapshotError
from popkernel.proto import topology
from popkernel.proto.schema import printable
from popkernel.proto.trace.recording import Frame, Recording, RecordingError, end, pack, read

DIFFERENT = 1
_MOST = 10  # differences shown of one actor
_MOST_TEXT = 2000  # characters of a line


def define(parser: CommandParser) -> None:
    """Define the flags and the help."""
    parser.describe(
        "Feed everything that recorded actors received, in order and with the recorded clock and\n"
        "randomness, to fresh actors, and compare what these send with the recording, field by field.",
        """
        popkernel replay tests/replay/*.rec
        popkernel replay alice.rec --actor maildir.alice --maildir /tmp/copy-of-alice
        popkernel replay tests/replay/quit.rec --update
        """,
        "usage data noinput cantcreat ioerr",
        done="everything as recorded",
        codes=((1, "differences"),),
    )
    what = "a recording by `popkernel trace --record`; - for standard input"
    complete(parser.add_argument("files", metavar="FILE", nargs="+", help=what), FILE)
    parser.add_argument("--actor", metavar="NAME", help="only this one of the actors in the recording")
    what = "the maildir as it was when the recording began, if not part of it; a copy is used"
    complete(parser.add_argument("--maildir", metavar="DIR", help=what), DIRECTORY)
    parser.add_argument(
        "--update",
        action="store_true",
        help="write what the actors send now to the recording, if it differs",
    )


def run(options: argparse.Namespace) -> int:
    """Run `popkernel replay`."""
    worst = os.EX_OK
    for path in options.files:
        worst = max(worst, _file("/dev/stdin" if path == "-" else path, options))
    return worst


def _say(text: str, *, error: bool = False) -> None:
    """Print a line. A recording may come from anybody: control characters and bad UTF-8 are escaped."""
    text = printable(text if len(text) <= _MOST_TEXT else text[:_MOST_TEXT] + " ...")
    stream = sys.stderr if error else sys.stdout
    print(
        text.encode(stream.encoding or "ascii", "backslashreplace").decode(stream.encoding or "ascii"),
        file=stream,
    )


def _file(path: str, options: argparse.Namespace) -> int:
    try:
        data = read_file(path)
        with bounded(len(data)):
            return _replay(path, data, options)
    except IsADirectoryError:
        _say(
            f"popkernel: {path}: a directory; name the recordings in it, as {os.path.join(path, '*.rec')}",
            error=True,
        )
        return os.EX_NOINPUT
    except OSError as error:
        _say(
            f"popkernel: {path}: {error.strerror}; name a file that `popkernel trace --record` wrote",
            error=True,
        )
        return os.EX_NOINPUT
    except (RecordingError, SnapshotError) as error:
        _say(f"popkernel: {path}: {error}", error=True)
        return error.code if isinstance(error, SnapshotError) else os.EX_DATAERR
    except MemoryError:
        most = f"{MEMORY >> 30} GiB of memory"
        _say(
            f"popkernel: {path}: takes more than {most}: damaged, or too large to be replayed",
            error=True,
        )
        return os.EX_DATAERR
    except TooExpensiveError as error:
        _say(f"popkernel: {path}: {error}: damaged, or too large to be replayed", error=True)
        return os.EX_DATAERR


def _replay(path: str, data: bytes, options: argparse.Namespace) -> int:
    recording = read(data)
    if recording.damage:
        _say(f"{path}: {recording.damage}; replayed up to there", error=True)
    results = replay(recording, actor=options.actor or "", maildir=options.maildir or "")
    if not any(result.compared for result in results):
        _say(f"popkernel: {path}: nothing in it can be replayed", error=True)
        for result in results:
            _print_result(path, result, recording)
        return os.EX_DATAERR
    for result in results:
        _print_result(path, result, recording)
    if not any(result.differences for result in results):
        return os.EX_OK
    return _update(path, recording, results) if options.update else DIFFERENT


def _print_result(path: str, result: Result, recording: Recording) -> None:
    count = len(result.differences)
    verdict = "as recorded" if not count else f"{count} difference{'s' if count > 1 else ''}"
    compared = f"{result.compared} messages, {verdict}" if result.compared or count else "nothing to compare"
    _say(f"{path}: {result.actor}: {compared}")
    for note in result.notes:
        if note != recording.damage:
            _say(f"  note: {note}")
    for difference in result.differences[:_MOST]:
        _print_difference(difference, recording)
    if count > _MOST:
        _say(f"  ... and {count - _MOST} more")


def _print_difference(difference: Difference, recording: Recording) -> None:
    _say(f"  frame {difference.where}: {difference.title}")
    pretty = Pretty(recording.header.get("monotonic", 0), width=0, colour=False, ascii_only=not _utf8())
    for frame in difference.before:
        text = _frame_text(pretty, frame)
        if text:
            _say(f"    {text}")
    for line in difference.lines:
        _say(f"  ! {line}")


def _frame_text(pretty: Pretty, frame: Frame) -> str:
    try:
        return pretty.render(Scene(frame))
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError):
        # the fields of a recorded frame can be anything
        return f"{frame.name} {frame.fields}"


def _utf8() -> bool:
    return (sys.stdout.encoding or "").lower().startswith("utf")


def _update(path: str, recording: Recording, results: list[Result]) -> int:
    """Write the updated recording in one step, with the mode of the old one."""
    frames: list[Frame] = updated(recording, results)
    real = os.path.realpath(path)
    temporary = f"{real}.new"
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            print(f"popkernel: {path}: no file that could be updated", file=sys.stderr)
            return os.EX_CANTCREAT
        with open(
            os.open(
                temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, stat.S_IMODE(status.st_mode)
            ),
            "wb",
        ) as file:
            file.write(pack({**recording.header, "topology": topology.digest()}))
            file.writelines(pack(frame) for frame in frames)
            file.write(pack(end(len(frames), 0)))
        os.replace(temporary, real)
    except FileExistsError:
        print(
            f"popkernel: {temporary}: is there already, from an update that was broken off? remove it",
            file=sys.stderr,
        )
        return os.EX_CANTCREAT
    except OSError as error:
        print(f"popkernel: {path}: {error.strerror}", file=sys.stderr)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        return os.EX_CANTCREAT
    print(f"{path}: updated")
    return os.EX_OK
