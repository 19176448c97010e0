"""A session's name as people read and type it: 1.17 is the 17th client of the first listener that was started. Pure.

The number that travels in messages holds both: the listener's turn above bit 40, its own count below.
"""

__all__ = ["GENERATION", "listener_name", "session_name", "session_number", "session_of"]

_COUNT = 40  # bits
GENERATION = 1 << _COUNT
"""The first number of the first listener is just above it."""


def session_name(session: int) -> str:
    """Status, trace and log all give a session this name."""
    return f"{session >> _COUNT}.{session & ((1 << _COUNT) - 1)}"


def listener_name(session: int) -> str:
    """What a listener is called that serves this one session (isolation = "connection")."""
    return f"listener.{session_name(session)}"


def session_of(name: str) -> int:
    """The one session that a listener of that name serves; 0 for any other actor."""
    head, _, rest = name.partition(".")
    if head != "listener" or "." not in rest:
        return 0
    try:
        return session_number(rest)
    except ValueError:
        return 0


def session_number(name: str) -> int:
    """The number of a name, or of the number itself as text. ValueError for what is neither."""
    turn, dot, count = name.partition(".")
    if not all(part.isascii() and part.isdigit() for part in (turn, *((count,) if dot else ()))):
        raise ValueError(name)
    return (int(turn) << _COUNT) + int(count) if dot else int(turn)
