"""Check and measure one server: its mail, its TLS versions, logins a second, memory a session."""

import contextlib
import os
import poplib
import ssl
import time
import warnings

from popkernel.cli.common.sample_site import HOST

from benchmarks import client
from benchmarks.mailsite import PARTS
from benchmarks.ours import Ours
from benchmarks.peers.place import Place, Running, connect
from benchmarks.rows import MEASURED, warm_up
from benchmarks.server import ServerError

WARM_SESSIONS = 600
HELD = 200
"""Idle sessions, a user each, whose memory is read."""
SETTLED = 6
"""Seconds from the last login until memory is read."""
PARKED = 75
"""Seconds after which popkernel has parked silent sessions and let their actors go."""
LET_GO = 30
"""warm_seconds while memory is measured: by default actors stay longer for the next login."""
VERSIONS = {
    "1.0": ssl.TLSVersion.TLSv1,
    "1.1": ssl.TLSVersion.TLSv1_1,
    "1.2": ssl.TLSVersion.TLSv1_2,
    "1.3": ssl.TLSVersion.TLSv1_3,
}


class WrongMailError(RuntimeError):
    """Report that a server does not serve the mail that it was given."""


class Contestant:
    """Hold a recipe and its place, for as many starts as there are rounds."""

    def __init__(self, site, recipe, root):
        self.site, self.recipe, self.filled = site, recipe, recipe.fill is None
        if recipe.prepare is not None:
            self.place = Place(site, recipe, root)

    def _running(self):
        for last in (False, False, True):
            self.place.take_ports()
            try:
                return Running(self.recipe, self.place, self.recipe.prepare(self.place))
            except ServerError:
                if last:
                    raise
        raise AssertionError

    def start(self, **settings):
        """Start the server; a context manager that ends it. `settings` are for popkernel alone."""
        if self.recipe.prepare is None:
            return Ours(self.site, **settings)
        server = self._running()
        try:
            if not self.filled:
                self.recipe.fill(self.place)
                self.filled = True
        except BaseException:
            server.stop()
            raise
        return server


def expected(site, name):
    """Return a user's messages as they must arrive, sorted."""
    found = []
    for part in PARTS[1:]:
        folder = os.path.join(site.maildir(name), part)
        for entry in os.listdir(folder):
            with open(os.path.join(folder, entry), "rb") as file:
                found.append(file.read().replace(b"\n", b"\r\n"))
    return sorted(found)


def fetched(port, name):
    """Return what a client reads of a user's mail: messages with CRLF, sorted."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    box = poplib.POP3_SSL(HOST, port, timeout=30, context=context)
    try:
        box.user(name)
        box.pass_("secret")
        count = box.stat()[0]
        mail = [b"".join(line + b"\r\n" for line in box.retr(n + 1)[1]) for n in range(count)]
        box.quit()
    finally:
        box.close()
    return sorted(mail)


def _only(fields, mail):
    """Return a message with only those lines of its header that are among `fields`."""
    head, blank, body = mail.partition(b"\r\n\r\n")
    return b"\r\n".join(line for line in head.split(b"\r\n") if line in fields) + blank + body


def compare(name, given, got, *, added=False):
    """Raise WrongMailError unless the octets are those that were given.

    `added`: the server adds header fields of its own.
    """
    if len(got) != len(given):
        raise WrongMailError(f"{name}: {len(got)} messages instead of {len(given)}")
    if added:
        fields = {line for mail in given for line in mail.partition(b"\r\n\r\n")[0].split(b"\r\n")}
        got = sorted(_only(fields, mail) for mail in got)
    for one, other in zip(given, got, strict=True):
        if one != other:
            at = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(one))
            raise WrongMailError(
                f"{name}: a message of {len(one)} octets arrives as {len(other)}, different from octet {at}"
            )


def check_mail(site, recipe, port):
    """Read the mail of the first and of the last user, and compare the octets.

    Raises WrongMailError, or what poplib raises.
    """
    for name in {site.names[0], site.names[site.active - 1]}:
        compare(name, expected(site, name), fetched(port, name), added=recipe.added)


def tls_versions(port):
    """Return the TLS versions that the port accepts, as text."""
    accepted = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of TLS 1.0 and 1.1
        for name, version in VERSIONS.items():
            with contextlib.suppress(OSError), connect(port, version=version) as sock:
                if sock.recv(3) == b"+OK":
                    accepted.append(name)
    return ", ".join(accepted)


def speed(contestant):
    """Return sessions a second of users not seen before, and of users seen a moment ago."""
    with contestant.start() as server:
        warm_up(server)
        cold = client.run(server.tls, "STAT", "QUIT", sessions=MEASURED, users=MEASURED)
        warm = client.run(server.tls, "STAT", "QUIT", sessions=WARM_SESSIONS, users=MEASURED)
    return cold["rate"], warm["rate"]


def memory(contestant, *, parked=False):
    """Return KiB for each of many idle sessions, soon after the login and, with `parked`, later.

    The same figure twice without `parked`: other servers change nothing while sessions are silent.
    """
    with contestant.start(warm_seconds=LET_GO) as server:
        # Not warmed up: processes that wait for further sessions would count as the server's own.
        time.sleep(2)
        before = server.memory()
        with client.Held(server.tls, sessions=HELD, users=HELD) as held:
            time.sleep(SETTLED)
            soon = late = server.memory()
            if parked:
                time.sleep(PARKED)
                late = server.memory()
            held.release()
    return (soon - before) / HELD / 1024, (late - before) / HELD / 1024
