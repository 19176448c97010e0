"""What a site wants done with mail: how DELE deletes, what QUIT leaves behind."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Policy(NamedTuple):
    """The keys of that name in the configuration."""

    deletion: str = "unlink"  # or "trash-flag": the file stays, with the flag T
    hide_trashed: bool = False
    set_seen: bool = True
    expire_days: int = -1  # -1: never; 0: once retrieved; else days from delivery

    @property
    def trash(self) -> bool:
        """Whether files are kept."""
        return self.deletion == "trash-flag"


def policy_of(config: Mapping[str, Any]) -> Policy:
    """Out of an actor's settings; what is not there is as it always was (recordings older than a key)."""
    return Policy(*map(config.get, Policy._fields, Policy()))
