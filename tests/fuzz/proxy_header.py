"""Parse any PROXY header: the only error is ProxyError; fragmentation changes nothing; length is right."""

from ipaddress import ip_address

from popkernel.proto.pop3.proxy_header import MOST, Header, ProxyError, crc32c, parse

V2 = b"\r\n\r\n\0\r\nQUIT\n"


def result(data):
    try:
        return parse(data)
    except ProxyError as error:
        assert len(str(error)) < 120
        return str(error)


def one(data):
    whole = result(data)
    if whole is None:
        assert len(data) < MOST
    if isinstance(whole, Header):
        assert 0 < whole.octets <= min(len(data), MOST)
        assert 0 <= whole.port < 65536
        assert whole.address == "" or str(ip_address(whole.address)) == whole.address
        assert result(data[: whole.octets]) == whole
        assert result(data[: whole.octets] + b"\r\nPROXY ") == whole
        for end in range(min(whole.octets, 64)):
            assert result(data[:end]) is None
    elif len(data) > 1 and whole is None:
        assert result(data[:-1]) is None


def _checked(body):
    octets = V2 + b"\x21\x11" + (len(body) + 7).to_bytes(2, "big") + body + b"\x03\x00\x04" + bytes(4)
    return octets[:-4] + crc32c(octets).to_bytes(4, "big")


SEEDS = [
    b"PROXY TCP4 192.0.2.7 192.0.2.1 51234 995\r\nCAPA\r\n",
    b"PROXY TCP6 2001:db8::7 ::1 51234 995\r\n",
    b"PROXY UNKNOWN ffff:: 1\r\n",
    V2 + b"\x21\x11\x00\x0c\xc0\x00\x02\x07\xc0\x00\x02\x01\xc8\x22\x03\xe3",
    V2 + b"\x20\x00\x00\x00",
    V2 + b"\x21\x21\x00\x27" + bytes(36) + b"\x04\x00\x00",
    _checked(b"\xc0\x00\x02\x07\xc0\x00\x02\x01\xc8\x22\x03\xe3"),
]
