"""Lay out tables and times for people. Control characters are removed: names come from the network."""

from collections.abc import Mapping, Sequence
from typing import Any

from popkernel.kernel.client import plain

__all__ = ["aligned", "duration"]


def aligned(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], width: int) -> list[str]:
    """Align rows under headings, numbers to the right; a row over `width` is cut off with a mark."""
    shown = {key: title for key, title in columns.items() if any(key in row for row in rows)}
    cells = [list(shown.values())] + [
        ["-" if row.get(key) is None else plain(row[key]) for key in shown] for row in rows
    ]
    right = [all(isinstance(row.get(key) or 0, int | float) for row in rows) for key in shown]
    wide = [max(len(line[column]) for line in cells) for column in range(len(shown))]
    lines = []
    for line in cells:
        padded = [
            cell.rjust(wide[column]) if right[column] else cell.ljust(wide[column])
            for column, cell in enumerate(line)
        ]
        text = "  ".join(padded).rstrip()
        lines.append(text if len(text) <= width else text[: width - 1] + "…")
    return lines


def duration(seconds: Any) -> str:
    """Return a time in seconds as days and h:mm:ss; any other value as text."""
    if not isinstance(seconds, int | float):
        return plain(seconds)
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    clock = f"{hours}:{minutes:02}:{rest:02}"
    return f"{days} d {clock}" if days else clock
