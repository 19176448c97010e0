"""Options of the whole test suite; what a file's tests leave open is told at its own end; and one that fails takes none along."""

import gc
import pathlib
import tempfile

import hypothesis
import pytest

from tests.support.service import ROOT, Service

# Its own bounds are seconds of the wall, whoever has the processor: 0.2 for an example, and some for making the first ones.
hypothesis.settings.register_profile("popkernel", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("popkernel")

_FAILED = pytest.StashKey[bool]()


def pytest_addoption(parser):
    parser.addoption(
        "--replay-update", action="store_true",
        help="make the recordings of tests/replay anew; those that were dropped in are updated with what the actors say now",
    )


def pytest_collection_modifyitems(items):
    """A test marked `root` is skipped for everybody else, with the reason that the mark gives."""
    for item in items:
        mark = item.get_closest_marker("root")
        if mark is not None and not ROOT:
            item.add_marker(pytest.mark.skip(reason="needs root: " + " ".join(mark.args)))


def pytest_collection_finish():
    gc.freeze()  # what was imported is there to stay: the collections below need not look at it


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if call.when == "call":
        item.stash[_FAILED] = report.failed
    return report


@pytest.fixture(autouse=True)
def _services_survive_a_failure(request):
    """A service that several tests share: the clients of one that failed hold its mailboxes no longer, and where it ended it is started anew."""
    before = {service: len(service.clients) for service in Service.opened}
    yield
    if request.node.stash.get(_FAILED, False):
        for service, clients in before.items():
            if service in Service.opened:
                service.survive(clients)


@pytest.fixture(autouse=True, scope="module")
def _nothing_left_open():
    """A pipe or socket that is only reachable in a circle is an error of the tests that made it, not of those that run when it is found."""
    yield
    gc.collect()


@pytest.fixture
def open_path():
    """As tmp_path, but every user may enter it. pytest shuts the directories above tmp_path (0700) at its start, also those of a run beside it."""
    with tempfile.TemporaryDirectory(prefix="pk") as path:
        opened = pathlib.Path(path)
        opened.chmod(0o711)
        yield opened
