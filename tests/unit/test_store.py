"""Test the maildir store on awkward maildirs: each message is served as itself or not at all."""

import contextlib
import errno
import fcntl
import hashlib
import os
import time

import pytest
from popkernel.actors.maildir.store import files, popcache_file
from popkernel.actors.maildir.store.errors import StoreError
from popkernel.actors.maildir.store.maildrop import Maildrop
from popkernel.proto.files import popcache
from popkernel.proto.pop3.octets import encode, wire_size

from tests.support.maildirs import read_lines

MAIL = b"Subject: x\n\nhello\n"


def uidl(name):
    return hashlib.sha256(name).hexdigest().encode()


class Box:
    def __init__(self, path):
        self.path = os.fsencode(path / "Maildir")
        self.drop = Maildrop(self.path, lock_wait=0.05)

    def put(self, name, data=MAIL, where=b"cur"):
        with open(os.path.join(self.path, where, name), "wb") as file:
            file.write(data)

    def names(self, where=b"cur"):
        return sorted(os.listdir(os.path.join(self.path, where)))

    def again(self):
        self.drop.close()
        self.drop = Maildrop(self.path, lock_wait=0.05)
        return self.drop.listing()

    def age(self):
        """Advance the clock by ten seconds, so that directories are no longer young."""
        self.drop._clock = lambda: time.time() + 10

    @property
    def cache(self):
        with open(self.path + b"/popcache", "rb") as file:
            return file.read()

    @cache.setter
    def cache(self, data):
        with open(self.path + b"/popcache", "wb") as file:
            file.write(data)


@pytest.fixture
def box(tmp_path):
    box = Box(tmp_path)
    yield box
    box.drop.close()


def shown(listing):
    return [(listing.name(i), listing.size(i), listing.uidl(i)) for i in range(listing.count)]


def rows(*names, data=MAIL):
    return [(name, wire_size(data), uidl(name)) for name in names]


def text(*names, octets=wire_size(MAIL)):
    return b"".join(popcache.format_line(name, octets, uidl(name)) for name in names)


# Making and opening


def test_missing_directories_are_made_private(box):
    for part in (b"", b"/cur", b"/new", b"/tmp"):
        assert os.stat(box.path + part).st_mode & 0o777 == 0o700
    listing = box.drop.listing()
    assert (listing.count, listing.octets, listing.notes) == (0, 0, ())
    assert os.stat(box.path + b"/popcache").st_mode & 0o777 == 0o600
    assert box.cache == b""


def test_only_the_last_component_is_made(tmp_path):
    with pytest.raises(StoreError) as caught:
        Maildrop(os.fsencode(tmp_path / "no" / "Maildir"))
    assert str(tmp_path) not in caught.value.text


@pytest.mark.parametrize("part", ["cur", "new", "tmp"])
def test_a_symbolic_link_for_a_directory_is_refused(tmp_path, part):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / part).symlink_to("elsewhere")
    with pytest.raises(StoreError) as caught:
        Maildrop(str(tmp_path))
    assert caught.value.code == "SYS/PERM"
    assert part in caught.value.text


def test_cur_turned_into_a_link_under_a_warm_store(box):
    box.drop.listing()
    os.rename(box.path + b"/cur", box.path + b"/old")
    os.symlink(b"old", box.path + b"/cur")
    with pytest.raises(StoreError) as caught:
        box.drop.listing()
    assert caught.value.code == "SYS/PERM"


def test_cur_replaced_under_a_warm_store(box):
    box.put(b"1.a:2,")
    box.drop.listing()
    os.rename(box.path + b"/cur", box.path + b"/old")
    os.mkdir(box.path + b"/cur", 0o700)
    box.put(b"2.b:2,")
    assert shown(box.drop.listing()) == rows(b"2.b")


# What is listed


def test_order_sizes_uidls_and_new_to_cur(box):
    box.put(b"10.b:2,S")
    box.put(b"9.z:2,")
    box.put(b"10.a", where=b"new")
    box.put(b"100000000000000000000000.big:2,", b"")
    box.put(b"007.x", b"no end")
    listing = box.drop.listing()
    expected = [
        (b"007.x", 8),
        (b"9.z", 21),
        (b"10.a", 21),
        (b"10.b", 21),
        (b"100000000000000000000000.big", 0),
    ]
    assert [(n, s) for n, s, _ in shown(listing)] == expected
    assert listing.octets == 71
    assert box.names(b"new") == []
    assert b"10.a:2," in box.names()
    assert shown(box.again()) == shown(listing)
    assert listing.digest() == box.drop.listing().digest()


def test_a_negative_index_is_no_message(box):
    box.put(b"1.a:2,")
    listing = box.drop.listing()
    for ask in (listing.size, listing.uidl, listing.name):
        with pytest.raises(IndexError):
            ask(-1)
    for act in (
        box.drop.open_message,
        lambda at, i: read_lines(box.drop, at, i, 99),
        lambda at, i: box.drop.remove(at, [i]),
    ):
        with pytest.raises(IndexError):
            act(listing, -1)
    assert box.names() == [b"1.a:2,"]


