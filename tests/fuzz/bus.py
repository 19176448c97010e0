"""Decode any octets: the only error is a refusal, and an accepted message encodes and decodes again."""

import msgpack
from popkernel.proto.codec import Codec
from popkernel.proto.schema import BadMessageError, fields_of
from popkernel.proto.topology import EDGES

CODECS = [Codec(edge.source, edge.target) for edge in EDGES]


def one(data):
    """Decode octets.

    The first octet chooses the edge. From 128 on, the rest is first made into an array of valid msgpack.
    """
    codec = CODECS[data[0] % 128 % len(CODECS)] if data else CODECS[0]
    octets = data[1:] if data[:1] < b"\x80" else msgpack.packb(list(values(data[1:])))
    try:
        message = codec.decode(octets)
    except BadMessageError as error:
        assert len(str(error)) < 300
        return
    octets = codec.encode(message)
    assert codec.decode(octets) == message


def values(data):
    """Make values from the octets.

    The first octet's two high bits choose small integers, large ones, texts and octets, or lists.
    """
    at = 0
    while at < len(data):
        kind, small = data[at] >> 6, data[at] & 63
        if kind == 0:
            yield small - 2
            at += 1
        elif kind == 1:
            yield (
                [None, True, False, 1.5, 2**63 - 1, 2**63, -(2**63), {}][small % 8]
                if small < 32
                else 1 << small
            )
            at += 1
        elif kind == 2:
            part = data[at + 1 : at + 1 + small]
            yield part if small & 1 else part.decode("utf-8", "replace") * (50 if small > 60 else 1)
            at += 1 + small
        else:
            part = data[at + 1 : at + 1 + small]
            yield list(part) if small & 1 else [part] if small & 2 else [part.decode("utf-8", "replace")]
            at += 1 + small


def least(field):
    """Return the smallest value of a field."""
    return {
        "int": field.low, "str": "a" * field.low, "bytes": b"", "bool": False, "ints": [field.low],
        "strs": ["a"], "blobs": [b"a"], "map": {"a": 1, "b": "c"},
    }[field.kind]  # fmt: skip


def every_message():
    """Return one message of each kind on each edge."""
    for number, codec in enumerate(CODECS):
        for kind in codec.edge.messages:
            fields = [least(field) for field in fields_of(kind).values()]
            yield bytes((number,)) + codec.encode(kind(*fields))


SEEDS = [
    *every_message(),
    *(bytes((128 + n, 3, 3, 0x82, 97, 98, 3, 0x42, 0xC3, 1, 2, 3)) for n in range(len(CODECS))),
]
