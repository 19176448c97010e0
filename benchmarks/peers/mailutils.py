"""Recipe of GNU Mailutils' POP3 server, with users of the system."""

from popkernel.cli.common.sample_site import HOST

from benchmarks.peers.place import MAIL, TLS
from benchmarks.peers.recipe import Recipe

# Its own backlog is so small that connections of 20 clients are lost.
_CONFIGURATION = """\
mode daemon;
max-children 4000;
pidfile /run/mu-pop3d.pid;
timeout 600;
auth {{ authentication generic:system; authorization system; }};
mailbox {{ mailbox-type maildir; mailbox-pattern "maildir:{mail}/${{user}}"; }};
tls {{ ssl-certificate-file {tls}/cert.pem; ssl-key-file {tls}/key.pem; }};
tcp-wrappers {{ enable no; }};
server {host}:{port} {{ backlog 1024; tls-mode connection; }};
"""


def _prepare(place):
    place.system_users()
    place.write(
        "/etc/mailutils.conf",
        _CONFIGURATION.format(host=HOST, port=place.port, mail=MAIL, tls=TLS),
    )
    # without the directory each login is answered [IN-USE]
    return (
        "install -d /run/lock && install -d -m 1777 /var/lock/subsys/mail && "
        "exec /usr/sbin/pop3d --daemon --foreground"
    )


RECIPES = [
    Recipe(
        key="mailutils",
        name="GNU Mailutils",
        system="mailutils",
        release="trixie",
        packages=("mailutils-pop3d",),
        program="/usr/sbin/pop3d",
        language="C",
        separation="none documented; seen here: a process for each connection, root until the login, then"
        " with the user's uid",
        source="https://mailutils.org/manual/html_section/pop3d.html",
        prepare=_prepare,
    )
]
