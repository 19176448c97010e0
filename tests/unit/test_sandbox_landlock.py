"""Test unveil() for real: nothing outside the unveiled paths is reachable, whoever runs the tests."""

import errno
import os
import signal
import socket
import sys

import pytest
from popkernel.kernel.sandbox import bpf, landlock, lock

from tests.unit.sandbox_child import forked, sandboxed

pytestmark = pytest.mark.skipif(
    bool(sys.platform != "linux" or lock.missing()), reason=f"no sandbox here: {lock.missing()}"
)

MAILDIR = "stdio rpath wpath cpath fattr flock unix inet proc"


def needs_abi(version):
    return pytest.mark.skipif(
        sys.platform == "linux" and landlock.abi() < version, reason=f"Landlock ABI {version} needed"
    )


@pytest.fixture
def mail(tmp_path):
    """Provide a maildir, and beside it a file of another user."""
    for name in ("tmp", "new", "cur"):
        (tmp_path / "mail" / name).mkdir(parents=True)
    (tmp_path / "mail" / "new" / "1").write_bytes(b"message")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "secret").write_bytes(b"secret")
    (tmp_path / "mail" / "link").symlink_to(tmp_path / "other" / "secret")
    return tmp_path


def read(path):
    with open(path, "rb", buffering=0) as file:
        return file.read()


def write(path, flags=0):
    os.close(os.open(path, os.O_WRONLY | flags, 0o600))


def denied(ending, number=errno.EACCES):
    return ending.status == 0 and len(ending.said) == 1 and f"({number}, " in ending.said[0]


def tried(mail, body, letters="rwc", **more):
    return sandboxed(
        lambda: body(), MAILDIR, paths=[(mail / "mail", letters)] if letters else [], sockets=True, **more
    )


def test_inside_everything_a_maildir_needs_works(mail):
    at = str(mail / "mail")

    def body():
        write(at + "/tmp/2", os.O_CREAT | os.O_EXCL)
        os.link(at + "/tmp/2", at + "/new/2")
        os.unlink(at + "/tmp/2")
        os.rename(at + "/new/2", at + "/cur/2:2,S")
        os.mkdir(at + "/sub")
        os.rename(at + "/sub", at + "/bus")
        os.rmdir(at + "/bus")
        fd = os.open(at + "/cur/2:2,S", os.O_RDWR)
        os.ftruncate(fd, 0), os.utime(fd), os.fchmod(fd, 0o600)
        return read(at + "/new/1"), os.listdir(at + "/cur")

    assert tried(mail, body) == (0, ["(b'message', ['2:2,S'])"])


def test_outside_nothing_can_be_read_or_made(mail):
    secret, at = mail / "other" / "secret", mail / "mail"
    for body in (
        lambda: read(secret),
        lambda: read("/etc/passwd"),
        lambda: read(at / ".." / "other" / "secret"),
        lambda: read(at / "link"),
        lambda: os.listdir(mail / "other"),
        lambda: os.listdir(mail),
        lambda: write(secret),
        lambda: write(mail / "other" / "made", os.O_CREAT),
        lambda: os.truncate(secret, 0),
        lambda: os.unlink(secret),
        lambda: os.mkdir(mail / "other" / "made"),
    ):
        assert denied(tried(mail, body))
    for body in (
        lambda: os.rename(at / "new" / "1", mail / "other" / "1"),
        lambda: os.rename(secret, at / "new" / "2"),
        lambda: os.link(secret, at / "new" / "2"),
        lambda: os.link(at / "new" / "1", mail / "other" / "1"),
    ):
        ending = tried(mail, body)
        assert denied(ending) or denied(ending, errno.EXDEV)
    assert secret.read_bytes() == b"secret"


def test_a_directory_descriptor_does_not_escape(mail):
    def body(outside):
        return os.open("secret", os.O_RDONLY, dir_fd=outside)

    assert denied(
        sandboxed(
            body, MAILDIR, paths=[(mail / "mail", "rwc")], before=lambda: os.open(mail / "other", os.O_RDONLY)
        )
    )


