"""Measure each row: one function a row, called with the side to measure, returns figures by line key.

Every function starts its own server, so that no row finds another's data in memory, and warms it up with
users (or sessions) that are not measured. Both sides get the same load from the same client.
"""

import contextlib
import os
import time
from typing import NamedTuple

from benchmarks import client
from benchmarks.ours import Ours
from benchmarks.peer import Peer
from benchmarks.table import Figure

MEASURED = 200
"""Users the load goes round."""
SETTLE = 0.3
"""Seconds after a load until processor time is read, so that what ended is counted."""
PEER_HELD = 1000
"""Number of the peer's idle sessions.

It shares no processes between them, so 1,000 show what one takes; this machine cannot hold 10,000.
"""
RETRIEVE = ("STAT", "RETR*.", "QUIT")


class Bench(NamedTuple):
    """Hold what the rows share: the site, and whether they are to be short."""

    site: object
    quick: bool

    def start(self, side, *, secure=False, cost=4, **settings):
        """Start the server of a side; `settings` are for popkernel alone."""
        if side == "peer":
            return Peer(self.site, cost=cost, secure=secure)
        return Ours(self.site, cost=cost, **settings)

    def much(self, whole, quick):
        """Return the amount for a whole or a quick run."""
        return quick if self.quick else whole


def warm_up(server):
    """Run sessions of users that are not measured, to load code and start processes."""
    client.run(server.tls, "STAT", "QUIT", sessions=40, users=40, first=MEASURED)
    time.sleep(SETTLE)


def timed(server, *steps, port=None, **options):
    """Return the client's figures, and the server's processor seconds for them."""
    before = server.cpu()
    figures = client.run(port or server.tls, *steps, **options)
    time.sleep(SETTLE)
    return figures, server.cpu() - before


def figure(got, name="rate", messages=0):
    """Return a figure of one timed load, with processor milliseconds a session.

    Raises LoadError if a session did not read `messages`.
    """
    figures, cpu = got
    if messages and figures["messages"] != messages * figures["ok"]:
        raise client.LoadError(
            f"{figures['messages']:.0f} messages were read in {figures['ok']:.0f} sessions of {messages} each"
        )
    return Figure(figures[name], 1000 * cpu / figures["ok"])


def cold(bench, side, *, secure=False, key="A"):
    """A: log each user in once, on several fresh servers; popkernel with isolation = "connection" too."""
    if side == "peer":
        once = first_visits(bench, side, secure=secure)
        return {key: once, f"{key}c": once}
    return {key: first_visits(bench, side), f"{key}c": first_visits(bench, side, isolation="connection")}


def first_visits(bench, side, **options):
    """Return sessions a second over all servers."""
    wall = cpu = sessions = 0
    for _ in range(bench.much(3, 1)):
        with bench.start(side, **options) as server:
            warm_up(server)
            figures, seconds = timed(server, "STAT", "QUIT", sessions=MEASURED, users=MEASURED)
        wall, cpu, sessions = wall + figures["wall"], cpu + seconds, sessions + figures["ok"]
    return Figure(sessions / wall, 1000 * cpu / sessions)


def cold_secure(bench, side):
    """B: as A, the peer in high-security mode."""
    return cold(bench, side, secure=True, key="B")


def warm(bench, side):
    """C: log in users seen a moment ago."""
    with bench.start(side) as server:
        client.run(server.tls, "STAT", "QUIT", sessions=MEASURED, users=MEASURED)
        return {"C": figure(timed(server, "STAT", "QUIT", sessions=bench.much(2000, 400), users=MEASURED))}


def hashing(bench, side):
    """D, E: measure first and later logins where a password check costs 60 ms.

    popkernel gets more later ones: 200 would be over too soon.
    """
    users = bench.much(MEASURED, 40)
    with bench.start(side, cost=10) as server:
        client.run(server.tls, "STAT", "QUIT", sessions=4, users=4, first=MEASURED)
        first = timed(server, "STAT", "QUIT", sessions=users, users=users)
        later = timed(server, "STAT", "QUIT", sessions=users if side == "peer" else 5 * users, users=users)
    return {"D": figure(first), "E": figure(later)}


def reading(bench, side):
    """F: read whole mailboxes, a command at a time and pipelined."""
    with bench.start(side) as server:
        client.run(server.tls, *RETRIEVE, sessions=MEASURED, users=MEASURED)
        sessions = bench.much(1000, 200)
        dialogue = timed(server, *RETRIEVE, sessions=sessions, users=MEASURED)
        pipelined = timed(server, *RETRIEVE, sessions=sessions, users=MEASURED, pipelined=True)
    return {"F1": figure(dialogue, messages=40), "F2": figure(pipelined, messages=40)}


