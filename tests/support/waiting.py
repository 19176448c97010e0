"""The one way in which tests wait: for the thing itself."""

import time


def wait_for(what, *, seconds=15.0, until=None):
    """Wait until `what()` is true (or `until(what())`), looking often; its last value. Fails with what it was."""
    end = time.monotonic() + seconds
    while True:
        value = what()
        if until(value) if until else value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds} s; last: {value!r}")
        time.sleep(0.005)
