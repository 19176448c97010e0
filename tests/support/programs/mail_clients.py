"""Run other POP3 clients, each to fetch a whole mailbox, and say how each changes a message.

Every client is set to change as little as it can. What it changes all the same is in `stored_by`, with the
reason. `auth` names the login method in the client's own terms; AUTHENTICATIONS lists the methods that both
sides know. `secret` is a password or a token.
"""

import contextlib
import fcntl
import os
import poplib
import pty
import re
import shutil
import ssl
import struct
import subprocess
import sys
import termios
import threading

from tests.support import awkward
from tests.support.pop3 import RawPop3

LINE = 1 << 21  # octets: poplib refuses lines over 2048 by default
_FETCHMAIL_LINE = 8000
_SYLPHEED_LINE = 8000
# getmail sets its own limit of 1 MB at import.
_GETMAIL = (
    "import getmailcore.retrievers, poplib, runpy, sys; poplib._MAXLINE = 1 << 21; sys.argv[0] = {0!r}; "
    "runpy.run_path({0!r}, run_name='__main__')"
)


_PERL = """
use Net::POP3;
my ($host, $port, $mode, $ca, $user, $out, $count) = @ARGV;
my @tls = (SSL_ca_file => $ca, SSL_verifycn_name => "localhost");
my $pop = Net::POP3->new($host, Port => $port, Timeout => 60, $mode eq "tls" ? (SSL => 1, @tls) : ())
    or die "no connection: $@";
$mode eq "tls" or $pop->starttls(@tls) or die "no STLS: " . $pop->message;
defined $pop->login($user, "secret") or die "no login: " . $pop->message;
for my $n (1 .. $count) { open my $file, ">:raw", "$out/$n" or die; $pop->get($n, $file)
    or die "no message $n"; close $file; }
$pop->quit;
"""
_RUBY = """
require "net/pop"
# It takes no line end that came in two reads for one (net-protocol 0.2.2): so none does.
Net::BufferedIO.prepend(Module.new { private def rbuf_fill; super; super while @rbuf.end_with?("\\r"); end })
host, port, ca, user, out = ARGV
pop = Net::POP3.new(host, port.to_i)
pop.enable_ssl(OpenSSL::SSL::VERIFY_PEER, ca)
pop.start(user, "secret")
pop.mails.each { |mail| File.binwrite("#{out}/#{mail.number}", mail.pop) }
pop.finish
"""
_MUTT = """
set pop_host="{scheme}://{host}:{port}" pop_user={user} pop_pass=secret pop_delete=no pop_last=no
set ssl_starttls=yes ssl_force_tls=yes certificate_file="{ca}" ssl_ca_certificates_file="{ca}"
set folder="{tmp}" spoolfile="{tmp}/m" mbox_type=Maildir quit=yes wait_key=no
push "<fetch-mail><exit>"
"""

_ACCOUNT = """
[Account: 1]
account_name={user}
is_default=1
name={user}
address={user}@localhost
protocol=0
receive_server=localhost
smtp_server=localhost
user_id={user}
password=secret
inbox={inbox}
remove_mail=0
getall_mail=1
get_all_mail=1
enable_filter_on_receive=0
filter_on_receive=0
receive_at_getall=1
set_popport=1
pop_port={port}
ssl_pop={ssl}
ssl_certs_auto_accept=1
"""
_FOLDERS = """<?xml version="1.0" encoding="UTF-8"?>
<folderlist><folder type="mh" name="Mailbox" path="Mail">{items}</folder></folderlist>
"""
_FOLDER_OF = {"inbox": "inbox", "outbox": "sent", "draft": "draft", "queue": "queue", "trash": "trash"}


def raw(service, user, mode, _tmp, count):
    """Fetch with a raw socket."""
    with RawPop3(service, mode, user=user, timeout=60) as client:
        found = [client.many(b"RETR %d" % n) for n in range(1, count + 1)]
        assert client.ask(b"QUIT") == b"+OK bye\r\n"
        assert client.end() == b""
    return found


