"""How many sessions a gate (isolation = "connection") has room for, by the limit of descriptors: for the gate, a start and `check`."""

__all__ = ["least", "sessions"]

_OWN = 128  # a gate's listening sockets and seats, clients that wait for a seat, and those that are told why they get none
_A_SESSION = 4  # what the kernel needs for a session: its two actors' channels, and as many again while they are watched


def sessions(limit: int, gates: int) -> int:
    """At each of so many gates; 0 and below: none has room."""
    return min(limit - _OWN, limit // _A_SESSION // gates)


def least(many: int, gates: int) -> int:
    """The lowest limit at which all gates together have room for so many."""
    each = -(-many // gates)
    return max(_OWN + each, _A_SESSION * each * gates)
