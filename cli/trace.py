"""`popkernel trace`: attach to the running server, print what passes between actors, record it, detach."""

import argparse
import errno
import os
import shutil
import signal
import stat
import sys
import time
from collections.abc import Iterable
from typing import Any, BinaryIO

from popkernel.cli.common.parser import FILE, CommandParser, complete
from popkernel.cli.common.run_directory import add_which_server, run_dir_of
from popkernel.cli.common.trace_scenes import HIDDEN, Json, Mermaid, Pretty
from popkernel.cli.common.trace_story import Scene, Story
from popkernel.kernel.client import Client, ClientError, Trace
from popkernel.kernel.replay.snapshots import SnapshotError, take
from popkernel.proto.trace.recording import Frame, end, header, pack
from popkernel.proto.trace.session_names import GENERATION, session_name, session_number

_TICK = 0.05  # seconds between two outputs


class _StopError(Exception):
    """A reason to exit with this code."""

    def __init__(self, code: int, text: str = "") -> None:
        super().__init__(text)
        self.code = code


def define(parser: CommandParser) -> None:
    """Define the flags and the help."""
    parser.describe(
        "Attach to the running server and show what passes between its actors, until Ctrl-C. Nothing is\n"
        "restarted. Any number of viewers may attach; a slow one delays nobody, but loses frames, which are\n"
        "counted. Passwords are never shown; mail is shown as its size. Only root and the user who runs the\n"
        "server may attach.",
        """
        popkernel trace
        popkernel trace --user alice
        popkernel trace auth --type LoginRefused,LoginGranted --count 10
        popkernel trace --address 192.0.2.0/24
        popkernel trace --slow 500
        popkernel trace --session 1.17 --format mermaid > session.mmd
        popkernel trace --format json --for 60 | jq -r 'select(.took_seconds > 0.1) | .name'
        popkernel trace maildir.alice --record alice.rec --with-maildir
        """,
        "usage nouser unavailable software cantcreat ioerr tempfail noperm config",
    )
    add = parser.add_argument
    add(
        "actor",
        metavar="ACTOR",
        nargs="?",
        help="only this actor: listener.0, or listener for all of them, maildir.USER, kernel ...",
    )
    add("--user", metavar="USER", help="only sessions, deliveries and the maildir actor of this user")
    add(
        "--session",
        metavar="ID",
        type=_session,
        default=0,
        help="only this session, as status, trace and the log show it: 1.17",
    )
    add("--address", metavar="CIDR", help="only sessions of clients at this address, or in this network")
    add(
        "--slow",
        metavar="MS",
        type=_milliseconds,
        default=0,
        help="only sessions whose client waited so long for an answer, once it has; with what came before",
    )
    add("--edge", metavar="FROM:TO", help="only messages between these two, for example listener:auth")
    add(
        "--type",
        metavar="NAME,...",
        default=[],
        type=lambda text: [n for n in text.split(",") if n],
        help="only messages of these names",
    )
    add(
        "--format",
        choices=("pretty", "json", "mermaid"),
        default="pretty",
        help="for people, programs, or as a diagram (default pretty)",
    )
    what = "also write it to this file, for `popkernel replay`"
    complete(add("--record", metavar="FILE", help=what), FILE)
    add(
        "--with-maildir",
        action="store_true",
        help="with --record and one user: include that maildir as it is now, mail and all",
    )
    add(
        "--force",
        action="store_true",
        help="with --record: overwrite a file that is not empty",
    )
    add("--count", metavar="N", type=_count, help="detach after this many lines")
    add("--for", dest="seconds", metavar="SECONDS", type=_seconds, help="detach after this time")
    add("--payload", action="store_true", help="with the content of mail; root only")
    add_which_server(parser)


def _session(text: str) -> int:
    """Parse a session's name as `trace`, `status` and the log show it."""
    try:
        number = session_number(text)
        if number < 1 << 63:
            return number
        raise ValueError(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no session: give it as status, trace and the log show it, 1.17"
        ) from None


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of lines; give 1 or more")
    return int(text)


def _milliseconds(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no time; give milliseconds, 1 or more")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no time; give seconds, more than 0")
    return seconds


