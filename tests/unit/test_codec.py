"""The codec beyond single rows (those are in tests/topology): bulk frames, memory, random octets."""

import tracemalloc

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from popkernel.proto import messages as m
from popkernel.proto.codec import BadMessageError, Codec
from popkernel.proto.topology import EDGES

CODECS = [Codec(e.source, e.target) for e in EDGES]


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(CODECS), st.binary(max_size=200))
def test_random_octets_are_refused_or_make_a_whole_message(codec, data):
    try:
        message = codec.decode(data)
    except BadMessageError:
        return
    assert codec.decode(codec.encode(message)) == message


simple = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=9) | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=9,
)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(CODECS), st.integers(0, 20), st.lists(simple, max_size=8))
def test_random_fields_are_refused_or_make_a_whole_message(codec, code, fields):
    try:
        message = codec.decode(msgpack.packb([code, *fields]))
    except BadMessageError:
        return
    assert type(message) in codec.edge.messages


@pytest.mark.parametrize("size", [0, 1, 255, 4095, 4096, 65535, 65536, 300_000])
def test_bulk_is_the_same_as_whole(size):
    codec = Codec("maildir.{user}", "listener")
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    message = m.Mail([1, size, size, 1], data)
    head = m.Mail([1, size, size, 1], b"")
    parts = codec.encode_bulk(head, memoryview(data))
    assert codec.decode(b"".join(parts)) == message == codec.decode(codec.encode(message))
    if size >= 4096:
        assert parts[1].obj is data  # no copy


def test_bulk_larger_than_the_edge_is_refused():
    codec = Codec("maildir.{user}", "listener")
    with pytest.raises(BadMessageError):
        codec.encode_bulk(m.Mail([], b""), bytes(codec.octets))
    with pytest.raises(BadMessageError):
        codec.encode_bulk(m.Mail([-2], b""), bytes(10000))


@pytest.mark.parametrize("codec", CODECS, ids=lambda c: c.name)
def test_arrays_that_announce_much_take_little(codec):
    """Lists are made as long as announced, before their items come: 300,000 items at each of 1,000 depths would be 2.4 GB."""
    most = codec.octets
    tracemalloc.start()
    try:
        for head in (b"\xdd" + most.to_bytes(4, "big"), b"\xdc\xff\xff", b"\xdc\x20\x00", b"\xdd\x7f\xff\xff\xff"):
            data = (head * 1000)[: most // 2]
            with pytest.raises(BadMessageError):
                codec.decode(data + b"\xc0" * (most - len(data)))
        assert tracemalloc.get_traced_memory()[1] < 96 << 20
    finally:
        tracemalloc.stop()


def test_a_refusal_has_no_cause_that_holds_the_octets():
    with pytest.raises(BadMessageError) as caught:
        CODECS[0].decode(b"\x92\x01\xa8PASSWORD\xff")
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
