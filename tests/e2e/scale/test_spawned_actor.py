"""A spawned maildir actor's first answer is printed, its memory when idle is bounded."""

import statistics

from benchmarks.spawn import measure


def test_spawned_actor():
    figures = measure(40)
    print("\n" + figures.lines())
    assert statistics.median(figures.private) <= 2.5 * 1024  # KiB
