"""Hold a server's mail and configuration, and run it in a Debian system that is not changed.

The system is a directory (systems.sh makes it) or this machine's own root. The server runs in mount and
process namespaces of its own, on an overlay whose upper layer is in memory, and has its mail from outside by
a bind mount. So configuration files may be written over the packages' own, and every process ends with the
namespace.
"""

import contextlib
import os
import signal
import socket
import ssl
import subprocess

from popkernel.cli.common.sample_site import HOST, free_ports

from benchmarks.mailsite import PARTS
from benchmarks.server import Server
from tests.support.processes import tree

MAIL = "/srv/mail"
"""Where the maildirs are in the system."""
TLS = "/srv/tls"
"""Where certificate and key are in the system, as cert.pem, key.pem and both.pem."""

# Arguments: system, the upper layer's files, mount point, the server's line; then outside directory, path ...
_ENTER = """
set -e
system=$0 files=$1 over=$2 line=$3
shift 3
mount -t tmpfs -o mode=755 tmpfs "$over"
mkdir "$over/upper" "$over/work" "$over/root"
cp -a "$files/." "$over/upper/"
mount -t overlay -o "lowerdir=$system,upperdir=$over/upper,workdir=$over/work" overlay "$over/root"
cd "$over/root"
mount -t proc proc proc
mount --rbind /dev dev
mount -t tmpfs -o mode=755 tmpfs run
while [ $# -gt 0 ]; do
    mkdir -p ".$2"
    mount --bind "$1" ".$2"
    shift 2
done
exec chroot . env -i HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 sh -c "$line"
"""


def connect(port, seconds=5.0, version=None):
    """Open a TLS connection to a port of 127.0.0.1, of that TLS version alone if one is given.

    Raises OSError (ssl.SSLError is one).
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if version is not None:
        context.set_ciphers("DEFAULT:@SECLEVEL=0")  # else OpenSSL itself refuses TLS 1.0 and 1.1
        context.minimum_version = context.maximum_version = version
    return context.wrap_socket(socket.create_connection((HOST, port), seconds), server_hostname="localhost")


def installed(root, recipe):
    """Return the version of a recipe's first package in a system; "" if it is not there or does not fit."""
    if not os.path.exists(root + recipe.program):
        return ""
    command = [
        "dpkg-query",
        "--admindir",
        f"{root}/var/lib/dpkg",
        "-W",
        "-f",
        "${Version}",
        recipe.packages[0],
    ]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except OSError:
        return ""
    plain = said.rpartition(":")[2]  # without Debian's epoch
    return plain if plain.startswith(recipe.version) else ""


def root_for(systems, recipe):
    """Return (root, version) of the system that has the recipe's packages; ("", "") if there is none."""
    for root in (os.path.join(systems, recipe.system), ""):
        if version := installed(root, recipe):
            return root or "/", version
    return "", ""


def _give(path, uid, gid):
    if os.geteuid() == 0:
        os.chown(path, uid, gid)


