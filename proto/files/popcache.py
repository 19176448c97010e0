"""Parse and format the popcache, a maildir's file of UIDLs and message sizes: one line a message. Pure.

A line is `CANONICALNAME SP OCTETS SP UIDL LF`. A line whose first octet is `#` is a removed message or, as
the first line of the file, popkernel's header: the directories' time stamps at the last listing, which prove
that an unchanged maildir need not be listed again, and how much of the file popkernel has checked. The
original server skips the header like any `#` line.

A malformed line is never trusted: it is refused, and its message is measured again. So is a last line without
LF. A faultless file goes through the bulk reader (100,000 lines and more), any other line by line. The user
may write to this file, so its cost is bounded: at most a million lines or ten thousand malformed ones are
read, and a size over 2^40 octets is a fault.
"""

from __future__ import annotations

from array import array
from itertools import islice
from operator import itemgetter, lt
from typing import TYPE_CHECKING

from popkernel.proto.files.maildir_names import is_message, is_ordered, leading_width

if TYPE_CHECKING:
    from collections.abc import Iterable

Columns = tuple[list[bytes], "array[int]", list[bytes]]
"""Canonical names, octets and UIDLs, in the same order."""

_LARGEST_STAMP = (1 << 63) - 1
MAX_UIDL = 70  # RFC 1939, section 7
_UIDL_OCTETS = bytes(range(0x21, 0x7F))
_UNFIT = b" ", b"\n", b":", b"/", b"\0"  # may not be in a name
_MAGIC = b"#popkernel 2 "  # format 1 lacks `checked` and counts as no header
_STAMPS = 7
HEADER_LENGTH = len(_MAGIC) + 21 * _STAMPS
_RACY_NS = 2_000_000_000
_BLOCK = 1 << 18  # octets
_LONGEST_LINE = 512  # octets; a file name has 255 at most
LARGEST_MESSAGE = 1 << 40  # octets; the sum of a million such sizes still fits into a message between actors
MOST_LINES = 1_000_000
MOST_REFUSED = 10_000


class Header:
    """The state of the directories when they were last listed in full.

    `made`: wall clock in ns when that listing began; 0 proves nothing. `cur` and `new`: the directories'
    (mtime_ns, ctime_ns) before it. `count`: messages found; the file must have as many lines. `checked`:
    length in octets of the part of the file in which popkernel wrote each line or a listing knew it. Another
    program has written everything after that part.
    """

    __slots__ = ("checked", "count", "cur", "made", "new")

    def __init__(
        self, made: int, cur: tuple[int, int], new: tuple[int, int], count: int, checked: int = 0
    ) -> None:
        self.made = made
        self.cur = cur
        self.new = new
        self.count = count
        self.checked = checked

    def proves(self, cur: tuple[int, int], new: tuple[int, int], count: int) -> bool:
        """Say whether directories with these stamps, and a file of `count` good lines, match the listing."""
        return (self.cur, self.new, self.count) == (cur, new, count) and settled(self.made, cur, new)

    def encode(self) -> bytes:
        """Return the header line, `HEADER_LENGTH` octets; it proves nothing if a stamp is out of range."""
        stamps = self.made, *self.cur, *self.new, self.count, self.checked
        if min(stamps) < 0 or max(stamps) > _LARGEST_STAMP:
            return UNPROVEN.encode()
        return _MAGIC + b"%020d %020d %020d %020d %020d %020d %020d\n" % stamps


def settled(made: int, cur: tuple[int, int], new: tuple[int, int]) -> bool:
    """Say whether all stamps are 2 s older than the listing.

    A younger directory may change again within the same tick of the file system's clock.
    """
    return made >= _RACY_NS and max(*cur, *new) <= made - _RACY_NS


UNPROVEN = Header(0, (0, 0), (0, 0), 0)


def parse_header(data: bytes) -> Header | None:
    """Read the header at the beginning of a popcache; None if it is absent, of another format, or damaged."""
    line = data[:HEADER_LENGTH]
    if len(line) != HEADER_LENGTH or not line.startswith(_MAGIC) or not line.endswith(b"\n"):
        return None
    fields = line[len(_MAGIC) : -1].split(b" ")
    if len(fields) != _STAMPS or not all(len(field) == 20 and field.isdigit() for field in fields):
        return None
    made, cur_m, cur_c, new_m, new_c, count, checked = map(int, fields)
    return Header(made, (cur_m, cur_c), (new_m, new_c), count, checked)


