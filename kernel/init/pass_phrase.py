"""The pass phrase of the private keys: where it comes from, and how it gets from a terminal to a listener unseen.

From a file (key_passphrase_file, or systemd's credential `popkernel.passphrase`): each new listener reads it for itself, so that it
lies in no other process. From a terminal: asked for once, by a child, which tries it and puts it into a socket that init keeps and the
kernel closes; init copies it from there into the sealed pipe of each listener it starts, at reloads too. Never in argv or environ.
"""

import getpass
import os
import socket
import ssl
import sys
from collections.abc import Sequence

from popkernel.kernel.config.regular_files import read_regular

__all__ = ["Held", "ask", "file_of", "is_encrypted"]

CREDENTIAL = "popkernel.passphrase"
_MARKS = (b"-----BEGIN ENCRYPTED PRIVATE KEY-----", b"Proc-Type: 4,ENCRYPTED")
_MOST_PEM = 1 << 20
_MOST = 1024  # octets of a phrase; OpenSSL's PEM_BUFSIZE
_TRIES = 3


class Held:
    """A phrase in a socket's buffer: looked at, never taken. It is gone when the last who holds this is."""

    def __init__(self) -> None:
        self._reading, self._writing = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)

    def put(self, phrase: bytes) -> None:
        """Once."""
        self._writing.send(phrase)

    def peek(self) -> bytes:
        """What was put; b"" for nothing."""
        try:
            return self._reading.recv(_MOST + 1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return b""

    def close(self) -> None:
        """Forget it here."""
        self._reading.close()
        self._writing.close()


def file_of(configured: str) -> str:
    """The file to read it from: the configured one, or the service manager's credential (systemd.exec(5)); "" for none."""
    if configured:
        return configured
    directory = os.environ.get("CREDENTIALS_DIRECTORY", "")
    path = os.path.join(directory, CREDENTIAL)
    return path if directory.startswith("/") and os.path.exists(path) else ""


def is_encrypted(key: str) -> bool:
    """Whether a key file has a pass phrase; False also for what can't be read, of which others speak."""
    try:
        data = read_regular(key, _MOST_PEM)
    except OSError:
        return False
    return any(mark in data for mark in _MARKS)


def ask(pairs: Sequence[tuple[str, str]]) -> Held | None:
    """Ask at the terminal for the phrase of those keys that have one.

    In a child, so that it never is in the memory that the kernel will be forked with. None where no key has one, there is no
    terminal, or three phrases did not fit: the listener then says what is missing.
    """
    locked = [pair for pair in pairs if is_encrypted(pair[1])]
    if not locked or not sys.stdin.isatty():
        return None
    held = Held()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = _ask(locked, held)
        except (EOFError, KeyboardInterrupt):
            code = 1
        finally:
            os._exit(code)
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0:
        return held
    held.close()
    return None


def _ask(locked: Sequence[tuple[str, str]], held: Held) -> int:
    for _ in range(_TRIES):
        phrase = getpass.getpass(f"pass phrase of {locked[0][1]}: ").encode(errors="surrogateescape")
        if 0 < len(phrase) <= _MOST and all(_opens(pair, phrase) for pair in locked):
            held.put(phrase)
            return 0
        print("popkernel: it does not open " + ", ".join(key for _, key in locked), file=sys.stderr, flush=True)
    return 1


def _opens(pair: tuple[str, str], phrase: bytes) -> bool:
    """Whether it is the phrase; what else is wrong with a key is not this question."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(*pair, password=phrase)
    except ssl.SSLError as error:
        return error.reason == "KEY_VALUES_MISMATCH"
    except OSError:
        return False
    return True
