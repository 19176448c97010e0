"""Look up uids and gids: of the actors' configured users, and of mail servers' users."""

import os
import pwd
import sys

from popkernel.kernel.config.keys import Config
from popkernel.kernel.config.loading import ConfigError
from popkernel.proto.files.tables import Finding

__all__ = ["actor_ids", "make_user_command", "mta_ids", "mta_uids"]

_FREE_IDS = {"listener": 64301, "auth": 64302, "mda": 64303}
"""Ids that a mend proposes: systems do not assign them on their own, and they are below nobody's 65534."""


def actor_ids(config: Config) -> dict[str, tuple[int, int]]:
    """Return uid and gid by actor: "listener", "auth" and "mda".

    If the caller is not root, all three are the caller's own: only root can become another user.

    Raises:
        ConfigError: as root, if a user does not exist (the mend is the command that makes it), or two actors
            have the same uid.
    """
    users = {"listener": config.listener_user, "auth": config.auth_user, "mda": config.mda_user}
    if os.geteuid() != 0:
        return dict.fromkeys(users, (os.geteuid(), os.getegid()))
    ids: dict[str, tuple[int, int]] = {}
    findings: list[Finding] = []
    for actor, user in users.items():
        try:
            ids[actor] = _ids_of(user)
        except ValueError as error:
            what, _, mend = str(error).partition("; ")
            numbers = f'{actor}_user = "{_FREE_IDS[actor]}:{_FREE_IDS[actor]}"'
            findings.append(
                Finding(f"{actor}_user", 0, what, f"{mend}, or write numbers in the file of -f: {numbers}")
            )
    first_of: dict[int, str] = {}
    for actor, (uid, _gid) in ids.items():
        twin = first_of.setdefault(uid, actor)
        if twin != actor:
            what = f"has the same uid, {uid}, as {twin}_user: either could take over the other"
            findings.append(Finding(f"{actor}_user", 0, what, "give each a user of its own"))
    if findings:
        raise ConfigError(findings)
    return ids


def mta_uids(config: Config) -> list[int]:
    """Return the uids of `mta_users`. Raises what mta_ids() raises."""
    return [uid for uid, _ in mta_ids(config)]


def mta_ids(config: Config) -> list[tuple[int, int]]:
    """Return uid and gid of each of `mta_users`.

    Raises:
        ConfigError: one of them does not exist.
    """
    ids: list[tuple[int, int]] = []
    findings: list[Finding] = []
    for user in config.mta_users:
        try:
            ids.append(_ids_of(user))
        except ValueError as error:
            what = str(error).partition("; ")[0]
            findings.append(
                Finding("mta_users", 0, what, "name the user that the mail server's delivery runs as")
            )
    if findings:
        raise ConfigError(findings)
    return ids


def _ids_of(user: str) -> tuple[int, int]:
    if ":" in user:
        uid, gid = user.split(":")
        return int(uid), int(gid)
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise ValueError(f"there is no user {user}; make it: {make_user_command(user)}") from None
    if entry.pw_uid == 0 or entry.pw_gid == 0:
        raise ValueError(f"user {user} has root's uid or gid; give it ones of its own")
    return entry.pw_uid, entry.pw_gid


def make_user_command(user: str) -> str:
    """Return the command that makes a system user without a login on this system."""
    if sys.platform.startswith("openbsd"):
        return f"useradd -L daemon -s /sbin/nologin -d /var/empty {user}"
    return f"useradd --system --home-dir /var/empty --shell /usr/sbin/nologin {user}"
