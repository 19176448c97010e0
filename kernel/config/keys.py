"""Declare the configuration keys, and build the configuration from flags and a TOML file; flags win.

Every key stands once, as a field of `Config`. The flags of `start` and `check`, the help, the checks of values, what a reload
puts in force, what each actor is told, the sample configuration and the numbers in the manual are made from these fields
(tests/support/key_documents.py writes the last two). Nothing here opens a socket or a table: `popkernel check` looks at what the paths
hold. What a value may be, by its kind, is in values.py; the line of each fault of the file comes from toml.py.
"""

import os
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from difflib import get_close_matches
from typing import Any, NamedTuple

from popkernel.kernel.config.addresses import LMTP_PORT, POP3_PORT, POP3S_PORT, Address
from popkernel.kernel.config.toml import line_of, read_toml
from popkernel.kernel.config.values import checked
from popkernel.proto.files.tables import Finding

MAX_SOCKET_PATH = 100
"""Octets: sun_path holds 104 on OpenBSD and 108 on Linux, with a NUL; the sockets beside this one have longer names."""
COMMAND_LINE = "command line"
"""What a finding names as its file when a flag is meant."""

__all__ = [
    "Address",
    "Config",
    "ConfigError",
    "Flag",
    "address_keys",
    "control_path",
    "default_of",
    "default_run_dir",
    "flag_of",
    "flagged_keys",
    "gather",
    "key_of",
    "keys",
    "load",
    "run_dir_in",
    "told",
]


class ConfigError(Exception):
    """The configuration cannot be used.

    ``findings`` says all that is wrong with it, not the first thing only; str() gives one a line.
    """

    def __init__(self, findings: list[Finding]) -> None:
        super().__init__("\n".join(str(finding) for finding in findings))
        self.findings = findings


def default_run_dir() -> str:
    """Say where the kernel's sockets lie unless told otherwise: for root, for a login session, for anyone else."""
    if os.geteuid() == 0:
        return "/run/popkernel" if os.path.isdir("/run") else "/var/run/popkernel"
    session = os.environ.get("XDG_RUNTIME_DIR", "")
    if session.startswith("/"):
        return os.path.join(session, "popkernel")
    return f"/tmp/popkernel-{os.geteuid()}"  # noqa: S108 - the kernel makes it 0700 and refuses one that is another's


def control_path(run_dir: str) -> str:
    """Name the control socket of a run directory.

    Raises:
        ConfigError: the path does not fit in a socket address.

    """
    path = os.path.join(run_dir, "control.sock")
    octets = len(os.fsencode(path))
    if octets > MAX_SOCKET_PATH:
        what = f"a socket in it would have a path of {octets} octets, over {MAX_SOCKET_PATH}"
        raise ConfigError([Finding(run_dir, 0, what, "choose a shorter --run-dir")])
    return path


class Flag(NamedTuple):
    """A key's flag on the command line of `start` and `check`."""

    name: str = ""
    """Empty: the key's, with dashes."""
    help: str = "{doc}"
    """`{doc}`, `{default}` and `{low}` are the key's."""
    after: str = ""
    """The key whose flag comes before it in the help; by itself a flag stands where its key does among the keys."""
    counted: bool = False
    """It takes no value: each one adds 1."""


class Told(NamedTuple):
    """An actor that gets a key among its settings when it is started."""

    actor: str
    setting: str = ""
    """Its name there; empty: the key's."""
    part: Callable[["Config"], Any] | None = None
    """Compute the setting from the configuration; without it, the setting is the key's value. Several keys may make one setting."""
    made: bool = False
    """Init computes the setting when it starts the actor: descriptors, uids, the pass phrase."""
    shown: bool = False
    """Recordings of the actor hold the setting, since a replay needs it."""


