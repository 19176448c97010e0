"""Put into plain words what happened to a user or an address: records of the server's log, and a summary."""

from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from popkernel.cli.common.tables import duration
from popkernel.kernel.client import plain
from popkernel.proto.access.networks import host_of

__all__ = ["PHASES", "account", "events", "summary"]

Row = Mapping[str, Any]

PHASES = {
    "tls_ms": "the TLS handshake",
    "queue_ms": "waiting for the password check",
    "hash_ms": "checking the password",
    "penalty_ms": "the delay after failed logins",
    "lease_ms": "waiting for the mailbox",
    "open_ms": "listing the mailbox",
}
_LONG_PHASE = 1000  # ms; shorter ones are not mentioned with their session
_WORTH_SAYING = 100  # ms; nor the longest in the summary
_REASONS = {
    "unknown": "no such user in the authorization table",
    "password": "wrong password",
    "token": "wrong or expired token",
    "delay": "the password was right, but the last login was less than login_delay ago",
    "perm": "the mailbox cannot be opened; the log says why",
    "repeat": "the same name and password as a moment ago, for the same reason",
    "no-maildrop": "the password was right, but the user table lacks this user",
    "locked": "the user is locked in the authorization table",
    "unusable": "the hash in the authorization table cannot be used",
    "in-use": "another session has this mailbox open",
    "kicked": "ended by the administrator",
    "guard": "not checked: too many failed logins from this address",
    "temp": "a temporary fault of the server; the log has it",
}
_ENDS = {
    "quit": "ended by QUIT",
    "connection lost": "the client hung up without QUIT",
    "idle too long": "ended: the client was silent for too long",
    "kicked": "ended by the administrator",
    "listener": "ended: its listener died",
}
_ENTRIES = {
    "present": "in the authorization table ({scheme}): may log in",
    "locked": "locked in the authorization table: cannot log in",
    "unusable": "in the authorization table with a hash that cannot be used: cannot log in (popkernel check)",
    "absent": "not in the authorization table: cannot log in",
}


def _number(row: Row, key: str) -> int:
    value = row.get(key)
    return value if type(value) is int else 0


def _when(row: Row) -> str:
    """Return a record's local time with its zone."""
    at = row.get("time")
    if not isinstance(at, int | float) or not 0 <= at < 1 << 36:
        return "?"
    return datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M:%S %z")


