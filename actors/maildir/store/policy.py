"""Define the configuration about mail: how DELE deletes, what QUIT changes."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Policy(NamedTuple):
    """The configuration keys of the same names."""

    deletion: str = "unlink"  # or "trash-flag": the file is kept, with the flag T
    hide_trashed: bool = False
    set_seen: bool = True
    expire_days: int = -1  # -1: never; 0: once retrieved; else days from delivery

    @property
    def trash(self) -> bool:
        """Return whether deleted files are kept."""
        return self.deletion == "trash-flag"


def policy_of(config: Mapping[str, Any]) -> Policy:
    """Make the policy from an actor's settings; missing keys (in old recordings) get their defaults."""
    return Policy(*map(config.get, Policy._fields, Policy()))