def _share(config: "Config") -> int:
    """Divide the sessions among the listeners."""
    return max(1, config.max_sessions // config.listeners)


def _pairs(config: "Config") -> list[tuple[str, str]]:
    """List certificate and key of each host name, the default first."""
    return [(config.cert, config.key), *config.certs]


def _tokens(config: "Config") -> dict[str, str]:
    """Collect what a token must have; nothing if tokens are off."""
    prefix = "oauth_"
    names = [key.name for key in keys() if key.name.startswith(prefix)] if config.oauth_issuer else []
    return {name.removeprefix(prefix): getattr(config, name) for name in names}


def _quotas(config: "Config") -> dict[str, str]:
    """Map users to their quotas."""
    return dict(text.rsplit("=", 1) for text in config.quota_users)


def _doors(setting: str = "", part: Callable[["Config"], Any] | None = None, *, made: bool = False) -> tuple[Told, ...]:
    """Name the actors that take clients' connections."""
    return Told("listener", setting, part, made), Told("gate", setting, part, made)


def _mda(setting: str = "", *, made: bool = False, shown: bool = True) -> tuple[Told, ...]:
    return (Told("mda", setting, None, made, shown),)


_AUTH = (Told("auth"),)
_TOKENS = (Told("auth", "oauth", _tokens),)
_DOORS = _doors()
_CERTIFICATES = _doors("pairs", _pairs)
_MAILDIR = (Told("maildir", shown=True),)
_EVERYBODY = (*_AUTH, *_DOORS, Told("spawner"), Told("maildir"), Told("mda"))


def _key(
    kind: str, default: Any, doc: str, *, low: int = 0, high: int = 0, choices: tuple[str, ...] = (), required: bool = False,
    reload: bool = False, told: tuple[Told, ...] = (), flag: Flag | None = None, example: str = "",
) -> Any:
    """Declare one key.

    Args:
        kind: of value; values.py has a check for each.
        default: where it is not given.
        doc: what it is for, as the help has it.
        low: bound of an "int", or the port of "addresses" that name none.
        high: bound of an "int".
        choices: of a "choice".
        required: no start without it.
        reload: a reload puts it in force; others wait for the next start.
        told: the actors that get it. Init and the kernel have the whole configuration: init reads it and forks the kernel.
        flag: on the command line.
        example: a value as in the TOML file, for the sample configuration where the default is no example.

    """
    return field(default=default, metadata={
        "kind": kind, "doc": doc, "low": low, "high": high, "choices": choices, "required": required, "reload": reload, "told": told,
        "flag": flag, "example": example,
    })


@dataclass(frozen=True)
class Config:
    """All that a site can set: a field is a key, in the order of the help, the manual and the sample configuration."""

    auth_table: str = _key(
        "file", "", "authorization table: name and bcrypt hash",
        required=True, reload=True, told=_AUTH, flag=Flag("-a", "authorization table: name, blank, bcrypt hash"),
        example='"/etc/popkernel/auth"',
    )
    user_table: str = _key(
        "file", "", "user table: name and uid:gid:maildir",
        required=True, flag=Flag("-u", "user table: name, blank, uid:gid:maildir"), example='"/etc/popkernel/users"',
    )
    listen: tuple[Address, ...] = _key(
        "addresses", (), "addresses for implicit TLS", low=POP3S_PORT,
        told=_doors("tls_fds", made=True),
        flag=Flag("-l", "numeric address for implicit TLS, port {low} unless given; [ADDR6]:PORT for IPv6; repeatable"),
        example='["192.0.2.1", "[2001:db8::1]:995"]',
    )
    listen_starttls: tuple[Address, ...] = _key(
        "addresses", (), "addresses for POP3 with STLS", low=POP3_PORT,
        told=_doors("plain_fds", made=True),
        flag=Flag("-L", "numeric address for POP3 with STLS, port {low} unless given; repeatable", after="verbose"),
        example='["192.0.2.1:110"]',
    )
    cert: str = _key(
        "file", "", "certificate chain, PEM, the server's own first",
        required=True, reload=True, told=_CERTIFICATES, flag=Flag("-c"), example='"/etc/ssl/mail.pem"',
    )
    key: str = _key(
        "file", "", "private key of the certificate, PEM",
        required=True, reload=True, told=_CERTIFICATES, flag=Flag("-k", "private key, PEM"), example='"/etc/ssl/private/mail.key"',
    )
    certs: tuple[tuple[str, str], ...] = _key(
        "certs", (), "further certificates, for their own host names, as CHAIN:KEY or one file",
        reload=True, told=_CERTIFICATES, example='["/etc/ssl/pop.example.org.pem:/etc/ssl/private/pop.example.org.key"]',
    )
    key_passphrase_file: str = _key(
        "file", "", "file whose first line opens the private keys that have a pass phrase",
        reload=True, told=_doors("phrase", made=True), example='"/etc/popkernel/passphrase"',
    )
    subdir: str = _key(
        "subdir", "", "subdirectory of every user's directory that is the maildir",
        flag=Flag("-e", "subdirectory of each user's directory that is the maildir"), example='"Maildir"',
    )
    verbose: int = _key(
        "int", 0, "steps of logging; 0, 1 or 2 suffice in daily use", high=10,
        told=_EVERYBODY, flag=Flag("-v", "one more step of logging, up to ten; 0 to 2 suffice in daily use", counted=True),
    )
    run_dir: str = _key(
        "directory", "", "directory for the server's sockets",
        told=(Told("spawner"),), flag=Flag(help="directory of the server's sockets (default {default})"),
        example='"/run/popkernel"',
    )
    listeners: int = _key(
        "int", 1, "listener processes", low=1, high=64,
        told=_DOORS, flag=Flag(help="{doc} (default {default})"),
    )
    listener_nice: int = _key("int", -15, "niceness of listeners where there are fewer of them than processors", low=-20, told=_DOORS)
    isolation: str = _key(
        "choice", "shared", "whether listeners serve many connections, or each has a process to itself", choices=("shared", "connection"),
    )
    allow_plaintext: bool = _key("bool", False, "let clients log in without TLS", reload=True, told=_DOORS, flag=Flag())
    daemon: bool = _key("bool", False, "detach from the terminal once ready", flag=Flag())
    log: str = _key(
        "choice", "auto", "where the log goes", choices=("auto", "syslog", "stderr"),
        flag=Flag(help="{doc}; {default} (the default): standard error on a terminal, else syslog, facility mail"),
    )
    log_format: str = _key(
        "choice", "text", "how the log's lines are written", choices=("text", "json"),
        flag=Flag(help="for people, or one JSON object a line (default {default})"),
    )
    insecure_no_sandbox: bool = _key(
        "bool", False, "serve although this system cannot lock the actors in",
        flag=Flag(),
    )
    listener_user: str = _key("user", "_pop3d", "who faces the network: a user's name, or uid:gid", reload=True)
    auth_user: str = _key("user", "_popauth", "who checks passwords: a user's name, or uid:gid", reload=True)
    mda_user: str = _key("user", "_popmda", "who takes mail for delivery: a user's name, or uid:gid")
    login_seconds: int = _key("int", 180, "time a client has to log in", low=1, high=3600, reload=True, told=_DOORS)
    idle_seconds: int = _key("int", 600, "time a client may say nothing once logged in", low=10, high=86400, reload=True, told=_DOORS)
    login_case: str = _key("choice", "fold", "whether alice may log in as Alice", choices=("fold", "exact"), reload=True, told=_AUTH)
    login_delay: int = _key("int", 0, "seconds before a user may log in again; 0: at once", high=86400, told=_DOORS)
    session_memory: int = _key(
        "int", 256, "KiB of answers a client may leave untaken before more commands count", low=64, high=65536,
        reload=True, told=_DOORS,
    )
    max_sessions: int = _key(
        "int", 10000, "sessions at a time, in all", low=1, high=1000000,
        reload=True, told=_doors("max_sessions", _share),
    )
    max_sessions_address: int = _key("int", 2000, "sessions at a time of one address; 0: no bound", high=1000000, reload=True, told=_DOORS)
    connects_per_minute: int = _key("int", 0, "connections a minute of one address; 0: no bound", high=1000000, reload=True, told=_DOORS)
    max_handshakes: int = _key("int", 1000, "TLS handshakes at a time; 0: no bound", high=1000000, reload=True, told=_DOORS)
    max_logins: int = _key("int", 100, "logins at a time, twenty times as many waiting; 0: no bound", high=100000, reload=True, told=_DOORS)
    max_logins_user: int = _key(
        "int", 50, "logins of one user from one address at a time; 0: no bound", high=100000,
        reload=True, told=_DOORS,
    )
    most_errors: int = _key("int", 50, "bad commands before a session is ended", low=1, high=10000, reload=True, told=_DOORS)
    max_commands: int = _key("int", 0, "commands before a session is ended; 0: no bound", high=1000000000, reload=True, told=_DOORS)
    proxy_networks: tuple[str, ...] = _key(
        "networks", (), "who must begin each connection with a PROXY header, and may name the client",
        reload=True, told=_DOORS, example='["192.0.2.10", "2001:db8::/64"]',
    )
    warm_seconds: int = _key("int", 60, "how long a maildir actor is kept after its last session", high=86400)
    warm_max: int = _key("int", 500, "how many idle maildir actors are kept", high=100000)
    park_seconds: int = _key("int", 30, "silence after which a session gives up its maildir actor's process; 0: never", high=86400)
    crowd: int = _key("int", 1000, "maildir actors beyond which a second of silence is enough for that", high=1000000)
    restart_intensity: int = _key("int", 5, "restarts of one actor within restart_seconds before giving up", high=1000)
    restart_seconds: int = _key("int", 30, "see restart_intensity", low=1, high=86400)
    tls_min: str = _key("choice", "1.3", "lowest version of TLS", choices=("1.2", "1.3"), reload=True, told=_DOORS)
    auth_cache_seconds: int = _key(
        "int", 600, "how long a password once found good needs no bcrypt check; 0: never", high=86400,
        reload=True, told=_AUTH,
    )
    penalty_seconds: int = _key(
        "int", 15, "longest wait that somebody who guesses passwords is made to wait; 0: none", high=20,
        reload=True, told=_AUTH,
    )
    ipv6_prefix: int = _key(
        "int", 64, "how many bits of an IPv6 address are one client", low=32, high=128,
        reload=True, told=(*_AUTH, *_DOORS),
    )
    block_list: str = _key(
        "file", "", "file of addresses and networks, one a line, that are not served",
        reload=True, told=_DOORS, example='"/etc/popkernel/blocked"',
    )
    oauth_issuer: str = _key(
        "text", "", "who signs the tokens of XOAUTH2 and OAUTHBEARER, as in their iss; empty: no tokens",
        reload=True, told=(*_TOKENS, *_DOORS), example='"https://login.example.org/realms/mail"',
    )
    oauth_audience: str = _key(
        "text", "", "what tokens for this server have in their aud",
        reload=True, told=_TOKENS, example='"pop3.example.org"',
    )
    oauth_jwks: str = _key(
        "file", "", "the issuer's public keys, a JWKS file; needed with oauth_issuer",
        reload=True, told=_TOKENS, example='"/etc/popkernel/jwks.json"',
    )
    oauth_user_claim: str = _key("text", "email", "the claim of a token that names the user as the tables do", reload=True, told=_TOKENS)
    oauth_scope: str = _key(
        "text", "", "scope that a token must have; empty: none is asked for",
        reload=True, told=(*_TOKENS, *_DOORS), example='"mail.read"',
    )
    watch: bool = _key(
        "bool", False, "put changed tables, certificates and keys in force at once, without a reload",
        reload=True, flag=Flag(help="put changed tables, certificates and keys in force at once", after="daemon"),
    )
    lmtp: bool = _key("bool", True, "take mail by LMTP on a socket in the run directory", told=_mda("unix_fds", made=True, shown=False))
    lmtp_listen: tuple[Address, ...] = _key(
        "addresses", (), "loopback addresses for LMTP too", low=LMTP_PORT,
        told=_mda("tcp_fds", made=True, shown=False), example='["127.0.0.1:24"]',
    )
    lmtp_seconds: int = _key("int", 300, "time an LMTP client may say nothing", low=5, high=3600, told=_mda("seconds"))
    lmtp_connections: int = _key("int", 200, "LMTP connections at a time", low=1, high=4000, told=_mda("most"))
    lmtp_connections_user: int = _key(
        "int", 50, "LMTP connections of one user who is neither root nor of mta_users", low=1, high=4000,
        told=_mda("each"),
    )
    message_octets: int = _key("int", 1 << 28, "largest message taken by LMTP, in octets", low=1 << 16, high=1 << 40, told=_mda())
    mta_users: tuple[str, ...] = _key(
        "users", (), "who besides root may deliver to everybody: users' names, or uid:gid",
        told=_mda("trusted", made=True), example='["_smtpd"]',
    )
    subaddress: str = _key("separators", "+", "what begins a detail in an address (alice+list@...); empty: nothing does")
    recipient_case: str = _key("choice", "fold", "whether Alice@... is alice", choices=("fold", "exact"))
    recipient_domains: tuple[str, ...] = _key(
        "domains", (), "domains mail is taken for; none: for whatever the mail server sends",
        example='["example.org"]',
    )
    quota: str = _key(
        "quota", "", 'room of each mailbox, as "1G" or "500M,2000C" (messages); empty: no bound',
        reload=True, told=_MAILDIR, example='"1G"',
    )
    quota_users: tuple[str, ...] = _key(
        "quotas", (), 'room of single mailboxes, as "alice=2G"; "alice=none" for no bound',
        reload=True, told=(Told("spawner", "quotas", _quotas),), example='["alice=2G", "bob=none"]',
    )
    quota_temporary: bool = _key(
        "bool", False, "let mail for a full mailbox be tried again (4.2.2) instead of sent back (5.2.2)",
        reload=True, told=_MAILDIR,
    )
    deletion: str = _key(
        "choice", "unlink", "what deletes: the file goes, or stays with the flag T", choices=("unlink", "trash-flag"),
        reload=True, told=_MAILDIR,
    )
    hide_trashed: bool = _key("bool", False, "leave messages with the flag T out of what clients see", reload=True, told=_MAILDIR)
    set_seen: bool = _key("bool", True, "give the flag S to messages that were retrieved", reload=True, told=_MAILDIR)
    expire_days: int = _key(
        "int", -1, "days after which mail goes at a session's end; 0: once retrieved; -1: never", low=-1, high=36500,
        reload=True, told=(*_DOORS, *_MAILDIR),
    )
    hostname: str = _key(
        "hostname", "", "name in greetings and in the names of delivered messages",
        reload=True, told=(*_MAILDIR, *_mda()), example='"mail.example.org"',
    )

    @property
    def control(self) -> str:
        """Path of the control socket; load() has checked that it fits."""
        return os.path.join(self.run_dir, "control.sock")


def keys() -> tuple[Field[Any], ...]:
    """Return every key; its metadata holds what `_key` was given."""
    return fields(Config)


def address_keys() -> list[str]:
    """Name the keys that hold addresses to listen on, in the order of binding."""
    return [key.name for key in keys() if key.metadata["kind"] == "addresses"]


def key_of(name: str) -> Field[Any]:
    """Find a key by its name."""
    return next(key for key in keys() if key.name == name)


def default_of(key: Field[Any]) -> Any:
    """Return the value of a key that is not given; two depend on the machine."""
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
    """Return the flag of a key, or the one it would have."""
    flag: Flag | None = key.metadata["flag"]
    return (flag.name if flag is not None else "") or "--" + key.name.replace("_", "-")


def told(config: Config, actor: str) -> dict[str, Any]:
    """Return the settings an actor gets, without those that init computes; `shown` names the ones that its recordings hold."""
    rows = [(key.name, row) for key in keys() for row in key.metadata["told"] if row.actor == actor]
    settings = {row.setting or name: row.part(config) if row.part else getattr(config, name) for name, row in rows if not row.made}
    return settings | {"shown": [row.setting or name for name, row in rows if row.shown]}


def load(flags: Mapping[str, Any], toml_path: str | None = None) -> Config:
    """Build the configuration.

    Args:
        flags: by key, what the command line gave, addresses as text; a missing key or None means not given.
        toml_path: the file of ``-f``, or None.

    Raises:
        ConfigError: with everything that is wrong, each with file, line and mend.

    """
    config, findings = gather(flags, toml_path)
    if config is None or findings:
        raise ConfigError(findings)
    return config


def gather(flags: Mapping[str, Any], toml_path: str | None = None) -> tuple[Config | None, list[Finding]]:
    """Build what can be built of the configuration, and say all that is wrong with it; what is wrong is left at its default.

    Arguments as for load(). None: nothing of the file could be read, so what it asks for is not known.
    """
    text, file_values, findings = read_toml(toml_path) if toml_path else ("", {}, [])
    unread = bool(findings) and not file_values
    values: dict[str, Any] = {}
    known = {key.name: key for key in keys()}
    for name, value in file_values.items():
        where = (toml_path or "", line_of(text, name))
        if name not in known:
            findings.append(_unknown_key(*where, name, list(known)))
        elif flags.get(name) is None:
            _take(known[name], value, where, values, findings)
    for name, value in flags.items():
        if value is not None:
            _take(known[name], value, (f"{COMMAND_LINE}: {flag_of(known[name])}", 0), values, findings)
    for name in ("run_dir", "hostname"):
        values.setdefault(name, default_of(known[name]))
    if unread:  # it lacks everything, and that is said
        return None, findings
    config = Config(**values)
    findings += _whole(config, _Places(toml_path, text, file_values, flags), {f.path for f in findings})
    return config, findings


def run_dir_in(toml_path: str) -> str:
    """The run directory that a configuration names, or the default; whatever else it holds need not be right.

    Raises:
        ConfigError: the file cannot be read, or its run_dir is wrong.

    """
    text, file_values, findings = read_toml(toml_path)
    values: dict[str, Any] = {"run_dir": default_run_dir()}
    if "run_dir" in file_values:
        _take(key_of("run_dir"), file_values["run_dir"], (toml_path, line_of(text, "run_dir")), values, findings)
    if findings:
        raise ConfigError(findings)
    return str(values["run_dir"])


def _unknown_key(path: str, line: int, name: str, known: list[str]) -> Finding:
    bare = name.replace("-", "_")
    near = get_close_matches(bare, known, n=1)
    near = near or [key for key in known if len(key) > 2 and (bare.startswith(key) or bare.partition("_")[2] == key)]  # certificate: cert
    mend = f"did you mean {near[0]}?" if near else "remove it; `popkernel start --help` lists the keys"
    return Finding(path, line, f"unknown key {name!r}", mend)


def _take(key: Field[Any], value: Any, where: tuple[str, int], values: dict[str, Any], findings: list[Finding]) -> None:
    try:
        values[key.name] = checked(value, key.metadata)
    except ValueError as error:
        what, semicolon, mend = str(error).partition("; ")
        findings.append(Finding(*where, f"{key.name}: {what}", mend if semicolon else "see `popkernel start --help`"))


class _Places(NamedTuple):
    """Where each key was given, for findings that concern the configuration as a whole."""

    toml_path: str | None
    text: str
    file_values: Mapping[str, Any]
    flags: Mapping[str, Any]

    def tried(self, name: str) -> bool:
        """Whether it stands in the file, on a line that could not be read: that has been said already."""
        return re.search(rf"^[ \t]*{name}[ \t]*=", self.text, re.MULTILINE) is not None

    def of(self, name: str) -> tuple[str, int]:
        if self.flags.get(name) is None and name in self.file_values:
            return self.toml_path or "", line_of(self.text, name)
        if self.flags.get(name) is None and self.toml_path:
            return self.toml_path, 0
        return COMMAND_LINE, 0


def _whole(config: Config, places: _Places, said: set[str]) -> list[Finding]:
    """Check what no single key shows: what is missing, and what does not go together."""
    findings: list[Finding] = []
    for key in keys():
        if not key.metadata["required"]:
            continue
        name = key.name
        given = places.flags.get(name) is not None or name in places.file_values or places.tried(name)
        if not given:
            what = "no " + name.replace("_", " ").replace("auth ", "authorization ")
            mend = f"give {flag_of(key)} FILE, or {name} in the file of -f"
            findings.append(Finding(places.toml_path or COMMAND_LINE, 0, what, mend))
    if not (config.listen or config.listen_starttls or said):
        mend = "give -l ADDR for TLS on port 995, or -L ADDR for STLS on port 110"
        findings.append(Finding(places.toml_path or COMMAND_LINE, 0, "no address to listen on", mend))
    seen: dict[Address, str] = {}
    for name in address_keys():
        for address in getattr(config, name):
            if address.port and address in seen:
                findings.append(Finding(*places.of(name), f"{address} is listened on twice", "remove one of the two"))
            seen[address] = name
    for address in config.lmtp_listen:
        if not address.is_loopback:
            what = f"lmtp_listen: {address} is no loopback address, and LMTP asks for no password"
            findings.append(Finding(*places.of("lmtp_listen"), what, "write 127.0.0.1 or [::1]"))
    findings += _oauth(config, places)
    try:
        control_path(config.run_dir)
    except ConfigError as error:
        findings += error.findings
    return findings


def _oauth(config: Config, places: _Places) -> list[Finding]:
    """Tokens are taken where issuer, audience and keys are all known, or nowhere."""
    needed = ("oauth_issuer", "oauth_audience", "oauth_jwks")
    given = [name for name in (*needed, "oauth_user_claim", "oauth_scope") if places.flags.get(name) or places.file_values.get(name)]
    lacking = [name for name in needed if not getattr(config, name)]
    if lacking and given:
        what = f"tokens are configured in part: {', '.join(lacking)} is missing"
        return [Finding(*places.of(given[0]), what, f"give {' and '.join(lacking)} too, or leave out every oauth_ key")]
    if given and not config.oauth_user_claim:
        return [Finding(*places.of("oauth_user_claim"), "oauth_user_claim is empty", 'write "email" or "sub"')]
    return []
