"""Attempt what an actor must not do: raises OSError if refused, returns if let through, or ends the process.

Loaded into the real actors before they lock themselves in, and by the tests, which read which promise each
attempt would need.
"""

import ctypes
import fcntl
import mmap
import os
import resource
import signal
import socket
import time
from typing import Any, NamedTuple

from popkernel.kernel.sandbox import names, syscalls
from popkernel.kernel.sandbox.libc import library

NUMBERS = syscalls.numbers(os.uname().machine)


class Place:
    """Name the targets: paths, processes and descriptors of other users."""

    file = outside = other = other_mail = passwd = address = abstract = ""
    port = 0
    kernel = 0  # process ids
    parent = 0
    fd = -1  # an open regular file
    sock = -1  # a connected unix socket


class Attempt(NamedTuple):
    """Describe an attempt.

    `needs`: any of these promises lets it through; "" means none does. `landlock`: Landlock refuses it even
    then.
    """

    needs: str
    run: Any
    landlock: bool = False


def call(name, *arguments):
    """Make a system call by its number."""
    wide = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    answer = library().syscall(ctypes.c_long(NUMBERS.get(name, name)), *wide)
    if answer < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return answer


def opened(path, flags, mode=0o600):
    os.close(os.open(path, flags, mode))


def made(family):
    socket.socket(family, socket.SOCK_STREAM).close()


def connected(p):
    with socket.socket(socket.AF_INET) as sock:
        sock.connect((p.address, p.port))


def bound(p):
    with socket.socket(socket.AF_INET) as sock:
        sock.bind((p.address, 0))


def abstract(p):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect("\0" + p.abstract)


OWN = "+sockets"  # init's alone and no promise: making sockets

SOFT = {
    "open to read": Attempt("rpath", lambda p: opened(p.file, os.O_RDONLY), landlock=True),
    "list": Attempt("rpath", lambda p: os.listdir(p.outside), landlock=True),
    "stat": Attempt("rpath", lambda p: os.stat(p.file)),
    "access": Attempt("rpath", lambda p: call("faccessat", -100, os.fsencode(p.file), 4)),
    "chdir": Attempt("", lambda p: os.chdir(p.outside)),
    "open to write": Attempt("wpath", lambda p: opened(p.file, os.O_WRONLY), landlock=True),
    "open to append": Attempt("wpath", lambda p: opened(p.file, os.O_WRONLY | os.O_APPEND), landlock=True),
    "truncate": Attempt("", lambda p: os.truncate(p.file, 0)),
    "create": Attempt(
        "cpath", lambda p: opened(p.outside + "/made", os.O_WRONLY | os.O_CREAT), landlock=True
    ),
    "mkdir": Attempt("cpath", lambda p: os.mkdir(p.outside + "/folder"), landlock=True),
    "rmdir": Attempt("cpath", lambda p: os.rmdir(p.outside + "/empty"), landlock=True),
    "unlink": Attempt("cpath", lambda p: os.unlink(p.file), landlock=True),
    "rename": Attempt("cpath", lambda p: os.rename(p.file, p.file + "2"), landlock=True),
    "link": Attempt("cpath", lambda p: os.link(p.file, p.file + "3"), landlock=True),
    "symlink": Attempt("cpath", lambda p: os.symlink("file", p.file + "4"), landlock=True),
    "device": Attempt("", lambda p: os.mknod(p.outside + "/null", 0o20666, os.makedev(1, 3)), landlock=True),
    "chmod": Attempt("", lambda p: os.chmod(p.file, 0o666)),
    "utime": Attempt("", lambda p: os.utime(p.file, (1, 1))),
    "chown": Attempt(OWN, lambda p: os.chown(p.file, os.getuid(), os.getgid())),
    "setuid": Attempt("", lambda p: opened(p.outside + "/setuid", os.O_WRONLY | os.O_CREAT, 0o6755)),
    "unix socket": Attempt(OWN, lambda p: made(socket.AF_UNIX)),
    "unix pair": Attempt("unix", lambda p: [s.close() for s in socket.socketpair()]),
    "unix datagram pair": Attempt(
        "", lambda p: [s.close() for s in socket.socketpair(type=socket.SOCK_DGRAM)]
    ),
    "inet socket": Attempt(OWN, lambda p: made(socket.AF_INET)),
    "inet6 socket": Attempt(OWN, lambda p: made(socket.AF_INET6)),
    "UDP socket": Attempt(OWN, lambda p: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close()),
    "netlink socket": Attempt("", lambda p: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close()),
    "packet socket": Attempt("", lambda p: call("socket", 17, 3, 0)),
    "TCP connection": Attempt(OWN, connected),
    "TCP port": Attempt(OWN, bound),
    "abstract socket": Attempt(OWN, abstract),
    "passwd": Attempt("rpath getpw", lambda p: opened("/etc/passwd", os.O_RDONLY), landlock=True),
    "shadow": Attempt("rpath getpw", lambda p: opened("/etc/shadow", os.O_RDONLY), landlock=True),
    "processes": Attempt("rpath ps", lambda p: opened("/proc/1/status", os.O_RDONLY), landlock=True),
    "own memory": Attempt("rpath", lambda p: opened("/proc/self/mem", os.O_RDWR), landlock=True),
    "signal the kernel": Attempt("stdio", lambda p: call("tgkill", p.kernel, p.kernel, 0), landlock=True),
    "signal the parent": Attempt("stdio", lambda p: call("tgkill", p.parent, p.parent, 0), landlock=True),
    "clone3": Attempt("", lambda p: call("clone3", 0, 0)),
    "openat2": Attempt("", lambda p: call("openat2", -100, b"/etc/passwd", 0, 24)),
    "io_uring": Attempt("", lambda p: call("io_uring_setup", 1, 0)),
    # another user's file, for actors that see mail
    "other maildir": Attempt("rpath", lambda p: os.listdir(p.other + "/new"), landlock=True),
    "other mail": Attempt("rpath", lambda p: opened(p.other_mail, os.O_RDONLY), landlock=True),
    "into other maildir": Attempt(
        "cpath", lambda p: opened(p.other + "/new/x", os.O_WRONLY | os.O_CREAT), landlock=True
    ),
    "out by dots": Attempt("rpath", lambda p: os.listdir(p.other + "/../../mail/../"), landlock=True),
}

