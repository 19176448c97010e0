"""Wait for a condition; the only way in which tests wait."""

import time


def wait_for(what, *, seconds=15.0, until=None, every=0.005):
    """Wait until `what()` is true (or `until(what())`), and return its last value.

    It is called `every` so many seconds. On time-out this fails and shows that value.
    """
    end = time.monotonic() + seconds
    while True:
        value = what()
        if until(value) if until else value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds} s; last: {value!r}")
        time.sleep(every)
