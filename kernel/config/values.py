"""Check and convert one value of the configuration, by its key's kind.

A value may be of any type that TOML has. Each check returns the value as Config keeps it, or raises
ValueError with "what is wrong; how to mend it".
"""

import os
import re
from collections.abc import Callable, Mapping
from ipaddress import ip_network
from typing import Any

from popkernel.kernel.config.addresses import Address

__all__ = ["checked"]


def checked(value: Any, rules: Mapping[str, Any]) -> Any:
    """Check and convert a value for a key; `rules` is the key's metadata, whose `kind` names the check.

    Raises:
        ValueError: "what is wrong; how to mend it", sometimes without the second part.
    """
    return _CHECKS[rules["kind"]](value, rules)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{type(value).__name__} where a text is wanted; write it in quotes")  # noqa: TRY004
    if not value or "\0" in value or "\n" in value:
        raise ValueError("empty, or with a NUL or newline; write it in one line")
    return value


def _take_text(value: Any, _rules: Mapping[str, Any]) -> str:
    if value == "":
        return ""
    text = _text(value)
    if not text.isprintable() or " " in text or len(text) > 1000:
        raise ValueError(f"{text[:100]!r} is no word of at most 1000 characters; write it without blanks")
    return text


def _take_path(value: Any, _rules: Mapping[str, Any]) -> str:
    path = _text(value)
    if not path.startswith("/"):
        raise ValueError(f"{path!r} is no absolute path; write {os.path.abspath(path)}")
    return path


def _take_subdir(value: Any, _rules: Mapping[str, Any]) -> str:
    path = _text(value)
    if path.startswith("/") or ".." in path.split("/"):
        raise ValueError(
            f"{path!r} is no subdirectory; write it relative to the user's directory, without `..`"
        )
    return path.strip("/")


def _bare(value: Any) -> str:
    """Return the end of a mend for a value that wrongly stands in quotes."""
    return ", without quotes" if isinstance(value, str) else ""


def _take_int(value: Any, rules: Mapping[str, Any]) -> int:
    low, high = rules["low"], rules["high"]
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"{value!r} is no whole number from {low} to {high}; write one{_bare(value)}")
    return value


def _take_bool(value: Any, _rules: Mapping[str, Any]) -> bool:
    if not isinstance(value, bool):
        raise ValueError(  # noqa: TRY004
            f"{value!r} is neither true nor false; write one of the two{_bare(value)}"
        )
    return value


def _take_choice(value: Any, rules: Mapping[str, Any]) -> str:
    if value not in rules["choices"]:
        raise ValueError(
            f"{value!r} is not known; write one of " + ", ".join(f'"{c}"' for c in rules["choices"])
        )
    return str(value)


def _take_user(value: Any, _rules: Mapping[str, Any]) -> str:
    user = _text(value)
    numbers = re.fullmatch(r"([0-9]{1,10}):([0-9]{1,10})", user)
    if numbers is None and re.search(r"[\s:/]|^[0-9-]", user):
        raise ValueError(f"{user!r} is no user; write a user's name, or its numbers as uid:gid")
    if numbers is not None and not all(0 < int(number) < 2**31 for number in numbers.groups()):
        raise ValueError(f"{user!r}: uid and gid go from 1 to {2**31 - 1}; choose ones that are not root's")
    return user


def _take_hostname(value: Any, _rules: Mapping[str, Any]) -> str:
    name = _text(value)
    if not re.fullmatch(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,252})", name):
        raise ValueError(f"{name!r} is no host name; write letters, digits, dots and dashes")
    return name


def _take_addresses(value: Any, rules: Mapping[str, Any]) -> tuple[Address, ...]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple):
        raise ValueError(  # noqa: TRY004
            f'{value!r} is no list of addresses; write ["192.0.2.1:{rules["low"]}"]'
        )
    return tuple(Address.parse(_text(text), rules["low"]) for text in texts)