DEADLY = {
    "ftruncate": Attempt("wpath", lambda p: os.ftruncate(p.fd, 0)),
    "fchmod": Attempt("fattr", lambda p: os.fchmod(p.fd, 0o600)),
    "setuid of what is open": Attempt("", lambda p: os.fchmod(p.fd, 0o4600)),
    "fchown": Attempt("chown", lambda p: os.fchown(p.fd, os.getuid(), os.getgid())),
    "flock": Attempt("flock", lambda p: fcntl.flock(p.fd, fcntl.LOCK_SH)),
    "fcntl lock": Attempt("flock", lambda p: fcntl.lockf(p.fd, fcntl.LOCK_SH)),
    "bind": Attempt(OWN, lambda p: call("bind", p.sock, b"\1\0", 2)),
    "connect": Attempt(OWN, lambda p: call("connect", p.sock, b"\1\0/x", 4)),
    "listen": Attempt(OWN, lambda p: call("listen", p.sock, 1)),
    "send to an address": Attempt(OWN, lambda p: call("sendto", p.sock, b"x", 1, 0, b"\1\0/x", 4)),
    "MSG_FASTOPEN": Attempt(OWN, lambda p: call("sendmsg", p.sock, 0, 0x20000000)),
    "accept": Attempt("unix inet", lambda p: call("accept4", p.sock, 0, 0, 0)),
    "setsockopt": Attempt("unix", lambda p: call("setsockopt", p.sock, 1, 7, b"\0\0\1\0", 4)),
    "TCP_REPAIR": Attempt(OWN, lambda p: call("setsockopt", p.sock, 6, 19, b"\1\0\0\0", 4)),
    "shutdown": Attempt("inet", lambda p: call("shutdown", p.sock, 9)),
    "setuid": Attempt("id", lambda p: call("setresuid", 0, 0, 0)),
    "setgroups": Attempt("id", lambda p: call("setgroups", 0, 0)),
    "setrlimit": Attempt("id", lambda p: resource.setrlimit(resource.RLIMIT_CORE, (0, 0))),
    # glibc 2.41's fork blocks SIGSYS
    "fork": Attempt("proc", lambda p: os._exit(0) if call("clone", 17, 0, 0, 0, 0) == 0 else None),
    "kill": Attempt("proc", lambda p: os.kill(p.kernel, 0)),
    "wait": Attempt("proc", lambda p: os.waitpid(-1, os.WNOHANG)),
    "execve": Attempt("exec", lambda p: os.execv("/bin/true", ["true"])),
    "mmap exec": Attempt("prot_exec", lambda p: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC)),
    "mprotect exec": Attempt("prot_exec", lambda p: call("mprotect", 0, 4096, 5)),
    "settime": Attempt("settime", lambda p: time.clock_settime(time.CLOCK_REALTIME, time.time())),
    "ptrace": Attempt("", lambda p: call("ptrace", 16, p.kernel, 0, 0)),
    "process_vm_readv": Attempt("", lambda p: call("process_vm_readv", p.kernel, 0, 0, 0, 0, 0)),
    "bpf": Attempt("", lambda p: call("bpf", 0, 0, 0)),
    "mount": Attempt("", lambda p: call("mount", b"x", b"/tmp", b"tmpfs", 0, 0)),
    "unshare": Attempt("", lambda p: call("unshare", 0x10000000)),
    "new namespace": Attempt("", lambda p: call("clone", 0x10000000 | 17, 0, 0, 0, 0)),
    "keyctl": Attempt("", lambda p: call("keyctl", 0, 0, 0, 0, 0)),
    "userfaultfd": Attempt("", lambda p: call("userfaultfd", 0)),
    "perf": Attempt("", lambda p: call("perf_event_open", 0, 0, 0, 0, 0)),
    "memfd": Attempt("exec", lambda p: call("memfd_create", b"x", 0)),
    "terminal": Attempt("", lambda p: call("ioctl", p.fd, 0x5412, b"x")),
}

# Every signal is blocked, as in glibc 2.41 around clone: no handler runs and nothing is reported.
SILENT = {
    "ptrace, its signals blocked": Attempt(
        "",
        lambda p: [
            signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65)),
            call("ptrace", 16, p.kernel, 0, 0),
        ],
    ),
}

# A filter on Linux cannot see descriptors in a msghdr; "error" only turns a kill into an errno.
SAME_ON_LINUX = {"sendfd", "recvfd", "error"}


def refused_to(attempts, promises):
    """Return the attempts for which none of the needed promises is held."""
    held = set(promises.split())
    return [name for name, attempt in attempts.items() if not held.intersection(attempt.needs.split())]


def promise_reported_for(attempt):
    """Return the promise that the report of a deadly attempt names."""
    return next((need for need in attempt.needs.split() if need in names.PROMISES), "none")


def verdict(attempt, place):
    """Return the result of a soft attempt: "refused NAME-OF-ERRNO" or "let through"."""
    try:
        attempt.run(place)
    except OSError as error:
        return f"refused {os.strerror(error.errno or 0)}"
    except BaseException as error:
        return f"failed {error!r}"
    return "let through"
