"""What keeps mailboxes from being served, found without opening one: for `popkernel check`, and for init after a start or a reload.

It only looks (stat(2)). Every mend is safe to type as root though the mailbox's owner may have put links into it: nothing that follows
a link, and nothing recursive but on what is a maildir and names its old owner.
"""

import contextlib
import os
import shlex
import stat
from collections.abc import Iterator, Mapping
from itertools import islice

from popkernel.kernel.config.regular_files import read_regular
from popkernel.kernel.config.user_table import read_users
from popkernel.proto.access.user_names import name_lines, twins
from popkernel.proto.files.maildir_names import is_message
from popkernel.proto.files.tables import MAX_TABLE, Finding, MailUser, few

__all__ = ["MOST_NAMED", "Neighbours", "Ways", "judge", "mailbox_problem", "odd_names", "open_to_others", "passed_over", "warnings"]

MOST_NAMED = 10  # broken mailboxes named one by one at a start
_OWN = "name this user's own maildir in the table"
_NOT_ROOT = "keep the mail outside of root's home directory"
_SUBS = ("tmp", "new", "cur")
_SYSTEM = ("/", "/var", "/usr", "/usr/local")  # what lies in these, /mnt and /var/empty for example, is nobody's maildir though it be empty

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


class Neighbours:
    """Who else is in the table: a mend must not hand anybody's mail to another."""

    def __init__(self, users: Mapping[str, MailUser], lines: Mapping[str, int]) -> None:
        """`lines`: in the table, by name."""
        self._users = users
        self._lines = lines
        self._real: dict[str, str] = {}  # directories above maildirs, as links lead
        self._at: dict[str, list[str]] = {}  # names by maildir, as links lead
        self._of: dict[int, list[str]] = {}  # names by uid
        self._housed: dict[int, set[str]] = {}  # by uid, names (three at most) whose maildirs belong to it
        self._above: dict[str, str] | None = None  # a name by directory above its maildir, once that is asked for
        self._places: dict[str, str] = {}
        self._outer: dict[str, str] = {}  # the maildir that a directory is or lies in, "" for none: thousands of users share one
        for name, user in users.items():
            place = self._places[name] = self._place(user.maildir)
            self._at.setdefault(place, []).append(name)
            self._of.setdefault(user.uid, []).append(name)

    def _place(self, maildir: str) -> str:
        above, base = os.path.split(os.path.normpath(maildir))
        if above not in self._real:
            self._real[above] = os.path.realpath(above)
        place = os.path.join(self._real[above], base)
        return os.path.realpath(place) if os.path.islink(place) else place

    def _called(self, name: str) -> str:
        return f"{name}'s (line {self._lines[name]})" if self._lines.get(name) else f"{name}'s"

    def owner(self, uid: int, name: str) -> str:
        """Whose uid it is besides: "bob's (line 2)", or "" for nobody's of the table but `name`."""
        others = self._of.get(uid)
        return self._called(others[0]) if others and uid != self._users[name].uid else ""

    def namesake(self, name: str, owner: int) -> str:
        """Who else has this user's uid, as owner() says it, and would get what is given to it; "" for nobody.

        Also "" where one uid for many is this table's way, and what is to be given is root's: a mailbox that was just made. It is the way
        where the maildirs of two others of that uid are that uid's.
        """
        uid = self._users[name].uid
        others = self._of[uid]
        if uid not in self._housed:
            housed = (other for other in others if _uid_of(self._places[other]) == uid)
            self._housed[uid] = set(islice(housed, 3))
        if len(others) == 1 or (not owner and len(self._housed[uid] - {name}) > 1):
            return ""
        return self._called(next(other for other in others if other != name))

    def holds(self, name: str) -> str:
        """Whose maildir lies in what is named as this user's, as owner() says it; "" for nobody's."""
        if self._above is None:
            self._above = {}
            for other, place in self._places.items():
                above = os.path.dirname(place)
                while above not in self._above:
                    self._above[above] = other
                    above = os.path.dirname(above)
        inside = self._above.get(self._places[name], "")
        return self._called(inside) if inside else ""

    def problem(self, name: str) -> Problem | None:
        """What is named as this user's maildir and is another user's, or lies in it."""
        user = self._users[name]
        place = self._places[name]
        if len(self._at[place]) > 1:
            uid = _uid_of(place)
            strangers = [other for other in self._at[place] if self._users[other].uid != user.uid]
            rightful = next((other for other in strangers if self._users[other].uid == uid), "")
            if rightful:
                return f"this is {self._called(rightful)}", _OWN
            if strangers and uid != user.uid:
                return f"this is named as {self._called(strangers[0])} too, and belongs to uid {uid}", _OWN
        inner = self.holds(name)
        if inner and not _is_maildir(place):
            return f"this is no maildir: {inner} lies in it", _OWN
        outer = self._maildir_at(os.path.dirname(place))
        if outer:
            other = self._at[outer][0]
            return f"this lies in the maildir of {other} (line {self._lines.get(other, 0)})", _OWN
        return None

    def _maildir_at(self, directory: str) -> str:
        found = self._outer.get(directory)
        if found is None:
            above = os.path.dirname(directory)
            if above == directory:
                found = ""
            elif directory in self._at and _is_maildir(directory):
                found = directory
            else:
                found = self._maildir_at(above)
            self._outer[directory] = found
        return found

    def shares(self, name: str) -> str:
        """The first user whose maildir this user has too, and may read; "" for none."""
        first = self._at[self._places[name]][0]
        return first if first != name and self._users[first].uid == self._users[name].uid else ""