def test_awkward_names_are_served(box):
    odd = [b"1.with space", b"2.with\nline", b"3.\xff\xfe8bit", b"4.\xc3\xa9", b"5.", b"6.\r\t\x01"]
    for name in odd:
        box.put(name + b":2,")
    for _ in range(3):
        listing = box.drop.listing()
        assert shown(listing) == rows(*odd)
        assert [read_lines(box.drop, listing, i, 99) for i in range(listing.count)] == [MAIL] * len(odd)
        box.age()
    assert b"space" not in box.cache
    assert b"\nline" not in box.cache
    assert not popcache.parse(box.cache).refused
    assert shown(box.again()) == rows(*odd)
    assert box.drop.remove(listing, [0, 1]) == []
    assert shown(box.drop.listing()) == rows(*odd[2:])


def test_other_files_are_left_alone(box):
    os.mkdir(box.path + b"/cur/1.dir:2,")
    os.symlink(b"/etc/passwd", box.path + b"/cur/2.link:2,")
    os.mkfifo(box.path + b"/cur/3.fifo:2,")
    os.symlink(b"nowhere", box.path + b"/cur/dangling")
    for name in (b".hidden", b".5.a:2,", b":2,S"):
        box.put(name)
    os.symlink(b"/etc/passwd", box.path + b"/new/4.link")
    os.mkdir(box.path + b"/new/5.dir")
    before = box.names()
    box.put(b"6.good:2,")
    assert shown(box.drop.listing()) == rows(b"6.good")
    assert box.names() == sorted([*before, b"6.good:2,"])
    assert box.names(b"new") == [b"4.link", b"5.dir"]


SYNCED = b"1354123456_0.1234.host,U=1,FMD5=7e33"  # as IMAP synchronisers name messages


@pytest.mark.parametrize("where", [b"cur", b"new"])
def test_every_name_that_does_not_begin_with_a_dot_is_a_message(box, where):
    """Names without a number come last, sorted by name; each keeps its UIDL."""
    numbered = [b"9.z", b"10.a", b"1700000000.M1P2.host"]
    others = [b"#no-line.can-hold-it", SYNCED, b"5", b"a blank", b"foo", b"x.1", "²3.x".encode()]
    for number, name in enumerate(numbered + others):
        box.put(name + b":2,S" * (where == b"cur"), b"%d\n" % number, where)
    for again in range(3):
        listing = box.drop.listing() if again < 2 else box.again()
        assert [listing.name(i) for i in range(listing.count)] == numbered + others
        assert [read_lines(box.drop, listing, i, 99) for i in range(listing.count)] == [
            b"%d\n" % n for n in range(10)
        ]
        assert [listing.uidl(i) for i in range(listing.count)] == list(map(uidl, numbered + others))
        box.age()
    assert box.names(b"new") == []
    cache = popcache.parse(box.cache)
    assert cache.names == [name for name in numbered + others if b"#" not in name and b" " not in name]
    assert not cache.refused
    assert box.drop.remove(listing, range(3, 10)) == []
    assert [box.again().name(i) for i in range(3)] == numbered


def test_two_files_of_one_name_without_a_number(box):
    box.put(SYNCED + b":2,", b"one\n")
    box.put(SYNCED + b":2,S", b"two\n")
    for _ in range(2):
        listing = box.again()
        assert sorted(read_lines(box.drop, listing, i, 99) for i in range(listing.count)) == [
            b"one\n",
            b"two\n",
        ]
        assert listing.name(0) == SYNCED or listing.name(1) == SYNCED


# (two files, size in the popcache, owner of the UIDL): 7 octets are three's, 5 are one's, 9 nobody's
ONE_NAME = {
    "cur, the second": ((b"cur", b"5.a:2,", b"one\n"), (b"cur", b"5.a:2,S", b"three\n"), 7, b"three\n"),
    "cur, the first": ((b"cur", b"5.a:2,", b"one\n"), (b"cur", b"5.a:2,S", b"three\n"), 5, b"one\n"),
    "cur, nobody knows": ((b"cur", b"5.a:2,", b"one\n"), (b"cur", b"5.a:2,S", b"three\n"), 9, b"one\n"),
    "cur, both": ((b"cur", b"5.a:2,", b"one\n"), (b"cur", b"5.a:2,S", b"two\n"), 5, b"one\n"),
    "new": ((b"cur", b"5.a:2,", b"one\n"), (b"new", b"5.a", b"three\n"), 7, b"three\n"),
    "new, of another info": ((b"cur", b"5.a:2,", b"one\n"), (b"new", b"5.a:2,S", b"three\n"), 7, b"three\n"),
    "new, and cur had it": ((b"cur", b"5.a:2,", b"one\n"), (b"new", b"5.a", b"three\n"), 5, b"one\n"),
    "new, nobody knows": ((b"cur", b"5.a:2,S", b"one\n"), (b"new", b"5.a", b"three\n"), 9, b"one\n"),
    "new, both": ((b"cur", b"5.a:2,S", b"one\n"), (b"new", b"5.a", b"two\n"), 5, b"one\n"),
    "new, no line": ((b"cur", b"5.a:2,S", b"one\n"), (b"new", b"5.a", b"three\n"), None, b"one\n"),
}


