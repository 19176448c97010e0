"""Get the pass phrase of the private keys from a file or the terminal, and keep it for listeners.

A file (key_passphrase_file, or systemd's credential `popkernel.passphrase`) is read by each new listener
itself, so no other process has the phrase. At a terminal, a child asks once, tests the phrase, and puts it
into a socket that init keeps and the kernel closes. From there init copies it into the pipe of each listener
that it starts, at reloads too. The phrase never is in an argument or in the environment.
"""

import getpass
import os
import socket
import ssl
import sys
from collections.abc import Sequence

from popkernel.kernel.config.regular_files import read_regular

__all__ = ["HeldPhrase", "ask_phrase", "is_encrypted", "phrase_file"]

CREDENTIAL = "popkernel.passphrase"
_MARKS = (b"-----BEGIN ENCRYPTED PRIVATE KEY-----", b"Proc-Type: 4,ENCRYPTED")
_MOST_PEM = 1 << 20  # octets
_MOST = 1024  # octets of a phrase; OpenSSL's PEM_BUFSIZE
_TRIES = 3


class HeldPhrase:
    """Keep a phrase in a socket's buffer, until all processes have closed the socket."""

    def __init__(self) -> None:
        self._reading, self._writing = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)

    def put(self, phrase: bytes) -> None:
        """Store the phrase; once."""
        self._writing.send(phrase)

    def peek(self) -> bytes:
        """Return the phrase; b"" if none was stored."""
        try:
            return self._reading.recv(_MOST + 1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return b""

    def close(self) -> None:
        """Close this process's descriptors of it."""
        self._reading.close()
        self._writing.close()


def phrase_file(configured: str) -> str:
    """Return the phrase's file: the configured one or systemd's credential, systemd.exec(5); "" for none."""
    if configured:
        return configured
    directory = os.environ.get("CREDENTIALS_DIRECTORY", "")
    path = os.path.join(directory, CREDENTIAL)
    return path if directory.startswith("/") and os.path.exists(path) else ""


def is_encrypted(key: str) -> bool:
    """Return whether a key file is encrypted; False if it can't be read, which the listener reports."""
    try:
        data = read_regular(key, _MOST_PEM)
    except OSError:
        return False
    return any(mark in data for mark in _MARKS)


def ask_phrase(pairs: Sequence[tuple[str, str]]) -> HeldPhrase | None:
    """Ask at the terminal for the phrase of the encrypted keys; `pairs` are paths of certificate and key.

    A child asks, so that the phrase never is in memory that the kernel is forked with. Return None if no key
    is encrypted, there is no terminal, or three phrases were wrong: the listener then reports what is
    missing.
    """
    encrypted = [pair for pair in pairs if is_encrypted(pair[1])]
    if not encrypted or not sys.stdin.isatty():
        return None
    held = HeldPhrase()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = _ask(encrypted, held)
        except (EOFError, KeyboardInterrupt):
            code = 1
        finally:
            os._exit(code)
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0:
        return held
    held.close()
    return None


def _ask(encrypted: Sequence[tuple[str, str]], held: HeldPhrase) -> int:
    for _ in range(_TRIES):
        phrase = getpass.getpass(f"pass phrase of {encrypted[0][1]}: ").encode(errors="surrogateescape")
        if 0 < len(phrase) <= _MOST and all(_opens(pair, phrase) for pair in encrypted):
            held.put(phrase)
            return 0
        print(
            "popkernel: it does not open " + ", ".join(key for _, key in encrypted),
            file=sys.stderr,
            flush=True,
        )
    return 1


def _opens(pair: tuple[str, str], phrase: bytes) -> bool:
    """Return whether the phrase decrypts the key. Other faults of the key are reported elsewhere."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(*pair, password=phrase)
    except ssl.SSLError as error:
        return error.reason == "KEY_VALUES_MISMATCH"
    except OSError:
        return False
    return True