def test_each_letter_is_needed(mail):
    at = mail / "mail"
    assert denied(tried(mail, lambda: write(at / "new" / "1"), "r"))
    assert denied(tried(mail, lambda: write(at / "new" / "2", os.O_CREAT), "rw"))
    assert denied(tried(mail, lambda: os.unlink(at / "new" / "1"), "rw"))
    assert denied(tried(mail, lambda: os.mkdir(at / "made"), "rwx"))
    assert denied(tried(mail, lambda: read(at / "new" / "1"), "wc"))
    assert denied(tried(mail, lambda: os.listdir(at), "wc"))
    assert denied(tried(mail, lambda: os.rename(at / "new" / "1", at / "cur" / "1"), "rw")) or denied(
        tried(mail, lambda: os.rename(at / "new" / "1", at / "cur" / "1"), "rw"), errno.EXDEV
    )
    assert tried(mail, lambda: write(at / "new" / "1"), "w") == (0, ["None"])
    assert tried(mail, lambda: os.unlink(at / "new" / "1"), "c") == (0, ["None"])


@needs_abi(3)
def test_truncating_needs_w(mail):
    assert denied(tried(mail, lambda: os.truncate(mail / "mail" / "new" / "1", 0), "rc"))


def test_executing_needs_x(mail):
    program = "stdio rpath exec prot_exec"
    assert sandboxed(lambda: os.execv("/bin/true", ["true"]), program, paths=[("/", "rx")]) == (0, [])
    assert denied(sandboxed(lambda: os.execv("/bin/true", ["true"]), program, paths=[("/", "r")]))


def test_no_links_fifos_or_devices_are_made(mail):
    at = mail / "mail"
    assert denied(tried(mail, lambda: os.symlink("1", at / "new" / "2")))
    assert denied(forked(lambda say: [lock.unveil([(at, "rwc")]), os.mkfifo(at / "fifo")]))


def test_a_socket_of_the_file_system_needs_c(mail):
    def body():
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(mail / "mail" / "s"))
            os.unlink(mail / "mail" / "s")

    assert tried(mail, body) == (0, ["None"])
    assert denied(tried(mail, body, "rw"))


def test_no_paths_means_no_file(mail):
    assert denied(tried(mail, lambda: read(mail / "mail" / "new" / "1"), ""))
    assert denied(tried(mail, lambda: os.listdir("/"), ""))
    assert sandboxed(
        lambda file: file.read(), "stdio", paths=[], before=lambda: open(mail / "mail" / "new" / "1", "rb")
    ) == (
        0,
        ["b'message'"],
    )


def test_a_single_file_and_bytes_as_path(mail):
    secret = os.fsencode(mail / "other" / "secret")
    assert sandboxed(lambda: read(secret), MAILDIR, paths=[(secret, "r")]) == (0, ["b'secret'"])
    assert denied(sandboxed(lambda: os.listdir(mail / "other"), MAILDIR, paths=[(secret, "rwc")]))


def test_a_link_as_path_is_followed_then(mail):
    assert sandboxed(
        lambda: read(mail / "other" / "secret"), MAILDIR, paths=[(mail / "mail" / "link", "r")]
    ) == (
        0,
        ["b'secret'"],
    )


def test_a_missing_path_is_named(mail):
    ending = forked(lambda say: lock.unveil([(mail / "nowhere", "r")]))
    assert "SandboxError" in ending.said[0]
    assert f"cannot unveil {mail}/nowhere: No such file or directory" in ending.said[0]


def test_unknown_permission_letters(mail):
    with pytest.raises(ValueError, match="permissions 'rz'"):
        lock.unveil([(str(mail), "rz")])


def dial(port):
    with socket.socket() as client:
        client.connect(("127.0.0.1", port))


def serve():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))


