"""Measure a maildir actor: seconds to its first answer, and its private memory when idle.

`python -m benchmarks.spawn [--users N]` starts a service on a temporary site. It prints the median login of a
cold user less that of a warm one, which is all that the spawn adds for a client; and Private_* of
/proc/PID/smaps_rollup of every idle actor, median and largest, in KiB. The test of these bounds uses the same
measurements (tests/e2e/scale/test_spawned_actor.py).
"""

import argparse
import contextlib
import socket
import statistics
import sys
import time
from typing import Any, NamedTuple

from popkernel.cli.status import memory
from popkernel.kernel.client import Client

from tests.support.service import Service

WARM_ROUNDS = 5


class Figures(NamedTuple):
    """Hold the figures, in seconds and KiB."""

    cold: list[float]
    warm: list[float]
    private: list[int]

    @property
    def spawn(self) -> float:
        """Return the seconds that the spawn adds to a login, median."""
        return statistics.median(self.cold) - statistics.median(self.warm)

    def lines(self) -> str:
        """Format the figures for people."""
        ms = [1000 * statistics.median(x) for x in (self.cold, self.warm)]
        kib = statistics.median(self.private)
        return (
            f"first answer of a spawned maildir actor: {1000 * self.spawn:.2f} ms "
            f"(login of a cold user {ms[0]:.2f} ms, of a warm one {ms[1]:.2f} ms;"
            f" medians of {len(self.cold)} and {len(self.warm)})\n"
            f"private memory of an idle maildir actor: {kib / 1024:.2f} MiB (median of {len(self.private)},"
            f" largest {max(self.private) / 1024:.2f} MiB)"
        )


class Login:
    """Time logins without TLS, so that they measure the bus and the spawn alone."""

    def __init__(self, service: Service) -> None:
        self.address = (service.plain.host, service.plain.port)

    def time(self, user: str) -> float:
        """Return the seconds from PASS to its reply."""
        with (
            contextlib.closing(socket.create_connection(self.address, timeout=20)) as sock,
            sock.makefile("rwb", 0) as file,
        ):
            file.readline()
            file.write(b"USER %b\r\n" % user.encode())
            file.readline()
            began = time.perf_counter()
            file.write(b"PASS secret\r\n")
            answer = file.readline()
            took = time.perf_counter() - began
            if not answer.startswith(b"+OK"):
                raise RuntimeError(f"{user}: {answer!r}")
            file.write(b"QUIT\r\n")
            file.readline()
        return took


def measure(users: int, **site: Any) -> Figures:
    """Log in each user cold, then warm."""
    names = [f"user{n:03d}" for n in range(users)]
    settings: dict[str, Any] = {
        "users": names,
        "allow_plaintext": True,
        "lmtp": False,
        "warm_seconds": 600,
        "warm_memory": "64G",
        **site,
    }
    with Service(verbose=0, **settings) as service:
        login = Login(service)
        login.time(names[0])  # the first login also loads what listener and auth have not used yet
        cold = [login.time(name) for name in names[1:]]
        warm = [login.time(name) for _ in range(WARM_ROUNDS) for name in names[1:]]
        rows = [
            a
            for a in Client(service.config.run_dir).ask("status")["actors"]
            if a["name"].startswith("maildir.")
        ]
        private = [kib for row in rows if (kib := memory(row["pid"])["private_kib"]) is not None]
    return Figures(cold, warm, private)


def main() -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--users", type=int, default=100, help="actors to spawn (default 100)")
    options = parser.parse_args()
    print(measure(options.users).lines())
    return 0


if __name__ == "__main__":
    sys.exit(main())