def with_poplib(service, user, mode, _tmp, count):
    """Fetch with Python's poplib."""
    context = ssl.create_default_context(cafile=service.site.cert)
    if mode == "tls":
        client = service.keep(
            poplib.POP3_SSL(service.tls.host, service.tls.port, context=context, timeout=60)
        )
    else:
        client = service.keep(poplib.POP3(service.plain.host, service.plain.port, timeout=60))
        client.stls(context)
    before, poplib._MAXLINE = poplib._MAXLINE, LINE
    try:
        client.user(user)
        client.pass_("secret")
        found = [b"".join(line + b"\r\n" for line in client.retr(n)[1]) for n in range(1, count + 1)]
        client.quit()
    finally:
        poplib._MAXLINE = before
    return found


def curl(service, user, mode, tmp, count, auth="", secret="secret"):
    """Fetch all messages on one connection. `auth`: further options."""
    address, scheme = (service.tls, "pop3s") if mode == "tls" else (service.plain, "pop3")
    who = (
        ["--user", user, "--oauth2-bearer", secret]
        if "OAUTHBEARER" in auth
        else ["--user", f"{user}:{secret}"]
    )
    command = ["curl", "-sS", "-q", "--ssl-reqd", "--cacert", service.site.cert, *who, *auth.split()]
    for n in range(1, count + 1):
        command += [f"{scheme}://{address}/{n}", "-o", str(tmp / f"{n}")]
        (tmp / f"{n}").write_bytes(b"")  # curl makes no file for an empty message
    _run(command)
    return [(tmp / f"{n}").read_bytes() for n in range(1, count + 1)]


def mpop(service, user, mode, tmp, count, auth="user", secret="secret"):
    """Fetch into a maildir."""
    del count
    address = service.tls if mode == "tls" else service.plain
    for part in ("cur", "new", "tmp"):
        (tmp / "m" / part).mkdir(parents=True)
    _run(
        [
            "mpop",
            "-C",
            "/dev/null",
            f"--host={address.host}",
            f"--port={address.port}",
            f"--user={user}",
            f"--passwordeval=echo {secret}",
            f"--auth={auth}",
            "--tls=on",
            f"--tls-starttls={'off' if mode == 'tls' else 'on'}",
            f"--tls-trust-file={service.site.cert}",
            "--received-header=off",
            "--keep=on",
            "--quiet",
            f"--delivery=maildir,{tmp}/m",
            f"--uidls-file={tmp}/uidls",
        ]
    )
    return [path.read_bytes() for path in (tmp / "m" / "new").iterdir()]


def fetchmail(service, user, mode, tmp, count, auth="any", secret="secret"):
    """Fetch and pass each message to a shell.

    Without an ssl option, a login that requires TLS uses STLS.
    """
    del count
    address = service.tls if mode == "tls" else service.plain
    (tmp / "out").mkdir()
    rc = tmp / "fetchmailrc"
    rc.write_text(
        f"set invisible\npoll {address.host} service {address.port} protocol pop3 auth {auth} user {user} "
        f"password {secret} "
        f"{'ssl' if mode == 'tls' else 'sslproto TLS1.3+'} sslcertfile {service.site.cert} sslcertck "
        f"sslcommonname localhost "
        f"keep no rewrite no stripcr pass8bits mda \"sh -c 'cat > {tmp}/out/$$'\"\n",
    )
    rc.chmod(0o600)
    _run(
        [
            "fetchmail",
            "-f",
            str(rc),
            "--fetchall",
            "--nosyslog",
            "--silent",
            "--pidfile",
            f"{tmp}/pid",
            "--idfile",
            f"{tmp}/ids",
        ],
        env={**os.environ, "HOME": str(tmp), "FETCHMAILHOME": str(tmp)},
    )
    return [path.read_bytes() for path in (tmp / "out").iterdir()]


