"""Test the store's options: imported UIDLs, sizes in names, deletion by DELE and by age, locks."""

import contextlib
import os
import time

import pytest
from popkernel.actors.maildir.actions import Note, Over
from popkernel.actors.maildir.session import Session
from popkernel.actors.maildir.store import files, popcache_file
from popkernel.actors.maildir.store.errors import StoreError
from popkernel.actors.maildir.store.maildrop import Maildrop
from popkernel.actors.maildir.store.policy import Policy, policy_of
from popkernel.actors.maildir.uidl_import import import_uidls
from popkernel.kernel.config.keys import Config
from popkernel.proto import messages as m
from popkernel.proto.files import maildir_names, popcache
from popkernel.proto.pop3.octets import wire_size

from tests.unit.test_store import MAIL, Box, Locked, shown, text, uidl
from tests.unit.test_uid_lists import COURIER_3, DOVECOT_3

DAY = 86400


class Site(Box):
    def __init__(self, path):
        super().__init__(path)

    def open(self, **policy):
        self.drop.close()
        self.drop = Maildrop(self.path, lock_wait=0.05, policy=Policy(**policy))
        return self.drop.listing()

    def write(self, name, data):
        with open(os.path.join(self.path, name), "wb") as file:
            file.write(data)


@pytest.fixture
def box(tmp_path):
    box = Site(tmp_path)
    yield box
    box.drop.close()


def uidls(listing):
    return {listing.name(i): listing.uidl(i) for i in range(listing.count)}


def talk(drop, listing, *asked):
    """Return a session's answers, with unlimited credit."""
    session = Session(drop, listing)
    answers = []
    for message in asked:
        session.take(message)
        while (answer := session.step()) is not None:
            answers.append(answer)
            session.credit = 10**9
    return answers


def finished(answers):
    """Return (removed, failed) of an ended session."""
    assert answers[-1] == Over()
    return next((a.removed, a.failed) for a in answers if type(a) is m.QuitDone)


def mail_of(answers, number):
    """Return (octets announced, octets sent) of one message without line-start dots."""
    said, wire = set(), b""
    for message in answers:
        if type(message) is m.MailContent:
            at = 0
            for k in range(0, len(message.parts), 4):
                n, octets, length, _ = message.parts[k : k + 4]
                if n == number:
                    said.add(octets)
                    wire += message.data[at : at + length]
                at += length
    return said, wire


# Import of UIDLs


def test_a_listing_reads_no_file_of_another_server(box):
    box.put(b"170000001.M1P1.h:2,S")
    box.write(b"dovecot-uidlist", DOVECOT_3)
    box.write(b"courierpop3dsizelist", COURIER_3)
    assert uidls(box.open()) == {b"170000001.M1P1.h": uidl(b"170000001.M1P1.h")}


def test_import_of_courier_and_of_names(box):
    names = [b"1700000001.M1P1.h,S=15", b"1700000002.M2P2.h"]
    for name in names:
        box.put(name, where=b"new")
    box.write(b"courierpop3dsizelist", COURIER_3)
    import_uidls(box.drop, "courier", force=False, dry=False)
    assert uidls(box.open()) == {names[0]: names[0], names[1]: b"UID5-1699999999"}
    os.unlink(box.path + b"/popcache")
    import_uidls(box.drop, "filename", force=False, dry=False)
    assert uidls(box.open()) == {name: name for name in names}


def test_a_name_that_is_no_uidl_gets_a_new_one_and_is_named(box):
    long = b"1700000001." + b"x" * 70
    box.put(long + b":2,")
    report = import_uidls(box.drop, "filename", force=False, dry=False)
    assert len(report.notes) == 1 and "gets a new one" in report.notes[0]
    assert uidls(box.open()) == {long: uidl(long)}


def test_two_messages_with_one_uidl(box):
    box.put(b"1.a:2,")
    box.put(b"2.b:2,")
    box.write(b"dovecot-uidlist", b"3 V1 N3\n1 Psame :1.a\n2 Psame :2.b\n")
    report = import_uidls(box.drop, "dovecot", force=False, dry=False)
    assert "2.b" in report.notes[0]
    assert uidls(box.open()) == {b"1.a": b"same", b"2.b": uidl(b"2.b")}


