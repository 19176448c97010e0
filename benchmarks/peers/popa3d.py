"""Recipe of Openwall's popa3d: mbox only, TLS by stunnel, users of the system through PAM."""

from benchmarks.peers.place import mbox, stunnel
from benchmarks.peers.recipe import Recipe


def _prepare(place):
    place.system_users()
    spool = place.bind("/var/mail")
    place.site.own(spool)
    mbox(place, spool)
    return stunnel(place, "/usr/sbin/popa3d")


RECIPES = [
    Recipe(
        key="popa3d",
        name="popa3d",
        system="popa3d",
        release="trixie",
        packages=("popa3d", "stunnel4"),
        program="/usr/sbin/popa3d",
        language="C",
        separation="for each connection a process with a uid of its own speaks to the client until the "
        "login, another checks the password; their parent, root, then becomes the user's uid",
        source="DESIGN, in the package",
        prepare=_prepare,
        tls="stunnel4",
        store="mbox",
    )
]
