"""Declare the configuration keys, each once, as a field of `Config`.

Made from these fields are the flags of `start` and `check`, the help, the checks of values, the list of keys
that a reload puts in force, each actor's settings, the sample configuration and the numbers in the manual.
The last two are written by tests/support/key_documents.py. loading.py builds a `Config`.
"""

import os
import socket
from collections.abc import Callable
from dataclasses import Field, dataclass, field, fields
from typing import Any, NamedTuple

from popkernel.kernel.config.addresses import LMTP_PORT, POP3_PORT, POP3S_PORT, Address
from popkernel.proto.log_levels import highest

__all__ = [
    "Config",
    "Flag",
    "actor_settings",
    "address_keys",
    "default_of",
    "default_run_dir",
    "flag_of",
    "flagged_keys",
    "key_of",
    "keys",
    "system_run_dir",
]


def system_run_dir() -> str:
    """Return the default directory of the sockets of the server that root starts."""
    return "/run/popkernel" if os.path.isdir("/run") else "/var/run/popkernel"


def default_run_dir() -> str:
    """Return the default directory of the kernel's sockets, for root, a login session, or another user."""
    if os.geteuid() == 0:
        return system_run_dir()
    session = os.environ.get("XDG_RUNTIME_DIR", "")
    if session.startswith("/"):
        return os.path.join(session, "popkernel")
    # init refuses a directory that belongs to another user
    return f"/tmp/popkernel-{os.geteuid()}"  # noqa: S108


class Flag(NamedTuple):
    """A key's flag on the command line of `start` and `check`."""

    name: str = ""
    """Empty: the key's name, with dashes."""
    help: str = "{doc}"
    """`{doc}`, `{default}` and `{low}` are the key's."""
    after: str = ""
    """The key whose flag comes before it in the help. Empty: flags are in the order of their keys."""
    counted: bool = False
    """It takes no value: each use adds 1."""


class ActorSetting(NamedTuple):
    """An actor that gets a key among its settings when it is started."""

    actor: str
    name: str = ""
    """Of the setting; empty: the key's name."""
    compute: Callable[["Config"], Any] | None = None
    """Compute the setting from the configuration. None: the setting is the key's value.

    Several keys may make one setting.
    """
    by_init: bool = False
    """Init computes the setting when it starts the actor: descriptors, uids, the pass phrase."""
    recorded: bool = False
    """Recordings of the actor contain the setting, since a replay needs it."""


