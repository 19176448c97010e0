"""Test the codec beyond single messages (tests/topology has those): bulk frames, memory, random octets."""

import tracemalloc

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from popkernel.proto import messages as m
from popkernel.proto.codec import Codec
from popkernel.proto.schema import BadMessageError, fit_text
from popkernel.proto.topology import EDGES

CODECS = [Codec(e.source, e.target) for e in EDGES]


@settings(max_examples=100)
@given(st.sampled_from(CODECS), st.binary(max_size=200))
def test_random_octets_are_refused_or_make_a_whole_message(codec, data):
    try:
        message = codec.decode(data)
    except BadMessageError:
        return
    assert codec.decode(codec.encode(message)) == message


simple = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=9)
    | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=9,
)


@settings(max_examples=100)
@given(st.sampled_from(CODECS), st.integers(0, 20), st.lists(simple, max_size=8))
def test_random_fields_are_refused_or_make_a_whole_message(codec, code, fields):
    try:
        message = codec.decode(msgpack.packb([code, *fields]))
    except BadMessageError:
        return
    assert type(message) in codec.edge.messages


def test_a_text_that_is_not_utf8_is_refused_and_spoils_nothing():
    codec = Codec("auth", "kernel")
    before = codec.encode(m.ActorFailed(70, "x"))
    with pytest.raises(BadMessageError):
        codec.encode(m.ActorFailed(70, "x\udcff"))
    assert codec.encode(m.ActorFailed(70, "x")) == before
    text = fit_text("\udcff" * 1000)
    assert codec.decode(codec.encode(m.ActorFailed(70, text))) == m.ActorFailed(70, text)
    assert fit_text("größer\n€") == "größer\n€"


@pytest.mark.parametrize("size", [0, 1, 255, 4095, 4096, 65535, 65536, 300_000])
def test_bulk_frames_equal_whole_ones(size):
    codec = Codec("maildir.{user}", "listener")
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    message = m.MailContent([1, size, size, 1], data)
    head = m.MailContent([1, size, size, 1], b"")
    parts = codec.encode_bulk(head, memoryview(data))
    assert codec.decode(b"".join(parts)) == message == codec.decode(codec.encode(message))
    if size >= 4096:
        assert parts[1].obj is data  # no copy


@pytest.mark.parametrize("make", [bytes, bytearray])
@pytest.mark.parametrize("size", [0, 4095, 4096, 65536, 300_000])
def test_bulk_can_be_had_as_a_view_of_its_frame(size, make):
    codec = Codec("maildir.{user}", "listener")
    data = bytes(255 - i % 256 for i in range(size))
    message = m.MailContent([0xC6, 0xC6C6, 0xC6C6C6C6, 1], data)
    frame = make(b"".join(codec.encode_bulk(m.MailContent(message.parts, b""), data)))
    got = codec.decode_bulk(frame)
    assert got == message == codec.decode(frame)
    assert type(got) is m.MailContent
    if size >= 4096:
        assert got.data.obj is frame


def bulk_head(octets):
    return b"\xc6" + octets.to_bytes(4, "big")


def agree(codec, frame):
    """A view and a copy decode alike, or both are refused."""
    try:
        want = codec.decode(frame)
    except BadMessageError:
        with pytest.raises(BadMessageError):
            codec.decode_bulk(frame)
    else:
        assert codec.decode_bulk(frame) == want


