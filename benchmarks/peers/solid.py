"""Recipe of Solid POP3: TLS by stunnel, users of the system through PAM."""

from benchmarks.peers.place import MAIL, stunnel
from benchmarks.peers.recipe import Recipe

_CONFIGURATION = f"""\
<Global>
	MailDropName "{MAIL}/%s"
	MailDropType maildir
	LogStatistics no
</Global>
"""


def _prepare(place):
    place.system_users()
    place.write("/etc/spop3d.conf", _CONFIGURATION)
    return stunnel(place, "/usr/sbin/solid-pop3d")


RECIPES = [
    Recipe(
        key="solid",
        name="Solid POP3",
        system="solid",
        release="trixie",
        packages=("solid-pop3d", "stunnel4"),
        program="/usr/sbin/solid-pop3d",
        language="C",
        separation="as popa3d: a process with a uid of its own speaks to the client until the login; its "
        "parent, root, then becomes the user's uid",
        source="README, in the package",
        prepare=_prepare,
        tls="stunnel4",
    )
]
