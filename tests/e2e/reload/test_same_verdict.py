"""Check that `check`, a start and a reload find the same faults in the same words, and act alike."""

import datetime as dt
import json
import os
import re
import subprocess

import bcrypt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from popkernel.cli.common.sample_site import make_certificate

from tests.support.pop3 import RawPop3
from tests.support.service import POPKERNEL, Service

HASH = bcrypt.hashpw(b"secret", bcrypt.gensalt(4))
USERS = ("alice", "brought", "locked", "starred", "foreign", "costly")
AUTH = (
    b"alice "
    + HASH
    + b"\n# brought from Dovecot\nbrought {BLF-CRYPT}$2y"
    + HASH[3:]
    + b"\nlocked !"
    + HASH
    + b"\nstarred *\n"
    b"foreign {SSHA}abcdefgh\ncostly $2b$31" + HASH[6:] + b"\n"
)


def checked(service):
    """Return errors and warnings of `check`, as in the log of a start, and its exit code."""
    command = [*POPKERNEL, "check", "--json", "-f", service.toml]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    found = json.loads(ended.stdout)
    lines = []
    for kind in ("errors", "warnings"):
        rows = [(row, f"{row['path']}:{row['line']}" if row["line"] else row["path"]) for row in found[kind]]
        lines.append([f"{where}: {row['what']}; {row['mend']}" for row, where in rows])
    return (*lines, ended.returncode)


def write(path, data):
    with open(path, "wb") as file:
        file.write(data)


class WithTable(Service):
    """Start with another authorization table and a certificate that is valid from the day after tomorrow."""

    @property
    def toml(self):
        return self._toml

    @toml.setter
    def toml(self, path):
        write(self.site.auth_table, AUTH)
        chain, key = make_certificate(days=3, starts=2)
        write(self.site.cert, chain)
        write(self.site.key, key)
        self._toml = path


@pytest.fixture(scope="module")
def service():
    with WithTable(users=USERS, mail=(), lmtp=False) as running:
        yield running


def password(service, user, word=b"secret"):
    """Return the reply to a client that does not verify the certificate."""
    with RawPop3(service, verify=False) as client:
        client.send(b"USER " + user.encode() + b"\r\nPASS " + word + b"\r\n")
        client.line()
        return client.line()


def test_a_bad_hash_locks_out_its_user_alone_and_is_named(service):
    """Such a line must not stop the service; `!` and `*` lock a user."""
    errors, warnings, code = checked(service)
    assert (errors, code) == ([], 0)
    said = [line for line in warnings if service.site.auth_table in line]
    assert [line.partition(": ")[0].rpartition(":")[2] for line in said] == ["6", "7"]
    assert (
        "user foreign cannot log in: a {SSHA} hash" in said[0]
        and "user costly cannot log in: a check of bcrypt cost 31" in said[1]
    )
    for count in (1, 2):
        log = service.wait_log(f"{service.site.auth_table}: 2 users are locked", count=count)
        for line in said:
            assert log.count(line) == count, (line, log)
        assert "locked cannot" not in log and "starred cannot" not in log
        for user in ("alice", "brought"):
            assert password(service, user).startswith(b"+OK 0 "), user
        for user in ("locked", "starred", "foreign", "costly", "nobody"):
            assert (
                password(service, user)
                == password(service, "alice", b"wrong")
                == b"-ERR [AUTH] wrong name or password\r\n"
            ), user
        if count == 1:
            with open(service.site.auth_table, "ab") as file:
                file.write(b"# else auth would stay\n")
            service.command("reload")
    assert "abcdefgh" not in service.read_log() + str(warnings)


def test_the_ready_line_has_a_time(service):
    """As the other lines of the log on standard error."""
    (line,) = [line for line in service.read_log().splitlines() if "popkernel: ready: " in line]
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d popkernel: ready: pop3s ", line)


def test_a_certificate_of_the_future_or_the_past_is_served_with_one_sentence(service):
    """A machine may have no clock at boot: the start must not end with 78."""
    future = service.wait_log("the certificate starts on ").count("the certificate starts on ")
    assert future >= 1
    said = [line for line in checked(service)[1] if "the certificate starts on " in line]
    assert (
        len(said) == 1
        and said[0].endswith(" UTC only; set this machine's clock, or wait")
        and said[0] in service.read_log()
    )
    assert password(service, "alice").startswith(b"+OK")
    chain, key = make_certificate(days=-1, starts=-3)
    write(service.site.cert, chain)
    write(service.site.key, key)
    errors, warnings, code = checked(service)
    assert (errors, code) == ([], 0)
    (ended,) = [line for line in warnings if "the certificate ended on " in line]
    assert f"warning: {ended}\n" in service.command("reload").stderr
    service.wait_log(ended)
    assert password(service, "alice").startswith(b"+OK")


