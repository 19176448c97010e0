"""What the kernel tells the operator: `popkernel status`, and what the log has of a session and of a login that failed."""

import os
import time
from collections.abc import Iterator
from typing import Any

from popkernel.kernel.decisions.leases import Core, Key
from popkernel.kernel.processes import Process, Processes
from popkernel.kernel.runtime.actor import Boot
from popkernel.kernel.runtime.channel import counts
from popkernel.kernel.sandbox import lock as sandbox
from popkernel.proto import messages as m
from popkernel.proto.topology import actor as row_of
from popkernel.proto.trace.session_names import session_name

__all__ = ["login_failed", "session_over", "sessions_lost", "status"]

_MOST_LOST = 100  # sessions of a dead listener that are named one by one


def status(boot: Boot, unveiled: str, processes: Processes, core: Core, started: float, *, refused: int, broken: int) -> dict[str, Any]:
    """What `popkernel status --json` shows; the memory of each process is filled in by the one who asks.

    Args:
        boot: of the kernel itself.
        unveiled: paths that it sees.
        processes: all others.
        core: sessions and leases.
        started: when, of the monotonic clock.
        refused: messages that broke the rules, so far.
        broken: promises that were broken.

    """
    rows = [
        {"name": "kernel", "pid": os.getpid(), "uid": boot.uid, "gid": boot.gid, "state": processes.phase, "restarts": 0,
         "promises": boot.row.promises if boot.sandboxed else "", "unveiled": unveiled.splitlines(),
         "messages_in": counts.messages_in, "messages_out": counts.messages_out},
    ]
    for process in processes:
        if process.state == "ahead":  # no process yet
            continue
        hello = process.hello
        uid, gid = _ids(boot, process)
        rows.append({
            "name": process.name, "pid": process.pid, "uid": uid, "gid": gid, "state": process.state, "restarts": process.restarts,
            "promises": hello.promises if hello else "", "unveiled": hello.unveiled.splitlines() if hello else [],
            "messages_in": process.counters.messages_in, "messages_out": process.counters.messages_out,
        })
    now = time.monotonic()
    sessions = [
        {"session": session_name(key.session), "listener": key.listener, "user": user, "seconds": round(now - since, 1)}
        for key, (user, since) in core.sessions.items()
    ]
    leases = [{"user": user, "session": session_name(key.session), "listener": key.listener} for user, key in core.leases.items()]
    return {
        "ok": True, "pid": os.getppid(), "version": boot.config["version"], "uptime": round(now - started, 1),
        "addresses": boot.config["addresses"], "users": len(core.users), "state": processes.phase, "actors": rows,
        "sessions": sessions, "leases": leases, "refused_messages": refused, "broken_promises": broken,
        "weaknesses": sandbox.weaknesses(),
    }


def _ids(boot: Boot, process: Process) -> tuple[int, int]:
    """As the system has them: the owner of the process's directory in /proc would be a file; the kernel knows from its table."""
    if process.ids is not None:
        return process.ids
    return boot.config["ids"].get(row_of(process.name).runs_as, (boot.uid, boot.gid))  # type: ignore[no-any-return]


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
