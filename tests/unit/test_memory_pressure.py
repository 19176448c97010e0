"""Test when memory counts as short: by the system's measure, by a control group's counts, or never."""

import os
import select
import sys

import pytest
from popkernel.kernel.replay.loop import ReplayLoop
from popkernel.kernel.resources import memory_pressure
from popkernel.kernel.resources.memory_pressure import MemoryPressure
from popkernel.kernel.runtime.loop import Loop

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="PSI and control groups are Linux's")

CALM = b"some avg10=0.00 avg60=0.00 avg300=0.00 total=%d\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"


class Watched(ReplayLoop):
    """A loop whose descriptors can be made ready."""

    def __init__(self, *, refuses=False):
        super().__init__()
        self.now, self.calls, self.refuses = 100.0, {}, refuses

    def add(self, fd, call, events=1):
        if self.refuses:
            raise PermissionError(1, "not a file that can be polled")
        self.calls[fd] = call

    def remove(self, fd):
        self.calls.pop(fd, None)


@pytest.fixture
def files(tmp_path):
    (tmp_path / "group").mkdir()
    return tmp_path


def begin(files, loop):
    hits = []
    made = MemoryPressure(loop, [str(files / "group")], lambda: hits.append(loop.now), str(files / "psi"))
    return made, hits


def pass_time(loop, seconds):
    loop.advance(loop.now + seconds, late=True)


def test_a_trigger_is_written_and_tells_at_most_once_in_two_seconds(files):
    (files / "psi").write_bytes(CALM % 0)
    loop = Watched()
    made, hits = begin(files, loop)
    assert (files / "psi").read_bytes().startswith(b"some 200000 2000000\0")
    ((fd, call),) = loop.calls.items()
    call(select.EPOLLPRI)
    call(select.EPOLLPRI)
    assert hits == [100.0]
    loop.now += 2.0
    call(select.EPOLLPRI)
    assert hits == [100.0, 102.0]
    call(select.EPOLLERR | select.EPOLLPRI)
    assert len(hits) == 2 and not loop.calls and len(made) == 0, "the control group is gone"
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)


def test_without_triggers_the_file_is_read_every_few_seconds(files):
    """A file that cannot be polled stands for a system that refuses triggers."""
    (files / "psi").write_bytes(CALM % 5)
    (files / "psi").chmod(0o400)
    loop = Watched(refuses=True)
    made, hits = begin(files, loop)
    (files / "psi").write_bytes(CALM % 5)
    for waited, many in ((400_000, 0), (900_000, 1), (1_000_000, 1), (9_000_000, 2)):
        (files / "psi").write_bytes(CALM % waited)
        pass_time(loop, 5.0)
        assert len(hits) == many, waited
    (files / "psi").write_bytes(b"gone")
    pass_time(loop, 5.0)
    assert len(made) == 0
    pass_time(loop, 50.0)


@pytest.mark.parametrize("system", [None, b"", b"\0\xff", b"some\n", b"some total=x\n", b"full total=7\n"])
def test_counts_of_the_group_s_limits_stand_in(files, system):
    """Where there is no PSI; contents that are none count as no file."""
    if system is not None:
        (files / "psi").write_bytes(system)
    counts = files / "group" / "memory.events"
    counts.write_bytes(b"low 9\nhigh 1\nmax 2\noom 0\n")
    loop = Watched()
    if system is not None:  # the trigger is taken by a plain file: so refuse to poll that one alone
        add = loop.add
        psi = os.stat(files / "psi").st_ino

        def but_psi(fd, call, events=1):
            if os.fstat(fd).st_ino == psi:
                os.ftruncate(fd, 0)
                os.pwrite(fd, system, 0)
                raise PermissionError(1, "cannot be polled")
            add(fd, call, events)

        loop.add = but_psi
    made, hits = begin(files, loop)
    ((_, call),) = loop.calls.items()
    call(select.EPOLLPRI)
    assert hits == []
    counts.write_bytes(b"low 99\nhigh 1\nmax 3\noom 0\n")
    call(select.EPOLLPRI)
    assert hits == [100.0]
    counts.write_bytes(b"max x\n")
    call(select.EPOLLPRI)
    assert len(made) == 0 and hits == [100.0]


def test_nothing_is_there(files):
    """Also a directory in a file's place, and counts that cannot be polled."""
    (files / "psi").mkdir()
    (files / "group" / "memory.pressure").mkdir()
    (files / "group" / "memory.events").write_bytes(b"max 1\n")
    made, hits = begin(files, Watched(refuses=True))
    assert len(made) == 0 and hits == []


@pytest.mark.skipif(not os.path.exists(memory_pressure.SYSTEM), reason="this system has no PSI")
def test_the_system_s_own_file_is_taken():
    made = MemoryPressure(Loop(many=True), [], lambda: None)
    assert len(made) == 1
    for fd in list(made._fds):
        made._drop(fd)
