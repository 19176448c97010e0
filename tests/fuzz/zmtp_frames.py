"""Read any octets as frames: the only error is ZmtpError; cuts change nothing; sizes are bounded."""

from popkernel.proto.bus.zmtp import PREFACE, Reader, ZmtpError, frame_head

LIMIT = 300


def read(parts):
    """Return the frames, and whether a refusal ended them."""
    reader, frames = Reader(LIMIT), []
    try:
        for part in filter(None, parts):  # an empty read means the end of a connection and is not fed
            frames += reader.feed(part)
    except ZmtpError as error:
        assert len(str(error)) < 120
        return [bytes(frame) for frame in frames], True
    assert len(reader._buffer) <= LIMIT + 600
    return [bytes(frame) for frame in frames], False


def one(data):
    """Read frames.

    If the first octet is odd, the greeting comes first: chance would not find it.
    """
    octets = (PREFACE if data[:1] and data[0] & 1 else b"") + data[1:]
    frames, refused = read([octets])
    assert all(len(frame) <= LIMIT for frame in frames)
    cut, cut_refused = read([octets[n : n + 1] for n in range(len(octets))])
    assert refused == cut_refused
    assert refused or frames == cut  # if all octets came at once, a refusal also loses the frames before it
    assert cut[: len(frames)] == frames


SEEDS = [
    b"\1" + frame_head(5) + b"hello" + frame_head(300) + b"x" * 300, b"\1" + frame_head(301) + b"x" * 301,
    b"\0" + PREFACE[:80],
    b"\1\4\5\4PING\0\0" + frame_head(0), b"\1\1\5hello", b"\0" + PREFACE + PREFACE,
]  # fmt: skip
