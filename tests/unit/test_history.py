"""Test kernel/operator/history.py: what is kept, found, and forgotten."""

from types import SimpleNamespace

import pytest
from popkernel.kernel.operator import history as history_module
from popkernel.kernel.operator.history import History, Wanted
from popkernel.kernel.supervisor.main import Supervisor
from popkernel.proto import messages as m
from popkernel.proto.log_levels import INFO


def found(history, kind="session", most=100, **wanted):
    (*_, last) = history.find(kind, Wanted(**wanted), most)
    return [record.fields for record in last]


def over(user, address="192.0.2.7:40023", **more):
    return {"address": address, "session": "1.18", "why": "quit", "user": user, **more}


def test_a_search_finds_whole_names_only_newest_first():
    history = History(10)
    for user in ("alice", "malice", "bob", "alice"):
        history.event("session.over", over(user, n=len(history)))
    assert [row["n"] for row in found(history, user="alice")] == [3, 0]
    assert found(history, user="ali") == []
    assert [row["n"] for row in found(history, user="alice", most=1)] == [3]


def test_addresses_are_compared_whole():
    history = History(10)
    history.event("session.over", over("alice", "192.0.2.7:1"))
    history.event("session.over", over("bob", "192.0.2.77:1"))
    history.event("session.over", over("carol", "[2001:db8::1]:995"))
    history.event("login.repeated", {"address": "2001:db8::1", "times": 21})
    assert [row["user"] for row in found(history, address="192.0.2.7")] == ["alice"]
    assert [row["user"] for row in found(history, address="2001:db8::1")] == ["carol"]
    assert len(found(history, "login", address="2001:db8::1")) == 1


def test_the_oldest_records_of_a_kind_are_forgotten():
    history = History(3)
    history.event("login.failed", {"user": "alice"})
    for number in range(9):
        history.event("session.over", over("alice", n=number))
    assert [row["n"] for row in found(history, user="alice")] == [8, 7, 6]
    assert len(found(history, "login", user="alice")) == 1, "another kind's ring is its own"


def test_what_is_not_kept():
    history = History(0)
    history.event("session.over", over("alice"))
    assert len(history) == 0 and not history.on
    history = History(5)
    history.event("process.ended", {"process": "maildir.alice"})
    assert len(history) == 0 and history.on


def test_a_delivery_is_its_actor_s_user_s_and_its_recipient_s():
    history = History(5)
    history.event("delivery.refused", {"error": "no room"}, "maildir.alice")
    history.event("delivery.refused", {"recipient": "bob@example.org"}, "mda")
    assert found(history, "delivery", user="alice") == [{"error": "no room"}]
    assert len(found(history, "delivery", given="bob@example.org")) == 1
    assert found(history, "delivery", user="bob") == []


def test_hostile_fields():
    """Names that are not UTF-8, and more combinations of fields than are remembered."""
    history = History(5000)
    history.event("delivery.refused", {"error": "\udcff"}, "maildir.a\udcff")
    for number in range(1500):
        history.event("delivery.refused", {f"f{number}": "x"}, "maildir.alice")
    assert len(found(history, "delivery", user="alice", most=5000)) == 1500
    assert len(history._names) <= 1000


def test_a_long_search_gives_way():
    history = History(20_000)
    for _ in range(20_000):
        history.event("login.failed", {"user": "alice"})
    steps = list(history.find("login", Wanted(user="bob"), 5))
    assert steps[-1] == [] and len(steps) == 4


def test_what_a_session_removed_is_found_by_its_user():
    history = History(5)
    history.messages("alice", "1.5", ["a", "b"])
    assert found(history, "messages", user="alice") == [
        {"user": "alice", "session": "1.5", "uidls": ["a", "b"]}
    ]


def test_octets_are_bounded_too():
    """A maildir actor runs as a mail user: 100,000 mails with 12 KB of fields took 1 GB."""
    history = History(1000)
    for number in range(1000):
        history.event("delivery.done", {"sender": "\U00010000" * 2900, "octets": number}, "maildir.bob")
    for ring in ("delivery", "further delivery"):
        assert 0 < sum(map(len, history._rings[ring])) <= 512 * 1000
    assert found(history, "delivery", user="bob")[0]["octets"] == 999
    for number in range(1000):
        history.event("delivery.done", {"sender": "carol@example.org", "octets": number}, "maildir.alice")
    assert len(found(history, "delivery", user="alice", most=2000)) == 1000


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(history_module.time, "monotonic", lambda: now.seconds)
    return now


def test_a_user_with_many_sessions_pushes_out_no_other_s(clock):
    """One account that logged in again and again made all others' sessions forgotten within minutes."""
    history = History(200)
    history.event("session.over", over("alice"))
    history.messages("alice", "1.5", ["a"])
    history.event("delivery.done", {"mailbox": "alice"}, "maildir.alice")
    for number in range(1000):
        history.event("session.over", over("eve", n=number))
        history.messages("eve", "1.6", ["b"])
        history.event("delivery.done", {"mailbox": "eve"}, "maildir.eve")
        history.event("delivery.refused", {"recipient": "nobody@example.org"}, "mda")
    for kind in ("session", "messages", "delivery"):
        assert len(found(history, kind, user="alice")) == 1
    assert [row["n"] for row in found(history, user="eve", most=1000)] == [
        *range(999, 799, -1),
        *range(59, -1, -1),
    ]
    clock.seconds += 60
    history.event("session.over", over("eve", n=1000))
    assert len(history._rings["session"]) == 62, "the next minute"
    assert len(history) <= 6 * 200


def test_what_a_listener_invents_pushes_out_no_failed_login():
    """Only auth's checks and its grants cost something: a listener can say the rest as often as it likes."""
    history = History(10)
    history.event("login.failed", {"user": "alice", "reason": "in-use"}, granted=True)
    for _ in range(100):
        for reason in ("temp", "in-use", "no-maildrop"):
            history.event("login.failed", {"user": "bob", "reason": reason})
    assert len(found(history, "login", user="alice")) == 1 and len(found(history, "login", user="bob")) == 10


def test_refusals_without_a_check_push_out_no_failed_login():
    """They cost a client nothing: one address could make all others' forgotten within minutes."""
    history = History(10)
    history.event("login.failed", {"user": "alice", "reason": "password"})
    for _ in range(100):
        for reason in ("guard", "repeat"):
            history.event("login.failed", {"user": "alice", "reason": reason})
        history.event("tls.failed", {"address": "192.0.2.7:1", "reason": "old"})
        history.event("client.failed", {"address": "192.0.2.7:1", "reason": "APOP"})
    history.event("login.failed", {"user": "alice", "reason": "unknown"})
    reasons = [row["reason"] for row in found(history, "login", user="alice")]
    assert reasons[0] == "unknown" and reasons[-1] == "password", "the newest first"
    assert len(found(history, "login", user="alice", most=3)) == 3


def test_a_delivery_is_of_the_mailbox_whose_actor_says_so():
    """An actor could name another: `explain` would have told of mail that nobody delivered."""
    history = History(10)
    kernel = SimpleNamespace(history=history, actor_log=SimpleNamespace(said=lambda *_: True))
    said = m.LogEvent(INFO, "delivery.done", {"mailbox": "alice", "octets": 1})
    Supervisor._log_event(kernel, SimpleNamespace(name="maildir.eve", kind="maildir.{user}"), said, [])
    assert found(history, "delivery", user="alice") == []
    (fields,) = found(history, "delivery", user="eve")
    assert list(fields.items()) == [("mailbox", "eve"), ("octets", 1)]
