"""bcrypt, by whoever does it soonest: the C library's crypt_r(3) where that is libxcrypt's, else the bcrypt package.

Measured at cost 10: libxcrypt 52 ms, the package (5.0) 61 ms. Both let go of the interpreter's lock. Elsewhere crypt(3) may be of one
thread at a time (OpenBSD), not know bcrypt, or want another room than libxcrypt's; there the package it is.
"""

import ctypes
import hmac
import sys
from collections.abc import Callable

import bcrypt

__all__ = ["Check", "checker"]

Check = Callable[[bytes, bytes], bool]
"""Whether a password (no NUL, at most 72 octets) fits a hash of 60 octets. ValueError where that is none, or False."""

_NAMES = ("libcrypt.so.1", "libcrypt.so.2")
_OCTETS = 60  # of a hash; what crypt_r says instead of one ("*0") is shorter
_ROOM = 32768  # octets of libxcrypt's struct crypt_data, crypt(3)
_KNOWN = b"$2b$04$abcdefghijklmnopqrstuu4XSYdc/GQRINyOlEiPRvteGCx0gpoNy"
_PASSWORD = b"warm"


def checker() -> Check:
    """A check for as many threads as there are; what it loads and allocates once is there when it comes (before the cage closes)."""
    found = _libxcrypt() if sys.platform == "linux" else None
    if found is not None and found(_PASSWORD, _KNOWN) and not found(_PASSWORD + b"er", _KNOWN):
        return found
    bcrypt.checkpw(_PASSWORD, _KNOWN)
    return bcrypt.checkpw


def _libxcrypt() -> Check | None:
    for name in _NAMES:
        try:
            library = ctypes.CDLL(name)
            crypt_r = library.crypt_r
            library.crypt_checksalt  # noqa: B018  libxcrypt's alone: the C library's own crypt_r of old wants more room
        except (OSError, AttributeError):
            continue
        crypt_r.restype = ctypes.c_char_p
        crypt_r.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)
        return _by(crypt_r)
    return None


def _by(crypt_r: Callable[[bytes, bytes, ctypes.Array[ctypes.c_char]], bytes | None]) -> Check:
    def check(secret: bytes, expected: bytes) -> bool:
        # $2a$ and $2y$ are $2b$ for what is no longer than 72 octets; libxcrypt's $2a$ goes its own way for some octets over 127, crypt(5).
        made = crypt_r(secret, b"$2b$" + expected[4:29], ctypes.create_string_buffer(_ROOM))
        return made is not None and len(made) == _OCTETS and hmac.compare_digest(made[4:], expected[4:])

    return check