@pytest.mark.parametrize("case", ONE_NAME)
@pytest.mark.parametrize("others", [0, 300], ids=["few", "many"])
def test_of_two_files_of_one_name_the_owner_keeps_its_uidl(box, case, others):
    """The UIDL stays with the file that had it.

    Otherwise a client that had read the second file would never see the first, and fetch the second again.
    """
    first, second, octets, owner = ONE_NAME[case]
    for where, name, data in (first, second):
        box.put(name, data, where)
    for number in range(others):  # more than are moved at once
        box.put(b"%d.z" % (1000 + number), where=b"new")
    if octets is not None:
        box.cache = popcache.format_line(b"5.a", octets, b"kept-uidl")
    listing = box.drop.listing()
    found = {
        read_lines(box.drop, listing, i, 99): listing.uidl(i)
        for i in range(listing.count)
        if listing.name(i).startswith(b"5.")
    }
    assert found.keys() == {first[2], second[2]}
    assert found[owner] == (uidl(b"5.a") if octets is None else b"kept-uidl")
    assert listing.count == len({listing.uidl(i) for i in range(listing.count)}) == 2 + others
    assert [listing.size(i) for i in range(2)] == [
        wire_size(read_lines(box.drop, listing, i, 99)) for i in range(2)
    ]
    assert shown(box.again()) == shown(listing)


