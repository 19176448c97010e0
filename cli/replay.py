"""``popkernel replay``: recordings to fresh actors, differences to people."""

import argparse
import contextlib
import os
import stat
import sys

from popkernel.cli.story import Scene
from popkernel.cli.tell import Pretty
from popkernel.kernel.replaying import Difference, Result, replay, updated
from popkernel.kernel.snapshot import SnapshotError
from popkernel.proto import topology
from popkernel.proto.recording import Frame, Recording, RecordingError, end, pack, read

__all__ = ["run"]

DIFFERENT = 1
_MOST = 10  # differences shown of one actor


def run(options: argparse.Namespace) -> int:
    """Run ``popkernel replay``."""
    worst = os.EX_OK
    for path in options.files:
        worst = max(worst, _file(path, options))
    return worst


def _file(path: str, options: argparse.Namespace) -> int:
    try:
        with open(path, "rb") as file:
            recording = read(file.read())
        if recording.damage:
            print(f"{path}: {recording.damage}; replayed up to there", file=sys.stderr)
        results = replay(recording, actor=options.actor or "", maildir=options.maildir or "")
    except IsADirectoryError:
        print(f"popkernel: {path}: a directory; name the recordings in it, as {os.path.join(path, '*.rec')}", file=sys.stderr)
        return os.EX_NOINPUT
    except OSError as error:
        print(f"popkernel: {path}: {error.strerror}", file=sys.stderr)
        return os.EX_NOINPUT
    except (RecordingError, SnapshotError) as error:
        print(f"popkernel: {path}: {error}", file=sys.stderr)
        return os.EX_DATAERR
    if not any(result.compared for result in results):
        print(f"popkernel: {path}: nothing in it can be replayed", file=sys.stderr)
        for result in results:
            _tell(path, result, recording)
        return os.EX_DATAERR
    for result in results:
        _tell(path, result, recording)
    if not any(result.differences for result in results):
        return os.EX_OK
    return _update(path, recording, results) if options.update else DIFFERENT


def _tell(path: str, result: Result, recording: Recording) -> None:
    count = len(result.differences)
    verdict = "as recorded" if not count else f"{count} difference{'s' if count > 1 else ''}"
    print(f"{path}: {result.actor}: {f'{result.compared} messages, {verdict}' if result.compared or count else 'nothing to compare'}")
    for note in result.notes:
        if note != recording.damage:
            print(f"  note: {note}")
    for difference in result.differences[:_MOST]:
        _show(difference, recording)
    if count > _MOST:
        print(f"  ... and {count - _MOST} more")


def _show(difference: Difference, recording: Recording) -> None:
    print(f"  frame {difference.where}: {difference.title}")
    pretty = Pretty(recording.header.get("monotonic", 0), width=0, colour=False, ascii_only=not _utf8())
    for frame in difference.before:
        text = pretty.tell(Scene(frame))
        if text:
            print(f"    {text}")
    for line in difference.lines:
        print(f"  ! {line}")


def _utf8() -> bool:
    return (sys.stdout.encoding or "").lower().startswith("utf")


def _update(path: str, recording: Recording, results: list[Result]) -> int:
    """Write the recording anew, in one step; as private as it was."""
    frames: list[Frame] = updated(recording, results)
    real = os.path.realpath(path)
    temporary = f"{real}.new"
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            print(f"popkernel: {path}: no file that could be updated", file=sys.stderr)
            return os.EX_CANTCREAT
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, stat.S_IMODE(status.st_mode)), "wb") as file:
            file.write(pack({**recording.header, "topology": topology.digest()}))
            file.writelines(pack(frame) for frame in frames)
            file.write(pack(end(len(frames), 0)))
        os.replace(temporary, real)
    except FileExistsError:
        print(f"popkernel: {temporary}: is there already, from an update that was broken off? remove it", file=sys.stderr)
        return os.EX_CANTCREAT
    except OSError as error:
        print(f"popkernel: {path}: {error.strerror}", file=sys.stderr)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        return os.EX_CANTCREAT
    print(f"{path}: updated")
    return os.EX_OK
