"""Give an actor what it takes from the system: loop, channels, wall time, random octets, the process's end.

Every `Boot` has a world; a replay gives another (kernel/replay/harness.py). All maildir actors share the warm
image's. It holds the functions and classes themselves: a wrapper function would cost each of those actors one
or two pages (docs/performance.md).
"""

import os
import socket
import time
from collections.abc import Callable
from typing import NamedTuple, NoReturn, Protocol

from popkernel.kernel.runtime.channel import Channel, Message, watch
from popkernel.kernel.runtime.loop import Loop
from popkernel.kernel.runtime.tap import note

__all__ = ["WORLD", "World"]


class _Opener(Protocol):
    """As `Channel`."""

    def __call__(
        self,
        loop: Loop,
        end: socket.socket | int,
        me: str,
        peer: str,
        on_message: Callable[[Channel, Message, list[int]], None],
        on_dropped: Callable[[Channel, str], None],
        *,
        resumed: bool = False,
    ) -> Channel: ...


class _Looper(Protocol):
    """As `Loop`."""

    def __call__(self, *, many: bool = False) -> Loop: ...


class World(NamedTuple):
    """Hold what an actor takes from the system.

    `clock`: wall time in seconds. `random(n)`: n random octets. `leave(status)`: end the process.
    """

    loop: _Looper
    channel: _Opener
    clock: Callable[[], float]
    random: Callable[[int], bytes]
    leave: Callable[[int], NoReturn]


def _clock() -> float:
    """As time.time, noted for a replay."""
    now = time.time()
    if watch.tap is not None:
        note("Clock", 0, {"seconds": now})
    return now


def _random(many: int) -> bytes:
    """As os.urandom, noted for a replay."""
    octets = os.urandom(many)
    if watch.tap is not None:
        note("Random", 0, {"octets": octets})
    return octets


WORLD = World(Loop, Channel, _clock, _random, os._exit)
