"""Find the user of a recipient's address. Pure: it reads the user table alone, no files, no system users.

The first of these that the table has is the user: the address as it is (OpenSMTPD's tables may hold
`joe@example.org`), the address without its detail (`alice+list@…`, RFC 5233), the local part, and the local
part without its detail. If case is folded, a name also matches in another case, unless two names differ
only in case.
"""

from collections.abc import Iterator, Mapping

from popkernel.proto.access.user_names import Spellings
from popkernel.proto.files.tables import MailUser

__all__ = ["Rules"]


class Rules:
    """Match addresses with users.

    `separators`: each of these characters begins a detail. `fold`: ignore case. `domains`: the accepted ones,
    empty for all.
    """

    def __init__(self, *, separators: str = "+", fold: bool = True, domains: tuple[str, ...] = ()) -> None:
        self.separators = separators
        self.fold = fold
        self.domains = frozenset(d.lower() for d in domains)
        self._of: Mapping[str, MailUser] | None = None  # the table of `_spellings`
        self._spellings = Spellings((), fold=fold)

    def find(self, address: str, users: Mapping[str, MailUser]) -> str | None:
        """Return the user of an address, None if there is none.

        `address`: as in RCPT TO (RFC 5321 section 4.1.1.3), without angle brackets.
        """
        if self._of is not users:
            self._of, self._spellings = users, Spellings(users, fold=self.fold)
        for name in (address, *self._names(address)):
            found = self._spellings.find(name, users)
            if found is not None:
                return found
        return None

    def _names(self, address: str) -> Iterator[str]:
        local, domain = split_address(address)
        bare = self._without_detail(local)
        if domain:
            yield f"{local}@{domain}"
            if bare:
                yield f"{bare}@{domain}"
            if self.domains and domain not in self.domains:
                return
        yield local
        if bare:
            yield bare

    def _without_detail(self, local: str) -> str:
        """Return the part before the first separator, "" if there is no separator or nothing before it."""
        cuts = [at for at in (local.find(mark, 1) for mark in self.separators) if at > 0]
        return local[: min(cuts)] if cuts else ""


def split_address(address: str) -> tuple[str, str]:
    """Return local part, without quotes (RFC 5321 section 4.1.2), and domain, in lower case or ""."""
    local, sign, domain = address.rpartition("@")
    if not sign:
        local, domain = address, ""
    if len(local) > 1 and local[0] == local[-1] == '"':
        inner = iter(local[1:-1])
        local = "".join([next(inner, "") if letter == "\\" else letter for letter in inner])
    return local, domain.lower().rstrip(".")