def test_import_keeps_imports_and_makes_uidls(box):
    for name in (b"170000001.M1P1.h:2,", b"170000002.M2P1.h:2,", b"170000003.M3P1.h:2,S", b"180000000.x:2,"):
        box.put(name)
    box.put(b"1700000900.M9.h,S=14,W=17", b"Subject: 9\n\nx\n", where=b"new")
    box.write(b"dovecot-uidlist", DOVECOT_3)
    box.cache = popcache.format_line(b"170000002.M2P1.h", 21, b"kept") + popcache.format_line(
        b"5.gone", 5, b"000000016b043e24"
    )
    before = box.cache, box.names(), box.names(b"new")
    dry = import_uidls(box.drop, "dovecot", force=False, dry=True)
    assert (box.cache, box.names(), box.names(b"new")) == before
    report = import_uidls(box.drop, "dovecot", force=False, dry=False)
    assert report == dry
    assert (report.messages, report.kept, report.taken, report.new) == (5, 1, 2, 2)
    # its UIDL is the popcache's for a message that may come back
    assert "170000001.M1P1.h" in report.notes[0]
    assert not popcache.parse(box.cache).refused
    assert uidls(box.open()) == {
        b"170000001.M1P1.h": uidl(b"170000001.M1P1.h"), b"170000002.M2P1.h": b"kept",
        b"170000003.M3P1.h": b"UID7-1189",
        b"180000000.x": uidl(b"180000000.x"), b"1700000900.M9.h,S=14,W=17": b"000000046b043e24",
    }  # fmt: skip
    written = box.cache
    again = import_uidls(box.drop, "dovecot", force=False, dry=False)
    assert (again.kept, again.taken, again.new, box.cache) == (5, 0, 0, written)


def test_import_by_force(box):
    box.put(b"1.a:2,")
    box.put(b"2.b:2,")
    box.put(b"3.c:2,")
    box.cache = (
        popcache.format_line(b"1.a", 21, b"B")
        + popcache.format_line(b"2.b", 21, b"old")
        + popcache.format_line(b"3.c", 21, b"C")
    )
    box.write(b"dovecot-uidlist", b"3 V1 N3\n2 PB :2.b\n")
    report = import_uidls(box.drop, "dovecot", force=True, dry=False)
    assert (report.kept, report.taken, report.new) == (1, 1, 1)
    assert uidls(box.drop.listing()) == {b"1.a": uidl(b"1.a"), b"2.b": b"B", b"3.c": b"C"}


def test_import_survives_a_crash_in_the_middle(box):
    for n in range(9):
        box.put(b"%d.a:2," % n)
    box.write(b"dovecot-uidlist", b"3 V1 N3\n" + b"".join(b"%d :%d.a\n" % (n + 1, n) for n in range(9)))
    expected = {b"%d.a" % n: b"%08x00000001" % (n + 1) for n in range(9)}

    class CrashError(Exception):
        pass

    steps = []
    with contextlib.closing(Maildrop(box.path, fault=steps.append)) as drop:
        import_uidls(drop, "dovecot", force=False, dry=False)
    assert steps.index("rewrite:journaling") < steps.index("rewrite:truncated")
    # nothing is imported until the journal has its name
    for crash in steps[steps.index("rewrite:journaling") + 1 :]:
        os.unlink(box.path + b"/popcache")

        def fault(step, crash=crash):
            if step == crash:
                raise CrashError

        drop = Maildrop(box.path, fault=fault)
        with pytest.raises(CrashError):
            import_uidls(drop, "dovecot", force=False, dry=False)
        drop.close()
        os.rename(box.path + b"/dovecot-uidlist", box.path + b"/aside")
        assert uidls(box.open()) == expected
        os.rename(box.path + b"/aside", box.path + b"/dovecot-uidlist")


def test_import_while_another_program_keeps_the_lock(box):
    with Locked(box.path), pytest.raises(StoreError, match="locked"):
        import_uidls(box.drop, "dovecot", force=False, dry=False)


# Sizes in names


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        (b"1.a,S=10,W=12", (10, 12)), (b"1.a,W=12,S=10", (10, 12)), (b"1.a,S=0,W=0", (0, 0)),
        (b"1.a,S=10", None), (b"1.a,W=12", None),
        (b"1.a,S=10,W=9", None), (b"1.a,S=10,W=21", None), (b"1.a,S=x,W=12", None), (b"1.a,S=-1,W=1", None),
        (b"1.a,S=,W=1", None),
        (b"1.a,S=1000000000000,W=1000000000000", None), (b"1.aS=10,W=12", None),
        ("1.a,S=²,W=2".encode(), None),
    ],
)  # fmt: skip
def test_sizes_in_names(name, sizes):
    assert maildir_names.claimed_sizes(name) == sizes