def test_of_two_files_of_one_name_that_cannot_be_renamed_new_is_served(box, monkeypatch):
    """That file keeps the UIDL; the other is served once it can be renamed."""
    box.put(b"5.a:2,", b"one\n")
    box.put(b"5.a", b"three\n", where=b"new")
    box.cache = popcache.format_line(b"5.a", 7, b"kept-uidl")

    def refused(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    for call in ("link", "rename"):
        monkeypatch.setattr(os, call, refused)
    for _ in range(2):
        listing = box.again()
        assert shown(listing) == [(b"5.a", 7, b"kept-uidl")]
        assert read_lines(box.drop, listing, 0, 99) == b"three\n"
    monkeypatch.undo()
    listing = box.again()
    found = {read_lines(box.drop, listing, i, 99): listing.uidl(i) for i in range(listing.count)}
    assert found.keys() == {b"one\n", b"three\n"} and found[b"three\n"] == b"kept-uidl"


def test_two_links_to_one_file_are_one_message(box):
    box.put(b"5.a:2,")
    os.link(box.path + b"/cur/5.a:2,", box.path + b"/cur/5.a:2,S")
    os.link(box.path + b"/cur/5.a:2,", box.path + b"/new/5.a")
    assert shown(box.drop.listing()) == rows(b"5.a")
    # a program may be between link and unlink
    assert box.names(b"new") + box.names() == [b"5.a", b"5.a:2,", b"5.a:2,S"]
    box.age()
    assert shown(box.drop.listing()) == rows(b"5.a")
    assert box.names(b"new") + box.names() == [b"5.a:2,"]


def test_a_message_with_a_second_name_is_removed_whole(box):
    box.put(b"5.a:2,")
    os.link(box.path + b"/cur/5.a:2,", box.path + b"/new/5.a")
    box.put(b"6.a:2,")
    assert box.drop.remove(box.drop.listing(), [0]) == []
    assert box.names(b"new") + box.names() == [b"6.a:2,"]
    assert shown(box.drop.listing()) == rows(b"6.a")


class Mover:
    """Rename one message, as another program, before given system calls of the store.

    `late`: a name that the first listing of cur/ has in addition, as happens when a directory changes
    meanwhile.
    """

    def __init__(self, monkeypatch, box, *moves, late=None):
        self.box, self.moves, self.late = box, moves, late
        self.count = 0
        self.rename = os.rename
        for call in ("listdir", "stat", "unlink"):
            monkeypatch.setattr(os, call, self.wrap(getattr(os, call)))

    def wrap(self, real):
        def call(path, *args, **kw):
            if path in (b"popcache", "cur", "new"):
                return real(path, *args, **kw)
            self.count += 1
            for at, old, new in self.moves:
                if at == self.count:
                    with contextlib.suppress(FileNotFoundError):
                        self.rename(os.path.join(self.box.path, old), os.path.join(self.box.path, new))
            result = real(path, *args, **kw)
            return [*result, self.late] if self.late and self.count == 1 else result

        return call


CUR, SEEN, NEW = b"cur/1.a:2,", b"cur/1.a:2,S", b"new/1.a"


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("linked", [True, False])
@pytest.mark.parametrize("other", [SEEN, NEW])
@pytest.mark.parametrize("gaps", [(a, b) for a in range(1, 5) for b in range(1, 4)])
def test_a_message_moved_repeatedly_is_neither_lost_nor_renamed(box, monkeypatch, known, linked, other, gaps):
    """It may be found under both names, and has only one."""
    box.put(b"1.a:2,")
    if known:
        box.cache = popcache.format_line(b"1.a", 21, b"from-afar")
    if linked:
        os.link(os.path.join(box.path, CUR), box.path + b"/backup")  # a link that no name here shows
    second, third = 2 + gaps[0], 2 + sum(gaps)
    with monkeypatch.context() as patch:
        moves = (2, CUR, other), (second, other, CUR), (third, CUR, other)
        Mover(patch, box, *moves, late="1.a:2,S" if other == SEEN else None)
        listing = box.drop.listing()
    assert {name.partition(b":")[0] for name in box.names() + box.names(b"new")} == {b"1.a"}
    if known:
        assert shown(listing) == [(b"1.a", 21, b"from-afar")]
        assert read_lines(box.drop, listing, 0, 99) == MAIL
    assert shown(box.again()) == [(b"1.a", 21, b"from-afar" if known else uidl(b"1.a"))]


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("other", [SEEN, NEW])
@pytest.mark.parametrize("at", range(1, 9))
def test_a_message_moved_once_keeps_its_name(box, monkeypatch, known, other, at):
    box.put(b"1.a:2,")
    if known:
        box.cache = popcache.format_line(b"1.a", 21, b"from-afar")
    with monkeypatch.context() as patch:
        Mover(patch, box, (at, CUR, other))
        listing = box.drop.listing()
    if known:
        assert shown(listing) == [(b"1.a", 21, b"from-afar")]
        assert read_lines(box.drop, listing, 0, 99) == MAIL
    assert shown(box.again()) == [(b"1.a", 21, b"from-afar" if known else uidl(b"1.a"))]


def test_an_unreadable_message_is_left_out_and_reported(box, monkeypatch):
    box.put(b"1.a:2,")
    box.put(b"2.b:2,")
    os.chmod(box.path + b"/cur/1.a:2,", 0)
    real = os.open
    denied = [True]

    def guarded(path, flags, *args, **kw):  # root can read whatever the mode is
        if denied[0] and path == b"1.a:2,":
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, flags, *args, **kw)

    monkeypatch.setattr(os, "open", guarded)
    box.age()
    listing = box.drop.listing()
    assert shown(listing) == rows(b"2.b")
    assert listing.notes == ("cur/1.a:2,: Permission denied",)
    denied[0] = False
    os.chmod(box.path + b"/cur/1.a:2,", 0o600)
    assert shown(box.drop.listing()) == rows(b"1.a", b"2.b")


def test_a_name_missed_by_one_reading_keeps_its_uidl(box, monkeypatch):
    box.put(b"1.a:2,")
    box.cache = popcache.format_line(b"1.a", 21, b"migrated")
    real, calls = files.list_names, []

    def misses_once(fd):
        calls.append(fd)
        return [] if len(calls) == 1 else real(fd)

    monkeypatch.setattr(files, "list_names", misses_once)
    assert shown(box.drop.listing()) == [(b"1.a", 21, b"migrated")]


def test_a_known_message_that_cannot_be_read_keeps_its_place_and_uidl(box, monkeypatch):
    box.put(b"1.a:2,")
    box.put(b"2.b:2,")
    box.cache = popcache.format_line(b"1.a", 21, b"migrated") + text(b"2.b")
    listing = box.drop.listing()
    real = os.open

    def guarded(path, flags, *args, **kw):
        if path == b"1.a:2,":
            raise OSError(errno.EIO, "bad block")
        return real(path, flags, *args, **kw)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", guarded)
        with pytest.raises(StoreError, match=r"cur/1.a: Input/output error"):
            read_lines(box.drop, listing, 0, 99)
        assert shown(box.drop.listing()) == [(b"1.a", 21, b"migrated"), *rows(b"2.b")]
    assert shown(box.again()) == [(b"1.a", 21, b"migrated"), *rows(b"2.b")]


# The popcache


def test_uidls_of_the_popcache_are_kept(box):
    box.put(b"1.a:2,")
    box.put(b"2.b:2,")
    box.cache = popcache.format_line(b"1.a", 21, b"000001f45a7b") + text(b"2.b")
    box.age()
    assert [u for _, _, u in shown(box.drop.listing())] == [b"000001f45a7b", uidl(b"2.b")]
    assert box.cache.startswith(b"#popkernel 2 ")
    assert [u for _, _, u in shown(box.again())] == [b"000001f45a7b", uidl(b"2.b")]


