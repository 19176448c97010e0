"""Test watched files: what counts as a change, and that each is reported once, in time."""

import os
import time

import pytest
from popkernel.kernel.init.file_watching import Watcher
from popkernel.kernel.replay.loop import ReplayLoop


class Watched:
    """Hold three files, a clock, and the number of changes reported."""

    def __init__(self, folder):
        self.folder = folder
        self.names = ["auth", "users", "cert"]
        for name in self.names:
            self.write(name, b"first\n")
        self.reports = 0
        self.loop = ReplayLoop()
        self.watching = Watcher(
            self.loop, lambda: [str(folder / name) if name else "" for name in self.names], self.changed
        )
        self.watching.set(on=True)

    def changed(self):
        self.reports += 1

    def write(self, name, data):
        """Replace the file, as an editor does."""
        (self.folder / (name + ".new")).write_bytes(data)
        os.rename(self.folder / (name + ".new"), self.folder / name)

    def rest(self, seconds):
        """Advance the clock; return the number of changes reported meanwhile."""
        before = self.reports
        self.loop.advance(self.loop.now + seconds)
        return self.reports - before


@pytest.fixture
def watched(tmp_path):
    return Watched(tmp_path)


def test_without_a_change_nothing_is_reported(watched):
    assert watched.rest(600) == 0


@pytest.mark.parametrize("name", ["auth", "users", "cert"])
def test_a_change_is_reported_once_within_two_seconds(watched, name):
    watched.write(name, b"other\n")
    assert watched.rest(2) == 1
    assert watched.rest(600) == 0


def test_every_way_to_change(watched):
    path = watched.folder / "auth"
    with open(path, "ab") as file:
        file.write(b"more\n")
    assert watched.rest(3) == 1
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    path.write_bytes(b"FIRST\nmore\n")  # the same size as before, and below the same time
    os.utime(path, ns=times)
    assert watched.rest(3) == 1
    os.unlink(path)
    assert watched.rest(3) == 1
    path.write_bytes(b"again\n")
    assert watched.rest(3) == 1


def test_a_file_that_is_being_written_is_waited_for(watched):
    for n in range(10):
        with open(watched.folder / "auth", "ab") as file:
            file.write(b"%d\n" % n)
        watched.write("cert", b"part %d" % n)
        assert watched.rest(1) == 0
    assert watched.rest(2) == 1


def test_a_change_already_loaded_is_not_reported(watched):
    watched.write("auth", b"other\n")
    watched.watching.mark_read()  # by the operator's own reload
    assert watched.rest(10) == 0
    watched.write("auth", b"third\n")
    assert watched.rest(2) == 1


def test_a_change_while_off_is_reported_when_on(watched):
    watched.watching.set(on=False)
    watched.write("auth", b"other\n")
    assert watched.rest(10) == 0
    watched.watching.set(on=True)
    assert watched.rest(3) == 1


def test_other_files_by_another_configuration(watched):
    """A change to another set of files and back is no change: the two must not alternate for ever."""
    (watched.folder / "other").write_bytes(b"x\n")
    watched.names = ["other", "users", ""]
    watched.watching.mark_read()
    assert watched.rest(3) == 0
    watched.names = ["auth", "users", "cert"]
    assert watched.rest(10) == 0
    watched.names = ["other", "users", ""]
    watched.watching.mark_read()
    watched.write("auth", b"new\n")  # at that moment: it is not lost
    watched.names = ["auth", "users", "cert"]
    assert watched.rest(2) == 1


def test_a_check_of_the_files_is_cheap(watched):
    began = time.process_time()
    watched.rest(600)
    assert (time.process_time() - began) / 10 < 0.05  # for a minute: the budget of an idle server
