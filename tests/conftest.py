"""Options of the whole test suite."""


def pytest_addoption(parser):
    parser.addoption(
        "--replay-update", action="store_true",
        help="make the recordings of tests/replay anew; those that were dropped in are updated with what the actors say now",
    )
