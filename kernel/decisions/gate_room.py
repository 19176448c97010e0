"""Compute the sessions a gate (isolation = "connection") has room for under a limit of descriptors.

The gate, a start and `check` use it.
"""

__all__ = ["least", "sessions"]

# a gate's listening sockets and seats, clients that wait for a seat, and clients being refused
_OWN = 128
# the kernel's for a session: the channels of its two actors, and as many again while they are traced
_A_SESSION = 4


def sessions(limit: int, gates: int) -> int:
    """Return the sessions for each of `gates` gates; 0 or less: no room."""
    return min(limit - _OWN, limit // _A_SESSION // gates)


def least(many: int, gates: int) -> int:
    """Return the lowest limit at which all gates together have room for `many` sessions."""
    each = -(-many // gates)
    return max(_OWN + each, _A_SESSION * each * gates)
