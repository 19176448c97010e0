"""What the configuration says about sessions. The shell fills it in; a recording carries it along."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from popkernel.proto.pop3.sasl import MECHANISMS, TOKENS

__all__ = ["Policy"]


class Policy(NamedTuple):
    """Seconds, days, octets, and numbers of things."""

    version: str
    plaintext: bool = False  # USER, PASS and AUTH without TLS
    starttls: bool = False  # STLS is offered where there is no TLS yet
    login_seconds: int = 180
    idle_seconds: int = 600
    most_errors: int = 50  # bad commands, in a row once logged in, before the connection is closed
    most_commands: int = 0  # commands a session may give; 0: any number
    mechanisms: Sequence[str] = ("PLAIN", "LOGIN")
    scope: str = ""  # what a client without a token is told to ask its issuer for
    expire: int = -1  # days after which mail goes, 0 for once retrieved, -1 for never
    login_delay: int = 0  # seconds between two logins of one user
    memory: int = 256 * 1024  # octets that may wait for a client before its next commands are acted on

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Policy":
        """From what init tells a listener."""
        tokens = bool(config["oauth_issuer"])
        return cls(
            version=config["version"], plaintext=config["allow_plaintext"], starttls=True,
            login_seconds=config["login_seconds"], idle_seconds=config["idle_seconds"], most_errors=config["most_errors"],
            most_commands=config["max_commands"], mechanisms=[name for name in MECHANISMS if tokens or name not in TOKENS],
            scope=config["oauth_scope"], expire=config["expire_days"], login_delay=config["login_delay"],
            memory=config["session_memory"] * 1024,
        )
