"""Test real clients over TLS with every login method that they and the server know, and what was typed."""

import contextlib

import pytest
from popkernel.kernel.client import Client

from tests.support import awkward
from tests.support.bearer_tokens import key_set, settings, token
from tests.support.programs.mail_clients import AUTHENTICATIONS, CLIENTS, WITHOUT_STLS, missing, stored_by
from tests.support.service import Service

MAIL = [awkward.head("one") + b"body\n", awkward.head("two") + b".body\n"]
ALL = [
    (client, how, mode)
    for client, ways in AUTHENTICATIONS.items()
    for how in ways
    for mode in ("tls", "stls")
    if mode == "tls" or client not in WITHOUT_STLS
]
BEST = "PLAIN"  # what clients choose: they use tokens only on request


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    jwks = tmp_path_factory.mktemp("oauth") / "jwks"
    jwks.write_bytes(key_set())
    with Service(mail=MAIL, lmtp=False, **settings(jwks)) as running:
        yield running


@pytest.mark.parametrize(("client", "how", "mode"), ALL)
def test_client(service, tmp_path, client, how, mode):
    package = missing(client)
    if package:
        pytest.skip(f"needs the package {package}")
    mechanism, _, at_once = how.partition(" at ")
    secret = token().decode() if "OAUTH" in mechanism else "secret"
    with Client(service.config.run_dir).follow(types=["LoginRequest", "Typed"]) as watched:
        found = CLIENTS[client](
            service, "alice", mode, tmp_path, len(MAIL), auth=AUTHENTICATIONS[client][how], secret=secret
        )
        assert sorted(found) == sorted(stored_by(client, message) for message in MAIL)
        frames = taken(watched)
    (login,) = [f for f in frames if f.name == "LoginRequest" and f.way == "in"]
    used = {"USER": "PASS", "any": "PASS" if client == "fetchmail" else BEST, "as itself": "PLAIN"}.get(
        mechanism, mechanism
    )
    assert (login.fields["mechanism"], login.fields["user"]) == (used, "alice")
    typed = [line for f in frames if f.name == "Typed" for line in f.fields["lines"]]
    assert (
        any(line.startswith(b"AUTH %b " % used.encode()) for line in typed) == bool(at_once)
        or client == "mpop"
    )


@pytest.mark.parametrize(
    ("client", "how"),
    [
        (client, how)
        for client, how, mode in ALL
        if mode == "tls" and how in ("USER", "PLAIN", "LOGIN", "XOAUTH2", "OAUTHBEARER")
    ],
)
def test_client_with_something_wrong(service, tmp_path, client, how):
    """The client fails without hanging, and the user is served afterwards."""
    if package := missing(client):
        pytest.skip(f"needs the package {package}")
    secret = token(email="bob").decode() if "OAUTH" in how else "wrong"
    found = []
    with contextlib.suppress(AssertionError):
        found = CLIENTS[client](
            service, "alice", "tls", tmp_path, len(MAIL), auth=AUTHENTICATIONS[client][how], secret=secret
        )
        assert client == "getmail", "exit code 0 although the login failed"  # its exit code is 0 in any case
    assert found == []
    service.pop3("alice").quit()


def taken(watched):
    found = []
    while (frame := watched.next_frame(0.3)) is not None:
        found.append(frame)
    return found
