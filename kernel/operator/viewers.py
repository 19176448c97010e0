"""What a viewer wishes to see, and which frames that are. Everything it asks comes from an outside socket, and is checked here."""

from typing import Any

import msgpack
from popkernel.kernel.operator.control import Client
from popkernel.kernel.runtime.exit_codes import EXITS
from popkernel.proto.access.user_names import fold
from popkernel.proto.topology import EDGES, kind_of
from popkernel.proto.trace.redaction import recut
from popkernel.proto.trace.session_names import session_of

__all__ = ["Viewer", "Wish", "WishError", "about", "named", "of_all", "row_of"]

_MOST_NAME = 255
_MOST_TYPES = 64
_MOST_MINE = 5000
_HELD_SESSIONS, _HELD_FRAMES = 256, 32  # of sessions that have not said yet whose they are
_pack = msgpack.Packer(use_bin_type=True, autoreset=True, unicode_errors="surrogateescape").pack  # paths need not be UTF-8
_MESSAGES = {c.__name__.lower(): c.__name__ for e in EDGES for c in e.messages if e.target != "tap"}
_NOTES = (
    "Began", "Ended", "Restart", "Lease", "LeaseOver", "Refused", "Broke", "Settings", "State", "Decision", "Connected", "Typed", "Secured",
    "Reply", "Gone", "Unsent", "Checked", "Full", "Clock", "Random", "Timer", "Queued", "Turn", "Known",
)
# Concern every session of an actor.
_ANYBODYS = frozenset({"Settings", "Stop", "Drain", "Peer", "Gone", "Anew", "Clock", "Random", "Timer"})
# What of an actor's Settings is about users, and where in such a row the name stands; -1: the row is the name, or tells none.
_OTHERS = {"logins": 1, "known": 2, "routes": -1, "asked": -1}
_NAMES = _MESSAGES | {n.lower(): n for n in _NOTES}


class WishError(ValueError):
    """A wish that can't be granted; the text is for the one who asked, `code` what the command ends with."""

    def __init__(self, text: str, code: str = "usage") -> None:
        super().__init__(text)
        self.code = EXITS[code].code


def named(asked: str, name: str) -> bool:
    """Whether an instance goes by what was asked for: itself, all of its kind, or any replacement of it."""
    return name == asked or name.startswith((asked + ".", asked + "~")) or (name == "maildir.{user}" and asked.startswith("maildir."))


class Wish:
    """A checked request. All that is given must hold for a frame to be shown."""

    def __init__(self, request: dict[str, Any]) -> None:
        """WishError for one that can't be understood."""
        self.actor = self._text(request, "actor")
        self.user = self._text(request, "user")
        self.session = request.get("session", 0)
        edge = self._text(request, "edge")
        self.edge = tuple(edge.split(":")) if edge else ()
        types = request.get("types", [])
        self.payload = request.get("payload", False)
        self.decisions = request.get("decisions", False)
        if type(self.session) is not int or not 0 <= self.session < 1 << 63:
            raise WishError("a session is a number: 1.17, as status shows it, is (1 << 40) + 17")
        if self.edge and (len(self.edge) != 2 or not all(self.edge)):
            raise WishError("an edge is FROM:TO, for example listener:auth")
        if type(types) is not list or len(types) > _MOST_TYPES or not all(type(t) is str and len(t) <= _MOST_NAME for t in types):
            raise WishError("types are a list of message names")
        unknown = [t for t in types if t.lower() not in _NAMES]
        if unknown:
            raise WishError(f"no message {unknown[0]!r}; there are: {', '.join(sorted(_NAMES.values()))}")
        self.types = frozenset(_NAMES[t.lower()] for t in types)
        if type(self.payload) is not bool or type(self.decisions) is not bool:
            raise WishError("payload and decisions are true or false")

    @staticmethod
    def _text(request: dict[str, Any], key: str) -> str:
        value = request.get(key, "")
        if type(value) is not str or len(value) > _MOST_NAME:
            raise WishError(f"{key} is a name")
        return value

    def asked(self) -> dict[str, Any]:
        """As it was understood; a recording keeps it."""
        given = {
            "actor": self.actor, "user": self.user, "session": self.session, "edge": ":".join(self.edge), "types": sorted(self.types),
            "payload": self.payload, "decisions": self.decisions,
        }
        return {key: value for key, value in given.items() if value}

    def watches(self, name: str) -> bool:
        """Whether that actor (an instance) has to be watched for this."""
        if self.actor:
            return named(self.actor, name)
        if self.user and name.startswith("maildir.") and name != f"maildir.{self.user}":
            return False
        if self.edge:
            return any(named(end, name) or end == row_of(name) for end in self.edge)
        return True

    def on_edge(self, source: str, target: str) -> bool:
        """Whether a message from `source` to `target` (instances or rows) is on the asked edge."""
        if not self.edge:
            return True
        return all(named(asked, name) or asked == row_of(name) for asked, name in zip(self.edge, (source, target), strict=True))

    def shows(self, frame: dict[str, Any]) -> bool:
        """Whether a frame is wanted, by all but the user."""
        if self.actor and not named(self.actor, frame["actor"]) and not (frame["way"] == "note" and named(self.actor, frame["peer"])):
            return False
        session = about(frame)
        if self.session and session != self.session and not of_all(frame):
            return False
        if self.types and frame["name"] not in self.types:
            return False
        if self.edge:
            ends = (frame["peer"], frame["actor"]) if frame["way"] == "in" else (frame["actor"], frame["peer"])
            return frame["way"] != "note" and self.on_edge(*ends)
        return True

    def names_user(self, frame: dict[str, Any]) -> bool:
        """Whether a frame itself says that it is the wished user's."""
        mine = f"maildir.{self.user}"
        return mine in (frame["actor"], frame["peer"], frame["fields"].get("name")) or _same(frame["fields"].get("user"), self.user)