class Place:
    """Hold the directory of one server: its mail, and the files that lie over its system's own."""

    def __init__(self, site, recipe, root):
        self.site, self.root, self.hash = site, root, site.hash(4)
        self.directory = os.path.join(site.directory, "peers", recipe.key)
        self.files = os.path.join(self.directory, "files")
        self.names = site.names[: site.active]
        self.port = self.other_port = 0
        self.binds = {}
        for path in (self.files, os.path.join(self.directory, "over")):
            os.makedirs(path)
        os.chmod(self.directory, 0o711)
        with open(site.cert) as cert, open(site.key) as key:
            self.cert, self.key = cert.read(), key.read()
        for name, text in (("cert", self.cert), ("key", self.key), ("both", self.key + self.cert)):
            self.write(f"{TLS}/{name}.pem", text, 0o600)
        os.chmod(self.files + TLS, 0o755)
        mail = self.bind(MAIL)
        os.chmod(mail, 0o711)
        if recipe.store == "maildir":
            for name in self.names:
                subprocess.run(["cp", "-a", site.maildir(name), mail], check=True)

    def take_ports(self):
        """Choose ports that are free now; another connection may have taken earlier ones."""
        self.port, self.other_port = free_ports()

    def bind(self, path, source=""):
        """Return a directory outside the system that is mounted at `path`; with `source` a copy of that.

        It is kept from one start to the next.
        """
        outside = os.path.join(self.directory, "data" + path.replace("/", "-"))
        if path in self.binds:
            return outside
        self.binds[path] = outside
        if source:
            subprocess.run(["cp", "-a", self.root.rstrip("/") + source, outside], check=True)
        else:
            os.makedirs(outside)
        return outside

    def read(self, path):
        """Return a text file of the system as the packages left it."""
        with open(self.root.rstrip("/") + path) as file:
            return file.read()

    def write(self, path, text, mode=0o644, owner=(0, 0)):
        """Write a file over the system's."""
        outside = self.files + path
        missing = os.path.dirname(outside)
        made = []
        while not os.path.exists(missing):
            made.append(missing)
            missing = os.path.dirname(missing)
        for directory in reversed(made):
            os.mkdir(directory, 0o755)
            inside = self.root.rstrip("/") + directory[len(self.files) :]
            if os.path.isdir(inside):  # the upper layer's directory hides the owner and mode of the lower one
                there = os.stat(inside)
                os.chmod(directory, there.st_mode & 0o7777)
                _give(directory, there.st_uid, there.st_gid)
        with open(outside, "w") as file:
            os.fchmod(file.fileno(), mode)
            _give(outside, *owner)
            file.write(text)

    def owner(self, user):
        """Return (uid, gid) of a user of the system."""
        for line in self.read("/etc/passwd").splitlines():
            name, _, uid, gid, *_ = line.split(":")
            if name == user:
                return int(uid), int(gid)
        raise KeyError(f"no user {user} in {self.root}")

    def system_users(self):
        """Make the mail's users users of the system, with their hash in its shadow file."""
        ids = f"{self.site.uid}:{self.site.gid}"
        self.write(
            "/etc/passwd",
            self.read("/etc/passwd") + "".join(f"{n}:x:{ids}::{MAIL}/{n}:/bin/sh\n" for n in self.names),
        )
        self.write(
            "/etc/shadow",
            self.read("/etc/shadow") + "".join(f"{n}:{self.hash}:20000:0:99999:7:::\n" for n in self.names),
            0o640,
        )
        self.write("/etc/group", self.read("/etc/group") + f"benchmail:x:{self.site.gid}:\n")


class Running(Server):
    """Run a server in its system; `tls` is its port."""

    def __init__(self, recipe, place, line):
        self.name, self.tls = recipe.key, place.port
        argv = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", _ENTER]
        argv += [place.root, place.files, os.path.join(place.directory, "over"), line]
        for path, outside in place.binds.items():
            argv += [outside, path]
        self.launch(argv, os.path.join(place.directory, "start.log"), self._greets)

    def _greets(self):
        try:
            with connect(self.tls) as sock:
                return sock.recv(3) == b"+OK"
        except OSError:
            return False

    def stop(self):
        """End the namespace's first process, and every other one with it; unshare(1) ignores SIGTERM."""
        for pid in tree(self.process.pid)[1:2]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        super().stop()


def stunnel(place, program):
    """Return the line that runs a program for each TLS connection, and write stunnel's configuration."""
    place.write(
        "/etc/stunnel/bench.conf",
        "foreground = yes\nsyslog = no\ndebug = 4\n[pop3s]\n"
        f"accept = {HOST}:{place.port}\ncert = {TLS}/cert.pem\nkey = {TLS}/key.pem\n"
        f"exec = {program}\nexecArgs = {os.path.basename(program)}\n",
    )
    return "exec stunnel4 /etc/stunnel/bench.conf"


def daemons(*lines):
    """Return a line that starts daemons and stays, waiting for processes that they leave."""
    return " && ".join(lines) + " || exit 1; while :; do sleep 60 & wait; done"


def mbox(place, directory):
    """Write each user's mail as an mbox file into a directory, if it is not there."""
    for name in place.names:
        path = os.path.join(directory, name)
        if os.path.exists(path):
            return
        with open(path, "wb") as out:
            for part in PARTS[1:]:
                folder = os.path.join(place.site.maildir(name), part)
                for entry in sorted(os.listdir(folder)):
                    with open(os.path.join(folder, entry), "rb") as file:
                        out.write(b"From a@example.org Mon Nov 23 00:00:00 2026\n" + file.read() + b"\n")
            os.fchmod(out.fileno(), 0o600)
        place.site.own(path)
