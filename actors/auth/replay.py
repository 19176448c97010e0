"""Replay a recorded auth: each login that it was asked for, with the recorded result of the check.

Passwords and hashes take no part.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any, cast

from popkernel.actors.auth import main
from popkernel.actors.auth.passwords import Table
from popkernel.kernel.replay.harness import Harness, LeftError, no_socket
from popkernel.kernel.runtime.channel import Channel
from popkernel.proto import messages as m
from popkernel.proto.topology import kind_of
from popkernel.proto.trace.recording import Frame

__all__ = ["play"]


class _Auth(main.Auth):
    """Auth without a table, threads or penalties: when each login was answered, and how, is recorded."""

    def __init__(self, harness: Harness, name: str, start: float) -> None:
        boot = harness.boot(name, {"penalty_seconds": 0, "auth_cache_seconds": 0}, start)
        super().__init__(boot, Table({}, fold=boot.config["login_case"] == "fold"))
        # by listener and session: logins whose check is under way
        self.waiting: dict[tuple[str, int], deque[main.Attempt]] = {}

    def verify(self, attempt: main.Attempt) -> None:
        session = attempt.login.session
        self.waiting.setdefault((attempt.listener, session), deque()).append(attempt)

    def withdraw(self, listener: str, message: m.LoginWithdrawn) -> None:
        if not message.answer:
            self.waiting.pop((listener, message.session), None)

    def _take_over(self, message: m.PredecessorChannel, fds: list[int]) -> None:
        """Only open the channel: what is handed over is secret. What came of it is noted."""

        def gone(channel: Channel, why: str) -> None:
            if why:
                self.refuse(channel, why)

        self.world.channel(self.loop, fds[0], self.boot.name, message.name, lambda *_: None, gone)

    def _hand_over(self, message: m.SuccessorChannel, fds: list[int]) -> None:
        self.world.channel(
            self.loop,
            fds[0],
            self.boot.name,
            message.name,
            lambda *_: None,
            lambda channel, _: channel.close(),
        )


def play(harness: Harness, name: str, settings: dict[str, Any], frames: Sequence[Frame]) -> None:
    """Play the frames of auth, beginning at its Settings."""
    auth = _Auth(harness, name, frames[0].turn / 1e9)
    harness.enter(auth)
    for listener in settings.get("listeners", ()):
        auth.join(listener, no_socket())
    try:
        for frame in harness.play(frames):
            _play(harness, auth, frame)
    except LeftError:
        harness.left(frames)


def _play(harness: Harness, auth: _Auth, frame: Frame) -> None:
    if frame.way == "in":
        if kind_of(frame.peer) == "listener" and frame.peer not in auth.listeners:
            auth.join(frame.peer, no_socket())
        harness.tell(frame)
    elif frame.name == "TakenOver":
        auth.send(m.LoginMemoryTaken(**frame.fields))
    elif frame.name == "Untrue":
        for channel in [c for c in harness.channels if kind_of(c.peer) == "auth" and not c.closed]:
            auth.refuse(cast("Channel", channel), frame.fields["why"])
    elif frame.name in ("Checked", "Full"):
        fields = frame.fields
        listener = fields["listener"]
        queue = auth.waiting.get((listener, frame.session))
        if not queue:
            harness.skipped.add(frame.session)
            return
        attempt = queue.popleft()
        # the table's spelling: the table is not here
        attempt = attempt._replace(login=attempt.login._replace(user=fields["user"]))
        if frame.name == "Checked":
            auth.answer(attempt, fields["reason"])
        else:
            auth.refuse_login(attempt, fields["text"], fields["reason"], fields["seconds"])