def getmail(service, user, mode, tmp, count, auth="", secret="secret"):
    """Fetch and pass each message to a shell, as getmail as root writes to no maildir.

    It does not know STLS.
    """
    del count, mode
    address = service.tls
    (tmp / "out").mkdir()
    rc = tmp / "getmailrc"
    rc.write_text(
        f"[retriever]\ntype = SimplePOP3SSLRetriever\nserver = {address.host}\nport = {address.port}\n"
        f"username = {user}\npassword = {secret}\nca_certs = {service.site.cert}\n{auth}\n"
        f'[destination]\ntype = MDA_external\npath = /bin/sh\narguments = ("-c", "cat > {tmp}/out/$$")\n'
        f"allow_root_commands = true\n"
        "[options]\ndelivered_to = false\nreceived = false\nread_all = true\ndelete = false\nverbose = 0\n",
    )
    script = _GETMAIL.format(os.path.join(os.path.dirname(sys.executable), "getmail"))
    _run([sys.executable, "-c", script, "--getmaildir", str(tmp), "--rcfile", str(rc)], ok=(0, 127))
    return [path.read_bytes() for path in (tmp / "out").iterdir()]


def perl(service, user, mode, tmp, count):
    """Fetch with Net::POP3."""
    address = service.tls if mode == "tls" else service.plain
    _run(
        [
            "perl",
            "-e",
            _PERL,
            address.host,
            str(address.port),
            mode,
            service.site.cert,
            user,
            str(tmp),
            str(count),
        ]
    )
    return [(tmp / f"{n}").read_bytes() for n in range(1, count + 1)]


def ruby(service, user, mode, tmp, count):
    """Fetch with net/pop. It does not know STLS."""
    del mode
    address = service.tls
    _run(["ruby", "-e", _RUBY, address.host, str(address.port), service.site.cert, user, str(tmp)])
    return [(tmp / f"{n}").read_bytes() for n in range(1, count + 1)]


def s_nail(service, user, mode, tmp, count):
    """Copy all messages into an mbox."""
    del count
    address, scheme = (service.tls, "pop3s") if mode == "tls" else (service.plain, "pop3")
    (tmp / "rc").write_text(
        (
            f"set v15-compat tls-ca-no-defaults tls-ca-file={service.site.cert} tls-verify=strict\n"
            f"{'' if mode == 'tls' else 'set pop3-use-starttls'}\n"
        ),
    )
    where = f"{scheme}://{user}:secret@localhost:{address.port}"
    environment = {**os.environ, "HOME": str(tmp), "MAILRC": str(tmp / "rc")}
    _run(
        ["s-nail", "-#", "-:u", "-R", "-f", where],
        env=environment,
        said=f"copy * mbox://{tmp}/box\nxit\n".encode(),
    )
    return [
        _one_last_newline(message)
        for message in re.split(rb"(?m)^From \S+ .*:\d\d \d{4}\n", (tmp / "box").read_bytes())[1:]
    ]


def mutt(service, user, mode, tmp, count):
    """Fetch into a maildir. It needs a terminal."""
    del count
    address, scheme = (service.tls, "pops") if mode == "tls" else (service.plain, "pop")
    for part in ("cur", "new", "tmp"):
        (tmp / "m" / part).mkdir(parents=True)
    (tmp / "rc").write_text(
        _MUTT.format(
            scheme=scheme, host="localhost", port=address.port, user=user, ca=service.site.cert, tmp=tmp
        )
    )
    master, slave = pty.openpty()
    # ncurses rejects a terminal without lines
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    shown = []
    reader = threading.Thread(target=_read_all, args=(master, shown))
    reader.start()
    try:
        command = ["mutt", "-n", "-F", str(tmp / "rc"), "-f", str(tmp / "m")]
        environment = {**os.environ, "HOME": str(tmp), "TERM": "vt100"}
        done = subprocess.run(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            timeout=120,
            check=False,
            env=environment,
            start_new_session=True,
        )
    finally:
        os.close(slave)
        reader.join()
        os.close(master)
    assert done.returncode == 0, b"".join(shown)[-2000:]
    return [path.read_bytes() for part in ("cur", "new") for path in (tmp / "m" / part).iterdir()]