class Cache:
    """A popcache as it was read: the good lines in three columns, and counts of the others.

    `names`, `sizes` (octets) and `uidls` are in the order of the file; names and UIDLs are unique.
    `removed`: lines that begin with `#`, without the header. `refused`: malformed lines, a last line without
    LF, and duplicates. `ordered`: the names are in message order. `end`: octets up to and with the last LF,
    where lines can be appended. `checked`: how many of the first names are in the checked part of the file
    (see Header). `given_up`: why the rest of the file was not read, or "".
    """

    __slots__ = (
        "checked",
        "end",
        "given_up",
        "header",
        "names",
        "ordered",
        "refused",
        "removed",
        "sizes",
        "uidl_set",
        "uidls",
    )

    def __init__(self) -> None:
        self.names: list[bytes] = []
        self.sizes = array("Q")
        self.uidls: list[bytes] = []
        self.uidl_set: set[bytes] = set()
        self.header: Header | None = None
        self.removed = 0
        self.refused = 0
        self.ordered = True
        self.end = 0
        self.checked = 0
        self.given_up = ""


def parse(data: bytes) -> Cache:
    """Parse a whole popcache file. Never raises: malformed lines are counted in `refused`."""
    cache = Cache()
    cache.header = parse_header(data)
    cache.end = data.rfind(b"\n") + 1
    if cache.end < len(data):
        cache.refused += 1
    start, checked = (HEADER_LENGTH, cache.header.checked) if cache.header else (0, 0)
    if checked > cache.end or data[checked - 1 : checked] != b"\n":
        checked = 0
    widths: set[int] = set()
    while start < cache.end and not cache.given_up:
        # A block that fits into the processor's cache takes a third less time than ten megabytes at once.
        most = start + _BLOCK + _LONGEST_LINE
        end = data.rfind(b"\n", start, min(most, checked) if start < checked else most) + 1
        if end:
            widths.add(_read_block(cache, data[start:end]))
        else:
            end = data.find(b"\n", start) + 1
            cache.refused += 1  # longer than any good line
        start = end
        if start == checked:
            cache.checked = len(cache.names)
        if cache.refused > MOST_REFUSED:
            cache.given_up = f"more than {MOST_REFUSED} lines that are none"
        elif len(cache.names) + cache.removed > MOST_LINES:
            cache.given_up = f"more than {MOST_LINES} lines"
    cache.refused += bool(cache.given_up)
    names = cache.names
    # With leading numbers of one width, message order is byte order; and strictly ascending names are unique.
    cache.ordered = len(widths) == 1 and 0 not in widths and all(map(lt, names, islice(names, 1, None)))
    cache.uidl_set = set(cache.uidls)
    if len(cache.uidl_set) != len(cache.uidls) or (not cache.ordered and len(set(names)) != len(names)):
        _drop_duplicates(cache)
        cache.uidl_set = set(cache.uidls)
    cache.ordered = cache.ordered or is_ordered(cache.names)
    return cache


def _read_block(cache: Cache, block: bytes) -> int:
    """Add the good lines of a block of whole lines to the columns.

    Returns the common width of the names' leading numbers, or 0.
    """
    if block.startswith(b"#") or b"\n#" in block:
        lines = block.split(b"\n")
        kept = [line for line in lines if not line.startswith(b"#")]
        cache.removed += len(lines) - len(kept)
        block = b"\n".join(kept)
    columns = _columns(block)
    if columns is None:
        parsed = [parse_line(line) for line in block.split(b"\n")[:-1]]
        good = [line for line in parsed if line is not None]
        cache.refused += len(parsed) - len(good)
        columns = [line[0] for line in good], [line[1] for line in good], [line[2] for line in good], 0
    names, sizes, uidls, width = columns
    cache.names += names
    cache.sizes += array("Q", sizes)
    cache.uidls += uidls
    return width


