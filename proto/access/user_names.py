"""Find user names in a table: in any case, and with or without the default domain, if so configured. Pure.

It also finds names of a table that are one name by those rules.
"""

from collections.abc import Collection

from popkernel.proto.files.tables import Finding, first_findings

__all__ = [
    "LoginNames",
    "Spellings",
    "case_conflicts",
    "domain_conflicts",
    "fold",
    "name_lines",
    "names_beyond_clients",
]

_MOST_SAID = 10  # findings of each kind


def fold(name: str) -> str:
    """Put a name's ASCII letters into lower case.

    Other letters stay: their case depends on the language.
    """
    return (
        name.lower()
        if name.isascii()
        else "".join([letter.lower() if letter.isascii() else letter for letter in name])
    )


class Spellings:
    """Find users in a table: spelled exactly or, with `fold`, in any case.

    Names of the table that differ in case only are found by their exact spelling only. Logins and deliveries
    use the same rule.
    """

    __slots__ = ("_fold", "_other")

    def __init__(self, names: Collection[str], *, fold: bool) -> None:
        self._fold = fold
        self._other = _spelled_otherwise(names) if fold else {}

    def find(self, name: str, names: Collection[str]) -> str | None:
        """Return the name as the table has it; None if it has none. `names`: those of that table."""
        if name in names:
            return name
        if not self._fold:
            return None
        folded = fold(name)
        found = self._other.get(folded, folded)
        return found if found in names else None

    def unknown_form(self, name: str) -> str:
        """Return one common form for all spellings of a name that is not in the table."""
        return fold(name) if self._fold and fold(name) not in self._other else name


class LoginNames:
    """Find the user that a client names, of those in the authorization table.

    A name that the table has, in any case with `fold`, is that user. Any other is looked up in its other
    form: a name without an `@` with the default domain appended, one with the default domain without it. So a
    client may give the domain or leave it out, whichever the table does, and a name never means another user
    than the one who is written so.
    """

    __slots__ = ("_domain", "_names", "_spellings")

    def __init__(self, names: Collection[str], *, fold: bool, domain: str = "") -> None:
        """`names`: all users of the table, locked ones too. `domain`: in lower case; "" for none."""
        self._names = names
        self._spellings = Spellings(names, fold=fold)
        self._domain = domain

    def find(self, typed: str) -> str | None:
        """Return the name as the table has it; None if it has none."""
        found = self._spellings.find(typed, self._names)
        if found is None and (other := other_form(typed, self._domain)):
            found = self._spellings.find(other, self._names)
        return found

    def claimed(self, name: str) -> str | None:
        """Return the user that a token's claim names: to the letter, in either form."""
        if name in self._names:
            return name
        other = other_form(name, self._domain)
        return other if other in self._names else None

    def unknown_form(self, typed: str) -> str:
        """Return one common form for all spellings of a name that is not in the table."""
        bare = other_form(typed, self._domain) if "@" in typed else ""
        return self._spellings.unknown_form(bare or typed)


def other_form(name: str, domain: str) -> str:
    """Return the name with the domain if it has none, without it if it has this one, else "".

    `domain`: in lower case; "" for none, which gives "".
    """
    if not domain:
        return ""
    local, sign, its = name.rpartition("@")
    if not sign:
        return f"{name}@{domain}"
    return local if its.lower() == domain else ""


def _spelled_otherwise(names: Collection[str]) -> dict[str, str]:
    """Map folded forms to the names with capital letters; "" if several names have the same folded form."""
    other: dict[str, str] = {}
    for name in names:
        folded = fold(name)
        if folded != name:
            other[folded] = "" if folded in other or folded in names else name
    return other


def case_conflicts(names: Collection[str], data: bytes, path: str) -> list[Finding]:
    """Find names that differ in case only: worth a warning if case is folded.

    `data`: the octets of the table that has these names.
    """
    groups: dict[str, list[str]] = {
        folded: [] for folded, one in _spelled_otherwise(names).items() if not one
    }
    if not groups:
        return []
    for name in names:
        if fold(name) in groups:
            groups[fold(name)].append(name)
    lines = name_lines(data)
    mend = "have one name for each user, or tell your users"
    what = "differ in case only: each is found only as it is written here"
    findings = [
        Finding(path, lines.get(group[-1], 0), f"users {' and '.join(group)} {what}", mend)
        for group in groups.values()
    ]
    return first_findings(findings, "more names differ in case only", _MOST_SAID)


def domain_conflicts(
    names: Collection[str], data: bytes, path: str, domain: str, *, folds: bool
) -> list[Finding]:
    """Find names that are in the table both with and without the default domain: worth a warning.

    `data`: the octets of the table that has these names. `folds`: case does not matter.
    """
    spellings = Spellings(names, fold=folds)
    pairs = []
    for name in names:
        bare = other_form(name, domain) if "@" in name else ""
        twin = spellings.find(bare, names) if bare else None
        if twin is not None:
            pairs.append((twin, name))
    if not pairs:
        return []
    lines = name_lines(data)
    what = f"differ in default_domain ({domain}) only: each is found only as it is written here"
    mend = "have one name for each user, or tell your users"
    findings = [
        Finding(path, lines.get(name, 0), f"users {twin} and {name} {what}", mend) for twin, name in pairs
    ]
    return first_findings(findings, "more names differ in default_domain only", _MOST_SAID)


def names_beyond_clients(names: Collection[str], data: bytes, path: str) -> list[Finding]:
    """Find names that no client can give: with characters that are not printable. Worth a warning."""
    strange = [name for name in names if not name.isprintable()]
    lines = name_lines(data) if strange else {}
    what = "no client can log in by this name: it has characters that are not printable"
    findings = [
        Finding(path, lines.get(name, 0), f"{name!a}: {what}", "choose another name") for name in strange
    ]
    return first_findings(findings, "more names that no client can give", _MOST_SAID)


def name_lines(data: bytes) -> dict[str, int]:
    """Return the line number of each name in a table that parses."""
    numbers: dict[str, int] = {}
    for number, line in enumerate(data.split(b"\n"), 1):
        columns = line.replace(b":", b" ", 1).split(None, 1)
        if columns and not columns[0].startswith(b"#"):
            numbers.setdefault(columns[0].decode("utf-8", "replace"), number)
    return numbers