@pytest.mark.parametrize(
    "garbage",
    [
        b"\0" * 500,
        b"garbage\n" * 9,
        text(b"1.a")[:-1],
        text(b"1.a") + text(b"2.b")[:30],
        b"#" * 300,
        text(b"2.b") + text(b"1.a"),
        text(b"7.gone", b"1.a", b"8.gone"),
        b"1.a 21 %s\n2.b 21 %s\n" % (uidl(b"1.a"), uidl(b"1.a")),
        b"1.a 21 %s\n" % uidl(b"2.b"),
        b"1.a:2, 21 u\n",
        popcache.Header(10**18, (1, 1), (1, 1), 2).encode() + text(b"1.a"),
        popcache.UNPROVEN.encode()[:50],
    ],
)
def test_a_popcache_that_does_not_match_is_mended(box, garbage):
    box.put(b"1.a:2,")
    box.put(b"2.b:2,")
    box.cache = garbage
    for _ in range(2):
        assert shown(box.drop.listing()) == rows(b"1.a", b"2.b")
        box.age()
    assert shown(box.again()) == rows(b"1.a", b"2.b")
    cache = popcache.parse(box.cache)
    assert (cache.names, cache.refused, cache.ordered) == ([b"1.a", b"2.b"], 0, True)


def test_nothing_changed_nothing_written_and_nothing_read(box, monkeypatch):
    for i in range(5):
        box.put(b"%d.a:2," % i)
    box.age()
    listing = box.drop.listing()
    before = os.stat(box.path + b"/popcache")
    assert box.drop.listing() is listing
    monkeypatch.setattr(files, "list_names", lambda fd: pytest.fail("listed"))
    again = box.again()
    assert shown(again) == shown(listing)
    assert read_lines(box.drop, again, 3, 99) == MAIL
    after = os.stat(box.path + b"/popcache")
    assert (before.st_mtime_ns, before.st_ino, before.st_size) == (
        after.st_mtime_ns,
        after.st_ino,
        after.st_size,
    )


def test_a_young_directory_is_read_again(box):
    box.put(b"1.a:2,")
    assert box.drop.listing().count == 1
    cur = os.stat(box.path + b"/cur")
    box.put(b"2.b:2,")
    os.utime(box.path + b"/cur", ns=(cur.st_atime_ns, cur.st_mtime_ns))
    assert box.drop.listing().count == 2


def test_forged_mtime_does_not_hide_a_change(box):
    box.put(b"1.a:2,")
    box.age()
    assert box.drop.listing().count == 1
    cur = os.stat(box.path + b"/cur")
    box.put(b"2.b:2,")
    os.utime(box.path + b"/cur", ns=(cur.st_atime_ns, cur.st_mtime_ns))
    assert box.drop.listing().count == 2
    assert box.again().count == 2


def test_a_wrong_size_is_never_sent_and_mends_itself(box):
    box.put(b"1.a:2,")
    box.put(b"2.b:2,")
    box.cache = popcache.format_line(b"1.a", 999, b"mine") + text(b"2.b")
    listing = box.drop.listing()
    assert listing.size(0) == 999
    with pytest.raises(StoreError, match="message changed") as caught:
        box.drop.read_wire(listing, 0, 9999)
    assert caught.value.code == "SYS/TEMP"
    assert shown(box.drop.listing()) == [(b"1.a", 21, b"mine"), *rows(b"2.b")]
    assert shown(box.again()) == [(b"1.a", 21, b"mine"), *rows(b"2.b")]


def test_a_message_that_grew_is_not_sent(box):
    box.put(b"1.a:2,")
    listing = box.drop.listing()
    box.put(b"1.a:2,", MAIL * 2)
    with pytest.raises(StoreError, match="message changed"):
        read_lines(box.drop, listing, 0, 9999)
    assert box.drop.listing().size(0) == wire_size(MAIL * 2)


@pytest.mark.parametrize("kind", ["link", "directory", "fifo"])
def test_a_popcache_that_is_no_file(box, kind):
    path = box.path + b"/popcache"
    target = box.path + b"/target"
    if kind == "link":
        os.symlink(target, path)
    elif kind == "directory":
        os.mkdir(path)
    else:
        os.mkfifo(path)
    with pytest.raises(StoreError, match="popcache") as caught:
        box.drop.listing()
    assert caught.value.code == "SYS/PERM"
    assert not os.path.exists(target)


def test_popcache_removed_while_waiting_for_its_lock(box, monkeypatch):
    box.put(b"1.a:2,")
    real, tries = popcache_file._try_lock, []

    def locks_but_it_is_gone(fd):
        tries.append(fd)
        if len(tries) == 1:
            os.unlink(box.path + b"/popcache")
        return real(fd)

    monkeypatch.setattr(popcache_file, "_try_lock", locks_but_it_is_gone)
    assert box.drop.listing().count == 1
    assert len(tries) == 2
    assert popcache.parse(box.cache).names == [b"1.a"]


