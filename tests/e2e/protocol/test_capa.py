"""Test that CAPA is true on real services of several configurations, in each state."""

import pytest

from tests.support import awkward
from tests.support.bearer_tokens import key_set, settings
from tests.support.capabilities import check, listed
from tests.support.pop3 import RawPop3
from tests.support.service import Service
from tests.support.waiting import wait_for

MAIL = [awkward.head("one") + b"body\n"]
CONFIGURATIONS = {
    "as it comes": {},
    "open": {"allow_plaintext": True, "expire_days": 0},
    "tokens, delays and days": {"login_delay": 1, "expire_days": 30, "oauth": True},
    "two listeners": {"listeners": 2, "tls_min": "1.2"},
}  # fmt: skip


@pytest.fixture(scope="module", params=CONFIGURATIONS)
def service(request, tmp_path_factory):
    options = dict(CONFIGURATIONS[request.param])
    if options.pop("oauth", False):
        jwks = tmp_path_factory.mktemp("oauth") / "jwks"
        jwks.write_bytes(key_set())
        options |= settings(jwks)
    with Service(users=[f"user{n}" for n in range(60)], mail=MAIL, lmtp=False, **options) as running:
        running.used = iter(range(60))
        yield running


@pytest.mark.parametrize("logged_in", [False, True])
@pytest.mark.parametrize("tls", ["tls", "stls", ""])
def test_capa_tells_the_truth(service, tls, logged_in):
    config = service.config
    if logged_in and not tls and not config.allow_plaintext:
        with RawPop3(service, "") as client:
            assert not {b"USER", b"SASL"} & set(listed(client))
        return
    clients = []

    def fresh():
        """Log in as another user each time: login_delay allows none twice at once."""
        while clients:
            clients.pop().close()
        # without QUIT the session lasts until its listener sees the end; another may take the next client
        # first
        if logged_in:
            wait_for(lambda: service.status(), until=lambda status: not status["leases"])
        user = (
            f"user{next(service.used)}" if logged_in and config.login_delay else "user0" if logged_in else ""
        )
        clients.append(RawPop3(service, tls, user=user))
        return clients[-1]

    try:
        if config.login_delay and logged_in:
            found = listed(fresh())
            assert (
                found[b"LOGIN-DELAY"] == b"1"
                and found[b"EXPIRE"] == b"30"
                and not {b"USER", b"SASL", b"STLS"} & set(found)
            )
        else:
            check(
                fresh, logged_in=logged_in, expire=config.expire_days, login_delay=config.login_delay,
                version=service.status()["version"].encode(),
            )  # fmt: skip
    finally:
        for client in clients:
            client.close()
