"""Define what each promise allows on Linux: groups of calls, and rules for arguments of calls.

The promises are pledge(2)'s. Paths are not decided here: Landlock and ownership do that. A call that no group
and no rule names ends the process. A call with a rule is refused unless each clause whose test holds is
satisfied.
"""

from __future__ import annotations

import errno

from popkernel.kernel.sandbox.bpf import KILL_PROCESS, Check

# Marks that compile_program() adds to the promises: for every process; for one that has threads (and may
# start no more); for one whose children restrict themselves further; for the one that makes sockets (init).
ALWAYS, THREADS, NESTED, SOCKETS = "*", "+threads", "+nested", "+sockets"

_PATHS = "rpath getpw ps"  # getpw and ps read system files on Linux, as far as they are unveiled
_SOCKETS = "unix inet"

# (promises of which one is needed, why, the calls)
GROUPS = (
    (ALWAYS, "to end, also after a broken promise", "exit exit_group rt_sigreturn restart_syscall"),
    (
        "stdio",
        "reading and writing open descriptors, and copying them within this process",
        (
            "read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 lseek sendfile "
            "copy_file_range splice close close_range dup dup2 dup3 pipe pipe2 fsync fdatasync fadvise64 "
            "readahead fstat fstatfs getdents getdents64"
        ),
    ),
    (
        # a filter does not see into a msghdr, so it cannot tell whether a message carries descriptors
        "stdio sendfd recvfd",
        "messages on open sockets",
        "recvmsg recvfrom getsockname getpeername",
    ),
    (
        "stdio",
        "waiting for several things at once: select, epoll, eventfd",
        (
            "poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait "
            "epoll_pwait2 eventfd eventfd2 signalfd signalfd4"
        ),
    ),
    (
        "stdio",
        "memory for malloc and Python; mlock for keys in OpenSSL",
        "brk munmap mremap madvise mincore mlock mlock2 munlock msync",
    ),
    (
        "stdio",
        "clocks and timers of this process",
        (
            "clock_gettime clock_getres clock_nanosleep nanosleep gettimeofday time times alarm getitimer "
            "setitimer pause timerfd_create timerfd_settime timerfd_gettime"
        ),
    ),
    (
        "stdio",
        "locks of threads that run already, and glibc's own state of threads",
        (
            "futex futex_wait futex_wake futex_requeue futex_waitv set_robust_list set_tid_address rseq "
            "membarrier getcpu sched_yield sched_getaffinity sched_getparam sched_getscheduler "
            "sched_get_priority_max sched_get_priority_min"
        ),
    ),
    (
        # abort() and raise() use tgkill; Landlock's signal scope keeps it from other processes
        "stdio",
        "signal handlers and masks of this process",
        "rt_sigprocmask rt_sigpending rt_sigsuspend rt_sigtimedwait sigaltstack tgkill",
    ),
    (
        "stdio",
        "this process's ids, limits and usage, and random octets",
        (
            "getpid getppid gettid getpgid getpgrp getsid getuid geteuid getgid getegid getresuid getresgid "
            "getgroups getrusage getrlimit uname sysinfo umask capget getrandom"
        ),
    ),
    (
        _PATHS,
        "attributes of files by name",
        ("stat lstat access faccessat faccessat2 readlink readlinkat getcwd"),
    ),
    ("wpath", "changing the length of an open file", "ftruncate fallocate"),
    (
        "cpath",
        "making, renaming and removing files and directories",
        "rmdir unlink unlinkat rename renameat renameat2 link linkat symlink symlinkat",
    ),
    ("chown", "owner and group of an open file, as far as the system lets this user", "fchown"),
    ("flock", "locks on whole files; fcntl's are below", "flock"),
    (_SOCKETS, "taking connections on open listening sockets", "accept accept4"),
    ("inet", "ending a connection for all processes that hold it", "shutdown"),
    (
        "id",
        "becoming another user, and setting limits",
        "setuid setgid setreuid setregid setresuid setresgid setgroups setfsuid setfsgid setrlimit capset",
    ),
    (
        "proc",
        "children and process groups",
        ("fork vfork wait4 waitid kill tkill setpgid setsid getpriority"),
    ),
    (
        "exec",
        "another program; its start wants rpath and prot_exec too",
        "execve execveat arch_prctl memfd_create",
    ),
    ("settime", "setting the clock", "clock_settime settimeofday adjtimex clock_adjtime"),
    (
        NESTED,
        "children that restrict themselves further",
        "seccomp landlock_create_ruleset landlock_add_rule landlock_restrict_self",
    ),
)

