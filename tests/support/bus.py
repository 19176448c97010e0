"""Send raw ZMTP frames to the control socket."""

import socket

import msgpack
from popkernel.proto.bus.zmtp import Reader, frame_head, preface


class RawControl:
    """Hold one connection; `request` is sent at once."""

    def __init__(self, service, request, *, timeout=20):
        self.sock = socket.socket(socket.AF_UNIX)
        try:
            self.sock.settimeout(timeout)
            self.sock.connect(service.config.control)
            packed = msgpack.packb(request)
            self.sock.sendall(preface(b"DEALER") + frame_head(len(packed)) + packed)
        except BaseException:
            self.close()
            raise

    def answer(self):
        """Return the first frame received, unpacked."""
        reader, frames = Reader(1 << 26, (b"ROUTER",)), []
        while not frames:
            part = self.sock.recv(1 << 16)
            assert part, "the service ended before it answered"
            frames = reader.feed(part)
        return msgpack.unpackb(frames[0], unicode_errors="surrogateescape")

    def close(self):
        self.sock.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
