"""Test lock.py from outside: ids, limits, threads, states, missing support, OpenBSD's calls, and cost."""

import ctypes
import errno
import os
import resource
import shutil
import subprocess
import sys
import threading
import time

import pytest
from popkernel.kernel.sandbox import lock, openbsd
from popkernel.kernel.sandbox.libc import SandboxError, library

from tests.unit.sandbox_child import BROKEN, SIGSYS, forked, refused, sandboxed

linux = pytest.mark.skipif(
    bool(sys.platform != "linux" or lock.missing()), reason=f"no sandbox here: {lock.missing()}"
)
root = pytest.mark.root("only root can change its uid")
NOBODY = 65534


@root
def test_root_becomes_another_user_for_good():
    def body(say):
        lock.drop_ids(NOBODY, NOBODY)
        for back in (lambda: os.setuid(0), lambda: os.setgid(0), lambda: os.setgroups([0])):
            with pytest.raises(PermissionError):
                back()
        return os.getresuid(), os.getresgid(), os.getgroups()

    assert forked(body) == (0, [f"{((NOBODY,) * 3, (NOBODY,) * 3, [NOBODY])}"])


@root
def test_root_may_stay_root():
    assert forked(lambda say: [lock.drop_ids(0, 0), os.getresuid()]) == (0, ["[None, (0, 0, 0)]"])


def somebody():
    """Return the user who runs the tests, or nobody instead of root."""
    if os.geteuid() == 0:
        lock.drop_ids(NOBODY, NOBODY)


def test_ordinary_users_keep_their_ids():
    def body(say):
        somebody()
        lock.drop_ids(os.getuid(), os.getgid())
        say("stayed")
        lock.drop_ids(os.getuid() + 1, os.getgid())

    said = forked(body).said
    assert said[0] == "stayed"
    assert said[1].startswith("SandboxError('cannot become uid")
    assert "start as root" in said[1]


@root
def test_without_the_capability_the_error_says_so():
    def body(say):
        library().prctl(24, 7, 0, 0, 0)  # PR_CAPBSET_DROP CAP_SETUID
        library().prctl(24, 6, 0, 0, 0)  # CAP_SETGID
        if os.fork() == 0:
            os.execv(sys.executable, [sys.executable, "-c", script])
        return os.waitstatus_to_exitcode(os.wait()[1])

    script = (
        "from popkernel.kernel.sandbox import libc, lock\ntry:\n    lock.drop_ids(65534, 65534)\nexcept "
        "libc.SandboxError as error:\n    raise SystemExit(0 if 'CAP_SETUID' in str(error) else 4)\nraise "
        "SystemExit(3)"
    )
    assert forked(body) == (0, ["0"])


def test_limits_hold():
    def body(say):
        lock.set_limits(nofile=64, memory=2**30, fsize=4096)
        for name, value in (("NOFILE", 64), ("AS", 2**30), ("FSIZE", 4096), ("CORE", 0)):
            assert resource.getrlimit(getattr(resource, "RLIMIT_" + name)) == (value, value)
        with pytest.raises(MemoryError):
            bytearray(2**31)
        with pytest.raises(OSError, match="Too many open files"):
            [os.dup(1) for _ in range(64)]

    assert forked(body) == (0, ["None"])


def test_limits_that_are_lower_stay_lower_for_ordinary_users():
    def body(say):
        somebody()
        lock.set_limits(nofile=64, memory=None)
        lock.set_limits(nofile=128, memory=None)
        return resource.getrlimit(resource.RLIMIT_NOFILE)

    assert forked(body) == (0, ["(64, 64)"])


def test_limits_are_never_raised():
    def body(say):
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        lock.set_limits(nofile=2**63 - 1, memory=None)
        return resource.getrlimit(resource.RLIMIT_NOFILE)[1] <= before[1]

    assert forked(body) == (0, ["True"])


@linux
def test_threads_that_run_already_are_bound_too():
    """As in auth: threads start after Landlock and before seccomp."""

    def body(say):
        go, ready = threading.Event(), threading.Event()
        seen = []

        def work():
            ready.set()
            go.wait()
            try:
                open("/etc/passwd", "rb").close()
            except PermissionError:
                seen.append("refused")
            library().ptrace(0, 0, 0, 0)
            seen.append("lives")

        program = lock.compile_promises("stdio rpath")
        lock.unveil([])
        lock.report_broken(lambda call, promise: say(f"{call} needs {promise}, {seen}"))
        worker = threading.Thread(target=work)
        worker.start()
        ready.wait()
        directory = os.getpid()
        lock.pledge(program, all_threads=True)
        go.set()
        worker.join()
        return directory

    assert forked(body) == (BROKEN, ["ptrace needs none, ['refused']"])


