"""Test the popcache's format: nothing malformed is trusted, whatever the file holds."""

import hashlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from popkernel.proto.files import maildir_names, popcache
from popkernel.proto.files.popcache import Header, parse, parse_line


def uidl(name):
    return hashlib.sha256(name).hexdigest().encode()


def line(name, octets=800):
    return popcache.format_line(name, octets, uidl(name))


A, B, C = b"1.a", b"2.b", b"10.c"
GOOD = line(A) + line(B, 0) + line(C, 1 << 40)


def test_good_lines():
    cache = parse(GOOD)
    assert cache.names == [A, B, C]
    assert list(cache.sizes) == [800, 0, 1 << 40]
    assert cache.uidls == [uidl(A), uidl(B), uidl(C)]
    assert (cache.refused, cache.removed, cache.ordered, cache.header) == (0, 0, True, None)


def test_order_is_by_number_then_name():
    assert not parse(line(C) + line(A)).ordered
    assert parse(line(b"9.z") + line(b"10.a")).ordered
    assert not parse(line(b"10.b") + line(b"10.a")).ordered
    names = [b"10.a", b"9.b", b"9.a", b"007.x"]
    maildir_names.sort_names(names)
    assert names == [b"007.x", b"9.a", b"9.b", b"10.a"]


def test_removed_lines_are_skipped_and_counted():
    cache = parse(line(A) + b"#" + line(B)[1:] + line(C))
    assert (cache.names, cache.removed, cache.refused) == ([A, C], 1, 0)


@pytest.mark.parametrize(
    "bad",
    [
        b"\n", b"1.a\n", b"1.a 5\n", b"1.a 5 \n", b"1.a  5 u\n", b"1.a 5 u v\n", b" 1.a 5 u\n", b"1.a 5 u \n",
        b"1.a +5 u\n",
        b"1.a -5 u\n", b"1.a 5_0 u\n", b"1.a 05 u\n", b"1.a 5\t u\n", b"1.a 9999999999999999999 u\n",
        b".a 5 u\n", b"1.a:2,S 5 u\n", b"1.a/b 5 u\n", b"1.a\0 5 u\n", b"1.a 5 " + b"u" * 71 + b"\n",
        b"1.a 5 u\x7f\n",
        b"1.a 5 u\xe9\n", b"1.a 5 u\r\n", b" 5 u\n", b"1.a 5 u",
    ],
)  # fmt: skip
@pytest.mark.parametrize("where", [0, 1, 2])
def test_malformed_lines_are_refused_and_cost_no_other(bad, where):
    others = [line(B), line(C)]
    if not bad.endswith(b"\n"):
        where = 2
    others.insert(where, bad)
    cache = parse(b"".join(others))
    assert cache.names == [B, C]
    assert cache.refused == 1


def test_fields_shifted_over_two_lines_are_refused():
    cache = parse(b"1.a 5\nu 1.b 5 v\n" + line(C))
    assert (cache.names, cache.refused) == ([C], 2)


def test_longest_uidl_and_foreign_forms():
    for form in (b"!", b"~" * 70, b"000001f45a7b", b"UID1234-5678"):
        assert parse(b"1.a 5 %s\n" % form).uidls == [form]


def test_equal_lines_count_once_and_contradictions_not_at_all():
    assert parse(line(A) + line(B) + line(B)).names == [A, B]
    assert parse(line(A) + line(B) + line(B, 5)).names == [A]
    assert parse(line(A) + b"3.x 5 same\n4.y 5 same\n5.z 5 same\n").names == [A]
    assert parse(line(A) + line(B) + line(B)).refused == 1


def test_torn_tail():
    for cut in range(1, len(line(B))):
        cache = parse(line(A) + line(B)[:cut])
        assert (cache.names, cache.refused, cache.end) == ([A], 1, len(line(A)))


NOW = 10**18
STAMPS = (NOW - 3 * 10**9, NOW - 2 * 10**9)


def test_header_round_trip():
    header = Header(NOW, STAMPS, STAMPS, 3)
    text = header.encode()
    assert len(text) == popcache.HEADER_LENGTH
    assert text.startswith(b"#popkernel 2 ")
    back = parse(text + GOOD).header
    assert back is not None
    assert back.proves(STAMPS, STAMPS, 3)
    assert parse(text + GOOD).removed == 0
    assert not back.proves(STAMPS, STAMPS, 2)
    assert not back.proves((STAMPS[0] + 1, STAMPS[1]), STAMPS, 3)
    assert not back.proves(STAMPS, (STAMPS[0], STAMPS[1] - 1), 3)


def test_racy_header_proves_nothing():
    young = (NOW - 3 * 10**9, NOW - 2 * 10**9 + 1)
    assert not Header(NOW, young, STAMPS, 3).proves(young, STAMPS, 3)
    assert not Header(NOW, STAMPS, young, 3).proves(STAMPS, young, 3)
    assert not popcache.UNPROVEN.proves((0, 0), (0, 0), 0)


def test_header_out_of_range_proves_nothing():
    assert Header(NOW, (-1, 0), (0, 0), 0).encode() == popcache.UNPROVEN.encode()


@given(st.integers(0, popcache.HEADER_LENGTH - 1), st.binary(min_size=1, max_size=1))
def test_damaged_header_proves_nothing(at, octet):
    good = Header(NOW, STAMPS, STAMPS, 3).encode()
    text = good[:at] + octet + good[at + 1 :]
    header = parse(text + GOOD).header
    made = range(13, 33)  # octets of its making time, which only says whether the stamps are old enough
    # says nothing about the directories
    checked = range(popcache.HEADER_LENGTH - 21, popcache.HEADER_LENGTH - 1)
    assert (
        header is None or text == good or at in made or at in checked or not header.proves(STAMPS, STAMPS, 3)
    )


