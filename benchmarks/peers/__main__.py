"""Measure popkernel beside other POP3 servers of Debian and make a table: `python -m benchmarks.peers`.

A whole run replaces the table in docs/peers.md; a partial one (--only, --quick) goes to
build/peers.md. The servers' packages exclude one another, so each server is taken from a Debian system of its
own, which benchmarks/peers/systems.sh makes, or from this machine if it has the packages. This command
installs nothing; it says which packages are missing. Needs root, unshare(1) and overlayfs.
"""

import argparse
import contextlib
import os
import resource
import shlex
import shutil
import signal
import sys
import tempfile
import time

from popkernel import __version__ as popkernel_version

from benchmarks import client, table
from benchmarks.arguments import positive
from benchmarks.mailsite import ACTIVE, Site
from benchmarks.peers import courier, cyrus, dovecot, mailutils, page, popa3d, popkernel, solid
from benchmarks.peers.measure import Contestant, check_mail, memory, speed, tls_versions
from benchmarks.peers.place import root_for

HERE = os.path.dirname(os.path.abspath(__file__))
REPOSITORY = os.path.dirname(os.path.dirname(HERE))
SYSTEMS = "/var/tmp/popkernel-peers"
RECIPES = {
    recipe.key: recipe
    for module in (popkernel, dovecot, courier, cyrus, mailutils, popa3d, solid)
    for recipe in module.RECIPES
}


def _keys(value):
    keys = value.split(",")
    if unknown := set(keys) - set(RECIPES):
        raise argparse.ArgumentTypeError(f"no server {', '.join(sorted(unknown))}: {', '.join(RECIPES)}")
    return keys


def arguments(argv=None):
    """Parse the command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description=__doc__, formatter_class=raw
    )
    add = parser.add_argument
    add("--only", type=_keys, metavar="NAME,NAME", help=f"these servers, of {', '.join(RECIPES)}")
    add("--rounds", type=positive, default=5, metavar="N", help="rounds that count (default 5)")
    add("--quick", action="store_true", help="one round, none dropped: to try recipes, not servers")
    add("--systems", default=SYSTEMS, metavar="DIR", help=f"where the systems are (default {SYSTEMS})")
    add("--note", action="append", default=[], metavar="TEXT", help="a line for the table's head; repeatable")
    add("--list", action="store_true", help="print system, Debian release and packages of each server")
    return parser.parse_args(argv)


def packages():
    """Return "system release package ..." lines, one for each system."""
    lines = {r.system: " ".join((r.system, r.release, *r.packages)) for r in RECIPES.values() if r.system}
    return list(lines.values())


def missing(recipe, systems):
    """Say what a server lacks."""
    series = f" {recipe.version.rstrip('.')}" if recipe.version else ""
    return (
        f"{recipe.name}{series} left out, packages missing (Debian's {recipe.release}: "
        f"{' '.join(recipe.packages)}); `IN={systems} sh benchmarks/peers/systems.sh {recipe.system}` "
        "makes a system with them"
    )


def say(*words):
    """Print with the time."""
    print(time.strftime("%H:%M:%S"), *words, flush=True)


def failure(recipe, error):
    """Format a note of a server that failed."""
    return f"{recipe.key} failed: " + " ".join(f"{type(error).__name__}: {error}".split())[:600]


def try_out(site, keys, systems, notes):
    """Start each server once, check its mail; return contestants and results of those that serve it."""
    facts, ours = table.environment(), []
    for key in keys:
        recipe = RECIPES[key]
        root, version = (
            ("/", f"{popkernel_version} ({facts['ours']})")
            if recipe.system is None
            else root_for(systems, recipe)
        )
        if not version:
            notes.append(missing(recipe, systems))
            say(notes[-1])
            continue
        try:
            contestant = Contestant(site, recipe, root)
            with contestant.start() as server:
                check_mail(site, recipe, server.tls)
                accepted = tls_versions(server.tls)
        except Exception as error:
            notes.append(failure(recipe, error))
            say(notes[-1])
            continue
        say(f"{key}: {version}, the mail is right, TLS {accepted}")
        ours.append((contestant, page.Result(recipe, version, accepted, [], [], [], [])))
    return ours


def measure(runners, options, notes):
    """Measure all servers in turns; a server that fails is left out from then on."""
    lost = set()

    def turn(work, counted):
        for contestant, result in runners:
            key = contestant.recipe.key
            if key in lost:
                continue
            os.sync()
            try:
                figures = work(contestant, result, counted)
                say(key, figures, "" if counted else "(not counted)")
            except Exception as error:
                lost.add(key)
                notes.append(failure(contestant.recipe, error))
                say(notes[-1])

    def logins(contestant, result, counted):
        cold, warm = speed(contestant)
        if counted:
            result.cold.append(cold)
            result.warm.append(warm)
        return f"{cold:.0f} cold, {warm:.0f} warm logins/s"

    def held(contestant, result, _):
        ours = contestant.recipe.system is None
        soon, late = memory(contestant, parked=ours and not options.quick)
        result.memory.append(soon)
        if ours and not options.quick:
            result.parked.append(late)
        return f"{soon:.0f} KiB a session, later {late:.0f}"

    for number in range(1 if options.quick else options.rounds + 1):
        turn(logins, options.quick or number > 0)
    for _ in range(1 if options.quick else min(3, options.rounds)):
        turn(held, True)


def main(argv=None):
    """Measure, print and keep the table. Exit code 1 if a server failed, 69 if none could be measured."""
    options = arguments(argv)
    if options.list:
        print("\n".join(packages()))
        return 0
    if os.geteuid() != 0:
        sys.exit("benchmarks.peers: needs root, to run other servers in systems of their own")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # end what was started
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        client.build()
    except client.LoadError as error:
        sys.exit(f"benchmarks.peers: {error}")
    began, notes = time.monotonic(), []
    facts = {name: value for name, value in table.environment().items() if name != "peer"}
    words = shlex.join(argv if argv is not None else sys.argv[1:])
    facts["command"] = f"python -m benchmarks.peers {words}".rstrip()
    with contextlib.ExitStack() as stack:
        directory = tempfile.mkdtemp(prefix="pkpeers")
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        site = Site(directory, quick=True, users=ACTIVE)
        runners = try_out(site, options.only or list(RECIPES), options.systems, notes)
        if not runners:
            print("\n".join(notes))
            return 69
        measure(runners, options, notes)
    count = "one" if options.quick else f"{options.rounds} after one that does not count"
    facts["rounds"] = f"{count}, all servers in turns; {(time.monotonic() - began) / 60:.0f} minutes"
    facts |= {
        "note" if number == 0 else f"note {number + 1}": text for number, text in enumerate(options.note)
    }
    text = page.section(facts, [result for _, result in runners], notes)
    print("\n" + text)
    if options.only or options.quick:
        path = os.path.join(REPOSITORY, "build", "peers.md")
        with open(path, "w") as file:
            file.write(text)
    else:
        path = os.path.join(REPOSITORY, "docs", "peers.md")
        page.replace(path, text)
    print(f"kept in {path}")
    return 1 if any(" failed: " in note for note in notes) else 0


if __name__ == "__main__":
    sys.exit(main())
