"""Compute how long a login may wait: listeners and auth give up at the same time. Pure."""

__all__ = ["answer_by"]

_LEFT = 5.0  # seconds before the end of its time at which a client still waiting gets its answer
_PART = 4  # but at most this part of its time


def answer_by(login_seconds: float) -> float:
    """Return after how many seconds a login that still waits is answered, of a client's `login_seconds`.

    It is refused then, as temporary, so that the client hears a reason before its connection is closed.
    """
    return login_seconds - min(_LEFT, login_seconds / _PART)
