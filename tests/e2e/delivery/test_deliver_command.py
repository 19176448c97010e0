"""Test `popkernel deliver`: exit codes that mail servers act on, and the message octet for octet."""

import contextlib
import os
import socket
import subprocess
import sys
import time

import pytest

from tests.support.maildirs import bodies, messages
from tests.support.service import POPKERNEL, Service

MAIL = b"Subject: piped\n\n.\n..dot\n8-bit \xff\nlast line without an end"


@pytest.fixture(scope="module")
def service():
    with Service(mail=(), quota_users=["carol=1000"]) as one:
        yield one


def deliver(service, *arguments, mail=MAIL, **environment):
    env = {k: v for k, v in os.environ.items() if k not in ("USER", "SENDER", "LOGNAME")} | environment
    command = [*POPKERNEL, "deliver", "--run-dir", service.config.run_dir, *arguments]
    done = subprocess.run(command, input=mail, capture_output=True, env=env, timeout=60, check=False)
    assert b"Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stderr.decode()


def test_delivered(service):
    assert deliver(service, "-u", "alice", SENDER="s@x") == (0, "")
    (text,) = messages(service, "alice").values()
    assert text == b"Return-Path: <s@x>\nDelivered-To: alice\n" + MAIL + b"\n"


def test_from_the_environment(service):
    assert (
        deliver(
            service, mail=b"From s@x  Mon Nov 23 11:11:11 2026\nReturn-Path: <r@x>\nX: y\n\nz\n", USER="bob"
        )[0]
        == 0
    )
    assert (
        list(messages(service, "bob").values())[-1] == b"Delivered-To: bob\nReturn-Path: <r@x>\nX: y\n\nz\n"
    )


READ = 128 * 1024  # octets read at once


@pytest.mark.parametrize(
    "mail",
    [
        b"", b"\n", b"x" * READ, b"x" * (READ + 1), b"line\r\n" * 100000, b".", b".\n", b"a\r.\r\r\n.\n\r",
        b".\n" * READ, b"\r\n.\r\nQUIT\r\n", b"\n.\n\n.\r\nx",
        b"x" * (READ - 1) + b"\r\n.\n", b"x" * (READ - 1) + b"\n.\n", b"x" * (READ - 2) + b"\n.\n.\r",
        b"x" * (READ - 1) + b"\r.\n",
    ],
    ids=lambda mail: f"{len(mail)}-{mail[-4:]!r}",
)  # fmt: skip
def test_octets(service, mail):
    """The message is unchanged, except that line ends are LF and the last line has one."""
    assert deliver(service, "-u", "alice", mail=mail) == (0, "")
    expected = mail.replace(b"\r\n", b"\n")
    assert bodies(service, "alice")[-1] == expected + (b"" if expected.endswith(b"\n") or not mail else b"\n")


