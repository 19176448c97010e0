"""The popcache: what a maildir knows of its messages, a text line each (pure; files are read elsewhere).

A line is ``CANONICALNAME SP OCTETS SP UIDL LF``. A line whose first character is ``#`` is a removed message, or, as the
first line of the file, popkernel's own header: what the directories' time stamps were when they were last listed, by which
an unchanged maildir is proven without listing it, and how much of the file is popkernel's own word. The program popkernel takes
over from skips it as any ``#`` line.

Nothing malformed is trusted: such a line is refused, and its message is measured again. Line torn at the end of the file
(no LF): refused. 100,000 lines go through the bulk reader; a file with any fault in it goes line by line. No file costs more
than its first million lines, or ten thousand bad ones, and a size that no message has (over 2^40 octets) is a fault: what a
user writes there must not be able to end that user's actor.
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
"""Canonical names, octets, UIDLs of the same messages."""

_LARGEST_STAMP = (1 << 63) - 1
MAX_UIDL = 70  # RFC 1939, section 7
_UIDL_OCTETS = bytes(range(0x21, 0x7F))
_UNFIT = b" ", b"\n", b":", b"/", b"\0"  # in no name of a line
_MAGIC = b"#popkernel 2 "  # 1 had no ``checked``: such a file is as one without a header
_STAMPS = 7
HEADER_LENGTH = len(_MAGIC) + 21 * _STAMPS
_RACY_NS = 2_000_000_000
_BLOCK = 1 << 18
_LONGEST_LINE = 512  # octets; a file name has 255 at most
LARGEST_MESSAGE = 1 << 40  # octets; a million of them still make a sum that a message can carry
MOST_LINES = 1_000_000
MOST_REFUSED = 10_000


class Header:
    """What the directories looked like when they were last listed in full.

    ``made``: wall clock in ns when that listing began; 0: nothing is proven. ``cur`` and ``new``: (mtime_ns, ctime_ns) of
    the directories before it. ``count``: messages found, which must be those of the file's lines. ``checked``: octets from the
    beginning of the file up to which each line was written by popkernel or known to a listing: what stands behind, another program
    said since.
    """

    __slots__ = ("checked", "count", "cur", "made", "new")

    def __init__(self, made: int, cur: tuple[int, int], new: tuple[int, int], count: int, checked: int = 0) -> None:
        self.made = made
        self.cur = cur
        self.new = new
        self.count = count
        self.checked = checked

    def proves(self, cur: tuple[int, int], new: tuple[int, int], count: int) -> bool:
        """Say whether directories that look like this now, and a file of ``count`` good lines, still match the listing."""
        return (self.cur, self.new, self.count) == (cur, new, count) and settled(self.made, cur, new)

    def encode(self) -> bytes:
        """The header line, always ``HEADER_LENGTH`` octets; one that proves nothing where a stamp is out of range."""
        stamps = self.made, *self.cur, *self.new, self.count, self.checked
        if min(stamps) < 0 or max(stamps) > _LARGEST_STAMP:
            return UNPROVEN.encode()
        return _MAGIC + b"%020d %020d %020d %020d %020d %020d %020d\n" % stamps


def settled(made: int, cur: tuple[int, int], new: tuple[int, int]) -> bool:
    """Say whether all stamps are 2 s older than the listing: a younger directory may change again within one clock tick."""
    return made >= _RACY_NS and max(*cur, *new) <= made - _RACY_NS


UNPROVEN = Header(0, (0, 0), (0, 0), 0)


def parse_header(data: bytes) -> Header | None:
    """Read the header off the beginning of a popcache; None where there is none of ours or it is damaged."""
    line = data[:HEADER_LENGTH]
    if len(line) != HEADER_LENGTH or not line.startswith(_MAGIC) or not line.endswith(b"\n"):
        return None
    fields = line[len(_MAGIC) : -1].split(b" ")
    if len(fields) != _STAMPS or not all(len(field) == 20 and field.isdigit() for field in fields):
        return None
    made, cur_m, cur_c, new_m, new_c, count, checked = map(int, fields)
    return Header(made, (cur_m, cur_c), (new_m, new_c), count, checked)


class Cache:
    """A popcache as read: three columns of the good lines, and what else there was.

    ``names``, ``sizes`` (octets) and ``uidls`` run in the order of the file; names and uidls are unique. ``removed``: lines
    that begin with ``#``, header not counted. ``refused``: malformed ones, torn tail and doubles. ``ordered``: the names
    stand in message order. ``end``: octets up to the last LF, where an appended line belongs. ``checked``: so many of the first
    names stand in the part of the file that is popkernel's word (see Header). ``given_up``: why the rest of the
    file was not read, "" where it was.
    """

    __slots__ = (
        "checked", "end", "given_up", "header", "names", "ordered", "refused", "removed", "sizes", "uidl_set", "uidls",
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
    """Read a whole popcache file. Never fails: what cannot be trusted is counted in ``refused``."""
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
        # Blocks that stay in the processor's cache are a third faster than one of ten megabytes.
        most = start + _BLOCK + _LONGEST_LINE
        end = data.rfind(b"\n", start, min(most, checked) if start < checked else most) + 1
        if end:
            widths.add(_read_block(cache, data[start:end]))
        else:
            end = data.find(b"\n", start) + 1
            cache.refused += 1  # a line longer than any
        start = end
        if start == checked:
            cache.checked = len(cache.names)
        if cache.refused > MOST_REFUSED:
            cache.given_up = f"more than {MOST_REFUSED} lines that are none"
        elif len(cache.names) + cache.removed > MOST_LINES:
            cache.given_up = f"more than {MOST_LINES} lines"
    cache.refused += bool(cache.given_up)
    names = cache.names
    # Numbers of one length: the order of messages is that of bytes, and names that only rise are no doubles either.
    cache.ordered = len(widths) == 1 and 0 not in widths and all(map(lt, names, islice(names, 1, None)))
    cache.uidl_set = set(cache.uidls)
    if len(cache.uidl_set) != len(cache.uidls) or (not cache.ordered and len(set(names)) != len(names)):
        _drop_doubles(cache)
        cache.uidl_set = set(cache.uidls)
    cache.ordered = cache.ordered or is_ordered(cache.names)
    return cache


def _read_block(cache: Cache, block: bytes) -> int:
    """Add the good lines of a block of whole lines to the columns. Returns how many digits all names begin with, or 0."""
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
    """Cut a faultless block, whose names begin with numbers of one length, into columns; None: take it line by line."""
    lines = block.count(b"\n")
    fields = block.replace(b"\n", b" \n ").split(b" ")
    fields.pop()
    # Four fields a line, each fourth the LF itself, and no other LF anywhere: then every line has three fields.
    if len(fields) != 4 * lines or fields[3::4].count(b"\n") != lines:
        return None
    names, sizes, uidls = fields[0::4], fields[1::4], fields[2::4]
    joined = b"".join(names)
    if b":" in joined or b"/" in joined or b"\0" in joined or not (width := leading_width(names)):
        return None
    if not _good_sizes(sizes) or not _good_uidls(uidls):
        return None
    return names, list(map(int, sizes)), uidls, width


def _drop_doubles(cache: Cache) -> None:
    """Keep one of equal lines; of lines that say different things of one name, or of one UIDL, keep none."""
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
    return min(lengths) >= 1 and max(lengths) <= MAX_UIDL and not b"".join(uidls).translate(None, _UIDL_OCTETS)


def parse_line(line: bytes) -> tuple[bytes, int, bytes] | None:
    """Take one line (without its LF) apart: canonical name, octets, UIDL; None when anything in it is not as it must be."""
    fields = line.split(b" ")
    if len(fields) != 3:
        return None
    name, octets, uidl = fields
    if not fits(name) or not _good_sizes([octets]) or not _good_uidls([uidl]):
        return None
    return name, int(octets), uidl


def fits(name: bytes) -> bool:
    """Can this canonical message name stand in a popcache line at all? One with a blank or a line end, or that begins with # cannot."""
    return is_message(name) and name[:1] != b"#" and not any(octet in name for octet in _UNFIT)


def all_fit(names: list[bytes]) -> bool:
    """Do all these canonical names ``fits``, their numbers of one length? In bulk; False may also mean: ask one by one."""
    joined = b"".join(names)
    return bool(leading_width(names)) and not any(octet in joined for octet in _UNFIT)


def format_line(name: bytes, octets: int, uidl: bytes) -> bytes:
    """One message's line, LF included. The name must ``fits``."""
    return b"%s %d %s\n" % (name, octets, uidl)


def format_lines(rows: Iterable[tuple[bytes, int, bytes]]) -> bytes:
    """``format_line`` of each, in bulk."""
    return b"".join(map(b"%s %d %s\n".__mod__, rows))


def line_offsets(data: bytes, names: set[bytes]) -> list[int]:
    """Where in the file ``data`` the lines of these messages begin, ascending. Lines already removed are not among them."""
    offsets: list[int] = []
    if not names:
        return offsets
    start = 0
    for line in data.split(b"\n"):
        if line.partition(b" ")[0] in names:
            offsets.append(start)
        start += len(line) + 1
    return offsets
