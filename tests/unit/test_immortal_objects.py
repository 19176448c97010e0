"""Test immortal objects: which Pythons have them, the trial in a child, which objects stay mortal.

Whatever becomes immortal does so in a child: this process would keep it for good.
"""

import os
import signal
import socket
import sys

import pytest
from popkernel.kernel.runtime.child_process import do_and_leave
from popkernel.kernel.runtime.loop import Loop
from popkernel.kernel.spawner import immortal_objects
from popkernel.kernel.spawner.children import Children
from popkernel.kernel.spawner.immortal_objects import Python, make_immortal, missing, running
from popkernel.proto.log_levels import DEBUG, WARNING

KNOWN = Python("cpython", (3, 13), 64, "little", free_threaded=False, debug=False)
HERE = running().version
needs_them = pytest.mark.skipif(bool(missing(running())), reason=missing(running()))


def try_in_child():
    return immortal_objects.Trial().end()


def in_child(work):
    pid = os.fork()
    if pid == 0:
        do_and_leave(work, 70)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# -- which Pythons
@pytest.mark.parametrize(
    ("version", "count"), [((3, 12), 0xFFFFFFFF), ((3, 13), 0xFFFFFFFF), ((3, 14), 0xC0010000)]
)
def test_a_known_version_has_its_count(version, count):
    assert missing(KNOWN._replace(version=version)) == ""
    assert immortal_objects._COUNTS[version] == count


@needs_them
def test_the_running_version_has_the_count_of_its_own_immortal_objects():
    own, ours = sys.getrefcount(None), immortal_objects._COUNTS[HERE]
    assert own == ours if HERE < (3, 14) else own < ours < own + (1 << 20)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"version": (3, 11)}, "Python 3.11 has none, 3.12 and later have"),
        ({"version": (3, 15)}, "the layout of Python 3.15's objects is not known here"),
        ({"version": (4, 0)}, "the layout of Python 4.0's objects is not known here"),
        ({"bits": 32}, "Python 3.13 has 32 bits, little-endian: known are 64, little-endian"),
        ({"byteorder": "big"}, "Python 3.13 has 64 bits, big-endian: known are 64, little-endian"),
        ({"free_threaded": True}, "Python 3.13 is a free-threaded build"),
        ({"debug": True}, "Python 3.13 is a debug build"),
        ({"implementation": "pypy"}, "the layout of pypy's objects is not known here"),
    ],
)
def test_every_other_python_is_left_out(changed, why):
    assert missing(KNOWN._replace(**changed)) == why


# -- the trial
@needs_them
def test_the_trial_succeeds_here():
    assert try_in_child() == ""


def test_a_count_that_still_changes_is_found(monkeypatch):
    monkeypatch.setitem(immortal_objects._COUNTS, HERE, 1 << 20)
    assert try_in_child() == "the references of an immortal object were counted"


@pytest.fixture
def any_python(monkeypatch):
    """Go on with the trial, whatever this Python is."""
    monkeypatch.setitem(immortal_objects._COUNTS, HERE, 1 << 30)
    monkeypatch.setattr(immortal_objects, "_counts", lambda objects: False)
    monkeypatch.setattr(immortal_objects, "make_immortal", lambda: 0)


@pytest.mark.usefixtures("any_python")
def test_a_later_object_that_is_not_counted_is_found(monkeypatch):
    monkeypatch.setattr(immortal_objects.sys, "getrefcount", lambda _: 5)
    assert try_in_child() == "the references of a later object were not counted"


@pytest.mark.usefixtures("any_python")
def test_a_trial_that_crashes_or_raises_or_cannot_be_forked_is_a_fault(monkeypatch, capfd):
    monkeypatch.setattr(immortal_objects, "make_immortal", lambda: os.kill(os.getpid(), signal.SIGKILL))
    assert try_in_child() == "signal 9"
    monkeypatch.setattr(immortal_objects, "make_immortal", lambda: 1 / 0)
    assert try_in_child() == "an exception"
    assert "ZeroDivisionError" in capfd.readouterr().err

    monkeypatch.setattr(immortal_objects, "make_immortal", lambda: os._exit(159))
    assert try_in_child() == "exit 159"

    def fork():
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", fork)
    assert try_in_child() == "Resource temporarily unavailable"


@pytest.mark.usefixtures("any_python")
def test_a_trial_that_fails_by_an_oserror_is_no_success(monkeypatch):
    def fail():
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(immortal_objects, "make_immortal", fail)
    assert try_in_child() == "exit 0"


