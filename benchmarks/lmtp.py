"""Measure LMTP deliveries a second beside Dovecot's.

Both sync to the same disk, on the same machine, under the same client, in turns. Usage: `python -m
benchmarks.lmtp [--messages N] [--connections C ...] [--octets N] [--users N] [--rounds N] [--dir DIR] [--only
ours]`

Needs root and the Debian packages dovecot-pop3d and dovecot-lmtpd. The script `dovecot.sh` starts Dovecot and
`lmtpload.py` loads both, from `../shared/bench` beside this repository or from --bench. Prints a table of
medians with the ratio.
"""

import argparse
import contextlib
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time

from benchmarks.peer import in_words_of, program, version
from tests.support.service import Service

HERE = os.path.dirname(os.path.abspath(__file__))
# the script's ports; replaced by free ones, since another Dovecot may run
DOVECOT_PORTS = ("10110", "10995", "10024")
USER = "user%04d"


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def wait_for_port(port, seconds=30):
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as sock:
            if sock.recv(4):
                return
        if time.monotonic() > end:
            raise SystemExit(f"nothing answers on port {port}")
        time.sleep(0.05)


def load(bench, where, messages, connections, octets, users):
    """Return the messages a second that `lmtpload.py` delivered; SystemExit if one was refused."""
    command = [sys.executable, f"{bench}/lmtpload.py", where, messages, connections, octets, users, USER]
    said = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True).stdout
    words = said.split()
    if words[words.index("failed") + 1] != "0":
        raise SystemExit(f"{where}: {said}")
    return float(words[words.index("msgs/s") - 1])


@contextlib.contextmanager
def dovecot(bench, directory, users):
    """Start Dovecot by the script; its default mail_fsync (optimized) syncs LMTP deliveries."""
    with open(f"{bench}/dovecot.sh") as file:
        recipe = file.read()
    ports = [str(free_port()) for _ in DOVECOT_PORTS]
    for old, new in zip(DOVECOT_PORTS, ports, strict=True):
        recipe = recipe.replace(old, new)
    recipe = recipe.replace("exec /usr/sbin/dovecot", ": started below,")
    os.makedirs(f"{directory}/mail", exist_ok=True)
    os.chown(f"{directory}/mail", 5000, 5000)
    command = ["bash", "-c", recipe, "dovecot.sh", directory, "fast", "4", str(users)]
    # the script's python3 needs bcrypt
    path = f"{os.path.dirname(sys.executable)}:{os.environ.get('PATH', os.defpath)}"
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL, env={**os.environ, "PATH": path})
    with open(f"{directory}/dovecot.conf", "r+") as file:
        text = in_words_of(version(), file.read())
        file.seek(0)
        file.write(text)
        file.truncate()
    subprocess.run([program(), "-c", f"{directory}/dovecot.conf"], check=True, stderr=subprocess.DEVNULL)
    try:
        wait_for_port(int(ports[2]))
        yield ports[2]
    finally:
        subprocess.run(["doveadm", "-c", f"{directory}/dovecot.conf", "stop"], check=False)


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--messages", type=int, default=4000, help="a run (default 4000)")
    add("--connections", type=int, nargs="+", default=[4, 8], help="default 4 8")
    add("--octets", type=int, default=8192, help="of a message (default 8192)")
    add("--users", type=int, default=200, help="default 200")
    add("--rounds", type=int, default=5, help="paired runs of each (default 5)")
    add("--dir", help="where the mail lies (default: a temporary directory, removed afterwards)")
    add(
        "--bench",
        default=os.path.join(HERE, "..", "..", "shared", "bench"),
        help="where dovecot.sh and lmtpload.py are",
    )
    add("--only", choices=("ours", "dovecot"), help="without the other")
    return parser.parse_args()


def measure(options, places):
    """Measure the rates by (place, connections) in turns; the first round warms up and is dropped."""
    rates = {}
    for turn in range(options.rounds + 1):
        for connections in options.connections:
            for name, where in places.items():
                rate = load(
                    options.bench, where, options.messages, connections, options.octets, options.users
                )
                if turn:
                    rates.setdefault((name, connections), []).append(rate)
    return rates


def show(options, places, rates):
    o = options
    print(
        f"LMTP, {o.octets} octets, {o.users} users, {o.messages} messages a run, medians of {o.rounds} "
        f"paired runs"
    )
    print("| connections | " + " | ".join(places) + " | ours / Dovecot (TCP), median of pairs |")
    print("|---" * (len(places) + 2) + "|")
    for connections in options.connections:
        cells = [f"{statistics.median(rates[name, connections]):.0f}/s" for name in places]
        factor = ""
        if {"ours, TCP", "Dovecot, TCP"} <= set(places):
            pairs = zip(rates["ours, TCP", connections], rates["Dovecot, TCP", connections], strict=True)
            factor = f"{statistics.median(a / b for a, b in pairs):.2f}"
        print(f"| {connections} | " + " | ".join(cells) + f" | {factor} |")


def main():
    options = arguments()
    options.bench = os.path.realpath(options.bench)
    directory = options.dir or tempfile.mkdtemp(prefix="lmtp")
    os.makedirs(directory, exist_ok=True)
    os.chmod(directory, 0o755)
    places = {}
    try:
        with contextlib.ExitStack() as stack:
            if options.only != "dovecot":
                port = free_port()
                names = [USER % i for i in range(options.users)]
                service = stack.enter_context(
                    Service(
                        mail=(),
                        users=names,
                        lmtp_listen=[f"127.0.0.1:{port}"],
                        directory=directory,
                        quiet=True,
                        verbose=0,
                    ),
                )
                places["ours, TCP"] = str(port)
                places["ours, unix socket"] = f"{service.config.run_dir}/lmtp.sock"
            if options.only != "ours":
                place = os.path.join(directory, "dovecot")
                os.makedirs(place, exist_ok=True)
                places["Dovecot, TCP"] = stack.enter_context(dovecot(options.bench, place, options.users))
            show(options, places, measure(options, places))
    finally:
        if not options.dir:
            shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
