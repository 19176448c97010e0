"""List every event of the log: the processes that log it, its levels, its sentence, its fields.

A process logs a level, an event and fields. The kernel, and init before the kernel runs, makes the line from
them. In JSON each field is a field of the object. In text an event is the sentence given here:

- `{name}` is a field, `{name!r}` one in quotes, `{name:.1f}` one with a decimal, `{name:user|users}` a count.
- `<...>` is left out if one of its fields is missing or empty.
- `...:` is followed by all fields as `name=value`.

Only findings may have several lines. Any other text may come from outside, and would begin a line that looks
like another event.

docs/logs.md is made from this table (`python -m tests.support.event_documents`). Other programs depend on the
names of events and fields: do not change them.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from popkernel.proto.log_levels import DEBUG, ERROR, INFO, NOTICE, WARNING
from popkernel.proto.schema import printable

__all__ = ["EVENTS", "FINDINGS", "Event", "objection", "required", "text_of"]

_PLACE = re.compile(r"\{(\w+)(!r)?(?::([^}]+))?\}")
_OPTIONAL = re.compile(r"<([^>]*)>")
FINDINGS = ("error", "problem")
"""Fields that may have several lines: about the configuration, by init or by an actor that fails at its
start, before it serves anybody."""
_KERNEL = ("kernel",)
_ANY = ("auth", "gate", "kernel", "listener", "maildir.{user}", "mda", "spawner")
_REPLACED = "{root!r} was replaced, or something was mounted over it or above it, since {process} began; "
_SHUT = "{process}: a listening socket was shut down, by it or by another listener"
_WITHIN = "<; {more} times more within a minute>"
_AGAIN = "<; {more} times more since the last such line>"


_BY: Mapping[str, str | int | float] = {"by": "root", "uid": 0, "claim": "jane"}


class Event(NamedTuple):
    """An event. `by`: the processes that may log it. `example`: an example of each of its fields."""

    by: tuple[str, ...]
    levels: tuple[int, ...]
    text: str
    example: Mapping[str, str | int | float]


EVENTS: dict[str, Event] = {
    # -- the service
    "service.ready": Event(
        ("kernel", "init"),
        (NOTICE,),
        "ready: {addresses} ({users:user|users}<, {memory} for warm actors>, {seconds:.2f} s)",
        {"addresses": "pop3s 0.0.0.0:995", "users": 20, "memory": "2.4 GiB", "seconds": 0.31},
    ),
    "service.stopping": Event(_KERNEL, (NOTICE,), "stopping", {}),
    "service.stopped": Event(_KERNEL, (NOTICE,), "stopped", {}),
    "service.failed": Event(
        ("kernel", "init"),
        (ERROR,),
        "{error}",
        {"error": "/etc/popkernel/users:3: the uid is 0: no mailbox may be root's"},
    ),
    "service.doubt": Event(
        ("init",),
        (WARNING,),
        "{problem}",
        {"problem": "log: there is no syslog here (/dev/log), so the log will be lost: run one"},
    ),
    "service.drained": Event(
        _KERNEL, (NOTICE,), "no new sessions: drain by {by} (uid {uid})<, acting for {claim}>", _BY
    ),
    "service.undrained": Event(
        _KERNEL, (NOTICE,), "new sessions again: drain --undo by {by} (uid {uid})<, acting for {claim}>", _BY
    ),
    "trace.payload": Event(
        _KERNEL,
        (NOTICE,),
        "{by} (uid {uid})<, acting for {claim}> sees the content of mail in a trace< ({filter})>",
        {**_BY, "filter": "user=alice"},
    ),
    "init.error": Event(
        ("init",),
        (ERROR,),
        "init goes on after an error: {error}",
        {"error": "[Errno 24] Too many open files"},
    ),
    "init.silent": Event(
        _KERNEL,
        (ERROR,),
        "init (process {pid}) has not answered for {seconds} s: no actor can be started or ended until it"
        " goes on, and nothing reloaded; if it is stopped, kill -CONT {pid}",
        {"pid": 812, "seconds": 10},
    ),
    "init.answers": Event(_KERNEL, (NOTICE,), "init answers again", {}),
    "reload.done": Event(
        _KERNEL,
        (NOTICE,),
        "reloaded: {users:user|users}< (+{added} -{removed}, {changed} changed)>"
        "<; passwords +{passwords_added} -{passwords_removed}, {passwords_changed} changed>"
        "<; {certificates}><; replaced: {replaced}><; after the next start: {later}>",
        {
            "users": 20,
            "added": 1,
            "removed": 0,
            "changed": 2,
            "passwords_added": 1,
            "passwords_removed": 0,
            "passwords_changed": 3,
            "certificates": "/etc/ssl/mail.pem until 2027-03-01",
            "replaced": "auth~2",
            "later": "listen, isolation",
        },
    ),
    "reload.failed": Event(
        _KERNEL,
        (ERROR,),
        "not reloaded, what is in force stays: {error}",
        {"error": "not now: the service is reloading; try again"},
    ),
    "reload.postponed": Event(
        _KERNEL,
        (WARNING,),
        "changed in the configuration, in force only after the next start: {keys}",
        {"keys": "listen, isolation"},
    ),
    "mailbox.fault": Event(
        ("kernel", "init"),
        (WARNING,),
        "{fault}",
        {"fault": "/etc/popkernel/users:7: /home/bob/Maildir is not there: create it"},
    ),
    "mailboxes.checked": Event(_KERNEL, (DEBUG,), "mailboxes checked", {}),
    # -- processes
    "process.serves": Event(
        _KERNEL, (DEBUG,), "{process} serves (process {pid})", {"process": "auth", "pid": 815}
    ),
    "process.ended": Event(
        _KERNEL, (WARNING,), "{process} ended: {how}", {"process": "maildir.bob", "how": "signal SIGKILL"}
    ),
    "process.failed": Event(
        _ANY, (ERROR, DEBUG), "{error}", {"error": "a listening socket was shut down; LMTP begins anew"}
    ),
    "process.failed_at": Event(
        _ANY, (DEBUG,), "{call}", {"call": "/usr/lib/popkernel/actors/auth/main.py:135 begin"}
    ),
    "process.unstarted": Event(
        _KERNEL,
        (ERROR,),
        "{why}",
        {"process": "spawner~2", "why": "spawner~2 ended before it served: exit 70"},
    ),
    "process.start_failed": Event(
        _KERNEL,
        (ERROR,),
        "{process} cannot be started: {error}; again in {seconds} s",
        {"process": "auth", "error": "Too many open files", "seconds": 1},
    ),
    "process.start_late": Event(
        _KERNEL,
        (ERROR,),
        "{why}",
        {"process": "auth", "why": "auth did not start within 60 s: is it reading auth_table?"},
    ),
    "process.start_ignored": Event(
        _KERNEL,
        (ERROR,),
        "{why}: init has not started it",
        {"process": "auth", "why": "auth did not start within 60 s: is it reading auth_table?"},
    ),
    "process.restarting": Event(
        _KERNEL,
        (ERROR,),
        "{why}; again in {seconds:.1f} s",
        {"process": "auth", "why": "auth ended: signal SIGSEGV", "seconds": 0.1},
    ),
    "process.given_up": Event(
        _KERNEL,
        (ERROR,),
        "{process} ended again and again ({how}): giving up",
        {"process": "auth", "how": "signal SIGSEGV"},
    ),
    "process.hung": Event(
        _KERNEL,
        (ERROR,),
        "{process} is not alive: it has not answered for {seconds} s; ended",
        {"process": "maildir.bob", "seconds": 10},
    ),
    "process.overstayed": Event(
        _KERNEL,
        (ERROR,),
        "{process} was to go and has not gone in {seconds} s; ended",
        {"process": "maildir.bob", "seconds": 10},
    ),
    "process.unkilled": Event(
        _KERNEL,
        (ERROR,),
        "{process} (process {pid}) has not ended for {seconds} s though {parent} was told to end it:"
        " it waits for a disk, or {parent} is stopped or may not (CAP_KILL)",
        {"process": "maildir.bob", "pid": "830", "seconds": 30, "parent": "spawner"},
    ),
    "process.broke_promise": Event(
        ("kernel", "init"),
        (ERROR,),
        "{process} broke its promises: {call}< would need {promise!r}><; {then}>",
        {"process": "listener.0", "call": "socket", "promise": "inet", "then": "ended"},
    ),
    "process.broke_rules": Event(
        _KERNEL,
        (ERROR,),
        "{process} broke the rules on its channel to the kernel: {why}; ended",
        {"process": "maildir.bob", "why": "not an array that begins with a code"},
    ),
    "process.accuses": Event(
        _KERNEL, (ERROR,), "{process} accuses others again and again; ended", {"process": "listener.0"}
    ),
    "peer.refused": Event(
        _KERNEL,
        (ERROR,),
        "{process} refused a message on {edge}: {why}",
        {"process": "auth", "edge": "listener.0>auth", "why": "LoginRequest.user: not str within its bounds"},
    ),
    "message.failed": Event(
        _KERNEL,
        (ERROR,),
        "{process}: {message} could not be acted on: {error}",
        {"process": "auth", "message": "LoginGranted", "error": "Too many open files"},
    ),
    "message.untold": Event(
        ("init",),
        (ERROR,),
        "{message} could not be told: {error}",
        {"message": "ReloadInputs", "error": "ReloadInputs: a text that is not UTF-8"},
    ),
    "descriptor.lost": Event(
        _ANY,
        (ERROR,),
        "no room for the descriptor of {message}: {limit} may be open (RLIMIT_NOFILE)",
        {"message": "SessionOpen", "limit": 64},
    ),
    "descriptors.few": Event(
        _KERNEL,
        (WARNING, DEBUG),
        "{problem}",
        {"problem": "max_sessions: room for 300 sessions, not 1000: raise it: LimitNOFILE= in the unit"},
    ),
    "mailboxes.full": Event(
        _KERNEL,
        (ERROR,),
        "no room for {user} and others: {open} mailboxes are open, and the kernel may have {limit}"
        " descriptors (RLIMIT_NOFILE); logins hear [SYS/TEMP], mail waits; {mend}",
        {"user": "bob", "open": 4000, "limit": 8192, "mend": "raise it: LimitNOFILE= in the unit"},
    ),
    # -- the log itself
    "log.dropped": Event(
        _KERNEL,
        (WARNING,),
        '{count} lines< "{share}"> of {process} dropped: more than {most} in {seconds} seconds',
        {"count": 7, "share": "login failed", "process": "listener.0", "most": 1000, "seconds": 10},
    ),
    "log.lost": Event(
        ("kernel",), (WARNING,), "{count} lines of the log were lost: nobody read them", {"count": 40}
    ),
    # -- clients
    "session.over": Event(
        ("kernel", "gate"),
        (INFO, DEBUG),
        "session over:",
        {
            "address": "192.0.2.7:40023",
            "session": "1.18",
            "why": "quit",
            "user": "alice",
            "listener": "listener.0",
            "tls": "1.3",
            "mechanism": "PLAIN",
            "commands": 9,
            "octets_in": 120,
            "octets_out": 20480,
            "retrieved": 2,
            "marked": 2,
            "removed": 2,
            "ms": 310,
            "tls_ms": 21,
            "queue_ms": 0,
            "hash_ms": 48,
            "penalty_ms": 0,
            "lease_ms": 3,
            "open_ms": 2,
            "more": 0,
        },
    ),
    "session.kicked": Event(
        _KERNEL,
        (NOTICE,),
        "session {session} of {user} ended by {by} (uid {uid})<, acting for {claim}>",
        {"session": "1.18", "user": "alice", **_BY},
    ),
    "session.kick_ignored": Event(
        _KERNEL,
        (WARNING,),
        "session {session} of {user} was to end, and {listener} or maildir.{user} has kept it"
        " for {seconds} s",
        {"session": "1.18", "user": "alice", "listener": "listener.0", "seconds": 10},
    ),
    "login.failed": Event(
        _KERNEL,
        (NOTICE, DEBUG),
        "login failed:",
        {
            "address": "192.0.2.7:40022",
            "session": "1.17",
            "reason": "guard",
            "waited_ms": 2,
            "seconds": 4,
            "user": "alice",
        },
    ),
    "tls.failed": Event(
        ("kernel", "gate"),
        (NOTICE,),
        "TLS failed: address={address}: {reason}" + _WITHIN,
        {
            "address": "192.0.2.7:40022",
            "reason": 'the client offers TLS 1.2; tls_min is 1.3: tls_min = "1.2" would let it in',
            "more": 12,
        },
    ),
    "client.failed": Event(
        _KERNEL,
        (NOTICE,),
        "no login: address={address}: {reason}" + _WITHIN,
        {
            "address": "192.0.2.7:40022",
            "reason": "the client asks for APOP, which is not offered: set it to a normal password (PLAIN)",
            "more": 12,
        },
    ),
    "login.repeated": Event(
        ("auth",),
        (NOTICE,),
        "{address} repeats passwords found wrong a moment ago: {times} times within {seconds} s",
        {"address": "192.0.2.7", "times": 21, "seconds": 60},
    ),
    "login.no_maildrop": Event(
        _KERNEL,
        (WARNING,),
        "{user} is in the authorization table and not in the user table: no login",
        {"user": "bob"},
    ),
    "login.too_late": Event(
        _KERNEL,
        (DEBUG,),
        "a login of {process} was over before auth had its answer",
        {"process": "listener.0"},
    ),
    "login.waited": Event(
        _KERNEL,
        (WARNING,),
        "{user}: a login waited {seconds} s for the mailbox, in vain",
        {"user": "bob", "seconds": 45},
    ),
    "logins.endless": Event(
        _KERNEL, (ERROR,), "{process} announces logins without end; ended", {"process": "listener.0"}
    ),
    "load.high": Event(
        _KERNEL,
        (NOTICE,),
        "load: {waiting:login waits|logins wait} for the password check, the oldest for {oldest:.1f} s"
        "<; {checks:.1f} checked a second><; refused: {refused}>",
        {"waiting": 400, "oldest": 12.5, "checks": 30.5, "refused": "12 by max_sessions"},
    ),
    "load.over": Event(
        _KERNEL,
        (NOTICE,),
        "load: over after {seconds} s; the longest wait was {longest:.1f} s",
        {"seconds": 310, "longest": 41.5},
    ),
    "client.blocked": Event(
        ("gate", "listener"),
        (DEBUG,),
        "{address}: connection closed: it is in the block list",
        {"address": "192.0.2.7"},
    ),
    "client.bad_proxy_header": Event(
        ("gate", "listener"),
        (WARNING,),
        "{address}: connection closed: {why}",
        {"address": "192.0.2.7", "why": "no PROXY header"},
    ),
    "limit.met": Event(
        ("gate", "listener"),
        (WARNING,),
        "{address}: {what}: {key} is met ({limit} in this process)" + _AGAIN,
        {"address": "192.0.2.7", "what": "refused", "key": "max_sessions", "limit": 1000, "more": 12},
    ),
    "limit.descriptors_met": Event(
        ("gate", "listener"),
        (WARNING,),
        "{address}: {what}: the limit of {descriptors} descriptors (RLIMIT_NOFILE) is met ({limit} sessions"
        " in this process; {mend})" + _AGAIN,
        {
            "address": "192.0.2.7",
            "what": "refused",
            "descriptors": 1024,
            "limit": 480,
            "mend": "raise it: LimitNOFILE= in the unit",
            "more": 12,
        },
    ),
    "limit.lowered": Event(
        ("gate", "listener"),
        (DEBUG,),
        "the hard limit of {descriptors} descriptors leaves room for {limit} sessions, not {wanted}",
        {"descriptors": 1024, "limit": 480, "wanted": 1000},
    ),
    "listener.not_forked": Event(
        ("gate",), (ERROR,), "no more listeners can be forked: {error}", {"error": "Cannot allocate memory"}
    ),
    "listener.accept_failed": Event(
        ("gate", "listener"),
        (ERROR,),
        "no more connections can be taken: {error}",
        {"error": "Too many open files"},
    ),
    "listener.replaced": Event(
        _KERNEL,
        (ERROR,),
        _SHUT + "; {successor} takes over",
        {"process": "listener.0", "successor": "listener.0~2"},
    ),
    "listener.given_up": Event(
        _KERNEL, (ERROR,), _SHUT + ", again and again: giving up", {"process": "listener.0"}
    ),
    # -- what actors read at their start
    "certificate.doubt": Event(
        ("gate", "listener"),
        (WARNING,),
        "{problem}",
        {"problem": "/etc/popkernel/cert.pem: it expires in 9 days: renew it"},
    ),
    "auth_table.doubt": Event(
        ("auth",),
        (WARNING,),
        "{problem}",
        {"problem": "/etc/popkernel/auth:4: user bob cannot log in: a $1$ hash, which is not checked"},
    ),
    "auth.memory_taken": Event(
        ("auth",),
        (INFO,),
        "taken over from the auth before: {passwords:verified password|verified passwords},"
        " {penalties:penalty|penalties}",
        {"passwords": 10000, "penalties": 12},
    ),
    "auth.memory_lost": Event(
        ("auth", "kernel"),
        (WARNING,),
        "<{process}: >no verified passwords and no penalties could be taken over from the auth before: {why}",
        {"process": "auth~2", "why": "it did not hand them over in time"},
    ),
    "auth_table.locked": Event(
        ("auth",),
        (DEBUG,),
        "{path}: {users:user is|users are} locked",
        {"path": "/etc/popkernel/auth", "users": 3},
    ),
    # -- spawners and gates
    "image.mortal": Event(
        ("gate", "spawner"),
        (WARNING, DEBUG),
        "children of {process} copy more of its memory than with immortal objects: {why}",
        {"process": "spawner", "why": "Python 3.11 has none, 3.12 and later have"},
    ),
    "spawner.unrehearsed": Event(
        ("spawner",),
        (WARNING,),
        "maildir actors start more slowly, they could not be rehearsed: {error}",
        {"error": "No space left on device"},
    ),
    "spawner.fork_failed": Event(
        ("spawner",),
        (ERROR,),
        "no more maildir actors can be forked: {error}",
        {"error": "Cannot allocate memory"},
    ),
    "spawner.replaced": Event(
        _KERNEL,
        (WARNING,),
        _REPLACED + "{successor} takes over",
        {"process": "spawner", "root": "/home", "successor": "spawner~2"},
    ),
    "spawner.replaced_soon": Event(
        _KERNEL, (WARNING,), _REPLACED + "another takes over soon", {"process": "spawner", "root": "/home"}
    ),
    "spawner.not_replaced": Event(
        _KERNEL,
        (ERROR,),
        _REPLACED + "another spawner cannot be started: {error}",
        {"process": "spawner", "root": "/home", "error": "Too many open files"},
    ),
    "spawner.too_many": Event(
        _KERNEL,
        (ERROR,),
        _REPLACED + "{spawners} spawners still have sessions: reload to have another",
        {"process": "spawner", "root": "/home", "spawners": 4},
    ),
    # -- warm maildir actors
    "warm.budget": Event(
        _KERNEL,
        (DEBUG,),
        "warm actors: about {actors}< ({memory})>",
        {"actors": 1020, "memory": "2.4 GiB"},
    ),
    "warm.let_go": Event(
        _KERNEL,
        (NOTICE,),
        "memory is short: {actors:warm actor|warm actors} let go, {left} left",
        {"actors": 510, "left": 510},
    ),
    # -- maildrops
    "maildir.unusable": Event(
        ("maildir.{user}",),
        (WARNING,),
        "{error}: {path!r}",
        {"error": "the maildir is not there", "path": "/home/bob/Maildir"},
    ),
    "maildir.failed": Event(
        ("maildir.{user}",), (WARNING,), "{error}", {"error": "cur/: Input/output error"}
    ),
    "maildir.note": Event(
        ("maildir.{user}",), (WARNING,), "{note}", {"note": "cur/1.a:2,: Permission denied"}
    ),
    "maildir.message_failed": Event(
        ("maildir.{user}",),
        (WARNING,),
        "message {number}: {error}",
        {"number": 3, "error": "Input/output error"},
    ),
    "maildir.not_removed": Event(
        ("maildir.{user}",),
        (WARNING,),
        "{messages} messages not removed: {why}",
        {"messages": 2, "why": "Read-only file system"},
    ),
    "maildir.sweep_failed": Event(
        ("maildir.{user}",), (WARNING,), "{error}", {"error": "tmp/: Permission denied"}
    ),
    "maildir.swept": Event(
        ("maildir.{user}",), (NOTICE,), "swept {files} old files out of tmp", {"files": 2}
    ),
    "maildir.delivery_failed": Event(
        ("maildir.{user}",),
        (WARNING,),
        "a message was not taken: {error}",
        {"error": "tmp/: No space left on device"},
    ),
    "maildrop.moved": Event(
        _KERNEL,
        (WARNING,),
        "{user}: the maildir is moved again and again; the session ends",
        {"user": "bob"},
    ),
    "maildrop.not_removed": Event(
        _KERNEL,
        (WARNING,),
        "{user}: {messages} messages could not be removed",
        {"user": "bob", "messages": 2},
    ),
    # -- deliveries
    "delivery.done": Event(
        ("maildir.{user}",),
        (INFO,),
        "delivered:",
        {
            "mailbox": "alice",
            "sender": "bob@example.net",
            "recipient": "alice@example.org",
            "message_id": "1234@example.net",
            "file": "1767225600.M1P815.mail.example.org",
            "uidl": "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
            "octets": 2048,
            "ms": 6,
        },
    ),
    "delivery.refused": Event(
        ("mda",),
        (NOTICE, INFO),
        "delivery refused:",
        {
            "mailbox": "alice",
            "sender": "bob@example.net",
            "recipient": "alice@example.org",
            "reply": "552 5.2.2 the mailbox is full",
        },
    ),
    "lmtp.accept_failed": Event(
        ("mda",),
        (ERROR,),
        "no more LMTP connections can be taken: {error}",
        {"error": "Too many open files"},
    ),
    "lmtp.maildir_silent": Event(
        ("mda",),
        (WARNING,),
        "maildir.{user} has answered nothing for {seconds} s",
        {"user": "bob", "seconds": 60},
    ),
}


def required(event: str) -> set[str]:
    """Return the fields that the sentence of an event requires."""
    return {match[1] for match in _PLACE.finditer(_OPTIONAL.sub("", EVENTS[event].text))}


def objection(kind: str, level: int, event: str, fields: Mapping[str, Any]) -> str:
    """Return why an actor of that kind may not log this, or "". The text quotes no event and no field."""
    known = EVENTS.get(event)
    if known is None or kind not in known.by:
        return "a log event that it does not have"
    if level not in known.levels:
        return "a log event of another level than its own"
    if not required(event) <= fields.keys() <= known.example.keys():
        return "a log event with other fields than its own"
    return ""


def text_of(event: str, fields: Mapping[str, Any]) -> str:
    """Return the event as text. An event that is not in the table is shown as its name and its fields."""
    known = EVENTS.get(event)
    template = f"{event}:" if known is None else known.text
    if template.endswith(":"):
        return f"{template} " + " ".join(f"{name}={_value(value)}" for name, value in fields.items())

    def part(match: re.Match[str]) -> str:
        """Return the part in angle brackets if all its fields are there, else nothing."""
        there = all(fields.get(place[1]) not in (None, "") for place in _PLACE.finditer(match[1]))
        return match[1] if there else ""

    return _PLACE.sub(lambda place: _in_words(place, fields), _OPTIONAL.sub(part, template))


def _in_words(place: re.Match[str], fields: Mapping[str, Any]) -> str:
    value = fields.get(place[1], "?")
    if place[2]:
        return repr(value)
    if not place[3] or type(value) is str:
        return str(value) if place[1] in FINDINGS else printable(str(value))
    if place[3].startswith("."):
        return format(value, place[3])
    one, many = place[3].split("|")
    return f"{value} {one if value == 1 else many}"


def _value(value: Any) -> str:
    """Return the value as text, in quotes if it could be taken for more than one."""
    text = str(value)
    if text and text != "-" and text.isprintable() and not any(c in ' "=\\' for c in text):
        return text
    return '"' + printable(text.replace("\\", "\\\\").replace('"', '\\"')) + '"' if text else "-"