@pytest.mark.usefixtures("any_python")
@pytest.mark.parametrize("hang", [signal.pause, lambda: os.kill(os.getpid(), signal.SIGSTOP)])
def test_a_trial_that_hangs_is_killed_and_a_fault(monkeypatch, hang):
    monkeypatch.setattr(immortal_objects, "make_immortal", hang)
    monkeypatch.setattr(immortal_objects, "_SECONDS", 0.05)
    trial = immortal_objects.Trial()
    assert trial.end() == "no end within 0 s"
    assert os.WTERMSIG(os.waitpid(trial._pid, 0)[1]) == signal.SIGKILL


# -- what becomes immortal
def immortal(thing):
    return sys.getrefcount(thing) >= 1 << 31


def _make(sock, file):
    """Return 0 if exactly the right objects are immortal."""

    def generate():
        yield f"{os.getpid()} of a frame"

    waiting = generate()
    held = next(waiting)
    kept = [f"{os.getpid()} of a list", {"key": f"{os.getpid()} of a dictionary"}]
    make_immortal()
    code = generate.__code__
    immortals = [
        kept,
        *kept,
        kept[1]["key"],
        generate,
        code,
        code.co_name,
        code.co_names,
        code.co_consts,
        Python,
    ]
    mortals = [sock, file, waiting, f"{os.getpid()} made later"]
    del held
    return [immortal(one) for one in immortals].count(False) + 16 * [immortal(one) for one in mortals].count(
        True
    )


@needs_them
def test_objects_are_immortal_but_for_files_sockets_and_generators():
    near, far = socket.socketpair()
    with near, far, open(os.devnull, "rb") as file:
        assert in_child(lambda: _make(near, file)) == 0


def _drop_files(pipe, sock):
    held = [os.fdopen(pipe, "wb"), sock]
    make_immortal()
    for number in (pipe, sock.fileno()):
        os.fstat(number)
    numbers = [pipe, sock.fileno()]
    del sock
    held.clear()
    closed = 0
    for number in numbers:
        try:
            os.fstat(number)
        except OSError:
            closed += 1
    return closed


@needs_them
def test_a_file_and_a_socket_are_closed_when_the_last_reference_is_dropped():
    def work():
        near, far = socket.socketpair()
        far.close()
        taken = [near]
        del near
        return _drop_files(os.pipe()[1], taken.pop())

    assert in_child(work) == 2


# -- the warm image
class Tried:
    """Stand for a trial with this result."""

    result = ""

    def end(self):
        return self.result


@pytest.fixture
def made(monkeypatch):
    """Count how often the image becomes immortal, after trials that succeed."""
    made = []
    monkeypatch.setattr(immortal_objects, "running", lambda: KNOWN)
    monkeypatch.setattr(immortal_objects, "Trial", Tried)
    monkeypatch.setattr(immortal_objects, "make_immortal", lambda: made.append(1))
    return made


def reported(children, process):
    logged = []
    children.report(process, lambda level, event, **fields: logged.append((level, event, fields)))
    return logged


def test_a_failed_trial_is_logged_and_changes_nothing(monkeypatch, made):
    monkeypatch.setattr(Tried, "result", "signal 11")
    children = Children(Loop(), lambda *_: None, lambda: None)
    children.prepare()
    children.tried()
    children._make_immortal()
    assert reported(children, "spawner") == [
        (WARNING, "image.mortal", {"process": "spawner", "why": "signal 11"})
    ]
    assert not made


@pytest.mark.usefixtures("made")
@pytest.mark.parametrize(("version", "level"), [((3, 11), DEBUG), ((3, 99), DEBUG)])
def test_a_python_without_them_is_logged(monkeypatch, version, level):
    """Only with -v: else each start of Debian 12 and its demo would say so."""
    python = KNOWN._replace(version=version)
    monkeypatch.setattr(immortal_objects, "running", lambda: python)
    monkeypatch.setattr(immortal_objects, "Trial", lambda: pytest.fail("tried"))
    children = Children(Loop(), lambda *_: None, lambda: None)
    children.prepare()
    children.tried()
    children._make_immortal()
    why = immortal_objects.missing(python)
    assert reported(children, "gate") == [(level, "image.mortal", {"process": "gate", "why": why})] and why


@pytest.mark.parametrize(("version", "prepared"), [((3, 13), 0), ((3, 14), 1)])
def test_constants_are_immortal_before_code_is_specialized_for_mortal_ones(
    monkeypatch, made, version, prepared
):
    monkeypatch.setattr(immortal_objects, "running", lambda: KNOWN._replace(version=version))
    children = Children(Loop(), lambda *_: None, lambda: None)
    children.prepare()
    assert len(made) == prepared
    children.tried()
    children._make_immortal()
    assert len(made) == prepared + 1 and not reported(children, "spawner")


def test_an_image_that_was_not_tried_stays_mortal(made):
    Children(Loop(), lambda *_: None, lambda: None)._make_immortal()
    assert not made
