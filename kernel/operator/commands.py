"""Carry out the operator's commands about sessions and the service: who, kick, explain, drain, health.

Long work is done in slices, between which the kernel's loop does everything else.
"""

from collections.abc import Callable, Iterator
from typing import Any

import msgpack
from popkernel.kernel.decisions.actions import Action
from popkernel.kernel.decisions.leases import Core, Key
from popkernel.kernel.decisions.recipients import Rules
from popkernel.kernel.operator.control import Client, packed
from popkernel.kernel.operator.health import Health
from popkernel.kernel.operator.history import History, Record, Wanted
from popkernel.kernel.operator.session_list import Chosen, SessionList, given_network
from popkernel.kernel.processes import Processes
from popkernel.kernel.runtime.exit_codes import EXITS
from popkernel.kernel.runtime.log import Log
from popkernel.kernel.runtime.loop import Loop
from popkernel.proto import messages as m
from popkernel.proto.access.networks import host_of, parse_network
from popkernel.proto.log_levels import NOTICE, WARNING
from popkernel.proto.trace.session_names import session_name

__all__ = ["Commands"]

_LONGEST = 320  # characters of a name in a request
_MOST_RECORDS = 1000  # of each kind, in one answer
_MOST_USERS = 10  # of an address, whose messages are named
_AUTH_SECONDS = 1.0  # that an explanation waits for auth
_KICK_SECONDS = 10.0  # for a listener to end a session
_KICK_PAUSE = 0.01  # after a kick that its listener has not taken: thousands would overfill its channel
_DRAINED = ("listener", "gate", "mda")  # kinds of actors that take new clients
# kinds of records -> their names in an explanation
_KINDS = {"session": "sessions", "login": "logins", "delivery": "deliveries", "messages": "messages"}

Job = Iterator[float | None]  # yields between its slices: seconds until the next, None for at once


class RequestError(ValueError):
    """A request that cannot be understood. The text is for the operator."""


