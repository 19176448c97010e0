"""Judge whether the service can serve now, for `popkernel health` and those that run it."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from popkernel.kernel.decisions.leases import Core
from popkernel.kernel.operator.login_load import LoginLoads
from popkernel.kernel.processes import Process, Processes
from popkernel.kernel.runtime.loop import Loop

__all__ = ["Health"]

_LOOK_SECONDS = 0.05  # between two checks whether all have answered
_SECONDS = 0.8  # after which an actor counts as silent
_LONG_WAIT = 5.0  # seconds that the oldest login may wait for its check

Answer = Callable[[dict[str, Any]], None]


class Health:
    """Ask the singletons whether they live, and tell what is wrong.

    A problem is a name, which programs may compare, and a sentence for people.
    """

    def __init__(
        self,
        loop: Loop,
        processes: Processes,
        core: Core,
        loads: LoginLoads,
        needed: Callable[[], list[str]],
        init_lives: Callable[[], bool],
        certificates: Callable[[], Sequence[tuple[str, int]]],
    ) -> None:
        """Ask nobody yet.

        Args:
            loop: of the kernel.
            processes: the registry.
            core: sessions and leases.
            loads: what auth says about logins that wait.
            needed: returns the names of the singletons in force.
            init_lives: returns whether init has answered.
            certificates: returns the files of those in force, and the end of each, in seconds since 1970.
        """
        self._loop = loop
        self._processes = processes
        self._core = core
        self._loads = loads
        self._needed = needed
        self._init_lives = init_lives
        self._certificates = certificates
        self._asking: list[Answer] = []

    def ask(self, answer: Answer) -> None:
        """Answer within a second. Requests that come meanwhile get the same answer."""
        self._asking.append(answer)
        if len(self._asking) > 1:
            return
        asked = []
        for name in self._needed():
            process = self._processes.get(name)
            if process is not None and process.hello is not None:
                asked.append((process, process.ask()))
        self._look(asked, self._loop.now + _SECONDS)

    def _look(self, asked: list[tuple[Process, int]], until: float) -> None:
        silent = [p.name for p, number in asked if p.counters_answered < number and self._processes.has(p)]
        if silent and self._loop.now < until:
            self._loop.later(_LOOK_SECONDS, lambda: self._look(asked, until))
            return
        problems = [{"problem": name, "text": text} for name, text in self._problems(silent)]
        asking, self._asking = self._asking, []
        for answer in asking:
            answer({"ok": True, "healthy": not problems, "problems": problems})

    def _problems(self, silent: list[str]) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        phase = self._processes.phase
        if phase != "running":
            found.append((phase, f"the service is {phase}"))
        if self._core.draining:
            found.append(("draining", "no new sessions are taken: popkernel drain --undo"))
        if phase == "running":
            for name in self._needed():
                process = self._processes.get(name)
                if process is None or process.hello is None:
                    found.append(("missing", f"{name} does not run; see the log for why"))
        found += [("silent", f"{name} does not answer") for name in silent]
        if not self._init_lives():
            found.append(("init", "init does not answer: no actor can be started or ended; see the log"))
        if self._core.full:
            found.append(("full", "no room for more mailboxes: the limit of descriptors or processes is met"))
        for path, end in self._certificates():
            if end <= time.time():
                found.append(("certificate", f"{path} has expired: renew it, then popkernel reload"))
        oldest = self._loads.status()["oldest"]
        if oldest > _LONG_WAIT:
            text = f"logins wait {oldest:g} s for the password check; popkernel status has the figures"
            found.append(("load", text))
        return found
