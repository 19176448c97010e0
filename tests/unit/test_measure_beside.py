"""A helper measures beside the actor: the same figures; what it owes when it is gone is measured here; gone when nothing (more) is asked."""

import errno
import fcntl
import os
import signal
import threading

import pytest
from popkernel.actors.maildir import beside, directory
from popkernel.actors.maildir.beside import Beside, serve

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
    (tmp_path / "0").write_bytes(b"x" * (2 << 16) + b"\n")  # its name claims what is not there
    fd = os.open(tmp_path, os.O_RDONLY)
    yield [(fd, b"%d" % number, (2 * 65536 + 1, 140_000) if number == 0 else None) for number in range(COUNT)]
    os.close(fd)


@pytest.fixture
def helper():
    """A helper of this process's: (the actor's end, its pid)."""
    questions, ask = os.pipe()
    answers, answer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(ask)
        os.close(answers)
        try:
            serve(questions, answer)
        finally:
            os._exit(7)
    os.close(questions)
    os.close(answer)
    end = Beside((answers, ask))
    yield end, pid
    end.dismiss()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def counted(monkeypatch):
    """What is measured in this process from now on."""
    real, took = directory._measured, []

    def measured(file, claimed):
        took.append(file)
        return real(file, claimed)

    monkeypatch.setattr(directory, "_measured", measured)
    return took


def test_the_same_by_two(files, helper, monkeypatch):
    alone = directory.measure_all(files)
    assert alone[0] == 140_000
    assert alone.count(None) == sum(number % 100 in {13, 57, 77} for number in range(COUNT))
    took, signs = counted(monkeypatch), []
    end, _ = helper
    assert directory.measure_all(files, lambda: signs.append(1), end) == alone
    lot = directory._AT_ONCE
    assert len(took) <= COUNT - directory._AHEAD * lot  # the helper had the first lots at least
    assert len(took) // lot <= len(signs) <= COUNT // lot
    assert end.there  # until the listing is done


def test_what_cannot_be_read_is_told_with_its_reason(files, helper):
    end, _ = helper
    end.ask(5, [(files[0][0], b"n" * 256, None)])
    ((number, (error,)),) = end.answers(wait=True)
    assert (number, error.errno) == (5, errno.ENAMETOOLONG)
    assert end.there


def test_what_a_helper_owes_that_was_killed_is_measured_here(files, helper):
    alone = directory.measure_all(files)
    end, pid = helper
    os.kill(pid, signal.SIGSTOP)  # asked, and never answered
    end.ask(0, files[:32])
    os.kill(pid, signal.SIGKILL)
    ((number, sizes),) = end.answers(wait=True)
    assert (number, sizes) == (0, alone[:32])
    assert not end.there
    end.ask(1, files[32:64])
    assert dict(end.answers(wait=False)) == {1: alone[32:64]}


def test_a_helper_killed_on_the_way(files, helper, monkeypatch):
    alone = directory.measure_all(files)
    end, pid = helper
    real = directory._measured

    def measured(file, claimed):
        os.kill(pid, signal.SIGKILL)
        return real(file, claimed)

    monkeypatch.setattr(directory, "_measured", measured)
    assert directory.measure_all(files, None, end) == alone


def test_half_an_answer_is_none(files, monkeypatch):
    answers, answer = os.pipe()
    questions, ask = os.pipe()
    end = Beside((answers, ask))
    end.ask(0, files[:3])
    os.write(answer, bytes(20))
    assert dict(end.answers(wait=True)) == {0: directory.measure_all(files[:3])}
    assert not end.there
    os.close(answer)
    os.close(questions)


def test_the_helper_never_waits_and_neither_do_we(files):
    """Names as long as may be, each with sizes of its own, all lots that are asked ahead, and nobody reads: the pipe has room."""
    answers, answer = os.pipe()
    questions, ask = os.pipe()
    end = Beside((answers, ask))
    long = [(1234567, b"n" * 255, (10**18, 10**18 + number)) for number in range(directory._AT_ONCE)]
    done = threading.Event()

    def three():
        for number in range(directory._AHEAD):
            end.ask(number, long)
        done.set()

    threading.Thread(target=three, daemon=True).start()
    assert done.wait(10)
    assert list(end.answers(wait=False)) == []
    for fd in (answer, questions):
        os.close(fd)
    end.dismiss()


def test_questions_say_again_what_changes():
    files = [(3, b"1.a", None), (3, b"1.b", None), (4, b"1.b:2,S", None), (4, b"1.c", (5, 6)), (4, b"1.d", (5, 6)), (4, b"1 .e", None), (3, b"1.f", (0, 0))]
    assert beside._files(b"\0".join(beside._entries(files)).split(b"\0")) == files


