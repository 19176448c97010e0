"""Test each promise for real: a child with it succeeds; one without is refused, softly or by death."""

import codecs
import ctypes
import errno
import fcntl
import hashlib
import mmap
import os
import resource
import select
import signal
import socket
import struct
import sys
import threading
import time

import pytest
from popkernel.kernel.sandbox import lock
from popkernel.kernel.sandbox.libc import library, syscall

from tests.unit.sandbox_child import broken, call, forked, refused, sandboxed

pytestmark = pytest.mark.skipif(
    bool(sys.platform != "linux" or lock.missing()), reason=f"no sandbox here: {lock.missing()}"
)

PAGE = mmap.PAGESIZE


def soft(ending, number=errno.EACCES):
    """Check for a soft refusal by Python's own call, whose exception may also name a file."""
    return ending.status == 0 and len(ending.said) == 1 and f"({number}, " in ending.said[0]


def fine(ending):
    return ending.status == 0 and len(ending.said) == 1 and "Error" not in ending.said[0]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "file").write_bytes(b"text")
    (tmp_path / "new").mkdir()
    return str(tmp_path)


# The body gets an open descriptor of `file` and the folder's name.
def create(fd, folder):
    os.close(os.open(folder + "/made", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))


def truncate(fd, folder):
    os.close(os.open(folder + "/file", os.O_RDONLY | os.O_TRUNC))


SOFT = [
    ("rpath", lambda fd, at: os.close(os.open(at + "/file", os.O_RDONLY)), "stdio wpath cpath"),
    ("rpath", lambda fd, at: os.listdir(at), "stdio wpath cpath fattr"),
    ("rpath", lambda fd, at: os.stat(at + "/file").st_size, "stdio wpath cpath fattr"),
    ("rpath", lambda fd, at: os.lstat(at + "/file").st_size, "stdio"),
    ("rpath", lambda fd, at: os.getcwd(), "stdio"),
    ("rpath wpath", lambda fd, at: os.close(os.open(at + "/file", os.O_RDWR)), "stdio rpath"),
    ("rpath wpath", lambda fd, at: os.close(os.open(at + "/file", os.O_RDWR)), "stdio wpath"),
    ("wpath", lambda fd, at: os.close(os.open(at + "/file", os.O_WRONLY)), "stdio rpath cpath"),
    ("rpath wpath", truncate, "stdio rpath cpath"),
    ("wpath cpath", create, "stdio wpath rpath"),
    ("wpath cpath", create, "stdio cpath rpath"),
    ("cpath", lambda fd, at: os.mkdir(at + "/made"), "stdio rpath wpath"),
    ("cpath", lambda fd, at: os.rmdir(at + "/new"), "stdio rpath wpath"),
    ("cpath", lambda fd, at: os.unlink(at + "/file"), "stdio rpath wpath"),
    ("cpath", lambda fd, at: os.rename(at + "/file", at + "/new/file"), "stdio rpath wpath"),
    ("cpath", lambda fd, at: os.link(at + "/file", at + "/new/file"), "stdio rpath wpath"),
    ("cpath", lambda fd, at: os.symlink("file", at + "/link"), "stdio rpath wpath"),
    ("fattr", lambda fd, at: os.utime(fd, (1, 1)), "stdio rpath wpath cpath"),
    ("getpw", lambda fd, at: os.close(os.open(at + "/file", os.O_RDONLY)), "stdio"),
    ("ps", lambda fd, at: os.close(os.open(at + "/file", os.O_RDONLY)), "stdio"),
    ("unix", lambda fd, at: [end.close() for end in socket.socketpair()], "stdio inet"),
]


@pytest.mark.parametrize(("promise", "body", "without"), SOFT)
def test_soft_refusals(folder, promise, body, without):
    with open(folder + "/file", "rb+") as file:
        assert soft(sandboxed(lambda: body(file.fileno(), folder), without))
        assert fine(sandboxed(lambda: body(file.fileno(), folder), "stdio " + promise))


def fork():
    """Fork by the bare call.

    libc's fork() holds malloc's locks if other tests have started threads, and the report would wait for
    them.
    """
    child, _ = syscall({"x86_64": 56, "aarch64": 220}[os.uname().machine], int(signal.SIGCHLD), 0, 0, 0, 0)
    if child == 0:
        os._exit(7)
    return os.waitpid(child, 0)[1]


def set_limit():
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


