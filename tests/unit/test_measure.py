"""Test measuring in lots: odd files, broken lots, and no descriptor left open."""

import errno
import os

import pytest
from popkernel.actors.maildir.store import files as directory

COUNT = 300
CLAIMED = 140_000


def letter(number):
    return b"Subject: %d\n\n" % number + b"line\n" * (number % 7)


@pytest.fixture
def files(tmp_path):
    """Provide messages, with other files among them."""
    for number in range(COUNT):
        if number % 100 == 13:
            os.mkfifo(tmp_path / str(number))
        elif number % 100 == 57:
            os.mkdir(tmp_path / str(number))
        elif number % 100 != 77:
            (tmp_path / str(number)).write_bytes(letter(number))
    (tmp_path / "0").write_bytes(b"x" * (2 << 16) + b"\n")
    fd = os.open(tmp_path, os.O_RDONLY)
    yield [(fd, b"%d" % number, (2 * 65536 + 1, CLAIMED) if number == 0 else None) for number in range(COUNT)]
    os.close(fd)


def size(number):
    """Return the expected size.

    That is with POP3's line ends, None for no message, or a large message's size from its name.
    """
    return (
        CLAIMED
        if number == 0
        else None
        if number % 100 in {13, 57, 77}
        else len(letter(number).replace(b"\n", b"\r\n"))
    )


@pytest.mark.parametrize("many", [0, 1, 15, 16, 17, 32, 33, COUNT])
def test_lots_whole_and_broken(files, many):
    assert directory.measure_all(files[:many]) == [size(number) for number in range(many)]


def test_an_unreadable_message_is_reported_with_its_reason(files):
    *others, error = directory.measure_all([*files[1:3], (files[0][0], b"n" * 256, None)])
    assert (others, error.errno) == ([size(1), size(2)], errno.ENAMETOOLONG)


def test_a_sign_of_life_comes_with_each_lot(files):
    signs = []
    directory.measure_all(files, lambda: signs.append(1))
    assert len(signs) >= COUNT // directory._AT_ONCE


@pytest.mark.parametrize("step", ["_measured", "_open_other"])
def test_open_descriptors_are_always_closed(files, monkeypatch, step):
    def fails(*_):
        raise MemoryError

    monkeypatch.setattr(directory, step, fails)
    before = os.listdir("/dev/fd")
    with pytest.raises(MemoryError):
        directory.measure_all(files)
    assert os.listdir("/dev/fd") == before