@pytest.mark.parametrize(
    "before",
    [
        b"\x93\x03\x90",  # valid
        b"\x93\x03\x90\xcd",  # the bulk's head is inside a number
        b"\x93\x03\x90\xc4\x02",  # or inside another field
        b"\x93\x03\x90\xc4\x00",  # or after the end
        b"\x93\x03\x91\xcd",
        b"\x93\x03\x91\x40",  # one that no array announced
        b"\x94\x03\x90\x90",
        b"\x93\x03\x91\xd1\x80\x00",  # a number out of bounds
        b"\x93\x7f\x90",
        b"\x92\x01",
        b"\xc6\x00\x00\x10\x00",
        b"\x93\x03\x90" + bulk_head(8) * 3,
        b"",
    ],
)
def test_a_view_is_refused_where_a_copy_is(before):
    codec = Codec("maildir.{user}", "listener")
    for octets in (4096, 4097, 5000, codec.octets - len(before) - 5, codec.octets, 1 << 20):
        for wrong in (0, 1, -1):
            frame = before + bulk_head(octets + wrong) + bytes(octets)
            agree(codec, frame)


@settings(max_examples=200)
@given(
    st.sampled_from(CODECS),
    st.lists(
        st.sampled_from([b"\xc6", b"\x93", b"\x03", b"\x90", b"\xc4", b"\0", bulk_head(4096)]), max_size=12
    ),
)
def test_views_and_copies_agree_on_random_octets(codec, pieces):
    frame = b"".join(pieces) + bytes(4096)
    agree(codec, frame)


def test_bulk_larger_than_the_edge_is_refused():
    codec = Codec("maildir.{user}", "listener")
    with pytest.raises(BadMessageError):
        codec.encode_bulk(m.MailContent([], b""), bytes(codec.octets))
    with pytest.raises(BadMessageError):
        codec.encode_bulk(m.MailContent([-2], b""), bytes(10000))


@pytest.mark.parametrize("codec", CODECS, ids=lambda c: c.name)
def test_arrays_that_announce_much_take_little(codec):
    """An announced length reserves memory: 300,000 items at each of 1,000 depths would be 2.4 GB."""
    most = codec.octets
    tracemalloc.start()
    try:
        for head in (
            b"\xdd" + most.to_bytes(4, "big"),
            b"\xdc\xff\xff",
            b"\xdc\x20\x00",
            b"\xdd\x7f\xff\xff\xff",
        ):
            data = (head * 1000)[: most // 2]
            with pytest.raises(BadMessageError):
                codec.decode(data + b"\xc0" * (most - len(data)))
        assert tracemalloc.get_traced_memory()[1] < 96 << 20
    finally:
        tracemalloc.stop()


def test_a_refusal_keeps_no_octets():
    with pytest.raises(BadMessageError) as caught:
        CODECS[0].decode(b"\x92\x01\xa8PASSWORD\xff")
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


REPLIES = [
    ("maildir.{user}", "mda", m.DeliveryRejected(1, "4.0.0", "full")),
    ("kernel", "mda", m.RecipientUnknown(1, "5.1.1", "nobody")),
    ("maildir.{user}", "listener", m.MaildropUnready("SYS/TEMP", "not now")),
    ("maildir.{user}", "listener", m.MessageMissing(1, "", "gone")),
    ("kernel", "listener", m.SessionRefused(1, "IN-USE", "not now")),
    ("auth", "listener", m.LoginRefused(1, "AUTH", "wrong")),
]


@pytest.mark.parametrize("end", ["\r\n250 2.0.0 safe", "\n", "\r", "\0", "\x1b[2J"])
@pytest.mark.parametrize(("source", "target", "message"), REPLIES, ids=lambda x: type(x).__name__)
def test_a_text_that_becomes_a_line_of_a_protocol_has_no_line_end(source, target, message, end):
    """Or a lying actor could forge replies to others' commands: mail would be lost after a forged 250."""
    codec = Codec(source, target)
    code = codec.edge.messages.index(type(message)) + 1
    assert codec.decode(msgpack.packb([code, *message])) == message
    texts = [i for i, value in enumerate(message) if isinstance(value, str) and message._fields[i] != "why"]
    assert len(texts) == 2
    for at in texts:
        fields = list(message)
        fields[at] += end
        with pytest.raises(BadMessageError):
            codec.decode(msgpack.packb([code, *fields]))
