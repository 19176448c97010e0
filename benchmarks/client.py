"""Compile and run the load client, and read its figures.

The source is load/popload.c; one client loads either server. Every run is bounded in time, and a run in which
a session failed is an error, not a figure.
"""

import contextlib
import os
import select
import signal
import subprocess
import time

HERE = os.path.dirname(os.path.abspath(__file__))
SOURCES = [os.path.join(HERE, "load", name) for name in ("popload.c", "tls13.h")]
BINARY = os.path.join(os.path.dirname(HERE), "build", "popload")
BOUND = 300
"""Seconds a run may take."""


class LoadError(RuntimeError):
    """Report that the client could not be built, or that a session failed."""


def build():
    """Compile the client if it is missing or older than its source; return its path.

    Raises LoadError without a compiler or OpenSSL's headers.
    """
    if os.path.exists(BINARY) and os.path.getmtime(BINARY) >= max(map(os.path.getmtime, SOURCES)):
        return BINARY
    os.makedirs(os.path.dirname(BINARY), exist_ok=True)
    command = [os.environ.get("CC", "cc"), "-O2", "-o", BINARY, SOURCES[0], "-lcrypto"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise LoadError(f"{error.filename} is missing; install a C compiler (Debian: gcc)") from None
    if done.returncode:
        wants = "it wants OpenSSL's headers (Debian: libssl-dev) and a build/ it may write to"
        raise LoadError(f"popload.c does not compile; {wants}:\n{done.stderr}")
    return BINARY


def read_figures(line):
    """Parse the client's line of name=value into figures by name."""
    return {name: float(value) for name, _, value in (word.partition("=") for word in line.split())}


def command(
    port,
    *steps,
    tls=True,
    conns=20,
    sessions=200,
    users=200,
    first=0,
    user="user%04d",
    pipelined=False,
    reps=0,
    hold=0,
    bound=BOUND,
):
    """Build the client's argument list; load/popload.c explains each."""
    flags = ["-p", port, "-c", conns, "-n", sessions, "-U", users, "-F", first, "-u", user, "-t", bound]
    flags += ["-T"] if tls else []
    flags += ["-P"] if pipelined else []
    flags += ["-r", reps] if reps else []
    flags += ["-H", hold] if hold else []
    return [BINARY, *map(str, flags), *steps]


def run(port, *steps, **options):
    """Load a port of 127.0.0.1; return figures by name.

    Raises LoadError if a session failed or the time bound was reached.
    """
    done = subprocess.run(
        command(port, *steps, **options), capture_output=True, text=True, check=False, timeout=BOUND * 3
    )
    return _checked(done.returncode, done.stdout, done.stderr)


def _checked(code, out, err):
    if code or not out:
        raise LoadError(f"popload ended with {code}: {out.strip()} {err.strip()}")
    return read_figures(out)


class Held:
    """Hold idle, logged-in sessions until `release()`.

    As a context manager it ends the client in any case.
    """

    def __init__(self, port, *, sessions, users, bound=1800, **options):
        self.process = subprocess.Popen(
            command(
                port,
                "NOOP",
                "QUIT",
                conns=sessions,
                sessions=sessions,
                users=users,
                hold=bound,
                bound=bound,
                **options,
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.err = b""
        self._wait_held(time.monotonic() + BOUND)

    def _wait_held(self, end):
        fd = self.process.stderr.fileno()
        while b"holding" not in self.err:
            part = os.read(fd, 4096) if select.select([fd], [], [], 1)[0] else None
            self.err += part or b""
            if part == b"" or time.monotonic() > end:
                self.process.kill()
                out, err = self.process.communicate()
                raise LoadError(
                    f"not all sessions could be held: "
                    f"{(self.err + err + out).decode(errors='replace').strip()}"
                )

    def release(self):
        """Send NOOP and QUIT in each session; return figures by name."""
        self.process.send_signal(signal.SIGUSR1)
        out, err = self.process.communicate(timeout=BOUND)
        return _checked(self.process.returncode, out.decode(), (self.err + err).decode(errors="replace"))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        with contextlib.suppress(ValueError):
            self.process.communicate()