def test_one_question_is_answered_without_a_second(files, helper):
    end, _ = helper
    for number in range(3):
        end.ask(number, files[:5])
        assert dict(end.answers(wait=True)) == {number: directory.measure_all(files[:5])}
    assert end.there


@pytest.mark.parametrize("many", [0, 1, 15, 16, 17, 32, 33])
def test_lots_whole_and_broken(files, many):
    assert len(directory.measure_all(files[:many])) == many
    assert directory.measure_all(files[:many]) == [size for file in files[:many] for size in directory.measure_some([file])]


@pytest.mark.parametrize("step", ["_measured", "_open_other"])
def test_what_is_open_is_closed_whatever_happens(files, monkeypatch, step):
    def fails(*_):
        raise MemoryError

    monkeypatch.setattr(directory, step, fails)
    before = os.listdir("/dev/fd")
    with pytest.raises(MemoryError):
        directory.measure_all(files)
    assert os.listdir("/dev/fd") == before


def test_a_small_pipe_that_nobody_reads_is_not_waited_for(files):
    """pipe(7): who has many pipes gets small ones."""
    alone = directory.measure_all(files)
    answers, answer = os.pipe()
    questions, ask = os.pipe()
    fcntl.fcntl(ask, fcntl.F_SETPIPE_SZ, 4096)
    end = Beside((answers, ask))
    for number in range(64):
        end.ask(number, files[32 * number : 32 * number + 32])
    assert not end.there
    assert [size for _, sizes in end.answers(wait=True) for size in sizes] == alone
    os.close(answer)
    os.close(questions)


def test_who_was_dismissed_writes_to_no_descriptor_that_is_anothers(files, tmp_path):
    answers, answer = os.pipe()
    questions, ask = os.pipe()
    end = Beside((answers, ask))
    end.dismiss()
    mine = [os.open(tmp_path / f"mine{i}", os.O_RDWR | os.O_CREAT) for i in range(2)]
    assert {answers, ask} == set(mine)
    end.ask(0, files[:3])
    assert dict(end.answers(wait=False)) == {0: directory.measure_all(files[:3])}
    assert [os.fstat(fd).st_size for fd in mine] == [0, 0]
    for fd in (*mine, answer, questions):
        os.close(fd)


@pytest.mark.parametrize("octets", [2, 4, 9])
def test_a_helper_dismissed_in_the_middle_of_a_question_ends(octets):
    questions, ask = os.pipe()
    answers, answer = os.pipe()
    os.write(ask, ((100).to_bytes(4, "big") + b"3 -1 -1 name")[:octets])
    os.close(ask)
    serve(questions, answer)
    os.close(answer)
    assert os.read(answers, 1) == b""
    os.close(answers)


def test_few_files_leave_it_for_later_and_the_listing_lets_it_go(tmp_path, helper):
    box = Box(tmp_path)
    try:
        end, _ = helper
        box.put(b"1.x", letter(1), b"new")
        box.drop.beside = end
        directory.measure_all([(box.drop.new, b"1.x", None)], None, end)
        assert end.there
        assert len(shown(box.drop.listing())) == 1
        assert not end.there
        assert len(shown(box.drop.listing())) == 1
    finally:
        box.drop.close()


def test_another_directory_in_the_place_of_one_is_not_the_helpers(tmp_path, helper):
    box = Box(tmp_path)
    try:
        end, _ = helper
        box.drop.beside = end
        os.rename(box.path + b"/new", box.path + b"/old")
        os.mkdir(box.path + b"/new")
        box.drop.look("cur")
        assert end.there
        box.drop.look("new")
        assert not end.there
    finally:
        box.drop.close()


def test_much_unmeasured_goes_by_the_sizes_of_directories_and_popcache(tmp_path, monkeypatch):
    box = Box(tmp_path)
    try:
        assert not beside.much_unmeasured(box.drop)
        for number in range(300):
            box.put(b"%d.%s" % (1000 + number, b"x" * 200), letter(number), b"new")
        names = os.fstat(box.drop.new).st_size + os.fstat(box.drop.cur).st_size
        monkeypatch.setattr(beside, "_MUCH", names)
        assert beside.much_unmeasured(box.drop)
        box.drop.listing()
        assert os.path.getsize(box.path + b"/popcache") > names // 2
        assert not beside.much_unmeasured(box.drop)
        monkeypatch.setattr(beside, "_MUCH", names + 1)
        os.unlink(box.path + b"/popcache")
        assert not beside.much_unmeasured(box.drop)
    finally:
        box.drop.close()


def test_an_answer_comes_in_one_piece():
    assert directory._AT_ONCE * beside._OCTETS <= 512  # POSIX's least PIPE_BUF
