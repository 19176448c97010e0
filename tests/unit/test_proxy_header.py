"""Test PROXY headers: the specification's examples, whole and octet by octet, and arbitrary octets."""

import socket
import struct
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from popkernel.actors.listener.proxy_header_reader import Proxied
from popkernel.proto.pop3.proxy_header import MOST, Header, ProxyError, crc32c, parse

SIGNATURE = b"\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a"


def v2(command=0x21, kind=0x11, body=b"", length=None):
    return (
        SIGNATURE + bytes((command, kind)) + struct.pack("!H", len(body) if length is None else length) + body
    )


def tcp4(source="192.0.2.7", port=51234):
    return IPv4Address(source).packed + IPv4Address("192.0.2.1").packed + struct.pack("!HH", port, 995)


def tcp6(source="2001:db8::7", port=51234):
    return IPv6Address(source).packed + IPv6Address("2001:db8::1").packed + struct.pack("!HH", port, 995)


def tlv(kind, value):
    return struct.pack("!BH", kind, len(value)) + value


def checked(body, wrong=0):
    """Append a correct checksum to the header of `body`, or one that is off by `wrong`."""
    octets = v2(body=body + tlv(3, bytes(4)))
    return octets[:-4] + struct.pack("!I", crc32c(octets) ^ wrong)


