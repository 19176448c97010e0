"""Measure popkernel beside Dovecot on this machine: `python -m benchmarks` (`make bench`).

benchmarks/README.md describes the rows. A whole run is kept in benchmarks/results.md with its plots; a
partial one (--rows, --quick, no peer) goes to build/, so that it does not replace the whole.
"""

import argparse
import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from benchmarks import client, peer, series, table
from benchmarks.arguments import positive
from benchmarks.mailsite import Site
from benchmarks.rows import Bench, pairs

HERE = os.path.dirname(os.path.abspath(__file__))
REPOSITORY = os.path.dirname(HERE)
ROWS = "ABCDEFGHIJKLM"
EXTRAS = ("spawn", "lmtp")
EXTRA_SECONDS = 1800


def _rows(value):
    rows = value.upper().replace(",", "")
    if not rows or set(rows) - set(ROWS):
        raise argparse.ArgumentTypeError(f"{value!r}: give letters from A to {ROWS[-1]}, as A,C,F")
    return rows


def arguments(argv=None):
    """Parse the command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__, formatter_class=raw)
    add = parser.add_argument
    add("--rows", type=_rows, default=ROWS, metavar="A,C,F", help="which rows (default all)")
    add(
        "--rounds",
        type=positive,
        default=5,
        metavar="N",
        help="pairs that count, after one that does not; A, C: twice that (default 5)",
    )
    add(
        "--quick",
        action="store_true",
        help="less of everything, and no pair dropped: to try the benchmark, not the servers",
    )
    add(
        "--keep",
        metavar="DIR",
        help="make the mail in this new directory and leave it (default: a temporary one)",
    )
    add("--no-peer", action="store_true", help="ours alone")
    add(
        "--extra",
        choices=EXTRAS,
        action="append",
        help="benchmarks/NAME.py too; repeatable (default in a whole run: all)",
    )
    add("--results", metavar="FILE", help="where to keep the table (default: see above)")
    return parser.parse_args(argv)


def destination(options, why_alone):
    """Return the results file and the plots' directory."""
    whole = options.rows == ROWS and not options.quick and not why_alone
    path = os.path.abspath(
        options.results or os.path.join(HERE if whole else os.path.join(REPOSITORY, "build"), "results.md")
    )
    return path, os.path.join(os.path.dirname(path), "plots")


def extras(options):
    """Return the further benchmarks to run: those asked for, or in a whole run all that exist."""
    if options.extra is not None:
        return options.extra
    if options.rows != ROWS or options.quick:
        return []
    return [name for name in EXTRAS if os.path.exists(os.path.join(HERE, name + ".py"))]


def said_of(options, why_alone):
    """Return the notes that a reader of the results needs."""
    dropped = "" if options.quick else ", after one that is not counted (J, L: none)"
    twice = (
        "" if options.quick or not set(options.rows) & set("AC") else f" ({2 * options.rounds} in A and C)"
    )
    notes = [f"Rounds: {options.rounds} pairs{twice}, the peer first in each{dropped}; medians."]
    if why_alone:
        notes.append(f"No peer: {why_alone}; our figures alone.")
    if options.quick:
        notes.append(
            "--quick: less mail, fewer users and sessions than the rows say; not to be compared with "
            "whole runs."
        )
    return notes


def run_extra(name):
    """Run a further benchmark and return its output; a failure is reported and ends nothing else."""
    command = [sys.executable, "-m", f"benchmarks.{name}"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=REPOSITORY, timeout=EXTRA_SECONDS
        )
    except subprocess.TimeoutExpired:
        return f"not done within {EXTRA_SECONDS} s"
    if done.returncode:
        return f"failed (exit code {done.returncode}):\n\n    " + done.stderr.strip().replace("\n", "\n    ")
    return done.stdout


class Keeper:
    """Keep the results so far, written after every pair so that an interrupted run loses nothing."""

    def __init__(self, path, notes):
        self.path, self.notes = path, notes
        self.facts, self.results, self.extra = table.environment(), {}, {}
        self.facts["command"] = "python -m benchmarks " + " ".join(sys.argv[1:])
        os.makedirs(os.path.dirname(path), exist_ok=True)

    def add(self, side, figures):
        """Add the figures of one run of a row."""
        for key, figure in figures.items():
            self.results.setdefault((side, key), []).append(figure)
        self.write()

    def write(self):
        """Write the results file."""
        with open(self.path, "w") as file:
            file.write(table.document(self.facts, self.results, self.notes, self.extra))


def measure(options, bench, keeper, sides, plots):
    """Measure the rows that were asked for."""
    for letters, side, figures, counted, error in pairs(bench, options.rows, sides, options.rounds):
        name = "".join(letters)
        said = "  ".join(f"{key} {table.number(figure.value)}" for key, figure in figures.items())
        print(
            (
                f"{time.strftime('%H:%M:%S')} {name:2} {side}: "
                f"{error or said}{'' if counted else '  (not counted)'}"
            ),
            flush=True,
        )
        if error:
            keeper.notes.append(f"{name}, {side}: a run failed: {error}")
        if counted:
            keeper.add(side, figures)
    if "M" in options.rows:
        try:
            keeper.extra["M. How it grows"] = series.measure(bench, plots, keeper.notes)
        except Exception as error:
            keeper.notes.append(f"M: failed: {type(error).__name__}: {error}")
    for name in extras(options):
        keeper.extra[f"benchmarks/{name}.py"] = run_extra(name)
        keeper.write()


def main(argv=None):
    """Measure, print and keep the results.

    Exit code 1 if a run failed or a line is short of what it must reach.
    """
    options = arguments(argv)
    # end what was started
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    why_alone = "the peer was not asked for" if options.no_peer else peer.missing()
    path, plots = destination(options, why_alone)
    notes = said_of(options, why_alone)
    try:
        client.build()
    except client.LoadError as error:
        sys.exit(f"benchmarks: {error}")
    keeper = Keeper(path, notes)
    with contextlib.ExitStack() as stack:
        directory = os.path.abspath(options.keep) if options.keep else tempfile.mkdtemp(prefix="pkbench")
        if not options.keep:
            stack.callback(shutil.rmtree, directory, ignore_errors=True)
        print(f"mail in {directory}, results in {path}{'; ' + why_alone if why_alone else ''}", flush=True)
        bench = Bench(Site(directory, quick=options.quick), options.quick)
        measure(options, bench, keeper, ["ours"] if why_alone else ["peer", "ours"], plots)
    keeper.write()
    with open(path) as file:
        print("\n" + file.read())
    failed = any("failed" in note for note in notes)
    return 1 if failed or "| SHORT |" in table.markdown(keeper.results) else 0


if __name__ == "__main__":
    sys.exit(main())
