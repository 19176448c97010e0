"""Run a service whose actors die on demand during a delivery.

SIGKILL comes before or after the Nth relevant call. `deaths_in_delivery.py ARGUMENTS` runs `popkernel
ARGUMENTS` with this built in. The mail says which process dies and when: a sender `die-N@maildir` or
`die-N@mda`, a recipient `USER+die-N@kernel`. N counts call starts and ends from the moment that process sees
the mail.
"""

import fcntl
import os
import re
import signal
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
COMMAND = [sys.executable, os.path.abspath(__file__)]
_left = 0


def tick():
    """Count down by one; die at 0."""
    global _left
    if _left:
        _left -= 1
        if not _left:
            signal.raise_signal(signal.SIGKILL)


def arm(text, where):
    """Start counting if the address asks for it."""
    global _left
    found = re.search(rf"die-([0-9]+)@{where}$", text)
    if found:
        _left = int(found[1])


def counted(function):
    def call(*arguments, **named):
        tick()
        result = function(*arguments, **named)
        tick()
        return result

    return call


def patch_channels():
    from popkernel.kernel.runtime.channel import Channel

    Channel._write = counted(Channel._write)


def patch_maildir():
    """Patch the spawner, and so every actor forked from it."""
    from popkernel.actors.maildir.deliveries import Deliveries

    patch_channels()
    for name in ("open", "write", "fsync", "link", "unlink", "pwrite", "close", "ftruncate"):
        setattr(os, name, counted(getattr(os, name)))
    fcntl.flock = counted(fcntl.flock)
    take = Deliveries.take

    def taking(self, channel, message):
        arm(getattr(message, "sender", ""), "maildir")
        return take(self, channel, message)

    Deliveries.take = taking


def patch_mda():
    from popkernel.actors.mda.main import Mda
    from popkernel.actors.mda.transaction import Transaction

    patch_channels()
    add, Mda._flush = Transaction.add, counted(Mda._flush)
    Transaction.content, Transaction.done = counted(Transaction.content), counted(Transaction.done)
    Transaction.accepted = counted(Transaction.accepted)

    def adding(self, address, user):
        arm(self.sender, "mda")
        return add(self, address, user)

    Transaction.add = adding


def patch_kernel():
    from popkernel.kernel import processes
    from popkernel.kernel.supervisor import execution
    from popkernel.kernel.supervisor.maildirs import Maildirs

    patch_channels()
    recipient = Maildirs.recipient_lookup
    execution.pair = processes.pair = counted(processes.pair)

    def asking(self, process, message, fds):
        arm(message.address, "kernel")
        return recipient(self, process, message, fds)

    Maildirs.recipient_lookup = asking


def inside():
    """Patch a singleton's fresh interpreter before it becomes an actor."""
    name = sys.argv[1].partition("~")[0]
    if name == "spawner":
        patch_maildir()
    elif name == "mda":
        patch_mda()
    from popkernel.kernel.runtime import singleton_boot

    singleton_boot.main()


def main():
    from popkernel.cli.main import main as popkernel
    from popkernel.kernel.init import main as init

    patch_kernel()
    init.BOOT = [
        "-c",
        f"import sys; sys.path.insert(0, {HERE!r}); import deaths_in_delivery; deaths_in_delivery.inside()",
    ]
    return popkernel(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
