"""Run a service with short deadlines: `short_deadlines.py SECONDS ARGUMENTS`.

It is `popkernel ARGUMENTS` with every deadline of the topology set to SECONDS, except that of a start, which
a busy machine may need. `short_deadlines.py SECONDS accuse ARGUMENTS`: every second its mda reports that it
lost each channel, and that bob's actor, to which it has no channel, breaks the rules.
"""

import os
import sys

_START_SECONDS = 5  # until an actor's hello; `popkernel reload` waits 10 s in all
HERE = os.path.dirname(os.path.abspath(__file__))
COMMAND = [sys.executable, os.path.abspath(__file__)]


def shorten(seconds):
    from popkernel.kernel.decisions import leases
    from popkernel.proto import topology

    leases._QUIT_SECONDS = min(leases._QUIT_SECONDS, seconds)
    topology.EDGES = tuple(
        row._replace(deadline=min(row.deadline, _START_SECONDS if row[:2] == ("kernel", "init") else seconds))
        for row in topology.EDGES
    )


def accuse():
    from popkernel.actors.mda.routing import Routes
    from popkernel.proto import messages as m

    def sweep(self):
        self.actor.send(m.PeerRefused("maildir.bob>mda", "maildir.bob", "a lie"))
        for user in self.by_user:
            self.actor.send(m.RecipientLookup(self.actor._question(user), user, 0, look=False, lost=True))

    Routes.sweep = sweep


def inside(seconds, accuses):
    """Patch a singleton's fresh interpreter before it becomes an actor."""
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
    init.BOOT = [
        "-c",
        (
            f"import sys; sys.path.insert(0, {HERE!r}); import short_deadlines; "
            f"short_deadlines.inside({seconds}, {accuses})"
        ),
    ]
    return popkernel(sys.argv[2 + accuses :])


if __name__ == "__main__":
    sys.exit(main())
