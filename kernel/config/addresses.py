"""Parse addresses to listen on: numeric ones, never looked up, into a canonical form."""

import re
import socket
from ipaddress import IPv6Address, ip_address
from typing import NamedTuple

POP3S_PORT = 995
"""POP3 with implicit TLS (RFC 8314 section 3.1)."""
POP3_PORT = 110
"""POP3 with STLS (RFC 1939 section 3, RFC 2595 section 4)."""
LMTP_PORT = 24
"""LMTP has no port of its own: RFC 2033 section 1 rules out 25, and mail servers commonly use 24."""


class Address(NamedTuple):
    """A numeric address and port to listen on; str() gives the canonical `ADDR:PORT` or `[ADDR6]:PORT`."""

    host: str
    """Canonical IPv4 or IPv6 address, the latter without brackets, perhaps with `%zone`."""
    port: int
    """0 to 65535; at 0 the system chooses."""

    @classmethod
    def parse(cls, text: str, default_port: int) -> "Address":
        """Parse `ADDR`, `ADDR:PORT`, `[ADDR6]`, `[ADDR6]:PORT` or a bare IPv6 address.

        Raises:
            ValueError: it is none of these; the text is for people.
        """
        bracketed = re.fullmatch(r"\[([^\[\]]*)\](?::(.*))?", text, re.DOTALL)
        if bracketed:
            host, port = bracketed[1], bracketed[2]
            if ":" not in host:
                raise ValueError(f"{text!r}: brackets are for IPv6 addresses; write ADDR:PORT")
        elif text.count(":") == 1:
            host, port = text.split(":")
        else:
            host, port = text, None
        return cls(_numeric(host, text), default_port if port is None else _port(port, text))

    @property
    def family(self) -> socket.AddressFamily:
        """Return AF_INET or AF_INET6."""
        return socket.AF_INET6 if ":" in self.host else socket.AF_INET

    @property
    def is_loopback(self) -> bool:
        """Return whether only this machine can reach the address."""
        return self.host == "::1" or self.host.startswith("127.")

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _numeric(host: str, text: str) -> str:
    """Return the address `host` in canonical form; `text` is for the error."""
    bare, percent, zone = host.partition("%")
    family = socket.AF_INET6 if ":" in bare else socket.AF_INET
    try:
        canonical = socket.inet_ntop(family, socket.inet_pton(family, bare))
    except (OSError, ValueError):
        mend = "write a numeric address such as 192.0.2.1 or [2001:db8::1]; 0.0.0.0 and [::] mean all"
        raise ValueError(f"{text!r} is no numeric address; {mend}") from None
    if percent and (family == socket.AF_INET or not re.fullmatch(r"[\w.-]{1,15}", zone)):
        raise ValueError(f"{text!r}: only an IPv6 address has a %zone; write for example [fe80::1%eth0]")
    found = ip_address(canonical)
    if isinstance(found, IPv6Address) and found.ipv4_mapped is not None:
        raise ValueError(f"{text!r} is an IPv4 address written as IPv6; write {found.ipv4_mapped}")
    if found.is_link_local and family == socket.AF_INET6 and not percent:
        raise ValueError(
            f"{text!r} is link-local, one on each interface; "
            f"name the interface, for example [{canonical}%eth0]"
        )
    if found.is_multicast or canonical == "255.255.255.255":
        raise ValueError(f"{text!r} is an address of many machines; write one of this machine's own")
    return canonical + percent + zone


def _port(digits: str, text: str) -> int:
    if re.fullmatch(r"[0-9]{1,5}", digits) and int(digits) <= 65535:
        return int(digits)
    raise ValueError(f"{text!r}: the port is no number from 0 to 65535; write ADDR:PORT")
