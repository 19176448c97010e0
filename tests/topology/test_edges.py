"""Test every message of every edge, in its valid form and in every invalid one.

Generated from the table.
"""

import msgpack
import pytest
from popkernel.proto.schema import BadMessageError, fields_of
from popkernel.proto.topology import EDGES

from tests.topology.rows import (
    CASES,
    FIELD_IDS,
    FIELDS,
    IDS,
    code_of,
    codec,
    largest,
    out_of_bounds,
    packed,
    values,
    wrong_types,
)

EDGE_IDS = [f"{e.source}>{e.target}" for e in EDGES]
each_message = pytest.mark.parametrize(("edge", "message"), CASES, ids=IDS)
each_field = pytest.mark.parametrize(("edge", "message", "name"), FIELDS, ids=FIELD_IDS)
each_edge = pytest.mark.parametrize("edge", EDGES, ids=EDGE_IDS)


def refused(edge, data):
    with pytest.raises(BadMessageError) as caught:
        codec(edge).decode(data)
    return str(caught.value)


@each_message
def test_smallest_and_largest_come_back(edge, message):
    both = codec(edge)
    kinds = fields_of(message)
    room = max(64, (edge.octets - 64) // max(1, len(kinds)) - 16)
    for made in (message(*values(message)), message(*(largest(field, room) for field in kinds.values()))):
        back = both.decode(both.encode(made))
        assert back == made
        assert type(back) is message
        assert both.decode(bytes(memoryview(both.encode(made)))) == made


@each_message
def test_the_wrong_edge(edge, message):
    """Refuse the message's class on every edge that does not have it.

    Its octets are refused too, unless they mean another message there.
    """
    made = message(*values(message))
    for other in EDGES:
        if message not in other.messages:
            with pytest.raises(BadMessageError, match="may not go"):
                codec(other).encode(made)
        data = packed(edge, message, values(message))
        try:
            taken = codec(other).decode(data)
        except BadMessageError:
            continue
        assert type(taken) in other.messages


@each_message
def test_a_field_too_many_or_too_few(edge, message):
    good = values(message)
    refused(edge, packed(edge, message, [*good, None]))
    refused(edge, packed(edge, message, [*good, *good, 1]))
    if good:
        refused(edge, packed(edge, message, good[:-1]))
        refused(edge, packed(edge, message, []))


@each_field
def test_the_wrong_type(edge, message, name):
    for value in wrong_types(fields_of(message)[name]).values():
        text = refused(edge, packed(edge, message, values(message, **{name: value})))
        assert text.startswith((f"{message.__name__}.{name}: not ", "not one msgpack array"))


@each_field
def test_out_of_bounds(edge, message, name):
    for value in out_of_bounds(fields_of(message)[name]):
        data = packed(edge, message, values(message, **{name: value}))
        refused(edge, data)
        with pytest.raises(BadMessageError):
            codec(edge).encode(message(*values(message, **{name: value})))


@each_message
def test_trailing_octets_and_cut_ones(edge, message):
    good = packed(edge, message, values(message))
    codec(edge).decode(good)
    refused(edge, good + b"\xc0")
    refused(edge, good + good)
    for cut in range(len(good)):
        refused(edge, good[:cut])


@each_message
def test_fields_by_name(edge, message):
    fields = dict(zip(fields_of(message), values(message), strict=True))
    refused(edge, msgpack.packb([code_of(edge, message), fields]))
    refused(edge, msgpack.packb({"code": code_of(edge, message), **fields}))


@each_edge
def test_unknown_codes(edge):
    for code in (
        0,
        -1,
        len(edge.messages) + 1,
        255,
        2**63,
        -(2**63),
        2**64 - 1,
        True,
        None,
        1.0,
        "1",
        b"1",
        [],
        [1],
        "",
    ):
        refused(edge, msgpack.packb([code]))


@each_edge
def test_malformed_arrays(edge):
    for value in (
        None,
        1,
        "a",
        b"a",
        True,
        1.5,
        [],
        {},
        {1: 1},
        [[]],
        [None],
        msgpack.ExtType(1, b""),
        msgpack.Timestamp(1),
    ):
        refused(edge, msgpack.packb(value))
    for data in (
        b"",
        b"\xc1",
        b"\x91",
        b"\xd9\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xdd\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
    ):
        refused(edge, data)


@each_edge
def test_too_deep(edge):
    for nested in (b"\x91", b"\xdc\x00\x01", b"\xdd\x00\x00\x00\x01", b"\x81\xa1a", b"\x92\x01"):
        for depth in (3, 100, 511, 512, 1024, (edge.octets - 1) // len(nested)):
            refused(edge, nested * depth + b"\xc0")


@each_edge
def test_oversize(edge):
    text = refused(edge, b"\x91" + b"\x01" * edge.octets)
    assert "octets are more than" in text
    refused(edge, memoryview(bytes(edge.octets + 1)))


@each_edge
def test_a_refusal_quotes_nothing(edge):
    for data in (
        b"\x94\x01\xa8PASSWORD\xc0\xc0",
        b"\xa8PASSWORD",
        b"\x92\xa8PASSWORD\x01",
        b"\x81\xa8PASSWORD\x01",
        b"\x92\x01\xc4\x08PASSWORD\x01",
    ):
        assert "PASSWORD" not in refused(edge, data)
