"""Read maildirs as files and through sessions; change their owner or file system."""

import contextlib
import hashlib
import os
import poplib
import re
import subprocess

import pytest

from tests.support.waiting import wait_for


def messages(service, user):
    """Return every message in new/ and cur/ by file name, sorted by name."""
    while True:
        with contextlib.suppress(FileNotFoundError):  # flags change after QUIT has been answered
            return _messages(service.site.mail_users[user].maildir)


def _messages(maildir):
    found = {}
    for part in ("new", "cur"):
        for name in os.listdir(f"{maildir}/{part}"):
            with open(f"{maildir}/{part}/{name}", "rb") as file:
                found[name] = file.read()
    return dict(sorted(found.items()))


def bodies(service, user):
    """Return the messages without the two trace fields that the server adds."""
    return [without_trace(m) for m in messages(service, user).values()]


def without_trace(message):
    return re.sub(rb"\AReturn-Path: <[^\n]*>\nDelivered-To: [^\n]*\n", b"", message)


def left_in_tmp(service, user):
    return os.listdir(f"{service.site.mail_users[user].maildir}/tmp")


def mail_of(service, user="alice"):
    """Return every message of a user: digest by the unique part of the file name."""
    while True:
        with contextlib.suppress(FileNotFoundError):  # as above
            return _digests(service.site.mail_users[user].maildir)


def _digests(base):
    found = {}
    for sub in ("new", "cur"):
        for name in os.listdir(f"{base}/{sub}"):
            with open(f"{base}/{sub}/{name}", "rb") as file:
                unique = name.partition(":")[0]
                assert unique not in found, f"{unique} is there twice"
                found[unique] = hashlib.sha256(file.read()).hexdigest()
    return found


def stat(service, user):
    """Return the number of messages that a session lists."""
    client = service.pop3(user)
    try:
        return client.stat()[0]
    finally:
        client.quit()


def login_or_none(service, user):
    """Return a session, or None if the mailbox is unavailable now."""
    try:
        return service.pop3(user)
    except poplib.error_proto as error:
        assert b"SYS/TEMP" in error.args[0]
        return None


def pop_all(service, user):
    """Fetch every message over POP3S, with CR LF line ends.

    Retries, as a client would, if the actor dies of its last fault at that moment.
    """
    client = wait_for(lambda: login_or_none(service, user))
    got = [b"".join(line + b"\r\n" for line in client.retr(n + 1)[1]) for n in range(client.stat()[0])]
    client.quit()
    return got


def chown_tree(service, user, path):
    """Give a directory and its content to that user."""
    row = service.site.mail_users[user]
    for at, folders, files in os.walk(path):
        for name in ["", *folders, *files]:
            os.chown(os.path.join(at, name), row.uid, row.gid)


@contextlib.contextmanager
def on_file_system(service, user, size):
    """Put the user's maildir on a small file system of its own."""
    row = service.site.mail_users[user]
    result = subprocess.run(
        [
            "mount",
            "-t",
            "tmpfs",
            "-o",
            f"size={size},uid={row.uid},gid={row.gid},mode=0700",
            "none",
            row.maildir,
        ],
        capture_output=True,
        check=False,
    )
    if result.returncode:
        pytest.skip("file systems can't be mounted here")
    try:
        yield row.maildir
    finally:
        subprocess.run(["umount", "-l", row.maildir], check=True)


def read_lines(drop, listing, i, limit):
    """Read a message as the store does, with LF line ends; no line of it may begin with a dot."""
    wire = drop.read_wire(listing, i, limit)
    return wire and wire.replace(b"\r\n", b"\n")
