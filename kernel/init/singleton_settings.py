"""Choose the settings and descriptors that a singleton gets at its start.

Each gets only what it needs: auth no certificate, a listener no table, the spawner no file.
"""

import socket
from typing import Any, NamedTuple

from popkernel.kernel.config.keys import Config, actor_settings
from popkernel.kernel.init.pass_phrase import HeldPhrase, phrase_file
from popkernel.kernel.init.sockets import ListenSockets
from popkernel.proto import messages as m
from popkernel.proto.topology import actor as row_of

__all__ = ["Known", "SingletonSettings", "SpawnerChanges", "is_same", "spawner_changes"]

# users whose own settings changed, and characters of a name: what ReloadInputs may carry
_MOST_USERS, _LONGEST = 128, 64


class Known(NamedTuple):
    """What init starts singletons with."""

    config: Config
    ids: dict[str, tuple[int, int]]
    """Uid and gid by actor."""
    contents: dict[str, str]
    """Digests of the files that an actor read at its start, by actor; none: it is unknown what it read."""


def is_same(actor: str, before: Known, after: Known) -> bool:
    """Return whether an actor would be started with the same settings, user and files as it was."""
    runs_as = row_of(actor).runs_as
    content = after.contents.get(actor, "")
    return bool(
        actor_settings(before.config, actor) == actor_settings(after.config, actor)
        and before.ids.get(runs_as) == after.ids.get(runs_as)
        and content
        and content == before.contents.get(actor)
    )


class SpawnerChanges(NamedTuple):
    """What differs between two configurations for the spawner and its children."""

    spawner: bool
    """A setting of the spawner, or one that it passes on."""
    mail: bool
    """A setting of all maildir actors; also if `users` would be too many to name."""
    users: list[str]
    """Users whose quota differs."""


def spawner_changes(before: Config, after: Config) -> SpawnerChanges:
    """Return what a reload changes for the spawner: an actor that was forked keeps its settings."""
    old, new = actor_settings(before, "spawner"), actor_settings(after, "spawner")
    quotas, others = old["quotas"], new["quotas"]
    users = sorted(user for user in {*quotas, *others} if quotas.get(user) != others.get(user))
    mail = actor_settings(before, "maildir") != actor_settings(after, "maildir")
    many = len(users) > _MOST_USERS or any(len(user) > _LONGEST for user in users)
    return SpawnerChanges(mail or old != new, mail or many, [] if mail or many else users)


class SingletonSettings:
    """Keep what a reload does not change, and make singletons' settings.

    That is the sockets, the version, the uids that may deliver to all users, and a pass phrase from a
    terminal.
    """

    def __init__(
        self, listening: ListenSockets, version: str, trusted: list[int], phrase: HeldPhrase | None
    ) -> None:
        self._listening = listening
        self._version = version
        self._trusted = trusted
        self._phrase = phrase
        self._serial = 0  # of listeners and gates: makes the numbers of their sessions differ

    def of(self, config: Config, message: m.SingletonStart) -> tuple[dict[str, Any], list[int]]:
        """Return the settings of the actor that `message` asks for, and the descriptors that it inherits."""
        settings = actor_settings(config, message.actor)
        if message.actor == "spawner":  # `mail`: for its children
            return settings | {"roots": message.roots, "mail": actor_settings(config, "maildir")}, []
        if message.actor == "mda":
            unix = [s.fileno() for s in self._listening.lmtp if s.family == socket.AF_UNIX]
            tcp = [s.fileno() for s in self._listening.lmtp if s.family != socket.AF_UNIX]
            sockets = {"public_fd": unix[0] if unix else -1, "unix_fds": unix, "tcp_fds": tcp}
            return settings | sockets | {"trusted": self._trusted}, unix + tcp
        if message.actor in ("listener", "gate"):
            tls, plain = (
                [s.fileno() for s in self._listening.tls],
                [s.fileno() for s in self._listening.plain],
            )
            self._serial += 1
            own = {"phrase": self._phrase_of(config), "version": self._version, "serial": self._serial << 40}
            return settings | own | {"tls_fds": tls, "plain_fds": plain}, tls + plain
        return settings, []

    def _phrase_of(self, config: Config) -> bytes | str:
        """Return the path of the pass phrase's file, or the phrase from a terminal; empty for none."""
        path = phrase_file(config.key_passphrase_file)
        return path or (self._phrase.peek() if self._phrase is not None else b"")
