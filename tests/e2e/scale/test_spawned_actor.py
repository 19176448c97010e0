"""Print a spawned maildir actor's time to its first answer; bound its memory when idle."""

import statistics

from popkernel.cli.status import memory
from popkernel.kernel.spawner.immortal_objects import missing, running

from benchmarks.spawn import measure
from tests.support.service import serve
from tests.support.waiting import wait_for

MOST = 2.5 if missing(running()) else {(3, 12): 1.35, (3, 13): 1.2, (3, 14): 1.6}[running().version]  # MiB


def test_spawned_actor():
    figures = measure(40)
    print("\n" + figures.lines())
    assert statistics.median(figures.private) <= MOST * 1024


def test_the_trial_measures_what_a_polling_user_s_actor_takes():
    """The figure that the budget of warm actors is counted with."""
    users = [f"user{n:02d}" for n in range(20)]
    with serve(users=users, mail=[b"Subject: 1\n\nx\n"]) as service:
        for user in users:
            client = service.pop3(user)
            client.uidl(), client.retr(1), client.quit()
        status = service.status()
        rows = [a for a in status["actors"] if a["name"].startswith("maildir.")]
        real = statistics.median(memory(row["pid"])["private_kib"] or 0 for row in rows) * 1024
        tried = status["warm"]["memory_actor"]
        print(f"\nan idle actor: {real / 1e6:.2f} MB, on trial {tried / 1e6:.2f} MB")
        assert abs(tried - real) < real / 8
        assert status["warm"]["actors"] == 20 and status["warm"]["memory_used"] == 20 * tried


def test_a_large_mailbox_counts_with_what_it_took():
    with serve(users=("alice", "bob"), mail={"alice": [b"x\n"] * 10_000}) as service:
        for user in ("alice", "bob"):
            service.pop3(user, timeout=60).quit()
        warm = wait_for(lambda: service.status()["warm"], until=lambda warm: warm["actors"] == 2)
        pid = service.actor("maildir.alice")["pid"]
        grown = warm["memory_used"] - 2 * warm["memory_actor"]
        real = (memory(pid)["private_kib"] or 0) * 1024 - warm["memory_actor"]
        print(f"\n10,000 messages: grown by {real / 1e6:.2f} MB, counted {grown / 1e6:.2f}")
        assert 1 << 20 <= real <= grown + (1 << 19)
