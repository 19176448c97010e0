"""Test logins on a real service: tokens in auth's sandbox, delayed guesses, watched files."""

import base64
import json
import sys
import time

import bcrypt
import pytest
from popkernel.cli.common.sample_site import make_certificate

from tests.e2e.reload.test_reload import rewrite, write
from tests.support.bearer_tokens import EC, RESPONSES, RSA, SCOPE, key_set, settings, token
from tests.support.pop3 import RawPop3
from tests.support.service import Service, serve
from tests.support.waiting import wait_for

AUTH = b"-ERR [AUTH] wrong name or password\r\n"


def answer(service, secret, user="alice"):
    with RawPop3(service) as client:
        said = client.login(user, secret.decode())
        if said.startswith(b"+OK"):
            assert client.ask(b"QUIT").startswith(b"+OK")
        return said


def answer_to_token(service, secret, user="alice", mechanism=b"XOAUTH2"):
    """Send the token as initial response; return the reply and the reply to the error challenge."""
    with RawPop3(service) as client:
        said = client.ask(b"AUTH " + mechanism + b" " + RESPONSES[mechanism](secret, user))
        if said.startswith(b"+ "):
            assert json.loads(base64.b64decode(said[2:]))["scope"] == SCOPE
            said = client.ask(b"" if mechanism == b"XOAUTH2" else b"AQ==")
        if said.startswith(b"+OK"):
            assert client.ask(b"QUIT").startswith(b"+OK")
        return said


@pytest.fixture
def jwks(tmp_path):
    path = tmp_path / "jwks"
    path.write_bytes(key_set(EC, "one"))
    return path


def test_tokens_and_a_new_key_of_the_issuer(jwks):
    with Service(lmtp=False, mail=(), penalty_seconds=0, **settings(jwks)) as service:
        good = token(EC, "one")
        assert answer_to_token(service, good).startswith(b"+OK")
        assert answer_to_token(service, good, mechanism=b"OAUTHBEARER").startswith(b"+OK")
        assert answer_to_token(service, token(EC, "one", padding="x" * 5600)).startswith(b"+OK")
        bad = {
            "another's": (good, "bob"),
            "expired": (token(EC, "one", exp=time.time() - 61), "alice"),
            "of another issuer": (token(EC, "one", iss="x"), "alice"),
            "without the scope": (token(EC, "one", scope=""), "alice"),
            "of another key": (token(RSA, "one"), "alice"),
            "of one who is in no table": (token(EC, "one", email="dave"), "dave"),
            "none": (b"secret", "alice"),
        }
        for what, (secret, user) in bad.items():
            for mechanism in RESPONSES:
                assert answer_to_token(service, secret, user, mechanism) == AUTH, what
        assert answer(service, good[:240]) == AUTH
        assert answer(service, b"secret").startswith(b"+OK")  # passwords still work
        write(str(jwks), key_set(RSA, "two"))
        assert answer_to_token(service, good).startswith(b"+OK")  # not yet in force
        service.command("reload")
        assert answer_to_token(service, good) == AUTH
        assert answer_to_token(service, token(RSA, "two")).startswith(b"+OK")
        write(str(jwks), b'{"keys": []}')
        result = service.command("reload", check=False)
        assert result.returncode == 65 and f"{jwks}: no key for" in result.stderr
        assert answer_to_token(service, token(RSA, "two")).startswith(b"+OK")
        log = service.read_log()
        assert good.decode() not in log and service.actor("auth")["restarts"] == 0


def timed(service, secret, user):
    began = time.monotonic()
    return answer(service, secret, user), time.monotonic() - began


def test_guessing_waits_and_honest_users_do_not():
    with serve(mail=(), penalty_seconds=2) as service:
        assert answer(service, b"secret", "bob").startswith(b"+OK")
        waits = [timed(service, b"guess", f"user{n}") for n in range(9)]
        assert {said for said, _ in waits} == {AUTH}
        assert max(wait for _, wait in waits[:5]) < 1 < 1.9 < waits[-1][1] < 4
        clients = [service.keep(RawPop3(service)) for _ in range(12)]  # disconnecting would not help
        for n, client in enumerate(clients):
            client.send(b"USER user%d\r\nPASS guess\r\n" % (100 + n))
        said = [(client.line(), client.line())[1] for client in clients[1:]]
        assert sum(line.startswith(b"-ERR [SYS/TEMP]") for line in said) >= 10
        for client in clients:
            client.close()
        said, wait = timed(service, b"secret", "bob")  # a user who has logged in from here is not delayed
        assert said.startswith(b"+OK") and wait < 1


# A service that checks its files five times a second instead of once.
WATCHFUL = (
    "from popkernel.kernel.init import file_watching; file_watching._SECONDS = 0.2; from "
    "popkernel.cli.main import main; raise SystemExit(main())"
)


def test_watched_files():
    changed = bcrypt.hashpw(b"changed", bcrypt.gensalt(4)).decode()
    with serve(
        mail=(), command=[sys.executable, "-c", WATCHFUL], arguments=["--watch"], penalty_seconds=0
    ) as service:
        began = time.monotonic()
        rewrite(
            service.site.auth_table,
            lambda text: "\n".join(
                f"alice {changed}" if line.startswith("alice ") else line for line in text.split("\n")
            ),
        )
        service.wait_log("reloaded: 3 users")
        assert time.monotonic() - began < 5
        assert answer(service, b"changed").startswith(b"+OK")
        with open(service.site.auth_table, "rb") as file:
            good = file.read()
        write(service.site.auth_table, good + b"dave")
        service.wait_log("not reloaded, what is in force stays")
        assert answer(service, b"changed").startswith(b"+OK")
        certificate, key = make_certificate()
        write(service.site.auth_table, good)
        write(service.site.cert, certificate)
        write(service.site.key, key)
        log = service.wait_log("reloaded: 3 users", count=2)
        assert log.count("not reloaded") == 1  # once, however long the fault remains
        service.command("reload")
        service.wait_log("reloaded: 3 users", count=3)

        def processor():
            with open(f"/proc/{service.process.pid}/stat") as file:
                return sum(map(int, file.read().rpartition(")")[2].split()[11:13]))

        before, end = processor(), time.monotonic() + 1
        # in five checks, files reloaded by hand are not reloaded again
        wait_for(lambda: time.monotonic() > end)
        assert service.read_log().count("reloaded: 3 users") == 3
        assert processor() - before <= 1  # hundredths of a second
