"""What the configuration says about sessions. The shell fills it in; a recording carries it along."""

from typing import NamedTuple

__all__ = ["Policy"]


class Policy(NamedTuple):
    """Seconds, and numbers of things."""

    version: str
    plaintext: bool = False  # USER and PASS without TLS
    starttls: bool = False  # STLS is offered where there is no TLS yet
    login_seconds: int = 30
    idle_seconds: int = 600
    most_errors: int = 50  # bad commands, in a row once logged in, before the connection is closed
