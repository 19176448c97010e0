"""A second thread measures beside the first: the same figures, its errors told, and gone when there is nothing (more) to measure."""

import _thread
import os
import threading

import pytest
from popkernel.actors.maildir import beside, directory, mailbox
from popkernel.actors.maildir.beside import Beside

from tests.service import wait_for
from tests.unit.test_store import Box, shown

COUNT = directory._WORTH_IT + 7


def letter(number):
    return b"Subject: %d\n\n" % number + b"line\n" * (number % 7)


@pytest.fixture
def files(tmp_path):
    """Messages, and among them what is none."""
    for number in range(COUNT):
        if number % 100 == 13:
            os.mkfifo(tmp_path / str(number))
        elif number % 100 == 57:
            os.mkdir(tmp_path / str(number))
        elif number % 100 != 77:
            (tmp_path / str(number)).write_bytes(letter(number))
    fd = os.open(tmp_path, os.O_RDONLY)
    yield [(fd, b"%d" % number, None) for number in range(COUNT)]
    os.close(fd)


def who_measures(monkeypatch):
    real, took = directory._measure_some, []

    def some(files):
        took.append((threading.get_ident(), len(files)))
        return real(files)

    monkeypatch.setattr(directory, "_measure_some", some)
    return took


def test_the_same_by_two(files, monkeypatch):
    alone = directory.measure_all(files)
    took, signs = who_measures(monkeypatch), []
    helper = Beside()
    helper.start()
    assert helper.there
    gate, real = threading.Event(), directory._measure_some

    def some(files):  # whichever is first waits for the other, so that both are seen
        if len({thread for thread, _ in took}) == 1:
            gate.wait(0.05)
        sizes = real(files)
        if len({thread for thread, _ in took}) == 2:
            gate.set()
        return sizes

    monkeypatch.setattr(directory, "_measure_some", some)
    assert directory.measure_all(files, lambda: signs.append(threading.get_ident()), helper) == alone
    assert len({thread for thread, _ in took}) == 2
    assert sum(many for _, many in took) == COUNT
    assert max(many for _, many in took) <= 20  # of both together fewer than an actor's 64 descriptors
    assert set(signs) == {threading.get_ident()}
    assert alone.count(None) == sum(number % 100 in {13, 57, 77} for number in range(COUNT))
    assert not helper.there
    assert directory.measure_all(files, None, helper) == alone  # it works once


def test_an_error_in_the_thread_is_the_listings(files, monkeypatch):
    main, real, tried = threading.get_ident(), directory._measure_some, threading.Event()

    def some(files):
        if threading.get_ident() != main:
            tried.set()
            raise MemoryError
        tried.wait(10)
        return real(files)

    monkeypatch.setattr(directory, "_measure_some", some)
    helper = Beside()
    helper.start()
    with pytest.raises(MemoryError):
        directory.measure_all(files, None, helper)


def test_an_error_in_the_first_thread_waits_for_the_second(files, monkeypatch):
    main, real = threading.get_ident(), directory._measure_some
    done = []

    def some(files):
        if threading.get_ident() == main:
            raise MemoryError
        done.append(len(files))
        return real(files)

    monkeypatch.setattr(directory, "_measure_some", some)
    helper = Beside()
    helper.start()
    with pytest.raises(MemoryError):
        directory.measure_all(files, None, helper)
    assert sum(done) == COUNT - 20
    assert len(os.listdir("/proc/self/fd")) < 1000 if os.path.isdir("/proc/self/fd") else True


def test_where_no_thread_can_be_had(files, monkeypatch):
    def refused(work, arguments):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(beside, "start_new_thread", refused)
    helper = Beside()
    helper.start()
    assert not helper.there
    assert directory.measure_all(files, None, helper) == directory.measure_all(files)
    helper.dismiss()


def test_few_files_leave_it_for_later_and_the_listing_lets_it_go(tmp_path):
    box = Box(tmp_path)
    try:
        before = _thread._count()
        box.put(b"1.x", letter(1), b"new")
        box.drop.beside = Beside()
        box.drop.beside.start()
        wait_for(lambda: _thread._count() == before + 1)
        directory.measure_all([(box.drop.new, b"1.x", None)], None, box.drop.beside)
        assert box.drop.beside.there
        assert len(shown(box.drop.listing())) == 1
        assert not box.drop.beside.there
        wait_for(lambda: _thread._count() == before)
        assert len(shown(box.drop.listing())) == 1
    finally:
        box.drop.close()


def test_much_unmeasured_goes_by_the_sizes_of_directories_and_popcache(tmp_path, monkeypatch):
    box = Box(tmp_path)
    try:
        assert not box.drop.much_unmeasured()
        for number in range(300):
            box.put(b"%d.%s" % (1000 + number, b"x" * 200), letter(number), b"new")
        names = os.fstat(box.drop.new).st_size + os.fstat(box.drop.cur).st_size
        monkeypatch.setattr(mailbox, "_MUCH", names)
        assert box.drop.much_unmeasured()
        box.drop.listing()
        assert os.path.getsize(box.path + b"/popcache") > names // 2
        assert not box.drop.much_unmeasured()
        monkeypatch.setattr(mailbox, "_MUCH", names + 1)
        os.unlink(box.path + b"/popcache")
        assert not box.drop.much_unmeasured()
    finally:
        box.drop.close()