LARGE = b"a line of no great length\n" * 8000


def named(data, *, lie=0):
    return b"1700000001.M1.h,S=%d,W=%d" % (len(data), wire_size(data) + lie)


def test_a_large_message_with_sizes_in_its_name_is_not_read_for_a_listing(box, monkeypatch):
    box.put(named(LARGE) + b":2,S", LARGE)
    with monkeypatch.context() as patch:
        patch.setattr(files, "count", lambda *_: pytest.fail("read"))
        listing = box.drop.listing()
    assert listing.size(0) == wire_size(LARGE)
    answers = talk(box.drop, listing, m.Retrieve(1, 1, 0))
    assert mail_of(answers, 1) == ({wire_size(LARGE)}, LARGE.replace(b"\n", b"\r\n"))


@pytest.mark.parametrize(
    "data", [LARGE[:78000], LARGE, LARGE * 4, b"\n" * 100_000, LARGE.replace(b"\n", b"\r\n")]
)
@pytest.mark.parametrize("lie", [-7, 5, 70000])
def test_a_wrong_size_in_a_name_loses_no_octet(box, data, lie):
    name = named(data, lie=lie)
    if maildir_names.claimed_sizes(name) is None:
        name = b"1700000001.M1.h,S=%d,W=%d" % (len(data), len(data) + 1)
    box.put(name + b":2,S", data)
    box.put(b"1700000002.other:2,S")
    wire = data.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    listing = box.drop.listing()
    assert listing.size(0) == maildir_names.claimed_sizes(name)[1] != len(wire)
    talk(box.drop, listing, m.Top(1, 0))
    answers = talk(
        box.drop, listing, m.Retrieve(1, 2, 0), m.Retrieve(1, 1, 0), m.Delete(1, 1), m.Reset(), m.Delete(1, 2)
    )
    assert not [a for a in answers if type(a) is m.MessageMissing]
    said, sent = mail_of(answers, 1)
    assert said == {len(wire)}
    assert sent == wire + wire
    assert [(a.messages, a.octets) for a in answers if type(a) in (m.MessagesMarked, m.MaildropTotals)] == [
        (1, 21),
        (2, len(wire) + 21),
        (0, 0),
    ]
    assert box.drop.listing().size(0) == len(wire)
    assert box.again().size(0) == len(wire)


def test_a_size_in_a_name_counts_for_its_file_only(box):
    box.put(named(LARGE) + b":2,S", LARGE + b"more\n")
    # without a line end, which POP3 adds
    box.put(b"1700000002.M2.h,S=%d,W=%d" % (len(LARGE) - 1, wire_size(LARGE)), LARGE[:-1])
    listing = box.drop.listing()
    assert [listing.size(i) for i in range(1)] == [wire_size(LARGE + b"more\n")]
    box.put(b"1700000003.M3.h,S=%d,W=%d:2," % (len(LARGE) - 1, wire_size(LARGE) - 2), LARGE[:-1])
    listing = box.drop.listing()
    assert listing.size(
        listing.names.index(b"1700000003.M3.h,S=%d,W=%d" % (len(LARGE) - 1, wire_size(LARGE) - 2))
    ) == wire_size(LARGE)


# Deletion by DELE


def quit_after(box, *asked, **policy):
    listing = box.open(**policy)
    return finished(talk(box.drop, listing, *asked))


def test_trash_flag_keeps_the_file(box):
    box.put(b"1.a:2,S")
    box.put(b"2.b:2,")
    box.put(b"3.c")
    before = shown(box.open())
    policy = {"deletion": "trash-flag", "hide_trashed": True}
    assert quit_after(box, m.Delete(1, 1), m.Delete(3, 1), m.Quit([]), **policy) == (2, 0)
    assert box.names() == [b"1.a:2,ST", b"2.b:2,", b"3.c:2,T"]
    assert shown(box.open(**policy)) == before[1:2]
    box.age()
    assert shown(box.drop.listing()) == shown(box.drop.listing()) == before[1:2]
    assert shown(box.open(**policy)) == before[1:2]  # proven unchanged, which says nothing about flags
    # moved out of the trash, it is the same message again
    os.rename(box.path + b"/cur/1.a:2,ST", box.path + b"/cur/1.a:2,S")
    assert shown(box.open(**policy)) == before[:2]
    assert shown(box.open()) == before
    assert len(popcache.parse(box.cache).names) == 3