# Calls that fail softly where they are refused: a traceback looks for source files, and libraries try a newer
# call first.
SOFT = (
    (
        errno.EACCES,
        (
            "open openat creat stat lstat newfstatat statx "
            "access faccessat faccessat2 readlink readlinkat getcwd "
            # no promise allows those of this line, nor chmod and its like below
            "chdir fchdir statfs getxattr lgetxattr listxattr llistxattr truncate "
            "mkdir mkdirat rmdir unlink unlinkat rename renameat renameat2 link linkat symlink symlinkat "
            "mknod mknodat chmod fchmodat fchmodat2 utime utimes utimensat futimesat chown lchown fchownat "
            "socket socketpair"
        ),
    ),
    # Calls that an older kernel lacks too. clone3 and openat2 take their flags in memory, which no filter
    # sees.
    (
        errno.ENOSYS,
        (
            "clone3 openat2 io_uring_setup io_uring_enter io_uring_register map_shadow_stack "
            "mseal cachestat lsm_get_self_attr lsm_list_modules"
        ),
    ),
    (errno.EPERM, "sched_setscheduler"),
    (errno.EINVAL, "prctl"),
)

# fcntl.h, sys/*.h, linux/*.h: the same on x86_64 and aarch64.
_ACCMODE, _RDONLY, _RDWR = 0o3, 0o0, 0o2
_CREAT, _TRUNC, _TMPFILE, _PATH = 0o100, 0o1000, 0o20000000, 0o10000000
_SPECIAL = 0o7000  # setuid, setgid, sticky: refused in every mode
_AT_EMPTY_PATH = 0x1000
_PROT_EXEC = 0x4
_LOCKS = (5, 6, 7, 36, 37, 38)  # F_GETLK F_SETLK F_SETLKW, and the same of open file descriptions
_FCNTL = (0, 1, 2, 3, 4, 1030, 1031, 1032, 1033, 1034)  # F_DUPFD to F_SETFL, DUPFD_CLOEXEC, pipe sizes, seals
_TERMINAL = (0x5401, 0x802C542A, 0x5413)  # TCGETS TCGETS2 TIOCGWINSZ: "is this a terminal?"
_IOCTL = (0x5421, 0x5450, 0x5451, 0x541B)  # FIONBIO FIONCLEX FIOCLEX FIONREAD
_AF_UNIX, _AF_INET, _AF_INET6 = 1, 2, 10
_CLONE_THREAD = 0x10000
_CLONE_NEW = 0x7E020000  # CLONE_NEWNS CGROUP UTS IPC USER PID NET: no process may make a namespace
_SIGSYS = 31
_SOCK_TYPE, _STREAM, _DATAGRAM = 0xF, 1, 2
_MSG = 0x40 | 0x4000 | 0x8000  # MSG_DONTWAIT NOSIGNAL MORE; not MSG_FASTOPEN, which connects
_SOL_SOCKET, _TCP = 1, 6
_SET_SOCKET, _SET_TCP = (7,), (1, 3)  # SO_SNDBUF; TCP_NODELAY TCP_CORK
_GET_SOCKET = (3, 4, 17, 30, 38, 39)  # SO_TYPE ERROR PEERCRED ACCEPTCONN PROTOCOL DOMAIN
# GET_PDEATHSIG GET_DUMPABLE SET_NAME GET_NAME GET_SECCOMP CAPBSET_READ GET_NNP
_PRCTL = (2, 3, 15, 16, 21, 23, 39)
_PRCTL_NESTED = (1, 4, 22, 24, 38)  # SET_PDEATHSIG SET_DUMPABLE SET_SECCOMP CAPBSET_DROP SET_NO_NEW_PRIVS

