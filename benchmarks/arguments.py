"""Check arguments of the benchmarks' commands."""

import argparse

__all__ = ["positive"]


def positive(value):
    """Return a number from 1, an argparse type."""
    if not value.isdecimal() or int(value) < 1:
        raise argparse.ArgumentTypeError(f"{value!r} is no number from 1")
    return int(value)