def test_a_server_that_closes_early_is_heard(tmp_path):
    """With half the message sent, the reply is passed on, and the mail server tries again."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"{tmp_path}/lmtp.sock")
        listening.listen()
        command = [*POPKERNEL, "deliver", "--run-dir", str(tmp_path), "-u", "alice"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as client:
            with contextlib.suppress(BrokenPipeError), client.stdin as stdin:
                stdin.write(b"x" * READ)
                stdin.flush()
                with listening.accept()[0] as server:
                    server.recv(1 << 16)
                    server.sendall(
                        b"220 x\r\n250 x\r\n250 x\r\n250 x\r\n354 x\r\n421 4.3.2 the service ends\r\n"
                    )
                    server.recv(1000)
                stdin.write(b"x\n" * READ)
            assert client.stderr.read().decode() == "popkernel deliver: alice: 421 4.3.2 the service ends\n"
        assert client.returncode == 75


def test_exit_codes(service):
    code, said = deliver(service, "-u", "nobody-here")
    assert code == 67
    assert "no such user" in said
    # mailbox full: returned to the sender
    assert deliver(service, "-u", "carol", mail=b"x\n" * 2000)[0] == 69
    for user in ("a\nb", "alice@x y", "alice bob", " alice"):
        code, said = deliver(service, "-u", user)
        assert (code, "is no address" in said or "control characters" in said) == (65, True), user
    assert deliver(service, "-u", '"nobody here"@x')[0] == 67  # a quoted blank
    for sender in ("bad sender", "a@b c", "<a b>", "no\x7fsign", "x" * 2000 + "@y"):
        assert deliver(service, "-u", "alice", "--sender", sender)[0] == 65, sender
    code, said = deliver(service, "-u", "", USER="alice", LOGNAME="alice")
    assert (code, "name one, or leave out -u" in said) == (64, True)
    with Service(mail=(), message_octets=1 << 16) as small:
        assert deliver(small, "-u", "alice", mail=b"x\n" * 100000)[0] == 65
    code, said = deliver(small, "-u", "alice")
    assert code == 75, "without a server the mail server tries again"
    assert "is the server running?" in said


@pytest.mark.parametrize("how", [">&-", "2>&-", ">&- 2>&-", "> /dev/full 2> /dev/full"])
def test_a_closed_output_bounces_no_delivered_message(service, how):
    for user, code in (("alice", 0), ("nobody-here", 67)):
        command = [
            "sh",
            "-c",
            f'exec "$@" {how}',
            "sh",
            *POPKERNEL,
            "deliver",
            "--run-dir",
            service.config.run_dir,
            "-u",
            user,
        ]
        done = subprocess.run(command, input=MAIL, capture_output=True, timeout=60, check=False)
        assert done.returncode == code and b"Traceback" not in done.stderr, done


def test_trouble_with_the_mailbox_is_tried_again(service):
    tmp = f"{service.site.mail_users['bob'].maildir}/tmp"
    os.chmod(tmp, 0)
    try:
        code, said = deliver(service, "-u", "bob")
    finally:
        os.chmod(tmp, 0o700)
    assert code == 75
    assert "451 4.3.0" in said
    assert deliver(service, "-u", "bob")[0] == 0


@pytest.mark.root("only root can be several users")
def test_by_its_own_user_and_by_others(service):
    uid = service.site.mail_users["alice"].uid
    script = (
        "import os,sys; sys.path[:0]=sys.argv[1].split(':'); from popkernel.cli import deliver; import "
        "popkernel.cli.main as m;"
        "p=m.build_parser(['deliver']); os.setgroups([]); os.setgid(int(sys.argv[2])); "
        "os.setuid(int(sys.argv[2]));"
        "sys.exit(deliver.run(p.parse_args(sys.argv[3:])))"
    )
    path = ":".join(p for p in sys.path if p)

    def as_user(number, user):
        command = [
            sys.executable,
            "-c",
            script,
            path,
            str(number),
            "deliver",
            "-u",
            user,
            "--run-dir",
            service.config.run_dir,
        ]
        return subprocess.run(command, input=MAIL, capture_output=True, timeout=60, check=False)

    assert as_user(uid, "alice").returncode == 0
    for user in ("bob", "nobody-here"):
        done = as_user(uid, user)
        assert (done.returncode, b"not allowed" in done.stderr) == (77, True), done.stderr


def test_deliver_is_quick(service):
    deliver(service, "-u", "alice")
    began = time.monotonic()
    for _ in range(3):
        assert deliver(service, "-u", "alice")[0] == 0
    each = (time.monotonic() - began) / 3
    print(f"\npopkernel deliver: {each * 1000:.0f} ms")
    assert each < 2


def test_no_standard_input_gives_one_line_and_no_bounce(service):
    """Exit code 1, which mail servers take for a final refusal, and a traceback must not occur."""
    command = [*POPKERNEL, "deliver", "--run-dir", service.config.run_dir, "-u", "alice"]
    with open(os.devnull, "wb") as writing:
        for how, stdin in (("closed", None), ("to be written only", writing.fileno())):
            closed = ["sh", "-c", 'exec "$@" <&-', "sh"] if stdin is None else []
            done = subprocess.run(
                [*closed, *command], stdin=stdin, capture_output=True, text=True, timeout=60, check=False
            )
            assert done.returncode in (66, 75), (how, done)
            assert done.stderr.count("\n") == 1, (how, done.stderr)
            assert "standard input" in done.stderr, (how, done.stderr)
