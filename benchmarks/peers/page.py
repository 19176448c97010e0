"""Format the table of servers. Pure, but for `replace`."""

import statistics
from typing import NamedTuple

BEGIN, END = "<!-- table: python -m benchmarks.peers -->", "<!-- end of the table -->"
HEAD = (
    "server",
    "version",
    "language",
    "cold logins/s",
    "warm logins/s",
    "memory a session, KiB",
    "privilege separation, as documented",
    "TLS",
)


class Result(NamedTuple):
    """Hold what one server gave: its recipe, version, TLS versions, and a list of figures each."""

    recipe: object
    version: str
    tls: str
    cold: list
    warm: list
    memory: list
    parked: list


def middle(figures):
    """Format a median; a dash if there is no figure."""
    return f"{statistics.median(figures):,.0f}" if figures else "–"  # noqa: RUF001


def row(result):
    """Format one server's line."""
    recipe = result.recipe
    memory = middle(result.memory)
    if result.parked:
        memory += f"; parked {middle(result.parked)}"
    source = recipe.source
    if source.startswith("https://"):
        source = f"<{source}>"
    elif source.endswith(".md"):
        source = f"[{source}]({source})"
    cells = (
        f"{recipe.name}{f' ({recipe.store})' if recipe.store != 'maildir' else ''}",
        result.version,
        recipe.language,
        middle(result.cold),
        middle(result.warm),
        memory,
        f"{recipe.separation} ({source})",
        (f"none itself; {recipe.tls}: " if recipe.tls else "") + (result.tls or "–"),  # noqa: RUF001
    )
    return "| " + " | ".join(cells) + " |"


def table(results):
    """Format all lines."""
    lines = ["| " + " | ".join(HEAD) + " |", "|---" * len(HEAD) + "|"]
    return "\n".join([*lines, *map(row, results)])


def section(facts, results, notes):
    """Format what stands between the page's marks."""
    lines = [*(f"- {name}: {value}" for name, value in facts.items()), "", table(results), ""]
    return "\n".join([*lines, *(f"- {note}" for note in notes)]).rstrip() + "\n"


def replace(path, text):
    """Put a section between the marks of a page."""
    with open(path) as file:
        page = file.read()
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path}: the lines {BEGIN!r} and {END!r} are missing")
    with open(path, "w") as file:
        file.write(f"{before}{BEGIN}\n\n{text}\n{END}{after}")
