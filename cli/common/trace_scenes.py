"""Render the scenes of a story as text for people, as JSON lines, or as a Mermaid sequence diagram.

Needs no terminal, only its width.
"""

import json
import textwrap
from typing import Any

from popkernel.cli.common.trace_story import Scene
from popkernel.proto.trace.recording import Frame
from popkernel.proto.trace.redaction import is_cut
from popkernel.proto.trace.session_names import session_name

__all__ = ["HIDDEN", "Json", "Mermaid", "Pretty"]

_MOST_TEXT = 60  # characters of one field, for people
_MOST_ITEMS = 12  # of a list
_ENDS = 26  # columns of "from → to"
_COLOURS = {
    "client": 36,
    "listener": 32,
    "auth": 35,
    "kernel": 34,
    "maildir": 33,
    "mda": 32,
    "spawner": 90,
    "init": 90,
}
_BAD = frozenset(
    {
        "Refused",
        "Broke",
        "Ended",
        "Restart",
        "Lost",
        "LoginRefused",
        "SessionRefused",
        "MaildropUnready",
        "MessageMissing",
        "LoginFailed",
        "LoginDenied",
        "DeliveryRejected",
        "RecipientUnknown",
        "ActorFailed",
    }
)
HIDDEN = frozenset(
    {  # for replays
        "Settings",
        "State",
        "Decision",
        "Clock",
        "Random",
        "Timer",
        "Checked",
        "Full",
        "Unsent",
        "Queued",
        "Turn",
        "Known",
        "TakenOver",
        "Untrue",
    }
)
_NOTES = {
    "Began": "{peer} serves, process {pid}",
    "Ended": "{peer} ended: {how}",
    "Restart": "{peer} starts again in {seconds} s",
    "Lease": "{user}'s maildrop: lease given to session {short}",
    "LeaseOver": "{user}'s maildrop: lease of session {short} is over",
    "Refused": "{by} refused what {peer} said: {reason}",
    "Broke": "{peer} broke its promises: {call} would need {promise}",
    "Lost": "{frames} frames lost: they came faster than they were read",
}


def _plain(text: str) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _value(value: Any) -> str:
    """Render a field's value as one short piece, without control characters."""
    size = is_cut(value)
    if size >= 0:
        return f"<{size} octets>"
    if type(value) is dict and set(value) == {"content"}:
        value = value["content"]
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    if isinstance(value, list):
        shown = " ".join(_value(v) for v in value[:_MOST_ITEMS])
        return f"[{shown}{f' … {len(value)} in all' if len(value) > _MOST_ITEMS else ''}]"
    if isinstance(value, dict):
        return "{" + " ".join(f"{_plain(str(k))}={_value(v)}" for k, v in value.items()) + "}"
    text = _plain(str(value))
    if len(text) > _MOST_TEXT:
        text = text[:_MOST_TEXT] + "…"
    return f'"{text}"' if isinstance(value, str) and (" " in text or not text) else text


def _fields(frame: Frame) -> str:
    fields = {k: v for k, v in frame.fields.items() if k != "session"}
    if frame.name in ("Typed", "Reply"):
        return " | ".join(
            _line(piece) for piece in frame.fields.get("lines") or frame.fields.get("said") or ()
        )
    return " ".join(f"{_plain(k)}={_value(v)}" for k, v in fields.items())


def _line(piece: Any) -> str:
    """Render a line that a client sent or got."""
    if isinstance(piece, bytes):
        text = piece.decode("utf-8", "backslashreplace").rstrip("\r\n")
        first, *rest = text.split("\r\n")
        return _plain(first[:100]) + (f" … {len(rest)} lines more" if rest else "")
    return _value(piece)


def _note(frame: Frame) -> str:
    form = _NOTES.get(frame.name)
    if frame.name == "Broke" and not frame.fields.get("promise"):
        form = "{peer} broke its promises: {call}"
    if form is None:
        return f"{frame.name} {_fields(frame)}"
    values = {k: _value(v).strip('"') for k, v in frame.fields.items()}
    return form.format_map({"peer": _plain(frame.peer), "short": session_name(frame.session), **values})


