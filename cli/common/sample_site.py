"""Make a whole site in one directory: certificate, tables, maildirs with sample mail, configuration.

For the demo, the tests and the benchmarks. Creates no system user: as root, mail belongs to unused numeric
uids; as an ordinary user, everything belongs to the caller.
"""

import datetime as dt
import itertools
import os
import pwd
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, NamedTuple

from popkernel.kernel.config.keys import Config
from popkernel.kernel.config.loading import load
from popkernel.proto.files.tables import MailUser

HOST = "127.0.0.1"
PASSWORD = "secret"  # noqa: S105 - of the demo, which prints it
FIRST_UID = 64101
"""The first uid of mail users; the actors have 64001 to 64003."""
# Uids repeat after this many, so that a site of 10,000 users stays below 65534 (nobody), and within the
# 65,536 uids of a container.
_UIDS = 1000
_FIRST_TIME = 1_700_000_000  # 2023-11-14: with a fixed time a site has the same UIDLs every time

_WELCOME = b"""\
From: popkernel <demo@localhost>
To: alice@localhost
Subject: Welcome
Date: Tue, 14 Nov 2023 22:13:20 +0000
Message-ID: <1@localhost>

This mail was read from a maildir by a process that can see nothing else.
"""
_DOTS = b"""\
From: demo@localhost
To: alice@localhost
Subject: Leading dots

.
..
...three
. and a dot alone ends an answer of several lines, unless it is doubled
"""
_EIGHT_BIT = """\
From: José <jose@example.org>
To: alice@localhost
Subject: 8-bit text
MIME-Version: 1.0
Content-Type: text/plain; charset=utf-8
Content-Transfer-Encoding: 8bit

Grüße aus Zürich, привет, 你好.
""".encode()

SAMPLE_MAIL: tuple[bytes, ...] = (
    _WELCOME,
    _DOTS,
    _EIGHT_BIT,
    b"From: demo@localhost\nTo: alice@localhost\nSubject: A long line\n\n" + b"0123456789" * 2000 + b"\n",
    b"From: demo@localhost\nTo: alice@localhost\nSubject: No newline at the end\n\nThe last line has none",
    (
        b"From: demo@localhost\r\nTo: alice@localhost\r\nSubject: CR LF in the file\r\n\r\n"
        b"As the network sends it\r\n"
    ),
)
"""Messages in the form of maildir files, each with another difficulty."""


class Site(NamedTuple):
    """The result of make_site()."""

    directory: str
    auth_table: str
    user_table: str
    cert: str
    key: str
    config: Config
    passwords: dict[str, str]
    """Password by user."""
    mail_users: dict[str, MailUser]
    """uid, gid and maildir by user, as the user table has them."""


def make_site(
    directory: str,
    *,
    users: Mapping[str, str] | Sequence[str] = ("alice", "bob", "carol"),
    mail: Mapping[str, Sequence[bytes]] | Sequence[bytes] = SAMPLE_MAIL,
    cost: int = 4,
    ports: tuple[int, int] | None = None,
    **settings: Any,
) -> Site:
    """Make a site in a directory, which is created if needed.

    As root, the directory gets mode 0711, and each maildir a uid from FIRST_UID on; uids that exist on this
    machine are skipped, and after 1,000 users the uids repeat.

    Args:
        directory: absolute path; short, since it holds the control socket (see control_path()).
        users: password by name, or names that all have PASSWORD. Each different password is hashed once.
        mail: messages as octets, by user; or one sequence for every user. Stored in `new/`, in order.
        cost: bcrypt cost, 4 to 18.
        ports: for implicit TLS and STLS on 127.0.0.1; None for two that are free now.
        settings: further keys of the configuration, as in the TOML file.

    Raises:
        OSError: something cannot be created.
        ConfigError: `settings` are wrong, or the path is too long.

    """
    passwords = dict(users) if isinstance(users, Mapping) else dict.fromkeys(users, PASSWORD)
    os.makedirs(directory, exist_ok=True)
    # mkdtemp() sets 0700, which would keep the users from their maildirs.
    os.chmod(directory, 0o711)  # noqa: S103 - others may traverse it, not list it
    place = Paths(directory)
    mail_users = _make_maildirs(place.mail, passwords)
    for number, (name, user) in enumerate(mail_users.items()):
        messages = mail.get(name, ()) if isinstance(mail, Mapping) else mail
        _deliver(user, messages, number)
    _write(place.auth_table, _auth_lines(passwords, cost), 0o600)
    lines = "".join(f"{name} {user.uid}:{user.gid}:{user.maildir}\n" for name, user in mail_users.items())
    _write(place.user_table, os.fsencode(lines), 0o644)
    certificate, key = make_certificate()
    _write(place.cert, certificate, 0o644)
    _write(place.key, key, 0o600)
    tls, stls = ports or free_ports()
    values: dict[str, Any] = {
        "auth_table": place.auth_table,
        "user_table": place.user_table,
        "listen": [f"{HOST}:{tls}"],
        "listen_starttls": [f"{HOST}:{stls}"],
        "cert": place.cert,
        "key": place.key,
        "run_dir": place.run,
        "hostname": "localhost",
        "log": "stderr",
        **_actor_users(),
        **settings,
    }
    _write(place.toml, _toml(values), 0o644)
    return Site(
        directory,
        place.auth_table,
        place.user_table,
        place.cert,
        place.key,
        load({}, place.toml),
        passwords,
        mail_users,
    )


