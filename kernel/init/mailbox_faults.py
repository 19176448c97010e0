"""Find what prevents serving mailboxes, by stat(2) alone: for `popkernel check`, a start and a reload.

Every mend is safe to run as root, though the mailbox's owner may have put links into it. No command follows a
link. A recursive one is given for a maildir only, and changes only files of one former owner.
"""

import contextlib
import os
import shlex
import stat
from collections.abc import Iterator, Mapping
from itertools import islice

from popkernel.kernel.config.regular_files import read_regular
from popkernel.kernel.config.user_table import read_users
from popkernel.proto.access.user_names import case_conflicts, name_lines
from popkernel.proto.files.maildir_names import is_message
from popkernel.proto.files.tables import MAX_TABLE, Finding, MailUser, first_findings

__all__ = [
    "MOST_NAMED",
    "PathAccess",
    "TableUsers",
    "count_odd_names",
    "mailbox_findings",
    "mailbox_problem",
    "odd_names",
    "open_to_others",
    "warnings",
]

MOST_NAMED = 10  # broken mailboxes named one by one at a start
_OWN = "name this user's own maildir in the table"
_NOT_ROOT = "keep the mail outside of root's home directory"
_SUBS = ("tmp", "new", "cur")
# systemd's ProtectHome=yes puts a directory of mode 000 over each of these
_HIDDEN = ("/home", "/root")
# an empty directory directly in one of these is no maildir: /mnt and /var/empty, for example
_SYSTEM = ("/", "/var", "/usr", "/usr/local")

Problem = tuple[str, str]
"""What is wrong, and the mend."""


class PathAccess:
    """Check directories above maildirs, each once: 10,000 users share a few."""

    def __init__(self) -> None:
        self._blocked: dict[tuple[str, int, int], str] = {}
        self._open: dict[str, os.stat_result | None] = {}

    def blocked(self, directory: str, user: MailUser) -> str:
        """Return the first directory, from / to `directory`, that the user may not enter; "" for none."""
        key = (directory, user.uid, user.gid)
        if key not in self._blocked:
            self._blocked[key] = self._find_blocked(directory, user)
        return self._blocked[key]

    def _find_blocked(self, directory: str, user: MailUser) -> str:
        paths = [directory]
        while paths[-1] != os.path.dirname(paths[-1]):
            paths.append(os.path.dirname(paths[-1]))
        for path in reversed(paths):
            found = self._state(path)
            # missing, or hidden from this process: reported for the maildir itself
            if found is None:
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


