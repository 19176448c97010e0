"""Recognise password hashes: the scheme, whether it is one that auth checks, and what a check costs.

Pure. Formats: crypt(5) for bcrypt and SHA-crypt, RFC 9106 and its reference program for Argon2id, Dovecot's
"Password schemes" for the prefixes. An unsalted or fast hash is refused by the name of its scheme. No text
here quotes a column: it may hold a password.
"""

import re
from binascii import a2b_base64, b2a_base64
from typing import NamedTuple

__all__ = [
    "MAX_COST",
    "MAX_MEMORY",
    "MAX_ROUNDS",
    "MAX_WORK",
    "MIN_COST",
    "SCHEMES",
    "Scheme",
    "UnusableHashError",
    "cost_of",
    "decoy_of",
    "memory_of",
    "read_hash",
    "scheme_of",
]

# bcrypt's cost: each step doubles the work. At 18 a check takes about 13 s; at 19 the client gives up before.
MIN_COST, MAX_COST = 4, 18
# SHA-crypt's rounds: without a number 5000, which take 4 ms. A million take about a second, in which other
# threads have to share the interpreter.
MAX_ROUNDS = 1_000_000
_ROUNDS = 5000
# Argon2's memory in KiB. Auth has 1 GiB of address space, for several checks at once.
MAX_MEMORY = 256 * 1024
# KiB times passes: at this a check takes about four seconds.
MAX_WORK = 4 * 1024 * 1024


class Scheme(NamedTuple):
    """A scheme that auth checks."""

    name: str
    """Its name in a prefix of Dovecot's, without the braces."""
    begins: bytes
    """What its hashes begin with."""
    module: str
    """The module that checks it."""
    packages: str
    """The package of PyPI, and that of Debian."""

    @property
    def a_hash(self) -> str:
        """Name a hash of it, with the article."""
        return f"{'an' if self.name[0] in 'AEIOU' else 'a'} {self.name} hash"


SCHEMES = {
    scheme.name: scheme
    for scheme in (
        Scheme("BLF-CRYPT", b"$2", "bcrypt", "bcrypt python3-bcrypt"),
        Scheme("SHA512-CRYPT", b"$6$", "passlib", "libpass python3-passlib"),
        Scheme("SHA256-CRYPT", b"$5$", "passlib", "libpass python3-passlib"),
        Scheme("ARGON2ID", b"$argon2id$", "argon2", "argon2-cffi python3-argon2"),
    )
}

# By the first three octets.
_SCHEMES = {b"$2a": "BLF-CRYPT", b"$2b": "BLF-CRYPT", b"$2y": "BLF-CRYPT"} | {
    scheme.begins[:3]: name for name, scheme in SCHEMES.items() if name != "BLF-CRYPT"
}

_PREFIX = re.compile(rb"\{([A-Za-z0-9-]{1,32})((?:\.[A-Za-z0-9]{1,8})?)\}")
_BCRYPT = re.compile(rb"\$2[aby]\$(?:0[4-9]|1[0-8])\$[./A-Za-z0-9]{53}")
_SHA = re.compile(
    rb"\$(?:(6)|5)\$(?:rounds=([0-9]{1,9})\$)?[./A-Za-z0-9]{1,16}\$(?(1)[./A-Za-z0-9]{86}|[./A-Za-z0-9]{43})"
)
# Salt of 8 octets or more and digest of 16 to 64, in base64 without padding.
_ARGON2 = re.compile(
    rb"\$argon2id\$v=19\$m=([1-9][0-9]{0,9}),t=([1-9][0-9]{0,9}),p=([1-9][0-9]{0,7})"
    rb"\$([A-Za-z0-9+/]{11,86})\$([A-Za-z0-9+/]{22,86})"
)
# Schemes that crypt(3) and other mail servers write. Other text is not quoted: it might be a password.
_OTHERS = re.compile(
    rb"\$(?:1|2|2x|3|5|6|7|y|gy|md5|sha1|scrypt|argon2(?:i|d|id))\$"
    rb"|(?i:\{(?:CLEAR|CLEARTEXT|PLAIN|PLAIN-MD4|PLAIN-MD5|PLAIN-TRUNC|CRAM-MD5|DIGEST-MD5|HMAC-MD5|LDAP-MD5"
    rb"|SMD5|MD5|MD5-CRYPT|DES-CRYPT|LANMAN|LM|NTLM|OTP|SHA|SHA1|SSHA|SHA256|SSHA256|SHA512|SSHA512"
    rb"|SHA256-CRYPT|SHA512-CRYPT|SCRAM-SHA-1|SCRAM-SHA-256|PBKDF2|ARGON2ID?|(?:BLF-)?CRYPT)"
    rb"(?:\.(?:B64|BASE64|HEX))?\})"
)
_NAMED = "bcrypt, SHA-crypt or Argon2id ($2a$, $2b$, $2y$, $5$, $6$, $argon2id$)"
_SET_AGAIN = "set it anew with `popkernel passwd`"


class UnusableHashError(ValueError):
    """The column is no hash that auth checks.

    `hash_like`: it looks like some hash, so that what stands before it is surely a name.
    """

    def __init__(self, what: str, mend: str = _SET_AGAIN, *, hash_like: bool = True) -> None:
        super().__init__(what)
        self.what = what
        self.mend = mend
        self.hash_like = hash_like