@linux
@pytest.mark.parametrize(("all_threads", "filters"), [(True, [1, 1]), (False, [0, 1])])
def test_states_of_threads_as_seen_from_outside(all_threads, filters):
    program = lock.compile_promises("stdio")
    ready, hold = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        try:
            gate = threading.Event()
            worker = threading.Thread(target=gate.wait, daemon=True)
            worker.start()
            lock.pledge(program, all_threads=all_threads)
            os.write(ready[1], b"x")
            os.close(hold[1])
            os.read(hold[0], 1)
        finally:
            os._exit(0)
    os.read(ready[0], 1)
    states = lock.thread_states(child)
    for end in (*ready, *hold):
        os.close(end)
    assert os.waitpid(child, 0)[1] == 0
    assert sorted(state["Seccomp_filters"] for state in states.values()) == filters
    assert states[child] == {"Seccomp": 2, "Seccomp_filters": 1, "NoNewPrivs": 1}


@linux
def test_threads_after_pledge_only_in_nested_children():
    def body():
        worker = threading.Thread(target=lambda: None)
        worker.start()
        worker.join()
        return "ran"

    assert sandboxed(body, nested=True) == (0, ["'ran'"])
    # glibc's pthread_create blocks every signal around clone, so this process dies without a report
    for threads in (False, True):
        assert sandboxed(body, threads=threads) == (-SIGSYS, [])
    # a report would wait for malloc's locks, which fork() holds
    assert sandboxed(os.fork, threads=True) == refused(errno.EPERM)


@linux
def test_a_thread_with_another_filter_is_reported():
    def body(say):
        program = lock.compile_promises("stdio", nested=True)
        done, gate = threading.Event(), threading.Event()

        def work():
            lock.pledge(program)
            done.set()
            gate.wait()

        threading.Thread(target=work, daemon=True).start()
        done.wait()
        lock.pledge(program, all_threads=True)

    assert "has a filter of its own" in forked(body).said[0]


@linux
def test_a_second_pledge_needs_nested_and_only_narrows():
    narrow, wide = lock.compile_promises("stdio"), lock.compile_promises("stdio rpath")

    def body():
        lock.pledge(narrow)
        lock.pledge(wide)

    assert sandboxed(body) == (0, ["SandboxError('prctl(PR_SET_NO_NEW_PRIVS): Invalid argument (errno 22)')"])

    def twice(say):
        lock.pledge(lock.compile_promises("stdio", nested=True))
        lock.pledge(wide)
        return os.getcwd()

    assert forked(twice) == (0, ["PermissionError(13, 'Permission denied')"])


@linux
def test_a_broken_program_is_refused():
    assert "errno 22" in forked(lambda say: lock.pledge(b"\0" * 8)).said[0]


@linux
def test_describe_before_and_after():
    before = lock.describe()
    assert before["system"] == "Linux"
    assert before["landlock"] >= 1
    assert (
        before["threads"][os.getpid()]["Seccomp_filters"]
        == lock.thread_states(os.getpid())[os.getpid()]["Seccomp_filters"]
    )
    assert lock.missing() == []


def test_unknown_promises_are_refused_here_too():
    with pytest.raises(ValueError, match="unknown promise 'rpaths'"):
        lock.compile_promises("stdio rpaths")


def test_a_system_without_a_sandbox_is_reported(monkeypatch):
    monkeypatch.setattr(lock, "SYSTEM", "Plan9")
    assert "Plan9" in lock.missing()[0]
    for locked in (lambda: lock.unveil([]), lambda: lock.pledge(b"")):
        with pytest.raises(SandboxError, match="Plan9"):
            locked()