def test_trash_flag_with_flags_unknown_changed_gone_or_impossible(box):
    for name in (b"1.a:2,", b"2.b:2,", b"3.c:2,", b"4.d:1,exp"):
        box.put(name)
    box.age()
    box.drop.listing()
    listing = box.open(deletion="trash-flag")
    os.rename(box.path + b"/cur/1.a:2,", box.path + b"/cur/1.a:2,F")
    os.rename(box.path + b"/cur/2.b:2,", box.path + b"/new/2.b")
    os.unlink(box.path + b"/cur/3.c:2,")
    answers = talk(box.drop, listing, m.Delete(1, 4), m.Quit([]))
    assert finished(answers) == (3, 1)
    assert box.names() == [b"1.a:2,FT", b"2.b:2,T", b"4.d:1,exp"]
    assert box.names(b"new") == []


def test_trashed_mail_is_seen_unless_hidden(box):
    box.put(b"1.a:2,T")
    assert box.open(deletion="trash-flag").count == 1
    assert box.open(hide_trashed=True).count == 0
    listing = box.open(hide_trashed=True)
    assert (listing.count, listing.octets) == (0, 0)


def test_no_quit_flags_nothing(box):
    box.put(b"1.a:2,")
    talk(box.drop, box.open(deletion="trash-flag", expire_days=0), m.Retrieve(1, 1, 0), m.Delete(1, 1))
    assert box.names() == [b"1.a:2,"]


@pytest.mark.parametrize(
    ("seen", "names"), [(True, [b"1.a:2,S", b"2.b:2,"]), (False, [b"1.a:2,", b"2.b:2,"])]
)
def test_set_seen(box, seen, names):
    box.put(b"1.a:2,")
    box.put(b"2.b:2,")
    quit_after(box, m.Retrieve(1, 1, 0), m.Quit([]), set_seen=seen)
    assert box.names() == names


# Deletion by age


def test_expire_0_deletes_retrieved_messages_only(box):
    for n in range(1, 6):
        box.put(b"%d.m:2," % n, MAIL)
    box.put(b"6.large:2,", LARGE)
    listing = box.open(expire_days=0)
    box.put(b"5.m:2,", MAIL * 2)  # cannot be sent: the message has changed
    answers = talk(
        box.drop,
        listing,
        m.Retrieve(1, 1, 1),
        m.Top(3, 1),
        m.Delete(4, 1),
        m.Retrieve(5, 2, 0),
        m.Quit([2, 1]),
    )
    assert [a.number for a in answers if type(a) is m.MessageMissing] == [5]
    assert finished(answers) == (4, 0)
    assert box.names() == [b"3.m:2,", b"5.m:2,"]


def test_a_large_message_that_could_not_be_sent_whole_does_not_expire(box):
    box.put(b"6.large:2,", LARGE)
    listing = box.open(expire_days=0)
    box.put(b"6.large:2,", LARGE[:-26])
    answers = talk(box.drop, listing, m.Retrieve(1, 1, 0), m.Quit([]))
    assert [type(a) for a in answers] == [Note, m.MessageMissing, m.QuitDone, Over]
    assert (finished(answers), box.names()) == ((0, 0), [b"6.large:2,"])


def quit_before(box, when):
    """Set the time of the last QUIT with expire_days."""
    path = os.path.join(box.path, b"popexpire")
    with open(path, "ab"):
        os.utime(path, (when, when))


def at(box, when, days=10):
    """QUIT at that time; return how many messages are left."""
    box.drop.close()
    box.drop = Maildrop(box.path, lock_wait=0.05, policy=Policy(expire_days=days), clock=lambda: when)
    talk(box.drop, box.drop.listing(), m.Quit([]))
    return len(box.names())


def test_a_clock_once_ahead_deletes_no_mail(box):
    now = 1_700_000_000
    for n in range(3):
        name = b"%d.%d:2," % (now - n * DAY, n)
        box.put(name)
        os.utime(os.path.join(box.path, b"cur", name), (now - n * DAY,) * 2)
    for hours in (0, 1, 24, 49):
        assert at(box, now + hours * 3600) == 3
    for hours in (0, 1, 19):  # for some hours, the clock is ten years ahead
        assert at(box, now + 3650 * DAY + hours * 3600) == 3
    assert at(box, now + 3 * DAY) == 3  # set right again: still no time to compare with
    assert at(box, now + 3 * DAY + 3600) == 3
    assert at(box, now + 9 * DAY - 3600) == 2  # the oldest message is 11 days old


