"""What the kernel tells the operator: `popkernel status`, and what the log has of a session and of a login that failed."""

import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from popkernel.kernel.decisions.leases import Key
from popkernel.kernel.processes import Process
from popkernel.kernel.runtime.channel import counts
from popkernel.kernel.sandbox import lock as sandbox
from popkernel.proto import messages as m
from popkernel.proto.topology import actor as row_of
from popkernel.proto.trace.session_names import session_name

if TYPE_CHECKING:
    from popkernel.kernel.supervisor.main import Supervisor

__all__ = ["login_failed", "session_over", "sessions_lost", "status"]

_MOST_LOST = 100  # sessions of a dead listener that are named one by one


def status(s: "Supervisor") -> dict[str, Any]:
    """What `popkernel status --json` shows; the memory of each process is filled in by the one who asks."""
    rows = [
        {"name": "kernel", "pid": os.getpid(), "uid": s.boot.uid, "gid": s.boot.gid, "state": s.state, "restarts": 0,
         "promises": s.boot.row.promises if s.boot.sandboxed else "", "unveiled": s.unveiled.splitlines(),
         "messages_in": counts.messages_in, "messages_out": counts.messages_out},
    ]
    for process in s.processes.values():
        if process.state == "ahead":  # no process yet
            continue
        hello = process.hello
        uid, gid = _ids(s, process)
        rows.append({
            "name": process.name, "pid": process.pid, "uid": uid, "gid": gid, "state": process.state, "restarts": process.restarts,
            "promises": hello.promises if hello else "", "unveiled": hello.unveiled.splitlines() if hello else [],
            "messages_in": process.counters.messages_in, "messages_out": process.counters.messages_out,
        })
    now = s.loop.now
    sessions = [
        {"session": session_name(key.session), "listener": key.listener, "user": user, "seconds": round(now - since, 1)}
        for key, (user, since) in s.core.sessions.items()
    ]
    leases = [{"user": user, "session": session_name(key.session), "listener": key.listener} for user, key in s.core.leases.items()]
    return {
        "ok": True, "pid": os.getppid(), "version": s.boot.config["version"], "uptime": round(time.monotonic() - s.started, 1),
        "addresses": s.boot.config["addresses"], "users": len(s.core.users), "state": s.state, "actors": rows,
        "sessions": sessions, "leases": leases, "refused_messages": s.refused, "broken_promises": s.broken,
        "weaknesses": sandbox.weaknesses(),
    }


def _ids(s: "Supervisor", process: Process) -> tuple[int, int]:
    """As the system has them: the owner of the process's directory in /proc would be a file; the kernel knows from its table."""
    if process.ids is not None:
        return process.ids
    return s.boot.config["ids"].get(row_of(process.name).runs_as, (s.boot.uid, s.boot.gid))  # type: ignore[no-any-return]


def session_over(e: m.Ended) -> dict[str, Any]:
    """The log's fields of a session; octets as they travelled, in clear."""
    return {
        "address": e.address, "session": session_name(e.session), "why": e.why, "user": e.user, "commands": e.commands,
        "octets_in": e.octets_in, "octets_out": e.octets_out, "retrieved": e.retrieved, "marked": e.marked,
        "removed": e.removed, "milliseconds": e.milliseconds,
    }


def sessions_lost(opened: dict[Key, tuple[str, float]], keys: list[Key], now: float) -> Iterator[dict[str, Any]]:
    """The log's fields of sessions whose listener died, as far as the kernel knows them, a hundred at most; then a count.

    They are taken out of `opened`; those of `keys` that are not there are over already.
    """
    lost = [(key, *opened.pop(key)) for key in keys if key in opened]
    for key, user, since in lost[:_MOST_LOST]:
        yield {"session": session_name(key.session), "why": "listener", "user": user, "milliseconds": int((now - since) * 1000)}
    if len(lost) > _MOST_LOST:
        yield {"why": "listener", "more": len(lost) - _MOST_LOST}


def login_failed(e: m.LoginFailed) -> dict[str, Any]:
    """The log's fields of a failure; what the client chose, its user's name, stands last (packaging/fail2ban matches the others)."""
    wait = {"seconds": e.seconds} if e.seconds else {}
    return {"address": e.address, "session": session_name(e.session), "why": e.why, **wait, "user": e.user}