def mailbox_problem(
    user: MailUser, ways: Ways, neighbours: Neighbours | None = None, name: str = "", seen: dict[str, os.stat_result] | None = None,
) -> Problem | None:
    """Say what keeps a maildir from being served, and the mend; None for nothing.

    `name`: the user's, among the neighbours. `seen`: gets what was looked at of the maildir, "" being itself.
    """
    seen = {} if seen is None else seen
    if os.geteuid() not in {0, user.uid}:
        return f"only root can serve the mail of uid {user.uid}", "start it as root"
    strange = neighbours.problem(name) if neighbours is not None else None
    if strange is not None:
        return strange
    whose = (lambda uid: neighbours.owner(uid, name)) if neighbours is not None else _nobody
    shut = ways.blocked(os.path.dirname(user.maildir), user)
    if shut:
        theirs = whose(_uid_of(shut))
        if theirs:
            return f"uid {user.uid} cannot enter {shut}, which is {theirs}", _OWN
        return f"uid {user.uid} cannot enter {shut}", _let_through(shut)
    try:
        found = seen[""] = os.stat(user.maildir)
    except FileNotFoundError:
        if os.path.islink(user.maildir):
            return "is a link that leads nowhere", f"rm {shlex.quote(user.maildir)}, and name the maildir itself in the table"
        return "there is no such directory", _make(user)
    except OSError as error:
        return error.strerror or str(error), "run this as root, or mend the path"
    if not stat.S_ISDIR(found.st_mode):
        return "is no directory", "name the maildir itself, and its subdirectory with -e"
    if found.st_uid != user.uid:
        return _another_s(user, found, "", neighbours, name)
    if found.st_mode & 0o700 != 0o700:
        linked = os.path.islink(user.maildir)
        mend = "name the maildir itself, not a link to it" if linked else f"chmod u+rwx {shlex.quote(user.maildir)}"
        return f"mode {stat.S_IMODE(found.st_mode):04o} shuts its owner out", mend
    return _inside(user, neighbours, name, seen)


def _make(user: MailUser) -> str:
    """As root only where nobody else can put a link there meanwhile: install(1) follows one."""
    path = shlex.quote(user.maildir)
    try:
        above = os.stat(os.path.dirname(user.maildir))
        ours = above.st_uid in {0, os.geteuid()} and not above.st_mode & 0o022
    except OSError:
        ours = True  # the directories above are missing too
    return f"install -d -o {user.uid} -g {user.gid} -m 0700 {path}" if ours else f"mkdir -m 0700 {path}, as uid {user.uid}"


def _uid_of(path: str) -> int:
    """-1 where it is not to be seen."""
    try:
        return os.stat(path).st_uid
    except OSError:
        return -1


def _nobody(_uid: int) -> str:
    return ""


def _another_s(user: MailUser, found: os.stat_result, sub: str, neighbours: Neighbours | None, name: str) -> Problem:
    """A directory is of another uid: given to the user only where nobody else of the table would lose or get mail by it."""
    what = f"{sub and sub + ' '}belongs to uid {found.st_uid}, not {user.uid}"
    whose = neighbours.owner(found.st_uid, name) if neighbours is not None else ""
    if whose:
        mend = _OWN if not sub else f"see whose mail is in it, and let {shlex.quote(os.path.join(user.maildir, sub))} be this user's own"
        return f"{what}: that is {whose}", mend
    namesake = neighbours.namesake(name, found.st_uid) if neighbours is not None else ""
    if namesake:
        mend = f"give this user uid {found.st_uid}, or another of its own" if found.st_uid else "give this user a uid of its own"
        return f"{what}: uid {user.uid} is {namesake}", f"{mend}, in the table"
    inner = neighbours.holds(name) if neighbours is not None else ""
    if inner:
        return f"{what}, and {inner} lies in it", _OWN
    return what, _give(user, found, os.path.join(user.maildir, sub) if sub else user.maildir)