def _columns(block: bytes) -> tuple[list[bytes], list[int], list[bytes], int] | None:
    """Split a faultless block into columns and the common width of leading numbers.

    None: parse it line by line.
    """
    lines = block.count(b"\n")
    fields = block.replace(b"\n", b" \n ").split(b" ")
    fields.pop()
    # Four fields a line, each fourth the LF itself, and no other LF: then every line has three fields.
    if len(fields) != 4 * lines or fields[3::4].count(b"\n") != lines:
        return None
    names, sizes, uidls = fields[0::4], fields[1::4], fields[2::4]
    joined = b"".join(names)
    if b":" in joined or b"/" in joined or b"\0" in joined or not (width := leading_width(names)):
        return None
    if not _good_sizes(sizes) or not _good_uidls(uidls):
        return None
    return names, list(map(int, sizes)), uidls, width


def _drop_duplicates(cache: Cache) -> None:
    """Keep one of equal lines. Drop all lines that disagree about a name or share a UIDL."""
    cache.checked = 0
    found: dict[bytes, tuple[int, bytes]] = {}
    owner: dict[bytes, bytes] = {}
    bad: set[bytes] = set()
    for name, octets, uidl in zip(cache.names, cache.sizes, cache.uidls, strict=True):
        if found.setdefault(name, (octets, uidl)) != (octets, uidl):
            bad.add(name)
        if owner.setdefault(uidl, name) != name:
            bad.update((name, owner[uidl]))
    for name in bad:
        del found[name]
    cache.refused += len(cache.names) - len(found)
    cache.names = list(found)
    cache.sizes = array("Q", [octets for octets, _ in found.values()])
    cache.uidls = [uidl for _, uidl in found.values()]


def _good_sizes(sizes: list[bytes]) -> bool:
    if b"" in sizes or not b"".join(sizes).isdigit():
        return False
    longest = len(max(sizes, key=len))
    if longest > 13 or (longest == 13 and max(map(int, sizes)) > LARGEST_MESSAGE):
        return False
    return bytes(map(itemgetter(0), sizes)).count(b"0") == sizes.count(b"0")  # no leading zeros


def _good_uidls(uidls: list[bytes]) -> bool:
    lengths = set(map(len, uidls))
    return (
        min(lengths) >= 1 and max(lengths) <= MAX_UIDL and not b"".join(uidls).translate(None, _UIDL_OCTETS)
    )


def parse_line(line: bytes) -> tuple[bytes, int, bytes] | None:
    """Split one line (without LF) into canonical name, octets, UIDL; None if it is malformed."""
    fields = line.split(b" ")
    if len(fields) != 3:
        return None
    name, octets, uidl = fields
    if not fits(name) or not _good_sizes([octets]) or not _good_uidls([uidl]):
        return None
    return name, int(octets), uidl


def fits(name: bytes) -> bool:
    """Say whether this canonical name can stand in a popcache line.

    A name with a blank or a line end, or one that begins with `#`, cannot.
    """
    return is_message(name) and name[:1] != b"#" and not any(octet in name for octet in _UNFIT)


def all_fit(names: list[bytes]) -> bool:
    """Say in bulk whether all these canonical names fit, and their leading numbers have one width.

    If False, each may still fit: ask `fits` one by one.
    """
    joined = b"".join(names)
    return bool(leading_width(names)) and not any(octet in joined for octet in _UNFIT)


def format_line(name: bytes, octets: int, uidl: bytes) -> bytes:
    """Format the line of one message, LF included. `fits` must hold for the name."""
    return b"%s %d %s\n" % (name, octets, uidl)


def format_lines(rows: Iterable[tuple[bytes, int, bytes]]) -> bytes:
    """Format many lines as `format_line` does."""
    return b"".join(map(b"%s %d %s\n".__mod__, rows))


def line_offsets(data: bytes, names: set[bytes]) -> list[int]:
    """Return the offsets in `data` at which the lines of these messages begin, ascending.

    Lines of removed messages are left out.
    """
    offsets: list[int] = []
    if not names:
        return offsets
    start = 0
    for line in data.split(b"\n"):
        if line.partition(b" ")[0] in names:
            offsets.append(start)
        start += len(line) + 1
    return offsets
