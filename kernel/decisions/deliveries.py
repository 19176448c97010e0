"""Decide about deliveries, sans I/O: the user of a recipient, whether the sender may deliver, the channel.

It uses the maildir actors of leases.py. The sender's uid is the one that the system reports for the peer of
the mda's socket. Root, the service's own user and the configured mail servers may deliver to everybody, any
other uid to the mailboxes of that uid.
"""

from popkernel.kernel.decisions import leases
from popkernel.kernel.decisions.actions import Action, Join, Send, Suspect
from popkernel.kernel.decisions.recipients import Rules
from popkernel.proto import messages as m
from popkernel.proto.files.tables import MailUser

__all__ = ["Deliveries"]


class Deliveries:
    """The delivery side of the kernel's state. `now` arguments are monotonic seconds."""

    def __init__(self, kernel: leases.Core, rules: Rules, trusted: frozenset[int], *, tcp: bool) -> None:
        """`trusted`: uids that may deliver to everybody.

        `tcp`: the site also accepts mail over TCP, that is from every local process, without a uid (-1).
        """
        self.core = kernel
        self.rules = rules
        self.trusted = trusted | {-1} if tcp else trusted
        self.holders: dict[str, str] = {}  # user -> the mda that has a channel to that user's maildir actor
        # user -> (mda, request), until the retiring actor has ended
        self.waiting: dict[str, list[tuple[str, int]]] = {}

    def recipient(self, mda: str, message: m.RecipientLookup, now: float) -> list[Action]:
        """Answer an mda's request: refuse it, name the user, or give a channel to the user's actor."""
        request = message.request
        user = self.rules.find(message.address, self.core.users)
        row = self.core.users[user] if user is not None else None
        if message.uid not in self.trusted and (row is None or row.uid != message.uid):
            return [
                _no(
                    mda,
                    request,
                    "5.7.1",
                    "not allowed: root, the mail server and the mailbox's owner may deliver here",
                )
            ]
        if user is None or row is None:
            return [_no(mda, request, "5.1.1", "no such user here")]
        if message.look:
            return [Send(mda, m.RecipientFound(request, user, fresh=False))]
        if message.lost and self.holders.get(user) == mda:
            del self.holders[user]
            if user in self.core.maildirs:  # the channel ended, the actor did not: it may hang
                return [Suspect(f"maildir.{user}"), *self._give(mda, request, user, row, now)]
        return self._give(mda, request, user, row, now)

    def _give(self, mda: str, request: int, user: str, row: MailUser, now: float) -> list[Action]:
        """Answer with a channel to the user's actor, started if need be, or wait for a retiring one's end."""
        maildir = self.core.maildirs.get(user)
        actions: list[Action] = []
        if maildir is None and self.core.full:
            return [
                *self.core.no_room(user),
                _no(mda, request, "4.3.2", "the server is full now, try again later"),
            ]
        if maildir is None:
            actions += self.core.start(user, row)
            maildir = self.core.maildirs[user]
        elif maildir.retiring:
            self.waiting.setdefault(user, []).append((mda, request))
            return [Suspect(maildir.name)]
        elif maildir.row != row:
            return [_no(mda, request, "4.3.2", "the mailbox is being moved, try again later")]
        if self.holders.get(user) == mda:
            actions.append(Send(mda, m.RecipientFound(request, user, fresh=False)))
        else:
            self.holders[user] = mda
            actions.append(
                Join(mda, m.RecipientFound(request, user, fresh=True), maildir.name, m.DeliveryChannel(mda))
            )
        return actions + self.core.used(user, now)

    # -- actors
    def busy(self, name: str, now: float) -> list[Action]:
        """Give a maildir actor that is receiving mail, and so refused to retire, to the mdas that waited."""
        user = name.removeprefix("maildir.")
        # it has said goodbye to its mda, which closes that channel after the message
        self.holders.pop(user, None)
        return self.core.stays(user, now) + self._serve(user, now)

    def maildir_gone(self, name: str, now: float) -> list[Action]:
        """Start the next actor for the mdas that waited for this one's end; after `Core.maildir_gone`."""
        user = name.removeprefix("maildir.")
        self.holders.pop(user, None)
        return self._serve(user, now)

    def _serve(self, user: str, now: float) -> list[Action]:
        actions: list[Action] = []
        row = self.core.users.get(user)
        for mda, request in self.waiting.pop(user, []):
            if row is None:
                actions.append(_no(mda, request, "5.1.1", "no such user here"))
            else:
                actions += self._give(mda, request, user, row, now)
        return actions

    def mda_gone(self, mda: str) -> None:
        """Forget the channels and requests of an mda that ended."""
        self.holders = {user: holder for user, holder in self.holders.items() if holder != mda}
        for waiting in self.waiting.values():
            waiting[:] = [w for w in waiting if w[0] != mda]


def _no(mda: str, request: int, status: str, text: str) -> Send:
    return Send(mda, m.RecipientUnknown(request, status, text))
