"""Set options of the test suite; find what tests leave open; keep a failed test from failing others."""

import gc
import pathlib
import tempfile

import hypothesis
import pytest

from tests.support.service import ROOT, Service

# Hypothesis limits the wall time of an example to 0.2 s, whatever else runs.
hypothesis.settings.register_profile(
    "popkernel", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("popkernel")

_FAILED = pytest.StashKey[bool]()


def pytest_addoption(parser):
    parser.addoption(
        "--replay-update",
        action="store_true",
        help=(
            "make the recordings of tests/replay anew; recordings added by hand are updated "
            "with the new output"
        ),
    )


def pytest_collection_modifyitems(items):
    """Skip a test marked `root` for other users, with the reason that the mark gives."""
    for item in items:
        mark = item.get_closest_marker("root")
        if mark is not None and not ROOT:
            item.add_marker(pytest.mark.skip(reason="needs root: " + " ".join(mark.args)))


def pytest_collection_finish():
    gc.freeze()  # imported objects stay, so the collections below need not scan them


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if call.when == "call":
        item.stash[_FAILED] = report.failed
    return report


@pytest.fixture(autouse=True)
def _services_survive_a_failure(request):
    """Close a failed test's clients, which hold mailboxes of a shared service.

    A shared service that has ended is started again.
    """
    before = {service: len(service.clients) for service in Service.opened}
    yield
    if request.node.stash.get(_FAILED, False):
        for service, clients in before.items():
            if service in Service.opened:
                service.clean_up_after_failure(clients)


@pytest.fixture(autouse=True, scope="module")
def _nothing_left_open():
    """Fail the tests that leave a pipe or socket reachable only in a reference cycle.

    Otherwise a later test that happens to run the collector would fail.
    """
    yield
    gc.collect()


@pytest.fixture
def open_path():
    """Provide a directory like tmp_path that every user may enter.

    pytest closes the directories above tmp_path (0700) at its start, also those of a concurrent run.
    """
    with tempfile.TemporaryDirectory(prefix="pk") as path:
        opened = pathlib.Path(path)
        opened.chmod(0o711)
        yield opened
