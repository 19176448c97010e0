"""Watched files: what counts as a change, when it is told, and that nothing is told twice."""

import os
import time

import pytest
from popkernel.kernel.init.file_watching import Watching
from popkernel.kernel.replay.harness import StageLoop


class Watched:
    """Three files, a clock, and how often a change was told."""

    def __init__(self, folder):
        self.folder = folder
        self.names = ["auth", "users", "cert"]
        for name in self.names:
            self.write(name, b"first\n")
        self.told = 0
        self.loop = StageLoop()
        self.watching = Watching(self.loop, lambda: [str(folder / name) if name else "" for name in self.names], self.changed)
        self.watching.set(on=True)

    def changed(self):
        self.told += 1

    def write(self, name, data):
        """As an editor does: another file in its place."""
        (self.folder / (name + ".new")).write_bytes(data)
        os.rename(self.folder / (name + ".new"), self.folder / name)

    def rest(self, seconds):
        """How often a change was told meanwhile."""
        before = self.told
        self.loop.advance(self.loop.now + seconds)
        return self.told - before


@pytest.fixture
def watched(tmp_path):
    return Watched(tmp_path)


def test_nothing_changes_nothing_is_told(watched):
    assert watched.rest(600) == 0


@pytest.mark.parametrize("name", ["auth", "users", "cert"])
def test_a_change_is_told_once_within_two_seconds(watched, name):
    watched.write(name, b"other\n")
    assert watched.rest(2) == 1
    assert watched.rest(600) == 0


def test_every_way_to_change(watched):
    path = watched.folder / "auth"
    with open(path, "ab") as file:
        file.write(b"more\n")
    assert watched.rest(3) == 1
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    path.write_bytes(b"FIRST\nmore\n")  # as large as before, and then made as old as before
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


def test_what_somebody_else_has_taken_is_not_told(watched):
    watched.write("auth", b"other\n")
    watched.watching.taken()  # the operator's own reload
    assert watched.rest(10) == 0
    watched.write("auth", b"third\n")
    assert watched.rest(2) == 1


def test_a_change_while_it_is_off_is_told_when_it_is_on(watched):
    watched.watching.set(on=False)
    watched.write("auth", b"other\n")
    assert watched.rest(10) == 0
    watched.watching.set(on=True)
    assert watched.rest(3) == 1


def test_other_files_by_another_configuration(watched):
    """And back again, where that configuration was refused: or else the two would take turns for ever."""
    (watched.folder / "other").write_bytes(b"x\n")
    watched.names = ["other", "users", ""]
    watched.watching.taken()
    assert watched.rest(3) == 0
    watched.names = ["auth", "users", "cert"]
    assert watched.rest(10) == 0
    watched.names = ["other", "users", ""]
    watched.watching.taken()
    watched.write("auth", b"new\n")  # just then: it is not lost
    watched.names = ["auth", "users", "cert"]
    assert watched.rest(2) == 1


def test_a_look_costs_little(watched):
    began = time.process_time()
    watched.rest(600)
    assert (time.process_time() - began) / 10 < 0.05  # a minute of it: the budget of an idle server
