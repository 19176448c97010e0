"""A service in which nobody waits long: `short_deadlines.py SECONDS ARGUMENTS` is `popkernel ARGUMENTS` with every deadline of the table that short,
but for that of a start, for which a busy machine may need some.

`short_deadlines.py SECONDS accuse ARGUMENTS`: its mda says every second of every channel that it has lost it, and that
bob's actor, to which it has none, breaks the rules.
"""

import os
import sys

_START_SECONDS = 5  # to an actor's hello; `popkernel reload` waits for 10 in all
HERE = os.path.dirname(os.path.abspath(__file__))
COMMAND = [sys.executable, os.path.abspath(__file__)]


def shorten(seconds):
    from popkernel.kernel.decisions import leases
    from popkernel.proto import topology

    leases._QUIT_SECONDS = min(leases._QUIT_SECONDS, seconds)
    topology.EDGES = tuple(
        row._replace(deadline=min(row.deadline, _START_SECONDS if row[:2] == ("kernel", "init") else seconds)) for row in topology.EDGES
    )


def accuse():
    from popkernel.actors.mda.routing import Routes
    from popkernel.proto import messages as m

    def sweep(self):
        self.actor.tell(m.Refused("maildir.bob>mda", "maildir.bob", "a lie"))
        for user in self.by_user:
            self.actor.tell(m.Recipient(self.actor._question(user), user, 0, look=False, lost=True))

    Routes.sweep = sweep


def inside(seconds, accuses):
    """In a singleton's fresh interpreter, before it becomes that."""
    shorten(seconds)
    if accuses and sys.argv[1].startswith("mda"):
        accuse()
    from popkernel.kernel.runtime import singleton_boot

    singleton_boot.main()


def main():
    seconds = int(sys.argv[1])
    accuses = sys.argv[2] == "accuse"
    from popkernel.proto.topology import edge

    start = edge("kernel", "init").deadline
    shorten(seconds)
    from popkernel.cli.main import main as popkernel
    from popkernel.kernel.init import main as init
    from popkernel.kernel.supervisor import singletons

    singletons._START_PATIENCE = start
    init.BOOT = ["-c", f"import sys; sys.path.insert(0, {HERE!r}); import short_deadlines; short_deadlines.inside({seconds}, {accuses})"]
    return popkernel(sys.argv[2 + accuses :])


if __name__ == "__main__":
    sys.exit(main())