def test_full_disk_for_the_popcache_costs_no_session(box, monkeypatch):
    box.put(b"1.a:2,")

    def full(*_):
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        listing = box.drop.listing()
        assert shown(listing) == rows(b"1.a")
        assert "No space left" in listing.notes[0]
    assert shown(box.again()) == rows(b"1.a")


class Locked:
    """Hold the popcache's lock in another process."""

    def __init__(self, path):
        ready, self._ready = os.pipe()
        self._go, go = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            fd = os.open(path + b"/popcache", os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(fd, fcntl.LOCK_EX)
            os.write(self._ready, b"x")
            os.close(go)
            os.read(self._go, 1)
            os._exit(0)
        os.read(ready, 1)
        for fd in (ready, self._ready, self._go):
            os.close(fd)
        self._end = go

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self._end)
        os.waitpid(self.pid, 0)


def test_lock_held_by_another_process(box):
    box.put(b"1.a:2,")
    listing = box.drop.listing()
    box.put(b"2.b:2,")
    with Locked(box.path):
        with pytest.raises(StoreError, match="locked") as caught:
            box.drop.listing()
        assert caught.value.code == "IN-USE"
        with box.drop.deliver_begin() as delivery:
            delivery.write(MAIL)
            with pytest.raises(StoreError, match="locked") as caught:
                delivery.commit()
            assert caught.value.code == "SYS/TEMP"
            assert box.names(b"new") == []
        assert box.names(b"tmp") == []
        assert box.drop.remove(listing, [0]) == []  # the mail is removed all the same
    assert shown(box.drop.listing()) == rows(b"2.b")


# One session and what others do meanwhile


def test_flags_changed_under_a_session(box):
    for name in (b"1.a", b"2.b", b"3.c"):
        box.put(name + b":2,", name)
    listing = box.drop.listing()
    os.rename(box.path + b"/cur/1.a:2,", box.path + b"/cur/1.a:2,FRS")
    os.rename(box.path + b"/cur/2.b:2,", box.path + b"/new/2.b")
    assert [box.drop.read_wire(listing, i, 99) for i in range(3)] == [b"1.a\r\n", b"2.b\r\n", b"3.c\r\n"]
    fd = box.drop.open_message(listing, 0)
    assert os.read(fd, 99) == b"1.a"
    os.close(fd)
    os.rename(box.path + b"/cur/1.a:2,FRS", box.path + b"/cur/1.a:2,T")
    assert box.drop.remove(listing, [0, 1]) == []
    assert box.names() == [b"3.c:2,"]
    assert box.names(b"new") == []


def test_flags_unknown_after_a_proven_start(box):
    infos = [b"", b":2,", b":2,S", b":2,FRSTab", b":1,exp"]
    for i, info in enumerate(infos):
        box.put(b"%d.m" % i + info, b"%d\n" % i)
    box.age()
    box.drop.listing()
    listing = box.again()
    assert listing.infos == [None] * 5
    assert [read_lines(box.drop, listing, i, 99) for i in range(5)] == [b"%d\n" % i for i in range(5)]
    listing = box.again()
    box.drop.mark_seen(listing, range(5))
    assert box.names() == [b"0.m:2,S", b"1.m:2,S", b"2.m:2,S", b"3.m:2,FRSTab", b"4.m:1,exp"]
    listing = box.again()
    assert box.drop.remove(listing, range(5)) == []
    assert box.names() == []


def test_a_message_removed_by_another_program(box):
    box.put(b"1.a:2,")
    box.put(b"2.b:2,", b"other\n")
    listing = box.drop.listing()
    os.unlink(box.path + b"/cur/1.a:2,")
    for act in (lambda: box.drop.open_message(listing, 0), lambda: read_lines(box.drop, listing, 0, 99)):
        with pytest.raises(StoreError, match="message gone") as caught:
            act()
        assert caught.value.code == "SYS/TEMP"
    box.drop.mark_seen(listing, [0])
    assert box.drop.remove(listing, [0]) == []
    assert read_lines(box.drop, listing, 1, 99) == b"other\n"
    assert box.names() == [b"2.b:2,"]
    assert shown(box.drop.listing()) == rows(b"2.b", data=b"other\n")


def test_a_message_replaced_by_a_link_or_directory(box):
    box.put(b"1.a:2,")
    box.put(b"2.b:2,")
    listing = box.drop.listing()
    os.unlink(box.path + b"/cur/1.a:2,")
    os.symlink(b"2.b:2,", box.path + b"/cur/1.a:2,")
    os.unlink(box.path + b"/cur/2.b:2,")
    os.mkdir(box.path + b"/cur/2.b:2,")
    for i in range(2):
        with pytest.raises(StoreError):
            box.drop.open_message(listing, i)
        with pytest.raises(StoreError):
            read_lines(box.drop, listing, i, 99)
    assert box.drop.remove(listing, [1]) == [1]
    assert box.drop.listing().count == 0


