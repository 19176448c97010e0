"""No octets make a decoder or the frame reader raise anything but refusal; what a decoder takes it can encode, and takes again as the same."""

from popkernel.proto.codec import BadMessageError, Codec
from popkernel.proto.schema import fields_of
from popkernel.proto.topology import EDGES

CODECS = [Codec(edge.source, edge.target) for edge in EDGES]


def one(data):
    """The first octet chooses the edge."""
    codec = CODECS[data[0] % len(CODECS)] if data else CODECS[0]
    try:
        message = codec.decode(data[1:])
    except BadMessageError as error:
        assert len(str(error)) < 300
        return
    octets = codec.encode(message)
    assert codec.decode(octets) == message


def least(field):
    """The smallest value that a field may hold."""
    return {
        "int": field.low, "str": "a" * field.low, "bytes": b"", "bool": False, "ints": [field.low], "strs": ["a"], "blobs": [b"a"],
    }[field.kind]  # fmt: skip


def every_message():
    """One message of each kind on each edge."""
    for number, codec in enumerate(CODECS):
        for kind in codec.edge.messages:
            fields = [least(field) for field in fields_of(kind).values()]
            yield bytes((number,)) + codec.encode(kind(*fields))


SEEDS = list(every_message())
