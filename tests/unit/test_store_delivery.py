"""Test delivery into the maildir with a crash at every step: no mail lost, no UIDL changed or false."""

import errno
import hashlib
import os
import time
from types import SimpleNamespace

import pytest
from popkernel.actors.maildir.actions import Leave, Refuse
from popkernel.actors.maildir.deliveries import Deliveries
from popkernel.actors.maildir.store.errors import MovedError, StoreError
from popkernel.actors.maildir.store.maildrop import Maildrop
from popkernel.actors.maildir.store.quota import Quota
from popkernel.proto import messages as m
from popkernel.proto.files import popcache
from popkernel.proto.pop3.octets import wire_size

from tests.support.maildirs import read_lines

MAIL = b"Subject: x\n\nhello\n"


def uidl(name):
    return hashlib.sha256(name).hexdigest().encode()


@pytest.fixture
def drop(tmp_path):
    drop = Maildrop(str(tmp_path / "Maildir"), lock_wait=0.05, hostname="mx.example.org")
    yield drop
    drop.close()


def deliver(drop, data=MAIL):
    with drop.deliver_begin() as delivery:
        delivery.write(data[:7])
        delivery.write(data[7:])
        return delivery.commit().encode()


def test_delivered_mail_is_there_with_its_line(drop):
    name = deliver(drop)
    time, number, host = name.split(b".", 2)
    assert time.isdigit()
    assert len(number) == 8
    assert host == b"mx.example.org"
    assert os.listdir(drop.tmp) == []
    assert os.listdir(drop.new) == [name.decode()]
    assert os.stat(name, dir_fd=drop.new).st_mode & 0o777 == 0o600
    with open("popcache", "rb", opener=lambda path, flags: os.open(path, flags, dir_fd=drop.root)) as file:
        assert file.read().endswith(b"\n%s %d %s\n" % (name, wire_size(MAIL), uidl(name)))
    listing = drop.listing()
    assert (listing.name(0), listing.size(0), listing.uidl(0)) == (name, wire_size(MAIL), uidl(name))
    assert read_lines(drop, listing, 0, 99) == MAIL


def test_a_session_does_not_see_new_mail(drop):
    deliver(drop)
    listing = drop.listing()
    deliver(drop, b"second\n")
    assert listing.count == 1
    assert read_lines(drop, listing, 0, 99) == MAIL
    assert drop.remove(listing, [0]) == []
    after = drop.listing()
    assert after.count == 1
    assert read_lines(drop, after, 0, 99) == b"second\n"


def test_mail_of_one_second_is_numbered_in_order(tmp_path):
    drop = Maildrop(str(tmp_path / "Maildir"), clock=lambda: 1_800_000_000.5)
    for i in range(50):
        deliver(drop, b"%d\n" % i)
    listing = drop.listing()
    assert [read_lines(drop, listing, i, 99) for i in range(50)] == [b"%d\n" % i for i in range(50)]
    drop.close()


def test_names_never_collide(tmp_path):
    drop = Maildrop(str(tmp_path / "Maildir"), clock=lambda: 1_800_000_000.0, random=lambda n: b"\xff" * n)
    other = Maildrop(str(tmp_path / "Maildir"), clock=lambda: 1_800_000_000.0, random=lambda n: b"\xff" * n)
    names = {deliver(d) for d in (drop, other, other, drop, drop)}
    assert len(names) == 5
    assert drop.listing().count == 5
    drop.close()
    other.close()


def test_aborted_mail_leaves_nothing(drop):
    delivery = drop.deliver_begin()
    delivery.write(MAIL)
    delivery.abort()
    delivery.abort()
    assert os.listdir(drop.tmp) == os.listdir(drop.new) == []


@pytest.mark.parametrize(
    ("call", "number", "code"),
    [
        ("write", errno.ENOSPC, "SYS/TEMP"),
        ("write", errno.EDQUOT, "SYS/TEMP"),
        ("fsync", errno.EIO, "SYS/TEMP"),
        ("link", errno.EROFS, "SYS/TEMP"),
        ("link", errno.ENAMETOOLONG, "SYS/PERM"),
    ],
)
def test_errors_are_reported_and_leave_nothing(drop, monkeypatch, call, number, code):
    def fails(*_, **__):
        raise OSError(number, "told to")

    delivery = drop.deliver_begin()
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fails)
        with pytest.raises(StoreError) as caught:
            delivery.write(MAIL)
            delivery.commit()
    assert caught.value.code == code
    delivery.abort()
    assert os.listdir(drop.tmp) == os.listdir(drop.new) == []