def of_all(frame: dict[str, Any]) -> bool:
    """Whether a frame concerns every session of its actor, and no other user."""
    return frame["name"] in _ANYBODYS and not about(frame) and not frame["peer"].startswith("maildir.")


def _at(row: Any, at: int) -> Any:
    """What stands there in a row of an actor's, who may say anything."""
    if at < 0:
        return row
    return row[at] if type(row) is list and len(row) > at else None


def row_of(name: str) -> str:
    """The row of an instance; itself for what is none."""
    try:
        return kind_of(name)
    except KeyError:
        return name


def _same(one: Any, other: str) -> bool:
    """Whether a name that was typed may be that user's: case may have been folded."""
    return type(one) is str and fold(one) == fold(other)


def about(frame: dict[str, Any]) -> int:
    """The session that a frame concerns, be it by the name of a listener that serves one alone; 0 for none."""
    if frame["session"]:
        return int(frame["session"])
    names = (frame["actor"], frame["peer"], frame["fields"].get("name"))
    return next((session for session in (session_of(name) for name in names if type(name) is str) if session), 0)


class Viewer:
    """Somebody who watches."""

    def __init__(self, client: Client, wish: Wish) -> None:
        self._client = client
        self.wish = wish
        self._lost = 0
        self._held: dict[int, list[dict[str, Any]]] = {}
        self.gaps: dict[str, int] = {}  # frames that actors had no room for, until the next of that actor's is shown
        self._scenes: dict[str, dict[str, Any]] = {}  # Settings of maildir actors, until it is known whose the wished session is
        self._mine: dict[int, None] = {}  # sessions that had to do with the wished user

    def see(self, frame: dict[str, Any], known: dict[int, str], *, twin: bool) -> None:
        """Show a frame if it is wanted. `twin`: its other end is shown too."""
        wish = self.wish
        session = about(frame)
        if wish.session and frame["actor"].startswith("maildir.") and not self._of_session(frame, known.get(wish.session)):
            return
        if frame["name"] == "Settings" and frame["way"] == "note":
            if wish.watches(frame["actor"]) and wish.session in (0, session or wish.session) and self._of_user(frame, known, session):
                self.push({**frame, "fields": self._without_others(frame["fields"])})
            return
        if not wish.shows(frame):
            return
        if twin:
            frame = {**frame, "twin": True}
        if self._of_user(frame, known, session):
            self.push(frame)

    def _of_session(self, frame: dict[str, Any], user: str | None) -> bool:
        """Whether that is the maildir actor of the wished session's user. Before that one is known, how each stands is kept unseen."""
        if user is None:
            if frame["name"] == "Settings" and frame["way"] == "note":
                self._scenes[frame["actor"]] = frame
            return False
        scene = self._scenes.get(f"maildir.{user}")
        self._scenes.clear()
        if scene is not None:
            self.push(scene)
        return bool(frame["actor"] == f"maildir.{user}")

    def _without_others(self, settings: dict[str, Any]) -> dict[str, Any]:
        """What an actor says of other users' affairs is not for who watches one user or session, and no replay of that needs it."""
        wish = self.wish
        if not (wish.user or wish.session):
            return settings
        kept: dict[str, Any] = {}
        for key, at in _OTHERS.items():
            rows = settings.get(key)
            if key in settings:
                kept[key] = [row for row in rows if wish.user and _same(_at(row, at), wish.user)] if type(rows) is list else []
        return {**settings, **kept}

    def _of_user(self, frame: dict[str, Any], known: dict[int, str], session: int) -> bool:
        """A session that has not said yet whose it is is held back, and shown from its beginning once it has."""
        user, fields = self.wish.user, frame["fields"]
        if not user:
            return True
        mine = f"maildir.{user}"
        if self.wish.names_user(frame) or (of_all(frame) and not frame["actor"].startswith("maildir.")):
            good = True
            # An mda that knows her asks nobody.
            if session and (_same(fields.get("user"), user) or mine in (frame["actor"], frame["peer"])):
                self._mine[session] = None
                if len(self._mine) > _MOST_MINE:
                    del self._mine[next(iter(self._mine))]
        elif session in self._mine:
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
            if len(held) > _HELD_FRAMES:  # the latest: a replay leaves out what has no beginning, but can't know of a gap
                del held[0]
            return False
        before = self._held.pop(session, []) if session else []
        if good:
            for earlier in before:
                self.push(earlier)
        return good

    def push(self, frame: dict[str, Any]) -> None:
        """Send a frame, or count it as lost."""
        if not self.wish.payload:
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
        """An actor cannot be watched: what it would have shown is lost."""
        self._lost += 1

    def tell_lost(self) -> None:
        """Say how many frames did not fit, once there is room to say it."""
        if self._lost and self._client.push(_pack({"lost": self._lost})):
            self._lost = 0
