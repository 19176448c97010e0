"""The names of maildir messages: which are messages, in what order, with what flags; and how a new one is made.

A file's name is ``CANONICAL`` or ``CANONICAL:INFO``. CANONICAL never changes in a message's life and gives its UIDL; INFO
(``2,FLAGS``) changes as mail programs set flags. Names are bytes: any octet but NUL and ``/`` may be in them. Source: the
maildir page of D. J. Bernstein: whatever does not begin with a dot is a message. The numbering rule is that of the server popkernel
takes over from, which knew names with a leading number only; those without one sort behind.
"""

from __future__ import annotations

from operator import itemgetter

INFO_NEW = b":2,"  # what a message gets when it moves from new/ to cur/
_NO_MESSAGE = frozenset((b"", b".", b":"))  # first octets
_MOST_DIGITS = 12  # of a size: below a terabyte
_HOST_KEEPS = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_")
_IN_A_HOST = [b"%c" % octet if octet in _HOST_KEEPS else b"\\%03o" % octet for octet in range(256)]


def canonical(name: bytes) -> bytes:
    """Give the part of a file name that stays: all before the first ``:``."""
    return name.partition(b":")[0]


def is_message(name: bytes) -> bool:
    """Is this file name, or canonical name, a message's? One that begins with its info has no name."""
    return name[:1] not in _NO_MESSAGE


def number_of(name: bytes) -> int | None:
    """The number, mostly a time in seconds of the epoch, that a name begins with before its first dot; None where it has none."""
    head, dot, _ = name.partition(b".")
    return int(head) if dot and head.isdigit() else None


def order_key(name: bytes) -> tuple[bool, int, bytes]:
    """Sort key of a canonical message name: its leading number, then the name; behind those the names without one."""
    number = number_of(name)
    return number is None, number or 0, name


def leading_width(names: list[bytes]) -> int:
    """How many digits every one of these names begins with before its dot; 0 when they differ or one has none.

    Where the width is one and the same, the order of messages is the plain order of bytes. In bulk, as a maildir may
    hold 100,000.
    """
    if not names:
        return 0
    width = names[0].find(b".")
    if width < 1:
        return 0
    if digits := _in_columns(names, width):
        return width if digits.isdigit() else 0
    heads = b"".join(map(itemgetter(slice(0, width + 1)), names))
    dots = heads[width :: width + 1].count(b".")
    digits = heads.replace(b".", b"")
    if len(heads) == len(names) * (width + 1) and dots == len(names) and len(digits) == len(names) * width:
        return width if digits.isdigit() else 0
    return 0


def _in_columns(names: list[bytes], width: int) -> bytes:
    """All that stands before the dots, column by column: of names that are all of one length, with a dot there. Ten times as fast."""
    line = len(names[0]) + 1
    text = b"/".join(names)  # no name holds one
    if len(text) != len(names) * line - 1 or text[line - 1 :: line].count(b"/") != len(names) - 1 or text.count(b"/") != len(names) - 1:
        return b""
    if text[width::line].count(b".") != len(names):
        return b""
    return b"".join([text[column::line] for column in range(width)])


def sort_names(names: list[bytes]) -> None:
    """Put canonical message names into message order, in place."""
    if leading_width(names):
        names.sort()
    else:
        names.sort(key=order_key)


def is_ordered(names: list[bytes]) -> bool:
    """Do these canonical message names stand in message order? Equal neighbours pass; look for them elsewhere."""
    copy = names.copy()
    sort_names(copy)
    return copy == names


def with_flag(info: bytes, flag: bytes) -> bytes | None:
    """Give ``info`` (``b""`` or ``:2,FLAGS``) a flag (``S`` seen, ``T`` trashed), flags in ASCII order; None when it can have none."""
    if not info:
        return INFO_NEW + flag
    if not info.startswith(INFO_NEW):
        return None
    return info if flag in info[3:] else INFO_NEW + bytes(sorted({*info[3:], *flag}))


def is_trashed(info: bytes) -> bool:
    """Has the message the flag T?"""
    return info.startswith(INFO_NEW) and b"T" in info[3:]


def claimed_sizes(name: bytes) -> tuple[int, int] | None:
    """Sizes that a canonical name says, ``,S=OCTETS`` of the file and ``,W=OCTETS`` as POP3 counts them (Maildir++, Dovecot).

    None unless both stand there and go together: a line end is one octet more at most.
    """
    said: dict[bytes, int] = {}
    for field in name.split(b",")[1:]:
        key, _, number = field.partition(b"=")
        if key in {b"S", b"W"} and number.isdigit() and len(number) <= _MOST_DIGITS:
            said[key] = int(number)
    if len(said) < 2 or not said[b"S"] <= said[b"W"] <= 2 * said[b"S"]:
        return None
    return said[b"S"], said[b"W"]


def escape_host(host: bytes) -> bytes:
    r"""Make a host name fit for a file name and a popcache line: every octet but letters, digits, ``.-_`` as ``\ooo``.

    ``/`` and ``:`` become ``\057`` and ``\072``, as the maildir page asks. 64 octets at most are kept.
    """
    return b"".join(map(_IN_A_HOST.__getitem__, host[:64])) or b"localhost"


def unique_name(seconds: int, number: int, host: bytes) -> bytes:
    """``TIME.8HEX.HOSTNAME``, as the original's delivery made it. ``number``: 32 bits; ``host``: out of ``escape_host``."""
    return b"%d.%08x.%s" % (seconds, number, host)
