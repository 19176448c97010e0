"""Test which limits of memory and processes are found, and what an idle actor's budget is."""

import os
import resource

import pytest
from popkernel.kernel.config.keys import Config
from popkernel.kernel.init.requirements import _check_warm
from popkernel.kernel.resources.memory_limits import Limits, budget, in_units, limits, most_warm, rounded

GIB = 1 << 30
INFO = "MemTotal:       25000000 kB\nMemFree: 7 kB\n"


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Return a function that makes /proc and the control groups' files, and reads the limits."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)

    def read(groups="", mounts="", files=(), info=INFO):
        proc = tmp_path / "proc"
        (proc / "self").mkdir(parents=True)
        (proc / "meminfo").write_text(info)
        (proc / "self" / "cgroup").write_text(groups)
        (proc / "self" / "mountinfo").write_text(mounts.replace("/sys", f"{tmp_path}/sys"))
        for path, text in dict(files).items():
            file = tmp_path / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return limits(str(proc))

    return read


V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = (
    "31 23 0:27 / /sys/memory rw - cgroup cgroup rw,memory\n"
    "32 23 0:28 / /sys/pids rw - cgroup cgroup rw,pids\n"
)


def test_the_lowest_limit_of_all_groups_above_counts(machine):
    found = machine(
        "0::/system.slice/popkernel.service\n",
        V2,
        {
            "sys/fs/cgroup/system.slice/popkernel.service/memory.max": "max\n",
            "sys/fs/cgroup/system.slice/memory.max": f"{2 * GIB}\n",
            "sys/fs/cgroup/memory.max": f"{4 * GIB}\n",
            "sys/fs/cgroup/system.slice/popkernel.service/pids.max": "512\n",
        },
    )
    assert (found.machine, found.group, found.processes) == (25_600_000_000, 2 * GIB, 512)
    assert [os.path.basename(g) for g in found.groups] == ["popkernel.service", "system.slice", "cgroup"]
    assert budget(Config(), found) == 2 * GIB // 10
    assert budget(Config(warm_memory="7"), found) == 7
    assert most_warm(found) == 256


def test_version_1(machine):
    found = machine(
        "4:memory:/a/b\n8:pids:/a\n0::/\n",
        V1,
        {
            "sys/memory/a/b/memory.limit_in_bytes": "9223372036854771712\n",  # none
            "sys/memory/a/memory.limit_in_bytes": f"{GIB}\n",
            "sys/pids/a/pids.max": "max\n",
        },
    )
    assert (found.group, found.processes) == (GIB, None)


def test_in_a_container_the_path_leads_to_what_is_mounted(machine):
    """Its own group is mounted at the top, and the path is the host's."""
    files = {"sys/fs/cgroup/memory.max": f"{GIB}\n"}
    assert machine("0::/docker/1234\n", V2, files).group == GIB


def test_a_part_of_the_tree_is_mounted(machine):
    files = {"sys/fs/cgroup/x/memory.max": f"{GIB}\n"}
    assert machine("0::/docker/x\n", V2.replace(" / ", " /docker "), files).group == GIB


@pytest.mark.parametrize("path", ["/../..", "/../cgroup2", "/", ""])
def test_a_path_above_what_is_mounted_reads_nothing_elsewhere(machine, path):
    found = machine(f"0::{path}\n", V2, {"sys/fs/cgroup2/memory.max": "5\n", "sys/fs/cgroup/cpu.max": "x"})
    assert found.group is None and len(found.groups) == 1


@pytest.mark.parametrize(
    ("groups", "mounts", "info"),
    [
        ("", "", ""),
        ("x\n0::\n::\n", "x\n - \n1 2 - cgroup2\n1 2 3 4 5 - cgroup2 x\n", "MemTotal: x\nMemTotal:\n"),
        ("\0\xff\n", "\0 - \xff\n", "\0"),
    ],
)
def test_odd_contents_are_no_limit(machine, groups, mounts, info):
    found = machine(groups, mounts, (), info)
    assert found[:3] == (None, None, None)
    assert budget(Config(), found) == GIB // 10 and most_warm(found) > 1 << 20


def test_nothing_is_there(tmp_path):
    found = limits(str(tmp_path / "none"))
    assert found.memory is None and found.groups == ()


def test_the_machine_s_process_numbers_are_a_limit(machine):
    """Idle actors must not take them all: nobody else could start a process."""
    files = {"proc/sys/kernel/pid_max": "32768\n", "proc/sys/kernel/threads-max": "30001\n"}
    found = machine(files=files)
    assert (found.processes, most_warm(found)) == (30001, 15000)


def test_a_number_of_thousands_of_digits_is_no_limit(machine):
    found = machine("0::/\n", V2, {"sys/fs/cgroup/memory.max": "9" * 5000}, f"MemTotal: {'9' * 5000} kB\n")
    assert found.memory is None


def test_a_size_beyond_all_memory_can_be_recorded():
    """A trace holds the settings, and its format has integers of 64 bits."""
    assert budget(Config(warm_memory=str(10**27)), Limits(None, None, None, ())) < 1 << 63


def test_without_root_the_user_s_limit_counts(machine, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (300, 400))
    assert machine().processes == 300


def test_sizes_and_numbers_for_people():
    assert [in_units(n) for n in (0, 1 << 19, 200 << 20, 2527650201)] == [
        "0 KiB",
        "512 KiB",
        "200 MiB",
        "2.4 GiB",
    ]
    assert [rounded(n) for n in (0, 7, 981, 1018, 17_249)] == [0, 7, 981, 1020, 17_200]


def test_a_budget_beyond_the_limits_is_warned_of():
    def found(size, **there):
        given = {"machine": 8 * GIB, "group": None, "processes": None, "groups": (), **there}
        return [str(f) for f in _check_warm(Config(warm_memory=size), Limits(**given))]

    assert found("") == found(str(GIB)) == found(str(GIB), group=2 * GIB, processes=4000) == []
    (group,) = found(str(3 * GIB), group=2 * GIB)
    assert "warm_memory = 3.0 GiB is more than the limit of its control group, 2.0 GiB; lower" in group
    (machine,) = found(str(9 * GIB))
    assert "more than the machine's memory, 8.0 GiB" in machine
    (few,) = found(str(GIB), processes=100)
    assert "about 429 idle maildir actors, and the limit of 100 processes leaves room for 50; raise it" in few