def test_mail_expires_with_daily_and_weekly_logins(box):
    now = 1_700_000_000
    for step in (DAY - 600, 7 * DAY + 600):
        name = b"%d.%d:2," % (now, step)
        box.put(name)
        os.utime(os.path.join(box.path, b"cur", name), (now, now))
        assert [at(box, now + k * step) for k in range(14)][-1] == 0
        now += 1000 * DAY


@pytest.mark.parametrize("what", ["directory", "link", "pipe"])
def test_a_malformed_popexpire_deletes_no_mail(box, what):
    path = os.path.join(box.path, b"popexpire")
    other = os.path.join(box.path, b"other")
    {"directory": os.mkdir, "link": lambda p: os.symlink(other, p), "pipe": os.mkfifo}[what](path)
    box.put(b"1000000000.a:2,")
    os.utime(os.path.join(box.path, b"cur", b"1000000000.a:2,"), (10**9, 10**9))
    for k in range(3):
        assert at(box, 1_700_000_000 + k * 2 * DAY) == 1
    assert not os.path.exists(other)


def test_expire_after_days(box):
    now = int(time.time())
    old, young = now - 11 * DAY, now - 9 * DAY
    cases = {
        b"%d.old" % old: old, b"%d.young" % young: young, b"%d.name-old" % old: young,
        b"%d.name-young" % young: old,
        b"99999999999999.no-time-old": old, b"99999999999999.no-time-young": young,
    }  # fmt: skip
    for name, mtime in cases.items():
        box.put(name + b":2,")
        os.utime(os.path.join(box.path, b"cur", name + b":2,"), (mtime, mtime))
    gone = {b"%d.old:2," % old, b"99999999999999.no-time-old:2,"}
    everything = set(box.names())
    quit_before(box, now - 2 * DAY)
    listing = box.open(expire_days=10)
    talk(box.drop, listing, m.Retrieve(1, 1, 0))
    assert set(box.names()) == everything
    answers = talk(box.drop, listing, m.Quit([]))
    assert finished(answers) == (2, 0)
    assert set(box.names()) == everything - gone
    assert quit_after(box, m.Quit([]), expire_days=-1) == (0, 0)
    quit_before(box, now - 2 * DAY)
    assert quit_after(box, m.Quit([]), expire_days=1, deletion="trash-flag", hide_trashed=True) == (4 - 0, 0)
    assert all(name.endswith(b"T") for name in box.names())


def test_failed_expiry_does_not_fail_quit(box, monkeypatch):
    box.put(b"1.a:2,")
    box.put(b"2.b:2,")
    real = os.unlink

    def guarded(path, **kw):
        if path == b"1.a:2,S" or path == b"1.a:2,":
            raise PermissionError(13, "no")
        return real(path, **kw)

    listing = box.open(expire_days=0)
    monkeypatch.setattr(os, "unlink", guarded)
    answers = talk(box.drop, listing, m.Retrieve(1, 1, 0), m.Delete(2, 1), m.Quit([]))
    assert finished(answers) == (1, 0)


def test_the_keys_are_those_of_the_configuration():
    config = {key: getattr(Config(), key) for key in Policy._fields}
    assert policy_of(config) == policy_of({}) == Policy()


# A lock held by another program


def test_a_lock_is_waited_for_once(box, monkeypatch):
    box.put(b"1.a:2,")
    box.open()
    waits = []
    real = popcache_file.acquire
    monkeypatch.setattr(
        popcache_file, "acquire", lambda root, wait, code: waits.append(wait) or real(root, wait, code)
    )
    with Locked(box.path):
        for _ in range(3):
            with box.drop.deliver_begin() as delivery:
                delivery.write(MAIL)
                with pytest.raises(StoreError, match="locked") as caught:
                    delivery.commit()
                assert caught.value.code == "SYS/TEMP"
    assert waits == [0.05, 0.0, 0.0]
    with box.drop.deliver_begin() as delivery:
        delivery.write(MAIL)
        delivery.commit()
    box.drop.listing()
    assert waits[-1] == 0.05


def test_quit_does_not_wait_long(box, monkeypatch):
    box.put(b"1.a:2,")
    listing = box.open()
    box.drop.lock_wait = 30.0
    with Locked(box.path):
        began = time.monotonic()
        assert box.drop.remove(listing, [0]) == []
        assert time.monotonic() - began < 5
    assert text() == b""
