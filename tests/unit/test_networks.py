"""Test network lists: errors with line and mend, membership, and which part of an address is one client."""

import ipaddress
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from popkernel.proto.access import networks as proto_networks
from popkernel.proto.access.networks import (
    MAX_NETWORKS,
    Networks,
    host_of,
    parse_network,
    parse_networks,
    prefix_of,
    unmapped,
)

V4 = st.ip_addresses(v=4).map(str)
V6 = st.ip_addresses(v=6).map(str)


def test_a_file_with_every_valid_form():
    data = (
        b"# block list\n\n 192.0.2.7 \n198.51.100.0/24\t# a network\n2001:db8::/32\n2001:DB9::1\r\n"
        b"::ffff:203.0.113.0/120"
    )
    networks, findings = parse_networks(data, "blocked")
    assert not findings
    inside = [
        "192.0.2.7",
        "198.51.100.0",
        "198.51.100.255",
        "2001:db8:ffff::",
        "2001:db9::1",
        "203.0.113.9",
        "::ffff:192.0.2.7",
        "2001:db8::1%eth0",
    ]
    outside = [
        "192.0.2.8",
        "198.51.99.255",
        "198.51.101.0",
        "2001:db9::2",
        "::",
        "",
        "localhost",
        "1",
        "192.0.2.7:995",
        "\0",
    ]
    assert [a for a in inside if not networks.contains(a)] == []
    assert [a for a in outside if networks.contains(a)] == []


@pytest.mark.parametrize(
    ("line", "what", "mend"),
    [
        (b"192.0.2", "no address", "192.0.2.7"),
        (b"192.0.2.300", "no address", "192.0.2.7"),
        (b"192.0.2.0/33", "no address", "write"),
        (b"192.0.2.0/24/8", "no number of bits", "/24"),
        (b"192.0.2.0/255.255.255.0", "no number of bits", "/24"),
        (b"192.0.2.0/", "no number of bits", "/24"),
        (b"192.0.2.0/\xb2", "no number of bits", "/24"),
        (b"192.0.2.1/24", "beyond its length", "write 192.0.2.0/24"),
        (b"2001:db8::1/32", "beyond its length", "write 2001:db8::/32"),
        (b"evil.example.org", "no address", "192.0.2.7"),
        (b"192.0.2.1 192.0.2.2", "no address", "192.0.2.7"),
        (b"fe80::1%eth0/64", "beyond its length", "write"),
        (b"\xff\xfe", "no address", "192.0.2.7"),
    ],
)
def test_malformed_lines_are_reported_with_line_and_mend(line, what, mend):
    networks, findings = parse_networks(b"192.0.2.9\n" + line + b"\n", "/etc/blocked")
    assert [(f.path, f.line) for f in findings] == [("/etc/blocked", 2)]
    assert what in findings[0].what and mend in findings[0].mend
    assert networks.contains("192.0.2.9")


def test_findings_and_files_have_bounds():
    findings = parse_networks(b"x\n" * 5000, "f")[1]
    assert len(findings) == 101 and findings[-1].what == "4900 more lines with errors"
    assert "octets" in parse_networks(b"\n" * (MAX_NETWORKS + 1), "f")[1][0].what


@given(st.binary(max_size=200))
def test_no_file_raises(data):
    parse_networks(data, "f")


@given(st.lists(st.tuples(V4 | V6, st.integers(0, 128))), st.lists(V4 | V6, min_size=1))
def test_as_the_standard_library_sees_it(made, asked):
    networks = [
        ipaddress.ip_network(f"{a}/{min(bits, ipaddress.ip_address(a).max_prefixlen)}", strict=False)
        for a, bits in made
    ]
    ours = Networks(parse_network(str(n)) for n in networks)
    mapped = ipaddress.ip_network("::ffff:0:0/96")
    for address in (*asked, *(a for a, _ in made)):
        value = ipaddress.ip_address(address)
        if value.version == 4 or value in mapped:
            continue  # differs on purpose for IPv4 within IPv6; see above
        assert ours.contains(address) == any(value in n for n in networks)
    for address in asked:
        if ":" not in address and not any(n.version == 6 for n in networks):
            assert ours.contains(address) == any(ipaddress.ip_address(address) in n for n in networks)


def test_neighbours_and_overlaps_become_one():
    assert (
        len(
            Networks(
                map(
                    parse_network,
                    ("10.0.0.128/25", "10.0.0.0/25", "10.0.0.7", "10.0.1.0", "10.0.1.2", "::/0", "::1"),
                )
            )
        )
        == 3
    )


def test_quick_to_load_and_to_ask():
    data = b"".join(b"10.%d.%d.%d\n" % (n >> 16, n >> 8 & 255, n & 255) for n in range(0, 200_000, 2))
    began = time.process_time()
    networks, _ = parse_networks(data, "f")
    loaded = time.process_time() - began
    assert len(networks) == 100_000
    began = time.process_time()
    assert sum(networks.contains(f"10.0.0.{n % 256}") for n in range(10_000)) == 5000
    asked = (time.process_time() - began) / 10_000
    assert loaded < 5 and asked < 50e-6, (loaded, asked)


def test_prefixes():
    assert prefix_of("192.0.2.7") == prefix_of("::ffff:192.0.2.7") == "192.0.2.7"
    assert prefix_of("2001:db8:1:2:3::4") == prefix_of("2001:db8:1:2:ffff::") == "2001:db8:1:2::/64"
    assert prefix_of("2001:db8:1:2:3::4", 48) == "2001:db8:1::/48"
    assert prefix_of("2001:db8:1:2:3::4", 128) == "2001:db8:1:2:3::4"
    assert prefix_of("fe80::1%lo") == "fe80::/64"
    assert prefix_of("nothing") == "nothing"


def test_hosts():
    assert host_of("192.0.2.7:995") == "192.0.2.7"
    assert host_of("[2001:db8::1]:995") == "2001:db8::1"
    assert host_of("2001:db8::1") == "2001:db8::1"
    assert host_of("192.0.2.7") == "192.0.2.7"
    assert host_of("") == ""


@pytest.mark.parametrize(
    ("address", "text"),
    [("::ffff:192.0.2.7", "192.0.2.7"), ("::FFFF:c000:207", "192.0.2.7"), ("192.0.2.7", "192.0.2.7"),
     ("fe80::1%eth0", "fe80::1%eth0"), ("2001:db8::1", "2001:db8::1"), ("nowhere", "nowhere")],
)  # fmt: skip
def test_ipv4_in_ipv6_is_written_as_ipv4(address, text):
    assert unmapped(address) == text


def test_remembered_addresses_are_bounded():
    networks = Networks([parse_network("192.0.2.0/24")])
    for i in range(70_000):
        assert networks.contains(f"10.1.{i >> 8 & 255}.{i & 255}%{i}") is False
    assert networks.contains("192.0.2.7")
    for cached in (proto_networks._address, prefix_of):
        assert 0 < cached.cache_info().currsize <= cached.cache_info().maxsize <= 4096
