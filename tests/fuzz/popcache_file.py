"""Parse any popcache: no error; each accepted line is one that popkernel could write; others are counted."""

from popkernel.proto.files.popcache import format_line, parse, parse_header, parse_line


def one(data):
    cache = parse(data)
    parse_header(data)
    assert len(cache.names) == len(cache.sizes) == len(cache.uidls)
    assert len(set(cache.names)) == len(cache.names)
    assert len(set(cache.uidls)) == len(cache.uidls)
    assert cache.refused >= 0
    assert len(cache.names) + cache.refused + cache.removed <= data.count(b"\n") + 2
    again = b""
    for name, octets, uidl in zip(cache.names, cache.sizes, cache.uidls, strict=True):
        line = format_line(name, octets, uidl)
        assert parse_line(line[:-1]) == (name, octets, uidl), line
        assert 1 <= len(uidl) <= 70
        assert all(0x21 <= octet <= 0x7E for octet in uidl)
        assert octets >= 0
        again += line
    second = parse(again)
    assert (second.names, list(second.sizes), second.uidls) == (cache.names, list(cache.sizes), cache.uidls)
    assert second.refused == second.removed == 0


UIDL = b"0123456789abcdef" * 4
SEEDS = [
    b"1.a 800 " + UIDL + b"\n2.b 0 x\n10.c 1099511627776 " + UIDL[:-1] + b"!\n",
    b"#.a 800 " + UIDL + b"\n1.a 5 u\n1.a 5 u\n2.b 5 u\n\n1.a  5 u\n1.a 05 u\n1.a -1 u\nhalf a li",
]
