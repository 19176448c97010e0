"""UIDLs that other servers gave: Dovecot's ``dovecot-uidlist``, Courier's ``courierpop3dsizelist``, and file names (pure).

A client that knows its messages by such a UIDL fetches none of them again when the server becomes popkernel. What is read here
is a user's file: a line that is none is counted and passed over, and no UIDL is used that POP3 cannot say or that two messages
would share. Sources: Dovecot's "Maildir Mailbox Format" page and files of its 2.3; Courier's courierpop3d and files of its 1.0.
"""

from __future__ import annotations

from popkernel.proto.files.maildir_names import canonical
from popkernel.proto.files.popcache import MAX_UIDL

SOURCES = ("dovecot", "courier", "filename")
_MAX32 = (1 << 32) - 1
_SAID = bytes(range(0x21, 0x7F))
_COURIER_ESCAPES = frozenset(b"'\"+")
MOST_REFUSED = 10_000


def valid(uidl: bytes) -> bool:
    """RFC 1939, section 7: 1 to 70 octets of 0x21 to 0x7E."""
    return 1 <= len(uidl) <= MAX_UIDL and not uidl.translate(None, _SAID)


def read(source: str, data: bytes) -> tuple[dict[bytes, bytes], int]:
    """Give UIDLs by canonical file name, valid or not, and how many lines are none. Never fails.

    ``source``: "dovecot" or "courier", whose file ``data`` is. Of a name that stands there twice the later line counts.
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
    names: list[bytes], brought: dict[bytes, bytes], taken: set[bytes]
) -> tuple[dict[bytes, bytes], list[tuple[bytes, str]]]:
    """Say which of these messages, in order, can have what was ``brought``; with it, of each that cannot, why not.

    ``taken``: UIDLs that other messages have.
    """
    chosen: dict[bytes, bytes] = {}
    said: list[tuple[bytes, str]] = []
    used: set[bytes] = set()
    for name in names:
        uidl = brought.get(name)
        if uidl is None:
            continue
        if not valid(uidl):
            said.append((name, "its UIDL is none that POP3 can say"))
        elif uidl in taken or uidl in used:
            said.append((name, "its UIDL is another message's too"))
        else:
            chosen[name] = uidl
            used.add(uidl)
    return chosen, said


def _number(text: bytes, least: int = 1) -> int | None:
    if not 1 <= len(text) <= 10 or not text.isdigit():
        return None
    number = int(text)
    return number if least <= number <= _MAX32 else None


def _dovecot_form(head: bytes) -> tuple[str, int] | None:
    """Version and UIDVALIDITY: ``1 UIDVALIDITY NEXTUID`` or ``3 VUIDVALIDITY NNEXTUID GGUID``, in any order."""
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
    """The default ``pop3_uidl_format``, %08Xu%08Xv: eight lower-case hex digits each."""
    return b"%08x%08x" % (uid, validity)


def _dovecot_1(line: bytes, validity: int) -> tuple[bytes, bytes] | None:
    uid, _, name = line.partition(b" ")
    number = _number(uid)
    return None if number is None or not name else (name, _dovecot_uidl(number, validity))


def _dovecot_3(line: bytes, validity: int) -> tuple[bytes, bytes] | None:
    """``UID [KEYVALUE ...] :NAME``; the key P is a UIDL that goes before the format (saved, or brought from elsewhere)."""
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
    """Version: ``/VERSION NEXTUID [UIDVALIDITY]``; the oldest files have no such line."""
    if not head.startswith(b"/"):
        return ("", 0) if len(head.split(b" ")) == 2 else None
    version = head[1:].partition(b" ")[0]
    return (f"courier {int(version)}", 0) if version in (b"1", b"2", b"3") else None


def courier_name(name: bytes) -> bytes:
    """Courier's oldest UIDL: the file name to its ``:``, with what might not be said as ``+XX``."""
    plain = (b"%c" % c if 0x21 <= c <= 0x7E and c not in _COURIER_ESCAPES else b"+%02X" % c for c in canonical(name))
    return b"".join(plain)


def _courier_0(line: bytes, _: int) -> tuple[bytes, bytes] | None:
    """``NAME OCTETS``: the UIDL is the name."""
    name, _blank, octets = line.rpartition(b" ")
    return (name, courier_name(name)) if name and octets.isdigit() else None


def _courier_1(line: bytes, _: int) -> tuple[bytes, bytes] | None:
    """``NAME OCTETS NUMBER``."""
    name, octets, number = [b"", b"", *line.rsplit(b" ", 2)][-3:]
    uid = _number(number, 0)
    if uid is None or not name or not octets.isdigit():
        return None
    return name, b"UID%d" % uid if uid else courier_name(name)


def _courier_2(line: bytes, _: int) -> tuple[bytes, bytes] | None:
    """``NAME OCTETS NUMBER:UIDVALIDITY``, in version 3 with ``:UTF8`` behind; number 0 and validity 0 are older forms."""
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
