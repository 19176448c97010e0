"""Start services whose images can, cannot or fail to become immortal: they serve, and the log says why."""

import contextlib

import pytest
from popkernel.kernel.spawner.immortal_objects import missing, running

from tests.support.faults.patched import patched
from tests.support.service import serve
from tests.support.waiting import wait_for

MISSING = missing(running())
IMAGES = {"shared": "spawner", "connection": "gate"}  # and a spawner, in both
UNKNOWN = """
def patch():
    from popkernel.kernel.spawner import immortal_objects
    python = immortal_objects.running()._replace(version=(3, 99))
    immortal_objects.running = lambda: python
"""
CRASHES = """
def patch():
    import os, signal
    from popkernel.kernel.spawner import immortal_objects
    immortal_objects.missing = lambda python: ""
    immortal_objects._try = lambda: os.kill(os.getpid(), signal.SIGSEGV)
"""
HANGS = """
def patch():
    import os, signal
    from popkernel.kernel.spawner import immortal_objects
    immortal_objects.missing = lambda python: ""
    immortal_objects._SECONDS = 0.2
    immortal_objects._try = lambda: os.kill(os.getpid(), signal.SIGSTOP)
"""


def lines(service):
    """Read alice's mail, stop; return the log's lines about images."""
    client = service.pop3("alice")
    assert client.retr(1)
    client.quit()
    return [line for line in service.read_log().splitlines() if "immortal objects" in line]


@pytest.fixture(params=list(IMAGES))
def site(request):
    """Return a site with this isolation."""
    return {"users": ("alice",), "isolation": request.param, "listeners": 1}


@pytest.mark.skipif(bool(MISSING), reason=MISSING)
def test_where_there_are_immortal_objects_nothing_is_said(site):
    with serve(verbose=1, **site) as service:
        assert lines(service) == []


@pytest.mark.skipif(not MISSING, reason="this Python has them")
@pytest.mark.parametrize("verbose", [0, 1])
def test_where_there_are_none_start_v_says_so(site, verbose):
    with serve(verbose=verbose, **site) as service:
        assert (MISSING in "\n".join(lines(service))) == (verbose == 1)


@pytest.mark.parametrize("verbose", [0, 1])
def test_an_unknown_version_is_left_out(tmp_path, site, verbose):
    with serve(command=patched(tmp_path, UNKNOWN), verbose=verbose, **site) as service:
        found = lines(service)
        assert len(found) == verbose * len({"spawner", IMAGES[site["isolation"]]})
        for line in found:
            assert line.endswith(
                "copy more of its memory than with immortal objects: the layout of Python 3.99's objects is"
                " not known here"
            )


@pytest.mark.parametrize(("fault", "why"), [(CRASHES, "signal 11"), (HANGS, "no end within 0 s")])
def test_a_trial_that_crashes_or_hangs_is_a_warning(tmp_path, site, fault, why):
    with serve(command=patched(tmp_path, fault), verbose=0, **site) as service:
        found = lines(service)
        assert {line.partition("children of ")[2].split()[0] for line in found} == {
            "spawner",
            {"spawner": "spawner", "gate": "gate.0"}[IMAGES[site["isolation"]]],
        }
        assert all(line.endswith(f"immortal objects: {why}") for line in found)
        wait_for(lambda: service.pids(), until=lambda pids: not any(map(is_stopped, pids)))


def is_stopped(pid):
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] in "TZ"
    return False