class Pretty:
    """Render lines for people: time, from → to, message, fields, the question it answers and the delay."""

    begin = ""

    def __init__(self, attached: int, *, width: int, colour: bool, ascii_only: bool) -> None:
        """`attached`: the monotonic clock at the start, in nanoseconds, from which times count.

        `width`: columns, 0 for no limit. `ascii_only`: no arrows.
        """
        self._attached = attached
        self._width = width
        self._colour = colour
        self._arrow, self._back, self._dot = ("->", "<-", "*") if ascii_only else ("→", "↩", "•")
        self._ascii = ascii_only

    def render(self, scene: Scene) -> str:
        """Render a scene as one or more lines; "" if it is of no interest to people."""
        frame = scene.frame
        if frame.name in HIDDEN:
            return ""
        when = f"{(frame.time - self._attached) / 1e9:10.6f}" if frame.time else " " * 10
        session = session_name(frame.session) if frame.session else ""
        if frame.way == "note":
            head, name, rest = f"{when}  {session:<6} {self._dot} ", "", _note(frame)
            return self._layout(head, rest, 31 if frame.name in _BAD else 90, frame)
        ends = f"{_plain(frame.source)} {self._arrow} {_plain(frame.target)}"
        name = f"{frame.name:<16}"
        tail = f"{frame.octets} octets" if frame.octets else ""
        if scene.question:
            tail += f"  {self._back} {scene.question} {_duration(scene.took)}"
        rest = "  ".join(part for part in (f"{name} {_fields(frame)}", tail) if part.strip())
        return self._layout(
            f"{when}  {session:<6} {ends:<{_ENDS}} ",
            rest,
            _COLOURS.get(frame.source.partition(".")[0].partition("~")[0], 39),
            frame,
        )

    def _layout(self, head: str, rest: str, colour: int, frame: Frame) -> str:
        text = head + rest
        if self._ascii:
            text = text.encode("ascii", "backslashreplace").decode()
        if self._width and len(text) > self._width:
            indent = " " * (14 if self._width > 40 else 2)
            text = "\n".join(
                textwrap.wrap(
                    text,
                    max(20, self._width),
                    subsequent_indent=indent,
                    drop_whitespace=False,
                    break_on_hyphens=False,
                )
            ).rstrip()
        if not self._colour:
            return text.rstrip()
        return f"\x1b[{31 if frame.name in _BAD else colour}m{text.rstrip()}\x1b[0m"

    end = ""


def _duration(nanoseconds: int) -> str:
    if nanoseconds < 1_000_000:
        return f"{nanoseconds / 1000:.0f} us"
    return f"{nanoseconds / 1e6:.1f} ms" if nanoseconds < 1_000_000_000 else f"{nanoseconds / 1e9:.2f} s"


class Json:
    """Render one JSON object a line, with all fields."""

    begin = end = ""

    def __init__(self, attached: int, hidden: frozenset[str] = HIDDEN) -> None:
        self._attached = attached
        self._hidden = hidden

    def render(self, scene: Scene) -> str:
        """Render a scene as one line; "" if only a replay needs it."""
        f = scene.frame
        if f.name in self._hidden:
            return ""
        row: dict[str, Any] = {
            "seconds": round((f.time - self._attached) / 1e9, 9) if f.time else None,
            "from": f.source,
            "to": f.target,
            "actor": f.actor,
            "way": f.way,
            "name": f.name,
            "session": session_name(f.session) if f.session else None,
            "octets": f.octets,
            "fields": {
                k: session_name(v) if k == "session" and isinstance(v, int) else v
                for k, v in f.fields.items()
            },
        }
        if scene.question:
            row |= {"answers": scene.question, "took_seconds": scene.took / 1e9}
        return json.dumps(row, default=_octets)


def _octets(value: Any) -> str:
    """Turn octets, for which JSON has no form, into text with escapes."""
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else repr(value)


class Mermaid:
    """Render a sequence diagram, https://mermaid.js.org/syntax/sequenceDiagram.html."""

    begin = "sequenceDiagram"
    end = ""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def render(self, scene: Scene) -> str:
        """Render a scene as a line of the diagram, after lines for new participants."""
        frame = scene.frame
        if frame.name in HIDDEN:
            return ""
        if frame.way == "note":
            about = frame.peer or frame.actor
            return (
                "\n".join(
                    [*self._participant(about), f"    Note over {_id(about)}: {_mermaid(_note(frame))}"]
                )
                if about
                else ""
            )
        text = f"{frame.name} {_fields(frame)}".strip()
        if scene.question:
            text += f" ({_duration(scene.took)})"
        arrow = "-->>" if scene.question else "->>"
        lines = [*self._participant(frame.source), *self._participant(frame.target)]
        return "\n".join([*lines, f"    {_id(frame.source)}{arrow}{_id(frame.target)}: {_mermaid(text)}"])

    def _participant(self, name: str) -> list[str]:
        if name in self._known:
            return []
        self._known.add(name)
        return [f"    participant {_id(name)} as {_mermaid(name)}"]


def _id(name: str) -> str:
    return "".join(c if c.isascii() and c.isalnum() else "_" for c in name)


def _mermaid(text: str) -> str:
    """Replace what Mermaid would interpret: `;` ends a statement, `#` begins a comment or an entity."""
    text = (
        text.replace("#", "#35;").replace(";", "#59;")
        if "#" not in text
        else text.replace(";", ",").replace("#", "")
    )
    return text.replace("<", "(").replace(">", ")").replace("\n", " ")[:160]