# (promises, body(fd), the call that ends children without them, the promise reported)
HARD = [
    ("wpath", lambda fd: os.ftruncate(fd, 2), "ftruncate", "wpath"),
    ("fattr", lambda fd: os.fchmod(fd, 0o600), "fchmod", "fattr"),
    ("chown", lambda fd: os.fchown(fd, os.getuid(), -1), "fchown", "chown"),
    ("flock", lambda fd: fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB), "flock", "flock"),
    ("flock", lambda fd: fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB), "fcntl", "flock"),
    ("id", lambda fd: os.setresuid(-1, -1, -1), "setresuid", "id"),
    ("id", lambda fd: set_limit(), "prlimit64", "id"),
    ("proc", lambda fd: fork(), "clone", "proc"),
    ("proc", lambda fd: os.kill(os.getpid(), 0), "kill", "proc"),
    ("proc", lambda fd: os.getpriority(os.PRIO_PROCESS, 0), "getpriority", "proc"),
    (
        "prot_exec",
        lambda fd: mmap.mmap(-1, PAGE, prot=mmap.PROT_READ | mmap.PROT_EXEC).close(),
        "mmap",
        "prot_exec",
    ),
]


@pytest.mark.parametrize(("promise", "body", "name", "reported"), HARD)
def test_hard_refusals_are_reported_and_end_the_process(folder, promise, body, name, reported):
    with open(folder + "/file", "rb+") as file:
        assert sandboxed(lambda: body(file.fileno()), "stdio rpath") == broken(name, reported)
        assert fine(sandboxed(lambda: body(file.fileno()), "stdio " + promise))


def test_mprotect_cannot_make_code(folder):
    def body(memory):
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        return library().mprotect(ctypes.c_void_p(address), PAGE, mmap.PROT_READ | mmap.PROT_EXEC)

    assert sandboxed(body, before=lambda: mmap.mmap(-1, PAGE)) == broken("mprotect", "prot_exec")
    assert sandboxed(body, "stdio prot_exec", before=lambda: mmap.mmap(-1, PAGE)) == (0, ["0"])


@pytest.mark.parametrize(
    ("name", "promise"),
    [
        ("execve", "exec"),
        ("execveat", "exec"),
        ("settimeofday", "settime"),
        ("clock_settime", "settime"),
        ("setgroups", "id"),
        ("accept4", "unix"),
        ("shutdown", "inet"),
        ("wait4", "proc"),
        ("tkill", "proc"),
        *(
            (never, "none")
            for never in (
                "ptrace process_vm_readv process_vm_writev bpf mount umount2 move_mount fsopen setns unshare "
                "keyctl add_key kexec_load init_module finit_module delete_module perf_event_open "
                "userfaultfd pidfd_getfd open_by_handle_at memfd_secret chroot seccomp "
                "landlock_create_ruleset landlock_restrict_self personality bind connect listen setsockopt "
                "sendmmsg recvmmsg pidfd_send_signal pidfd_open rt_sigqueueinfo rt_tgsigqueueinfo fsetxattr "
                "setxattr"
            ).split()
        ),
    ],
)
def test_calls_refused_by_number(name, promise):
    """All arguments are zero: the filter refuses before the kernel checks them."""
    assert sandboxed(lambda: call(name, 0, 0, 0, 0, 0)) == broken(name, promise)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("clone3", errno.ENOSYS),
        ("openat2", errno.ENOSYS),
        ("io_uring_setup", errno.ENOSYS),
        ("io_uring_enter", errno.ENOSYS),
        (599, errno.ENOSYS),
        ("faccessat2", errno.EACCES),
        ("statx", errno.EACCES),
        ("mknodat", errno.EACCES),
    ],
)
def test_calls_that_fail_softly_by_number(name, number):
    assert sandboxed(lambda: call(name, 0, 0, 0, 0, 0)) == refused(number)


def test_exec_runs_a_program_only_with_its_promises(folder):
    promises = "stdio rpath exec prot_exec"
    assert sandboxed(lambda: os.execv("/bin/true", ["true"]), promises) == (0, [])
    assert sandboxed(lambda: os.execv("/bin/true", ["true"]), "stdio rpath proc") == broken("execve", "exec")


def test_the_clock_may_be_set_with_settime():
    """adjtimex without modes sets nothing, and anybody may call it."""

    def body():
        return call("adjtimex", ctypes.create_string_buffer(512)) >= 0

    assert sandboxed(body, "stdio settime") == (0, ["True"])
    assert sandboxed(body) == broken("adjtimex", "settime")