@needs_abi(4)
def test_tcp_only_with_network(mail):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert denied(tried(mail, lambda: dial(port)))
        assert denied(tried(mail, serve))
        assert tried(mail, lambda: dial(port), network=True) == (0, ["None"])
        assert tried(mail, serve, network=True) == (0, ["None"])


@needs_abi(6)
def test_no_signal_reaches_the_parent_and_own_children_still_hear(mail):
    parent = os.getpid()

    def own():
        child = os.fork()
        if child == 0:
            signal.pause()
        os.kill(child, signal.SIGKILL)
        return os.waitpid(child, 0)[1]

    assert denied(tried(mail, lambda: os.kill(parent, 0)), errno.EPERM)
    assert tried(mail, own) == (0, [str(int(signal.SIGKILL))])


@needs_abi(6)
def test_no_abstract_socket_of_others(mail):
    name = f"\0popkernel-{os.getpid()}"

    def body():
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(name)

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(name)
        server.listen()
        assert denied(tried(mail, body), errno.EPERM)


def test_a_child_narrows_itself_again(mail):
    """A child adds its own, smaller sandbox, as maildir actors do, and reports its own violations."""
    at = mail / "mail"
    wide = lock.compile_promises("stdio rpath wpath cpath proc id", nested=True)
    narrow = lock.compile_promises("stdio rpath")

    def actor(say):
        lock.unveil([(at / "new", "r")])
        lock.report_broken(lambda name, promise: say(f"actor: {name} needs {promise}"))
        lock.pledge(narrow)
        say(read(at / "new" / "1"))
        for path in (at / "link", at / "cur" / "1", mail / "other" / "secret"):
            try:
                read(path)
                say(f"could read {path}")
            except (PermissionError, FileNotFoundError):
                pass
        os.kill(os.getppid(), 0)

    def spawner(say):
        lock.unveil([(at, "rwc")])
        lock.report_broken(lambda name, promise: say(f"spawner: {name} needs {promise}"))
        lock.pledge(wide)
        child = os.fork()
        if child == 0:
            actor(say)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        write(at / "tmp" / "3", os.O_CREAT)
        return status

    assert forked(spawner) == (0, ["b'message'", "actor: kill needs proc", "159"])


def test_a_child_cannot_widen_its_cage(mail):
    def body():
        lock.unveil([("/", "rwxc")])
        return read(mail / "other" / "secret")

    assert denied(sandboxed(body, MAILDIR, paths=[(mail / "mail", "rwc")], nested=True))


def test_without_landlock_it_is_refused():
    """A filter that refuses Landlock's first call stands for a kernel booted without Landlock."""
    assembler = bpf.Assembler()
    answer = assembler.jump(
        bpf.EQUAL, 444, assembler.ret(bpf.errno(errno.EOPNOTSUPP)), assembler.ret(bpf.ALLOW)
    )
    program = assembler.program(assembler.load(bpf.NUMBER, answer))

    def body(say):
        landlock._abi = None
        lock.pledge(program)
        say(lock.missing()[0].split(":")[0])
        lock.unveil([])

    ending = forked(body)
    assert ending.said[0] == "Landlock is not enabled in this kernel (Operation not supported)"
    assert ending.said[1].startswith("SandboxError('Landlock is not enabled")
    assert "boot" in ending.said[1]
    assert "--insecure-no-sandbox" in ending.said[1]


def test_weaknesses_name_what_older_kernels_lack(monkeypatch):
    for version, count in ((0, 0), (1, 4), (2, 3), (3, 2), (4, 1), (5, 1), (6, 0), (7, 0), (8, 0)):
        monkeypatch.setattr(landlock, "_abi", version)
        assert len(landlock.weaknesses()) == count


def test_each_abi_handles_all_its_rights():
    """Compares with the numbers of linux/landlock.h; an unknown right would fail with EINVAL."""
    bits = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16, 6: 16, 7: 16, 8: 16, 9: 17, 10: 17}
    assert {version: landlock.handled(version) for version in bits} == {
        version: (1 << count) - 1 for version, count in bits.items()
    }
