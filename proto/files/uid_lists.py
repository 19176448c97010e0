"""Parse the files in which Dovecot and Courier keep UIDLs: `dovecot-uidlist`, `courierpop3dsizelist`. Pure.

Clients know messages by their UIDL: with these UIDLs they fetch nothing again after a change to popkernel.
The files belong to users: a malformed line is counted and skipped, and a UIDL is not used if POP3 forbids it
or two messages would share it. Sources: Dovecot's "Maildir Mailbox Format" page and files of Dovecot 2.3;
Courier's courierpop3d and files of Courier 1.0.
"""

from __future__ import annotations

from popkernel.proto.files.maildir_names import canonical
from popkernel.proto.files.popcache import MAX_UIDL

SOURCES = ("dovecot", "courier", "filename")
_MAX32 = (1 << 32) - 1
_UIDL_OCTETS = bytes(range(0x21, 0x7F))
_COURIER_ESCAPES = frozenset(b"'\"+")
MOST_REFUSED = 10_000


def valid(uidl: bytes) -> bool:
    """Say whether POP3 allows this UIDL: 1 to 70 octets of 0x21 to 0x7E (RFC 1939 section 7)."""
    return 1 <= len(uidl) <= MAX_UIDL and not uidl.translate(None, _UIDL_OCTETS)


def read(source: str, data: bytes) -> tuple[dict[bytes, bytes], int]:
    """Return UIDLs by canonical file name, unchecked, and the number of malformed lines. Never raises.

    `source`: "dovecot" or "courier"; `data`: the octets of its file. Of two lines for one name the later
    counts.
    """
    found: dict[bytes, bytes] = {}
    refused = 0
    head, _, rest = data.partition(b"\n")
    form = _dovecot_form(head) if source == "dovecot" else _courier_form(head)
    if form is None:
        return found, int(bool(data))
    kind, number = form
    take = _TAKERS[kind]
    lines = (rest if kind else data).split(b"\n")
    for line in lines if lines[-1] else lines[:-1]:
        taken = take(line, number)
        if taken is None:
            refused += 1
            if refused > MOST_REFUSED:
                break
        else:
            found[canonical(taken[0])] = taken[1]
    return found, refused


def choose(
    names: list[bytes], old: dict[bytes, bytes], taken: set[bytes]
) -> tuple[dict[bytes, bytes], list[tuple[bytes, str]]]:
    """Choose the messages, in the order of `names`, that can have their UIDL in `old`.

    `taken`: UIDLs of other messages. Returns the UIDLs by name, and each refused name with the reason.
    """
    chosen: dict[bytes, bytes] = {}
    refused: list[tuple[bytes, str]] = []
    used: set[bytes] = set()
    for name in names:
        uidl = old.get(name)
        if uidl is None:
            continue
        if not valid(uidl):
            refused.append((name, "its UIDL is none that POP3 can say"))
        elif uidl in taken or uidl in used:
            refused.append((name, "its UIDL is another message's too"))
        else:
            chosen[name] = uidl
            used.add(uidl)
    return chosen, refused


def _number(text: bytes, least: int = 1) -> int | None:
    if not 1 <= len(text) <= 10 or not text.isdigit():
        return None
    number = int(text)
    return number if least <= number <= _MAX32 else None


def _dovecot_form(head: bytes) -> tuple[str, int] | None:
    """Parse `1 UIDVALIDITY NEXTUID` or `3 VUIDVALIDITY NNEXTUID GGUID` (in any order) up to UIDVALIDITY."""
    version, *fields = head.split(b" ")
    if version == b"1" and fields:
        texts = fields[:1]
    elif version == b"3":
        texts = [field[1:] for field in fields if field.startswith(b"V")]
    else:
        return None
    validity = _number(texts[0]) if texts else None
    return None if validity is None else (f"dovecot {int(version)}", validity)


def _dovecot_uidl(uid: int, validity: int) -> bytes:
    """Format a UIDL by Dovecot's default `pop3_uidl_format`, %08Xu%08Xv: each eight lower-case hex digits."""
    return b"%08x%08x" % (uid, validity)


def _dovecot_1(line: bytes, validity: int) -> tuple[bytes, bytes] | None:
    uid, _, name = line.partition(b" ")
    number = _number(uid)
    return None if number is None or not name else (name, _dovecot_uidl(number, validity))


def _dovecot_3(line: bytes, validity: int) -> tuple[bytes, bytes] | None:
    """Parse `UID [KEYVALUE ...] :NAME`. The key P, a stored UIDL, takes precedence over the format."""
    fields, _, name = line.partition(b" :")
    uid, *extensions = fields.split(b" ")
    number = _number(uid)
    if number is None or not name:
        return None
    for extension in extensions:
        if extension.startswith(b"P") and len(extension) > 1:
            return name, extension[1:]
    return name, _dovecot_uidl(number, validity)


def _courier_form(head: bytes) -> tuple[str, int] | None:
    """Return the version in `/VERSION NEXTUID [UIDVALIDITY]`; the oldest format has no such line."""
    if not head.startswith(b"/"):
        return ("", 0) if len(head.split(b" ")) == 2 else None
    version = head[1:].partition(b" ")[0]
    return (f"courier {int(version)}", 0) if version in (b"1", b"2", b"3") else None


def courier_name(name: bytes) -> bytes:
    """Return Courier's oldest form of UIDL: the file name up to its `:`, unfit octets as `+XX`."""
    plain = (
        b"%c" % c if 0x21 <= c <= 0x7E and c not in _COURIER_ESCAPES else b"+%02X" % c
        for c in canonical(name)
    )
    return b"".join(plain)


def _courier_0(line: bytes, _: int) -> tuple[bytes, bytes] | None:
    """Parse `NAME OCTETS`; the name gives the UIDL."""
    name, _blank, octets = line.rpartition(b" ")
    return (name, courier_name(name)) if name and octets.isdigit() else None


def _courier_1(line: bytes, _: int) -> tuple[bytes, bytes] | None:
    """Parse `NAME OCTETS NUMBER`; 0 stands for the oldest form of UIDL."""
    name, octets, number = [b"", b"", *line.rsplit(b" ", 2)][-3:]
    uid = _number(number, 0)
    if uid is None or not name or not octets.isdigit():
        return None
    return name, b"UID%d" % uid if uid else courier_name(name)


def _courier_2(line: bytes, _: int) -> tuple[bytes, bytes] | None:
    """Parse `NAME OCTETS NUMBER:UIDVALIDITY`, to which version 3 appends `:UTF8`; 0 means an older form."""
    name, octets, numbers = [b"", b"", *line.rsplit(b" ", 2)][-3:]
    first, _colon, rest = numbers.partition(b":")
    uid, validity = _number(first, 0), _number(rest.partition(b":")[0], 0)
    if uid is None or validity is None or not name or not octets.isdigit():
        return None
    if not uid:
        return name, courier_name(name)
    return name, b"UID%d-%d" % (uid, validity) if validity else b"UID%d" % uid


_TAKERS = {
    "dovecot 1": _dovecot_1,
    "dovecot 3": _dovecot_3,
    "": _courier_0,
    "courier 1": _courier_1,
    "courier 2": _courier_2,
    "courier 3": _courier_2,
}
