"""Define a recipe: what a server is, and how it is started on the benchmark's mail."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Recipe(NamedTuple):
    """Describe one server in one mode.

    `prepare` gets the place (place.py) at each start, writes configuration there and returns the shell line
    that runs the server in its system; the line must not end before the server does. `system` is None for
    popkernel, which runs as the other benchmarks run it.
    """

    key: str
    """The word by which the command takes it."""
    name: str
    system: str | None
    """The directory of the system that has its packages; modes of one server share it."""
    release: str
    """Debian's name of the release from which the packages are taken."""
    packages: tuple[str, ...]
    """The packages; the version in the table is the first one's."""
    program: str
    """A file of the first package, to see whether it is there."""
    language: str
    separation: str
    """How it separates privileges, as its documentation says; `source` is where."""
    source: str
    prepare: Callable[[Any], str] | None
    version: str = ""
    """How the version must begin, where the recipe fits one series."""
    tls: str = ""
    """The program that does TLS for it, if it does none itself."""
    store: str = "maildir"
    fill: Callable[[Any], None] | None = None
    """Delivers the mail to the running server, before its first session, if it has a store of its own."""
    added: bool = False
    """Whether it adds header fields of its own to each message."""