def test_only_the_first_line_is_a_header():
    cache = parse(GOOD + Header(NOW, STAMPS, STAMPS, 3).encode())
    assert (cache.header, cache.removed) == (None, 1)


JUNK = st.lists(
    st.sampled_from([b"1.a", b"2.b", b" ", b"\n", b"#", b"5", b"u", b":", b"0", uidl(A), line(A), line(B)])
).map(b"".join)


@given(JUNK | st.binary(max_size=200))
@example(b"")
@example(b"#")
@example(b"\n\n")
def test_fuzz_only_sound_unique_lines_come_through(data):
    cache = parse(data)
    assert (
        len(cache.names)
        == len(cache.sizes)
        == len(cache.uidls)
        == len(set(cache.names))
        == len(set(cache.uidls))
    )
    wanted = [parse_line(row) for row in data.split(b"\n")[:-1]]
    for row in zip(cache.names, cache.sizes, cache.uidls, strict=True):
        assert row in wanted
        assert popcache.fits(row[0])


@given(
    st.lists(st.integers(1, 10**10).map(lambda n: b"%d.x" % n), unique=True, max_size=40), st.integers(1, 200)
)
def test_blocks_of_any_size_read_alike(names, block):
    data = b"".join(map(line, names)) + b"junk\n" + line(b"77777777777.y")
    expected = parse(data)
    old = popcache._BLOCK
    popcache._BLOCK = block
    try:
        cache = parse(data)
    finally:
        popcache._BLOCK = old
    assert cache.names == expected.names == [*names, b"77777777777.y"]
    assert (cache.sizes, cache.uidls, cache.refused) == (expected.sizes, expected.uidls, 1)
    assert cache.ordered == expected.ordered


def test_line_offsets_find_live_lines_only():
    data = b"#" + line(A)[1:] + line(B) + line(C) + b"half"
    assert popcache.line_offsets(data, {A, C}) == [len(line(A) + line(B))]
    assert popcache.line_offsets(data, set()) == []


def test_names():
    assert maildir_names.with_flag(b"", b"S") == b":2,S"
    assert maildir_names.with_flag(b":2,", b"T") == b":2,T"
    assert maildir_names.with_flag(b":2,RFa", b"S") == b":2,FRSa"
    assert maildir_names.with_flag(b":2,FS", b"S") == b":2,FS"
    assert maildir_names.with_flag(b":1,x", b"S") is None
    assert [maildir_names.is_trashed(info) for info in (b"", b":2,ST", b":2,S", b":1,T")] == [
        False,
        True,
        False,
        False,
    ]
    assert maildir_names.escape_host(b"a/b:c d\n") == rb"a\057b\072c\040d\012"
    assert maildir_names.escape_host(b"") == b"localhost"
    assert popcache.fits(maildir_names.unique_name(5, 255, maildir_names.escape_host(b"h\xc3\xa9")))


def test_a_size_no_message_has_is_refused():
    """Such sizes would sum to more than 2^63."""
    cache = parse(line(A, (1 << 40) + 1) + line(B, 10**17) + line(C, 1 << 40))
    assert (cache.names, cache.refused) == ([C], 2)


def test_a_line_longer_than_any_costs_no_other_and_no_memory():
    long = b"\0" * (popcache._BLOCK * 3) + b"\n"
    cache = parse(line(A) + long + line(B) + long)
    assert (cache.names, cache.refused, cache.given_up) == ([A, B], 2, "")


def test_a_file_of_bad_lines_is_not_read_to_its_end(monkeypatch):
    monkeypatch.setattr(popcache, "_BLOCK", 1)
    cache = parse(line(A) + b"junk\n" * (popcache.MOST_REFUSED + 500) + line(B))
    assert cache.names == [A]
    assert "lines that are none" in cache.given_up


def test_a_file_of_endless_lines_is_not_read_to_its_end(monkeypatch):
    monkeypatch.setattr(popcache, "MOST_LINES", 3)
    monkeypatch.setattr(popcache, "_BLOCK", 1)
    names = [b"%d.x" % (10000 + n) for n in range(50)]
    cache = parse(b"".join(map(line, names)))
    assert 3 < len(cache.names) < 50
    assert cache.refused == 1
    assert cache.given_up


@pytest.mark.parametrize(
    ("names", "width"),
    [
        ([b"17.a", b"18.b"], 2),
        ([b"17.a", b"18.bc"], 2),
        ([b"1.ab", b"12.a"], 0),
        ([b"12.a", b"1.ab"], 0),
        ([b"1234.x", b"1.34.x"], 0),
        ([b"1234.x", b"12x4.x"], 0),
        ([b"17.a", b"1x.a"], 0),
        ([b"17.a", b"17a."], 0),
        ([b".a", b".b"], 0),
        ([b"a.b"], 0),
        ([b"5.", b"6."], 1),
        ([], 0),
        ([b"17.a", b"", b"17.aaaa"], 0),
        ([b"17.aaaa", b"17", b"17.a"], 0),
    ],
)
def test_leading_width(names, width):
    assert maildir_names.leading_width(names) == width
    # names of different lengths
    assert maildir_names.leading_width([name + b"z" * i for i, name in enumerate(names)]) == width
