"""Test faults of mailboxes, and that each mend works and touches nothing else."""

import contextlib
import os
import shutil
import socket
import stat
import subprocess

import pytest
from popkernel.kernel.init import mailbox_faults
from popkernel.kernel.init.mailbox_faults import (
    PathAccess,
    count_odd_names,
    mailbox_findings,
    mailbox_problem,
    open_to_others,
    warnings,
)
from popkernel.proto.files.tables import MailUser, parse_users

ROOT = os.geteuid() == 0
UID, GID = (64150, 64151) if ROOT else (os.geteuid(), os.getegid())
needs_root = pytest.mark.root("other owners need root")


@pytest.fixture
def user(tmp_path, monkeypatch):
    """Provide a user whose maildir does not exist yet and has a name that the shell would split unquoted."""
    # pytest's directories are 0700, which has its own test
    monkeypatch.setattr(PathAccess, "blocked", lambda *_: "")
    (tmp_path / "elsewhere").mkdir()
    return MailUser(UID, GID, str(tmp_path / "bob's $(touch pwned); mail"))


def problem(user):
    return mailbox_problem(user, PathAccess())


def make(user, *subs, owner=None):
    for path in (user.maildir, *(os.path.join(user.maildir, sub) for sub in subs)):
        os.mkdir(path, 0o700)
        os.chown(path, *(owner or (UID, GID)))


def mend(user, tmp_path):
    """Run the mend in a shell."""
    what, command = problem(user)
    subprocess.run(["sh", "-ec", command], cwd=tmp_path, check=True, timeout=20)
    assert not (tmp_path / "pwned").exists()
    return what


def test_a_sound_one(user):
    make(user)
    assert problem(user) is None
    for sub in ("tmp", "new", "cur"):
        os.mkdir(f"{user.maildir}/{sub}", 0o700)
        os.chown(f"{user.maildir}/{sub}", UID, GID)
    assert problem(user) is None


@needs_root
def test_missing_where_its_user_could_put_a_link_to_anything(user, tmp_path):
    """install(1) as root follows a link, and would give its target away."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    os.chown(home, UID, GID)
    maildir = user._replace(maildir=str(home / "Maildir"))
    assert problem(maildir) == ("there is no such directory", f"mkdir -m 0700 {home}/Maildir, as uid {UID}")


def test_missing(user, tmp_path):
    assert mend(user, tmp_path) == "there is no such directory"
    assert problem(user) is None
    assert stat.S_IMODE(os.stat(user.maildir).st_mode) == 0o700


def test_a_file_or_a_link_that_leads_nowhere(user, tmp_path):
    os.symlink("nowhere", user.maildir)
    what, command = problem(user)
    assert what == "is a link that leads nowhere"
    subprocess.run(["sh", "-ec", command.partition(", ")[0]], cwd=tmp_path, check=True)
    assert not os.path.lexists(user.maildir)
    with open(user.maildir, "w"):
        assert problem(user)[0] == "is no directory"


@pytest.mark.parametrize("sub", ["", "new"])
def test_shut_to_its_owner(user, tmp_path, sub):
    make(user, "tmp", "new", "cur")
    os.chmod(os.path.join(user.maildir, sub), 0o500)
    what, command = problem(user)
    assert what == f"{sub + ': ' if sub else ''}mode 0500 shuts its owner out"
    subprocess.run(["sh", "-ec", command.partition(", as uid")[0]], cwd=tmp_path, check=True)
    assert problem(user) is None


def test_other_files_in_place_of_a_subdirectory(user):
    make(user)
    os.symlink("/etc", f"{user.maildir}/cur")
    what, command = problem(user)
    assert what == "cur is no directory" and command.startswith("move '")


@needs_root
@pytest.mark.parametrize("where", ["", "cur"])
def test_the_mend_gives_the_maildir_and_nothing_else(user, tmp_path, where):
    """The mend follows no link out of the maildir, and takes no third user's file."""
    make(user, "tmp", "new", "cur", owner=(0, 0))
    if where:
        os.chown(user.maildir, UID, GID)
    theirs = tmp_path / "elsewhere" / "theirs"
    theirs.touch()
    os.symlink(theirs, f"{user.maildir}/cur/link")
    os.symlink(tmp_path / "elsewhere", f"{user.maildir}/cur/directory")
    (tmp_path / "third").touch()
    os.chown(tmp_path / "third", 64199, 64199)
    os.link(tmp_path / "third", f"{user.maildir}/cur/third")
    with open(f"{user.maildir}/cur/1.x", "w"):
        pass
    assert f"belongs to uid 0, not {UID}" in mend(user, tmp_path)
    assert problem(user) is None
    assert os.stat(f"{user.maildir}/cur/1.x").st_uid == UID
    assert (theirs.stat().st_uid, theirs.parent.stat().st_uid, (tmp_path / "third").stat().st_uid) == (
        0,
        0,
        64199,
    )


