"""Name the levels of the log. The numbers are those of syslog(3)."""

__all__ = ["DEBUG", "ERROR", "INFO", "NOTICE", "WARNING", "highest", "level_name"]

ERROR, WARNING, NOTICE, INFO, DEBUG = 3, 4, 5, 6, 7
_NAMES = {ERROR: "error", WARNING: "warning", NOTICE: "notice", INFO: "info", DEBUG: "debug"}


def highest(verbose: int, *, quiet: bool) -> int:
    """Return the highest level that is logged, by the keys `verbose` and `quiet`."""
    return NOTICE if quiet else min(INFO + verbose, DEBUG)


def level_name(level: int) -> str:
    """Return the level's name, as JSON and the documents have it."""
    return _NAMES[level]
