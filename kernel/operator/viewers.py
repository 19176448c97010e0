"""Check a viewer's request to trace, and choose the frames that it is shown.

The request comes from outside, over the control socket.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import msgpack
from popkernel.kernel.operator.control import Client
from popkernel.kernel.runtime.exit_codes import EXITS
from popkernel.proto.access.networks import Networks, parse_network
from popkernel.proto.access.user_names import fold
from popkernel.proto.topology import EDGES, kind_of
from popkernel.proto.trace.redaction import recut
from popkernel.proto.trace.session_names import session_of

__all__ = [
    "FilterError",
    "TraceFilter",
    "Viewer",
    "concerns_all",
    "frame_session",
    "matches_instance",
    "row_of",
]

_MOST_NAME = 255
_MOST_TYPES = 64
_MOST_USER_SESSIONS = 5000
_MOST_SLOW = 3_600_000  # milliseconds
_MOST_SESSIONS = 100_000  # whose time is taken
_SLOW_SESSIONS, _SLOW_FRAMES = 2000, 64  # sessions that may become slow, and the last frames of each
_SLOW_OCTETS = 32 << 20  # of these frames together, packed: with the payload, one may have a mebioctet
_HELD_SESSIONS, _HELD_FRAMES = 256, 32  # sessions whose user is not known yet, and frames of each
# paths need not be UTF-8
_pack = msgpack.Packer(use_bin_type=True, autoreset=True, unicode_errors="surrogateescape").pack
_MESSAGES = {c.__name__.lower(): c.__name__ for e in EDGES for c in e.messages if e.target != "tap"}
_NOTES = (
    "Began",
    "Ended",
    "Restart",
    "Lease",
    "LeaseOver",
    "Refused",
    "Broke",
    "Settings",
    "State",
    "Decision",
    "Connected",
    "Typed",
    "HungUp",
    "Secured",
    "Reply",
    "Gone",
    "Unsent",
    "Checked",
    "Full",
    "Clock",
    "Random",
    "Timer",
    "Queued",
    "Turn",
    "Known",
    "TakenOver",
    "Untrue",
)
# Frames that concern every session of an actor.
_CONCERN_ALL = frozenset(
    {
        "Settings",
        "ActorStop",
        "ListenerDrain",
        "PeerChannel",
        "Gone",
        "RecipientsChanged",
        "Clock",
        "Random",
        "Timer",
    }
)
# Keys of Settings whose values are rows about users -> the index of the name in a row; -1: the row is the
# name, or has none.
_USER_ROWS = {"logins": 1, "known": 2, "routes": -1, "asked": -1}
_NAMES = _MESSAGES | {n.lower(): n for n in _NOTES}


class FilterError(ValueError):
    """A request to trace that is refused. The text is for the operator; `code` is the command's exit code."""

    def __init__(self, text: str, code: str = "usage") -> None:
        super().__init__(text)
        self.code = EXITS[code].code


def matches_instance(actor: str, name: str) -> bool:
    """Return whether `actor` of a request means the instance `name`: itself, its kind, or a replacement."""
    return (
        name == actor
        or name.startswith((actor + ".", actor + "~"))
        or (name == "maildir.{user}" and actor.startswith("maildir."))
    )