def _many(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _took(milliseconds: int) -> str:
    if milliseconds < 1000:
        return f"{milliseconds} ms"
    return f"{milliseconds / 1000:.1f} s" if milliseconds < 60_000 else duration(milliseconds / 1000)


# -- now
def account(answer: Row) -> Iterator[str]:
    """Yield what the tables say of the user now, the mailbox's holder, and what a login would wait for."""
    user, address = plain(answer.get("user") or ""), plain(answer.get("address") or "")
    yield f"user {user}, now" if user else f"address {address}, now"
    if user:
        said = answer.get("account")
        entry = plain(said.get("entry") or "?") if isinstance(said, dict) else ""
        scheme = plain(said.get("scheme") or "?") if isinstance(said, dict) else ""
        text = _ENTRIES.get(entry, "unknown to this command").format(scheme=scheme)
        yield f"  {text}" if entry else "  authorization table: auth did not answer"
        drop = answer.get("maildrop")
        if isinstance(drop, dict):
            ids = f"{plain(drop.get('uid'))}:{plain(drop.get('gid'))}"
            yield f"  in the user table: {plain(drop.get('maildir'))}, as {ids}"
        else:
            yield "  not in the user table: has no mailbox"
    unknown = plain(answer.get("unknown_login") or "")
    if unknown and unknown != user:
        yield f"  a login as {unknown} fails: the authorization table has no such user; its mail is {user}'s"
    wait = answer.get("wait_seconds")
    if isinstance(wait, int | float) and wait > 0:
        where = plain(answer.get("wait_address") or "")
        place = f" from {where}" if where else ""
        yield f"  a login{place} would be delayed by {wait:.0f} s, or refused, after failed logins"
    sessions = _rows(answer, "open")
    for row in sessions:
        yield f"  {_present(row)}"
    lease = answer.get("lease")
    if user and lease and lease not in [row.get("session") for row in sessions]:
        yield f"  the mailbox is held by session {plain(lease)}"
    elif not sessions:
        yield "  no session is open"


def _present(row: Row) -> str:
    text = f"session {plain(row.get('session'))} of {plain(row.get('user') or '?')} {_client(row)}:"
    text += f" {plain(row.get('state'))} for {duration(row.get('seconds'))}"
    waits, since = row.get("waits_for"), row.get("waits_seconds")
    if waits:
        text += f"; waits for {plain(waits)}"
        text += f", since {duration(since)}" if isinstance(since, int | float) else ""
    return text


def _client(row: Row) -> str:
    parts = [f"from {plain(row.get('address') or '?')}"]
    if row.get("tls"):
        parts.append(f"TLS {plain(row['tls'])}")
    if row.get("mechanism"):
        parts.append(plain(row["mechanism"]))
    return ", ".join(parts)


def _rows(answer: Row, key: str) -> list[Row]:
    given = answer.get(key)
    return [row for row in given if isinstance(row, dict)] if isinstance(given, list) else []


# -- what happened
def events(answer: Row) -> list[list[str]]:
    """Return what happened, the newest last, as lines of each event: the first begins with its time."""
    uidls = {row.get("session"): row for row in _rows(answer, "messages")}
    said: list[tuple[float, list[str]]] = []
    for kind, words in (("sessions", _session), ("logins", _login), ("deliveries", _delivery)):
        for row in _rows(answer, kind):
            at = row.get("time")
            more = _details(row, uidls.get(row.get("session"))) if kind == "sessions" else []
            said.append(
                (float(at) if isinstance(at, int | float) else 0.0, [f"{_when(row)}  {words(row)}", *more])
            )
    return [lines for _, lines in sorted(said, key=lambda each: each[0])]


def _session(row: Row) -> str:
    why = plain(row.get("why") or "?")
    read, marked, removed = (_number(row, key) for key in ("retrieved", "marked", "removed"))
    did = f"{_many(read, 'message')} read, {marked} marked, {removed} removed"
    name, user = plain(row.get("session") or "?"), plain(row.get("user") or "?")
    end = f"{_ENDS.get(why, why)} after {_took(_number(row, 'ms'))}"
    return f"session {name} of {user} {_client(row)}: {did}; {end}"


def _details(row: Row, messages: Row | None) -> list[str]:
    """Return the lines below a session: its messages' unique ids, and phases that took long."""
    lines = []
    uidls = messages.get("uidls") if messages is not None else None
    if isinstance(uidls, list) and uidls:
        kept = not _number(row, "removed")
        what = "marked, not removed, come again" if kept else "removed"
        rest = max(_number(row, "marked"), _number(row, "removed")) - len(uidls)
        tail = f" and {rest} more" if rest > 0 else ""
        lines.append(f"    {what}: {plain(uidls)}{tail}")
    elif _lost(row):
        lines.append(f"    {_many(_lost(row), 'marked message')} not removed: come again")
    slow = [
        f"{name} {_took(_number(row, key))}"
        for key, name in PHASES.items()
        if _number(row, key) >= _LONG_PHASE
    ]
    if slow:
        lines.append(f"    took long: {', '.join(slow)}")
    return lines


def _lost(row: Row) -> int:
    """Return how many messages a session had marked, and none were removed because it did not QUIT."""
    why = str(row.get("why"))
    quits = why == "quit" or why.endswith("QUIT unanswered")  # after the latter, nobody knows
    return _number(row, "marked") if not _number(row, "removed") and not quits else 0


def _login(row: Row) -> str:
    event, address = row.get("event"), plain(row.get("address") or "?")
    if event != "login.failed":
        reason = row.get("reason") or row.get("why") or ""
        name = {"tls.failed": "TLS failed", "client.failed": "no login"}.get(str(event), plain(event or "?"))
        return f"{name}, from {address}" + (f": {plain(reason)}" if reason else "")
    reason = str(row.get("reason") or row.get("why") or "?")
    user, said = plain(row.get("user") or "?"), _REASONS.get(reason, plain(reason))
    text = f"login of {user} failed, from {address}: {said}"
    waited, seconds = _number(row, "waited_ms"), _number(row, "seconds")
    text += f"; answered after {_took(waited)}" if waited >= _LONG_PHASE else ""
    return text + (f"; the next try is allowed in {seconds} s" if seconds else "")


_DELIVERY = (
    *(
        "time",
        "event",
        "actor",
        "mailbox",
        "sender",
        "recipient",
        "octets",
        "uidl",
        "message_id",
        "ms",
        "file",
    ),
    *("reply", "error"),
)


def _delivery(row: Row) -> str:
    to = plain(
        row.get("recipient") or row.get("mailbox") or str(row.get("actor", "?")).removeprefix("maildir.")
    )
    text = f"mail for {to} from <{plain(row.get('sender') or '')}>"
    if row.get("event") == "delivery.refused" or row.get("reply"):
        text += f" refused: {plain(row.get('reply') or row.get('error') or '?')}"
    else:
        text += f" delivered: UIDL {plain(row.get('uidl') or '?')}, {_number(row, 'octets')} octets"
    if row.get("message_id"):
        text += f", message-id {plain(row['message_id'])}"
    more = [f"{key}={plain(value)}" for key, value in row.items() if key not in _DELIVERY]
    return f"{text} ({' '.join(more)})" if more else text


# -- in short
def summary(answer: Row) -> Iterator[str]:
    """Yield what is striking in the records."""
    sessions, logins, deliveries = (_rows(answer, kind) for kind in ("sessions", "logins", "deliveries"))
    if not answer.get("kept"):
        yield "nothing is kept of what happened: the key history is 0"
        return
    failed = Counter(
        str(row.get("reason") or row.get("why")) for row in logins if row.get("event") == "login.failed"
    )
    others = len(logins) - failed.total()
    yield (
        f"{_many(len(sessions), 'session')}, {_many(failed.total(), 'login')} that failed,"
        + (f" {_many(others, 'connection')} without a login," if others else "")
        + f" {_many(len(deliveries), 'mail')} shown"
    )
    for reason, many in failed.most_common():
        yield f"{_many(many, 'login')} failed: {_REASONS.get(reason, plain(reason))}"
    faults = Counter(str(row.get("reason") or "?") for row in logins if row.get("event") != "login.failed")
    for reason, many in faults.most_common(5):
        yield f"{_many(many, 'connection')} could not log in: {plain(reason)}"
    if answer.get("user") and not sessions and not logins and not _rows(answer, "open"):
        yield "no login with this name is known; did the client use another? popkernel explain ADDRESS"
    lost = [row for row in sessions if _lost(row)]
    if lost:
        marked = _many(sum(map(_lost, lost)), "marked message")
        yield (
            f"{_many(len(lost), 'session')} ended without QUIT with {marked}:"
            " nothing was removed, these mails come again"
        )
    left = [row for row in sessions if _number(row, "retrieved") and not _number(row, "marked")]
    if left:
        yield (
            f"{_many(len(left), 'session')} read messages and marked none:"
            " the mail program leaves mail on the server"
        )
    places = {host_of(plain(row["address"])) for row in left if row.get("address")}
    if len(places) > 1 and answer.get("user"):
        yield f"they came from {len(places)} addresses: are there several mail programs or devices?"
    again = Counter(
        plain(row["message_id"])
        for row in deliveries
        if row.get("message_id") and row.get("event") == "delivery.done"
    )
    for name, many in again.most_common(5):
        if many > 1:
            yield (
                f"the mail with message-id {name} was delivered {many} times:"
                " its sender or the mail server sent it again"
            )
    phases = [(_number(row, key), name, row) for row in sessions for key, name in PHASES.items()]
    if phases:
        took, name, row = max(phases, key=lambda each: each[0])
        if took >= _WORTH_SAYING:
            yield f"longest phase of a login: {name}, {_took(took)}, at {_when(row)}"