@needs_root
def test_the_mend_names_only_what_another_owns(user, tmp_path):
    """Giving away the maildir mends nothing if `cur` alone is root's and `new` is missing."""
    make(user, "cur")
    os.chown(f"{user.maildir}/cur", 0, 0)
    assert mend(user, tmp_path) == f"cur belongs to uid 0, not {UID}"
    assert problem(user) is None


@needs_root
def test_a_directory_that_is_no_maildir_is_not_given(user, tmp_path):
    """A table may name /etc by mistake."""
    make(user, "secrets", owner=(0, 0))
    _, command = problem(user)
    assert (
        command.startswith("name this user's own maildir") and "-R" not in command and "find" not in command
    )
    link = tmp_path / "link"
    link.symlink_to(user.maildir)
    assert problem(user._replace(maildir=str(link)))[1].startswith("name the maildir itself")


def said_of(tmp_path, *rows):
    """Return (what, mend) for each line of a table."""
    table = "".join(f"user{n} {uid}:{uid}:{path}\n" for n, (uid, path) in enumerate(rows, 1)).encode()
    users, findings = parse_users(table, "users")
    assert not findings
    said = {}
    for finding, error in mailbox_findings(users, table, "users", {64002: "auth"} if ROOT else {}):
        said.setdefault(finding.line, []).append(
            (finding.what.replace(f"{tmp_path}/", ""), finding.mend, error)
        )
    return said


def maildir(path, uid):
    for one in (path, *(path / sub for sub in ("tmp", "new", "cur"))):
        one.mkdir(mode=0o700)
        os.chown(one, uid, uid)
    return path


OWN = "name this user's own maildir in the table"


@needs_root
@pytest.mark.parametrize("linked", [False, True])
def test_the_mend_never_gives_another_user_s_maildir(tmp_path, monkeypatch, linked):
    """A mend must not chown a neighbour's mail because a line names it."""
    monkeypatch.setattr(PathAccess, "blocked", lambda *_: "")
    theirs = maildir(tmp_path / "theirs", 64202)
    named = theirs
    if linked:
        (tmp_path / "way").symlink_to(tmp_path)
        named = tmp_path / "way" / "theirs"
    for rows in ([(64201, named), (64202, theirs)], [(64202, theirs), (64201, named)]):
        wrong = 1 + (rows[0][0] == 64202)
        name = f"user{wrong}: {str(named).removeprefix(f'{tmp_path}/')}"
        assert said_of(tmp_path, *rows) == {
            wrong: [(f"user {name}: this is user{3 - wrong}'s (line {3 - wrong})", OWN, True)]
        }
    # the owner is in the table, but has another maildir there
    said = said_of(tmp_path, (64201, theirs), (64202, maildir(tmp_path / "new-one", 64202)))
    assert said == {
        1: [("user user1: theirs: belongs to uid 64202, not 64201: that is user2's (line 2)", OWN, True)]
    }


@needs_root
def test_the_mend_never_gives_another_user_s_subdirectory(tmp_path, monkeypatch):
    monkeypatch.setattr(PathAccess, "blocked", lambda *_: "")
    mine, theirs = maildir(tmp_path / "mine", 64201), maildir(tmp_path / "theirs", 64202)
    os.chown(mine / "cur", 64202, 64202)
    ((what, mend, _),) = said_of(tmp_path, (64201, mine), (64202, theirs))[1]
    assert what == "user user1: mine: cur belongs to uid 64202, not 64201: that is user2's (line 2)"
    assert "chown" not in mend and f"{mine}/cur" in mend


@needs_root
def test_a_maildir_inside_of_another_s(open_path):
    """A mend must not open the other's maildir to everybody."""
    theirs = maildir(open_path / "theirs", 64202)
    inner = maildir(theirs / ".Inner", 64201)
    assert said_of(open_path, (64201, inner), (64202, theirs)) == {
        1: [("user user1: theirs/.Inner: this lies in the maildir of user2 (line 2)", OWN, True)]
    }
    home = open_path / "home"
    home.mkdir(mode=0o700)
    os.chown(home, 64202, 64202)
    ((what, mend, _),) = said_of(open_path, (64201, maildir(home / "box", 64201)), (64202, theirs))[1]
    assert (what, mend) == (
        "user user1: home/box: uid 64201 cannot enter home, which is user2's (line 2)",
        OWN,
    )


