"""Make the answer to `popkernel status`, and the log's fields of sessions and failed logins."""

import os
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from popkernel.kernel.decisions.leases import Core, Key
from popkernel.kernel.processes import Process, Processes
from popkernel.kernel.runtime.actor import Boot
from popkernel.kernel.runtime.channel import counts
from popkernel.kernel.sandbox import lock as sandbox
from popkernel.proto import messages as m
from popkernel.proto.tls_versions import tls_name
from popkernel.proto.topology import actor as row_of
from popkernel.proto.trace.session_names import session_name

__all__ = ["NO_PHASES", "Phases", "login_denied", "login_failed", "session_over", "sessions_lost", "status"]

_MOST_LOST = 100  # sessions of a dead listener that get a line each
# reasons of failed logins by LoginFailed.why; all others are "temp"
_REASONS = {
    "IN-USE": "in-use",
    "LOGIN-DELAY": "delay",
    "nomailbox": "no-maildrop",
    "SYS/PERM": "perm",
    "kicked": "kicked",
}


class Phases(NamedTuple):
    """How long auth took for a login, in milliseconds: for a thread, to hash, for earlier failures."""

    queue: int = 0
    hash: int = 0
    penalty: int = 0


NO_PHASES = Phases()


def status(
    boot: Boot,
    unveiled: str,
    processes: Processes,
    core: Core,
    started: float,
    *,
    warm: dict[str, int],
    logins: dict[str, Any],
    refused: int,
    broken: int,
) -> dict[str, Any]:
    """Return what `popkernel status --json` shows, without the processes' memory, which the command adds.

    Args:
        boot: of the kernel itself.
        unveiled: paths that the kernel sees, a line each.
        processes: all others.
        core: sessions and leases.
        started: time of the start, of the monotonic clock, in seconds.
        warm: figures about idle maildir actors.
        logins: figures about logins that wait, and clients that were refused.
        refused: number of refused messages so far.
        broken: number of broken promises so far.
    """
    rows = [
        {
            "name": "kernel",
            "pid": os.getpid(),
            "uid": boot.uid,
            "gid": boot.gid,
            "state": processes.phase,
            "restarts": 0,
            "promises": boot.row.promises if boot.sandboxed else "",
            "unveiled": unveiled.splitlines(),
            "messages_in": counts.messages_in,
            "messages_out": counts.messages_out,
        },
    ]
    for process in processes:
        if process.state == "ahead":  # no process yet
            continue
        hello = process.hello
        uid, gid = _ids(boot, process)
        rows.append(
            {
                "name": process.name,
                "pid": process.pid,
                "uid": uid,
                "gid": gid,
                "state": process.state,
                "restarts": process.restarts,
                "promises": hello.promises if hello else "",
                "unveiled": hello.unveiled.splitlines() if hello else [],
                "messages_in": process.counters.messages_in,
                "messages_out": process.counters.messages_out,
            }
        )
    now = time.monotonic()
    sessions = [
        {
            "session": session_name(key.session),
            "listener": key.listener,
            "user": user,
            "seconds": round(now - since, 1),
        }
        for key, (user, since) in core.sessions.items()
    ]
    leases = [
        {"user": user, "session": session_name(key.session), "listener": key.listener}
        for user, key in core.leases.items()
    ]
    return {
        "ok": True,
        "pid": os.getppid(),
        "version": boot.config["version"],
        "uptime": round(now - started, 1),
        "addresses": boot.config["addresses"],
        "users": len(core.users),
        "state": processes.phase,
        "draining": core.draining,
        "actors": rows,
        "sessions": sessions,
        "leases": leases,
        "warm": warm,
        "logins": logins,
        "refused_messages": refused,
        "broken_promises": broken,
        "weaknesses": sandbox.weaknesses(),
    }


def _ids(boot: Boot, process: Process) -> tuple[int, int]:
    """Return a process's uid and gid, from the kernel's tables: its sandbox hides /proc."""
    if process.ids is not None:
        return process.ids
    runs_as = row_of(process.name).runs_as
    return boot.config["ids"].get(runs_as, (boot.uid, boot.gid))  # type: ignore[no-any-return]


def session_over(listener: str, e: m.ConnectionEnded, checked: Phases = NO_PHASES) -> dict[str, Any]:
    """Return the log's fields of a session that ended. Octets are counted without TLS.

    `checked`: what auth said of its login. `lease_ms` is what the login took beyond that.
    """
    fields = {
        "address": e.address,
        "session": session_name(e.session),
        "why": e.why,
        "user": e.user,
        "listener": listener,
        "tls": tls_name(e.tls),
        "mechanism": e.mechanism,
        "commands": e.commands,
        "octets_in": e.octets_in,
        "octets_out": e.octets_out,
        "retrieved": e.retrieved,
        "marked": e.marked,
        "removed": e.removed,
        "ms": e.milliseconds,
        "tls_ms": e.tls_ms,
    }
    if e.user:
        fields |= {
            "queue_ms": e.queue_ms + checked.queue,
            "hash_ms": checked.hash,
            "penalty_ms": checked.penalty,
            "lease_ms": max(0, e.login_ms - sum(checked)),
            "open_ms": e.open_ms,
        }
    return fields


def sessions_lost(
    opened: dict[Key, tuple[str, float]], keys: list[Key], now: float
) -> Iterator[dict[str, Any]]:
    """Yield the log's fields of sessions whose listener died: of a hundred at most, then a count.

    Args:
        opened: user and time of begin of each open session; those of `keys` are removed.
        keys: the listener's sessions. Those that are not in `opened` have ended already.
        now: the loop's time, in seconds.
    """
    lost = [(key, *opened.pop(key)) for key in keys if key in opened]
    for key, user, since in lost[:_MOST_LOST]:
        yield {
            "session": session_name(key.session),
            "why": "listener",
            "user": user,
            "ms": int((now - since) * 1000),
        }
    if len(lost) > _MOST_LOST:
        yield {"why": "listener", "more": len(lost) - _MOST_LOST}


def login_failed(e: m.LoginFailed) -> dict[str, Any]:
    """Return the log's fields of a login that failed after its password was found right, or unchecked."""
    reason = _REASONS.get(e.why, "temp")
    return _failed(e.address, e.session, reason, e.milliseconds, 0, e.user)


def login_denied(e: m.LoginDenied) -> dict[str, Any]:
    """Return the log's fields of a login that auth refused."""
    return _failed(e.address, e.session, e.reason, e.milliseconds, e.seconds, e.user)


def _failed(address: str, session: int, reason: str, waited: int, seconds: int, user: str) -> dict[str, Any]:
    """Return the log's fields of a failed login.

    The user's name comes last, since the client chose it: packaging/fail2ban matches the fields before it.
    """
    wait = {"seconds": seconds} if seconds else {}
    return {
        "address": address,
        "session": session_name(session),
        "reason": reason,
        "waited_ms": waited,
        **wait,
        "user": user,
    }
