"""Define the configuration of sessions. The shell fills it in; a recording includes it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from popkernel.proto.pop3.sasl import MECHANISMS, TOKENS

__all__ = ["Policy"]


class Policy(NamedTuple):
    """The configuration of a listener's sessions."""

    version: str
    plaintext: bool = False  # USER, PASS and AUTH without TLS
    starttls: bool = False  # STLS is offered where there is no TLS yet
    login_seconds: int = 180
    idle_seconds: int = 600
    most_errors: int = 50  # bad commands before the connection is closed; once logged in, consecutive ones
    most_commands: int = 0  # commands in a session; 0: no bound
    mechanisms: Sequence[str] = ("PLAIN", "LOGIN")
    scope: str = ""  # the scope that a client without a token should request from its issuer
    expire: int = -1  # days after which mail is removed; 0: once retrieved; -1: never
    login_delay: int = 0  # seconds between two logins of one user
    # octets of answers that may wait for a client before its next commands are processed
    memory: int = 256 * 1024

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Policy":
        """Make the policy from a listener's configuration."""
        tokens = bool(config["oauth_issuer"])
        return cls(
            version=config["version"],
            plaintext=config["allow_plaintext"],
            starttls=True,
            login_seconds=config["login_seconds"],
            idle_seconds=config["idle_seconds"],
            most_errors=config["most_errors"],
            most_commands=config["max_commands"],
            mechanisms=[name for name in MECHANISMS if tokens or name not in TOKENS],
            scope=config["oauth_scope"],
            expire=config["expire_days"],
            login_delay=config["login_delay"],
            memory=config["session_memory"] * 1024,
        )