def _inside(user: MailUser, neighbours: Neighbours | None, name: str, seen: dict[str, os.stat_result]) -> Problem | None:
    for sub in _SUBS:
        path = f"{user.maildir}/{sub}"
        try:
            found = seen[sub] = os.lstat(path)
        except FileNotFoundError:
            continue  # it is made with the first session
        except OSError as error:
            return f"{sub}: {error.strerror or error}", "run this as root, or mend the path"
        if not stat.S_ISDIR(found.st_mode):
            return f"{sub} is no directory", f"move {shlex.quote(path)} away; it is made anew"
        if found.st_uid != user.uid:
            return _another_s(user, found, sub, neighbours, name)
        if found.st_mode & 0o700 != 0o700:  # not as root: chmod(1) follows a link that the owner puts in its place
            mend = f"chmod u+rwx {shlex.quote(path)}, as uid {user.uid}"
            return f"{sub}: mode {stat.S_IMODE(found.st_mode):04o} shuts its owner out", mend
    return None


def passed_over(user: MailUser) -> int:
    """How many names in cur and new are no message, though they do not begin with a dot: directories, links, FIFOs, sockets.

    What can't be looked at counts as nothing; mailbox_problem() says that.
    """
    many = 0
    for sub in ("cur", "new"):
        try:
            fd = os.open(os.path.join(user.maildir, sub), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            with os.scandir(fd) as entries:
                many += sum(not (is_message(os.fsencode(e.name)) and e.is_file(follow_symlinks=False)) for e in entries if e.name[0] != ".")
        except OSError:
            continue
        finally:
            os.close(fd)
    return many


def _of_root(directory: str) -> bool:
    return directory == "/root" or directory.startswith("/root/")


def _let_through(directory: str) -> str:
    """A home directory is shut on purpose, root's above all: better move the mail than open it."""
    if _of_root(directory):
        return _NOT_ROOT
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
    if _of_root(os.path.realpath(user.maildir)):
        return _NOT_ROOT
    theirs = "" if not found.st_uid else f"give this user uid {found.st_uid} in the table, or, if the mail in it is this user's: "
    if all(_is_directory(os.path.join(user.maildir, sub)) for sub in _SUBS):
        return f"{theirs}find {path} -xdev -user {found.st_uid} -execdir chown -h {owner} {{}} \\;"
    if what != user.maildir:  # which is this user's already
        return f"{theirs}chown -h {owner} {shlex.quote(what)}"
    if _is_bare(user.maildir) and os.path.dirname(os.path.realpath(user.maildir)) not in _SYSTEM:
        return f"{_OWN}, or, if this is it, chown -h {owner} {path}"
    return f"{_OWN}: this is none"


def _is_maildir(path: str) -> bool:
    """Whether there is new or cur: a maildir need not be whole."""
    return any(_is_directory(os.path.join(path, sub)) for sub in ("cur", "new"))


def _is_bare(path: str) -> bool:
    """Whether there is nothing in it that is not of a maildir."""
    try:
        with os.scandir(path) as entries:
            return all(entry.name in _SUBS for entry in entries)
    except OSError:
        return False


def _is_directory(path: str) -> bool:
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError:
        return False


def judge(
    users: Mapping[str, MailUser], data: bytes, path: str, actors: Mapping[int, str], wide: list[Finding] | None = None,
) -> Iterator[tuple[Finding, bool]]:
    """What is wrong with the mailboxes of a table, and whether it keeps a user from the mail (or lets others at it).

    Args:
        users: the table, read.
        data: the table as it is.
        path: the table's.
        actors: "listener", "auth" and "mda" by the uids that they run as.
        wide: gets what open_to_others() finds, of the same looks.

    """
    lines = name_lines(data)
    neighbours = Neighbours(users, lines)
    ways = Ways()
    for name, user in users.items():
        line = lines.get(name, 0)
        if user.uid in actors:
            what = f"user {name} has the uid of {actors[user.uid]}_user, {user.uid}: that actor could reach the mail"
            yield Finding(path, line, what, "give the mail a uid of its own"), True
        seen: dict[str, os.stat_result] = {}
        problem = mailbox_problem(user, ways, neighbours, name, seen)
        if problem is not None:
            yield Finding(path, line, f"user {name}: {user.maildir}: {problem[0]}", problem[1]), True
        first = neighbours.shares(name)
        if first:
            what = f"user {name} has the same maildir as {first}: {user.maildir}"
            yield Finding(path, line, what, "give each user a maildir of its own"), False
        if wide is not None:
            wide.extend(_open(name, user, line, path, seen if problem is None else _seen(user)))


def open_to_others(users: Mapping[str, MailUser], data: bytes, path: str) -> Iterator[Finding]:
    """Maildirs that others may write to: everybody, or a group that is not their user's; arguments as of judge()."""
    lines = name_lines(data)
    for name, user in users.items():
        yield from _open(name, user, lines.get(name, 0), path, _seen(user))


def _open(name: str, user: MailUser, line: int, path: str, seen: Mapping[str, os.stat_result]) -> Iterator[Finding]:
    wide = list(_wide(user, seen))
    if not wide:
        return
    modes = ", ".join(f"{sub and sub + ': '}mode {mode:04o}" for sub, mode in wide)
    paths = " ".join(shlex.quote(os.path.join(user.maildir, sub) if sub else user.maildir) for sub, _ in wide)
    what = f"user {name}: {user.maildir}: {modes} lets others write to the mail"
    # not as root: chmod(1) follows a link that the owner puts in its place
    yield Finding(path, line, what, f"chmod go-w {paths}, as uid {user.uid}")


def _seen(user: MailUser) -> dict[str, os.stat_result]:
    """A maildir's directories as they are, by name, "" being itself; those that can be looked at."""
    seen = {}
    for sub in ("", *_SUBS):
        with contextlib.suppress(OSError):
            seen[sub] = os.lstat(os.path.join(user.maildir, sub)) if sub else os.stat(user.maildir)
    return seen


def _wide(user: MailUser, seen: Mapping[str, os.stat_result]) -> Iterator[tuple[str, int]]:
    """Which of a maildir's directories are open so, and their modes. Those of another uid are said to be that."""
    for sub, found in seen.items():
        wide = found.st_mode & (0o002 if found.st_gid == user.gid else 0o022)
        if wide and stat.S_ISDIR(found.st_mode) and found.st_uid == user.uid:
            yield sub, stat.S_IMODE(found.st_mode)


def odd_names(users: Mapping[str, MailUser], data: bytes, path: str) -> Iterator[Finding]:
    """What lies among the mail and is none; arguments as of judge(). A start does not look: it would list every maildir."""
    lines = name_lines(data)
    for name, user in users.items():
        many = passed_over(user)
        if many:
            what = f"user {name}: {user.maildir}: {_not_mail(many)}"
            yield Finding(path, lines.get(name, 0), what, "move them away; where a link stands for a message, put the message there")


def _not_mail(many: int) -> str:
    if many == 1:
        return "1 name in cur and new is no regular file: it is no mail"
    return f"{many} names in cur and new are no regular files: they are no mail"


def warnings(table: str, subdir: str, *, fold: bool = False, actors: Mapping[int, str] | None = None) -> Iterator[str]:
    """A line for each of the first ten mailboxes of a table that can't be served, and for how many more there are; then for other faults.

    These are maildirs that users share, and those that others may write to.

    `fold`: where mail finds its user in any case, also for users whose names differ in nothing else. `actors`: as of judge().
    """
    users = read_users(table, subdir)
    data = read_regular(table, MAX_TABLE)
    if fold:
        yield from map(str, twins(users, data, table))
    broken = 0
    shared: list[Finding] = []
    wide: list[Finding] = []
    for finding, error in judge(users, data, table, actors or {}, wide):
        if not error:
            shared.append(finding)
            continue
        broken += 1
        if broken <= MOST_NAMED:
            yield f"{finding.what}; {finding.mend}"
    if broken > MOST_NAMED:
        yield f"and {broken - MOST_NAMED} more mailbox{'es' * (broken > MOST_NAMED + 1)} can't be served; see `popkernel check`"
    yield from map(str, few(shared, "more users have others' maildirs, see `popkernel check`", MOST_NAMED))
    yield from map(str, few(wide, "more users' maildirs are open to others, see `popkernel check`", MOST_NAMED))
