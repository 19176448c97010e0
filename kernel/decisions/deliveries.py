"""What the kernel decides about mail on its way in: whose a recipient is, who may deliver to it, over which channel. Sans I/O.

Beside leases.py, whose maildir actors it uses. The sender's uid is what the system said of the other end of the mda's socket: root,
whoever runs this service, and the configured mail servers may deliver to everybody, anybody else to mailboxes of that very uid.
"""

from popkernel.kernel.decisions import leases
from popkernel.kernel.decisions.recipients import Rules
from popkernel.proto import messages as m
from popkernel.proto.files.tables import MailUser

__all__ = ["Deliveries"]


class Deliveries:
    """The delivery side of the kernel's state. `now` arguments are monotonic seconds."""

    def __init__(self, kernel: leases.Core, rules: Rules, trusted: frozenset[int], *, tcp: bool) -> None:
        """`trusted`: uids that may deliver to everybody. `tcp`: the site takes mail from every local process, over TCP."""
        self.core = kernel
        self.rules = rules
        self.trusted = trusted | {-1} if tcp else trusted
        self.holders: dict[str, str] = {}  # user -> the mda that has a channel to that user's maildir actor
        self.waiting: dict[str, list[tuple[str, int]]] = {}  # user -> (mda, request) until the actor that is going has gone

    def recipient(self, mda: str, message: m.Recipient, now: float) -> list[leases.Effect]:
        """Whose maildrop is it, and may that sender deliver there."""
        request = message.request
        user = self.rules.find(message.address, self.core.users)
        row = self.core.users[user] if user is not None else None
        if message.uid not in self.trusted and (row is None or row.uid != message.uid):
            return [_no(mda, request, "5.7.1", "not allowed: root, the mail server and the mailbox's owner may deliver here")]
        if user is None or row is None:
            return [_no(mda, request, "5.1.1", "no such user here")]
        if message.look:
            return [leases.Send(mda, m.Maildrop(request, user, fresh=False))]
        if message.lost and self.holders.get(user) == mda:
            del self.holders[user]
            if user in self.core.maildirs:  # its channel has ended, it has not: perhaps it was given up
                return [leases.Suspect(f"maildir.{user}"), *self._give(mda, request, user, row, now)]
        return self._give(mda, request, user, row, now)

    def _give(self, mda: str, request: int, user: str, row: MailUser, now: float) -> list[leases.Effect]:
        """Answer with a channel to the user's actor, made if need be; or wait for the end of one that is going."""
        maildir = self.core.maildirs.get(user)
        effects: list[leases.Effect] = []
        if maildir is None and self.core.full:
            return [*self.core.no_room(user), _no(mda, request, "4.3.2", "the server is full now, try again later")]
        if maildir is None:
            effects += self.core.start(user, row)
            maildir = self.core.maildirs[user]
        elif maildir.retiring:
            self.waiting.setdefault(user, []).append((mda, request))
            return [leases.Suspect(maildir.name)]
        elif maildir.row != row:
            return [_no(mda, request, "4.3.2", "the mailbox is being moved, try again later")]
        if self.holders.get(user) == mda:
            effects.append(leases.Send(mda, m.Maildrop(request, user, fresh=False)))
        else:
            self.holders[user] = mda
            effects.append(leases.Join(mda, m.Maildrop(request, user, fresh=True), maildir.name, m.Receive(mda)))
        return effects + self.core.used(user, now)

    # -- actors
    def busy(self, name: str, now: float) -> list[leases.Effect]:
        """A maildir actor that was told to retire has a message on its way in, and stays: who waited for its end has it now."""
        user = name.removeprefix("maildir.")
        self.holders.pop(user, None)  # it has taken leave of its mda, which closes that channel when its message is through
        return self.core.stays(user, now) + self._serve(user, now)

    def maildir_gone(self, name: str, now: float) -> list[leases.Effect]:
        """A maildir actor's process is no more. To be told after leases.py."""
        user = name.removeprefix("maildir.")
        self.holders.pop(user, None)
        return self._serve(user, now)

    def _serve(self, user: str, now: float) -> list[leases.Effect]:
        effects: list[leases.Effect] = []
        row = self.core.users.get(user)
        for mda, request in self.waiting.pop(user, []):
            if row is None:
                effects.append(_no(mda, request, "5.1.1", "no such user here"))
            else:
                effects += self._give(mda, request, user, row, now)
        return effects

    def mda_gone(self, mda: str) -> None:
        """Its channels have ended, and nobody waits for its answers."""
        self.holders = {user: holder for user, holder in self.holders.items() if holder != mda}
        for waiting in self.waiting.values():
            waiting[:] = [w for w in waiting if w[0] != mda]


def _no(mda: str, request: int, status: str, text: str) -> leases.Send:
    return leases.Send(mda, m.NoMaildrop(request, status, text))
