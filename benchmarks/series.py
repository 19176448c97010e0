"""Measure row M: how popkernel grows with concurrent sessions, messages in a mailbox and users.

One run a point gives rate or time, and memory, as tables and plots. A step is "no worse than linear" if its
cost grew by no more than its size. A rate must not fall to less than half between two steps (a cliff).
"""

# ruff: noqa: RUF001 - the multiplication sign is intended
import os
import shutil
import time
from itertools import pairwise

from benchmarks import client
from benchmarks.mailsite import bodies, unread
from benchmarks.ours import Ours
from benchmarks.plots import svg
from benchmarks.rows import SETTLE, warm_up

SLACK = 1.25
"""A cost that grew by more than this beyond linear is worse than linear; less is noise."""


def growth(points):
    """Return the steps that grew worse than linear, as text.

    `points`: (size, cost) in rising order.
    """
    return [
        f"{a[0]:g} to {b[0]:g}: size × {b[0] / a[0]:.3g}, cost × {b[1] / a[1]:.3g}"
        for a, b in pairwise(points)
        if b[1] / a[1] > SLACK * b[0] / a[0]
    ]


def cliffs(points):
    """Return the steps at which a rate fell to less than half, as text."""
    return [
        f"{a[0]:g} to {b[0]:g}: {a[1]:.3g}/s to {b[1]:.3g}/s" for a, b in pairwise(points) if b[1] < a[1] / 2
    ]


def judged(points):
    """Judge rows of (size, rate or time, memory, is it a rate)."""
    first, second, is_rate = [(p[0], p[1]) for p in points], [(p[0], p[2]) for p in points], points[0][3]
    wrong = [f"rate fell, {x}" for x in cliffs(first)] if is_rate else [f"time, {x}" for x in growth(first)]
    return wrong + [f"memory, {x}" for x in growth(second)]


def concurrency(bench):
    """Measure sessions a second of warm users, and memory with that many held at once."""
    rows = []
    for count in (1, 10, 100, 1000):
        with Ours(bench.site, warm_memory="8G", login_seconds=600) as server:
            warm_up(server)
            users = max(200, count)
            client.run(server.tls, "STAT", "QUIT", sessions=users, users=users, conns=20)
            total = bench.much({1: 300}.get(count, 2000), {1: 50}.get(count, max(200, count)))
            rate = client.run(server.tls, "STAT", "QUIT", sessions=total, users=users, conns=count)["rate"]
        with (
            Ours(bench.site, login_seconds=600) as server,
            client.Held(server.tls, sessions=count, users=count) as held,
        ):
            time.sleep(SETTLE)
            memory = server.memory()
            held.release()
        rows.append((count, rate, memory / 1e6, True))
    return rows


def _room(path, messages):
    """Return whether the disk has room for twice these small files (4 KiB and an inode each)."""
    disk = os.statvfs(path)
    return disk.f_bavail * disk.f_frsize > 2 * 4096 * messages and disk.f_favail > 2 * messages


def _mailbox(site, texts):
    """Return milliseconds of the session with the first STAT and of later ones, and octets of memory."""
    shutil.rmtree(site.maildir("big0"), ignore_errors=True)
    site.__dict__.pop("big", None)  # else row G would use the removed mailbox
    site.fill("big0", texts)
    unread()
    one = {"user": "big0", "users": 1, "conns": 1}
    with Ours(site, login_seconds=600) as server:
        warm_up(server)
        first = client.run(server.tls, "STAT", "QUIT", sessions=1, **one)["session_p50"]
        time.sleep(1.0)
        again = client.run(server.tls, "STAT", "QUIT", sessions=5, **one)["session_p50"]
    # A second server, without warm actors of other users, which would hide the growth.
    with (
        Ours(site, login_seconds=600) as server,
        client.Held(server.tls, sessions=1, users=1, user="big0") as held,
    ):
        memory = server.memory()
        held.release()
    return first, again, memory


def mailboxes(bench, notes):
    """Measure first and later STATs of a mailbox, and the server's memory during the session."""
    site, rows, later = bench.site, [], []
    text = bodies(700, count=1)
    for messages in (100, 1000, 10_000, *(() if bench.quick else (100_000, 1_000_000))):
        if not _room(site.directory, messages):
            notes.append(f"M: {messages} messages left out: the disk has no room for them")
            break
        try:
            first, again, memory = _mailbox(site, text * messages)
        except client.LoadError as error:
            notes.append(f"M: {messages} messages: a run failed: {error}")
            break
        rows.append((messages, first, memory / 1e6, False))
        later.append((messages, again, memory / 1e6, False))
    shutil.rmtree(site.maildir("big0"), ignore_errors=True)
    return rows, later


def tables(bench):
    """Measure the time from start to ready and the memory of all processes, by users in the tables."""
    site, rows = bench.site, []
    for users in (100, 1000, 10_000, 100_000):
        names = [f"scale{i:06d}" for i in range(users)]
        auth = site.auth_table(4, names, os.path.join(site.directory, "auth-scale"))
        table = os.path.join(site.directory, "users-scale")
        with open(table, "w") as file:
            file.writelines(f"{name} {site.uid}:{site.gid}:{site.maildir(name)}\n" for name in names)
        with Ours(site, tables=(auth, table)) as server:
            rows.append((users, server.took, server.memory() / 1e6, False))
    return rows


def _markdown(head, rows):
    out = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return "\n".join(
        out
        + ["| " + " | ".join(f"{x:,.0f}" if x >= 100 else f"{x:.3g}" for x in row[:3]) + " |" for row in rows]
    )


def measure(bench, plots, notes):
    """Measure all three; write the plots, add judgements to the notes, return the section's text."""
    boxes, later = mailboxes(bench, notes)
    parts = (
        ("Sessions at a time", "sessions/s", concurrency(bench)),
        ("Messages in a mailbox, first STAT", "ms", boxes),
        ("Messages in a mailbox, later STATs", "ms", later),
        ("Users in the tables, start to ready", "s", tables(bench)),
    )
    os.makedirs(plots, exist_ok=True)
    out = []
    for title, unit, rows in parts:
        name = title.lower().replace(",", "").replace(" ", "-")
        with open(os.path.join(plots, name + ".svg"), "w") as file:
            series = {
                unit: [row[:2] for row in rows],
                "memory of all processes, MB": [(row[0], row[2]) for row in rows],
            }
            file.write(svg(title, title.partition(",")[0].lower(), series))
        wrong = judged(rows)
        notes.append(
            f"M, {title.lower()}: " + ("no worse than linear, no cliff" if not wrong else "; ".join(wrong))
        )
        figures = _markdown(("size", unit, "memory of all processes, MB"), rows)
        out += [f"### {title}", "", figures, "", f"![{title}](plots/{name}.svg)", ""]
    return "\n".join(out)