def read_hash(column: bytes) -> bytes:
    """Return the hash in a table's column, without Dovecot's prefix; b"" for a locked user.

    Raises:
        UnusableHashError: it is no hash that auth checks. Its text may name a scheme, but never quotes the
            column.

    """
    prefix = _PREFIX.match(column)
    said = prefix[1].upper().decode("ascii") if prefix else ""
    bare = column
    if prefix and not prefix[2] and (said == "CRYPT" or said in SCHEMES):
        bare = column[prefix.end() :]
    if _BCRYPT.fullmatch(bare):
        return _as_said(bare, said)
    if bare.startswith((b"!", b"*")):  # passwd(1) and vipw(8) lock so; no hash begins so
        return b""
    if bare[:4] in {b"$2a$", b"$2b$", b"$2y$"}:
        raise _faulty_bcrypt(bare)
    if bare[:3] in {b"$5$", b"$6$"}:
        return _as_said(_read_sha(bare), said)
    if bare.startswith(b"$argon2id$"):
        return _as_said(_read_argon2(bare), said)
    scheme = _OTHERS.match(bare) or _OTHERS.match(column)
    if scheme:
        raise UnusableHashError(f"a {scheme[0].decode('ascii')} hash, not {_NAMED}")
    raise UnusableHashError(f"the second column is not a hash of {_NAMED}", hash_like=False)


def _as_said(hashed: bytes, said: str) -> bytes:
    """Return the hash if its prefix is right."""
    if said not in {"", "CRYPT", scheme_of(hashed)}:
        raise UnusableHashError(f"the prefix says {said}, and the hash is of {scheme_of(hashed)}")
    return hashed


def _faulty_bcrypt(bare: bytes) -> UnusableHashError:
    if len(bare) != 60:
        return UnusableHashError(f"the bcrypt hash has {len(bare)} characters, not 60")
    cost = re.match(rb"(\d\d)\$", bare[4:])
    if cost is None or not MIN_COST <= int(cost[1]) <= 31:
        return UnusableHashError("the bcrypt cost is not a number from 04 to 31")
    if int(cost[1]) > MAX_COST:
        what = f"a check of bcrypt cost {int(cost[1])} takes longer than a client waits"
        return UnusableHashError(what, f"{_SET_AGAIN}, --cost at most {MAX_COST}")
    return UnusableHashError("the bcrypt hash has a character that bcrypt does not write")


def _read_sha(bare: bytes) -> bytes:
    name = "SHA512-CRYPT" if bare[1:2] == b"6" else "SHA256-CRYPT"
    found = _SHA.fullmatch(bare)
    if found is None:
        raise UnusableHashError(f"the {name} hash is malformed: salt, length or a character is wrong")
    rounds = found[2]
    if rounds is not None and (rounds.startswith(b"0") or not 1000 <= int(rounds) <= MAX_ROUNDS):
        raise UnusableHashError(f"the rounds of the {name} hash are not a number from 1000 to {MAX_ROUNDS}")
    return bare


def _read_argon2(bare: bytes) -> bytes:
    found = _ARGON2.fullmatch(bare)
    if found is None or not all(map(_is_base64, found.group(4, 5))):
        raise UnusableHashError(
            "the ARGON2ID hash is malformed: not v=19, or salt, length or a character is wrong"
        )
    memory, passes, lanes = map(int, found.group(1, 2, 3))
    if lanes != 1:
        raise UnusableHashError(
            f"the ARGON2ID hash has p={lanes}: only p=1 is checked, auth may start no threads"
        )
    if not 8 <= memory <= MAX_MEMORY:
        raise UnusableHashError(f"the ARGON2ID hash has m={memory} KiB, not 8 to {MAX_MEMORY}")
    if memory * passes > MAX_WORK:
        what = f"the ARGON2ID hash has m={memory} KiB times t={passes}, over {MAX_WORK}: too long a check"
        raise UnusableHashError(what)
    return bare


def _is_base64(text: bytes) -> bool:
    """Return whether base64 without padding is what an encoder writes: the bits that mean nothing are zero.

    libargon2 refuses other texts, at each check.
    """
    padded = text + b"=" * (-len(text) % 4)
    return len(text) % 4 != 1 and b2a_base64(a2b_base64(padded), newline=False) == padded


def scheme_of(hashed: bytes) -> str:
    """Return the name of the scheme of a hash that read_hash() returned."""
    return _SCHEMES[hashed[:3]]


def cost_of(hashed: bytes) -> bytes:
    """Return the part of a hash that says how long a check takes, in one spelling for equal costs."""
    if hashed.startswith(b"$2"):
        return b"$2b$" + hashed[4:7]
    if hashed.startswith(b"$argon2id$"):
        return hashed[: hashed.index(b"$", 15) + 1]
    found = _SHA.match(hashed)
    rounds = (found and found[2]) or b"%d" % _ROUNDS
    return hashed[:3] + b"rounds=%b$" % rounds


def decoy_of(cost: bytes) -> bytes:
    """Return a well-formed hash of a cost of cost_of(). Its digest is arbitrary: no known password fits."""
    if cost.startswith(b"$2"):
        return cost + b"abcdefghijklmnopqrstuuABCDEFGHIJKLMNOPQRSTUVWXYZ01234"
    if cost.startswith(b"$argon2id$"):
        return cost + b"YWJjZGVmZ2hpamtsbW5vcA$" + b"ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789abcdefg"
    return (
        cost
        + b"abcdefghijklmnop$"
        + (b"ABCDEFGHIJKLMNOPQRSTUVWXYZ01234567890" * 3)[: 86 if cost[1:2] == b"6" else 43]
    )


def memory_of(hashed: bytes) -> int:
    """Return the KiB of memory that a check of an Argon2id hash takes."""
    found = _ARGON2.fullmatch(hashed)
    assert found is not None
    return int(found[1])
