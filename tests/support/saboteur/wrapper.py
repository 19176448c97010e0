"""Run in the real actors' processes before they become actors; attack from inside after the hello.

The plan is a JSON file: "place": fields of attempts.Place; "soft": {row: [attempts]}; "deadly": {row:
[attempts, one for each start of it]}; "garbage": {row or name: how}; "modules": whether Report lists what was
imported or opened after the ids were dropped. Each result is a line of the log:

`inside|soft|ACTOR|ATTEMPT|VERDICT`, `inside|trying|ACTOR|ATTEMPT`, `inside|survived|ACTOR|ATTEMPT`,
`inside|modules|ACTOR|NAMES|PATHS`, `inside|thread|ACTOR|ATTEMPT|VERDICT`
"""

import json
import os
import socket
import struct
import sys
import threading

import attempts
import garbage
from popkernel.kernel.init import main as init
from popkernel.kernel.runtime import actor as base
from popkernel.kernel.runtime import singleton_boot
from popkernel.kernel.sandbox import seccomp
from popkernel.kernel.spawner import main as spawner
from popkernel.kernel.supervisor import main as supervisor
from popkernel.proto import messages as m
from popkernel.proto.log_levels import ERROR
from popkernel.proto.topology import kind_of

PLAN = {}
PLACE = attempts.Place()
STATE = {"first": True, "seen": set(), "before": frozenset(), "opened": [], "trying": False, "started": 0}


def say(actor, *words):
    """Write a line of the log; kernel and init write it themselves."""
    text = "|".join(("inside", *words))
    if isinstance(actor, supervisor.Supervisor):
        actor.log(ERROR, "process.failed", error=text)
    elif isinstance(actor, init.Init):
        os.write(2, f"{text}\n".encode())
    else:
        actor.send(m.LogEvent(ERROR, "process.failed", {"error": text[:2000]}))


def peer_pid(sock):
    return struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]


def row_plan(kind, name):
    table = PLAN.get(kind, {})
    return table.get(name, table.get(kind_of(name)))


def attempt_soft(actor, name):
    for attempt in row_plan("soft", name) or ():
        say(actor, "soft", name, attempt, verdict(attempt))


def verdict(attempt):
    STATE["trying"] = True
    try:
        return attempts.verdict(attempts.SOFT[attempt], PLACE)
    finally:
        STATE["trying"] = False


def attempt_deadly(actor, name, attempt):
    say(actor, "trying", name, attempt)
    try:
        (attempts.DEADLY | attempts.SILENT)[attempt].run(PLACE)
    except OSError as error:
        say(actor, "survived", name, f"{attempt}: {error}")
        return
    say(actor, "survived", name, attempt)


def attempt_in_children(actor, name):
    """Make every deadly attempt in a forked child with the same sandbox, and report how the child ended."""
    for attempt in PLAN.get("twins", {}).get(name, ()):
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            seccomp._report = lambda call, promise: os.write(writing, f"{call} {promise}".encode())
            try:
                attempts.DEADLY[attempt].run(PLACE)
            except OSError as error:
                os.write(writing, f"survived: {error}".encode())
            finally:
                os._exit(0)
        os.close(writing)
        said = os.read(reading, 4096).decode()
        os.close(reading)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        say(actor, "twin", name, attempt, str(status), said)


def next_deadly(actor, name):
    """Make one attempt for each start of this actor."""
    todo = row_plan("deadly", name)
    if not todo or not STATE["first"] and kind_of(name).startswith("maildir"):
        return
    if STATE["started"] < len(todo):
        attempt_deadly(actor, name, todo[STATE["started"]])


def count_starts(name):
    """Count the starts of this actor in a file; called before the actor locks itself in."""
    place = f"{PLAN['counters']}/{name}"
    with open(place, "a+") as file:
        file.write("x")
        STATE["started"] = file.tell() - 1


def audit(event, arguments):
    """Record what Python opens, lists and loads; the C library's own calls are not seen."""
    if not STATE["trying"] and event in ("open", "os.listdir", "os.scandir", "ctypes.dlopen"):
        STATE["opened"].append(f"{event} {arguments[0]}")