@needs_root
@pytest.mark.parametrize("owner", [64201, 0])
@pytest.mark.parametrize("sub", ["", "cur"])
def test_the_mend_gives_nothing_to_another_user_s_uid(tmp_path, monkeypatch, owner, sub):
    """A mend must not chown a user's mail to the neighbour whose uid a line has by mistake."""
    monkeypatch.setattr(PathAccess, "blocked", lambda *_: "")
    alice, bob = maildir(tmp_path / "alice", 64202 if sub else owner), maildir(tmp_path / "bob", 64202)
    os.chown(alice / sub, owner, owner)
    ((what, mend, error),) = said_of(
        tmp_path, (64202, alice), (64202, bob), (64203, maildir(tmp_path / "carol", 64203))
    )[1]
    assert error and what == (
        f"user user1: alice: {sub and sub + ' '}belongs to uid {owner}, not 64202: uid 64202 is "
        f"user2's (line 2)"
    )
    own = "give this user uid 64201, or another of its own" if owner else "give this user a uid of its own"
    assert mend == f"{own}, in the table"


@needs_root
def test_where_many_users_have_one_uid_a_new_maildir_is_given_to_it(tmp_path, monkeypatch):
    """One uid for all mail is no fault; a maildir that root made belongs to that uid."""
    monkeypatch.setattr(PathAccess, "blocked", lambda *_: "")
    boxes = [maildir(tmp_path / f"box{n}", 64202) for n in range(3)]
    assert said_of(tmp_path, *((64202, box) for box in boxes)) == {}
    new, odd = maildir(tmp_path / "new-one", 0), maildir(tmp_path / "odd", 64201)
    said = said_of(tmp_path, *((64202, box) for box in (*boxes, new, odd)))
    assert said.keys() == {4, 5} and said[4][0][1].startswith("find ")
    assert said[5][0][1] == "give this user uid 64201, or another of its own, in the table"


@needs_root
@pytest.mark.parametrize("owner", [0, 64201, 64202])
def test_a_directory_with_other_maildirs_is_not_given(tmp_path, monkeypatch, owner):
    """A line may name the directory of all maildirs by mistake.

    The mend must not chown it, and the other users have no fault.
    """
    monkeypatch.setattr(PathAccess, "blocked", lambda *_: "")
    mail = tmp_path / "mail"
    mail.mkdir()
    os.chown(mail, owner, owner)
    bob = maildir(mail / "bob", 64202)
    maildir(mail / "alice", 64201)
    for named in (mail, tmp_path):
        said = said_of(tmp_path, (64201, named), (64202, bob))
        name = str(named).replace(f"{tmp_path}/", "")
        assert said == {
            1: [(f"user user1: {name}: this is no maildir: user2's (line 2) lies in it", OWN, True)]
        }
    if owner != 64201:
        for sub in ("tmp", "new", "cur"):
            (mail / sub).mkdir()
        assert said_of(tmp_path, (64201, mail), (64202, bob))[1][0][1] == OWN


@needs_root
def test_a_maildir_named_twice_and_owned_by_neither_is_not_given(tmp_path, monkeypatch):
    monkeypatch.setattr(PathAccess, "blocked", lambda *_: "")
    box = maildir(tmp_path / "box", 0)
    said = said_of(tmp_path, (64201, box), (64202, box))
    assert [said[line][0][:2] for line in (1, 2)] == [
        (
            (
                f"user user{line}: box: this is named as user{3 - line}'s (line {3 - line}) too, and "
                f"belongs to uid 0"
            ),
            OWN,
        )
        for line in (1, 2)
    ]


@needs_root
def test_a_filled_directory_that_is_no_maildir_is_not_given(user, tmp_path):
    for named in ("/etc", "/usr/lib", *filter(os.path.isdir, ("/mnt", "/srv", "/var/empty", "/var/mail"))):
        assert problem(user._replace(maildir=named))[1] == f"{OWN}: this is none"
    make(user, owner=(0, 0))
    assert "chown -h" in problem(user)[1]
    os.mkdir(f"{user.maildir}/new")
    assert "chown -h" in problem(user)[1]
    os.mkdir(f"{user.maildir}/Documents")
    assert "chown" not in problem(user)[1]
    assert (
        mailbox_faults._chown_mend(user._replace(maildir="/root/Maildir"), os.stat("/"), "/root/Maildir")
        == mailbox_faults._NOT_ROOT
    )