class TableUsers:
    """Compare a user with the others of the table: a mend must not give one user's mail to another."""

    def __init__(self, users: Mapping[str, MailUser], lines: Mapping[str, int]) -> None:
        """Take the users by name, and their lines in the table."""
        self._users = users
        self._lines = lines
        self._real: dict[str, str] = {}  # directories above maildirs -> real paths
        self._at: dict[str, list[str]] = {}  # real path of a maildir -> names
        self._of: dict[int, list[str]] = {}  # uid -> names
        # uid -> names, at most three, whose maildirs belong to that uid
        self._owners: dict[int, set[str]] = {}
        # directory above a maildir -> one name; made when it is first needed
        self._above: dict[str, str] | None = None
        self._places: dict[str, str] = {}  # name -> real path of the maildir
        # directory -> the maildir that it is or lies in, "" for none: thousands of users share directories
        self._outer: dict[str, str] = {}
        for name, user in users.items():
            place = self._places[name] = self._real_path(user.maildir)
            self._at.setdefault(place, []).append(name)
            self._of.setdefault(user.uid, []).append(name)

    def _real_path(self, maildir: str) -> str:
        above, base = os.path.split(os.path.normpath(maildir))
        if above not in self._real:
            self._real[above] = os.path.realpath(above)
        place = os.path.join(self._real[above], base)
        return os.path.realpath(place) if os.path.islink(place) else place

    def _possessive(self, name: str) -> str:
        return f"{name}'s (line {self._lines[name]})" if self._lines.get(name) else f"{name}'s"

    def owner(self, uid: int, name: str) -> str:
        """Return another user who has this uid, as "bob's (line 2)"; "" if none has, or `name` has it too."""
        others = self._of.get(uid)
        return self._possessive(others[0]) if others and uid != self._users[name].uid else ""

    def sharer(self, name: str, owner: int) -> str:
        """Return another user with this user's uid, who would get a directory with it; "" for none.

        The text is as of owner(). Also "" if the table has one uid for many users on purpose, and root owns
        the directory (`owner` is 0), as it does that of a new mailbox. It is on purpose if the maildirs of
        two other users of the uid belong to it.
        """
        uid = self._users[name].uid
        others = self._of[uid]
        if uid not in self._owners:
            owners = (other for other in others if _uid_of(self._places[other]) == uid)
            self._owners[uid] = set(islice(owners, 3))
        if len(others) == 1 or (not owner and len(self._owners[uid] - {name}) > 1):
            return ""
        return self._possessive(next(other for other in others if other != name))

    def holds(self, name: str) -> str:
        """Return another user whose maildir lies below this user's, as of owner(); "" for none."""
        if self._above is None:
            self._above = {}
            for other, place in self._places.items():
                above = os.path.dirname(place)
                while above not in self._above:
                    self._above[above] = other
                    above = os.path.dirname(above)
        inside = self._above.get(self._places[name], "")
        return self._possessive(inside) if inside else ""

    def problem(self, name: str) -> Problem | None:
        """Return the problem of a maildir that is another user's or lies in another's; None if it is not."""
        user = self._users[name]
        place = self._places[name]
        if len(self._at[place]) > 1:
            uid = _uid_of(place)
            strangers = [other for other in self._at[place] if self._users[other].uid != user.uid]
            rightful = next((other for other in strangers if self._users[other].uid == uid), "")
            if rightful:
                return f"this is {self._possessive(rightful)}", _OWN
            if strangers and uid != user.uid:
                return (
                    f"this is named as {self._possessive(strangers[0])} too, and belongs to uid {uid}",
                    _OWN,
                )
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
        """Return the first user of the table with the same maildir and uid; "" for none."""
        first = self._at[self._places[name]][0]
        return first if first != name and self._users[first].uid == self._users[name].uid else ""


def mailbox_problem(
    user: MailUser,
    access: PathAccess,
    others: TableUsers | None = None,
    name: str = "",
    seen: dict[str, os.stat_result] | None = None,
) -> Problem | None:
    """Return what prevents serving a maildir, and the mend; None for nothing.

    Args:
        user: the maildir's user.
        access: of the directories above.
        others: all users of the table.
        name: the user's, in the table.
        seen: gets the states of the maildir's directories by name; "" is the maildir itself.
    """
    seen = {} if seen is None else seen
    if os.geteuid() not in {0, user.uid}:
        return f"only root can serve the mail of uid {user.uid}", "start it as root"
    conflict = others.problem(name) if others is not None else None
    if conflict is not None:
        return conflict
    blocked = access.blocked(os.path.dirname(user.maildir), user)
    if blocked:
        owner = others.owner(_uid_of(blocked), name) if others is not None else ""
        if owner:
            return f"uid {user.uid} cannot enter {blocked}, which is {owner}", _OWN
        return f"uid {user.uid} cannot enter {blocked}", _passage_mend(blocked)
    try:
        found = seen[""] = os.stat(user.maildir)
    except FileNotFoundError:
        if os.path.islink(user.maildir):
            return (
                "is a link that leads nowhere",
                f"rm {shlex.quote(user.maildir)}, and name the maildir itself in the table",
            )
        return "there is no such directory", _create_mend(user)
    except OSError as error:
        return error.strerror or str(error), "run this as root, or mend the path"
    if not stat.S_ISDIR(found.st_mode):
        return "is no directory", "name the maildir itself, and its subdirectory with -e"
    if found.st_uid != user.uid:
        return _wrong_owner(user, found, "", others, name)
    if found.st_mode & 0o700 != 0o700:
        linked = os.path.islink(user.maildir)
        mend = (
            "name the maildir itself, not a link to it"
            if linked
            else f"chmod u+rwx {shlex.quote(user.maildir)}"
        )
        return f"mode {stat.S_IMODE(found.st_mode):04o} shuts its owner out", mend
    if _is_read_only(user.maildir):
        what = "lies on a read-only file system: mail can be read, but neither delivered nor removed"
        return what, "mount it writable, or name its place in ReadWritePaths= of the unit"
    return _subdirectory_problem(user, others, name, seen)


