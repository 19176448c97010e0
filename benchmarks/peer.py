"""Start the peer for a measurement: Dovecot 2.3 or 2.4 from Debian's packages (dovecot-pop3d).

It has the same maildirs, certificate and hashes, and runs in one of its two documented modes. High
performance: login and mail processes serve many clients each (service_count, process_min_avail), which needs
one uid for all mail. High security: a login process for each connection and a mail process for each session.
Mail users are numeric ids in the users file; Dovecot takes them without a system user. Dovecot's own users
(dovecot, dovenull) come with the packages. Neither server logs sessions: popkernel does not by default, and
Dovecot's log of them goes to /dev/null.
"""

import contextlib
import os
import re
import shutil
import socket
import subprocess

from popkernel.cli.common.sample_site import HOST, free_ports

from benchmarks.server import Server

PROGRAM = "dovecot"
_FAST_LOGIN = "service_count = 0\n process_min_avail = 2\n client_limit = 9000"
_SECURE_LOGIN = "process_min_avail = 8"
_FAST_MAIL = "service_count = 1000\n process_min_avail = 4"
# Settings that Dovecot 2.4 renamed, as patterns over a 2.3 configuration ("Upgrading from 2.3 to 2.4").
_SINCE_2_4 = (
    (r"\A", "dovecot_config_version = 2.4.0\ndovecot_storage_version = 2.4.0\n"),
    (r"(?m)^ssl_(cert|key) *= *<(.*)$", r"ssl_server_\1_file = \2"),
    (r"(?m)^disable_plaintext_auth *= *no$", "auth_allow_cleartext = yes"),
    (r"(?m)^mail_location *= *maildir:(.*)$", r"mail_driver = maildir\nmail_path = \1"),
    (r"service_count *= *0\b", "restart_request_count = unlimited"),
    (r"service_count *= *", "restart_request_count = "),
    (
        r"(passdb|userdb) \{\s*driver *= *passwd-file\s*args *= *username_format=%u (.*)",
        r"\1 passwd-file {\n passwd_file_path = \2",
    ),
    (r"%v-%u", "%{uidvalidity}-%{uid}"),
)
_CONFIGURATION = """\
base_dir = {place}/run
state_dir = {place}/state
log_path = {place}/dovecot.log
info_log_path = /dev/null
protocols = pop3
listen = {host}
ssl = yes
ssl_cert = <{cert}
ssl_key = <{key}
disable_plaintext_auth = no
mail_location = maildir:~
auth_cache_size = 10M
first_valid_uid = 1000
default_process_limit = 15000
mail_max_userip_connections = 0
pop3_lock_session = yes
passdb {{
 driver = passwd-file
 args = username_format=%u {place}/users
}}
userdb {{
 driver = passwd-file
 args = username_format=%u {place}/users
}}
service anvil {{
 client_limit = 19000
}}
service auth {{
 client_limit = 19000
}}
service pop3-login {{
 inet_listener pop3 {{
  port = {plain}
 }}
 inet_listener pop3s {{
  port = {tls}
  ssl = yes
 }}
 {login}
}}
service pop3 {{
 process_limit = 15000
 {mail}
}}
"""


def program():
    """Return the program's path; None if the packages are missing."""
    return shutil.which(PROGRAM, path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


def version():
    """Return the output of `dovecot --version`; "" if there is none."""
    path = program()
    return (
        subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout.strip()
        if path
        else ""
    )


def described():
    """Return version and modes for the head of the results."""
    return f"Dovecot {version() or '–'}, high-performance mode; in B, Bc high-security mode"  # noqa: RUF001


def missing():
    """Say why there is no peer; "" if there is one."""
    if os.geteuid() != 0:
        return "not root, so no Dovecot beside: it wants root to give each service its user"
    if not program() or not os.path.exists("/usr/lib/dovecot/pop3"):
        return "no Dovecot here (Debian: apt install dovecot-pop3d dovecot-lmtpd)"
    if not version().startswith(("2.3.", "2.4.")):
        return f"Dovecot {version()} here; the recipe is written for 2.3 and 2.4"
    return ""


def in_words_of(version, text):
    """Translate a configuration of 2.3 for Dovecot of that version."""
    for pattern, words in _SINCE_2_4 if version.startswith("2.4.") else ():
        text = re.sub(pattern, words, text)
    return text


def configuration(place, *, cert, key, tls, plain, secure):
    """Return dovecot.conf as Dovecot 2.3 reads it."""
    login, mail = (_SECURE_LOGIN, "") if secure else (_FAST_LOGIN, _FAST_MAIL)
    return _CONFIGURATION.format(
        place=place, host=HOST, cert=cert, key=key, tls=tls, plain=plain, login=login, mail=mail
    )


class Peer(Server):
    """Run Dovecot on a site."""

    name = "dovecot"

    def __init__(self, site, *, cost=4, secure=False):
        self.tls, self.plain = free_ports()
        place = os.path.join(site.directory, "dovecot")
        for part in ("run", "state"):
            os.makedirs(os.path.join(place, part), exist_ok=True)
        os.chmod(place, 0o755)
        with open(os.path.join(place, "users"), "w") as file:
            login = f"{{BLF-CRYPT}}{site.hash(cost)}:{site.uid}:{site.gid}"
            file.writelines(f"{name}:{login}::{site.maildir(name)}::\n" for name in site.names)
        conf = os.path.join(place, "dovecot.conf")
        with open(conf, "w") as file:
            text = configuration(
                place, cert=site.cert, key=site.key, tls=self.tls, plain=self.plain, secure=secure
            )
            file.write(in_words_of(version(), text))
        self.launch([program(), "-F", "-c", conf], os.path.join(place, "start.log"), self._greets)

    def _greets(self):
        with contextlib.suppress(OSError), socket.create_connection((HOST, self.plain), 5) as sock:
            return sock.recv(3) == b"+OK"
        return False