def test_limit_of_read_wire(box):
    box.put(b"1.a:2,", b"x" * 98)
    listing = box.drop.listing()
    assert box.drop.read_wire(listing, 0, 100) == b"x" * 98 + b"\r\n"
    assert box.drop.read_wire(listing, 0, 99) is None


def test_large_message_is_measured_in_chunks(box):
    data = b"line\r\n" * 30000 + b"\r" + b"x\n" * 50000
    box.put(b"1.a:2,", data)
    listing = box.drop.listing()
    assert listing.size(0) == wire_size(data)
    assert box.drop.read_wire(listing, 0, 1 << 30) == encode(data)[0]


def test_mark_seen_never_overwrites(box):
    box.put(b"1.a:2,")
    listing = box.drop.listing()
    box.put(b"1.a:2,S", b"another\n")
    box.drop.mark_seen(listing, [0])
    assert box.names() == [b"1.a:2,", b"1.a:2,S"]


def test_remove_marks_then_compacts(box):
    for i in range(1, 9):
        box.put(b"%d.m:2," % i)
    listing = box.drop.listing()
    assert box.drop.remove(listing, [0, 1]) == []
    assert box.cache.count(b"\n#") == 2
    assert box.cache.count(b"\n") == 9
    assert box.drop.remove(listing, [2, 3, 4]) == []
    assert box.cache.count(b"\n#") == 0
    assert popcache.parse(box.cache).names == [b"6.m", b"7.m", b"8.m"]
    assert shown(box.drop.listing()) == rows(b"6.m", b"7.m", b"8.m")


def test_remove_reports_failures(box, monkeypatch):
    box.put(b"1.a:2,")
    box.put(b"2.b:2,")
    listing = box.drop.listing()
    real = os.unlink

    def guarded(path, **kw):
        if path == b"1.a:2,":
            raise PermissionError(errno.EACCES, "no")
        return real(path, **kw)

    monkeypatch.setattr(os, "unlink", guarded)
    assert box.drop.remove(listing, [0, 1]) == [0]
    assert shown(box.drop.listing()) == rows(b"1.a")


@pytest.mark.parametrize("size", [512 << 20, (192 << 20) + 1])
def test_a_huge_popcache_ends_no_session_and_is_reported_once(box, size):
    """A sparse file of 512 MiB must not raise MemoryError."""
    box.put(b"1.a:2,")
    box.cache = text(b"1.a")
    os.truncate(box.path + b"/popcache", size)
    with box.drop.deliver_begin() as delivery:  # nor any mail
        delivery.write(MAIL)
        delivery.commit()
    os.truncate(box.path + b"/popcache", size)
    listing = box.drop.listing()
    assert listing.count == 2
    assert [note for note in listing.notes if "not believed" in note]
    assert os.stat(box.path + b"/popcache").st_size < 1000
    assert not box.again().notes


def test_a_popcache_of_junk_costs_no_session(box):
    box.put(b"1.a:2,")
    box.cache = b"\n" * (20 << 20)
    started = time.monotonic()
    assert shown(box.drop.listing()) == rows(b"1.a")
    assert time.monotonic() - started < 5
    assert not popcache.parse(box.cache).refused


def test_no_memory_for_the_popcache_costs_no_session(box, monkeypatch):
    box.put(b"1.a:2,")
    box.cache = text(b"1.a")

    def none(data):
        raise MemoryError

    monkeypatch.setattr(popcache, "parse", none)
    listing = box.drop.listing()
    assert shown(listing) == rows(b"1.a")
    assert "memory" in listing.notes[0]


def test_sizes_of_the_popcache_never_sum_to_more_than_a_message_carries(box):
    names = [b"%d.a" % n for n in range(12)]
    for name in names:
        box.put(name + b":2,")
    box.cache = b"".join(
        popcache.format_line(name, 999999999999999999, b"u%d" % i) for i, name in enumerate(names)
    )
    assert shown(box.drop.listing()) == rows(*names)


# A popcache, or a directory, that can't be written to


def shut(monkeypatch, number, *, reading=False):
    """Make the popcache a file that this user may not write, or not read."""
    real = os.open

    def opened(name, flags, *args, **kw):
        if name == b"popcache" and (reading or flags & os.O_RDWR):
            raise OSError(number, os.strerror(number))
        return real(name, flags, *args, **kw)

    monkeypatch.setattr(os, "open", opened)


