"""Test a large number of new messages, served from new/, and which popcache lines are trusted."""

import errno
import os

import pytest
from popkernel.actors.maildir.session import Session
from popkernel.actors.maildir.store import files as directory
from popkernel.actors.maildir.store import scan
from popkernel.actors.maildir.store.maildrop import Maildrop
from popkernel.actors.maildir.store.policy import Policy
from popkernel.actors.maildir.store.scan import Scan
from popkernel.proto import messages as m
from popkernel.proto.files import popcache
from popkernel.proto.pop3.octets import encode

from tests.support.maildirs import read_lines
from tests.unit.test_store import MAIL, Box, rows, shown, text

MANY = scan.MOVED_AT_ONCE + 44
NAMES = [b"%d.x" % (1000 + i) for i in range(MANY)]


def letter(name):
    return b"Subject: %s\n\n.dotted\n" % name + b"line\n" * (int(name[:4]) % 7)


@pytest.fixture
def box(tmp_path):
    box = Box(tmp_path)
    yield box
    box.drop.close()


@pytest.fixture
def many(box):
    for name in NAMES:
        box.put(name, letter(name), b"new")
    return box


@pytest.fixture
def measured(monkeypatch):
    """Record the names of measured files."""
    names = []
    real = directory.measure_all

    def measure_all(files, meanwhile=None):
        names.extend(name for _, name, _ in files)
        return real(files, meanwhile)

    monkeypatch.setattr(directory, "measure_all", measure_all)
    return names


def expected(names=NAMES):
    return [row for name in names for row in rows(name, data=letter(name))]


def test_few_new_messages_are_moved_before_the_session(box):
    for name in NAMES[: scan.MOVED_AT_ONCE]:
        box.put(name, letter(name), b"new")
    assert shown(box.drop.listing()) == expected(NAMES[: scan.MOVED_AT_ONCE])
    assert box.names(b"new") == []
    assert not box.drop.untidy


@pytest.mark.parametrize("proven", [False, True])
def test_many_new_messages_are_served_from_new(many, proven):
    if proven:
        many.age()
        many.drop.listing()
    listing = many.again()
    assert (listing.infos[0] is None) == proven
    assert shown(listing) == expected()
    assert many.names(b"new") == sorted(NAMES)
    for i in (0, 5, MANY - 1):
        assert many.drop.read_wire(listing, i, 1000) == encode(letter(NAMES[i]))[0]
        fd = many.drop.open_message(listing, i)
        assert os.read(fd, 1000) == letter(NAMES[i])
        os.close(fd)
    assert many.names(b"cur") == []


def test_messages_are_removed_from_new_and_both_directories_synced(many, monkeypatch):
    listing = many.drop.listing()
    # another program lists the directory
    os.rename(many.path + b"/new/" + NAMES[7], many.path + b"/cur/" + NAMES[7] + b":2,F")
    synced = set()
    real = directory.sync
    monkeypatch.setattr(directory, "sync", lambda fd: (synced.add(fd), real(fd)))
    assert many.drop.remove(listing, [0, 7, 9]) == []
    assert synced == {many.drop.new, many.drop.cur}
    left = [name for i, name in enumerate(NAMES) if i not in (0, 7, 9)]
    assert many.names(b"new") == sorted(left)
    assert many.names() == []
    assert shown(many.again()) == expected(left)


def test_read_messages_are_moved_with_their_flag(many):
    listing = many.drop.listing()
    many.drop.mark_seen(listing, [3, 4])
    assert many.names() == [NAMES[3] + b":2,S", NAMES[4] + b":2,S"]
    assert many.drop.read_wire(listing, 3, 1000) == encode(letter(NAMES[3]))[0]
    assert shown(many.again()) == expected()


def test_trashed_from_new(many):
    many.drop.policy = Policy(deletion="trash-flag", hide_trashed=True)
    assert many.drop.remove(many.drop.listing(), [1]) == []
    assert many.names() == [NAMES[1] + b":2,T"]
    assert shown(many.drop.listing()) == expected([name for name in NAMES if name != NAMES[1]])


