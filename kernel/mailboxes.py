"""What keeps mailboxes from being served, found without opening one: for `popkernel check`, and for init after a start or a reload.

It only looks (stat(2)). Every mend is safe to type as root though the mailbox's owner may have put links into it: nothing that follows
a link, and nothing recursive but on what is a maildir and names its old owner.
"""

import os
import shlex
import stat
from collections.abc import Iterator

from popkernel.kernel.regular import read_regular
from popkernel.kernel.usertable import read_users
from popkernel.proto.tables import MAX_TABLE, MailUser
from popkernel.proto.usernames import twins

__all__ = ["MOST_NAMED", "Ways", "mailbox_problem", "warnings"]

MOST_NAMED = 10  # broken mailboxes named one by one at a start
_SUBS = ("tmp", "new", "cur")

Problem = tuple[str, str]
"""What is wrong, and the mend."""


class Ways:
    """The ways to mailboxes, each directory looked at once: 10,000 users share a few."""

    def __init__(self) -> None:
        self._blocked: dict[tuple[str, int, int], str] = {}
        self._open: dict[str, os.stat_result | None] = {}

    def blocked(self, directory: str, user: MailUser) -> str:
        """The first directory on the way that the user's uid and gid may not pass through; "" for none."""
        key = (directory, user.uid, user.gid)
        if key not in self._blocked:
            self._blocked[key] = self._look(directory, user)
        return self._blocked[key]

    def _look(self, directory: str, user: MailUser) -> str:
        way = [directory]
        while way[-1] != os.path.dirname(way[-1]):
            way.append(os.path.dirname(way[-1]))
        for path in reversed(way):
            found = self._state(path)
            if found is None:  # missing, or not to be seen by whoever runs this: the look at the maildir itself says so
                return ""
            bit = 0o100 if found.st_uid == user.uid else 0o010 if found.st_gid == user.gid else 0o001
            if not found.st_mode & bit:
                return path
        return ""

    def _state(self, path: str) -> os.stat_result | None:
        if path not in self._open:
            try:
                self._open[path] = os.stat(path)
            except OSError:
                self._open[path] = None
        return self._open[path]


def mailbox_problem(user: MailUser, ways: Ways) -> Problem | None:
    """Say what keeps a maildir from being served, and the mend; None for nothing."""
    if os.geteuid() not in {0, user.uid}:
        return f"only root can serve the mail of uid {user.uid}", "start it as root"
    shut = ways.blocked(os.path.dirname(user.maildir), user)
    if shut:
        return f"uid {user.uid} cannot enter {shut}", _let_through(shut)
    path = shlex.quote(user.maildir)
    try:
        found = os.stat(user.maildir)
    except FileNotFoundError:
        if os.path.islink(user.maildir):
            return "is a link that leads nowhere", f"rm {path}, and name the maildir itself in the table"
        return "there is no such directory", f"install -d -o {user.uid} -g {user.gid} -m 0700 {path}"
    except OSError as error:
        return error.strerror or str(error), "run this as root, or mend the path"
    if not stat.S_ISDIR(found.st_mode):
        return "is no directory", "name the maildir itself, and its subdirectory with -e"
    if found.st_uid != user.uid:
        return f"belongs to uid {found.st_uid}, not {user.uid}", _give(user, found, user.maildir)
    if found.st_mode & 0o700 != 0o700:
        mend = f"chmod u+rwx {path}" if not os.path.islink(user.maildir) else "name the maildir itself, not a link to it"
        return f"mode {stat.S_IMODE(found.st_mode):04o} shuts its owner out", mend
    return _inside(user)


def _inside(user: MailUser) -> Problem | None:
    for sub in _SUBS:
        path = os.path.join(user.maildir, sub)
        try:
            found = os.lstat(path)
        except FileNotFoundError:
            continue  # it is made with the first session
        except OSError as error:
            return f"{sub}: {error.strerror or error}", "run this as root, or mend the path"
        if not stat.S_ISDIR(found.st_mode):
            return f"{sub} is no directory", f"move {shlex.quote(path)} away; it is made anew"
        if found.st_uid != user.uid:
            return f"{sub} belongs to uid {found.st_uid}, not {user.uid}", _give(user, found, path)
        if found.st_mode & 0o700 != 0o700:  # not as root: chmod(1) follows a link that the owner puts in its place
            mend = f"chmod u+rwx {shlex.quote(path)}, as uid {user.uid}"
            return f"{sub}: mode {stat.S_IMODE(found.st_mode):04o} shuts its owner out", mend
    return None


def _let_through(directory: str) -> str:
    """A home directory is shut on purpose, root's above all: better move the mail than open it."""
    if directory == "/root" or directory.startswith("/root/"):
        return "keep the mail outside of root's home directory"
    return f"chmod o+x {shlex.quote(directory)}, or keep the mail elsewhere"


def _give(user: MailUser, found: os.stat_result, what: str) -> str:
    """Give a maildir, or what is another's in it, to its user.

    All in it only where it surely is a maildir, and then only what its present owner has: a link out of it stays a link
    (chown -h), a link put into the way while find(1) runs leads nowhere (-execdir), another owner's files stay his.
    """
    path = shlex.quote(user.maildir)
    owner = f"{user.uid}:{user.gid}"
    if os.path.islink(user.maildir):
        return "name the maildir itself in the table, not a link to it"
    if all(_is_directory(os.path.join(user.maildir, sub)) for sub in _SUBS):
        return f"find {path} -xdev -user {found.st_uid} -execdir chown -h {owner} {{}} \\;"
    if what != user.maildir:  # which is this user's already
        return f"chown -h {owner} {shlex.quote(what)}"
    return f"name this user's own maildir in the table, or, if this is it, chown -h {owner} {path}"


def _is_directory(path: str) -> bool:
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError:
        return False


def warnings(table: str, subdir: str, *, fold: bool = False) -> Iterator[str]:
    """A line for each of the first ten users of a table whose mailbox can't be served, and one for how many more there are.

    `fold`: where mail finds its user in any case, also for users whose names differ in nothing else.
    """
    ways = Ways()
    broken = 0
    users = read_users(table, subdir)
    if fold:
        yield from map(str, twins(users, read_regular(table, MAX_TABLE), table))
    for name, user in users.items():
        problem = mailbox_problem(user, ways)
        if problem is not None:
            broken += 1
            if broken <= MOST_NAMED:
                yield f"user {name}: {user.maildir}: {problem[0]}; {problem[1]}"
    if broken > MOST_NAMED:
        yield f"and {broken - MOST_NAMED} more mailboxes can't be served; see `popkernel check`"
