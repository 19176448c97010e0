"""Options of the whole test suite; and what a file's tests leave open is told at its own end."""

import gc

import pytest


def pytest_addoption(parser):
    parser.addoption(
        "--replay-update", action="store_true",
        help="make the recordings of tests/replay anew; those that were dropped in are updated with what the actors say now",
    )


def pytest_collection_finish():
    gc.freeze()  # what was imported is there to stay: the collections below need not look at it


@pytest.fixture(autouse=True, scope="module")
def _nothing_left_open():
    """A pipe or socket that is only reachable in a circle is an error of the tests that made it, not of those that run when it is found."""
    yield
    gc.collect()
