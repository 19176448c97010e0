"""Test UIDL files of other servers, octet for octet, and hostile ones."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from popkernel.actors.maildir.store import foreign_uidls
from popkernel.proto.files import uid_lists
from popkernel.proto.files.uid_lists import choose, read, valid

# As written by Dovecot 2.3.19, with and without pop3_save_uidl, and a P from an import.
DOVECOT_3 = b"""3 V1795440164 N5 G2a6af41a243e046b4c1b000083ecc375
1 W22 P000000016b043e24 :170000001.M1P1.h
2 W22 :170000002.M2P1.h
3 G2a6af41a PUID7-1189 :170000003.M3P1.h:2,S
4 :1700000900.M9.h,S=14,W=17
"""
DOVECOT_1 = b"1 1795440164 12\n1 170000001.M1P1.h\n11 170000002.M2P1.h:2,RS\n"
# As written by courierpop3d 1.0.16; its replies to UIDL are below.
COURIER_3 = b"/3 6 1699999999\n1700000001.M1P1.h,S=15:2,S 18 0:0:0\n1700000002.M2P2.h:2, 16 5:1699999999:0\n"


def test_dovecot_3():
    assert read("dovecot", DOVECOT_3) == (
        {
            b"170000001.M1P1.h": b"000000016b043e24",
            b"170000002.M2P1.h": b"000000026b043e24",
            b"170000003.M3P1.h": b"UID7-1189",
            b"1700000900.M9.h,S=14,W=17": b"000000046b043e24",
        },
        0,
    )


def test_dovecot_1():
    assert read("dovecot", DOVECOT_1) == (
        {b"170000001.M1P1.h": b"000000016b043e24", b"170000002.M2P1.h": b"0000000b6b043e24"},
        0,
    )


def test_courier():
    assert read("courier", COURIER_3) == (
        {b"1700000001.M1P1.h,S=15": b"1700000001.M1P1.h,S=15", b"1700000002.M2P2.h": b"UID5-1699999999"},
        0,
    )
    two = b"/2 9 1699999999\n1.a:2,S 18 4:1699999999\n2.b 9 7:0\n3.c'\"+d\xe9 x:2, 4 0:0\n"
    assert read("courier", two) == (
        {b"1.a": b"UID4-1699999999", b"2.b": b"UID7", b"3.c'\"+d\xe9 x": b"3.c+27+22+2Bd+E9+20x"},
        0,
    )
    assert read("courier", b"/1 9\n1.a:2,S 18 4\n2.b 9 0\n") == ({b"1.a": b"UID4", b"2.b": b"2.b"}, 0)
    assert read("courier", b"1.a:2,S 18\n2.b 9\n") == ({b"1.a": b"1.a", b"2.b": b"2.b"}, 0)


@pytest.mark.parametrize(
    ("source", "data"),
    [
        ("dovecot", b"4 V1 N1\n1 :1.a\n"), ("dovecot", b"3 N5\n1 :1.a\n"), ("dovecot", b"3 V0 N5\n1 :1.a\n"),
        ("dovecot", b"1 x 5\n1 1.a\n"),
        ("dovecot", b"3 V99999999999 N5\n1 :1.a\n"), ("courier", b"/4 1 1\n1.a 2 3:4\n"),
        ("courier", b"/x\n1.a 2 3:4\n"), ("courier", b"\0" * 99),
    ],
)  # fmt: skip
def test_a_malformed_header_gives_nothing(source, data):
    assert read(source, data) == ({}, 1)
    assert read(source, b"") == ({}, 0)


@pytest.mark.parametrize(
    ("head", "line"),
    [
        (b"3 V1 N1", b"x :1.a"), (b"3 V1 N1", b"1 1.a"), (b"3 V1 N1", b"0 :1.a"), (b"3 V1 N1", b"1 :"),
        (b"3 V1 N1", b"4294967296 :1.a"),
        (b"1 1 1", b"1"), (b"1 1 1", b"-1 1.a"), (b"/2 1 1", b"1.a 5"), (b"/2 1 1", b"1.a x 5:1"),
        (b"/3 1 1", b"1.a 5 1"), (b"/3 1 1", b""),
        (b"/1 1", b"5 1"), (b"/1 1", b"1.a 5 x"),
    ],
)  # fmt: skip
def test_a_malformed_line_is_skipped(head, line):
    source = "courier" if head.startswith(b"/") else "dovecot"
    good = {b"3": b"7 :9.z", b"1": b"7 9.z", b"/": b"9.z 1 7:8"}[head[:1]] if head != b"/1 1" else b"9.z 1 7"
    found, refused = read(source, b"\n".join([head, line, good, b""]))
    assert (list(found), refused) == ([b"9.z"], 1)


def test_endless_malformed_lines():
    found, refused = read("dovecot", b"3 V1 N1\n" + b"\n" * 100_000 + b"7 :9.z\n")
    assert (found, refused) == ({}, uid_lists.MOST_REFUSED + 1)


@given(
    st.sampled_from(["dovecot", "courier"]),
    st.sampled_from([b"", b"3 V5 N1\n", b"1 5 1\n", b"/1 5\n", b"/2 5 5\n", b"/3 5 5\n"]),
    st.binary(max_size=99),
)
def test_fuzz_never_fails(source, head, data):
    found, refused = read(source, head + data)
    assert all(b":" not in name for name in found)
    assert refused >= 0


def test_uidls_are_unique_and_valid_in_pop3():
    names = [b"1.a", b"2.b", b"3.c", b"4.d", b"5.e", b"6.f"]
    brought_along = {b"1.a": b"u", b"2.b": b"u", b"3.c": b"mine", b"4.d": b"x" * 71, b"5.e": b"a b"}
    chosen, said = choose(names, brought_along, {b"mine"})
    assert chosen == {b"1.a": b"u"}
    assert [name for name, _ in said] == [b"2.b", b"3.c", b"4.d", b"5.e"]


def test_uidls_that_pop3_can_send():
    assert valid(b"!") and valid(b"~" * 70)
    assert not any(map(valid, [b"", b"~" * 71, b"a b", b"\x7f", b"\xe9", b"a\n"]))


@pytest.mark.parametrize("kind", ["link", "fifo", "directory", "huge", "unreadable"])
def test_an_unreadable_file_gives_nothing(tmp_path, kind, monkeypatch):
    path = tmp_path / "dovecot-uidlist"
    if kind == "link":
        (tmp_path / "target").write_bytes(DOVECOT_3)
        path.symlink_to("target")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        path.write_bytes(DOVECOT_3)
        if kind == "huge":
            os.truncate(path, 1 << 40)
        else:
            monkeypatch.setattr(os, "read", lambda *_: (_ for _ in ()).throw(OSError(5, "bad block")))
    root = os.open(tmp_path, os.O_RDONLY)
    try:
        found, notes = foreign_uidls.uidls(root, "dovecot", [b"170000001.M1P1.h"])
    finally:
        os.close(root)
    assert found == {}
    assert len(notes) == 1 and notes[0].startswith("dovecot-uidlist: ")