def test_a_message_in_an_unsynced_new_is_taken_back(drop, monkeypatch):
    real = os.fsync

    def fails(fd):
        if fd == drop.new:
            raise OSError(errno.EIO, "told to")
        real(fd)

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(StoreError), drop.deliver_begin() as delivery:
        delivery.write(MAIL)
        delivery.commit()
    assert os.listdir(drop.tmp) == os.listdir(drop.new) == []
    assert drop.listing().count == 0


def test_no_room_for_the_popcache_line_refuses_no_message(drop, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        name = deliver(drop)
    listing = drop.listing()
    assert (listing.name(0), listing.uidl(0)) == (name, uidl(name))


def test_file_systems_without_hard_links(drop, monkeypatch):
    def refuses(*_, **__):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuses)
    name = deliver(drop)
    listing = drop.listing()
    assert listing.name(0) == name
    assert os.listdir(drop.new) == os.listdir(drop.tmp) == []


def test_sweep_takes_old_files_only(tmp_path, drop):
    for name, age in (("old", 40 * 3600), ("young", 3600)):
        path = tmp_path / "Maildir" / "tmp" / name
        path.write_bytes(b"x")
        os.utime(path, (path.stat().st_mtime - age,) * 2)
    (tmp_path / "Maildir" / "tmp" / "dir").mkdir()
    os.utime(tmp_path / "Maildir" / "tmp" / "dir", (0, 0))
    assert drop.sweep_tmp() == 1
    assert sorted(os.listdir(drop.tmp)) == ["dir", "young"]


# Crashes


class Crash:
    """End the process after step number `last`, or count steps."""

    def __init__(self, last=0):
        self.last = last
        self.steps = 0

    def __call__(self, step):
        self.steps += 1
        if self.steps == self.last:
            os._exit(42)


def fill(path):
    """Make five messages: one with another server's UIDL, one whose line is to be removed, two in new/."""
    Maildrop(path).close()
    for i in range(1, 6):
        with open(f"{path}/cur/{i}.m:2,", "wb") as file:
            file.write(b"%d\n" % i)
    for i in (6, 7):
        with open(f"{path}/new/{i}.m", "wb") as file:
            file.write(b"%d\n" % i)
    lines = [popcache.format_line(b"%d.m" % i, 3, uidl(b"%d.m" % i)) for i in (1, 3, 4)]
    lines.insert(1, popcache.format_line(b"2.m", 3, b"from-afar"))
    with open(f"{path}/popcache", "wb") as file:
        file.write(popcache.format_line(b"0.gone", 3, uidl(b"0.gone")) + b"".join(lines))


def act_list(drop):
    drop.listing()


def act_rebuild(drop):
    with open("popcache", "ab", opener=lambda path, flags: os.open(path, flags, dir_fd=drop.root)) as file:
        file.write(b"garbage\n5.m 3")
    drop.listing()


def act_remove(drop):
    drop.remove(drop.listing(), [0, 2])


def act_compact(drop):
    drop.remove(drop.listing(), [0, 2, 3, 4, 5])


def act_deliver(drop):
    with drop.deliver_begin() as delivery:
        delivery.write(b"8\n")
        delivery.commit()


