"""Handle signals in the loop: a descriptor wakes it, and the handlers themselves do nothing."""

import os
import signal
from collections.abc import Callable, Sequence

from popkernel.kernel.runtime.child_process import told
from popkernel.kernel.runtime.loop import Loop

__all__ = ["take_signals"]


def take_signals(loop: Loop, numbers: Sequence[int], call: Callable[[int], None]) -> tuple[int, int]:
    """Call `call(number)` in the loop, once for all signals of a number that came meanwhile.

    The caller has blocked these signals; they are unblocked here.

    Returns:
        The descriptors that this opens. A child must close them, and call set_wakeup_fd(-1).

    Raises:
        OSError: no room for a pipe.
    """
    woken, wake = os.pipe()
    os.set_blocking(woken, False)
    os.set_blocking(wake, False)
    for number in numbers:
        signal.signal(number, lambda *_: None)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)

    def ready(events: int) -> None:
        del events
        for number in set(told(woken) or ()):
            call(number)

    loop.add(woken, ready)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
    return woken, wake
