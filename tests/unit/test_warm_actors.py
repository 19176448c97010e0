"""Test what is logged about warm actors, and how many go while memory is short."""

from types import SimpleNamespace

import pytest
from popkernel.kernel.config.keys import Config
from popkernel.kernel.decisions.leases import Core, Settings
from popkernel.kernel.init.singleton_settings import spawner_changes
from popkernel.kernel.replay.loop import ReplayLoop
from popkernel.kernel.supervisor.warm_actors import WarmActors
from popkernel.proto import messages as m
from popkernel.proto.files.tables import MailUser

from tests.support.messages import login_started
from tests.support.registry import LogRecorder

OCTETS = 2_000_000


@pytest.fixture
def warm():
    users = {f"u{n}": MailUser(1000, 1000, f"/mail/u{n}") for n in range(10)}
    core = Core(users, Settings(warm_octets=10 * OCTETS))
    loop, said, done = ReplayLoop(), LogRecorder(), []
    loop.now = 100.0
    made = WarmActors(loop, core, said, done.extend)
    made.image_tried("spawner", m.ImageTried(OCTETS, 14_000), [])
    for number, user in enumerate(users, 1):
        core.awaits("listener.0", login_started(number))
        core.granted(m.LoginGranted("listener.0", number, user), 0.0)
        core.closed(f"maildir.{user}", m.SessionClosed(number, 0, 0, 0, []), 0.0)
    return SimpleNamespace(it=made, core=core, loop=loop, said=said, done=done)


def test_the_budget_is_told(warm):
    assert warm.it.memory == "19 MiB"
    assert warm.said == ["warm actors: about 10 (19 MiB)"]
    assert warm.it.status() == {
        "actors": 10,
        "holds": 10,
        "memory": 10 * OCTETS,
        "memory_used": 10 * OCTETS,
        "memory_actor": OCTETS,
    }


def test_half_of_them_go_and_the_log_says_so_at_most_each_ten_seconds(warm):
    for left in (5, 2, 1, 0):
        warm.it.let_go()
        assert len(warm.core.idle) == left
        warm.loop.now += 2.0
    warm.it.let_go()
    assert warm.said[1:] == ["memory is short: 5 warm actors let go, 5 left"]
    assert [e.to for e in warm.done] == [f"maildir.u{n}" for n in range(10)]
    warm.loop.now += 10.0
    warm.it.let_go()
    assert len(warm.said) == 2, "there is none to go"


def test_what_went_meanwhile_is_in_the_next_line(warm):
    warm.it.let_go()
    warm.loop.now += 9.0
    warm.it.let_go()
    warm.loop.now += 1.0
    warm.it.let_go()
    assert warm.said[2:] == ["memory is short: 4 warm actors let go, 1 left"]


BASE = Config(auth_table="/a", user_table="/u", cert="/c", key="/k", hostname="localhost")


@pytest.mark.parametrize(
    ("changed", "spawner", "mail", "users"),
    [
        ({}, False, False, []),
        ({"idle_seconds": 700, "cert": "/other"}, False, False, []),
        ({"set_seen": False}, True, True, []),
        ({"quota": "5S"}, True, True, []),
        ({"quota_users": ("bob=6S", "carol=1S", "alice=5S")}, True, False, ["bob", "carol"]),
        ({"quota_users": ()}, True, False, ["alice", "bob"]),
        ({"quota_users": ("alice=5S", "bob=5S", "x" * 65 + "=1S")}, True, True, []),
        ({"quota_users": tuple(f"u{n}=1S" for n in range(200))}, True, True, []),
    ],
)
def test_what_a_reload_changes_for_maildir_actors(changed, spawner, mail, users):
    before = Config(**{**vars(BASE), "quota_users": ("alice=5S", "bob=5S")})
    after = Config(**{**vars(before), **changed})
    assert spawner_changes(before, after) == (spawner, mail, users)
