"""Measure what a reload does to logins: the time from PASS to its answer, a minute before and a minute after.

`python -m benchmarks.reloads [--users N] [--rate R] [--cost C]` starts a service with default settings on a
temporary site. First all users log in once, as fast as the hashing allows: 10,000 first logins at cost 10
take five minutes on two cores. After `--settle` seconds they poll (STAT, UIDL, QUIT without TLS), at an even
rate and in the same order again and again. After a minute one user is added to both tables, and `popkernel
reload` is run; after two more minutes the certificate is renewed, and it is run again.

For each reload it prints p50, p99 and the longest of all logins in the minute before and in that after, and
what `popkernel reload` said. It fails if p99 after is more than twice that before.
"""

import argparse
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable

from popkernel.cli.common.sample_site import make_certificate

from benchmarks.arguments import positive
from benchmarks.polling import Poller
from tests.support.service import Service

_MOST = 2.0  # times p99 before


class _Timed(Poller):
    """Note when each login was, besides how long it took."""

    def __init__(self, service: Service) -> None:
        super().__init__(service)
        self.points: list[tuple[float, float]] = []

    def _poll(self, user: str) -> float:
        took = super()._poll(user)
        self.points.append((time.monotonic(), took))
        return took


def _percentile(points: list[float], share: float) -> float:
    """Return the value that this share of the points does not exceed, in ms."""
    return 1000 * sorted(points)[min(len(points) - 1, int(share * len(points)))] if points else 0.0


def _row(what: str, points: list[float]) -> str:
    p50, p99, most = (_percentile(points, share) for share in (0.5, 0.99, 1.0))
    return f"{what}: {len(points)} logins, p50 {p50:.1f} ms, p99 {p99:.1f} ms, longest {most:.1f} ms"


def _replace(path: str, data: bytes) -> None:
    """Replace a file by a new one, as an editor or a certificate's hook does."""
    with open(f"{path}.new", "wb") as file:
        file.write(data)
    shutil.copystat(path, f"{path}.new")
    os.rename(f"{path}.new", path)


def _add_user(service: Service) -> None:
    """Add one user to both tables, with the first user's hash and directory."""
    site = service.site
    for path, blank in ((site.auth_table, b" "), (site.user_table, b" ")):
        with open(path, "rb") as file:
            data = file.read()
        _replace(path, data + b"added" + blank + data.split(b"\n", 1)[0].split(blank, 1)[1] + b"\n")


def _renew(service: Service) -> None:
    certificate, key = make_certificate()
    _replace(service.site.cert, certificate)
    _replace(service.site.key, key)


def measure(users: int, rate: float, cost: int, seconds: float, settle: float) -> bool:
    """Run both reloads and print their figures; return whether p99 stayed within its bound."""
    names = [f"user{n:05d}" for n in range(users)]
    print(f"{users} users, {rate:.0f} logins/s, bcrypt cost {cost}", flush=True)
    good = True
    with Service(
        users=names,
        mail=[b"Subject: 1\n\nx\n"],
        cost=cost,
        verbose=0,
        lmtp=False,
        allow_plaintext=True,
        directory="/var/tmp",
    ) as service:
        poller = _Timed(service)
        began = time.monotonic()
        poller.round([(0.0, name) for name in names])
        print(f"all logged in once within {time.monotonic() - began:.0f} s", flush=True)
        time.sleep(settle)
        for what, change in (("one new user", _add_user), ("a renewed certificate", _renew)):
            good &= _reload(what, service, poller, names, rate, seconds, change)
        for line in poller.failed[:5]:
            print(f"failed: {line}")
        good &= not poller.failed
    return good


def _reload(
    what: str,
    service: Service,
    poller: _Timed,
    names: list[str],
    rate: float,
    seconds: float,
    change: Callable[[Service], None],
) -> bool:
    """Poll, and reload in the middle."""
    poller.points.clear()
    began = time.monotonic() + 1
    middle = began + seconds
    due = [(began + n / rate, names[n % len(names)]) for n in range(int(2 * seconds * rate))]
    polling = threading.Thread(target=poller.round, args=(due,))
    polling.start()
    time.sleep(max(0.0, middle - time.monotonic()))
    change(service)
    said = service.command("reload").stdout.splitlines()
    took = time.monotonic() - middle
    polling.join()
    before = [ms for when, ms in poller.points if when < middle]
    after = [ms for when, ms in poller.points if when >= middle]
    print(f"{what}: {'; '.join(said)} ({took:.1f} s)")
    print(_row("  before", before))
    print(_row("  after", after), flush=True)
    return _percentile(after, 0.99) <= _MOST * _percentile(before, 0.99)


def main() -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--users", type=positive, default=10000, help="users who poll (default 10000)")
    parser.add_argument("--rate", type=float, default=33.0, help="logins a second (default 33)")
    parser.add_argument("--cost", type=positive, default=10, help="bcrypt cost (default 10)")
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="before and after each reload (default 60)"
    )
    parser.add_argument(
        "--settle",
        type=float,
        default=5.0,
        help="seconds between the first logins and the polling (default 5)",
    )
    options = parser.parse_args()
    return 0 if measure(options.users, options.rate, options.cost, options.seconds, options.settle) else 1


if __name__ == "__main__":
    sys.exit(main())