class TraceFilter:
    """A checked request. A frame is shown if it meets all conditions that are given."""

    def __init__(self, request: dict[str, Any]) -> None:
        """Check a request of kernel/client.py: Client.follow().

        Raises:
            FilterError: it can't be understood.
        """
        self.actor = self._text(request, "actor")
        self.user = self._text(request, "user")
        self.session = request.get("session", 0)
        edge = self._text(request, "edge")
        self.edge = tuple(edge.split(":")) if edge else ()
        types = request.get("types", [])
        self.networks = self._networks(self._text(request, "address"))
        self.slow = request.get("slow", 0)
        self.payload = request.get("payload", False)
        self.decisions = request.get("decisions", False)
        if type(self.session) is not int or not 0 <= self.session < 1 << 63:
            raise FilterError("a session is a number: 1.17, as status shows it, is (1 << 40) + 17")
        if self.edge and (len(self.edge) != 2 or not all(self.edge)):
            raise FilterError("an edge is FROM:TO, for example listener:auth")
        if (
            type(types) is not list
            or len(types) > _MOST_TYPES
            or not all(type(t) is str and len(t) <= _MOST_NAME for t in types)
        ):
            raise FilterError("types are a list of message names")
        unknown = [t for t in types if t.lower() not in _NAMES]
        if unknown:
            raise FilterError(f"no message {unknown[0]!r}; there are: {', '.join(sorted(_NAMES.values()))}")
        self.types = frozenset(_NAMES[t.lower()] for t in types)
        if type(self.slow) is not int or not 0 <= self.slow <= _MOST_SLOW:
            raise FilterError(f"slow is a number of milliseconds, up to {_MOST_SLOW}")
        if self.slow and (self.actor or self.edge):
            raise FilterError(
                "slow sessions are known by what their clients wait for: name no actor and no edge"
            )
        if type(self.payload) is not bool or type(self.decisions) is not bool:
            raise FilterError("payload and decisions are true or false")

    def _networks(self, text: str) -> Networks | None:
        self._address = text
        try:
            return Networks([parse_network(text)]) if text else None
        except ValueError as error:
            raise FilterError(str(error)) from None

    @staticmethod
    def _text(request: dict[str, Any], key: str) -> str:
        value = request.get(key, "")
        if type(value) is not str or len(value) > _MOST_NAME:
            raise FilterError(f"{key} is a name")
        return value

    def asked(self) -> dict[str, Any]:
        """Return the conditions that are given, for the recording's header."""
        given = {
            "actor": self.actor,
            "user": self.user,
            "session": self.session,
            "edge": ":".join(self.edge),
            "types": sorted(self.types),
            "address": self._address,
            "slow": self.slow,
            "payload": self.payload,
            "decisions": self.decisions,
        }
        return {key: value for key, value in given.items() if value}

    def watches(self, name: str) -> bool:
        """Return whether the instance `name` has to be traced for this filter."""
        if self.actor:
            return matches_instance(self.actor, name)
        if self.user and name.startswith("maildir.") and name != f"maildir.{self.user}":
            return False
        if self.edge:
            return any(matches_instance(end, name) or end == row_of(name) for end in self.edge)
        return True

    def on_edge(self, source: str, target: str) -> bool:
        """Return whether a message from `source` to `target` (instances or rows) is on the wanted edge."""
        if not self.edge:
            return True
        return all(
            matches_instance(end, name) or end == row_of(name)
            for end, name in zip(self.edge, (source, target), strict=True)
        )

    def shows(self, frame: dict[str, Any]) -> bool:
        """Return whether a frame meets all conditions but the user."""
        if (
            self.actor
            and not matches_instance(self.actor, frame["actor"])
            and not (frame["way"] == "note" and matches_instance(self.actor, frame["peer"]))
        ):
            return False
        session = frame_session(frame)
        if self.session and session != self.session and not concerns_all(frame):
            return False
        if self.types and frame["name"] not in self.types:
            return False
        if self.edge:
            ends = (
                (frame["peer"], frame["actor"]) if frame["way"] == "in" else (frame["actor"], frame["peer"])
            )
            return frame["way"] != "note" and self.on_edge(*ends)
        return True

    def names_user(self, frame: dict[str, Any]) -> bool:
        """Return whether a frame itself names the wanted user."""
        actor = f"maildir.{self.user}"
        return actor in (frame["actor"], frame["peer"], frame["fields"].get("name")) or _same(
            frame["fields"].get("user"), self.user
        )


def concerns_all(frame: dict[str, Any]) -> bool:
    """Return whether a frame concerns every session of its actor, and no single user."""
    return (
        frame["name"] in _CONCERN_ALL
        and not frame_session(frame)
        and not frame["peer"].startswith("maildir.")
    )


def _item(row: Any, index: int) -> Any:
    """Return the item of a row in an actor's Settings, None if there is none: an actor may send anything."""
    if index < 0:
        return row
    return row[index] if type(row) is list and len(row) > index else None


def row_of(name: str) -> str:
    """Return the topology's row of an instance; `name` itself if it is no instance."""
    try:
        return kind_of(name)
    except KeyError:
        return name