def crashed(path, act, last):
    """Run `act` in a child that ends at step `last`; return its number of steps, None if it was cut short."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        code = 1
        try:
            crash = Crash(last)
            act(Maildrop(path, fault=crash))
            os.write(write, b"%d" % crash.steps)
            code = 0
        finally:
            os._exit(code)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        steps = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code == (42 if last else 0)
    return int(steps or 0)


def check(path, may_be_gone=()):
    """Check, twice, that a fresh store serves each message once, whole, under its right UIDL."""
    for _ in range(2):
        drop = Maildrop(path)
        listing = drop.listing()
        bodies = [read_lines(drop, listing, i, 99) for i in range(listing.count)]
        assert len(set(bodies)) == len(bodies)
        assert {b"%d\n" % i for i in range(1, 8)} - set(bodies) <= {b"%d\n" % i for i in may_be_gone}
        for i in range(listing.count):
            expected = b"from-afar" if listing.name(i) == b"2.m" else uidl(listing.name(i))
            assert listing.uidl(i) == expected
        cache = popcache.parse(open_read(path))
        assert cache.names == listing.names
        assert cache.uidls == listing.uidls
        assert not cache.refused
        assert [name for name in os.listdir(path) if name.startswith("popcache")] == ["popcache"]
        drop.close()
    return bodies


def open_read(path):
    with open(f"{path}/popcache", "rb") as file:
        return file.read()


@pytest.mark.parametrize(
    ("act", "removed"),
    [
        (act_list, ()),
        (act_rebuild, ()),
        (act_remove, (1, 3)),
        (act_compact, (1, 3, 4, 5, 6)),
        (act_deliver, ()),
    ],
)
def test_crash_at_every_step(tmp_path, act, removed):
    whole = str(tmp_path / "whole")
    fill(whole)
    steps = crashed(whole, act, 0)
    assert steps >= 4
    done = check(whole, removed)
    assert set(done) == {b"%d\n" % i for i in range(1, 9 if act is act_deliver else 8) if i not in removed}
    for last in range(1, steps + 1):
        path = str(tmp_path / str(last))
        fill(path)
        crashed(path, act, last)
        check(path, removed)


class _KillError(BaseException):
    pass


def kill_at(path, wanted, act=act_list):
    """Run `act` until that step; return False if it has no such step."""

    def fault(step):
        if step == wanted:
            raise _KillError

    drop = Maildrop(path, fault=fault)
    try:
        act(drop)
    except _KillError:
        return True
    finally:
        drop.close()
    return False


def full(*_):
    raise OSError(errno.ENOSPC, "full")


REWRITE = ("rewrite:journaling", "rewrite:journal", "rewrite:truncated", "rewrite:half", "rewrite:written")


@pytest.mark.parametrize("second", [*REWRITE, "disk full"])
@pytest.mark.parametrize("first", REWRITE)
def test_an_imported_uidl_survives_two_faults(tmp_path, monkeypatch, first, second):
    path = str(tmp_path / "Maildir")
    fill(path)
    assert kill_at(path, first, act_rebuild)
    if second in REWRITE:
        assert kill_at(path, second)
    else:
        drop = Maildrop(path)
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", full)
            assert drop.listing().count == 7
        drop.close()
    check(path)


def test_a_quit_does_not_compact_what_a_crash_left(tmp_path, monkeypatch):
    path = str(tmp_path / "Maildir")
    Maildrop(path).close()
    for i in range(10, 30):
        with open(f"{path}/cur/{i}.m:2,", "wb") as file:
            file.write(MAIL)
    with open(f"{path}/popcache", "wb") as file:
        file.write(
            b"".join(popcache.format_line(b"%d.m" % i, len(MAIL) + 3, b"afar%d" % i) for i in range(10, 30))
            + b"torn"
        )
    assert kill_at(path, "rewrite:half")
    drop = Maildrop(path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        listing = drop.listing()
    assert drop.remove(listing, range(1, 19)) == []
    drop.close()
    drop = Maildrop(path)
    assert drop.listing().uidls == [b"afar10", b"afar29"]
    drop.close()


def test_a_journal_that_cannot_be_read_now_is_not_replaced(tmp_path, monkeypatch):
    path = str(tmp_path / "Maildir")
    fill(path)
    assert kill_at(path, "rewrite:truncated", act_rebuild)
    real = os.open

    def few(name, *args, **kw):
        if name == b"popcache.new":
            raise OSError(errno.EMFILE, "Too many open files")
        return real(name, *args, **kw)

    drop = Maildrop(path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", few)
        with pytest.raises(StoreError):
            drop.listing()
    drop.close()
    check(path)


def test_a_crash_between_link_and_unlink_leaves_one_message(tmp_path):
    path = str(tmp_path / "Maildir")
    drop = Maildrop(path)
    name = deliver(drop).decode()
    os.link(f"{path}/new/{name}", f"{path}/cur/{name}:2,")
    assert drop.listing().count == 1
    drop._clock = lambda: time.time() + 10
    assert drop.listing().count == 1
    assert os.listdir(drop.new) == []
    assert os.listdir(drop.cur) == [f"{name}:2,"]
    drop.close()


@pytest.mark.parametrize("where", ["cur/5.a:2,S", "new/5.a"])
@pytest.mark.parametrize("call", ["link", "rename", "unlink"])
def test_a_crash_while_a_second_file_gets_its_own_name(tmp_path, monkeypatch, where, call):
    path = str(tmp_path / "Maildir")
    Maildrop(path).close()
    for name, data in (("cur/5.a:2,", b"one\n"), (where, b"two\n")):
        with open(f"{path}/{name}", "wb") as file:
            file.write(data)
    real = getattr(os, call)

    def boom(*args, **kw):
        real(*args, **kw)
        raise _KillError

    drop = Maildrop(path)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, boom)
        try:
            drop.listing()
        except _KillError:
            assert call == "rename"
    drop.close()
    drop = Maildrop(path)
    drop._clock = lambda: time.time() + 10
    for _ in range(2):
        listing = drop.listing()
        assert sorted(read_lines(drop, listing, i, 99) for i in range(listing.count)) == [b"one\n", b"two\n"]
    drop.close()


def put_another(path, part=""):
    """Replace a maildir, or a directory of it, as an operator does who moves it and makes a new one."""
    os.rename(os.path.join(path, part).rstrip("/"), f"{path}.old{part}")
    if not part:
        os.mkdir(path, 0o700)
    for name in ("cur", "new", "tmp") if not part else (part,):
        os.mkdir(f"{path}/{name}", 0o700)


def where_mail_is(path):
    return [
        os.path.join(at, name)
        for root in (path, f"{path}.old", f"{path}.oldnew")
        for at, _, names in os.walk(root)
        for name in names
        if "cache" not in name
    ]


@pytest.mark.parametrize("part", ["", "new"])
@pytest.mark.parametrize("step", ["deliver:synced", "deliver:locked", "deliver:shown"])
def test_nothing_is_confirmed_in_a_replaced_directory(tmp_path, step, part):
    """A message already shown there is taken back; the next one follows the path, or fails."""
    path = str(tmp_path / "Maildir")
    drop = Maildrop(path, hostname="h")
    deliver(drop)
    put = []

    def fault(at):
        if at == step and not put:
            put.append(at)
            put_another(path, part)

    drop._fault = fault
    before = len(where_mail_is(path))
    with pytest.raises(StoreError) as caught:
        deliver(drop)
    assert caught.value.code == "SYS/TEMP"
    assert isinstance(caught.value, MovedError) == (not part)
    assert len(where_mail_is(path)) == before
    if part:
        deliver(drop)
        assert len(os.listdir(f"{path}/new")) == 1
    else:
        with pytest.raises(MovedError):
            drop.deliver_begin()
        with pytest.raises(MovedError):
            drop.listing()
    drop.close()


def test_an_unopenable_directory_changes_no_held_descriptor(tmp_path):
    """All or none: a closed descriptor must not be kept, since its number is soon reused."""
    path = str(tmp_path / "Maildir")
    drop = Maildrop(path, hostname="h")
    name = deliver(drop)
    drop.listing()
    for part in ("cur", "new"):
        os.rename(f"{path}/{part}", f"{path}/{part}.x")
    os.mkdir(f"{path}/cur", 0o700)
    os.symlink("nowhere", f"{path}/new")
    before = sorted(os.listdir("/proc/self/fd"))
    held = drop.cur, drop.new, drop.tmp
    for _ in range(3):
        with pytest.raises(StoreError, match="new is no directory"):
            drop.listing()
        assert (drop.cur, drop.new, drop.tmp) == held
        assert sorted(os.listdir("/proc/self/fd")) == before
    os.unlink(f"{path}/new")
    os.rename(f"{path}/new.x", f"{path}/new")
    os.rmdir(f"{path}/cur")
    os.rename(f"{path}/cur.x", f"{path}/cur")
    assert [drop.listing().name(i) for i in range(1)] == [name]
    drop.close()


def test_the_quota_of_a_moved_maildir_bounces_nothing(tmp_path):
    """The full quota is that of the maildir that was moved away."""
    path = str(tmp_path / "Maildir")
    drop = Maildrop(path, hostname="h")
    deliver(drop)
    deliveries = Deliveries(
        drop, StoreError("SYS/TEMP", "none"), Quota(drop.root, "2C", time.time), full="5.2.2"
    )
    channel, other = SimpleNamespace(fd=5), SimpleNamespace(fd=6)
    post = m.DeliveryWhole(1, "a@example.org", "b@example.org", MAIL)
    assert deliveries.take(other, m.DeliveryBegin(7, "a@example.org", "b@example.org", 0)) == []
    accepted, delivered = deliveries.take(channel, post)
    assert accepted == m.DeliveryAccepted(1, len(MAIL), safe=True)
    assert delivered.fields["file"] in os.listdir(os.path.join(path, "new"))
    assert [action.status for action in deliveries.take(channel, post)] == ["5.2.2"]
    put_another(path)
    *before, last = deliveries.take(channel, post)
    assert before == [
        Leave(),
        Refuse(other, m.DeliveryRejected(7, "4.3.2", "the mailbox has moved, try again later")),
    ]
    assert last.status == "4.3.2"
    assert deliveries.stale and not deliveries.open
    drop.close()


def test_nothing_is_removed_from_a_maildir_moved_away(tmp_path):
    path = str(tmp_path / "Maildir")
    drop = Maildrop(path, hostname="h")
    deliver(drop)
    listing = drop.listing()
    put_another(path)
    with pytest.raises(StoreError):
        drop.remove(listing, [0])
    assert len(where_mail_is(path)) == 1
    os.utime(where_mail_is(path)[0], (0, 0))
    os.rename(where_mail_is(path)[0], f"{path}.old/tmp/left")
    with pytest.raises(StoreError):
        drop.sweep_tmp()
    assert os.listdir(f"{path}.old/tmp") == ["left"]
    drop.close()
