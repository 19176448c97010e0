"""Recipe of Courier's POP3 server, with users in its userdb."""

import re

from popkernel.cli.common.sample_site import HOST

from benchmarks.peers.place import MAIL, daemons
from benchmarks.peers.recipe import Recipe

_SETTINGS = {
    "authdaemonrc": {"authmodulelist": '"authuserdb"'},
    "pop3d": {"MAXDAEMONS": "4000", "MAXPERIP": "4000"},
    "pop3d-ssl": {"SSLADDRESS": HOST, "TLS_CERTFILE": "/etc/courier/bench.pem"},
}


def _prepare(place):
    user = place.owner("courier")
    settings = {**_SETTINGS, "pop3d-ssl": {**_SETTINGS["pop3d-ssl"], "SSLPORT": str(place.port)}}
    for name, values in settings.items():
        text = place.read(f"/etc/courier/{name}")
        for key, value in values.items():
            text = re.sub(rf"(?m)^{key}=.*$", f"{key}={value}", text)
        place.write(f"/etc/courier/{name}", text)
    place.write("/etc/courier/bench.pem", place.key + place.cert, 0o600, user)
    ids = f"uid={place.site.uid}|gid={place.site.gid}"
    place.write(
        "/etc/courier/userdb",
        "".join(f"{n}\t{ids}|home={MAIL}/{n}|mail={MAIL}/{n}|systempw={place.hash}\n" for n in place.names),
        0o600,
    )
    return daemons(
        "makeuserdb",
        "install -d -o courier -g courier /run/courier /run/courier/authdaemon",
        "/usr/sbin/authdaemond start",
        "/usr/sbin/pop3d-ssl start",
    )


RECIPES = [
    Recipe(
        key="courier",
        name="Courier",
        system="courier",
        release="trixie",
        packages=("courier-pop", "courier-authdaemon", "courier-authlib-userdb"),
        program="/usr/lib/courier/courier/courierpop3d",
        language="C++",
        separation="for each connection a TLS process with Courier's uid and a login process that, once a"
        " daemon has checked the password, becomes the user's uid and runs the mail server",
        source="courierpop3d(8), couriertls(1)",
        prepare=_prepare,
    )
]