def patch_actor():
    run, report, drop_ids = base.Actor.run, base.Actor._report, base.Actor.drop_ids

    def new_drop_ids(self, nofile=None):
        if not self._dropped and PLAN.get("modules"):
            STATE["before"] = frozenset(sys.modules)
            sys.addaudithook(audit)
        drop_ids(self, nofile)

    def new_run(self):
        name = self.boot.name
        if self.kernel is not None:
            PLACE.kernel, PLACE.sock = peer_pid(self.kernel.sock), self.kernel.fd
        else:
            PLACE.kernel, PLACE.sock = os.getpid(), self.init.fd
        PLACE.parent = os.getppid()
        attempt_soft(self, name)
        if name == "auth" and PLAN.get("threads"):
            try:
                os.fork()
            except OSError as error:
                say(self, "fork", name, error.strerror)
        if name in PLAN.get("twins", {}):
            attempt_in_children(self, name)
        if kind_of(name).startswith("maildir") or kind_of(name) == "kernel":
            next_deadly(self, name)
        elif STATE["started"]:  # not the first actor: the service runs
            self.loop.later(0.01, lambda: next_deadly(self, name))
        garbage.install(self, row_plan("garbage", name), STATE["first"])
        run(self)

    def new_report(self, message, fds):
        report(self, message, fds)
        tell_modules(self, self.boot.name)
        if not kind_of(self.boot.name).startswith("maildir") and not STATE["started"]:
            next_deadly(self, self.boot.name)

    base.Actor.run, base.Actor._report, base.Actor.drop_ids = new_run, new_report, new_drop_ids


def tell_modules(actor, name):
    if PLAN.get("modules"):
        new = set(sys.modules) - STATE["before"]
        say(actor, "modules", name, ",".join(sorted(new)) or "-", ",".join(STATE["opened"]) or "-")


def patch_kernel():
    command = supervisor.Supervisor._command

    def new_command(self, *arguments):
        tell_modules(self, "kernel")
        return command(self, *arguments)

    supervisor.Supervisor._command = new_command


def patch_init():
    running = init.Init._running

    def new_running(self, text):
        PLACE.kernel, PLACE.sock, PLACE.parent = self.kernel_pid, self.kernel.fd, os.getppid()
        attempt_soft(self, "init")
        attempt_in_children(self, "init")
        garbage.install_init(self, PLAN.get("garbage", {}).get("init"))
        running(self, text)

    init.Init._running = new_running


def patch_spawner():
    """Patch the spawner's children to attack once only, so that the next child shows a service that works."""
    spawn = spawner.Spawner._spawn

    def new_spawn(self, message, fds):
        STATE["first"] = message.name not in STATE["seen"]
        STATE["seen"].add(message.name)
        mine, STATE["started"] = STATE["started"], 0
        spawn(self, message, fds)
        STATE["started"] = mine

    spawner.Spawner._spawn = new_spawn


def patch_auth():
    """Attack from the hashing threads."""
    from popkernel.actors.auth import main as auth

    fits, begin = auth.fits, auth.Auth.begin
    found = []

    def new_fits(secret, hashed):
        if threading.current_thread() is not threading.main_thread() and not found:
            found.append("")
            for name in PLAN["threads"]:
                say(STATE["auth"], "thread", "auth", name, verdict(name))
        return fits(secret, hashed)

    def new_begin(self):
        STATE["auth"] = self
        begin(self)

    auth.fits, auth.Auth.begin = new_fits, new_begin


def install(plan, name):
    """Read the plan and patch this process's classes."""
    with open(plan) as file:
        PLAN.update(json.load(file))
    for key, value in PLAN.get("place", {}).items():
        setattr(PLACE, key, value)
    PLACE.fd = os.open(f"{PLAN['counters']}/any", os.O_RDWR | os.O_CREAT, 0o600)
    patch_actor()
    if name == "init":
        patch_init()
        patch_kernel()
        return
    count_starts(name.partition("~")[0])
    if name.startswith("spawner"):
        patch_spawner()
    if name.startswith("auth") and PLAN.get("threads"):
        patch_auth()


def main(plan):
    """Replace popkernel.kernel.runtime.singleton_boot: patch, then run it."""
    install(plan, sys.argv[1])
    close = singleton_boot.close_all_but
    singleton_boot.close_all_but = lambda kept: close([*kept, PLACE.fd, *garbage.FILE])
    singleton_boot.main()
