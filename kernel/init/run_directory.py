"""Make, check and lock the run directory, and remove it at the end."""

import contextlib
import fcntl
import os
import shlex
import shutil
import stat

from popkernel.kernel.config.keys import default_run_dir
from popkernel.kernel.runtime.exit_codes import EXITS

__all__ = ["RunDir", "StartError", "problem"]

_MEND = "give another directory with --run-dir"
_YOURS = "give a directory of your own with --run-dir"


class StartError(Exception):
    """The service can't start. `status`: sysexits(3)."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def _owner_problem(path: str, state: os.stat_result) -> tuple[int, str, str] | None:
    """Return exit code, what and mend if it is no writable directory, or others can put sockets into it."""
    if not stat.S_ISDIR(state.st_mode):
        return EXITS["cantcreat"].code, "is no directory", _MEND
    if state.st_uid not in (0, os.geteuid()):
        return EXITS["noperm"].code, f"belongs to uid {state.st_uid}", _YOURS
    if state.st_mode & 0o002:
        own = f"give a directory of its own with --run-dir, for example {default_run_dir()}"
        # no chmod for /tmp and its like, which everybody may write to on purpose
        mend = (
            own
            if state.st_mode & stat.S_ISVTX or state.st_uid != os.geteuid()
            else f"chmod o-w {shlex.quote(path)}, or {own}"
        )
        return EXITS["noperm"].code, "can be written by everybody", mend
    if not os.access(path, os.W_OK | os.X_OK):
        return EXITS["noperm"].code, f"belongs to uid {state.st_uid} and is not yours to write in", _YOURS
    return None


def problem(path: str) -> tuple[int, str, str] | None:
    """Return exit code, what and mend if a start can't use this run directory. Makes nothing."""
    cannot = EXITS["cantcreat"].code
    try:
        state = os.stat(path)
    except FileNotFoundError:
        if os.path.islink(path):
            return (
                cannot,
                "is a link that leads nowhere",
                f"rm {shlex.quote(path)}, or give another --run-dir",
            )
        above = os.path.dirname(path.rstrip("/"))
        while not os.path.lexists(above):
            above = os.path.dirname(above)
        if not os.path.isdir(above):
            return cannot, f"cannot be made: {above} is no directory", _MEND
        return (
            None
            if os.access(above, os.W_OK | os.X_OK)
            else (cannot, f"cannot be made: {above} is not yours to write in", _MEND)
        )
    except OSError as error:
        return cannot, error.strerror or str(error), _MEND
    found = _owner_problem(path, state)
    if found is not None:
        return found
    lock = f"{path}/lock"
    if os.path.lexists(lock) and not stat.S_ISREG(os.lstat(lock).st_mode):
        return (
            cannot,
            "`lock` in it is no regular file",
            f"move {shlex.quote(lock)} away, or give another --run-dir",
        )
    return None


class RunDir:
    """The run directory and its lock: one service a directory."""

    def __init__(self, path: str) -> None:
        """Make and lock the directory.

        Raises:
            StartError: another service has it, or it can't be made.
        """
        self.path = path
        self.lock = -1
        self._made: list[str] = []  # directories that this start made, outermost first
        try:
            self._claim()
        except BaseException as error:
            if isinstance(error, OSError) and self.path in self._made:  # no other service uses it yet
                with contextlib.suppress(OSError):
                    os.unlink(f"{self.path}/lock")
            self._remove_made()
            raise
        # fails on a full disk: the number is for people only, the lock decides
        with contextlib.suppress(OSError):
            os.ftruncate(self.lock, 0)
            os.pwrite(self.lock, f"{os.getpid()}\n".encode(), 0)

    def _claim(self) -> None:
        # an earlier service that ends just now may remove lock and directory in between
        for _ in range(100):
            with contextlib.suppress(FileNotFoundError):
                if self._take():
                    return
        raise StartError(
            EXITS["cantcreat"].code,
            f"{self.path}: another process removes it again and again; give another --run-dir",
        )

    def _make(self) -> None:
        missing = []
        above = os.path.dirname(self.path.rstrip("/"))
        while not os.path.lexists(above):
            missing.append(above)
            above = os.path.dirname(above)
        for directory in reversed(missing):
            # if another service made it meanwhile, this one does not remove it
            with contextlib.suppress(FileExistsError):
                os.mkdir(directory)
                if directory not in self._made:
                    self._made.append(directory)
        try:
            os.mkdir(self.path, 0o711)
            self._made.append(self.path)
        except FileExistsError:
            if not os.path.isdir(self.path):
                raise

    def _take(self) -> bool:
        """Make the directory, and take its lock; return False if another service removed it in between."""
        path = self.path
        try:
            self._make()
            found = _owner_problem(path, os.stat(path))
            if found is not None:
                raise StartError(found[0], f"{path}: {found[1]}; {found[2]}")
            lock = os.open(f"{path}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except FileNotFoundError:
            raise
        except FileExistsError:
            raise StartError(EXITS["cantcreat"].code, f"{path}: is no directory; {_MEND}") from None
        except OSError as error:
            raise StartError(EXITS["cantcreat"].code, f"{path}: {error.strerror}; {_MEND}") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(lock, 32, 0).decode(errors="replace").strip()
            os.close(lock)
            raise StartError(
                EXITS["unavailable"].code,
                f"a popkernel (process {pid or '?'}) already runs on {path}; "
                "stop it, or give another --run-dir",
            ) from None
        except OSError as error:
            os.close(lock)
            if path in self._made:
                os.unlink(f"{path}/lock")
            raise StartError(EXITS["cantcreat"].code, f"{path}/lock: {error.strerror}; {_MEND}") from None
        mine, named = os.fstat(lock), os.stat(f"{path}/lock", follow_symlinks=False)
        if (mine.st_dev, mine.st_ino) == (named.st_dev, named.st_ino):
            self.lock = lock
            return True
        os.close(lock)
        return False

    def tidy(self) -> None:
        """Remove all that the service made, the lock while it is still held.

        The kernel calls this when init was killed; it may not remove the directory itself.
        """
        for name in ("control.sock", "lmtp.sock", "lock"):
            # not all of them exist
            with contextlib.suppress(OSError):
                os.unlink(f"{self.path}/{name}")
        with contextlib.suppress(OSError):
            for name in os.listdir(self.path):
                if name.startswith("rehearsal-"):  # of a spawner that was killed during its rehearsal
                    shutil.rmtree(f"{self.path}/{name}", ignore_errors=True)
                elif name.startswith("mta") and name.endswith(".sock"):
                    os.unlink(f"{self.path}/{name}")
            os.rmdir(self.path)
            self._remove_made()

    def _remove_made(self) -> None:
        """Remove the directories that this start made, if they are empty."""
        for directory in reversed(self._made):
            with contextlib.suppress(OSError):
                os.rmdir(directory)