@needs_root
def test_a_maildir_of_an_unlisted_user_is_given_with_a_doubt(user, tmp_path):
    """It may be that user's mail, and the uid in the table wrong."""
    make(user, "tmp", "new", "cur", owner=(64188, 64188))
    assert problem(user)[1].startswith(
        "give this user uid 64188 in the table, or, if the mail in it is this user's: find "
    )


def test_a_maildir_that_others_may_write_to_is_named_once_and_mended(user, tmp_path):
    """Whoever can write there can add and remove mail."""
    make(user, "tmp", "new", "cur")

    def said():
        return list(open_to_others({"bob": user}, f"# c\nbob {UID}:{GID}:{user.maildir}\n".encode(), "users"))

    for mode in (0o700, 0o750, 0o770, 0o755):  # the group is the user's
        os.chmod(user.maildir, mode)
        assert said() == []
    os.chmod(user.maildir, 0o777)
    os.chmod(f"{user.maildir}/new", 0o1702)
    os.symlink("/tmp", f"{user.maildir}/link")
    ((path, line, what, command),) = said()
    assert (path, line) == ("users", 2)
    assert what == f"user bob: {user.maildir}: mode 0777, new: mode 1702 lets others write to the mail"
    command, _, who = command.rpartition(", as ")
    assert who == f"uid {UID}"
    subprocess.run(["sh", "-ec", command], cwd=tmp_path, check=True, timeout=20)
    assert said() == [] and stat.S_IMODE(os.stat(user.maildir).st_mode) == 0o755
    assert not (tmp_path / "pwned").exists()


@needs_root
def test_a_maildir_that_a_strange_group_may_write_to_is_named(user):
    make(user, "tmp", "new", "cur", owner=(UID, 64190))
    os.chmod(f"{user.maildir}/cur", 0o770)
    (finding,) = open_to_others({"bob": user}, b"", "users")
    assert "cur: mode 0770 lets others" in finding.what and finding.mend.endswith(
        f"; mail/cur', as uid {UID}"
    )


def test_a_maildir_that_two_users_of_one_uid_share_is_served_and_named(tmp_path, monkeypatch):
    monkeypatch.setattr(PathAccess, "blocked", lambda *_: "")
    box = maildir(tmp_path / "box", UID)
    shared = ("user user2 has the same maildir as user1: box", "give each user a maildir of its own", False)
    assert said_of(tmp_path, (UID, box), (UID, box)) == {2: [shared]}


@needs_root
def test_a_user_with_an_actor_s_uid(tmp_path, monkeypatch):
    monkeypatch.setattr(PathAccess, "blocked", lambda *_: "")
    ((what, _, error),) = said_of(tmp_path, (64002, maildir(tmp_path / "box", 64002)))[1]
    assert error and what == "user user1 has the uid of auth_user, 64002: that actor could reach the mail"


@pytest.mark.skipif(ROOT, reason="root can serve everyone")
def test_an_ordinary_user_s_own_only(user):
    assert "only root can serve" in problem(user._replace(uid=UID + 1))[0]


@needs_root
def test_a_way_that_is_shut(tmp_path):
    path = tmp_path / "a b"
    path.mkdir(0o700)
    # any of pytest's own directories may exclude the user first: quoted if needed; root's home is never
    # opened
    what, command = mailbox_problem(MailUser(UID, GID, str(path / "x")), PathAccess())
    assert what.startswith(f"uid {UID} cannot enter /") and command.startswith("chmod o+x /")
    assert mailbox_faults._passage_mend("/srv/a b") == "chmod o+x '/srv/a b', or keep the mail elsewhere"
    assert "chmod" not in mailbox_faults._passage_mend("/root") + mailbox_faults._passage_mend("/root/mail")


@pytest.mark.parametrize(("broken", "lines"), [(0, 0), (10, 10), (11, 11), (50, 11)])
def test_ten_are_named(tmp_path, monkeypatch, broken, lines):
    monkeypatch.setattr(PathAccess, "blocked", lambda *_: "")
    table = tmp_path / "users"
    with table.open("w") as file:
        for number in range(60):
            path = tmp_path / f"u{number}"
            file.write(f"u{number} {UID}:{GID}:{path}\n")
            if number >= broken:
                path.mkdir(0o700)
                os.chown(path, UID, GID)
    said = list(warnings(str(table), ""))
    assert len(said) == lines
    if broken > 10:
        assert (
            said[-1]
            == f"and {broken - 10} more mailbox{'es' * (broken > 11)} can't be served; see `popkernel check`"
        )
    shutil.rmtree(tmp_path)