def run(options: argparse.Namespace) -> int:
    """Run `popkernel trace`."""
    try:
        _check(options)
        with Client(run_dir_of(options)).follow(
            actor=options.actor or "",
            user=options.user or "",
            session=options.session,
            edge=options.edge or "",
            types=options.type,
            address=options.address or "",
            slow=options.slow,
            payload=options.payload,
            decisions=bool(options.record)
            and options.actor in (None, "kernel")
            and not (options.user or options.session or options.edge or options.type)
            and not (options.address or options.slow),
        ) as trace:
            _check_session(options, trace)
            recorder = _recorder(options, trace) if options.record else None
            return _watch(options, trace, recorder)
    except (ClientError, _StopError, SnapshotError) as error:
        if str(error):
            print(f"popkernel: {error}", file=sys.stderr)
        return error.code


def _check(options: argparse.Namespace) -> None:
    if sum(bool(given) for given in (options.actor, options.user, options.session)) > 1:
        raise _StopError(os.EX_USAGE, "ACTOR, --user and --session: give one of them")
    for name in ("actor", "user", "edge", "record", "address"):
        if getattr(options, name) == "":  # most likely an unset variable
            raise _StopError(
                os.EX_USAGE, f"{'--' if name != 'actor' else ''}{name} is empty; name one, or leave it out"
            )
    if options.with_maildir and not options.record:
        raise _StopError(os.EX_USAGE, "--with-maildir goes into a recording: give --record FILE")
    if options.force and not options.record:
        raise _StopError(os.EX_USAGE, "--force is for a recording: give --record FILE")


def _check_session(options: argparse.Namespace, trace: Trace) -> None:
    """Refuse a session that does not exist: the trace would wait without end."""
    if options.session and trace.sessions is not None and options.session not in trace.sessions:
        name = session_name(options.session) if options.session >= GENERATION else str(options.session)
        what = f"there is no session {name} now"
        raise _StopError(
            os.EX_USAGE,
            f"{what}; `popkernel status` shows those that are logged in,"
            " --user USER follows a user's next one",
        )


def _recorder(options: argparse.Namespace, trace: Trace) -> "Recorder":
    return Recorder(options.record, trace, _maildir(options, trace), force=options.force)


def _maildir(options: argparse.Namespace, trace: Trace) -> dict[str, Any]:
    """Return the maildir as it is now, for the header."""
    if not options.with_maildir:
        return {}
    path = trace.answer.get("maildir")
    if not path:
        raise _StopError(os.EX_USAGE, "--with-maildir needs a user: give maildir.USER or --user USER")
    begun = time.monotonic_ns()
    return {"maildir": take(path), "maildir_taken": [begun, time.monotonic_ns()]}


class Recorder:
    """Write frames into a file. A fault of the file ends the recording, but not the trace."""

    def __init__(self, path: str, trace: Trace, more: dict[str, Any], *, force: bool = False) -> None:
        """Raises _StopError if the file cannot be written, or is not empty (unless `force`)."""
        self.path = path
        self.frames = 0
        self._trace = trace
        self._file: BinaryIO | None = None
        try:
            fd = _open(path, force=force)
        except OSError as error:
            raise _StopError(
                os.EX_CANTCREAT, f"{path}: {error.strerror}; give another file with --record"
            ) from None
        self._file = open(fd, "wb")  # noqa: SIM115  closed by `close`
        self._write(pack(header(trace.answer, **more)))

    def _write(self, data: bytes) -> None:
        if self._file is None:
            return
        try:
            self._file.write(data)
            self._file.flush()
        except OSError as error:
            file, self._file = self._file, None
            _close_quietly(file)
            where = f"behind {self.frames} frames"
            print(
                f"popkernel: {self.path}: {error.strerror}; the recording ends here, {where}",
                file=sys.stderr,
            )

    @property
    def failed(self) -> bool:
        """Whether writing the file has failed."""
        return self._file is None

    def take(self, frame: Frame) -> None:
        """Write a frame."""
        self._write(pack(frame))
        self.frames += 1

    def close(self) -> None:
        """Write the end map, which proves that nothing was cut off, and close the file."""
        self._write(pack(end(self.frames, self._trace.lost)))
        if self._file is not None:
            self._file.close()


