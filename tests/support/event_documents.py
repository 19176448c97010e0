"""Write the table of events in docs/logs.md.

`python -m tests.support.event_documents`. The source is proto/log_events.py.
"""

import os
import re

from popkernel.proto.log_events import EVENTS, required, text_of
from popkernel.proto.log_levels import level_name

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
LOGS = os.path.join(ROOT, "docs", "logs.md")
HEAD = "| event | level | from | fields | as text |\n|---|---|---|---|---|\n"


def row(event):
    known = EVENTS[event]
    fields = [name if name in required(event) else f"({name})" for name in known.example]
    who = "any" if len(known.by) > 3 else ", ".join(name.partition(".")[0] for name in known.by)
    text = text_of(event, known.example).replace("|", "\\|")
    return (
        f"| `{event}` | {', '.join(map(level_name, known.levels))} | {who} | {' '.join(fields)} | {text} |\n"
    )


def logs(text):
    """Return docs/logs.md with the table made anew."""
    table = HEAD + "".join(map(row, EVENTS))
    return re.sub(r"\| event \| level .*?\n\n", lambda _: f"{table}\n", text, flags=re.DOTALL)


if __name__ == "__main__":
    with open(LOGS, encoding="utf-8") as file:
        made = logs(file.read())
    with open(LOGS, "w", encoding="utf-8") as file:
        file.write(made)