def _same(one: Any, other: str) -> bool:
    """Return whether a name that a client typed may be the user's, without regard to case."""
    return type(one) is str and fold(one) == fold(other)


def frame_session(frame: dict[str, Any]) -> int:
    """Return the number of the session that a frame concerns, 0 for none.

    The name of a listener that serves one session tells the number, too.
    """
    if frame["session"]:
        return int(frame["session"])
    names = (frame["actor"], frame["peer"], frame["fields"].get("name"))
    return next(
        (session for session in (session_of(name) for name in names if type(name) is str) if session), 0
    )


class SlowSessions:
    """Hold the frames of each session until its client has waited for an answer for long."""

    def __init__(self, milliseconds: int) -> None:
        self._nanoseconds = milliseconds * 1_000_000
        self._asked: dict[int, int] = {}  # session -> when its client began to wait, in nanoseconds
        # frames, each with its octets; the least recently active session first
        self._held: dict[int, deque[tuple[dict[str, Any], int]]] = {}
        self._octets = 0
        self._slow: dict[int, None] = {}

    def time(self, frame: dict[str, Any], session: int) -> None:
        """Note when a client asks and is answered: commands, and the TLS handshake."""
        name = frame["name"]
        if name == "Connected" or (name == "Typed" and frame["fields"].get("lines")):
            self._asked.setdefault(session, frame["time"])
        elif name in ("Reply", "Secured"):
            since = self._asked.pop(session, None)
            if since is not None and frame["time"] - since >= self._nanoseconds:
                self._slow[session] = None
        _bound(self._asked, _MOST_SESSIONS)
        _bound(self._slow, _MOST_SESSIONS)

    def take(self, frame: dict[str, Any], session: int) -> list[dict[str, Any]]:
        """Return the frames to be shown now: this one and those held, if the session is slow."""
        held = self._held.pop(session, None)
        if session in self._slow:
            self._forget(held or ())
            return [*(each for each, _ in held or ()), frame]
        held = deque() if held is None else held
        size = len(_pack(frame))
        self._octets += size
        held.append((frame, size))
        if len(held) > _SLOW_FRAMES:
            self._forget((held.popleft(),))
        self._held[session] = held
        while len(self._held) > _SLOW_SESSIONS or self._octets > _SLOW_OCTETS:
            self._forget(self._held.pop(next(iter(self._held))))
        return []

    def _forget(self, held: Iterable[tuple[dict[str, Any], int]]) -> None:
        self._octets -= sum(size for _, size in held)


def _bound(entries: dict[int, Any], most: int) -> None:
    if len(entries) > most:
        del entries[next(iter(entries))]


