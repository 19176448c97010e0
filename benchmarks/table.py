"""Format the results table: what each line must reach, and how it did.

Pure, except `environment()`.
"""

# ruff: noqa: RUF001, RUF002 - the multiplication sign and the dash are intended
import datetime as dt
import os
import platform
import ssl
import statistics
import subprocess
from typing import NamedTuple

from benchmarks import peer

RATE, TIME, AT_MOST, BOUND = "rate", "time", "at most", "bound"
"""Meaning of `must`.

RATE: popkernel's figure over the peer's, larger is better. TIME: the peer's time over popkernel's. AT_MOST:
popkernel's over the peer's, at most. BOUND: popkernel's alone, at most.
"""


class Line(NamedTuple):
    """Describe one figure of a row.

    `must` and `reach` are in the sense of `kind`; None means no goal.
    """

    key: str
    work: str
    unit: str
    kind: str
    must: float | None
    reach: float | None
    goal: str = ""
    """The goal, if it is not a number."""


class Figure(NamedTuple):
    """Hold one measurement: the value in the line's unit, and processor milliseconds a session if known."""

    value: float
    cpu: float | None = None


LINES = (
    Line(
        "A",
        "login (cost 4), STAT, QUIT over TLS 1.3; 20 at a time, 200 users, no actor warm",
        "sessions/s",
        RATE,
        0.6,
        1.0,
    ),
    Line(
        "Ac",
        'as A, isolation = "connection": a listener process for each connection of ours',
        "sessions/s",
        RATE,
        None,
        None,
    ),
    Line("B", "the same beside the peer's high-security mode", "sessions/s", RATE, 2.5, 4.0),
    Line("Bc", "as B, the same", "sessions/s", RATE, None, None),
    Line("C", "as A, users seen again within a minute (actors warm)", "sessions/s", RATE, 1.8, 2.5),
    Line("D", "bcrypt cost 10, first login of 200 users", "sessions/s", RATE, 1.6, None, "both cores' limit"),
    Line("E", "bcrypt cost 10, later logins", "sessions/s", RATE, 15.0, None, "as C"),
    Line(
        "F1",
        "40 × 8 KB read each session over TLS, 20 at a time, a command a packet",
        "sessions/s",
        RATE,
        1.4,
        2.0,
    ),
    Line("F2", "the same, pipelined", "sessions/s", RATE, 1.7, 3.0),
    Line("G1", "40 × 10 MB over TLS, one client", "MB/s", RATE, 1.3, None, "AES-GCM's and the bus's limits"),
    Line("G2", "the same, plain", "MB/s", RATE, 1.3, None, "AES-GCM's and the bus's limits"),
    Line("H", "100,000 × 800 octets read pipelined over TLS, one client", "messages/s", RATE, 1.0, 1.5),
    Line("I1", "100,000 messages: session with the first STAT ever", "ms", TIME, 2.0, 4.0),
    Line("I2", "the same, popcache kept by our delivery", "ms", TIME, 10.0, 30.0),
    Line("I3", "STAT again, a new login each", "ms", TIME, 1.0, 3.0),
    Line(
        "J1",
        "10,000 idle sessions, a user each (the peer: 1,000): memory a session, 15 s after the last login",
        "MB",
        BOUND,
        0.25,
        0.06,
    ),
    Line("J2", "the same, 70 s later", "MB", BOUND, 0.25, 0.06),
    Line("K1", "round trip on an idle TLS session: NOOP, p50", "ms", AT_MOST, 1.5, 1.0),
    Line("K2", "NOOP, p99", "ms", AT_MOST, 2.0, 1.0),
    Line("K3", "LIST n, p50", "ms", AT_MOST, 1.5, 1.0),
    Line("K4", "LIST n, p99", "ms", AT_MOST, 2.0, 1.0),
    Line("L1", "start to ready with 10,000 users", "s", BOUND, 0.6, None),
    Line("L2", "an idle server's processor time a minute", "ms", BOUND, 50.0, None),
)
MARKS = {RATE: "≥ {:g} ×", TIME: "≥ {:g} × as fast", AT_MOST: "≤ {:g} ×", BOUND: "≤ {:g} {unit}"}