def lonely(curve):
    """Return a certificate whose authority is missing, and its key."""
    key = ec.generate_private_key(curve)
    name, authority = (
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)]) for text in ("localhost", "authority")
    )
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(authority)
        .public_key(key.public_key())
        .serial_number(5)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=9))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    ).sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    plain = serialization.NoEncryption()
    return (
        made.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain),
    )


def test_a_successful_reload_returns_check_s_warnings(service):
    """A client may be unable to connect any more, so "reloaded" alone is no answer."""
    kept = []
    for path, data in zip((service.site.cert, service.site.key), lonely(ec.SECP256K1()), strict=True):
        with open(path, "rb") as file:
            kept.append((path, file.read()))
        write(path, data)
    try:
        errors, warnings, code = checked(service)
        reload = service.command("reload")
    finally:
        for path, data in kept:
            write(path, data)
        service.command("reload")
    assert (errors, code, reload.stdout.splitlines()[0]) == ([], 0, "reloaded")
    said = [line.removeprefix("warning: ") for line in reload.stderr.splitlines()]
    ours = [line for line in warnings if line.startswith((service.site.cert, service.site.auth_table))]
    assert sorted(said) == sorted(ours)
    for part in (
        "no client can connect with",
        "has no intermediate certificate",
        "in 8 days; renew it",
        "user foreign cannot log in",
    ):
        assert len([line for line in said if part in line]) == 1, said


def test_a_certificate_that_signs_itself_is_a_note_of_check_alone(service):
    """Within a company or a test it is intended: a note, no warning."""
    write_pair = zip((service.site.cert, service.site.key), make_certificate(), strict=True)
    for path, data in write_pair:
        write(path, data)
    assert "self-signed" not in service.command("reload").stderr + str(checked(service)) + service.read_log()
    said = subprocess.run(
        [*POPKERNEL, "check", "-f", service.toml], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    assert (
        f"\n{service.site.cert}:1: the certificate is self-signed: clients must be told to trust it\n" in said
    )


@pytest.mark.root("the configuration file is root's")
def test_a_reload_refuses_an_unknown_user_in_mta_users(service):
    """The next start would be refused."""
    with open(service.toml) as file:
        before = file.read()
    write(service.toml, before.encode() + b'mta_users = ["_nobody-of-that-name"]\n')
    try:
        errors, _, code = checked(service)
        reload = service.command("reload", check=False)
    finally:
        write(service.toml, before.encode())
    assert errors == [reload.stderr.removeprefix("popkernel: ").rstrip()] and reload.returncode == code == 78
    assert "mta_users: there is no user _nobody-of-that-name; name the user that " in errors[0]


@pytest.mark.parametrize(
    ("which", "data", "said"),
    [
        ("cert", b"hello\n", "no certificate in PEM form; write the chain here"),
        ("cert", make_certificate()[0], "the private key does not belong to the certificate in"),
        ("key", b"hello\n", "no private key in PEM form"),
        ("auth_table", b"alice", "the last line has no newline"),
        ("user_table", b"alice 0:1:/x\n", "uid 0 is root's"),
        ("user_table", None, "No such file or directory"),
        ("auth_table", None, "No such file or directory"),
        ("key", None, "No such file or directory"),
    ],
)
def test_a_reload_uses_the_words_of_check(service, which, data, said):
    """The words name the key and the fault of a missing or broken chain."""
    path = getattr(service.site, which)
    with open(path, "rb") as file:
        before = file.read()
    os.rename(path, path + ".kept")
    if data is not None:
        write(path, data)
        os.chmod(path, 0o600)
    try:
        errors, _, code = checked(service)
        reload = service.command("reload", check=False)
    finally:
        os.rename(path + ".kept", path)
    assert before
    assert said in errors[0] and reload.returncode == code, (errors, code, reload)
    lines = [line.removeprefix("popkernel: ") for line in reload.stderr.splitlines()]
    assert lines == errors
    if data is None:
        flag = {"user_table": "-u", "auth_table": "-a", "key": "-k"}[which]
        assert f"{which} ({flag})" in errors[0]
    service.wait_log(errors[0])
    assert password(service, "alice").startswith(b"+OK"), "the old configuration stays"
