"""Users' names as people type them: how a table's are found where case is folded, and which are in each other's way. Pure."""

from collections.abc import Collection

from popkernel.proto.files.tables import Finding, few

__all__ = ["Spellings", "fold", "name_lines", "twins"]

_MOST_SAID = 10  # names that differ in case only


def fold(name: str) -> str:
    """A name with its ASCII letters in lower case. Others stay: what is one letter's other case is a question of languages."""
    return name.lower() if name.isascii() else "".join([letter.lower() if letter.isascii() else letter for letter in name])


class Spellings:
    """How users are found in a table: as it writes them or, where case is folded, in any case.

    Names that differ in nothing else are found as they are written only. One rule for logins and for deliveries.
    """

    __slots__ = ("_fold", "_other")

    def __init__(self, names: Collection[str], *, fold: bool) -> None:
        self._fold = fold
        self._other = _spelled_otherwise(names) if fold else {}

    def find(self, name: str, names: Collection[str]) -> str | None:
        """The name as the table has it; None where it has none. `names`: those of that table."""
        if name in names:
            return name
        if not self._fold:
            return None
        folded = fold(name)
        found = self._other.get(folded, folded)
        return found if found in names else None

    def none(self, name: str) -> str:
        """Of a name that is not found: what counts as the same name that is not there."""
        return fold(name) if self._fold and fold(name) not in self._other else name


def _spelled_otherwise(names: Collection[str]) -> dict[str, str]:
    """Names with capital letters by their folded form; "" for two and more of one form."""
    other: dict[str, str] = {}
    for name in names:
        folded = fold(name)
        if folded != name:
            other[folded] = "" if folded in other or folded in names else name
    return other


def twins(names: Collection[str], data: bytes, path: str) -> list[Finding]:
    """Find names that differ in case only, which is worth a warning where case is folded. `data`: the table they are from."""
    groups: dict[str, list[str]] = {folded: [] for folded, one in _spelled_otherwise(names).items() if not one}
    if not groups:
        return []
    for name in names:
        if fold(name) in groups:
            groups[fold(name)].append(name)
    lines = name_lines(data)
    mend = "have one name for each user, or tell your users"
    what = "differ in case only: each is found only as it is written here"
    findings = [Finding(path, lines.get(group[-1], 0), f"users {' and '.join(group)} {what}", mend) for group in groups.values()]
    return few(findings, "more names differ in case only", _MOST_SAID)


def name_lines(data: bytes) -> dict[str, int]:
    """Give the line number of each name of a table that parses."""
    numbers: dict[str, int] = {}
    for number, line in enumerate(data.split(b"\n"), 1):
        columns = line.replace(b":", b" ", 1).split(None, 1)
        if columns and not columns[0].startswith(b"#"):
            numbers.setdefault(columns[0].decode("utf-8", "replace"), number)
    return numbers
