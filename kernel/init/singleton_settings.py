"""What each singleton is told when it is started, and no more: auth no certificate, a listener no table, the spawner no file."""

import socket
from typing import Any

from popkernel.kernel.config.keys import Config, told
from popkernel.kernel.init.pass_phrase import Held, file_of
from popkernel.kernel.init.sockets import Listening
from popkernel.proto import messages as m

__all__ = ["Telling"]


class Telling:
    """What does not change with a reload: the sockets, the version, who may deliver to everybody, a pass phrase that was typed."""

    def __init__(self, listening: Listening, version: str, trusted: list[int], phrase: Held | None) -> None:
        self._listening = listening
        self._version = version
        self._trusted = trusted
        self._phrase = phrase
        self._serial = 0  # of listeners and gates: no two ever give a session the same number

    def of(self, config: Config, message: m.Execute) -> tuple[dict[str, Any], list[int]]:
        """The configuration of the actor that is asked for, and the descriptors that it is given with it."""
        settings = told(config, message.actor)
        if message.actor == "spawner":  # `mail`: for its children
            return settings | {"roots": message.roots, "mail": told(config, "maildir")}, []
        if message.actor == "mda":
            unix = [s.fileno() for s in self._listening.lmtp if s.family == socket.AF_UNIX]
            tcp = [s.fileno() for s in self._listening.lmtp if s.family != socket.AF_UNIX]
            sockets = {"public_fd": unix[0] if unix else -1, "unix_fds": unix, "tcp_fds": tcp}
            return settings | sockets | {"trusted": self._trusted}, unix + tcp
        if message.actor in ("listener", "gate"):
            tls, plain = [s.fileno() for s in self._listening.tls], [s.fileno() for s in self._listening.plain]
            self._serial += 1
            own = {"phrase": self._phrase_of(config), "version": self._version, "serial": self._serial << 40}
            return settings | own | {"tls_fds": tls, "plain_fds": plain}, tls + plain
        return settings, []

    def _phrase_of(self, config: Config) -> bytes | str:
        """For the private keys: the path of a file, or the phrase itself where it was asked for; empty where none is known."""
        path = file_of(config.key_passphrase_file)
        return path or (self._phrase.peek() if self._phrase is not None else b"")
