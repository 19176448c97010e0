"""Compare POP3's octet encoding with a slow reference, whole, byte by byte and cut at random."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from popkernel.proto.pop3.octets import SizeCounter, TopCutter, WireEncoder, encode, wire_size

PIECES = st.lists(
    st.sampled_from(
        [b"\r", b"\n", b"\r\n", b".", b"..", b"a", b"text", b" ", b"\0", b"\xff", b"\n.", b"\r\n."]
    ),
    max_size=24,
)
MAIL = PIECES.map(b"".join)


def lines_of(data):
    """Split into lines without their ends; LF ends a line, and one CR before it belongs to the end."""
    if not data:
        return []
    lines = data.split(b"\n")
    if lines[-1] == b"":
        lines.pop()
        tail = None
    else:
        tail = lines.pop()
    lines = [line[:-1] if line.endswith(b"\r") else line for line in lines]
    return lines if tail is None else [*lines, tail]


def slow_plain(data):
    return b"".join(line + b"\r\n" for line in lines_of(data))


def slow_wire(data):
    return b"".join((b"." if line.startswith(b".") else b"") + line + b"\r\n" for line in lines_of(data))


def slow_top(data, n):
    blank = re.search(rb"(?:^|\n)\r?\n", data)
    if blank is None:
        return data
    body = data[blank.end() :].split(b"\n")
    kept = body[:n]
    return data[: blank.end()] + b"\n".join(kept) + (b"\n" if kept and len(body) > n else b"")


def cuts(data, points):
    edges = [0, *sorted(p % (len(data) + 1) for p in points), len(data)]
    return [data[a:b] for a, b in zip(edges, edges[1:], strict=False)]


WAYS = st.lists(st.integers(0, 1000), max_size=6)


@given(MAIL)
def test_whole_against_reference(data):
    assert encode(data)[0] == slow_wire(data)
    assert wire_size(data) == len(slow_plain(data))
    assert encode(data) == (slow_wire(data), len(slow_plain(data)))


@given(MAIL, WAYS)
def test_chunks_are_the_whole(data, points):
    for parts in ([data], [data[i : i + 1] for i in range(len(data))], cuts(data, points)):
        encoder, counter = WireEncoder(), SizeCounter()
        out = b"".join(encoder.feed(part) for part in parts) + encoder.finish()
        for part in parts:
            counter.feed(part)
        assert out == slow_wire(data)
        assert encoder.octets == counter.finish() == counter.finish() == wire_size(data)
        assert encoder.finish() == b""


@given(MAIL, WAYS, st.integers(0, 5))
def test_top_is_cut_alike_wherever_chunks_end(data, points, n):
    expected = slow_top(data, n)
    for parts in ([data], [data[i : i + 1] for i in range(len(data))], cuts(data, points)):
        cutter = TopCutter(n)
        assert b"".join(cutter.feed(part) for part in parts) == expected
        if cutter.done:
            assert cutter.feed(b"more\n") == b""
        else:
            assert expected == data


@given(MAIL, st.integers(0, 5))
def test_top_of_the_wire_form_is_the_wire_form_of_top(data, n):
    plain = slow_plain(data)
    assert TopCutter(n).feed(plain) == slow_top(plain, n)
    assert encode(TopCutter(n).feed(data))[0] == slow_wire(slow_top(data, n))


@pytest.mark.parametrize(
    ("data", "octets", "wire"),
    [
        (b"", 0, b""),
        (b"\n", 2, b"\r\n"),
        (b".", 3, b"..\r\n"),
        (b".\n", 3, b"..\r\n"),
        (b"..\n", 4, b"...\r\n"),
        (b"a", 3, b"a\r\n"),
        (b"a\r", 4, b"a\r\r\n"),
        (b"a\rb\n", 5, b"a\rb\r\n"),
        (b"a\r\r\n", 4, b"a\r\r\n"),
        (b"a\r\nb\n", 6, b"a\r\nb\r\n"),
        (b"a\n.b\r\n.c", 11, b"a\r\n..b\r\n..c\r\n"),
        (b"a\r.b\n", 6, b"a\r.b\r\n"),
    ],
)
def test_examples(data, octets, wire):
    assert wire_size(data) == octets
    assert encode(data)[0] == wire


def test_top_sees_a_crlf_blank_line_that_ends_where_a_bare_one_begins():
    assert TopCutter(0).feed(b"\r\r\n\r\n\n") == b"\r\r\n\r\n"


def test_top_stops_reading_at_the_blank_line_for_no_lines():
    cutter = TopCutter(0)
    assert cutter.feed(b"A: b\n\nbody\n" * 1000) == b"A: b\n\n"
    assert cutter.done


def test_top_refuses_fewer_than_no_lines():
    with pytest.raises(ValueError, match="0 or more"):
        TopCutter(-1)