# (a test, or several that must all hold, None: always; promises of which one is needed then, "": no promise
# allows it; the answer without them, None: the call's usual one). A call for which no clause holds is allowed
# without any promise: so the clauses of a rule must cover every case that needs one.
Clause = tuple["Check | tuple[Check, ...] | None", str, "int | None"]


def _any_bit(arg: int, mask: int) -> Check:
    return Check(arg, (0,), mask=mask, negate=True)


def _not(arg: int, values: tuple[int, ...]) -> Check:
    return Check(arg, values, negate=True)


def _not_null(arg: int) -> Check:
    return Check(arg, (0,), negate=True, wide=True)


def _open(flags: int) -> tuple[Clause, ...]:
    """Return the clauses of open(2), with its flags in argument `flags` and the mode in the next one.

    Access mode 3 does not allow reading, and needs wpath.
    """
    return (
        ((_any_bit(flags, _CREAT | _TMPFILE), _any_bit(flags + 1, _SPECIAL)), "", None),
        (_any_bit(flags, _PATH), NESTED, None),  # Landlock refuses no O_PATH, and is set up with it
        (_any_bit(flags, _CREAT | _TMPFILE), "cpath", None),
        (_any_bit(flags, _TRUNC), "wpath", None),
        (_not_masked(flags, _ACCMODE, (_RDONLY,)), "wpath", None),
        (Check(flags, (_RDONLY, _RDWR), mask=_ACCMODE), _PATHS, None),
    )


def _not_masked(arg: int, mask: int, values: tuple[int, ...]) -> Check:
    return Check(arg, values, mask=mask, negate=True)


# fstat in glibc 2.33 to 2.38 is newfstatat(fd, "", ..., AT_EMPTY_PATH). A filter cannot see whether the path
# is empty. So stat of a path is allowed with this flag: where directory modes permit, it tells mode, size and
# times.
def _stat(flags: int) -> tuple[Clause, ...]:
    return ((Check(flags, (0,), mask=_AT_EMPTY_PATH), _PATHS, None), (None, "stdio", None))


def _map(protection: int) -> tuple[Clause, ...]:
    return ((_any_bit(protection, _PROT_EXEC), "prot_exec", None), (None, "stdio", None))


def _mkdir(mode: int) -> tuple[Clause, ...]:
    return ((_any_bit(mode, _SPECIAL), "", None), (None, "cpath", None))


def _send(flags: int) -> Clause:
    return (_any_bit(flags, ~_MSG & 0xFFFFFFFF), SOCKETS, None)


# init sets the group of the unix socket that it makes
_SOCKET_GROUP: tuple[Clause, ...] = ((None, SOCKETS, None), (None, "fattr", None))
_NEW_SOCKETS: tuple[Clause, ...] = ((None, SOCKETS, None), (None, _SOCKETS, None))

