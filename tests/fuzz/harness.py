"""Which harnesses there are, and their corpora: each a module here with `one(octets)`, which raises where its invariant (its first line) fails."""

import os
from importlib import import_module

HERE = os.path.dirname(os.path.abspath(__file__))
NAMES = ("pop3_session", "tables", "popcache_file", "bus", "zmtp_frames", "proxy_header", "sasl_exchange", "certificates", "recordings")


def load(name):
    """The module of a harness."""
    return import_module(f"tests.fuzz.{name}")


def corpus_of(name):
    """Its directory: files that once reached something new, or once failed. Files named failed-* are never thrown away."""
    return os.path.join(HERE, "corpus", name)


def inputs(name):
    """Every octet string that is known to be worth trying, by name."""
    for number, seed in enumerate(load(name).SEEDS):
        yield f"seed {number}", seed
    directory = corpus_of(name)
    for entry in sorted(os.listdir(directory)) if os.path.isdir(directory) else ():
        with open(os.path.join(directory, entry), "rb") as file:
            yield entry, file.read()
