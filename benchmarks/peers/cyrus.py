"""Recipe of Cyrus IMAP's POP3 server: a store of its own, filled over LMTP at its first start."""

import os
import smtplib

from popkernel.cli.common.sample_site import HOST

from benchmarks.mailsite import PARTS
from benchmarks.peers.place import TLS
from benchmarks.peers.recipe import Recipe

_IMAPD = f"""\
configdirectory: /var/lib/cyrus
proc_path: /run/cyrus/proc
mboxname_lockpath: /run/cyrus/lock
defaultpartition: default
partition-default: /var/spool/cyrus/mail
altnamespace: no
unixhierarchysep: no
hashimapspool: true
popminpoll: 0
autocreate_quota: 0
autocreate_post: yes
duplicatesuppression: no
allowplaintext: yes
sasl_pwcheck_method: saslauthd
sasl_saslauthd_path: /run/saslauthd/mux
sasl_mech_list: PLAIN
tls_server_cert: {TLS}/cyrus.pem
tls_server_key: {TLS}/cyrus.pem
tls_session_timeout: 0
tls_eccurve: X25519
"""
_SERVICES = """\
START {{
 recover cmd="/usr/sbin/cyrus ctl_cyrusdb -r"
}}
SERVICES {{
 pop3s cmd="pop3d -s -U 250" listen="{host}:{port}" prefork=20 maxchild=4000
 lmtp cmd="lmtpd -a" listen="{host}:{lmtp}" prefork=0 maxchild=20
}}
EVENTS {{
 checkpoint cmd="/usr/sbin/cyrus ctl_cyrusdb -c" period=30
}}
"""


def _prepare(place):
    place.system_users()
    place.write("/etc/imapd.conf", _IMAPD)
    place.write("/etc/cyrus.conf", _SERVICES.format(host=HOST, port=place.port, lmtp=place.other_port))
    place.write(f"{TLS}/cyrus.pem", place.key + place.cert, 0o600, place.owner("cyrus"))
    for path in ("/var/lib/cyrus", "/var/spool/cyrus"):
        place.bind(path, path)
    # saslauthd with its cache, since popkernel and Dovecot have one of checked passwords too
    return (
        "install -d /run/saslauthd && install -d -o cyrus -g mail /run/cyrus /run/cyrus/proc /run/cyrus/lock "
        "/run/cyrus/socket && saslauthd -a shadow -c -n 5 -m /run/saslauthd && chmod 755 /run/saslauthd && "
        "exec /usr/lib/cyrus/bin/master -p /run/cyrus-master.pid"
    )


def fill(place):
    """Deliver the site's mail to the running server."""
    client = smtplib.LMTP(HOST, place.other_port)
    for name in place.names:
        for part in PARTS[1:]:
            folder = os.path.join(place.site.maildir(name), part)
            for entry in sorted(os.listdir(folder)):
                with open(os.path.join(folder, entry), "rb") as file:
                    # smtplib would end octets that end with LF by one more CRLF
                    client.sendmail("a@example.org", [name], file.read().replace(b"\n", b"\r\n"))
    client.quit()


RECIPES = [
    Recipe(
        key="cyrus",
        name="Cyrus IMAP",
        system="cyrus",
        release="trixie",
        packages=("cyrus-pop3d", "cyrus-common", "sasl2-bin", "libsasl2-modules"),
        program="/usr/lib/cyrus/bin/pop3d",
        language="C",
        separation="one uid, not root, for all processes and all mail; saslauthd checks passwords as root",
        source="https://github.com/cyrusimap/cyrus-imapd/blob/cyrus-imapd-2.5/docsrc/imap/features/sealed-system.rst",
        prepare=_prepare,
        store="its own",
        fill=fill,
        added=True,
    )
]
