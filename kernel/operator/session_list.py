"""List sessions and logins under way: who, from where, since when, and what each waits for."""

from collections.abc import Callable, Container, Iterator, Mapping
from typing import Any, NamedTuple

from popkernel.kernel.decisions.leases import Core, Key
from popkernel.kernel.processes import Processes
from popkernel.proto.access.networks import Network, Networks, host_of, parse_network
from popkernel.proto.access.user_names import fold
from popkernel.proto.tls_versions import tls_name
from popkernel.proto.trace.session_names import session_name, session_number

__all__ = ["Announced", "Chosen", "SessionList", "given_network"]

_SLICE = 250  # sessions looked at before the caller may do other work; about 3 ms
_AUTH = "auth, for the password check or a delay"  # the kernel is not told which


class Announced(NamedTuple):
    """What a listener said about a session in LoginStarted; it may have lied."""

    user: str  # as the client typed it; of a granted login, as the table has it
    address: str
    tls: int  # proto/tls_versions.py
    mechanism: str
    since: float  # the loop's time at LoginStarted
    granted: bool = False  # by auth: this is the kernel's own knowledge


class Chosen:
    """The sessions that an operator means: one, a user's, those of an address or network, or all.

    A session is the user's whose name is equal to the letter: other users may differ in case only. A login
    under way has its name as the client typed it: any case counts, but no other user's name.
    """

    def __init__(self, text: str, *, session: bool = False, given: str = "") -> None:
        """`text`: "" for all. `session`: it may name a session. `given`: another name of the user."""
        self.text = text
        self.names = {name for name in (text, given) if name}
        self.session = 0
        self.networks: Networks | None = None
        if session and "." in text:
            try:
                self.session = session_number(text)
            except ValueError:
                self.session = 0
        network = None if self.session else given_network(text)
        if network is not None:
            self.networks = Networks([network])

    @property
    def by_name(self) -> bool:
        """Whether the text is a user's name."""
        return bool(self.text) and not self.session and self.networks is None

    def has(self, session: int, address: str, user: str | None, typed: str, users: Container[str]) -> bool:
        """Return whether a session is meant. `user`: None before the password is checked. `users`: all."""
        if not self.text:
            return True
        if self.session:
            return session == self.session
        if self.networks is not None:
            return self.networks.contains(host_of(address))
        if user is not None:
            return user in self.names
        return typed in self.names or (typed not in users and fold(typed) in map(fold, self.names))


def given_network(text: str) -> Network | None:
    """Return the address or network that an operator means, None if the text is none.

    An address may have its port, as `who` and the log show it. No user's name has a colon.
    """
    try:
        return parse_network(text if "/" in text else host_of(text))
    except ValueError:
        return None


class SessionList:
    """Make rows about sessions from the kernel's state."""

    def __init__(
        self,
        core: Core,
        processes: Processes,
        announced: Callable[[], Mapping[Key, Announced]],
        parked_at: Callable[[str], float | None],
        now: Callable[[], float],
    ) -> None:
        """`announced`: returns what listeners said. `parked_at`: when a user's session was parked."""
        self._core = core
        self._processes = processes
        self._announced = announced
        self._parked_at = parked_at
        self._now = now

    def find(self, chosen: Chosen) -> Iterator[tuple[Key, str] | None]:
        """Yield all sessions that are meant, with their users, and None after each slice.

        A user is named as in the tables or, before the password is checked, as the client typed it.
        """
        core = self._core
        found: list[tuple[Key, str | None]] = [(key, user) for key, (user, _) in core.sessions.items()]
        found += core.waiting.items()
        found += [(key, None) for key in core.awaiting]
        for at, (key, known) in enumerate(found):
            if at % _SLICE == _SLICE - 1:
                yield None
            said = self._announced().get(key)
            typed, address = (said.user, said.address) if said is not None else ("", "")
            if chosen.has(key.session, address, known, typed, core.users):
                yield key, typed if known is None else known

    def row(self, key: Key, user: str) -> dict[str, Any] | None:
        """Return a session's row, None if it is over.

        `waits_for` is "" for its client or, in an open session, its mailbox: the kernel does not see which.
        """
        core, now = self._core, self._now()
        state, waits_for, since = self._state(key, user)
        if not state:
            return None
        said = self._announced().get(key)
        begun = said.since if said is not None else core.sessions[key][1] if key in core.sessions else now
        return {
            "session": session_name(key.session),
            "user": user,
            "address": said.address if said is not None else "",
            "listener": key.listener,
            "tls": tls_name(said.tls) if said is not None else "",
            "mechanism": said.mechanism if said is not None else "",
            "seconds": round(now - begun, 1),
            "state": state,
            "waits_for": waits_for,
            "waits_seconds": None if since is None else round(now - since, 1),
        }

    def _state(self, key: Key, user: str) -> tuple[str, str, float | None]:
        """Return a session's state, what it waits for, and since when; "" if there is no such session."""
        core, said = self._core, self._announced().get(key)
        since = said.since if said is not None else None
        if key in core.awaiting:
            return "logging in", _AUTH, since
        if key in core.waiting:
            return "waiting", self._holder(user), since
        if key not in core.sessions:
            return "", "", None
        begun = core.sessions[key][1]
        if key in core.leaving:
            return "ending", f"maildir.{user}, to end the session", None
        if user in core.asleep and core.asleep[user][0] == key:
            return "parked", "", self._parked_at(user)
        process = self._processes.get(f"maildir.{user}")
        if process is None or process.hello is None:
            return "opening", f"maildir.{user}, to start", begun
        return "open", "", None

    def _holder(self, user: str) -> str:
        """Return what keeps a maildrop from a session that waits for it."""
        maildir = self._core.maildirs.get(user)
        if maildir is not None and maildir.key is not None:
            return f"session {session_name(maildir.key.session)}, to end"
        return f"maildir.{user}, to end"