def test_inet_listens_and_accepts():
    def body():
        with socket.socket() as server, socket.socket() as client:
            server.bind(("127.0.0.1", 0))
            server.listen()
            client.connect(server.getsockname())
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            accepted, _ = server.accept()
            with accepted:
                client.sendall(b"hello")
                return accepted.recv(5)

    assert sandboxed(body, "stdio inet", sockets=True) == (0, ["b'hello'"])


def handed_over():
    """Provide a listening TCP socket with a client in its queue, that client, and a listening unix socket."""
    server, client, local = socket.socket(), socket.socket(), socket.socket(socket.AF_UNIX)
    server.bind(("127.0.0.1", 0))
    server.listen()
    client.connect(server.getsockname())
    local.bind(f"\0popkernel-cage-{os.getpid()}")
    local.listen()
    return server, client, local


def test_inet_while_serving_is_for_sockets_handed_over():
    def body(sockets):
        server, client, _ = sockets
        accepted, _ = server.accept()
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
        client.sendmsg([b"hel", b"lo"])
        data = accepted.recv(5)
        accepted.shutdown(socket.SHUT_RDWR)
        return data

    assert sandboxed(body, "stdio inet", before=handed_over) == (0, ["b'hello'"])


OWN_SOCKETS = {
    "a TCP socket": lambda held: socket.socket().close(),
    "a UDP socket": lambda held: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close(),
    "an MPTCP socket": lambda held: call("socket", socket.AF_INET, socket.SOCK_STREAM, 262),
    "a unix socket": lambda held: socket.socket(socket.AF_UNIX).close(),
    "a pair of datagram sockets": lambda held: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM),
    "bind": lambda held: held[0].bind(("127.0.0.1", 0)),
    "connect": lambda held: held[1].connect(held[0].getsockname()),
    "disconnect": lambda held: call("connect", held[1].fileno(), bytes(16), 16),
    "listen": lambda held: held[0].listen(1),
    "sendto": lambda held: held[1].sendto(b"x", held[0].getsockname()),
    "sendto MSG_FASTOPEN": lambda held: held[1].send(b"x", 0x20000000),
    "sendmsg MSG_FASTOPEN": lambda held: held[1].sendmsg([b"x"], [], 0x20000000, held[0].getsockname()),
    "sendmsg MSG_ZEROCOPY": lambda held: held[1].sendmsg([b"x"], [], 0x4000000),
    "sendmmsg": lambda held: call("sendmmsg", held[1].fileno(), 0, 0, 0),
    "TCP_FASTOPEN_CONNECT": lambda held: held[1].setsockopt(6, 30, 1),
    "TCP_REPAIR": lambda held: held[1].setsockopt(6, 19, 1),
    "TCP_ULP": lambda held: held[1].setsockopt(6, 31, b"tls"),
    "SO_BINDTODEVICE": lambda held: held[1].setsockopt(1, 25, b"lo"),
    "SO_ATTACH_FILTER": lambda held: call("setsockopt", held[1].fileno(), 1, 26, 0, 16),
    "SO_ATTACH_BPF": lambda held: call("setsockopt", held[1].fileno(), 1, 50, 0, 4),
    "IP_ADD_MEMBERSHIP": lambda held: held[1].setsockopt(0, 35, bytes(8)),
    "SO_PEERPIDFD": lambda held: held[2].getsockopt(1, 77),
}


@pytest.mark.parametrize("what", OWN_SOCKETS)
@pytest.mark.parametrize(
    "promises", ["stdio inet recvfd", "stdio unix inet recvfd", "stdio unix sendfd recvfd"]
)
def test_no_new_socket_and_no_send_to_an_address(what, promises):
    """Uses the promises that a listener, a gate, the mda and the kernel hold while they serve."""
    ending = sandboxed(lambda held: OWN_SOCKETS[what](held), promises, before=handed_over)
    assert soft(ending) or (ending.status == 159 and ending.said[-1].endswith("needs none"))


