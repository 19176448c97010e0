"""Record during a crowd of sessions, with any filter, and replay without differences."""

import pytest
from popkernel.proto.trace.session_names import session_number

from tests.support.service import ROOT, Service
from tests.support.tracing.recorded_crowd import Recordings, crowd, differences

MAIL = [b"Subject: %d\n\nWords of mail.\n" % number for number in range(4)]
USERS = [f"user{number}" for number in range(30)]
PAYLOAD = ("--payload",) if ROOT else ()  # otherwise there is almost nothing of the mda to compare
SOME = {
    "user": ("--user", "user0", "--with-maildir", *PAYLOAD),
    "session": session_number("1.5"),
    "mda": ("mda", *PAYLOAD),
    "all": (),
}
ALL = {
    **SOME,
    "cut": ("--user", "user1", "--with-maildir"),
    "later": session_number("2.100"),
    "auth": ("auth",),
    "listener": ("listener",),
    "maildir": ("maildir.user2", "--with-maildir", *PAYLOAD),
    "kernel": ("kernel",),
}


@pytest.fixture(params=["shared", "connection"])
def service(request):
    with Service(
        mail=MAIL, users=USERS, listeners=2, park_seconds=1, warm_seconds=2, isolation=request.param
    ) as running:
        yield running


def check(service, folder, wishes, sessions, at_once, seed):
    recordings = Recordings(service, folder, wishes)
    done = crowd(service, USERS, sessions, at_once, seed=seed)
    assert done["good"] > sessions // 4, done
    results = recordings.results()
    assert not differences(results)
    compared = {name: sum(r.compared for r in found) for name, found in results.items()}
    assert compared["all"] > 5 * sessions, compared
    assert compared["user"] and compared["session"], compared
    assert not ROOT or compared["mda"] > sessions // 5, compared


def test_a_crowd(service, tmp_path):
    check(service, tmp_path, SOME, 100, 50, 1)


@pytest.mark.load
@pytest.mark.parametrize("seed", range(3))
def test_two_hundred_at_once(service, tmp_path, seed):
    check(service, tmp_path, ALL, 1500, 200, seed)
