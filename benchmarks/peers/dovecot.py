"""Recipes of Dovecot 2.3 and 2.4, each in both documented modes, configured as in benchmarks/peer.py."""

from benchmarks import peer
from benchmarks.peers.place import MAIL, TLS
from benchmarks.peers.recipe import Recipe

_SOURCES = {
    "2.3.": "https://doc.dovecot.org/2.3/admin_manual/login_processes/",
    "2.4.": "https://doc.dovecot.org/2.4.0/core/admin/login_processes.html",
}
_FAST = (
    "login processes in a chroot, without privileges, each for many connections; mail processes (one uid) "
    "serve one user after another"
)
_SECURE = (
    "a login process in a chroot, without privileges, for each connection; a mail process with the user's "
    "uid for each session"
)


def _prepare(series, *, secure):
    def prepare(place):
        login = f"{{BLF-CRYPT}}{place.hash}:{place.site.uid}:{place.site.gid}"
        place.write("/srv/dovecot/users", "".join(f"{n}:{login}::{MAIL}/{n}::\n" for n in place.names))
        place.write("/srv/dovecot/state/kept", "")
        text = peer.configuration(
            "/srv/dovecot",
            cert=f"{TLS}/cert.pem",
            key=f"{TLS}/key.pem",
            tls=place.port,
            plain=place.other_port,
            secure=secure,
        )
        place.write("/srv/dovecot/dovecot.conf", peer.in_words_of(series, text))
        return "exec dovecot -F -c /srv/dovecot/dovecot.conf"

    return prepare


RECIPES = [
    Recipe(
        key=f"dovecot{series[0]}{series[2]}-{mode}",
        name=f"Dovecot, {'high-security' if secure else 'high-performance'} mode",
        system=f"dovecot{series[0]}{series[2]}",
        release=release,
        packages=("dovecot-pop3d",),
        program="/usr/lib/dovecot/pop3",
        language="C",
        separation=_SECURE if secure else _FAST,
        source=_SOURCES[series],
        prepare=_prepare(series, secure=secure),
        version=series,
    )
    for series, release in (("2.3.", "bookworm"), ("2.4.", "trixie"))
    for mode, secure in (("fast", False), ("secure", True))
]