@pytest.mark.parametrize(
    "attempt",
    [
        lambda fd, at: os.chmod(at + "/file", 0o644),
        lambda fd, at: os.chmod("file", 0o644, dir_fd=os.open(at, os.O_RDONLY)),
        lambda fd, at: os.utime(at + "/file", (1, 1)),
        lambda fd, at: os.utime(at + "/file", (1, 1), follow_symlinks=False),
        lambda fd, at: os.chown(at + "/file", os.getuid(), os.getgid()),
        lambda fd, at: os.lchown(at + "/file", os.getuid(), os.getgid()),
        lambda fd, at: os.truncate(at + "/file", 1),
        lambda fd, at: os.setxattr(at + "/file", "user.x", b"x"),
        lambda fd, at: os.chdir(at),
        lambda fd, at: os.close(os.open(at + "/made", os.O_WRONLY | os.O_CREAT, 0o6755)),
        lambda fd, at: os.close(os.open(at, os.O_WRONLY | os.O_TMPFILE, 0o4755)),
        lambda fd, at: call("creat", os.fsencode(at + "/made"), 0o4755),
        lambda fd, at: os.mkdir(at + "/made", 0o1777),
        lambda fd, at: os.mknod(at + "/made", 0o104755),
        lambda fd, at: os.fchmod(fd, 0o4755),
        lambda fd, at: os.fchmod(fd, 0o2755),
    ],
)
def test_no_change_by_path_and_no_setuid_in_any_mode(folder, attempt):
    """Landlock refuses neither."""
    promises = "stdio rpath wpath cpath fattr flock sendfd recvfd proc id"
    before = os.stat(folder + "/file")
    with open(folder + "/file", "rb+") as file:
        ending = sandboxed(lambda: attempt(file.fileno(), folder), promises)
    assert soft(ending) or (ending.status == 159 and ending.said[-1].endswith("needs none"))
    after = os.stat(folder + "/file")
    assert (before.st_mode, before.st_mtime, before.st_size) == (after.st_mode, after.st_mtime, after.st_size)
    assert sorted(os.listdir(folder)) == ["file", "new"]


def test_without_inet_or_unix_there_are_no_other_families():
    for promises in ("stdio", "stdio inet unix"):
        assert sandboxed(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW), promises) == (
            0,
            [repr(PermissionError(13, "Permission denied"))],
        )


def test_sockets_that_are_open_work_without_socket_promises():
    def body(pair):
        left, right = pair
        left.settimeout(5)
        left.sendall(b"a")
        first = right.recv(1)
        passed, more = os.pipe()
        socket.send_fds(left, [b"b"], [passed])
        data, fds, _, _ = socket.recv_fds(right, 1, 1)
        os.write(more, b"c")
        left.close()
        return first + data + os.read(fds[0], 1) + right.recv(1), right.getsockopt(
            socket.SOL_SOCKET, socket.SO_TYPE
        )

    for promises in ("stdio", "stdio sendfd recvfd"):
        assert sandboxed(body, promises, before=socket.socketpair) == (0, ["(b'abc', 1)"])


def test_sendto_with_an_address_needs_own_sockets():
    def body(own):
        return own.sendto(b"x", own.getsockname())

    def before():
        own = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        own.bind(("127.0.0.1", 0))
        return own

    assert sandboxed(body, before=before) == broken("sendto", "none")
    assert sandboxed(body, "stdio inet", before=before) == broken("sendto", "none")
    assert sandboxed(body, "stdio inet", before=before, sockets=True) == (0, ["1"])


def test_stdio_suffices_for_plain_python():
    def body(files):
        opened, pair = files
        poller = select.epoll()
        poller.register(pair[0], select.EPOLLIN)
        pair[1].send(b"x")
        ready = poller.poll(5)
        both = select.poll()
        both.register(pair[0])
        both.poll(0)
        select.select([pair[0]], [], [], 0)
        time.sleep(0.0001)
        os.fstat(opened), os.lseek(opened, 0, 0), os.fsync(opened), os.fdatasync(opened), os.dup(opened)
        (
            os.pread(opened, 4, 0),
            os.pwrite(opened, b"t", 0),
            os.posix_fadvise(opened, 0, 0, os.POSIX_FADV_DONTNEED),
        )
        os.sendfile(pair[0].fileno(), opened, 0, 4), pair[1].recv_into(bytearray(9))
        os.copy_file_range(opened, opened, 1, 0, 100)
        os.set_blocking(opened, True), os.set_inheritable(opened, False), os.isatty(opened)
        (
            os.getpid(),
            os.getppid(),
            os.getresuid(),
            os.getgroups(),
            os.uname(),
            os.cpu_count(),
            os.sched_getaffinity(0),
        )
        os.urandom(8), hashlib.scrypt(b"p", salt=b"s", n=2, r=1, p=1), hash(time.clock_gettime(0)), os.times()
        resource.getrlimit(resource.RLIMIT_NOFILE), resource.getrusage(resource.RUSAGE_SELF)
        list(range(200_000)), bytearray(40_000_000)
        (
            signal.signal(signal.SIGTERM, lambda *_: None),
            signal.raise_signal(signal.SIGTERM),
            signal.setitimer(signal.ITIMER_REAL, 0),
        )
        guard = threading.Condition()
        with guard:
            guard.wait(0.0001)
        os.eventfd(1)
        return len(ready), open(opened, "rb", closefd=False).read(1)

    opened = os.memfd_create("x")
    os.write(opened, b"text")
    assert sandboxed(body, before=lambda: (opened, socket.socketpair())) == (0, ["(1, b't')"])
    os.close(opened)