def _take_users(value: Any, rules: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(_take_user(text, rules) for text in _texts(value, "_smtpd"))


def _texts(value: Any, example: str) -> list[Any]:
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list | tuple):
        raise ValueError(f'{value!r} is no list of texts; write ["{example}"]')  # noqa: TRY004
    return list(value)


def _take_separators(value: Any, _rules: Mapping[str, Any]) -> str:
    if value == "":
        return ""
    marks = _text(value)
    if not re.fullmatch(r"[!#$%&'*+/=?^_`{|}~.-]{1,8}", marks):
        raise ValueError(f'{value!r}: a separator is a mark that may stand in an address; write "+" or "+-"')
    return marks


def _take_certs(value: Any, rules: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    pairs = []
    for text in _texts(value, "/etc/ssl/other.pem:/etc/ssl/private/other.key"):
        chain, colon, key = _text(text).partition(":/")
        pairs.append((_take_path(chain, rules), "/" + key if colon else chain))
    return tuple(pairs)


def _take_networks(value: Any, _rules: Mapping[str, Any]) -> tuple[str, ...]:
    networks = []
    for text in _texts(value, "192.0.2.0/24"):
        try:
            networks.append(str(ip_network(_text(text))))
        except ValueError as error:
            raise ValueError(f"{error}; write 192.0.2.10 or 192.0.2.0/24") from None
    return tuple(networks)


def _take_domains(value: Any, rules: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(_take_domain(text, rules) for text in _texts(value, "example.org"))


def _take_domain(value: Any, _rules: Mapping[str, Any]) -> str:
    domain = _text(value).lower().rstrip(".")
    if "@" in domain or re.search(r"\s", domain):
        raise ValueError(f"{value!r} is no domain; write example.org")
    return domain


def _take_quota(value: Any, _rules: Mapping[str, Any]) -> str:
    """Return a quota as in the first line of Maildir++'s maildirsize: `1073741824S,5000C`; "" for none."""
    if value in ("", "none"):
        return ""
    parts = []
    for part in _text(value).replace(" ", "").split(","):
        found = re.fullmatch(r"([0-9]{1,12})(?:([KMGT]?)S?|(C))", part)
        if found is None or not int(found[1]):
            raise ValueError(f"{value!r} is no quota; write 500M, 2G, or 2G,5000C")
        number = int(found[1]) * 1024 ** " KMGT".index(found[2] or " ")
        parts.append(f"{number}{found[3] or 'S'}")
    return ",".join(parts)


def _take_size(value: Any, _rules: Mapping[str, Any]) -> str:
    """Return a size in octets, as a text; "" for none."""
    found = re.fullmatch(r"([0-9]{1,15})([KMGT]?)", value) if isinstance(value, str) else None
    if value == "":
        return ""
    if found is None:
        raise ValueError(f'{value!r} is no size; write "500M", "2G", or "0" for none')
    return str(int(found[1]) * 1024 ** " KMGT".index(found[2] or " "))


def _take_quotas(value: Any, rules: Mapping[str, Any]) -> tuple[str, ...]:
    quotas = []
    for text in _texts(value, "alice=2G"):
        user, sign, quota = _text(text).rpartition("=")
        if not (sign and user.strip()):
            raise ValueError(f'{text!r} is no user with a quota; write "alice=2G"')
        quotas.append(f"{user.strip()}={_take_quota(quota.strip(), rules)}")
    return tuple(quotas)


_CHECKS: dict[str, Callable[[Any, Mapping[str, Any]], Any]] = {
    "text": _take_text,
    "file": _take_path,
    "directory": _take_path,
    "subdir": _take_subdir,
    "int": _take_int,
    "bool": _take_bool,
    "choice": _take_choice,
    "user": _take_user,
    "hostname": _take_hostname,
    "addresses": _take_addresses,
    "users": _take_users,
    "separators": _take_separators,
    "domain": _take_domain,
    "domains": _take_domains,
    "certs": _take_certs,
    "networks": _take_networks,
    "quota": _take_quota,
    "quotas": _take_quotas,
    "size": _take_size,
}