def test_a_home_directory_that_the_unit_hides(tmp_path, monkeypatch):
    """The mend is a setting of the unit, not `chmod` on what systemd has put over the directory."""
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(0)
    monkeypatch.setattr(mailbox_faults, "_HIDDEN", (str(home),))
    monkeypatch.setattr(PathAccess, "blocked", lambda *_: str(home))
    what, said = problem(MailUser(UID, GID, f"{home}/alice/Maildir"))
    assert what == f"uid {UID} cannot enter {home}" and "ProtectHome=no" in said
    home.chmod(0o700)
    assert "chmod o+x" in problem(MailUser(UID, GID, f"{home}/alice/Maildir"))[1]


@needs_root
def test_a_read_only_file_system(user):
    make(user)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"ro,uid={UID},mode=700", "t", user.maildir], check=True)
    try:
        what, said = problem(user)
    finally:
        subprocess.run(["umount", user.maildir], check=True)
    assert "read-only" in what and "ReadWritePaths=" in said
    assert problem(user) is None


def test_ignored_names_are_counted(user):
    """Counts names without a leading dot that are no mail; nothing is opened, and a FIFO blocks nothing."""
    make(user, "cur", "new", "tmp")
    for name in ("1.a:2,", "no-number", "1354123456_0.1234.host,U=1:2,S", ".hidden"):
        with open(f"{user.maildir}/cur/{name}", "w"):
            pass
    assert count_odd_names(user) == 0
    os.mkdir(f"{user.maildir}/cur/dir")
    os.mkfifo(f"{user.maildir}/new/fifo")
    os.symlink("1.a:2,", f"{user.maildir}/cur/link")
    os.symlink("nowhere", f"{user.maildir}/cur/dangling")
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as sock, contextlib.chdir(f"{user.maildir}/new"):
        sock.bind("socket")
    with open(f"{user.maildir}/cur/:2,S", "w"):
        pass
    os.mkdir(f"{user.maildir}/cur/.directory")
    assert count_odd_names(user) == 6
    shutil.rmtree(f"{user.maildir}/cur")
    os.symlink("new", f"{user.maildir}/cur")
    assert count_odd_names(user) == 2, "a link is not followed"


def test_each_directory_of_a_maildir_is_read_once(tmp_path, monkeypatch):
    """Each start checks ten thousand mailboxes."""
    monkeypatch.setattr(PathAccess, "blocked", lambda *_: "")
    boxes = [tmp_path / f"box{number}" for number in range(3)]
    users = {f"user{number}": MailUser(UID, GID, str(box)) for number, box in enumerate(boxes)}
    for user in users.values():
        make(user, "tmp", "new", "cur")
    os.chmod(f"{boxes[1]}/new", 0o777)
    looked = []
    for name in ("stat", "lstat"):
        real = getattr(os, name)
        monkeypatch.setattr(
            mailbox_faults.os,
            name,
            lambda path, *rest, real=real, **more: looked.append(str(path)) or real(path, *rest, **more),
        )
    wide = []
    assert list(mailbox_findings(users, b"", "users", {}, wide)) == []
    inside = [path for path in looked if os.path.dirname(path) in map(str, boxes)]
    assert len(inside) == len(set(inside)) == 9
    assert wide == list(open_to_others(users, b"", "users")) and len(wide) == 1


def test_maildirs_are_no_problem_of_their_neighbours(tmp_path, monkeypatch):
    """A maildir inside a maildir is a fault; two beside each other are not."""
    monkeypatch.setattr(PathAccess, "blocked", lambda *_: "")
    outer, inner, beside = tmp_path / "a", tmp_path / "a" / "deep" / "b", tmp_path / "c"
    users = {
        name: MailUser(UID, GID, str(path))
        for name, path in (("inner", inner), ("outer", outer), ("beside", beside))
    }
    make(users["outer"], "tmp", "new", "cur", "deep")
    make(users["inner"], "tmp", "new", "cur")
    make(users["beside"], "tmp", "new", "cur")
    said = [finding.what for finding, _ in mailbox_findings(users, b"outer 1\n", "users", {})]
    assert said == [f"user inner: {inner}: this lies in the maildir of outer (line 1)"]
