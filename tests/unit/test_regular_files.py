"""Test reading an operator's files: only regular ones are read, a FIFO blocks nobody, no device is opened."""

import os
import signal
import socket

import pytest
from popkernel.kernel.config.regular_files import open_regular, read_regular


@pytest.fixture(autouse=True)
def _nobody_waits():
    """Interrupt an open(2) that waits for a writer; without an exception it would be restarted."""

    def late(*_):
        raise TimeoutError("it waits")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(5)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def test_a_regular_file_whole_and_a_link_to_it(tmp_path):
    (tmp_path / "file").write_bytes(b"x" * 3_000_000)
    (tmp_path / "link").symlink_to("file")
    assert read_regular(f"{tmp_path}/link", 3_000_000) == b"x" * 3_000_000


def test_one_octet_too_many_is_an_error_and_no_cut(tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    assert read_regular(f"{tmp_path}/file", 5) == b"12345"
    with pytest.raises(OSError, match="has over 4 octets"):
        read_regular(f"{tmp_path}/file", 4)


def test_an_endless_file_costs_no_more_than_the_bound(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setattr(os, "read", lambda _fd, many: b"x" * many)
    with pytest.raises(OSError, match="has over 10 octets"):
        read_regular(f"{tmp_path}/file", 10)


def make(path, kind):
    if kind == "a FIFO":
        os.mkfifo(path)
    elif kind == "a directory":
        os.mkdir(path)
    elif kind == "a socket":
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(path)
    else:
        os.symlink("/dev/zero", path)


@pytest.mark.parametrize("kind", ["a FIFO", "a directory", "a socket", "a device"])
def test_irregular_files_are_named_and_never_opened(tmp_path, monkeypatch, kind):
    path = f"{tmp_path}/file"
    make(path, kind)
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", lambda *_: pytest.fail("opened"))
        with pytest.raises(OSError, match="regular") as caught:
            read_regular(path, 10)
    assert caught.value.strerror == (
        "Is a directory" if kind == "a directory" else f"is {kind}, not a regular file"
    )
    assert caught.value.filename == path


def test_a_fifo_put_there_between_the_look_and_the_open(tmp_path, monkeypatch):
    path = f"{tmp_path}/file"
    (tmp_path / "file").write_bytes(b"")
    look = os.stat

    def late(name, **options):
        found = look(name, **options)
        os.unlink(path)
        os.mkfifo(path)
        return found

    before = len(os.listdir("/dev/fd"))
    monkeypatch.setattr(os, "stat", late)
    with pytest.raises(OSError, match="is a FIFO, not a regular file"):
        open_regular(path)
    assert len(os.listdir("/dev/fd")) == before
