"""One verdict: what `check` says of an input, a start and a reload say too, in the same words, and they act on it alike."""

import json
import subprocess

import bcrypt
import pytest

from tests.e2e.awkward import RawClient
from tests.service import POPKERNEL, Service

HASH = bcrypt.hashpw(b"secret", bcrypt.gensalt(4))
USERS = ("alice", "brought", "locked", "starred", "foreign", "costly")
AUTH = (
    b"alice " + HASH + b"\n# brought from Dovecot\nbrought {BLF-CRYPT}$2y" + HASH[3:] + b"\nlocked !" + HASH + b"\nstarred *\n"
    b"foreign {SSHA}abcdefgh\ncostly $2b$31" + HASH[6:] + b"\n"
)


def checked(service):
    """Errors and warnings of `check`, each as it stands in the log of a start, and its exit code."""
    command = [*POPKERNEL, "check", "--json", "-f", service.toml]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    found = json.loads(ended.stdout)
    lines = []
    for kind in ("errors", "warnings"):
        rows = [(row, f"{row['path']}:{row['line']}" if row["line"] else row["path"]) for row in found[kind]]
        lines.append([f"{where}: {row['what']}; {row['mend']}" for row, where in rows])
    return (*lines, ended.returncode)


class WithTable(Service):
    """A service that starts with another authorization table than it was made with."""

    @property
    def toml(self):
        return self._toml

    @toml.setter
    def toml(self, path):
        with open(self.site.auth_table, "wb") as file:
            file.write(AUTH)
        self._toml = path


@pytest.fixture(scope="module")
def service():
    with WithTable(users=USERS, mail=(), lmtp=False) as running:
        yield running


def password(service, user, word=b"secret"):
    with RawClient(service) as client:
        client.ask(b"USER " + user.encode())
        return client.ask(b"PASS " + word)


def test_one_hash_that_is_none_shuts_its_user_out_alone_and_is_named(service):
    """One such line among 10,000 good ones kept the whole service from starting; `!` and `*` are how one locks a user."""
    errors, warnings, code = checked(service)
    assert (errors, code) == ([], 0)
    said = [line for line in warnings if service.site.auth_table in line]
    assert [line.partition(": ")[0].rpartition(":")[2] for line in said] == ["6", "7"]
    assert "user foreign cannot log in: a {SSHA} hash" in said[0] and "user costly cannot log in: a check of bcrypt cost 31" in said[1]
    for count in (1, 2):
        log = service.wait_log(f"{service.site.auth_table}: 2 users are locked", count=count)
        for line in said:
            assert log.count(line) == count, (line, log)
        assert "locked cannot" not in log and "starred cannot" not in log
        for user in ("alice", "brought"):
            assert password(service, user).startswith(b"+OK 0 "), user
        for user in ("locked", "starred", "foreign", "costly", "nobody"):
            assert password(service, user) == password(service, "alice", b"wrong") == b"-ERR [AUTH] wrong name or password\r\n", user
        if count == 1:
            service.command("reload")
    assert "abcdefgh" not in service.read_log() + str(warnings)