# The lines of the specification's section 2.1, worst cases included, and what section 2.2 describes.
GOOD = [
    (b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n", "255.255.255.255", 65535),
    (b"PROXY TCP6 ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n".replace(b"f...f:",
    b"ffff:ffff:ffff:ffff:ffff:ffff:"),
     ":".join(["ffff"] * 8), 65535),
    (b"PROXY UNKNOWN\r\n", "", 0),
    (b"PROXY UNKNOWN " + b" ".join([b":".join([b"ffff"] * 8)] * 2) + b" 65535 65535\r\n", "", 0),
    (b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n", "192.168.0.1", 56324),
    (b"PROXY TCP6 2001:DB8::1 ::1 0 443\r\n", "2001:db8::1", 0),
    (v2(body=tcp4()), "192.0.2.7", 51234),
    (v2(kind=0x21, body=tcp6()), "2001:db8::7", 51234),
    (v2(body=tcp4() + tlv(4, b"\0" * 20) + tlv(0x20, b"\x01\0\0\0\0")), "192.0.2.7", 51234),
    (v2(0x20, 0, b""), "", 0),
    (v2(0x20, 0x77, b"any \xff thing"), "", 0),
    (v2(0x21, 0, b""), "", 0),
    (v2(0x21, 0x31, b"\0" * 216), "", 0),
    (checked(tcp4()), "192.0.2.7", 51234),
    (v2(body=tcp4() + tlv(4, bytes(MOST - 16 - 12 - 3))), "192.0.2.7", 51234),
]  # fmt: skip


@pytest.mark.parametrize(("octets", "address", "port"), GOOD)
@pytest.mark.parametrize("behind", [b"", b"\x16\x03\x01", b"CAPA\r\n", b"\r\n"])
def test_headers_whole_and_octet_by_octet(octets, address, port, behind):
    assert parse(octets + behind) == Header(len(octets), address, port)
    for end in range(len(octets)):
        assert parse(octets[:end]) is None


def test_the_longest_of_version_1_is_taken_and_one_octet_more_is_not():
    assert len(GOOD[3][0]) == 107
    assert parse(GOOD[3][0]) == Header(107, "", 0)
    with pytest.raises(ProxyError, match="107"):
        parse(b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n")


BAD = [
    b"CAPA\r\n", b"\x16\x03\x01\x02\x00", b"proxy TCP4 1.1.1.1 1.1.1.1 1 1\r\n", b"PROXYTCP4 ", b"PROXY \r\n",
    b"PROXY TCP4\r\n",
    b"PROXY TCP5 1.1.1.1 1.1.1.1 1 1\r\n", b"PROXY TCP4 1.1.1.1 1.1.1.1 1\r\n",
    b"PROXY TCP4 1.1.1.1 1.1.1.1 1 1 \r\n",
    b"PROXY  TCP4 1.1.1.1 1.1.1.1 1 1\r\n", b"PROXY TCP4 1.1.1 1.1.1.1 1 1\r\n",
    b"PROXY TCP4 01.1.1.1 1.1.1.1 1 1\r\n",
    b"PROXY TCP4 1.1.1.1 1.1.1.x 1 1\r\n", b"PROXY TCP4 ::1 ::1 1 1\r\n",
    b"PROXY TCP6 1.1.1.1 1.1.1.1 1 1\r\n",
    b"PROXY TCP6 fe80::1%eth0 ::1 1 1\r\n", b"PROXY TCP4 1.1.1.1 1.1.1.1 65536 1\r\n",
    b"PROXY TCP4 1.1.1.1 1.1.1.1 1 -1\r\n",
    b"PROXY TCP4 1.1.1.1 1.1.1.1 01 1\r\n", b"PROXY TCP4 1.1.1.1 1.1.1.1 1 \xb2\r\n",
    b"PROXY TCP4 1.1.1.\xff 1.1.1.1 1 1\r\n",
    b"PROXY UNKNOWN\n", b"PROXY UNK\rNOWN\r\n", b"PROXY UNKNOWN1\r\n", (
        b"PROXY UNKNOWN a\rb\r\n"
    ), b"PROXY UNKNOWN a\nb\r\n", b"PROXY " + b"x" * 101,
    SIGNATURE[:-1] + b"\r", SIGNATURE[:11] + b"X", v2(0x11, body=tcp4()), v2(0x31, body=tcp4()),
    v2(0x22, body=tcp4()), v2(0x2F),
    v2(kind=0x13, body=tcp4()), v2(kind=0x41, body=tcp4()), v2(kind=0x10, body=tcp4()),
    v2(kind=0x12, body=tcp4()),
    v2(kind=0x22, body=tcp6()), v2(body=tcp4()[:-1]), v2(kind=0x21, body=tcp4()), v2(kind=0x31, body=b"/x"),
    v2(length=MOST - 15),
    v2(length=65535), v2(body=tcp4() + b"\x04"), v2(body=tcp4() + b"\x04\x00\x09xx"),
    v2(body=tcp4() + tlv(3, b"\0\0\0")),
    checked(tcp4(), wrong=1), checked(tcp4() + tlv(4, b"seven"), wrong=1 << 31),
]  # fmt: skip


@pytest.mark.parametrize("octets", BAD)
def test_malformed_headers_are_refused_and_not_quoted(octets):
    with pytest.raises(ProxyError) as caught:
        parse(octets)
    assert len(str(caught.value)) < 100


def test_the_checksum_is_castagnolis():
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720 appendix B.4
    assert crc32c(b"\xff" * 32) == 0x62A8AB43


@given(
    st.one_of(
        st.binary(max_size=600),
        st.binary(max_size=120).map(lambda b: b"PROXY TCP4 " + b + b"\r\n"),
        st.binary(max_size=600).map(lambda b: SIGNATURE + b),
    )
)
def test_whatever_comes_is_taken_refused_or_waited_for(data):
    try:
        header = parse(data)
    except ProxyError:
        return
    if header is None:
        assert len(data) < MOST
    else:
        assert header.octets <= len(data)
        assert parse(data[: header.octets]) == header


@given(st.ip_addresses(v=4), st.integers(0, 65535), st.booleans())
def test_addresses_come_back_as_they_were(address, port, text):
    octets = (
        f"PROXY TCP4 {address} 192.0.2.1 {port} 995\r\n".encode()
        if text
        else v2(body=tcp4(str(address), port))
    )
    assert parse(octets) == Header(len(octets), str(address), port)


@given(st.ip_addresses(v=6), st.integers(0, 65535), st.booleans())
def test_addresses_of_version_6_come_back_as_they_were(address, port, text):
    octets = (
        f"PROXY TCP6 {address} ::1 {port} 995\r\n".encode()
        if text
        else v2(kind=0x21, body=tcp6(str(address), port))
    )
    assert parse(octets) == Header(len(octets), str(address), port)


@pytest.mark.parametrize("cut", [0, 5, 16, 28])
def test_read_header_leaves_the_following_octets_in_the_socket(cut):
    octets = checked(tcp4())
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        proxied = Proxied(ours)
        assert proxied.ready() is None
        if cut:
            theirs.send(octets[:cut])
            assert proxied.ready() is None
            with pytest.raises(BlockingIOError):
                ours.recv(1, socket.MSG_PEEK)  # an incomplete header is consumed, or the loop would spin
        theirs.send(octets[cut:] + b"\x16\x03\x01")
        assert proxied.ready() == Header(len(octets), "192.0.2.7", 51234)
        assert ours.recv(100) == b"\x16\x03\x01"


def test_a_connection_that_ends_in_its_header_is_an_error():
    ours, theirs = socket.socketpair()
    with ours:
        proxied = Proxied(ours)
        theirs.send(b"PROXY TC")
        assert proxied.ready() is None
        theirs.close()
        with pytest.raises(ProxyError):
            proxied.ready()