RULES: dict[str, tuple[Clause, ...]] = {
    "open": _open(1),
    "openat": _open(2),
    "mkdir": _mkdir(1),
    "mkdirat": _mkdir(2),
    # fattr allows changes by descriptor only: Landlock refuses none of chmod, chown and utime of a path.
    # utimensat without a path is futimens
    "chown": _SOCKET_GROUP,
    "fchownat": _SOCKET_GROUP,
    "fchmod": ((_any_bit(1, _SPECIAL), "", None), (None, "fattr", None)),
    "utimensat": ((_not_null(1), "", None), (None, "fattr", None)),
    "newfstatat": _stat(3),
    "statx": _stat(2),
    "mmap": _map(2),
    "mprotect": _map(2),
    "pkey_mprotect": _map(2),
    "fcntl": (
        (Check(1, _LOCKS), "flock", None),
        (_not(1, _LOCKS + _FCNTL), "", None),
        (None, "stdio flock", None),
    ),
    "ioctl": ((Check(1, _TERMINAL), "", errno.ENOTTY), (_not(1, _IOCTL), "", None), (None, "stdio", None)),
    # unix and inet allow sockets that were handed over: only init makes, binds and connects sockets
    "socket": (
        (None, SOCKETS, None),
        (_not_masked(1, _SOCK_TYPE, (_STREAM, _DATAGRAM)), "", None),
        (Check(0, (_AF_UNIX,)), "unix", None),
        (Check(0, (_AF_INET, _AF_INET6)), "inet", None),
        (_not(0, (_AF_UNIX, _AF_INET, _AF_INET6)), "", None),
    ),
    "bind": _NEW_SOCKETS,
    "connect": _NEW_SOCKETS,
    "listen": _NEW_SOCKETS,
    # For channels. A pair of datagram sockets could send to any name: no filter sees sendmsg's address
    "socketpair": (
        (_not_masked(1, _SOCK_TYPE, (_STREAM,)), "", None),
        (_not(0, (_AF_UNIX,)), "", None),
        (None, "unix", None),
    ),
    "setsockopt": (
        (_not(1, (_SOL_SOCKET, _TCP)), SOCKETS, None),
        ((Check(1, (_SOL_SOCKET,)), _not(2, _SET_SOCKET)), SOCKETS, None),
        ((Check(1, (_TCP,)), _not(2, _SET_TCP)), SOCKETS, None),
        (Check(1, (_SOL_SOCKET,)), "unix", None),
        (Check(1, (_TCP,)), "inet", None),
        (None, _SOCKETS, None),
    ),
    "getsockopt": (
        (_not(1, (_SOL_SOCKET,)), SOCKETS, None),
        (_not(2, _GET_SOCKET), SOCKETS, None),
        (None, "stdio sendfd recvfd", None),
    ),
    # without an address, sendto is send
    "sendto": ((_not_null(4), SOCKETS, None), _send(3), (None, "stdio", None)),
    "sendmsg": (_send(2), (None, "stdio sendfd recvfd", None)),
    "setpriority": ((_any_bit(1, 0xFFFFFFFF), "", None), (None, "proc", None)),  # of this process
    "prlimit64": ((_any_bit(0, 0xFFFFFFFF), "", None), (_not_null(2), "id", None), (None, "stdio id", None)),
    # with a SIGSYS handler of its own a process could go on after a broken promise, and hide it
    "rt_sigaction": ((Check(0, (_SIGSYS,)), NESTED, KILL_PROCESS), (None, "stdio", None)),
    "clone": (
        (_any_bit(0, _CLONE_NEW), "", None),
        (_any_bit(0, _CLONE_THREAD), NESTED, None),  # of the children, before they restrict themselves
        # fork() of a process with threads holds malloc's locks here: reporting a broken promise would wait
        # for ever
        (Check(0, (0,), mask=_CLONE_THREAD), f"proc {THREADS}", None),
        (Check(0, (0,), mask=_CLONE_THREAD), "proc", errno.EPERM),
    ),
    # SCHED_OTHER alone, the default
    "sched_setscheduler": (
        (_any_bit(0, 0xFFFFFFFF), "", None),
        (_not(1, (0,)), "", None),
        (None, "stdio", None),
    ),
    "prctl": (
        (Check(0, _PRCTL_NESTED), NESTED, None),
        (_not(0, _PRCTL + _PRCTL_NESTED), "", None),
        (None, "stdio", None),
    ),
}

__all__ = ["ALWAYS", "GROUPS", "NESTED", "RULES", "SOCKETS", "SOFT", "THREADS", "Clause"]
