"""List the harnesses and their corpora.

A harness is a module with `one(octets)`, which raises if the invariant in the module's first line fails.
"""

import os
from importlib import import_module

HERE = os.path.dirname(os.path.abspath(__file__))
NAMES = (
    "pop3_session",
    "tables",
    "account_lists",
    "popcache_file",
    "bus",
    "zmtp_frames",
    "proxy_header",
    "sasl_exchange",
    "certificates",
    "recordings",
)


def load(name):
    """Return the module of a harness."""
    return import_module(f"tests.fuzz.{name}")


def corpus_of(name):
    """Return a harness's corpus directory: inputs that reached new code or failed.

    Files named failed-* are never removed.
    """
    return os.path.join(HERE, "corpus", name)


def inputs(name):
    """Return every input worth trying, by name."""
    for number, seed in enumerate(load(name).SEEDS):
        yield f"seed {number}", seed
    directory = corpus_of(name)
    for entry in sorted(os.listdir(directory)) if os.path.isdir(directory) else ():
        with open(os.path.join(directory, entry), "rb") as file:
            yield entry, file.read()