def _create_mend(user: MailUser) -> str:
    """Return the command that makes the maildir.

    As root only where no other user can put a link there in between: install(1) follows one.
    """
    path = shlex.quote(user.maildir)
    try:
        above = os.stat(os.path.dirname(user.maildir))
        safe = above.st_uid in {0, os.geteuid()} and not above.st_mode & 0o022
    except OSError:
        safe = True  # the directory above is missing too
    return (
        f"install -d -o {user.uid} -g {user.gid} -m 0700 {path}"
        if safe
        else f"mkdir -m 0700 {path}, as uid {user.uid}"
    )


def _uid_of(path: str) -> int:
    """Return the uid of a file's owner; -1 if the file can't be seen."""
    try:
        return os.stat(path).st_uid
    except OSError:
        return -1


def _mode_of(path: str) -> int:
    """Return the permissions of a directory; 0o777 if they can't be seen."""
    try:
        return stat.S_IMODE(os.stat(path).st_mode)
    except OSError:
        return 0o777


def _is_read_only(path: str) -> bool:
    """Return whether a directory lies on a file system that is mounted read-only."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return bool(os.fstatvfs(fd).f_flag & os.ST_RDONLY)
    finally:
        os.close(fd)


def _wrong_owner(
    user: MailUser, found: os.stat_result, sub: str, others: TableUsers | None, name: str
) -> Problem:
    """Return the problem of a directory that belongs to another uid.

    The mend gives it to the user only if no other user of the table loses or gets mail by that.
    """
    what = f"{sub and sub + ' '}belongs to uid {found.st_uid}, not {user.uid}"
    owner = others.owner(found.st_uid, name) if others is not None else ""
    if owner:
        path = shlex.quote(os.path.join(user.maildir, sub))
        mend = _OWN if not sub else f"see whose mail is in it, and let {path} be this user's own"
        return f"{what}: that is {owner}", mend
    sharer = others.sharer(name, found.st_uid) if others is not None else ""
    if sharer:
        mend = (
            f"give this user uid {found.st_uid}, or another of its own"
            if found.st_uid
            else "give this user a uid of its own"
        )
        return f"{what}: uid {user.uid} is {sharer}", f"{mend}, in the table"
    inner = others.holds(name) if others is not None else ""
    if inner:
        return f"{what}, and {inner} lies in it", _OWN
    return what, _chown_mend(user, found, os.path.join(user.maildir, sub) if sub else user.maildir)


def _subdirectory_problem(
    user: MailUser, others: TableUsers | None, name: str, seen: dict[str, os.stat_result]
) -> Problem | None:
    for sub in _SUBS:
        path = f"{user.maildir}/{sub}"
        try:
            found = seen[sub] = os.lstat(path)
        except FileNotFoundError:
            continue  # the first session makes it
        except OSError as error:
            return f"{sub}: {error.strerror or error}", "run this as root, or mend the path"
        if not stat.S_ISDIR(found.st_mode):
            return f"{sub} is no directory", f"move {shlex.quote(path)} away; it is made anew"
        if found.st_uid != user.uid:
            return _wrong_owner(user, found, sub, others, name)
        # not as root: chmod(1) follows a link that the owner may put in its place
        if found.st_mode & 0o700 != 0o700:
            mend = f"chmod u+rwx {shlex.quote(path)}, as uid {user.uid}"
            return f"{sub}: mode {stat.S_IMODE(found.st_mode):04o} shuts its owner out", mend
    return None


def count_odd_names(user: MailUser) -> int:
    """Count names in cur and new that are no messages: directories, links, FIFOs, sockets, but no dot files.

    Directories that can't be read count as empty; mailbox_problem() reports them.
    """
    many = 0
    for sub in ("cur", "new"):
        try:
            fd = os.open(
                os.path.join(user.maildir, sub), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            )
        except OSError:
            continue
        try:
            with os.scandir(fd) as entries:
                many += sum(
                    not (is_message(os.fsencode(e.name)) and e.is_file(follow_symlinks=False))
                    for e in entries
                    if e.name[0] != "."
                )
        except OSError:
            continue
        finally:
            os.close(fd)
    return many


def _of_root(directory: str) -> bool:
    return directory == "/root" or directory.startswith("/root/")


def _passage_mend(directory: str) -> str:
    """Return the mend for a directory that a user may not enter.

    Home directories are closed on purpose, root's above all: moving the mail is better than opening one.
    """
    if directory in _HIDDEN and not _mode_of(directory):
        return "the unit hides it: give it ProtectHome=no and ReadWritePaths= (mail-in-home.conf)"
    if _of_root(directory):
        return _NOT_ROOT
    return f"chmod o+x {shlex.quote(directory)}, or keep the mail elsewhere"


def _chown_mend(user: MailUser, found: os.stat_result, what: str) -> str:
    """Return the mend that gives a maildir, or the directory `what` in it, to its user.

    It changes all files in it only if it surely is a maildir, and then only files of its present owner.
    `chown -h` changes a link and not its target. With `-execdir` a link that is put into the path while
    find(1) runs has no effect.
    """
    path = shlex.quote(user.maildir)
    owner = f"{user.uid}:{user.gid}"
    if os.path.islink(user.maildir):
        return "name the maildir itself in the table, not a link to it"
    if _of_root(os.path.realpath(user.maildir)):
        return _NOT_ROOT
    instead = (
        ""
        if not found.st_uid
        else f"give this user uid {found.st_uid} in the table, or, if the mail in it is this user's: "
    )
    if all(_is_directory(os.path.join(user.maildir, sub)) for sub in _SUBS):
        return f"{instead}find {path} -xdev -user {found.st_uid} -execdir chown -h {owner} {{}} \\;"
    if what != user.maildir:  # a directory in a maildir that is this user's already
        return f"{instead}chown -h {owner} {shlex.quote(what)}"
    if _is_bare(user.maildir) and os.path.dirname(os.path.realpath(user.maildir)) not in _SYSTEM:
        return f"{_OWN}, or, if this is it, chown -h {owner} {path}"
    return f"{_OWN}: this is none"


def _is_maildir(path: str) -> bool:
    """Return whether the directory has new or cur: a maildir need not be complete."""
    return any(_is_directory(os.path.join(path, sub)) for sub in ("cur", "new"))


def _is_bare(path: str) -> bool:
    """Return whether the directory has no other entries than a maildir has."""
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


def mailbox_findings(
    users: Mapping[str, MailUser],
    data: bytes,
    path: str,
    actors: Mapping[int, str],
    wide: list[Finding] | None = None,
) -> Iterator[tuple[Finding, bool]]:
    """Yield what is wrong with the mailboxes of a table, and whether it is an error.

    An error keeps a user from the mail, or lets an actor reach it.

    Args:
        users: the table's users.
        data: the table's octets.
        path: the table's path.
        actors: "listener", "auth" and "mda" by the uids that they run as.
        wide: gets what open_to_others() finds, without further calls of stat(2).
    """
    lines = name_lines(data)
    others = TableUsers(users, lines)
    access = PathAccess()
    for name, user in users.items():
        line = lines.get(name, 0)
        if user.uid in actors:
            what = (
                f"user {name} has the uid of {actors[user.uid]}_user, {user.uid}: "
                "that actor could reach the mail"
            )
            yield Finding(path, line, what, "give the mail a uid of its own"), True
        seen: dict[str, os.stat_result] = {}
        problem = mailbox_problem(user, access, others, name, seen)
        if problem is not None:
            yield Finding(path, line, f"user {name}: {user.maildir}: {problem[0]}", problem[1]), True
        first = others.shares(name)
        if first:
            what = f"user {name} has the same maildir as {first}: {user.maildir}"
            yield Finding(path, line, what, "give each user a maildir of its own"), False
        if wide is not None:
            wide.extend(_writable_finding(name, user, line, path, seen if problem is None else _states(user)))


def open_to_others(users: Mapping[str, MailUser], data: bytes, path: str) -> Iterator[Finding]:
    """Yield maildirs that everybody may write to, or a group other than the user's.

    Arguments as of mailbox_findings().
    """
    lines = name_lines(data)
    for name, user in users.items():
        yield from _writable_finding(name, user, lines.get(name, 0), path, _states(user))


def _writable_finding(
    name: str, user: MailUser, line: int, path: str, seen: Mapping[str, os.stat_result]
) -> Iterator[Finding]:
    wide = list(_writable(user, seen))
    if not wide:
        return
    modes = ", ".join(f"{sub and sub + ': '}mode {mode:04o}" for sub, mode in wide)
    paths = " ".join(shlex.quote(os.path.join(user.maildir, sub) if sub else user.maildir) for sub, _ in wide)
    what = f"user {name}: {user.maildir}: {modes} lets others write to the mail"
    # not as root: chmod(1) follows a link that the owner may put in its place
    yield Finding(path, line, what, f"chmod go-w {paths}, as uid {user.uid}")


def _states(user: MailUser) -> dict[str, os.stat_result]:
    """Return the states of a maildir's directories by name, "" for itself, as far as they can be seen."""
    seen = {}
    for sub in ("", *_SUBS):
        with contextlib.suppress(OSError):
            seen[sub] = os.lstat(os.path.join(user.maildir, sub)) if sub else os.stat(user.maildir)
    return seen


