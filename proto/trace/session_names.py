"""Convert between a session's number and its name: 1.17 is the 17th client of the first listener. Pure.

The number in messages holds both: bits 40 and up count the listeners, the lower ones the listener's clients.
"""

__all__ = ["GENERATION", "listener_name", "session_name", "session_number", "session_of"]

_COUNT = 40  # bits
GENERATION = 1 << _COUNT
"""The first listener's numbers begin just above it."""


def session_name(session: int) -> str:
    """Return the session's name, the same in status, trace and log."""
    return f"{session >> _COUNT}.{session & ((1 << _COUNT) - 1)}"


def listener_name(session: int) -> str:
    """Return the name of the listener that serves this session alone (isolation = "connection")."""
    return f"listener.{session_name(session)}"


def session_of(name: str) -> int:
    """Return the session that the listener of that name serves alone; 0 for any other actor."""
    head, _, rest = name.partition(".")
    if head != "listener" or "." not in rest:
        return 0
    try:
        return session_number(rest)
    except ValueError:
        return 0


def session_number(name: str) -> int:
    """Return the number of a session's name or of a number as text. Raises ValueError for any other text."""
    turn, dot, count = name.partition(".")
    if not all(part.isascii() and part.isdigit() for part in (turn, *((count,) if dot else ()))):
        raise ValueError(name)
    return (int(turn) << _COUNT) + int(count) if dot else int(turn)
