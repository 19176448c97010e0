"""Render the topology table as text, JSON data, Mermaid and Graphviz.

Pure. The diagrams of the documentation are made with it.
"""

from typing import Any

from popkernel.proto.schema import Field, fields_of
from popkernel.proto.topology import ACTORS, EDGES, Actor, Edge, digest

__all__ = ["as_data", "as_dot", "as_mermaid", "as_text"]


def _kind(field: Field) -> str:
    bounds = {
        "int": f"{field.low}..{field.high}",
        "str": f"{field.low}..{field.high}",
        "bytes": f"<={field.high}",
        "bool": "",
    }
    return f"{field.kind} {bounds.get(field.kind, f'<={field.items}')}".strip()


def _message(message: type, edge: Edge) -> dict[str, Any]:
    fields = fields_of(message)
    return {
        "name": message.__name__,
        "means": (message.__doc__ or "").split("\n")[0],
        "fields": {name: _kind(field) for name, field in fields.items()},
        "secret": [name for name, field in fields.items() if field.secret],
        "answers": list(edge.answers.get(message.__name__, ())),
    }


def _actor(row: Actor) -> dict[str, Any]:
    return {
        "name": row.name,
        "runs_as": row.runs_as,
        "promises": row.promises,
        "why": row.why,
        "unveiled": [{"what": u.what, "permissions": u.permissions, "why": u.why} for u in row.unveiled],
        "singleton": row.singleton,
        "restart": row.restart,
        "shutdown_seconds": row.shutdown,
        "threads": row.threads,
        "descriptors": row.nofile,
        "memory_octets": row.memory,
    }


def as_data() -> dict[str, Any]:
    """Return the whole table as data for JSON."""
    return {
        "digest": digest(),
        "actors": [_actor(row) for row in ACTORS],
        "edges": [
            {
                "from": e.source,
                "to": e.target,
                "octets": e.octets,
                "deadline_seconds": e.deadline,
                "depth": e.depth,
                "messages": [_message(c, e) for c in e.messages],
            }
            for e in EDGES
        ],
    }


def as_text() -> str:
    """Render the actors, with promises and reasons, and the edges, with messages."""
    out = [f"topology {digest()}", "", "ACTORS, in order of start"]
    for row in ACTORS:
        out += [
            "",
            f"{row.name}  (runs as {row.runs_as}; restart {row.restart})",
            f"  promises  {row.promises}",
            f"            {row.why}",
        ]
        out += [f"  unveils   {u.what} ({u.permissions}): {u.why}" for u in row.unveiled] or [
            "  unveils   nothing"
        ]
    out += ["", "EDGES: which messages each actor may send to which other; all others are forbidden"]
    for e in EDGES:
        out += [
            "",
            (
                f"{e.source} -> {e.target}  (frames up to {e.octets} octets, {e.depth} queued,"
                f" answers within {e.deadline} s)"
            ),
        ]
        for c in e.messages:
            fields = ", ".join(f"{n}{' [secret]' if f.secret else ''}" for n, f in fields_of(c).items())
            answers = "  <- " + " | ".join(e.answers[c.__name__]) if c.__name__ in e.answers else ""
            out.append(f"  {c.__name__}({fields}){answers}")
    return "\n".join(out) + "\n"


def _label(name: str) -> str:
    return name.replace("{", "").replace("}", "").replace(".", "_")


def as_mermaid() -> str:
    """Render a flowchart for Mermaid, as in the documentation."""
    out = ["flowchart LR"]
    out += [f'  {_label(row.name)}["{row.name}<br/><small>{row.promises}</small>"]' for row in ACTORS]
    out += [
        f'  {_label(e.source)} -- "{"<br/>".join(_main_messages(e))}" --> {_label(e.target)}' for e in EDGES
    ]
    return "\n".join(out) + "\n"


def as_dot() -> str:
    """Render a graph for Graphviz."""
    out = ["digraph topology {", "  rankdir=LR; node [shape=box];"]
    out += [f'  "{row.name}" [label="{row.name}\\n{row.promises}"];' for row in ACTORS]
    out += [f'  "{e.source}" -> "{e.target}" [label="{_dot_label(e)}"];' for e in EDGES]
    return "\n".join([*out, "}"]) + "\n"


def _main_messages(e: Edge) -> list[str]:
    """Return the edge's messages without those that every actor has, unless it has no others."""
    common = {
        "Hello",
        "ActorFailed",
        "PromiseBroken",
        "PeerRefused",
        "LogEvent",
        "Counters",
        "CountersRequest",
        "ActorStop",
    }
    names = [c.__name__ for c in e.messages]
    return [n for n in names if n not in common] or names


def _dot_label(e: Edge) -> str:
    return "\\n".join(_main_messages(e))