def _writable(user: MailUser, seen: Mapping[str, os.stat_result]) -> Iterator[tuple[str, int]]:
    """Yield names and modes of a maildir's directories that others may write to.

    Not those of another uid, which mailbox_problem() reports.
    """
    for sub, found in seen.items():
        wide = found.st_mode & (0o002 if found.st_gid == user.gid else 0o022)
        if wide and stat.S_ISDIR(found.st_mode) and found.st_uid == user.uid:
            yield sub, stat.S_IMODE(found.st_mode)


def odd_names(users: Mapping[str, MailUser], data: bytes, path: str) -> Iterator[Finding]:
    """Yield maildirs with names in cur and new that are no messages; arguments as of mailbox_findings().

    Not for a start: this lists every maildir.
    """
    lines = name_lines(data)
    for name, user in users.items():
        many = count_odd_names(user)
        if many:
            what = f"user {name}: {user.maildir}: {_not_mail(many)}"
            yield Finding(
                path,
                lines.get(name, 0),
                what,
                "move them away; where a link stands for a message, put the message there",
            )


def _not_mail(many: int) -> str:
    if many == 1:
        return "1 name in cur and new is no regular file: it is no mail"
    return f"{many} names in cur and new are no regular files: they are no mail"


def warnings(
    table: str, subdir: str, *, fold: bool = False, actors: Mapping[int, str] | None = None
) -> Iterator[str]:
    """Yield a line for each of the first ten mailboxes that can't be served, then for other faults.

    Other faults are maildirs that users share, and maildirs that others may write to.

    Args:
        table: path of the user table.
        subdir: of each maildir, as configured.
        fold: mail finds its user without regard to case: report names that differ in case only.
        actors: as of mailbox_findings().
    """
    users = read_users(table, subdir)
    data = read_regular(table, MAX_TABLE)
    if fold:
        yield from map(str, case_conflicts(users, data, table))
    broken = 0
    shared: list[Finding] = []
    wide: list[Finding] = []
    for finding, error in mailbox_findings(users, data, table, actors or {}, wide):
        if not error:
            shared.append(finding)
            continue
        broken += 1
        if broken <= MOST_NAMED:
            yield f"{finding.what}; {finding.mend}"
    if broken > MOST_NAMED:
        more = f"{broken - MOST_NAMED} more mailbox{'es' * (broken > MOST_NAMED + 1)}"
        yield f"and {more} can't be served; see `popkernel check`"
    yield from map(
        str, first_findings(shared, "more users have others' maildirs, see `popkernel check`", MOST_NAMED)
    )
    yield from map(
        str,
        first_findings(wide, "more users' maildirs are open to others, see `popkernel check`", MOST_NAMED),
    )