def _open(path: str, *, force: bool) -> int:
    """Open a new file, or one that belongs to the caller alone.

    Another owner could read the recording. A link could lead to a file that must not be overwritten.
    """
    flags = os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NOCTTY
    try:
        return os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        if os.path.islink(path):
            raise OSError(errno.ELOOP, "is a symbolic link") from None
    fd = os.open(path, flags | os.O_NONBLOCK)  # a pipe may have no reader
    try:
        found = os.fstat(fd)
        regular = stat.S_ISREG(found.st_mode)
        if found.st_uid not in (
            {os.geteuid()} if regular or stat.S_ISFIFO(found.st_mode) else {os.geteuid(), 0}
        ):
            raise OSError(errno.EPERM, f"belongs to uid {found.st_uid}, who could read the recording")
        if regular and found.st_nlink > 1:
            raise OSError(errno.EMLINK, "has another hard link")
        if regular and found.st_size and not force:
            raise _StopError(
                os.EX_CANTCREAT,
                f"{path}: there is a file already; give another with --record, or --force to lose it",
            )
        if regular:
            os.fchmod(fd, 0o600)  # others may have been allowed to read it
            os.ftruncate(fd, 0)
        os.set_blocking(fd, True)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _close_quietly(file: BinaryIO) -> None:
    """Close a file that cannot be written: Python tries again, and raises."""
    try:
        file.close()
    except OSError:
        return


class _Printer:
    """Print scenes on standard output, up to a number of lines."""

    def __init__(self, renderer: Pretty | Json | Mermaid, most: int | None) -> None:
        self._renderer = renderer
        self._left = most
        self._last = time.monotonic()

    @property
    def full(self) -> bool:
        """Whether that number is reached."""
        return self._left is not None and self._left <= 0

    def due(self) -> bool:
        """Whether it is time to print: frames may come without a pause."""
        return time.monotonic() > self._last + _TICK

    def scenes(self, scenes: Iterable[Scene]) -> None:
        """Print scenes, up to the number."""
        for scene in scenes:
            if self.full:
                break
            text = self._renderer.render(scene)
            if text:
                print(text)
                if self._left is not None:
                    self._left -= 1
        sys.stdout.flush()
        self._last = time.monotonic()

    def line(self, text: str) -> None:
        """Print a line that is no scene."""
        if text:
            print(text, flush=True)


class _Signals:
    """Note Ctrl-C and SIGTERM, which detach: the recording gets its end map."""

    def __init__(self) -> None:
        self.received = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def _ask(self, number: int, where: Any) -> None:
        del number, where
        self.received = True


def _renderer(options: argparse.Namespace, attached: int) -> Pretty | Json | Mermaid:
    if options.format == "json":
        return Json(attached, HIDDEN - set(options.type))
    if options.format == "mermaid":
        return Mermaid()
    terminal = sys.stdout.isatty()
    colour = terminal and "NO_COLOR" not in os.environ and os.environ.get("TERM", "dumb") != "dumb"
    width = shutil.get_terminal_size((120, 24)).columns if terminal else 0
    try:
        "→↩•…".encode(sys.stdout.encoding or "ascii")
        ascii_only = False
    except (UnicodeEncodeError, LookupError):
        ascii_only = True
    return Pretty(attached, width=width, colour=colour, ascii_only=ascii_only)


def _watch(options: argparse.Namespace, trace: Trace, recorder: Recorder | None) -> int:
    """Print frames until the count, the time, a signal or the server ends it."""
    attached = trace.answer["monotonic"]
    renderer = _renderer(options, attached)
    story, printer, stop = Story(), _Printer(renderer, options.count), _Signals()
    print(
        f"popkernel: attached; {'recording to ' + options.record if recorder else 'Ctrl-C detaches'}",
        file=sys.stderr,
        flush=True,
    )
    printer.line(renderer.begin)
    until = time.monotonic() + options.seconds if options.seconds else None
    try:
        while (
            not stop.received
            and not printer.full
            and not trace.ended
            and (until is None or time.monotonic() < until)
        ):
            frame = trace.next_frame(_TICK)
            while frame is not None:
                if recorder is not None:
                    recorder.take(frame)
                story.add(frame, time.monotonic_ns())
                frame = trace.next_frame(0) if not printer.due() else None
            printer.scenes(story.ready(time.monotonic_ns()))
        printer.scenes(story.ready())
        printer.line(renderer.end)
    finally:
        if recorder is not None:
            recorder.close()
    if trace.lost:
        print(
            f"popkernel: {trace.lost} frames were lost: they came faster than they were read", file=sys.stderr
        )
    if recorder is not None and recorder.failed:
        return os.EX_IOERR
    if trace.ended and not stop.received and not printer.full:
        print("popkernel: the server has ended", file=sys.stderr)
        return os.EX_UNAVAILABLE
    return os.EX_OK
