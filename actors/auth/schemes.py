"""Check SHA-crypt and Argon2id hashes, by libraries that are imported only for a table that has such hashes.

They are imported and tried before the sandbox is locked. SHA-crypt is libpass's (or passlib's) Python code on
every version of Python: it holds the interpreter's lock, 4 ms at 5000 rounds. Argon2 is C and releases it.
"""

import sys
import threading
from collections import Counter
from collections.abc import Callable

from popkernel.proto.access.user_names import name_lines
from popkernel.proto.files.password_schemes import MAX_MEMORY, SCHEMES, memory_of, scheme_of
from popkernel.proto.files.tables import AuthTable, Finding

__all__ = ["fits", "import_library", "library_mend", "schemes_of", "without_missing"]

# Hashes of "popkernel", from other programs: crypt(3) and the Argon2 reference program.
_KNOWN = {
    "SHA512-CRYPT": b"$6$popkernel$uhC6QXTE8Fl6S6.kJMUjeg3BzD8iSSDoVj61LGmt8p6"
    b"GQCcQ9.j2da5CFRI756sWMaKv8q2K.ZMuR/Q8GJWuS/",
    "SHA256-CRYPT": b"$5$popkernel$lS.iglqYCn.5Uqi3JDy.9myMtIPbL02mdWCDDx1ev7.",
    "ARGON2ID": b"$argon2id$v=19$m=1024,t=1,p=1$cG9wa2VybmVsc2FsdA"
    b"$LkzsoI2KcgevfoJvahbz38FmRigtxdzlsklj7wqmJL0",
}
_checks: dict[str, Callable[[bytes, bytes], bool]] = {}


class _Memory:
    """Let checks begin only while all together stay within a bound, in KiB; the others wait."""

    def __init__(self, most: int) -> None:
        self._left = most
        self._changed = threading.Condition()

    def take(self, many: int) -> None:
        """Wait until there is room for `many`, and take it."""
        with self._changed:
            self._changed.wait_for(lambda: self._left >= many)
            self._left -= many

    def give(self, many: int) -> None:
        """Give it back."""
        with self._changed:
            self._left += many
            self._changed.notify_all()


_memory = _Memory(MAX_MEMORY)


def fits(secret: bytes, expected: bytes) -> bool:
    """Return whether a usable password fits a hash of a scheme whose library is imported.

    Raises:
        MemoryError: there was no memory for the check.
    """
    return _checks[scheme_of(expected)](secret, expected)


def import_library(scheme: str) -> str:
    """Import a scheme's library, and check a known hash with it. Return what is wrong, "" for nothing."""
    if scheme == "BLF-CRYPT" or scheme in _checks:
        return ""
    try:
        check = _argon2() if scheme == "ARGON2ID" else _sha_crypt(scheme)
        if check(b"popkernel", _KNOWN[scheme]) and not check(b"other", _KNOWN[scheme]):
            _checks[scheme] = check
            return ""
        return f"{SCHEMES[scheme].module} gives wrong answers"
    except ImportError:
        return f"{SCHEMES[scheme].module} is not installed"
    except Exception as error:  # noqa: BLE001 - a library that fails in any way is not used
        return f"{SCHEMES[scheme].module} fails ({type(error).__name__})"


def _sha_crypt(scheme: str) -> Callable[[bytes, bytes], bool]:
    from passlib import hash as hashes

    handler = hashes.sha512_crypt if scheme == "SHA512-CRYPT" else hashes.sha256_crypt
    # passlib's other one is the module `crypt`, which Python 3.13 no longer has
    handler.set_backend("builtin")

    def check(secret: bytes, expected: bytes) -> bool:
        return bool(handler.verify(secret, expected.decode("ascii")))

    return check


def _argon2() -> Callable[[bytes, bytes], bool]:
    from argon2.exceptions import VerificationError, VerifyMismatchError
    from argon2.low_level import Type, verify_secret

    def check(secret: bytes, expected: bytes) -> bool:
        need = memory_of(expected)
        _memory.take(need)
        try:
            return verify_secret(expected, secret, Type.ID)
        except VerifyMismatchError:
            return False
        except VerificationError:  # the form is known to be right: no memory
            raise MemoryError from None
        finally:
            _memory.give(need)

    return check


def schemes_of(table: AuthTable) -> Counter[str]:
    """Return the number of users who may log in, by the scheme of their hash."""
    return Counter(map(scheme_of, table.hashes.values()))


def library_mend(scheme: str) -> str:
    """Say how to install a scheme's library where this program runs: another pip has another place."""
    pip, debian = SCHEMES[scheme].packages.split()
    if sys.prefix == sys.base_prefix:
        return f"install {pip} (Debian: apt install {debian})"
    return f"install {pip} ({sys.prefix}/bin/pip install 'popkernel[schemes]')"


def without_missing(table: AuthTable, data: bytes, path: str) -> tuple[AuthTable, list[Finding]]:
    """Import the libraries that a table needs. Users whose library is missing are shut out.

    Returns:
        The table, and a finding for each scheme that has no library here.

    """
    needed = schemes_of(table)
    faults = {scheme: fault for scheme in sorted(needed) if (fault := import_library(scheme))}
    if not faults:
        return table, []
    findings = [
        Finding(path, 0, f"{_users(needed[scheme])} {scheme} hashes, and {fault}", library_mend(scheme))
        for scheme, fault in faults.items()
    ]
    lines = name_lines(data)
    shut_out = dict(table.shut_out)
    for name, hashed in table.hashes.items():
        scheme = scheme_of(hashed)
        if scheme in faults:
            what = f"user {name} cannot log in: {SCHEMES[scheme].a_hash}, and {faults[scheme]}"
            shut_out[name] = Finding(path, lines.get(name, 0), what, library_mend(scheme))
    hashes = {name: hashed for name, hashed in table.hashes.items() if name not in shut_out}
    errors = table.errors if hashes or table.locked else [*table.errors, *findings]
    return table._replace(hashes=hashes, shut_out=shut_out, errors=errors), findings


def _users(many: int) -> str:
    return f"{many} users have" if many != 1 else "1 user has"