def test_messages_with_odd_names_are_moved_at_once(many):
    many.put(b"1.flagged:2,F", MAIL, b"new")
    many.put(NAMES[0] + b":2,S", MAIL)  # another message of that name
    many.put(b"no-number", MAIL, b"new")
    os.mkdir(many.path + b"/new/2.directory")
    os.mkfifo(many.path + b"/new/3.fifo")
    os.symlink("/etc/passwd", many.path + b"/new/4.link")
    listing = many.drop.listing()
    assert listing.count == MANY + 3
    assert shown(listing)[0] == rows(b"1.flagged")[0]
    assert b"1.flagged:2,F" in many.names()
    found = [
        many.drop.read_wire(listing, i, 1000) for i in range(listing.count) if listing.name(i)[:5] == b"1000."
    ]
    assert sorted(found) == sorted(encode(mail)[0] for mail in (MAIL, letter(NAMES[0])))
    assert shown(listing)[-1] == rows(b"no-number")[0]
    assert {b"no-number", b"2.directory", b"3.fifo", b"4.link"} < set(many.names(b"new"))
    while many.drop.tidy():
        pass
    assert many.names(b"new") == [b"2.directory", b"3.fifo", b"4.link"]


def test_tidy_moves_a_few_messages_at_a_time(many):
    before = many.drop.listing()
    for rounds in (1, 2, 3):
        assert many.drop.tidy(100) == (rounds < 3)
        assert many.names() == [name + b":2," for name in sorted(NAMES)[: 100 * rounds]]
    assert many.names(b"new") == []
    after = many.drop.listing()
    assert (after.digest(), shown(after)) == (before.digest(), expected())
    assert not many.drop.tidy()


def test_messages_moved_by_another_program_during_measuring(many, monkeypatch):
    real = directory.measure_all

    def measure_all(files, meanwhile=None):
        for name in NAMES[::3]:
            if os.path.exists(many.path + b"/new/" + name):
                os.rename(many.path + b"/new/" + name, many.path + b"/cur/" + name + b":2,S")
        return real(files, meanwhile)

    monkeypatch.setattr(directory, "measure_all", measure_all)
    listing = many.drop.listing()
    assert shown(listing) == expected()
    assert many.drop.read_wire(listing, 0, 1000) == encode(letter(NAMES[0]))[0]
    assert shown(many.again()) == expected()


def test_tidy_gives_way_to_the_lock_s_holder(many):
    many.drop.listing()
    other = Maildrop(many.path)
    lock = other.take_lock("SYS/TEMP")
    assert not many.drop.tidy()
    assert not many.drop._held_until  # a login now waits for the lock as usual
    os.close(lock)
    other.close()
    assert many.names(b"new") == sorted(NAMES)


def test_a_parked_session_goes_on_after_tidy(many):
    session = Session(many.drop, many.drop.listing())
    session.take(m.Delete(2, 1))
    while session.step() is not None:
        pass
    state = session.park()
    while many.drop.tidy():
        pass
    awake = Session.wake(many.drop, many.drop.listing(), state)
    awake.take(m.Retrieve(1, 2, 0))
    assert awake.step().data == encode(letter(NAMES[0]))[0]
    awake.take(m.Quit([]))
    while awake.step() is not None:
        pass
    assert NAMES[1] not in [name.partition(b":")[0] for name in many.names()]
    assert many.names()[0] == NAMES[0] + b":2,S"


def deliver(drop, data=MAIL):
    with drop.deliver_begin() as delivery:
        delivery.write(data)
        return delivery.commit().encode()


@pytest.mark.parametrize("count", [3, MANY])
def test_deliveries_of_popkernel_are_trusted_in_another_process(box, measured, count):
    names = [deliver(box.drop) for _ in range(count)]
    assert shown(box.again()) == rows(*names)
    assert measured == []


@pytest.mark.parametrize("count", [3, MANY])
def test_lines_of_other_programs_are_not_trusted(box, measured, count):
    names = [b"5.other", *(deliver(box.drop) for _ in range(count))]
    box.put(b"5.other", MAIL, b"new")
    box.cache += text(b"5.other", octets=999)
    names.append(deliver(box.drop))  # after a line that nobody has checked
    assert sorted(shown(box.again())) == sorted(rows(*names))
    assert {name.partition(b":")[0] for name in measured} == {b"5.other", names[-1]}
    measured.clear()
    names.append(deliver(box.drop))
    assert sorted(shown(box.again())) == sorted(rows(*names))
    assert measured == []


