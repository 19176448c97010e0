"""What each singleton is told when it is started, and no more: auth no certificate, a listener no table, the spawner no file."""

import socket
from typing import Any

from popkernel.kernel.config.keys import Config
from popkernel.kernel.init.pass_phrase import Held, file_of
from popkernel.kernel.init.sockets import Listening
from popkernel.proto import messages as m

__all__ = ["Telling"]

_MAIL = ("deletion", "hide_trashed", "set_seen", "expire_days")  # what a maildir actor is told, by way of the spawner
_LIMITS = (  # what a listener takes at a time and what a session may do, as the keys are named; for all listeners together
    "max_sessions_address", "ipv6_prefix", "connects_per_minute", "max_handshakes", "max_logins", "max_logins_user", "most_errors",
    "max_commands",
)
_SESSIONS = (  # what a session is told, or goes by
    "allow_plaintext", "login_seconds", "idle_seconds", "session_memory", "login_delay", "expire_days", "oauth_issuer", "oauth_scope",
    "block_list",
)


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
        common: dict[str, Any] = {"verbose": config.verbose, "hostname": config.hostname}
        if message.actor == "spawner":
            return common | _spawner(config, message.roots), []
        if message.actor == "auth":
            return common | _auth(config), []
        if message.actor == "mda":
            unix = [s.fileno() for s in self._listening.lmtp if s.family == socket.AF_UNIX]
            tcp = [s.fileno() for s in self._listening.lmtp if s.family != socket.AF_UNIX]
            return common | self._mda(config) | {"public_fd": unix[0] if unix else -1, "unix_fds": unix, "tcp_fds": tcp}, unix + tcp
        if message.actor in ("listener", "gate"):
            tls, plain = [s.fileno() for s in self._listening.tls], [s.fileno() for s in self._listening.plain]
            return common | self._listener(config) | {"tls_fds": tls, "plain_fds": plain}, tls + plain
        return common, []

    def _mda(self, config: Config) -> dict[str, Any]:
        return {
            "seconds": config.lmtp_seconds, "most": config.lmtp_connections, "each": config.lmtp_connections_user,
            "trusted": self._trusted, "message_octets": config.message_octets, "version": self._version,
        }

    def _listener(self, config: Config) -> dict[str, Any]:
        self._serial += 1
        return {
            "tls_min": config.tls_min, "pairs": [(config.cert, config.key), *config.certs], "phrase": self._phrase_of(config),
            "listeners": config.listeners, "listener_nice": config.listener_nice, "proxy_networks": config.proxy_networks,
            **{name: getattr(config, name) for name in (*_LIMITS, *_SESSIONS)},
            "max_sessions": max(1, config.max_sessions // config.listeners),
            "version": self._version, "serial": self._serial << 40,
        }

    def _phrase_of(self, config: Config) -> bytes | str:
        """For the private keys: the path of a file, or the phrase itself where it was asked for; empty where none is known."""
        path = file_of(config.key_passphrase_file)
        return path or (self._phrase.peek() if self._phrase is not None else b"")


def _spawner(config: Config, roots: list[bytes]) -> dict[str, Any]:
    return {
        "roots": roots,
        "run_dir": config.run_dir,
        "quota": config.quota,
        "quotas": dict(text.rsplit("=", 1) for text in config.quota_users),
        "quota_temporary": config.quota_temporary,
        "mail": {name: getattr(config, name) for name in _MAIL},
    }


def _auth(config: Config) -> dict[str, Any]:
    oauth = {name: getattr(config, f"oauth_{name}") for name in ("issuer", "audience", "jwks", "user_claim", "scope")}
    return {
        "auth_table": config.auth_table, "login_case": config.login_case, "cache_seconds": config.auth_cache_seconds,
        "penalty_seconds": config.penalty_seconds, "ipv6_prefix": config.ipv6_prefix, "oauth": oauth if config.oauth_issuer else {},
    }