@pytest.mark.parametrize(
    "number", [errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT, errno.EIO]
)
def test_a_popcache_that_cannot_be_written_to_costs_no_session(box, monkeypatch, number):
    """Its lines are believed, missing ones are measured, and nothing waits."""
    box.put(b"1.a:2,")
    box.cache = before = popcache.format_line(b"1.a", 21, b"from-afar")
    box.put(b"2.b", where=b"new")
    box.age()
    shut(monkeypatch, number)
    for _ in range(2):
        listing = box.drop.listing()
        assert shown(listing) == [(b"1.a", 21, b"from-afar"), *rows(b"2.b")]
        assert [read_lines(box.drop, listing, i, 99) for i in range(2)] == [MAIL] * 2
        assert os.strerror(number) in listing.notes[0]
        assert box.cache == before
    assert box.drop.remove(listing, [0]) == []
    assert shown(box.drop.listing()) == rows(b"2.b")
    monkeypatch.undo()
    assert shown(box.again()) == rows(b"2.b")
    assert popcache.parse(box.cache).names == [b"2.b"]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
@pytest.mark.parametrize("warm", [True, False])
def test_a_popcache_that_cannot_be_read_costs_no_session(box, monkeypatch, number, warm):
    """It stays as it is, since it may hold UIDLs; a process that has read it continues with them."""
    box.put(b"1.a:2,")
    box.cache = before = popcache.format_line(b"1.a", 21, b"from-afar")
    if warm:
        assert box.drop.listing().uidl(0) == b"from-afar"
        before = box.cache
    shut(monkeypatch, number, reading=True)
    os.utime(box.path + b"/popcache")
    box.put(b"2.b", where=b"new")
    listing = box.drop.listing()
    assert shown(listing) == [(b"1.a", 21, b"from-afar" if warm else uidl(b"1.a")), *rows(b"2.b")]
    assert box.cache == before
    monkeypatch.undo()
    assert box.again().uidl(0) == b"from-afar"


def test_a_read_only_popcache_locked_by_another_is_waited_for(box, monkeypatch):
    box.cache = b""
    shut(monkeypatch, errno.EACCES)
    with Locked(box.path), pytest.raises(StoreError) as caught:
        box.drop.listing()
    assert caught.value.code == "IN-USE"


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EXDEV, errno.ENOSPC])
def test_mail_that_cannot_be_moved_is_served_from_new(box, monkeypatch, number):
    def refused(*_, **__):
        raise OSError(number, os.strerror(number))

    names = [b"1.a", b"2.b:2,F", b"3.c"]
    for name in names:
        box.put(name, where=b"new")
    os.mkfifo(box.path + b"/new/4.fifo")
    for call in ("link", "rename"):
        monkeypatch.setattr(os, call, refused)
    listing = box.drop.listing()
    assert shown(listing) == rows(b"1.a", b"2.b", b"3.c")
    assert [note for note in listing.notes if note.startswith("new: ")] == [
        f"new: mail stays there, it can't be moved to cur: {os.strerror(number)}"
    ]
    assert [read_lines(box.drop, listing, i, 99) for i in range(3)] == [MAIL] * 3
    assert [box.drop.read_wire(listing, i, 99) for i in range(3)] == [MAIL.replace(b"\n", b"\r\n")] * 3
    box.drop.mark_seen(listing, [0, 1])
    assert box.names(b"new") == sorted([*names, b"4.fifo"])
    assert box.drop.remove(listing, [1]) == []
    assert shown(box.drop.listing()) == rows(b"1.a", b"3.c")
    monkeypatch.undo()
    assert shown(box.again()) == rows(b"1.a", b"3.c")
    assert box.names() == [b"1.a:2,", b"3.c:2,"]


def test_messages_that_cannot_be_removed_are_reported(box, monkeypatch):
    box.put(b"1.a:2,")
    listing = box.drop.listing()

    def refused(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "unlink", refused)
    assert box.drop.remove(listing, [0]) == [0]
    assert box.drop.why == "1.a: Read-only file system"


def test_a_delivery_works_with_a_read_only_popcache(box, monkeypatch):
    box.cache = before = popcache.format_line(b"1.a", 21, b"from-afar")
    shut(monkeypatch, errno.EACCES)
    with box.drop.deliver_begin() as delivery:
        delivery.write(MAIL)
        name = delivery.commit().encode()
    assert box.cache == before
    assert shown(box.drop.listing()) == rows(name)


def test_a_popcache_replaced_while_its_lock_is_held_is_read_again(box, monkeypatch):
    """The listing came from the old one."""
    box.put(b"1.a:2,")
    real = popcache_file.load

    def replaced(lock):
        cache = real(lock)
        with open(box.path + b"/other", "wb") as file:
            file.write(popcache.format_line(b"1.a", 21, b"from-afar"))
        os.rename(file.name, box.path + b"/popcache")
        return cache

    box.age()
    with monkeypatch.context() as patch:
        patch.setattr(popcache_file, "load", replaced)
        box.drop.listing()
    assert box.drop.listing().uidl(0) == b"from-afar"
