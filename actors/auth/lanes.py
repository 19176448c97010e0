"""Two bcrypt checks at once in one thread, where the installation had a C compiler (lanes.c says why that is quicker).

Measured at cost 10: one check by libxcrypt 63 ms of processor, two at once 69 ms together. At each start what is loaded has to give the
answers of hashing.py's check before it is used; where it does not, or there is none, there is no pair check.
"""

import binascii
import ctypes
import hmac
import os
from collections.abc import Callable
from importlib.machinery import EXTENSION_SUFFIXES
from math import isqrt

import popkernel
from popkernel.actors.auth.hashing import Check

__all__ = ["PairCheck", "pairs"]

Asked = tuple[bytes, bytes]
"""A password (no NUL, at most 72 octets) and a hash of 60 octets."""
PairCheck = Callable[[Asked, Asked], tuple[bool, bool]]
"""What a Check says of each of two whose hashes have one cost, but for a hash that is none: that fits no password, without ValueError."""

_ABI = 1  # of lanes.c
_INITIAL = 4168  # octets of Blowfish's state before any key: P and S
_KEY, _SALT, _DIGEST, _OUT = 72, 16, 23, 24  # octets; the last of 24 is not written down
_BCRYPT = b"./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
_BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_READ, _WRITE = bytes.maketrans(_BCRYPT, _BASE64), bytes.maketrans(_BASE64, _BCRYPT)

_EMPTY = (b"", b"$2b$04$thequickbrownfoxjumpseqPx6Hswq7Q/4R5EpMFjBPbaM.Uq4cVe")
_LONG = (bytes(range(184, 256)), b"$2a$04$OVERTHELAZYDOG0123456umlTQnseG3yQE7tHBS1DM0L.gR9Xu3ne")
_KNOWN = (  # two by two, and what is right: in each lane a yes and a no, and either password
    (_EMPTY, _LONG, (True, True)),
    (_LONG, (b"\x80", _EMPTY[1]), (True, False)),
    ((_LONG[0][:71], _LONG[1]), _EMPTY, (False, True)),
)


def pairs(check: Check) -> PairCheck | None:
    """A check of two at once for as many threads as there are, loaded and used once when it comes; None where it can't be had."""
    try:
        made = _load()
        if made is None:
            return None
        pair = _by(made)
        good = check(*_EMPTY) and check(*_LONG) and all(pair(one, other) == right for one, other, right in _KNOWN)
    except Exception:  # noqa: BLE001  whatever is wrong with it, auth does without
        return None
    return pair if good else None


def _load() -> Callable[..., int] | None:
    """lanes.c, built, beside the package itself and nowhere else."""
    for place in popkernel.__path__:
        for suffix in EXTENSION_SUFFIXES:
            path = os.path.join(place, f"_lanes{suffix}")
            if not os.path.isfile(path) or not _survived(path):
                continue
            try:
                library = ctypes.CDLL(path)
            except OSError:  # of another system; or the empty file that the Makefile leaves where there is no compiler
                continue
            library.popkernel_lanes.argtypes = (*[ctypes.c_char_p] * 3, ctypes.c_uint, ctypes.c_void_p)
            return library.popkernel_lanes if library.popkernel_lanes_abi() == _ABI else None
    return None


def _survived(path: str) -> bool:
    """Whether a process can load it and live: a file that was cut short ends who loads it (SIGBUS), or has code of who knows what."""
    pid = os.fork()
    if pid == 0:
        try:
            ctypes.CDLL(path).popkernel_lanes_abi()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitpid(pid, 0)[1] == 0


def _by(lanes: Callable[..., int]) -> PairCheck:
    initial = _pi(_INITIAL)

    def pair(one: Asked, other: Asked) -> tuple[bool, bool]:
        (a, for_a), (b, for_b) = one, other
        cost = for_a[4:6]
        if cost != for_b[4:6]:
            raise ValueError("two hashes at once have one cost")
        if not cost.isdigit() or not 4 <= int(cost) <= 31:
            return False, False
        out = ctypes.create_string_buffer(2 * _OUT)
        salts = _salt(for_a), _salt(for_b)
        if lanes(initial, _cycled(a) + _cycled(b), b"".join(salts), int(cost), out):
            raise ValueError("the pair check refused")
        return _fits(salts[0], out.raw[:_DIGEST], for_a), _fits(salts[1], out.raw[_OUT:][:_DIGEST], for_b)

    return pair


def _cycled(secret: bytes) -> bytes:
    return ((secret + b"\0") * (_KEY // (len(secret) + 1) + 1))[:_KEY]


def _salt(expected: bytes) -> bytes:
    """A hash's salt. One that can't be read is taken for zeros, which takes as long as any: written again, it is not what it was."""
    try:
        salt = binascii.a2b_base64(expected[7:29].translate(_READ) + b"==")
    except binascii.Error:
        salt = b""
    return salt if len(salt) == _SALT else bytes(_SALT)


def _written(octets: bytes) -> bytes:
    return binascii.b2a_base64(octets, newline=False).rstrip(b"=").translate(_WRITE)


def _fits(salt: bytes, digest: bytes, expected: bytes) -> bool:
    """Compared as it is written, as libxcrypt's is: so an octet outside of the alphabet and a spare bit that is set fit nothing."""
    return hmac.compare_digest(expected[4:6] + b"$" + _written(salt) + _written(digest), expected[4:])


def _pi(octets: int) -> bytes:
    """The first octets of pi's fraction, by the series of Chudnovsky and Chudnovsky (1988): 47 bits a term."""
    bits = 8 * octets + 64  # the last 64 are for what is cut off on the way
    _, q, t = _series(1, bits // 47 + 2)
    t += 13591409 * q
    spare = q.bit_length() - bits
    pi = (q >> spare) * 426880 * isqrt(10005 << 2 * bits) // (t >> spare)
    return (pi >> 64 & (1 << 8 * octets) - 1).to_bytes(octets, "big")


def _series(first: int, end: int) -> tuple[int, int, int]:
    """Terms of the series, split in halves: the products of their numerators and denominators, and their sum over that denominator."""
    if end - first == 1:
        p = (6 * first - 5) * (2 * first - 1) * (6 * first - 1)
        return p, first**3 * 10939058860032000, (-p if first % 2 else p) * (13591409 + 545140134 * first)
    middle = (first + end) // 2
    p, q, t = _series(first, middle)
    p2, q2, t2 = _series(middle, end)
    return p * p2, q * q2, t * q2 + p * t2
