"""Fetch with real clients over TLS, and compare octet for octet with tests/support/awkward.py."""

import pytest

from tests.support import awkward
from tests.support.programs.mail_clients import CLIENTS, DESKTOP, WITHOUT_STLS, missing, stored_by
from tests.support.service import Service

_ALL = list(awkward.MESSAGES.values())
_BIG = awkward.big(50)


@pytest.fixture(scope="module")
def service():
    with Service(mail={"alice": _ALL, "bob": [_BIG]}, lmtp=False) as running:
        yield running


def _client(name):
    package = missing(name)
    if package:
        pytest.skip(f"needs the package {package}")
    return (CLIENTS | DESKTOP)[name]


@pytest.mark.parametrize(
    ("name", "mode"),
    [(n, mode) for n in CLIENTS for mode in ("tls", "stls") if mode == "tls" or n not in WITHOUT_STLS],
)
def test_client_fetches_awkward_messages(service, tmp_path, name, mode):
    found = _client(name)(service, "alice", mode, tmp_path, len(_ALL))
    for title, message in awkward.MESSAGES.items():
        wanted = stored_by(name, message)
        assert wanted is None or wanted in found, (
            title,
            wanted[:200],
            [f[:200] for f in found if len(f) == len(wanted)],
        )


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["tls", "stls"])
@pytest.mark.parametrize("name", DESKTOP)
def test_client_with_windows_fetches_awkward_messages(service, tmp_path, name, mode):
    test_client_fetches_awkward_messages(service, tmp_path, name, mode)


@pytest.mark.parametrize("name", CLIENTS)
def test_client_fetches_50_megabytes(service, tmp_path, name):
    found = _client(name)(service, "bob", "tls", tmp_path, 1)
    assert len(found) == 1
    assert found[0] == stored_by(name, _BIG) or pytest.fail(
        f"{len(found[0])} octets: {found[0][:200]} ... {found[0][-200:]}"
    )


def test_stls_carries_50_megabytes(service, tmp_path):
    assert CLIENTS["raw"](service, "bob", "stls", tmp_path, 1) == [stored_by("raw", _BIG)]


def test_expectation_is_the_rfcs():
    """Checks the expectation itself, by hand, from RFC 1939 sections 3 and 11."""
    assert awkward.sent(b"a\nb") == b"a\r\nb\r\n"
    assert awkward.sent(b"a\r\nb\r") == b"a\r\nb\r\r\n"
    assert awkward.sent(b"") == b""
    assert awkward.on_the_wire(b".\n..\nx.") == b"..\r\n...\r\nx.\r\n.\r\n"
    assert awkward.top(b"H: 1\n\n1\n2\n", 1) == b"H: 1\r\n\r\n1\r\n.\r\n"
    assert awkward.top(b"H: 1\n\n1\n2\n", 0) == b"H: 1\r\n\r\n.\r\n"