@linux
def test_actors_carry_no_tables():
    """A child stays small: the promise tables and the assembler remain in the process that compiles."""
    script = (
        "import sys; bare = set(sys.modules); from popkernel.kernel.sandbox import lock; lock.missing();"
        "heavy = ('typing', 're', 'inspect', 'dataclasses', 'enum', 'promises', 'bpf', 'compiler');"
        "print([n for n in set(sys.modules) - bare if n.split('.')[-1] in heavy])"
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert answer.stdout == "[]\n"


@linux
def test_cost_of_locking_in(capsys, tmp_path):
    program = lock.compile_promises("stdio rpath wpath cpath fattr flock unix")
    lock.missing()
    rounds = []
    for _ in range(9):

        def body(say):
            begun = time.perf_counter()
            lock.unveil([(tmp_path, "rwc")])
            middle = time.perf_counter()
            lock.report_broken(lambda call, promise: None)
            before = time.perf_counter()
            lock.pledge(program)
            return middle - begun, before - middle, time.perf_counter() - before

        rounds.append([float(part) * 1e3 for part in forked(body).said[0].strip("()").split(",")])
    best = min(rounds, key=sum)
    with capsys.disabled():
        print(
            f"\n[sandbox] in a forked child, ms: unveil {best[0]:.2f}, report_broken {best[1]:.2f}, "
            f"pledge {best[2]:.2f}, all {sum(best):.2f}"
        )
    assert sum(best) < 20


FAKE = r"""
#include <errno.h>
#include <string.h>
static char said[4096];
static void add(const char *a, const char *b, const char *c) {
    strcat(said, a); strcat(said, "("); strcat(said, b ? b : "NULL"); strcat(said, ", ");
    strcat(said, c ? c : "NULL"); strcat(said, ") ");
}
int unveil(const char *path, const char *permissions) {
    add("unveil", path, permissions);
    if (path && strstr(path, "forbidden")) { errno = EPERM; return -1; }
    return 0;
}
int pledge(const char *promises, const char *execpromises) {
    add("pledge", promises, execpromises);
    if (promises && strstr(promises, "vmm")) { errno = EINVAL; return -1; }
    return 0;
}
const char *what_was_said(void) { return said; }
void forget(void) { said[0] = 0; }
"""


@pytest.fixture(scope="module")
def fake(tmp_path_factory):
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler here to make a library with pledge and unveil")
    folder = tmp_path_factory.mktemp("openbsd")
    (folder / "fake.c").write_text(FAKE)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", folder / "fake.so", folder / "fake.c"], check=True)
    made = ctypes.CDLL(str(folder / "fake.so"), use_errno=True)
    made.what_was_said.restype = ctypes.c_char_p
    return made


@pytest.fixture
def as_openbsd(fake, monkeypatch):
    """Run lock.py as on OpenBSD, with a fake C library; return the calls made."""
    fake.forget()
    monkeypatch.setattr(lock, "SYSTEM", "OpenBSD")
    monkeypatch.setattr(openbsd.libc, "library", lambda: fake)
    return lambda: fake.what_was_said().decode()


def test_openbsd_unveils_and_then_locks(as_openbsd, tmp_path):
    assert lock.missing() == []
    assert [text for text in lock.weaknesses() if "unix and inet" in text] == lock.weaknesses() != []
    lock.unveil([(str(tmp_path), "rwc"), (b"/", "r")])
    assert as_openbsd() == f"unveil({tmp_path}, rwc) unveil(/, r) unveil(NULL, NULL) "


def test_openbsd_without_paths_hides_the_root(as_openbsd):
    lock.unveil([])
    assert as_openbsd() == "unveil(/, ) unveil(NULL, NULL) "


def test_openbsd_pledges(as_openbsd):
    lock.report_broken(lambda call, promise: None)
    lock.pledge(lock.compile_promises("stdio  rpath", threads=True, nested=True), all_threads=True)
    assert as_openbsd() == "pledge(stdio rpath, ) "


def test_openbsd_errors_are_reported(as_openbsd, tmp_path):
    (tmp_path / "forbidden").mkdir()
    with pytest.raises(SandboxError, match="nowhere: it is not there"):
        lock.unveil([(tmp_path / "nowhere", "r")])
    with pytest.raises(SandboxError, match="forbidden: Operation not permitted"):
        lock.unveil([(tmp_path / "forbidden", "r")])
    with pytest.raises(SandboxError, match="pledge.*Invalid argument"):
        lock.pledge(b"vmm")


@pytest.mark.skipif(sys.platform != "linux", reason="a C library without pledge is wanted")
def test_missing_openbsd_calls_are_reported():
    assert [text.split("(")[0] for text in openbsd.missing()] == ["pledge", "unveil"]


def test_sigsys_is_the_number_used():
    import signal

    assert SIGSYS == signal.SIGSYS or sys.platform != "linux"