class Commands:
    """Answer requests of the control socket. Its caller has checked who may ask."""

    def __init__(
        self,
        loop: Loop,
        processes: Processes,
        core: Core,
        rules: Callable[[], Rules],
        log: Log,
        history: History,
        sessions: SessionList,
        health: Health,
        auth: Callable[[], str],
        do: Callable[[list[Action]], None],
    ) -> None:
        """`rules`: match addresses with users. `auth`: returns the name of the one in force."""
        self._loop = loop
        self._processes = processes
        self._core = core
        self._rules = rules
        self._log = log
        self._history = history
        self._sessions = sessions
        self._health = health
        self._auth = auth
        self._do = do
        self._lookups: dict[int, Callable[[m.AccountState | None], None]] = {}
        self._serial = 0
        self._commands: dict[str, Callable[[Client, dict[str, Any]], None]] = {
            "who": self._who,
            "kick": self._kick,
            "explain": self._explain,
            "drain": self._drain,
            "health": self._tell_health,
        }

    def run(self, client: Client, request: dict[str, Any]) -> None:
        """Carry out a request, or answer that there is no such command."""
        name = request["command"]
        command = self._commands.get(name) if isinstance(name, str) else None
        if command is None:
            client.answer({"ok": False, "error": "no such command"})
            return
        try:
            command(client, request)
        except RequestError as error:
            client.answer({"ok": False, "error": str(error), "code": EXITS["usage"].code})

    def _go(self, job: Job) -> None:
        """Do a job's next slice, and the others in later turns of the loop."""
        for pause in job:
            self._loop.later(pause or 0.0, lambda: self._go(job))
            break

    # -- who
    def _who(self, client: Client, request: dict[str, Any]) -> None:
        text = _text(request, "who")
        if "/" in text and text not in self._core.users:
            try:
                parse_network(text)
            except ValueError as error:  # as a user's name it would have no sessions
                raise RequestError(str(error)) from None
        self._choose(Chosen(text), lambda chosen: self._list(client, chosen))

    def _choose(self, chosen: Chosen, job: Callable[[Chosen], Job]) -> None:
        """Do a job once the choice has the user whom its text means: auth finds it as for a login."""

        def known(state: m.AccountState | None) -> None:
            if state is not None and state.user:
                chosen.names.add(state.user)
            self._go(job(chosen))

        if chosen.by_name and chosen.text not in self._core.users:
            self._look_up(chosen.text, "", known)
        else:
            self._go(job(chosen))

    def _list(self, client: Client, chosen: Chosen) -> Job:
        rows = []
        for found in self._sessions.find(chosen):
            row = None if found is None else self._sessions.row(*found)
            if found is None:
                yield None
            elif row is not None:
                rows.append(packed(row))  # now: to pack ten thousand rows at the end takes long
        client.answer_packed(_with_rows({"ok": True, "draining": self._core.draining}, "sessions", rows))

    # -- kick
    def _kick(self, client: Client, request: dict[str, Any]) -> None:
        who = _text(request, "who")
        if not who:
            raise RequestError("kick whom? Name a session or a user")
        chosen = Chosen(who, session=True)
        if chosen.networks is not None:
            raise RequestError("kick takes a session or a user; `popkernel who` shows those of an address")
        self._choose(chosen, lambda chosen: self._kick_all(client, chosen))

    def _kick_all(self, client: Client, chosen: Chosen) -> Job:
        ended = list[bytes]()
        for found in self._sessions.find(chosen):
            row = None if found is None else self._sessions.row(*found)
            if found is None or row is None:  # a slice is over, or the session ended meanwhile
                yield None
                continue
            key, user = found
            self._do(self._core.kicked(key))
            self._loop.later(_KICK_SECONDS, lambda key=key, user=user: self._check_kicked(key, user))  # type: ignore[misc]
            self._log(NOTICE, "session.kicked", session=session_name(key.session), user=user, **client.author)
            ended.append(packed(row))
            listener = self._processes.get(key.listener)
            if listener is not None and listener.channel.waiting:
                yield _KICK_PAUSE
        client.answer_packed(_with_rows({"ok": True}, "ended", ended))

    def _check_kicked(self, key: Key, user: str) -> None:
        """End a session without its listener, which has ignored the kick."""
        if key in self._core.sessions and self._core.leases.get(user) == key:
            seconds = round(_KICK_SECONDS)
            self._log(
                WARNING,
                "session.kick_ignored",
                session=session_name(key.session),
                user=user,
                listener=key.listener,
                seconds=seconds,
            )
            self._do(self._core.stuck(key))

    # -- drain
    def _drain(self, client: Client, request: dict[str, Any]) -> None:
        on = request.get("on", True)
        if on is not None and not isinstance(on, bool):
            raise RequestError("on is true or false, or nil to change nothing")
        changed = on is not None and on != self._core.draining
        if on is not None and changed:
            self._do(self._core.drain(on))
            for process in self._processes.of_kind(*_DRAINED):
                if process.hello is not None and not process.session:
                    process.channel.send(m.ServiceDrain(on))
            event = "service.drained" if on else "service.undrained"
            self._log(NOTICE, event, **client.author)
        draining = self._core.draining
        client.answer(
            {"ok": True, "changed": changed, "draining": draining, "sessions": len(self._core.sessions)}
        )

    # -- health
    def _tell_health(self, client: Client, request: dict[str, Any]) -> None:
        del request
        self._health.ask(client.answer)

    # -- explain
    def _explain(self, client: Client, request: dict[str, Any]) -> None:
        text, most = _text(request, "who"), request.get("most", 30)
        if not text:
            raise RequestError("explain whom? Name a user or an address")
        if type(most) is not int or not 1 <= most <= _MOST_RECORDS:
            raise RequestError(f"most is a number from 1 to {_MOST_RECORDS}")
        address = "" if text in self._core.users else _address(text)
        if address or text in self._core.users:
            self._go(self._search(client, Wanted(user="" if address else text, address=address), most))
            return

        def known(state: m.AccountState | None) -> None:
            """Take the user whom a login by this name means, or else one who gets mail by it."""
            user = state.user if state is not None else ""
            unknown = text if state is not None and not user else ""
            user = user or self._rules().find(text, self._core.users) or text
            wanted = Wanted(user=user, given=text if text != user else "")
            self._go(self._search(client, wanted, most, unknown))

        self._look_up(text, "", known)

    def _search(self, client: Client, wanted: Wanted, most: int, unknown: str = "") -> Job:
        """Search for what is wanted. `unknown`: the name that was given, if no login by it can succeed."""
        found: dict[str, list[Record]] = {}
        for kind in _KINDS:
            for records in self._history.find(kind, wanted, most):
                if records is None:
                    yield None
                else:
                    found[kind] = records
        if wanted.address:  # the messages of those sessions are kept by their users
            users = dict.fromkeys(str(r.fields.get("user", "")) for r in found["session"])
            for user in list(users)[:_MOST_USERS]:
                for records in self._history.find("messages", Wanted(user=user), most):
                    if records is None:
                        yield None
                    else:
                        found["messages"] += records
        there = list[dict[str, Any]]()
        for session in self._sessions.find(Chosen(wanted.user or wanted.address, given=wanted.given)):
            if session is None:
                yield None
            elif len(there) < _MOST_RECORDS and (row := self._sessions.row(*session)) is not None:
                there.append(row)
        # Whether a login would have to wait depends on the address, too: take that of a login under way, or
        # else of the last one that failed.
        began = [str(row["address"]) for row in there if row["state"] == "logging in" and row["address"]]
        failed = (str(r.fields["address"]) for r in found["login"] if "address" in r.fields)
        address = wanted.address or (began[-1] if began else next(failed, ""))[:64]
        self._look_up(
            wanted.user,
            address,
            lambda state: self._explained(client, wanted, found, there, address, state, unknown),
        )

    def _look_up(self, user: str, address: str, then: Callable[[m.AccountState | None], None]) -> None:
        """Ask auth, and call `then` with its answer, or with None if it gives none in time."""
        self._serial += 1
        request = self._serial
        self._lookups[request] = then
        self._loop.later(_AUTH_SECONDS, lambda: self._looked_up(request, None))
        self._processes.send(self._auth(), m.AccountLookup(request, user[:255], address))

    def account_state(self, auth: Any, message: m.AccountState, fds: list[int]) -> None:
        """Take auth's answer."""
        del auth, fds
        self._looked_up(message.request, message)

    def _looked_up(self, request: int, state: m.AccountState | None) -> None:
        then = self._lookups.pop(request, None)
        if then is not None:
            then(state)

    def _explained(
        self,
        client: Client,
        wanted: Wanted,
        found: dict[str, list[Record]],
        there: list[dict[str, Any]],
        address: str,
        state: m.AccountState | None,
        unknown: str,
    ) -> None:
        row = self._core.users.get(wanted.user)
        lease = self._core.leases.get(wanted.user)
        client.answer(
            {
                "ok": True,
                "user": wanted.user,
                "address": wanted.address,
                "unknown_login": unknown,
                "kept": self._history.on,
                "maildrop": None if row is None else {"uid": row.uid, "gid": row.gid, "maildir": row.maildir},
                "account": None if state is None else {"entry": state.entry, "scheme": state.scheme},
                "wait_seconds": None if state is None else state.wait / 1000,
                "wait_address": host_of(address),
                "lease": None if lease is None else session_name(lease.session),
                "open": there,
                **{
                    name: [
                        {"time": r.time, "event": r.event, "actor": r.actor, **r.fields}
                        for r in reversed(found[kind])
                    ]
                    for kind, name in _KINDS.items()
                },
            }
        )


def _address(text: str) -> str:
    """Return a client's address in its one form, "" if the text is none."""
    network = given_network(text)
    if network is None:
        return ""
    if network.num_addresses > 1:
        raise RequestError("explain takes one address; `popkernel who` takes a network")
    return str(network.network_address)


def _with_rows(answer: dict[str, Any], name: str, rows: list[bytes]) -> bytes:
    """Pack an answer with one more field: rows that are packed already."""
    pack = msgpack.Packer(autoreset=False)
    pack.pack_map_header(len(answer) + 1)
    for key, value in answer.items():
        pack.pack(key)
        pack.pack(value)
    pack.pack(name)
    pack.pack_array_header(len(rows))
    return bytes(pack.bytes()) + b"".join(rows)


def _text(request: dict[str, Any], key: str) -> str:
    value = request.get(key, "")
    if not isinstance(value, str) or len(value) > _LONGEST:
        raise RequestError(f"{key} is a name")
    return value
