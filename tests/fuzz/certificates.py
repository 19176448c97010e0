"""Parse any certificate: the only error is ValueError; names are printable, dates have 14 digits."""

import base64

from popkernel.proto.files.certificates import facts


def one(data):
    """Parse DER; chance would hardly find the PEM around it."""
    try:
        found = facts(
            b"-----BEGIN CERTIFICATE-----\n" + base64.b64encode(data) + b"\n-----END CERTIFICATE-----\n"
        )
    except ValueError:
        return
    assert len(found.starts) == len(found.ends) == 14
    assert (found.starts + found.ends).isdigit()
    assert all(name.isascii() for name in found.names)


SEEDS = [
    bytes.fromhex(
        "303f303d0201013000300030"
        "1e170d3234303232393031303230335a170d3439313233313233353935395a"
        "30003000a3143012301006035504110409300782056d2e61622e"
    ),
]