class Paths:
    """The paths in a site."""

    def __init__(self, directory: str) -> None:
        self.mail = os.path.join(directory, "mail")
        self.auth_table = os.path.join(directory, "auth")
        self.user_table = os.path.join(directory, "users")
        self.cert = os.path.join(directory, "cert.pem")
        self.key = os.path.join(directory, "key.pem")
        self.run = os.path.join(directory, "run")
        self.toml = os.path.join(directory, "popkernel.toml")


def _actor_users() -> dict[str, str]:
    """Return numeric ids for the actors, as root; as an ordinary user all actors have that user's ids."""
    if os.geteuid() != 0:
        return {}
    return {"listener_user": "64001:64001", "auth_user": "64002:64002", "mda_user": "64003:64003"}


def _mail_ids() -> Iterator[tuple[int, int]]:
    if os.geteuid() != 0:
        return itertools.repeat((os.geteuid(), os.getegid()))
    taken = {entry.pw_uid for entry in pwd.getpwall()}
    free = [uid for uid in range(FIRST_UID, FIRST_UID + _UIDS) if uid not in taken]
    return itertools.cycle([(uid, uid) for uid in free])


def _make_maildirs(base: str, names: Mapping[str, str]) -> dict[str, MailUser]:
    os.makedirs(base, exist_ok=True)
    os.chmod(base, 0o711)  # noqa: S103 - others may traverse it, not list it
    made: dict[str, MailUser] = {}
    for name, (uid, gid) in zip(names, _mail_ids(), strict=False):
        maildir = os.path.join(base, name)
        for path in (maildir, *(os.path.join(maildir, sub) for sub in ("tmp", "new", "cur"))):
            if not os.path.isdir(path):
                os.mkdir(path, 0o700)
            os.chown(path, uid, gid)
        made[name] = MailUser(uid, gid, maildir)
    return made


def _deliver(user: MailUser, messages: Sequence[bytes], salt: int) -> None:
    """Put messages into `new/`, named as by the original server's delivery."""
    for number, message in enumerate(messages):
        name = f"{_FIRST_TIME + number}.{(salt << 16 | number) & 0xFFFFFFFF:08x}.localhost"
        path = os.path.join(user.maildir, "new", name)
        _write(path, message, 0o600)
        os.chown(path, user.uid, user.gid)


def _auth_lines(passwords: Mapping[str, str], cost: int) -> bytes:
    import bcrypt

    hashes = {word: bcrypt.hashpw(word.encode(), bcrypt.gensalt(cost)) for word in set(passwords.values())}
    return b"".join(name.encode() + b" " + hashes[word] + b"\n" for name, word in passwords.items())


def _write(path: str, data: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
    with open(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)
        file.write(data)


def _toml(values: Mapping[str, Any]) -> bytes:
    # JSON's strings, numbers, booleans and lists of strings are valid TOML.
    import json

    lines = "".join(f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in values.items())
    return lines.encode()


def make_certificate(
    names: Sequence[str] = ("localhost",), *, days: int = 30, starts: int = -1
) -> tuple[bytes, bytes]:
    """Make a self-signed ECDSA P-256 certificate for some names, 127.0.0.1 and ::1.

    Args:
        names: DNS names; the first is also the subject.
        days: days from now to its end.
        starts: days from now to its start.

    Returns:
        Certificate and private key, both PEM.

    """
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, names[0])])
    addresses = [ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1")]
    general = [*(x509.DNSName(name) for name in names), *(x509.IPAddress(address) for address in addresses)]
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + dt.timedelta(days=starts))
        .not_valid_after(now + dt.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName(general), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return certificate.public_bytes(serialization.Encoding.PEM), private


def free_ports() -> tuple[int, int]:
    """Find two loopback ports that are free now; another program may still take them first."""
    with closing(socket.socket()) as one, closing(socket.socket()) as two:
        one.bind((HOST, 0))
        two.bind((HOST, 0))
        return one.getsockname()[1], two.getsockname()[1]