def large(bench, side):
    """G: read large messages, with TLS and without."""
    one = {"user": bench.site.big, "users": 1, "conns": 1}
    with bench.start(side) as server:
        client.run(server.tls, *RETRIEVE, sessions=1, **one)
        ciphered = timed(server, *RETRIEVE, sessions=2, **one)
        client.run(server.plain, *RETRIEVE, sessions=1, tls=False, **one)
        plain = timed(server, *RETRIEVE, port=server.plain, sessions=2, tls=False, **one)
    each = bench.site.big_messages
    return {"G1": figure(ciphered, "mbs", each), "G2": figure(plain, "mbs", each)}


def small(bench, side):
    """H: read many small messages, all requested at once."""
    one = {"user": bench.site.many, "users": 1, "conns": 1, "pipelined": True}
    with bench.start(side) as server:
        client.run(server.tls, *RETRIEVE, sessions=1, **one)
        return {"H": figure(timed(server, *RETRIEVE, sessions=1, **one), "msgs", bench.site.many_messages)}


def listing(bench, side):
    """I: list a large unread mailbox, without and with the popcache of a delivery, and list it again.

    Each on a fresh server.
    """
    one = {"user": bench.site.many, "users": 1, "conns": 1}

    def first(*, popcache):
        bench.site.reset_many(popcache=popcache)
        with bench.start(side) as server:
            warm_up(server)
            got = figure(timed(server, "STAT", "QUIT", sessions=1, **one), "session_p50")
            time.sleep(1.0)
            again = figure(timed(server, "STAT", "QUIT", sessions=9, **one), "session_p50")
        return got, again

    none, again = first(popcache=False)
    if side == "peer":
        return {"I1": none, "I2": none, "I3": again}
    return {"I1": none, "I2": first(popcache=True)[0], "I3": again}


def idle_sessions(bench, side):
    """J: hold many idle sessions at once; then each sends NOOP and QUIT and must be answered."""
    sessions = min(bench.site.users, PEER_HELD) if side == "peer" else bench.site.users
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(bench.start(side, listeners=2, login_seconds=600, idle_seconds=3600))
        held = stack.enter_context(client.Held(server.tls, sessions=sessions, users=sessions))
        time.sleep(bench.much(15, 3))
        soon = server.memory()
        late = soon
        if side == "ours":  # the peer parks nothing
            time.sleep(bench.much(70, 35))
            late = server.memory()
        held.release()
    return {"J1": Figure(soon / sessions / 1e6), "J2": Figure(late / sessions / 1e6)}


def round_trip(bench, side):
    """K: send one command at a time on one session."""
    count = bench.much(5000, 1000)
    one = {"sessions": 1, "conns": 1, "users": 1, "reps": count}
    out = {}
    with bench.start(side) as server:
        warm_up(server)
        for step, p50, p99 in (("@NOOP", "K1", "K2"), ("@LIST %", "K3", "K4")):
            client.run(server.tls, "STAT", step, "QUIT", **one)
            figures = client.run(server.tls, "STAT", step, "QUIT", **one)
            out |= {p50: Figure(figures["command_p50"]), p99: Figure(figures["command_p99"])}
    return out


def starting(bench, side):
    """L: measure a start, and what an idle server costs.

    The peer's seconds end at its greeting.
    """
    with bench.start(side) as server:
        took = server.took
        time.sleep(3.0)  # a start goes on for a moment: processes forked ahead, garbage collection
        seconds = bench.much(20, 10) if side == "ours" else 10  # the peer has no goal here
        before = server.cpu()
        time.sleep(seconds)
        idle = server.cpu() - before
    return {"L1": Figure(took), "L2": Figure(idle * 60000 / seconds)}


MEASURES = {
    ("A",): cold,
    ("B",): cold_secure,
    ("C",): warm,
    ("D", "E"): hashing,
    ("F",): reading,
    ("G",): large,
    ("H",): small,
    ("I",): listing,
    ("J",): idle_sessions,
    ("K",): round_trip,
    ("L",): starting,
}
NEED_NO_WARMING = {("J",), ("L",)}
"""Rows that keep their first pair.

Held memory and idle time need no warm-up, and a pair takes minutes.
"""

TWICE = {("A",), ("C",)}
"""Rows with twice as many pairs.

They take seconds, in which the speed of a small virtual machine changes most.
"""


def pairs(bench, rows, sides, rounds):
    """Measure the rows in turn, sides alternating.

    Yields (row letters, side, figures by line key, counted, error text).
    """
    for letters, measure in MEASURES.items():
        if not set(letters) & set(rows):
            continue
        dropped = 0 if bench.quick or letters in NEED_NO_WARMING else 1
        for turn in range(rounds * (1 if bench.quick or letters not in TWICE else 2) + dropped):
            for side in sides:
                os.sync()
                try:
                    figures, error = measure(bench, side), ""
                except Exception as failure:
                    figures, error = {}, " ".join(f"{type(failure).__name__}: {failure}".split())[:600]
                yield letters, side, figures, turn >= dropped, error