def ratio(line, theirs, ours):
    """Return the ratio in the sense of the line's kind; None without a figure of the peer."""
    if theirs is None or ours is None or not (theirs and ours):
        return None
    return theirs / ours if line.kind == TIME else ours / theirs


def verdict(line, theirs, ours):
    """Return "reach", "must", "SHORT" (less than it must), or "–" (nothing to compare with)."""
    value = ours if line.kind == BOUND else ratio(line, theirs, ours)
    if value is None or line.must is None:
        return "–"
    better = (lambda a, b: a >= b) if line.kind in {RATE, TIME} else (lambda a, b: a <= b)
    if line.reach is not None and better(value, line.reach):
        return "reach"
    return "must" if better(value, line.must) else "SHORT"


def number(value):
    """Format with three significant digits; None is a dash."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def median(figures):
    """Return the median of the values; None if there are none."""
    return statistics.median(f.value for f in figures) if figures else None


def median_cpu(figures):
    """Return the median of the known processor times; None if none is known."""
    known = [f.cpu for f in figures if f.cpu is not None]
    return statistics.median(known) if known else None


def goal(line, limit, text=""):
    """Format what must be reached."""
    return text or ("–" if limit is None else MARKS[line.kind].format(limit, unit=line.unit))


def row(line, theirs, ours):
    """Format one line of Markdown from two lists of figures."""
    a, b = median(theirs), median(ours)
    cells = [
        line.key,
        line.work,
        f"{number(a)}",
        f"{number(b)} {line.unit}",
        number(ratio(line, a, b)),
        goal(line, line.must),
    ]
    cells += [
        goal(line, line.reach, line.goal),
        verdict(line, a, b),
        number(median_cpu(theirs)),
        number(median_cpu(ours)),
    ]
    spread = f"{number(min(f.value for f in ours))} to {number(max(f.value for f in ours))}" if ours else "–"
    return "| " + " | ".join([*cells, spread]) + " |"


HEAD = (
    "row",
    "work",
    "peer",
    "ours",
    "ratio",
    "must",
    "reach for",
    "verdict",
    "CPU ms a session, peer",
    "CPU, ours",
    "ours, least to most",
)


def markdown(results):
    """Format the table of all measured lines.

    `results`: figures by (side, line key).
    """
    out = ["| " + " | ".join(HEAD) + " |", "|---" * len(HEAD) + "|"]
    for line in LINES:
        theirs, ours = results.get(("peer", line.key), []), results.get(("ours", line.key), [])
        if theirs or ours:
            out.append(row(line, theirs, ours))
    return "\n".join(out)


def _said(*argv):
    try:
        return subprocess.run(argv, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


def _release():
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "–")
    except OSError:
        return "–"


def environment():
    """Return machine and versions, by name."""
    with open("/proc/cpuinfo") as file:
        models = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    changed = "" if not _said("git", "-C", here, "status", "--porcelain") else ", with uncommitted changes"
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / (1 << 30)
    return {
        "date": dt.datetime.now(dt.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{os.cpu_count()} × {models[0] if models else platform.machine()}, {memory:.0f} GiB",
        "system": (
            f"{_release()}, {platform.system()} {platform.release()}, load "
            f"{' '.join(f'{x:.1f}' for x in os.getloadavg())} at the start"
        ),
        "python": f"{platform.python_version()} (ours)",
        "openssl": f"{ssl.OPENSSL_VERSION} (ours); {_said('openssl', 'version') or '–'} (the system's)",
        "peer": peer.described(),
        "ours": (_said("git", "-C", here, "rev-parse", "--short", "HEAD") or "no git") + changed,
    }


def document(facts, results, notes, extra):
    """Format the results file.

    `facts`: environment(); `notes`: sentences; `extra`: sections of text by title.
    """
    lines = ["# Benchmark beside Dovecot", "", *(f"- {name}: {value}" for name, value in facts.items()), ""]
    lines += [
        "Ratio: ours over the peer's, of medians; I: the peer's time over ours; K: our time over the peer's.",
        "",
    ]
    lines += [markdown(results), ""]
    lines += [f"- {note}" for note in notes]
    for title, text in extra.items():
        lines += ["", f"## {title}", "", text.rstrip()]
    return "\n".join(lines) + "\n"