def test_a_directory_that_is_open_can_be_listed(folder):
    def body(fd):
        return sorted(os.listdir(fd))

    assert sandboxed(body, before=lambda: os.open(folder, os.O_RDONLY)) == (0, ["['file', 'new']"])


def test_harmless_and_other_prctl_calls():
    assert sandboxed(lambda: library().prctl(15, b"renamed", 0, 0, 0)) == (0, ["0"])
    assert sandboxed(lambda: call("prctl", 35, 1, 0, 0, 0)) == refused(errno.EINVAL)  # PR_SET_MM
    assert sandboxed(lambda: call("prctl", 4, 1, 0, 0, 0)) == refused(errno.EINVAL)  # PR_SET_DUMPABLE
    assert sandboxed(lambda: call("prctl", 4, 1, 0, 0, 0), nested=True) == (0, ["0"])


def test_terminals_may_be_queried_only():
    ends = os.openpty()
    assert sandboxed(lambda: os.isatty(ends[1])) == (0, ["False"])
    assert sandboxed(lambda: fcntl.ioctl(ends[1], 0x5412, b"x")) == broken("ioctl", "none")  # TIOCSTI
    for end in ends:
        os.close(end)


def test_limits_of_others_are_not_touched():
    parent = os.getpid()
    assert sandboxed(lambda: resource.prlimit(parent, resource.RLIMIT_CORE)) == broken("prlimit64", "none")
    assert sandboxed(
        lambda: call("prlimit64", parent, 4, struct.pack("QQ", 0, 0), None), "stdio id proc"
    ) == broken("prlimit64", "none")


def test_tls_by_openssl_in_the_listener_s_sandbox(tmp_path):
    import datetime as dt
    import ssl

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime(2000, 1, 1)
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now.replace(year=2126)).sign(
        key, hashes.SHA256()
    )
    pem = tmp_path / "both.pem"
    plain = serialization.NoEncryption()
    pem.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
        + made.public_bytes(serialization.Encoding.PEM)
    )

    def before():
        # ssl encodes server_hostname and socket a host's name with it: a lazy import otherwise
        codecs.lookup("idna")
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(pem)
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.load_verify_locations(pem)
        return server, client

    def body(contexts):
        up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
        server = contexts[0].wrap_bio(up, down, server_side=True)
        client = contexts[1].wrap_bio(down, up, server_hostname="localhost")
        steps = [client.do_handshake, server.do_handshake]
        while steps:
            try:
                steps[0]()
                steps.pop(0)
            except ssl.SSLWantReadError:
                steps.reverse()
        client.write(b"hello")
        return server.read(), server.version()

    assert sandboxed(body, "stdio", before=before, paths=[]) == (0, ["(b'hello', 'TLSv1.3')"])


def test_bcrypt_in_threads_and_msgpack_and_titles():
    import bcrypt
    import msgpack
    from popkernel.kernel.runtime.process_title import set_title

    def before():
        go, done = threading.Event(), []

        def work():
            go.wait()
            done.append(bcrypt.checkpw(b"secret", bcrypt.hashpw(b"secret", bcrypt.gensalt(4))))

        workers = [threading.Thread(target=work) for _ in range(3)]
        for worker in workers:
            worker.start()
        return go, done, workers

    def body(started):
        go, done, workers = started
        set_title("renamed")
        go.set()
        for worker in workers:
            worker.join()
        return done, msgpack.unpackb(msgpack.packb([1, b"x"]))

    program = lock.compile_promises("stdio")

    def auth(say):
        lock.unveil([])
        started = before()
        lock.report_broken(lambda name, promise: say(f"broken: {name} needs {promise}"))
        lock.pledge(program, all_threads=True)
        return body(started)

    assert forked(auth) == (0, ["([True, True, True], [1, b'x'])"])