def test_a_header_beyond_its_lines_is_not_trusted():
    good = text(b"1.a", b"2.b")
    for checked in (popcache.HEADER_LENGTH + len(good) + 1, popcache.HEADER_LENGTH + 5, 1):
        cache = popcache.parse(popcache.Header(0, (0, 0), (0, 0), 0, checked).encode() + good)
        assert (cache.names, cache.refused, cache.checked) == ([b"1.a", b"2.b"], 0, 0)
    half = popcache.HEADER_LENGTH + len(text(b"1.a"))
    cache = popcache.parse(popcache.Header(0, (0, 0), (0, 0), 0, half).encode() + good)
    assert (cache.names, cache.checked) == ([b"1.a", b"2.b"], 1)


def test_a_header_of_version_1_is_ignored(box):
    box.put(b"1.a:2,")
    box.cache = b"#popkernel 1 " + b" ".join([b"0" * 20] * 6) + b"\n" + text(b"1.a")
    box.age()
    assert shown(box.drop.listing()) == rows(b"1.a")
    assert shown(box.again()) == rows(b"1.a")
    assert popcache.parse_header(box.cache).checked == len(box.cache)


def test_measuring_works_without_o_noatime(box, monkeypatch):
    """O_NOATIME is refused for another user's mail."""
    box.put(b"1.a:2,")
    real = os.open

    def refuse(path, flags, *rest, **more):
        if flags & os.O_NOATIME:
            raise PermissionError(errno.EPERM, "not the owner")
        return real(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", refuse)
    assert shown(box.drop.listing()) == rows(b"1.a")


def test_files_of_every_kind_are_measured_in_one_go(box):
    large = b"x\n" * 40_000
    box.put(b"1.large:2,", large)
    box.put(b"2.empty:2,", b"")
    box.put(b"3.full:2,", b"y" * directory.CHUNK)
    box.put(b"4.less:2,", b"y" * (directory.CHUNK - 1))
    os.mkfifo(box.path + b"/cur/5.fifo:2,")
    os.mkdir(box.path + b"/cur/6.directory:2,")
    writer = os.open(box.path + b"/cur/5.fifo:2,", os.O_RDWR | os.O_NONBLOCK)
    os.write(writer, MAIL)
    assert list(box.drop.listing().sizes) == [
        len(large) + 40_000,
        0,
        directory.CHUNK + 2,
        directory.CHUNK + 1,
    ]
    os.close(writer)


def counted(monkeypatch):
    """Record the scans."""
    scans = []
    real = Scan.read
    monkeypatch.setattr(Scan, "read", lambda *args: (scans.append(1), real(*args))[1])
    return scans


def test_own_moves_need_no_new_scan(many, monkeypatch):
    """The first session scans; later ones know what was moved from new/ to cur/."""
    scans = counted(monkeypatch)
    first = shown(many.drop.listing())
    assert len(scans) == 1
    while many.drop.tidy(50):
        assert shown(many.drop.listing()) == first
        listing = many.drop.listing()
        assert read_lines(many.drop, listing, 0, 1000) is not None
    assert many.names(b"new") == []
    assert not many.drop.untidy
    many.drop.mark_seen(many.drop.listing(), [0, 1])
    assert shown(many.drop.listing()) == first
    assert len(scans) == 1


def test_changes_by_others_during_a_move_are_seen(many, monkeypatch):
    scans = counted(monkeypatch)
    many.drop.listing()
    many.drop.tidy(50)
    many.put(b"1.delivered", MAIL, b"new")
    assert many.drop.listing().count == MANY + 1
    many.drop.tidy(50)
    os.unlink(many.path + b"/new/1.delivered") if b"1.delivered" in many.names(b"new") else os.unlink(
        many.path + b"/cur/1.delivered:2,"
    )
    assert many.drop.listing().count == MANY
    assert len(scans) == 3


def test_two_seconds_after_a_move_nothing_is_read(many, monkeypatch):
    many.drop.listing()
    while many.drop.tidy(1000):
        pass
    many.age()
    many.drop.settle()
    before = many.drop.listing()
    monkeypatch.setattr(os, "listdir", None)
    assert many.drop.listing() is before


def test_a_maildir_that_was_emptied_is_empty(many):
    many.drop.listing()
    for name in many.names(b"new"):
        os.unlink(many.path + b"/new/" + name)
    assert many.drop.listing().count == 0
    many.put(b"1.a", MAIL, b"new")
    assert many.drop.listing().count == 1