class Viewer:
    """Choose and send the frames of one trace."""

    def __init__(self, client: Client, wanted: TraceFilter) -> None:
        self._client = client
        self.wanted = wanted
        self._lost = 0
        self._held: dict[int, list[dict[str, Any]]] = {}
        # by actor, number of frames that it had no room for, until its next frame is shown
        self.gaps: dict[str, int] = {}
        # Settings of maildir actors, until the wanted session's user is known
        self._settings: dict[str, dict[str, Any]] = {}
        self._user_sessions: dict[int, None] = {}  # sessions of the wanted user
        self._slow = SlowSessions(wanted.slow) if wanted.slow else None

    def see(
        self,
        frame: dict[str, Any],
        known: dict[int, str],
        hosts: Mapping[int, str] = MappingProxyType({}),
        *,
        twin: bool,
    ) -> None:
        """Show a frame if it is wanted. `twin`: the receiver's frame of the same message is shown too.

        `known` and `hosts`: the users and the clients' addresses of sessions, as far as they are known.
        """
        wanted = self.wanted
        session = frame_session(frame)
        if (
            wanted.networks is not None
            and not wanted.networks.contains(hosts.get(session, ""))
            and not (concerns_all(frame) and not frame["actor"].startswith("maildir."))
        ):
            return
        if (
            wanted.session
            and frame["actor"].startswith("maildir.")
            and not self._of_session(frame, known.get(wanted.session))
        ):
            return
        if frame["name"] == "Settings" and frame["way"] == "note":
            if (
                wanted.watches(frame["actor"])
                and wanted.session in (0, session or wanted.session)
                and self._of_user(frame, known, session)
            ):
                self.push({**frame, "fields": self._without_others(frame["fields"])})
            return
        if self._slow is not None and session:
            self._slow.time(frame, session)
        if not wanted.shows(frame):
            return
        if twin:
            frame = {**frame, "twin": True}
        if self._of_user(frame, known, session):
            self._push_slow(frame, session)

    def _push_slow(self, frame: dict[str, Any], session: int) -> None:
        """Send a frame, unless only slow sessions are wanted and this one is not slow, or not yet."""
        for each in (frame,) if self._slow is None or not session else self._slow.take(frame, session):
            self.push(each)

    def _of_session(self, frame: dict[str, Any], user: str | None) -> bool:
        """Return whether a frame is from the maildir actor of the wanted session's user.

        Until that user is known, keep the Settings of all maildir actors.
        """
        if user is None:
            if frame["name"] == "Settings" and frame["way"] == "note":
                self._settings[frame["actor"]] = frame
            return False
        settings = self._settings.get(f"maildir.{user}")
        self._settings.clear()
        if settings is not None:
            self.push(settings)
        return bool(frame["actor"] == f"maildir.{user}")

    def _without_others(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Return Settings without other users' rows, if one user or session is wanted."""
        wanted = self.wanted
        if not (wanted.user or wanted.session):
            return settings
        kept: dict[str, Any] = {}
        for key, index in _USER_ROWS.items():
            rows = settings.get(key)
            if key in settings:
                kept[key] = (
                    [row for row in rows if wanted.user and _same(_item(row, index), wanted.user)]
                    if type(rows) is list
                    else []
                )
        return {**settings, **kept}

    def _of_user(self, frame: dict[str, Any], known: dict[int, str], session: int) -> bool:
        """Return whether a frame is of the wanted user.

        Frames of a session whose user is not known yet are held, and shown once it is known to be the wanted
        one.
        """
        user, fields = self.wanted.user, frame["fields"]
        if not user:
            return True
        actor = f"maildir.{user}"
        if self.wanted.names_user(frame) or (
            concerns_all(frame) and not frame["actor"].startswith("maildir.")
        ):
            good = True
            # an mda that remembers the recipient sends no RecipientLookup, so the peer tells as well
            if session and (_same(fields.get("user"), user) or actor in (frame["actor"], frame["peer"])):
                self._user_sessions[session] = None
                if len(self._user_sessions) > _MOST_USER_SESSIONS:
                    del self._user_sessions[next(iter(self._user_sessions))]
        elif session in self._user_sessions:
            good = True
        elif not session:
            return False
        elif session in known:
            good = _same(known[session], user)
        else:
            if session not in self._held and len(self._held) >= _HELD_SESSIONS:
                del self._held[next(iter(self._held))]
            held = self._held.setdefault(session, [])
            held.append(frame)
            # keep the latest: a replay leaves out a session without its begin, but can't notice a gap
            if len(held) > _HELD_FRAMES:
                del held[0]
            return False
        before = self._held.pop(session, []) if session else []
        if good:
            for earlier in before:
                self._push_slow(earlier, session)
        return good

    def push(self, frame: dict[str, Any]) -> None:
        """Send a frame, or count it as lost."""
        if not self.wanted.payload:
            fields = recut(frame["fields"])
            if fields is not frame["fields"]:
                frame = {**frame, "fields": fields}
        gap = self.gaps.pop(frame["actor"], 0)
        if gap:
            frame = {**frame, "lost": gap}
        if self._lost:
            self.tell_lost()
        if self._lost or not self._client.push(_pack(frame)):
            self._lost += 1

    def missed(self) -> None:
        """Count a frame as lost, since an actor cannot be traced."""
        self._lost += 1

    def tell_lost(self) -> None:
        """Send the number of lost frames, if there is room for that."""
        lost, self._lost = (
            self._lost,
            0,
        )  # before the push: if it empties the connection's queue, this is called again
        if lost and not self._client.push(_pack({"lost": lost})):
            self._lost += lost