def _read_all(master, shown):
    try:
        while part := os.read(master, 65536):
            shown.append(part)
    except OSError:  # the other end is closed
        pass


def sylpheed(service, user, mode, tmp, count):
    """Fetch with a graphical client; return its inbox after it has quit."""
    return _on_a_screen(service, user, mode, tmp, "sylpheed", ".sylpheed-2.0", "inbox", "--exit")


def claws(service, user, mode, tmp, count):
    """Fetch with Claws, which derives from Sylpheed."""
    return _on_a_screen(service, user, mode, tmp, "claws-mail", ".claws-mail", "#mh/Mailbox/inbox", "--quit")


def _on_a_screen(service, user, mode, tmp, program, home, inbox, leave):
    address, ssl_pop = (service.tls, 1) if mode == "tls" else (service.plain, 2)
    place = tmp / home
    place.mkdir()
    for folder in _FOLDER_OF.values():
        (tmp / "Mail" / folder).mkdir(parents=True)
    (place / "accountrc").write_text(
        _ACCOUNT.format(user=user, port=address.port, inbox=inbox, ssl=ssl_pop).lstrip()
    )
    (place / "clawsrc").write_text("[Common]\nskip_ssl_cert_check=1\nunsafe_ssl_certs=1\n")
    items = "".join(
        f'<folderitem type="{kind}" name="{name}" path="{name}"/>' for kind, name in _FOLDER_OF.items()
    )
    (place / "folderlist.xml").write_text(_FOLDERS.format(items=items))
    shutil.copy(service.site.cert, place / "certs.crt")
    over = f"why=quit user={user} "
    before = service.read_log().count(over)
    with _screen() as display:
        environment = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "HOME": str(tmp), "DISPLAY": display}
        with (
            open(tmp / "said", "wb") as said,
            subprocess.Popen(
                [program, "--receive-all"], env=environment, stdout=said, stderr=said
            ) as running,
        ):
            try:
                service.wait_log(over, count=before + 1, seconds=120)
                subprocess.run(
                    [program, leave], env=environment, check=True, timeout=60, stdout=said, stderr=said
                )
                running.wait(60)
            except (AssertionError, subprocess.SubprocessError) as error:
                raise AssertionError((tmp / "said").read_text(errors="replace")[-2000:]) from error
            finally:
                running.kill()
    return [path.read_bytes() for path in (tmp / "Mail/inbox").iterdir() if path.name.isdigit()]


