"""Turn a fresh interpreter into a singleton actor.

Init runs `python -I -m popkernel.kernel.runtime.singleton_boot NAME CHANNEL_FD BLOB_FD`. The blob is one
msgpack map on a pipe: init's configuration for the actor. It is no message of the bus.
"""

import os
import socket
import sys
from importlib import import_module

import msgpack
from popkernel.kernel.runtime.actor import TEMPFAIL, Boot, become
from popkernel.kernel.runtime.descriptors import close_all_but, say_nothing
from popkernel.kernel.runtime.process_title import set_title

_LARGEST = 1 << 20  # octets


def read_blob(fd: int) -> dict[str, object]:
    """Read the map that init wrote; ValueError if it is too large."""
    parts = []
    while part := os.read(fd, 65536):
        parts.append(part)
        if sum(map(len, parts)) > _LARGEST:
            raise ValueError("configuration too large")
    os.close(fd)
    blob: dict[str, object] = msgpack.unpackb(b"".join(parts), unicode_errors="surrogateescape")
    return blob


def main() -> None:
    """Become the actor that the arguments name; never returns."""
    name, channel_fd, blob_fd = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    try:
        blob = read_blob(blob_fd)
    except (OSError, ValueError, msgpack.exceptions.UnpackException):
        # init could not write all of it, or has ended
        os._exit(TEMPFAIL)
    uid, gid, config, fds, sandboxed = (
        blob["uid"],
        blob["gid"],
        blob["config"],
        blob["fds"],
        blob["sandboxed"],
    )
    assert isinstance(uid, int)
    assert isinstance(gid, int)
    assert isinstance(config, dict)
    assert isinstance(fds, list)
    close_all_but([channel_fd, *fds])
    say_nothing(0, 1, 2)  # become() sends this actor's faults to the kernel, which logs them
    channel = socket.socket(fileno=channel_fd)
    channel.set_inheritable(False)
    for fd in fds:
        os.set_inheritable(fd, False)
    boot = Boot(name, channel, uid, gid, config, sandboxed=bool(sandboxed))
    os.umask(0o077)
    set_title(name)
    become(boot, lambda actor: import_module(actor.row.module).main(actor))


if __name__ == "__main__":
    main()
