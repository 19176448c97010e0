"""Processor time that being watched costs, for where there is no valgrind to count instructions; see trace.py.

Three servers: two never traced, of which the second is the control, and one that is watched, then not, then watched again. They
take turns in short rounds. What is compared is processor time a command of the listener and the maildir actor, as the system
accounts it (/proc/PID/schedstat), for a machine that does other things too makes the clock on the wall say anything. The control
says how far two equal servers differ here and now: a difference smaller than its interval is none that was measured.
"""

import random
import socket
import statistics
import threading

from popkernel.kernel.watcher import Watcher

from tests.service import Service

MAIL = [b"Subject: %d\n\n" % n + b"0123456789abcdef\n" * 120 for n in range(20)]
ROUNDS = 60
COMMANDS = 400  # of one server in one round
SETTINGS = {"allow_plaintext": True, "lmtp": False, "idle_seconds": 3600, "park_seconds": 0}
LIMIT = 0.01


class Client:
    """A plain logged-in session that asks one thing after the other, and its server's processor time."""

    def __init__(self, service):
        self.sock = socket.create_connection((service.plain.host, service.plain.port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for command in (b"", b"USER alice\r\n", b"PASS secret\r\n"):
            self.sock.sendall(command)
            assert self.sock.recv(4096).startswith(b"+OK")
        rows = service.status()["actors"]
        self.pids = [r["pid"] for r in rows if r["name"].startswith(("listener.", "maildir."))]

    def ask(self, command, end=b"\r\n"):
        """Send, and take the whole answer."""
        self.sock.sendall(command)
        data = self.sock.recv(65536)
        while not data.endswith(end):
            data += self.sock.recv(65536)

    def used(self):
        """Nanoseconds of processor time so far."""
        total = 0
        for pid in self.pids:
            with open(f"/proc/{pid}/schedstat") as file:
                total += int(file.read().split()[0])
        return total

    def cost(self):
        """Microseconds of processor time a command, over one round."""
        before = self.used()
        for n in range(COMMANDS // 2):
            self.ask(b"LIST %d\r\n" % (n % 20 + 1))
            self.ask(b"RETR %d\r\n" % ((n * 7) % 20 + 1), b"\r\n.\r\n")
        return (self.used() - before) / COMMANDS / 1000


def rounds(clients):
    """Costs of each client, round by round; who goes first changes."""
    order = random.Random(1)  # the same order in every run
    out = [[] for _ in clients]
    for _ in range(ROUNDS):
        for index in order.sample(range(len(clients)), len(clients)):
            out[index].append(clients[index].cost())
    return out


def interval(base, other):
    """Median of the paired ratios less one, and its 95 % interval by resampling."""
    ratios = [b / a - 1 for a, b in zip(base, other, strict=True)]
    again = random.Random(2)
    medians = sorted(statistics.median(again.choices(ratios, k=len(ratios))) for _ in range(2000))
    return statistics.median(ratios), medians[50], medians[1949]


def compare():
    """Print the table. 0: off is within 1 % of never; 1: it is not; 2: the control's own interval is wider than 1 %, so this can't tell."""
    with (
        Service(mail=MAIL, verbose=0, **SETTINGS) as a,
        Service(mail=MAIL, verbose=0, **SETTINGS) as b,
        Service(mail=MAIL, verbose=0, **SETTINGS) as c,
    ):
        clients = [Client(service) for service in (a, b, c)]
        for client in clients:
            client.cost()
        start = rounds(clients)
        with Watcher(c.config.run_dir) as viewer:
            clients[2].ask(b"RETR 1\r\n", b"\r\n.\r\n")
            assert viewer.next_frame(5) is not None
        clients[2].cost()
        off = rounds(clients)
        viewer = Watcher(c.config.run_dir)
        seen, over = [0], threading.Event()

        def take():
            while not over.is_set():
                seen[0] += viewer.next_frame(0.1) is not None

        reader = threading.Thread(target=take)
        reader.start()
        on = rounds(clients)
        over.set()
        reader.join()
        lost = viewer.lost
        viewer.close()
    print(f"never traced: {statistics.median(start[0]):.1f} us of processor time a command; {ROUNDS} rounds of {COMMANDS} commands each")
    table = {
        "control, before": interval(start[0], start[1]),
        "third server, before": interval(start[0], start[2]),
        "control, meanwhile": interval(off[0], off[1]),
        "watched, off again": interval(off[0], off[2]),
        "watched, on": interval(on[0], on[2]),
    }
    for name, (median, low, high) in table.items():
        print(f"{name:22} {median:+7.2%}   95 %: {low:+.2%} .. {high:+.2%}")
    print(f"frames seen {seen[0]}, lost {lost}")
    if any(high - low > LIMIT for name, (_, low, high) in table.items() if name.startswith("control")):
        print("INCONCLUSIVE: two servers that were never traced differ by more than 1 % on this machine now")
        return 2
    return int(table["watched, off again"][0] - table["third server, before"][0] > LIMIT)

