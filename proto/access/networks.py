"""Parse networks, and find out whether an address is in one: the block list, PROXY's trusted networks.

Pure: no name is ever looked up. A file has one address or network a line (`192.0.2.7`, `198.51.100.0/24`,
`2001:db8::/32`). Blanks around it, blank lines, and everything after a `#` are skipped. An IPv4-mapped IPv6
address (`::ffff:192.0.2.7`) counts as that IPv4 address: a dual-stack socket reports IPv4 clients so.
"""

from bisect import bisect_right
from collections.abc import Iterable
from functools import lru_cache
from ipaddress import AddressValueError, IPv4Address, IPv4Network, IPv6Address, IPv6Network, NetmaskValueError

from popkernel.proto.files.tables import MAX_FINDINGS, Finding

__all__ = [
    "MAX_NETWORKS",
    "Network",
    "Networks",
    "host_of",
    "parse_network",
    "parse_networks",
    "prefix_of",
    "unmapped",
    "with_port",
]

MAX_NETWORKS = 16 * 1024 * 1024
"""Octets of a file: over half a million networks. A reader reads at most one octet more."""
Network = IPv4Network | IPv6Network
_MAPPED = IPv6Network("::ffff:0:0/96")


def parse_network(text: str) -> Network:
    """Parse one address or network.

    Raises:
        ValueError: it is neither. The text is "what; mend", as in errors of the configuration.

    """
    host, slash, bits = text.partition("/")
    kind: type[IPv4Network | IPv6Network] = IPv6Network if ":" in host else IPv4Network
    if slash and not (bits.isascii() and bits.isdigit()):
        raise ValueError(
            f"{text!r}: what follows the slash is no number of bits; write for example 192.0.2.0/24"
        )
    try:
        network = kind(text, strict=False)
        exact = not slash or network.network_address == type(network.network_address)(host)
    except (AddressValueError, NetmaskValueError):
        raise ValueError(
            f"{text!r} is no address and no network; write for example 192.0.2.7 or 2001:db8::/32"
        ) from None
    if not exact:
        raise ValueError(f"{text!r} has bits beyond its length; write {network}, or the address alone")
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        return IPv4Network((int(network.network_address) & 0xFFFFFFFF, network.prefixlen - 96))
    return network


def parse_networks(data: bytes, path: str) -> tuple["Networks", list[Finding]]:
    """Parse a file of networks. Never raises: a bad line becomes a finding with its number."""
    findings: list[Finding] = []
    networks: list[Network] = []
    if len(data) > MAX_NETWORKS:
        return Networks(()), [
            Finding(path, 0, f"over {MAX_NETWORKS} octets", "is it the right file? Give a smaller one")
        ]
    unreported = 0
    for number, raw in enumerate(data.split(b"\n"), 1):
        text = raw.partition(b"#")[0].strip(b" \t\r").decode("ascii", "backslashreplace")
        if not text:
            continue
        try:
            networks.append(parse_network(text))
        except ValueError as error:
            what, _, mend = str(error).partition("; ")
            if len(findings) < MAX_FINDINGS:
                findings.append(Finding(path, number, what[:200], mend))
            else:
                unreported += 1
    if unreported:
        findings.append(Finding(path, 0, f"{unreported} more lines with errors", "mend the ones above first"))
    return Networks(networks), findings


class Networks:
    """Look up addresses in a set of networks, kept as sorted ranges: a microsecond or two for any number."""

    __slots__ = ("_ends", "_starts")

    def __init__(self, networks: Iterable[Network]) -> None:
        self._starts: dict[int, list[int]] = {4: [], 6: []}
        self._ends: dict[int, list[int]] = {4: [], 6: []}
        for first, last, version in sorted(
            (int(n.network_address), int(n.broadcast_address), n.version) for n in networks
        ):
            starts, ends = self._starts[version], self._ends[version]
            if ends and first <= ends[-1] + 1:  # overlaps or adjoins the range before
                ends[-1] = max(ends[-1], last)
            else:
                starts.append(first)
                ends.append(last)

    def __len__(self) -> int:
        """Return the number of ranges, adjoining ones merged."""
        return len(self._starts[4]) + len(self._starts[6])

    def contains(self, address: str) -> bool:
        """Say whether an address (without a port) is in one of them. False for a text that is no address."""
        found = _address(address)
        if found is None:
            return False
        value = int(found)
        at = bisect_right(self._starts[found.version], value) - 1
        return at >= 0 and value <= self._ends[found.version][at]


def unmapped(address: str) -> str:
    """Write an address as logs and bans have it: an IPv4-mapped IPv6 address as IPv4, any other as it is."""
    found = _address(address) if ":" in address else None
    return str(found) if isinstance(found, IPv4Address) else address


@lru_cache(4096)  # four calls a connection, and the same few addresses return
def prefix_of(address: str, ipv6_bits: int = 64) -> str:
    """Return what counts as one client: an IPv4 address, or the first `ipv6_bits` bits of an IPv6 address.

    A text that is no address is returned unchanged.
    """
    found = _address(address)
    if found is None:
        return address
    if isinstance(found, IPv4Address) or ipv6_bits >= 128:
        return str(found)
    return f"{IPv6Address(int(found) >> (128 - ipv6_bits) << (128 - ipv6_bits))}/{ipv6_bits}"


def host_of(address: str) -> str:
    """Return the host of `192.0.2.7:995` or `[2001:db8::1]:995`; without a port, the address itself."""
    if address.startswith("["):
        return address[1:].partition("]")[0]
    host, _, rest = address.partition(":")
    return address if ":" in rest else host


def with_port(host: str, port: int) -> str:
    """Return `192.0.2.7:995` or `[2001:db8::1]:995`, of which `host_of` returns the host."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


# Cached: each connection's address is looked up in the trusted proxies and in the block list, and parsing
# takes longer than the look-up.
@lru_cache(4096)
def _address(text: str) -> IPv4Address | IPv6Address | None:
    """Parse an address, its zone (`fe80::1%eth0`) left out; an IPv4-mapped IPv6 address becomes IPv4."""
    try:
        if ":" not in text:
            return IPv4Address(text)
        found = IPv6Address(text.partition("%")[0])
    except AddressValueError:
        return None
    return found.ipv4_mapped or found