def _sessions_each(config: "Config") -> int:
    """Return the most sessions of one listener."""
    return max(1, config.max_sessions // config.listeners)


def _certificate_pairs(config: "Config") -> list[tuple[str, str]]:
    """Return the files of certificate and key for each host name, the default first."""
    return [(config.cert, config.key), *config.certs]


def _token_rules(config: "Config") -> dict[str, str]:
    """Return the rules for tokens, by key without `oauth_`; none if tokens are not accepted."""
    prefix = "oauth_"
    names = [key.name for key in keys() if key.name.startswith(prefix)] if config.oauth_issuer else []
    return {name.removeprefix(prefix): getattr(config, name) for name in names}


def _quotas(config: "Config") -> dict[str, str]:
    """Return users' quotas by user."""
    return dict(text.rsplit("=", 1) for text in config.quota_users)


def _listener_and_gate(
    name: str = "", compute: Callable[["Config"], Any] | None = None, *, by_init: bool = False
) -> tuple[ActorSetting, ...]:
    """Return a setting of the actors that accept clients' connections."""
    return ActorSetting("listener", name, compute, by_init), ActorSetting("gate", name, compute, by_init)


def _mda(name: str = "", *, by_init: bool = False, recorded: bool = True) -> tuple[ActorSetting, ...]:
    return (ActorSetting("mda", name, None, by_init, recorded),)


_AUTH = (ActorSetting("auth"),)
_TOKENS = (ActorSetting("auth", "oauth", _token_rules),)
_LISTENER_AND_GATE = _listener_and_gate()
_CERTIFICATES = _listener_and_gate("pairs", _certificate_pairs)
_MAILDIR = (ActorSetting("maildir", recorded=True),)
_LOG_LEVEL = tuple(
    ActorSetting(actor, "log_level", lambda config: highest(config.verbose, quiet=config.quiet))
    for actor in ("auth", "listener", "gate", "spawner", "maildir", "mda")
)


def _key(
    kind: str,
    default: Any,
    doc: str,
    *,
    low: int = 0,
    high: int = 0,
    choices: tuple[str, ...] = (),
    required: bool = False,
    reload: bool = False,
    actors: tuple[ActorSetting, ...] = (),
    flag: Flag | None = None,
    example: str = "",
) -> Any:
    """Declare one key.

    Args:
        kind: of the value; values.py has a check for each kind.
        default: the value if the key is not given.
        doc: its purpose, for the help.
        low: least value of an "int", or default port of "addresses".
        high: largest value of an "int".
        choices: values of a "choice".
        required: a start needs it.
        reload: a reload puts it in force; others wait for the next start.
        actors: the actors that get it. Init and the kernel have the whole configuration.
        flag: on the command line.
        example: a value in TOML, for the sample configuration, if the default is no example.
    """
    return field(
        default=default,
        metadata={
            "kind": kind,
            "doc": doc,
            "low": low,
            "high": high,
            "choices": choices,
            "required": required,
            "reload": reload,
            "actors": actors,
            "flag": flag,
            "example": example,
        },
    )


@dataclass(frozen=True)
class Config:
    """The configuration. Each field is a key, in the order of help, manual and sample configuration."""

    auth_table: str = _key(
        "file",
        "",
        "authorization table: name and password hash",
        required=True,
        reload=True,
        actors=_AUTH,
        flag=Flag("-a", "authorization table: name, blank, password hash"),
        example='"/etc/popkernel/auth"',
    )
    user_table: str = _key(
        "file",
        "",
        "user table: name and uid:gid:maildir",
        required=True,
        flag=Flag("-u", "user table: name, blank, uid:gid:maildir"),
        example='"/etc/popkernel/users"',
    )
    listen: tuple[Address, ...] = _key(
        "addresses",
        (),
        "addresses for implicit TLS",
        low=POP3S_PORT,
        actors=_listener_and_gate("tls_fds", by_init=True),
        flag=Flag(
            "-l",
            "numeric address for implicit TLS, port {low} unless given; [ADDR6]:PORT for IPv6; repeatable",
        ),
        example='["192.0.2.1", "[2001:db8::1]:995"]',
    )
    listen_starttls: tuple[Address, ...] = _key(
        "addresses",
        (),
        "addresses for POP3 with STLS",
        low=POP3_PORT,
        actors=_listener_and_gate("plain_fds", by_init=True),
        flag=Flag(
            "-L", "numeric address for POP3 with STLS, port {low} unless given; repeatable", after="verbose"
        ),
        example='["192.0.2.1:110"]',
    )
    cert: str = _key(
        "file",
        "",
        "certificate chain, PEM, the server's own first",
        required=True,
        reload=True,
        actors=_CERTIFICATES,
        flag=Flag("-c"),
        example='"/etc/ssl/mail.pem"',
    )
    key: str = _key(
        "file",
        "",
        "private key of the certificate, PEM",
        required=True,
        reload=True,
        actors=_CERTIFICATES,
        flag=Flag("-k", "private key, PEM"),
        example='"/etc/ssl/private/mail.key"',
    )
    certs: tuple[tuple[str, str], ...] = _key(
        "certs",
        (),
        "further certificates, for their own host names, as CHAIN:KEY or one file",
        reload=True,
        actors=_CERTIFICATES,
        example='["/etc/ssl/pop.example.org.pem:/etc/ssl/private/pop.example.org.key"]',
    )
    key_passphrase_file: str = _key(
        "file",
        "",
        "file whose first line opens the private keys that have a pass phrase",
        reload=True,
        actors=_listener_and_gate("phrase", by_init=True),
        example='"/etc/popkernel/passphrase"',
    )
    subdir: str = _key(
        "subdir",
        "",
        "subdirectory of every user's directory that is the maildir",
        flag=Flag("-e", "subdirectory of each user's directory that is the maildir"),
        example='"Maildir"',
    )
    verbose: int = _key(
        "int",
        0,
        "log details too, such as connections without a login, if not 0",
        high=10,
        actors=_LOG_LEVEL,
        flag=Flag("-v", "log details too, such as connections without a login", counted=True),
    )
    quiet: bool = _key(
        "bool",
        False,
        "log no sessions and deliveries, only notices, warnings and errors",
        actors=_LOG_LEVEL,
        flag=Flag("-q", "log no sessions and deliveries, only notices, warnings and errors"),
    )
    run_dir: str = _key(
        "directory",
        "",
        "directory for the server's sockets",
        actors=(ActorSetting("spawner"),),
        flag=Flag(help="directory of the server's sockets (default {default})"),
        example='"/run/popkernel"',
    )
    listeners: int = _key(
        "int",
        1,
        "listener processes",
        low=1,
        high=64,
        actors=_LISTENER_AND_GATE,
        flag=Flag(help="{doc} (default {default})"),
    )
    listener_nice: int = _key(
        "int",
        -15,
        "niceness of listeners, if there are fewer of them than processors",
        low=-20,
        actors=_LISTENER_AND_GATE,
    )
    isolation: str = _key(
        "choice",
        "shared",
        "whether a listener serves many connections, or each connection has a process of its own",
        choices=("shared", "connection"),
    )
    allow_plaintext: bool = _key(
        "bool", False, "let clients log in without TLS", reload=True, actors=_LISTENER_AND_GATE, flag=Flag()
    )
    daemon: bool = _key("bool", False, "detach from the terminal once ready", flag=Flag())
    log: str = _key(
        "choice",
        "auto",
        "destination of the log",
        choices=("auto", "syslog", "stderr"),
        flag=Flag(
            help="{doc}; {default} (the default): standard error on a terminal or without syslog, "
            "else syslog (facility mail)"
        ),
    )
    log_format: str = _key(
        "choice",
        "text",
        "format of the log's lines",
        choices=("text", "json"),
        flag=Flag(help="for people, or one JSON object a line (default {default})"),
    )
    history: int = _key(
        "int",
        100_000,
        "latest sessions, failed logins and deliveries, of each, kept in memory for explain; 0: none",
        high=1_000_000,
    )
    insecure_no_sandbox: bool = _key(
        "bool",
        False,
        "serve even if this system cannot sandbox the actors",
        flag=Flag(),
    )
    listener_user: str = _key("user", "_pop3d", "user that listeners run as: a name, or uid:gid", reload=True)
    auth_user: str = _key(
        "user", "_popauth", "user that the password check runs as: a name, or uid:gid", reload=True
    )
    mda_user: str = _key("user", "_popmda", "user that the delivery of mail runs as: a name, or uid:gid")
    login_seconds: int = _key(
        "int",
        180,
        "seconds that a client has to log in, the wait for the password check included",
        low=1,
        high=3600,
        reload=True,
        actors=(*_AUTH, *_LISTENER_AND_GATE),
    )
    idle_seconds: int = _key(
        "int",
        600,
        "seconds that a client may be silent once logged in",
        low=10,
        high=86400,
        reload=True,
        actors=_LISTENER_AND_GATE,
    )
    login_case: str = _key(
        "choice",
        "fold",
        "whether alice may log in as Alice",
        choices=("fold", "exact"),
        reload=True,
        actors=_AUTH,
    )
    default_domain: str = _key(
        "domain",
        "",
        "domain that users may leave out of their login names, or give, whichever the table does",
        reload=True,
        actors=_AUTH,
        example='"example.org"',
    )
    login_delay: int = _key(
        "int", 0, "seconds before a user may log in again; 0: at once", high=86400, actors=_LISTENER_AND_GATE
    )
    session_memory: int = _key(
        "int",
        256,
        "KiB of answers that a client has not read, above which its further commands wait",
        low=64,
        high=65536,
        reload=True,
        actors=_LISTENER_AND_GATE,
    )
    max_sessions: int = _key(
        "int",
        10000,
        "sessions at a time, in all",
        low=1,
        high=1000000,
        reload=True,
        actors=(*_AUTH, *_listener_and_gate("max_sessions", _sessions_each)),
    )
    max_sessions_address: int = _key(
        "int",
        0,
        "sessions at a time of one address; 0: no bound",
        high=1000000,
        reload=True,
        actors=_LISTENER_AND_GATE,
    )
    connects_per_minute: int = _key(
        "int",
        0,
        "connections a minute of one address; 0: no bound",
        high=1000000,
        reload=True,
        actors=_LISTENER_AND_GATE,
    )
    max_handshakes: int = _key(
        "int",
        1000,
        "TLS handshakes at a time; 0: no bound",
        high=1000000,
        reload=True,
        actors=_LISTENER_AND_GATE,
    )
    max_logins: int = _key(
        "int",
        0,
        "logins at a time that listeners give to auth, the others wait; 0: no bound",
        high=100000,
        reload=True,
        actors=_LISTENER_AND_GATE,
    )
    max_logins_user: int = _key(
        "int",
        50,
        "logins of one user from one address at a time; 0: no bound",
        high=100000,
        reload=True,
        actors=_LISTENER_AND_GATE,
    )
    most_errors: int = _key(
        "int",
        50,
        "bad commands before a session is ended",
        low=1,
        high=10000,
        reload=True,
        actors=_LISTENER_AND_GATE,
    )
    max_commands: int = _key(
        "int",
        0,
        "commands before a session is ended; 0: no bound",
        high=1000000000,
        reload=True,
        actors=_LISTENER_AND_GATE,
    )
    proxy_networks: tuple[str, ...] = _key(
        "networks",
        (),
        "proxies, whose connections must begin with a PROXY header that names the client",
        reload=True,
        actors=_LISTENER_AND_GATE,
        example='["192.0.2.10", "2001:db8::/64"]',
    )
    warm_memory: str = _key(
        "size",
        "",
        "memory for idle maildir actors, as \"2G\"; empty: a tenth of the machine's or the control group's",
        example='"2G"',
    )
    warm_seconds: int = _key(
        "int", 3600, "seconds that a maildir actor is kept at most after its last session", high=86400
    )
    park_seconds: int = _key(
        "int", 30, "seconds of silence after which a session gives up its maildir actor; 0: never", high=86400
    )
    crowd: int = _key(
        "int",
        1000,
        "busy maildir actors at which park_seconds has fallen to 1; it falls evenly from half as many on",
        high=1000000,
    )
    restart_intensity: int = _key(
        "int", 5, "restarts of one actor within restart_seconds before giving up", high=1000
    )
    restart_seconds: int = _key("int", 30, "see restart_intensity", low=1, high=86400)
    tls_min: str = _key(
        "choice",
        "1.3",
        "lowest version of TLS",
        choices=("1.2", "1.3"),
        reload=True,
        actors=_LISTENER_AND_GATE,
    )
    auth_cache_seconds: int = _key(
        "int",
        86400,
        "seconds since its last use for which a verified password needs no hashing; 0: none",
        high=86400,
        reload=True,
        actors=_AUTH,
    )
    penalty_seconds: int = _key(
        "int",
        15,
        "longest wait, in seconds, for a client that guesses passwords; 0: none",
        high=20,
        reload=True,
        actors=_AUTH,
    )
    ipv6_prefix: int = _key(
        "int",
        64,
        "bits of an IPv6 address that identify a client",
        low=32,
        high=128,
        reload=True,
        actors=(*_AUTH, *_LISTENER_AND_GATE),
    )
    block_list: str = _key(
        "file",
        "",
        "file of addresses and networks, one a line, that are not served",
        reload=True,
        actors=_LISTENER_AND_GATE,
        example='"/etc/popkernel/blocked"',
    )
    oauth_issuer: str = _key(
        "text",
        "",
        "issuer of the tokens of XOAUTH2 and OAUTHBEARER, as in their iss; empty: no tokens",
        reload=True,
        actors=(*_TOKENS, *_LISTENER_AND_GATE),
        example='"https://login.example.org/realms/mail"',
    )
    oauth_audience: str = _key(
        "text",
        "",
        "audience of tokens for this server, as in their aud",
        reload=True,
        actors=_TOKENS,
        example='"pop3.example.org"',
    )
    oauth_jwks: str = _key(
        "file",
        "",
        "the issuer's public keys, a JWKS file; needed with oauth_issuer",
        reload=True,
        actors=_TOKENS,
        example='"/etc/popkernel/jwks.json"',
    )
    oauth_user_claim: str = _key(
        "text",
        "email",
        "the claim of a token that names the user as the tables do",
        reload=True,
        actors=_TOKENS,
    )
    oauth_scope: str = _key(
        "text",
        "",
        "scope that a token must have; empty: none is asked for",
        reload=True,
        actors=(*_TOKENS, *_LISTENER_AND_GATE),
        example='"mail.read"',
    )
    watch: bool = _key(
        "bool",
        False,
        "put changed tables, certificates and keys in force at once, without a reload",
        reload=True,
        flag=Flag(help="put changed tables, certificates and keys in force at once", after="daemon"),
    )
    lmtp: bool = _key(
        "bool",
        True,
        "take mail by LMTP on a socket in the run directory",
        actors=_mda("unix_fds", by_init=True, recorded=False),
    )
    lmtp_listen: tuple[Address, ...] = _key(
        "addresses",
        (),
        "loopback addresses for LMTP too",
        low=LMTP_PORT,
        actors=_mda("tcp_fds", by_init=True, recorded=False),
        example='["127.0.0.1:24"]',
    )
    lmtp_seconds: int = _key(
        "int", 300, "seconds that an LMTP client may be silent", low=5, high=3600, actors=_mda("seconds")
    )
    lmtp_connections: int = _key(
        "int", 200, "LMTP connections at a time", low=1, high=4000, actors=_mda("most")
    )
    lmtp_connections_user: int = _key(
        "int",
        50,
        "LMTP connections of one user who is neither root nor of mta_users",
        low=1,
        high=4000,
        actors=_mda("each"),
    )
    message_octets: int = _key(
        "int", 1 << 28, "largest message taken by LMTP, in octets", low=1 << 16, high=1 << 40, actors=_mda()
    )
    mta_users: tuple[str, ...] = _key(
        "users",
        (),
        "users who, like root, may deliver to all users: names, or uid:gid",
        actors=_mda("trusted", by_init=True),
        example='["_smtpd"]',
    )
    subaddress: str = _key(
        "separators", "+", "marks that begin a detail in an address (alice+list@...); empty: none"
    )
    recipient_case: str = _key("choice", "fold", "whether Alice@... is alice", choices=("fold", "exact"))
    recipient_domains: tuple[str, ...] = _key(
        "domains",
        (),
        "domains that mail is taken for; none: whatever the mail server sends",
        example='["example.org"]',
    )
    quota: str = _key(
        "quota",
        "",
        'largest size of each mailbox, as "1G" or "500M,2000C" (messages); empty: no bound',
        reload=True,
        actors=_MAILDIR,
        example='"1G"',
    )
    quota_users: tuple[str, ...] = _key(
        "quotas",
        (),
        'largest size of single mailboxes, as "alice=2G"; "alice=none" for no bound',
        reload=True,
        actors=(ActorSetting("spawner", "quotas", _quotas),),
        example='["alice=2G", "bob=none"]',
    )
    quota_temporary: bool = _key(
        "bool",
        False,
        "have mail for a full mailbox tried again (4.2.2) instead of sent back (5.2.2)",
        reload=True,
        actors=_MAILDIR,
    )
    deletion: str = _key(
        "choice",
        "unlink",
        "whether deleting removes the file, or sets the flag T",
        choices=("unlink", "trash-flag"),
        reload=True,
        actors=_MAILDIR,
    )
    hide_trashed: bool = _key(
        "bool", False, "hide messages with the flag T from clients", reload=True, actors=_MAILDIR
    )
    set_seen: bool = _key(
        "bool", True, "give the flag S to messages that were retrieved", reload=True, actors=_MAILDIR
    )
    expire_days: int = _key(
        "int",
        -1,
        "days after which mail is removed at a session's end; 0: once retrieved; -1: never",
        low=-1,
        high=36500,
        reload=True,
        actors=(*_LISTENER_AND_GATE, *_MAILDIR),
    )
    hostname: str = _key(
        "hostname",
        "",
        "name in greetings and in the names of delivered messages",
        actors=(*_MAILDIR, *_mda()),
        example='"mail.example.org"',
    )

    @property
    def control(self) -> str:
        """Return the path of the control socket; loading.py has checked its length."""
        return os.path.join(self.run_dir, "control.sock")


def keys() -> tuple[Field[Any], ...]:
    """Return all keys, with the arguments of `_key` as metadata."""
    return fields(Config)


def address_keys() -> list[str]:
    """Return the names of keys with addresses to listen on, in the order of binding."""
    return [key.name for key in keys() if key.metadata["kind"] == "addresses"]


def key_of(name: str) -> Field[Any]:
    """Return the key of that name."""
    return next(key for key in keys() if key.name == name)


def default_of(key: Field[Any]) -> Any:
    """Return the default value of a key; two depend on the machine."""
    if key.name == "run_dir":
        return default_run_dir()
    return (socket.gethostname() or "localhost") if key.name == "hostname" else key.default


def flagged_keys() -> list[Field[Any]]:
    """Return the keys that have a flag, in the order of the help of `start`."""
    flagged = [key for key in keys() if key.metadata["flag"] is not None]
    ordered = [key for key in flagged if not key.metadata["flag"].after]
    for key in flagged:
        if key.metadata["flag"].after:
            ordered.insert(1 + [other.name for other in ordered].index(key.metadata["flag"].after), key)
    return ordered


def flag_of(key: Field[Any]) -> str:
    """Return the flag of a key, or the name that its flag would have."""
    flag: Flag | None = key.metadata["flag"]
    return (flag.name if flag is not None else "") or "--" + key.name.replace("_", "-")


def actor_settings(config: Config, actor: str) -> dict[str, Any]:
    """Return an actor's settings, without those that init computes.

    The setting "shown" lists the names of those that recordings of the actor contain.
    """
    rows = [(key.name, row) for key in keys() for row in key.metadata["actors"] if row.actor == actor]
    settings = {
        row.name or name: row.compute(config) if row.compute else getattr(config, name)
        for name, row in rows
        if not row.by_init
    }
    return settings | {"shown": [row.name or name for name, row in rows if row.recorded]}
