"""Make the mail, certificate (ECDSA P-256) and password hashes that both servers use.

Users are user0000 and on; the first ACTIVE of them have 40 messages of 8 KB. big0 has 40 of 10 MB, many0
100,000 of 800 octets. All mail belongs to one numeric uid, since the peer's high-performance mode needs that.
The seed is fixed, so every run has the same octets.
"""

import contextlib
import functools
import os
import random
import time
from unittest import mock

from popkernel.actors.maildir.store.maildrop import Maildrop
from popkernel.cli.common.sample_site import make_certificate

UID = 64100
ACTIVE = 240
"""Users with mail: 200 that are measured, 40 to warm a server up with."""
FIRST_TIME = 1_700_000_000
PARTS = ("tmp", "new", "cur")


def bodies(octets, count=20, seed=1):
    """Generate `count` texts of about `octets` octets; some lines begin with a dot."""
    dice = random.Random(seed)
    words = [bytes(dice.choices(b"abcdefghijklmnopqrstuvwxyz", k=dice.randint(2, 11))) for _ in range(3000)]
    texts = []
    for _ in range(count):
        lines, length = [], 0
        while length < octets:
            line = (b"." if dice.random() < 0.02 else b"") + b" ".join(dice.choices(words, k=10))
            lines.append(line)
            length += len(line) + 1
        texts.append(b"\n".join(lines) + b"\n")
    return texts


def message(number, user, body):
    """Build one message as stored in a maildir."""
    head = (
        f"From: a@example.org\nTo: b@example.org\nSubject: message {number}\nMessage-ID: "
        f"<{number}.{user}@example.org>\n\n"
    )
    return head.encode() + body


def unread():
    """Sync the disk and drop the page cache, so that unread mail is not in memory.

    Otherwise chance decides which server finds it there.
    """
    os.sync()
    with contextlib.suppress(OSError), open("/proc/sys/vm/drop_caches", "w") as file:
        file.write("3")


class Site:
    """Hold the directory of a site. `quick` makes less of everything.

    `users` and `active` are the numbers of users and of those with mail.
    """

    def __init__(self, directory, *, quick=False, users=None, active=ACTIVE):
        self.directory, self.active = directory, active
        os.makedirs(directory, exist_ok=True)
        os.chmod(directory, 0o711)  # the mail users need to enter it
        root = os.geteuid() == 0
        self.uid, self.gid = (UID, UID) if root else (os.geteuid(), os.getegid())
        self.mail = os.path.join(directory, "mail")
        os.makedirs(self.mail, exist_ok=True)
        os.chmod(self.mail, 0o711)
        self.users = users or (1000 if quick else 10000)
        self.big_messages = 4 if quick else 40
        self.many_messages = 5000 if quick else 100_000
        self.names = [f"user{i:04d}" for i in range(self.users)] + ["big0", "many0"]
        self.cert, self.key = os.path.join(directory, "cert.pem"), os.path.join(directory, "key.pem")
        self.user_table = os.path.join(directory, "users")
        self._hashes = {}
        self._delivered = b""
        self._tables()
        texts = bodies(8192)
        for number, name in enumerate(self.names):
            self.fill(name, [texts[(number + i) % 20] for i in range(40)] if number < active else [])

    def _tables(self):
        for path, data, mode in zip((self.cert, self.key), make_certificate(), (0o644, 0o600), strict=True):
            with open(path, "wb") as file:
                os.fchmod(file.fileno(), mode)
                file.write(data)
        with open(self.user_table, "w") as file:
            file.writelines(f"{name} {self.uid}:{self.gid}:{self.maildir(name)}\n" for name in self.names)

    def actor_users(self):
        """Return the configuration keys for the actors' ids, as root."""
        if os.geteuid() != 0:
            return {}
        return {"listener_user": "64001:64001", "auth_user": "64002:64002", "mda_user": "64003:64003"}

    def hash(self, cost):
        """Return the $2b$ hash of the password "secret"."""
        if cost not in self._hashes:
            import bcrypt

            self._hashes[cost] = bcrypt.hashpw(b"secret", bcrypt.gensalt(cost, prefix=b"2b")).decode()
        return self._hashes[cost]

    def auth_table(self, cost, names=None, path=None):
        """Write popkernel's authorization table with hashes of that cost; return its path."""
        path = path or os.path.join(self.directory, f"auth{cost}")
        with open(path, "w") as file:
            os.fchmod(file.fileno(), 0o600)
            file.writelines(f"{name} {self.hash(cost)}\n" for name in names or self.names)
        return path

    def maildir(self, name):
        """Return the path of a user's maildir."""
        return os.path.join(self.mail, name)

    def own(self, path):
        """Give a path to the mail user."""
        if os.geteuid() == 0:
            os.chown(path, self.uid, self.gid)

    def fill(self, name, texts):
        """Make a maildir with messages in new/."""
        place = self.maildir(name)
        for path in (place, *(os.path.join(place, part) for part in PARTS)):
            os.makedirs(path, exist_ok=True)
            self.own(path)
        for number, text in enumerate(texts):
            path = os.path.join(place, "new", f"{FIRST_TIME + number}.{number:08x}.localhost")
            with open(path, "wb") as file:
                file.write(message(number, name, text))
            self.own(path)

    @functools.cached_property
    def big(self):
        """Make a user with large messages, on first use."""
        text = b"".join(bodies(1 << 20, count=10))
        self.fill("big0", [text[:10_000_000]] * self.big_messages)
        return "big0"

    @functools.cached_property
    def many(self):
        """Make a user with many small messages, delivered by popkernel's store.

        The popcache is kept for `reset_many`. Files are not synced: it makes no difference to what is on the
        disk in the end.
        """
        place, texts = self.maildir("many0"), bodies(700)
        self.fill("many0", [])
        drop = Maildrop(place)
        try:
            with mock.patch("os.fsync", return_value=None):
                for number in range(self.many_messages):
                    with drop.deliver_begin() as delivery:
                        delivery.write(message(number, "many0", texts[number % 20]))
                        delivery.commit()
        finally:
            drop.close()
        for part in PARTS:
            for entry in os.scandir(os.path.join(place, part)):
                self.own(entry.path)
        with open(os.path.join(place, "popcache"), "rb") as file:
            self._delivered = file.read()
        self.reset_many(popcache=True)
        return "many0"

    def reset_many(self, *, popcache):
        """Reset many0 to an unread mailbox: all in new/, without either server's files.

        `popcache`: whether to put back the popcache that delivery wrote.
        """
        place = self.maildir("many0")
        new = os.path.join(place, "new")
        for entry in os.scandir(os.path.join(place, "cur")):
            os.rename(entry.path, os.path.join(new, entry.name.partition(":")[0]))
        for entry in os.scandir(place):
            if entry.is_file(follow_symlinks=False):
                os.unlink(entry.path)
        if popcache:
            path = os.path.join(place, "popcache")
            with open(path, "wb") as file:
                os.fchmod(file.fileno(), 0o600)
                file.write(self._delivered)
            self.own(path)
        unread()
        time.sleep(1.0)  # so that the directories' times differ from the present