@contextlib.contextmanager
def _screen():
    """Start X11 without a screen; return the value for DISPLAY."""
    command = ["Xvfb", "-displayfd", "1", "-screen", "0", "800x600x24", "-nolisten", "tcp"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            yield f":{server.stdout.readline().strip()}"
        finally:
            server.terminate()


def _one_last_newline(message):
    return message.rstrip(b"\n") + b"\n"


def _run(command, *, ok=(0,), env=None, said=b""):
    result = subprocess.run(command, capture_output=True, timeout=120, check=False, env=env, input=said)
    assert result.returncode in ok, (result.returncode, result.stdout[-500:], result.stderr[-1000:])


def missing(name):
    """Return the Debian or pip package that a client needs; "" if it is installed."""
    if name in ("curl", "fetchmail", "mpop", "mutt", "ruby", "s-nail"):
        return "" if shutil.which(name) else name
    if name in DESKTOP:
        programs = {"claws": "claws-mail"}.get(name, name), "Xvfb"
        return (
            ""
            if all(map(shutil.which, programs))
            else f"{programs[0]} or xvfb (sh tests/packages.sh desktop)"
        )
    if name == "perl":
        there = (
            shutil.which(name)
            and not subprocess.run(
                [name, "-MIO::Socket::SSL", "-MNet::POP3", "-e1"], capture_output=True, check=False
            ).returncode
        )
        return "" if there else "libio-socket-ssl-perl"
    if name == "getmail":
        return (
            ""
            if os.path.exists(os.path.join(os.path.dirname(sys.executable), "getmail"))
            else "getmail6 (pip)"
        )
    return ""


def stored_by(name, raw_message):
    """Return what a client stores for a message in the maildir; None if it fails on it."""
    message = awkward.sent(raw_message)
    if name == "raw":
        return awkward.on_the_wire(raw_message)
    if name == "curl":
        # it takes the line end of "+OK" for the first octets of an empty body
        return message or b"\r\n"
    if name == "mutt" and b"\0" in message:
        return None  # its lines end at a NUL
    if name == "claws" and (message == b"" or message.startswith(b".")):
        return None  # no file; it takes that dot for a stuffed one
    if name == "sylpheed" and (
        message == b"" or b"\0" in message or max(map(len, message.split(b"\n"))) > _SYLPHEED_LINE
    ):
        return None  # no file; its lines end at a NUL; it unstuffs a dot in each piece of a long line
    if name == "s-nail":
        if message == b".\r\n":
            return None  # no header: it puts a blank line first
        # an mbox has LF line ends only, and a blank line between messages
        return _one_last_newline(re.sub(rb"\r+\n", b"\n", message))
    if name in ("mpop", "mutt", "claws", "sylpheed"):
        return message.replace(b"\r\n", b"\n")  # as in any maildir
    if name == "fetchmail":
        if message in (b"", b"\r\n", b".\r\n") or max(map(len, message.split(b"\n"))) > _FETCHMAIL_LINE:
            return None  # no header: it writes a message of its own; it breaks long lines
        return message if b"\r\n\r\n" in message else message + b"\r\n"  # it ends headers that have no body
    if name == "getmail":
        return _as_getmail(message)
    return message


def _as_getmail(message):
    """Return a message as getmail rewrites it.

    Return-Path comes first and every line end is LF; Python's email package takes a lone CR for a line end.
    """
    if message in (b"", b"\r\n", b".\r\n") or message.startswith(b"."):
        return None  # its poplib code needs a header in the first line
    text = re.sub(rb"\r*\n|\r", b"\n", message)
    return b"Return-Path: <unknown>\n" + (text if b"\n\n" in text else text + b"\n")


WITHOUT_STLS = ("getmail", "ruby")
# fetchmail 6 knows AUTH for Kerberos, OTP and CRAM-MD5 only. curl uses no USER where AUTH is offered, no
# XOAUTH2 where OAUTHBEARER is, and no initial response with a token that makes a line over 255 octets. The
# server speaks no APOP and no SCRAM.
AUTHENTICATIONS = {
    "curl": {
        "any": "--login-options AUTH=*",
        "PLAIN": "--login-options AUTH=PLAIN",
        "LOGIN": "--login-options AUTH=LOGIN",
        "PLAIN at once": "--login-options AUTH=PLAIN --sasl-ir",
        "LOGIN at once": "--login-options AUTH=LOGIN --sasl-ir",
        "as itself": "--login-options AUTH=PLAIN --sasl-authzid alice",
        "OAUTHBEARER": "--login-options AUTH=OAUTHBEARER",
    },
    "mpop": {
        "USER": "user",
        "any": "on",
        "PLAIN": "plain",
        "LOGIN": "login",
        "XOAUTH2": "xoauth2",
        "OAUTHBEARER": "oauthbearer",
    },
    "fetchmail": {"USER": "password", "any": "any"},
    "getmail": {"USER": "", "XOAUTH2": "use_xoauth2 = true"},
}
CLIENTS = {
    "raw": raw,
    "poplib": with_poplib,
    "curl": curl,
    "mpop": mpop,
    "fetchmail": fetchmail,
    "getmail": getmail,
} | {
    "perl": perl,
    "ruby": ruby,
    "s-nail": s_nail,
    "mutt": mutt,
}
DESKTOP = {"claws": claws, "sylpheed": sylpheed}
