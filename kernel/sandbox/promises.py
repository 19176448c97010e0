"""What each promise lets through on Linux: calls by group with the reason, and rules for calls that depend on arguments.

The words are pledge(2)'s. Paths are not decided here: Landlock and ownership do that. A call that no group and no rule
names ends the process. Every clause of a rule whose test holds must be satisfied, or the call is refused.
"""

from __future__ import annotations

import errno

from popkernel.kernel.sandbox.bpf import ALLOW, KILL_PROCESS, Check

# Not promises: marks compile_program() adds for everybody, for processes that have threads already (and may start no more),
# for those whose children lock themselves in further, and for the one that makes sockets of its own (init).
ALWAYS, THREADS, NESTED, SOCKETS = "*", "+threads", "+nested", "+sockets"

_PATHS = "rpath getpw ps"  # getpw and ps read files of the system's on Linux: as far as they are unveiled
_SOCKETS = "unix inet"

# (one of these promises, why, the calls)
GROUPS = (
    (ALWAYS, "to end, also after a broken promise", "exit exit_group rt_sigreturn restart_syscall"),
    (
        "stdio",
        "octets to and from what is open already, and passing descriptors about in this process",
        (
            "read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 lseek sendfile copy_file_range splice "
            "close close_range dup dup2 dup3 pipe pipe2 fsync fdatasync fadvise64 readahead fstat fstatfs "
            "getdents getdents64"
        ),
    ),
    (
        # sendfd and recvfd cannot be told from these on Linux: a filter does not see into a msghdr
        "stdio sendfd recvfd",
        "messages on sockets that are open already",
        "recvmsg recvfrom getsockname getpeername",
    ),
    (
        "stdio",
        "waiting for several things at once: select, epoll, eventfd",
        (
            "poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 "
            "eventfd eventfd2 signalfd signalfd4"
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
            "clock_gettime clock_getres clock_nanosleep nanosleep gettimeofday time times alarm getitimer setitimer pause "
            "timerfd_create timerfd_settime timerfd_gettime"
        ),
    ),
    (
        "stdio",
        "locks of threads that run already, and glibc's own book-keeping",
        (
            "futex futex_wait futex_wake futex_requeue futex_waitv set_robust_list set_tid_address rseq membarrier getcpu "
            "sched_yield sched_getaffinity sched_getparam sched_getscheduler sched_get_priority_max sched_get_priority_min"
        ),
    ),
    (
        # tgkill is what abort() and raise() use; that it reaches no other process is Landlock's signal scope
        "stdio",
        "signal handlers and masks of this process",
        "rt_sigprocmask rt_sigpending rt_sigsuspend rt_sigtimedwait sigaltstack tgkill",
    ),
    (
        "stdio",
        "who am I, how much have I used, and random octets",
        (
            "getpid getppid gettid getpgid getpgrp getsid getuid geteuid getgid getegid getresuid getresgid getgroups "
            "getrusage getrlimit uname sysinfo umask capget getrandom"
        ),
    ),
    (
        _PATHS,
        "looking at files by name",
        (
            "stat lstat access faccessat faccessat2 readlink readlinkat getcwd"
        ),
    ),
    ("wpath", "changing the length of a file that is open", "ftruncate fallocate"),
    (
        "cpath",
        "making, renaming and removing files and directories",
        "rmdir unlink unlinkat rename renameat renameat2 link linkat symlink symlinkat",
    ),
    ("chown", "owner and group of a file that is open, as far as the system lets this user", "fchown"),
    ("flock", "locks on whole files; fcntl's are below", "flock"),
    (_SOCKETS, "taking connections on listening sockets that are open already", "accept accept4"),
    ("inet", "ending a connection for whoever else waits for it", "shutdown"),
    (
        "id",
        "becoming another user, and setting limits",
        "setuid setgid setreuid setregid setresuid setresgid setgroups setfsuid setfsgid setrlimit capset",
    ),
    (
        "proc",
        "children and process groups",
        (
            "fork vfork wait4 waitid kill tkill setpgid setsid getpriority"
        ),
    ),
    ("exec", "another program; its start wants rpath and prot_exec too", "execve execveat arch_prctl memfd_create"),
    ("settime", "setting the clock", "clock_settime settimeofday adjtimex clock_adjtime"),
    (
        NESTED,
        "children that lock themselves in further",
        "seccomp landlock_create_ruleset landlock_add_rule landlock_restrict_self",
    ),
)

# Refused, and life goes on: a traceback looks for source files, libraries try the newer call first.
SOFT = (
    (
        errno.EACCES,
        (
            "open openat creat stat lstat newfstatat statx access faccessat faccessat2 readlink readlinkat getcwd chdir fchdir "
            "statfs getxattr lgetxattr listxattr llistxattr truncate "  # from chdir on for nobody, as chmod and its like below
            "mkdir mkdirat rmdir unlink unlinkat rename renameat renameat2 link linkat symlink symlinkat mknod mknodat "
            "chmod fchmodat fchmodat2 utime utimes utimensat futimesat chown lchown fchownat socket socketpair"
        ),
    ),
    # What the kernel could lack as well. clone3 and openat2 hide their flags in memory, where no filter can look.
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
_SPECIAL = 0o7000  # setuid, setgid, sticky: in no mode
_AT_EMPTY_PATH = 0x1000
_PROT_EXEC = 0x4
_LOCKS = (5, 6, 7, 36, 37, 38)  # F_GETLK F_SETLK F_SETLKW, and the same of open file descriptions
_FCNTL = (0, 1, 2, 3, 4, 1030, 1031, 1032, 1033, 1034)  # F_DUPFD to F_SETFL, DUPFD_CLOEXEC, pipe sizes, seals
_TERMINAL = (0x5401, 0x802C542A, 0x5413)  # TCGETS TCGETS2 TIOCGWINSZ: "is this a terminal?"
_IOCTL = (0x5421, 0x5450, 0x5451, 0x541B)  # FIONBIO FIONCLEX FIOCLEX FIONREAD
_AF_UNIX, _AF_INET, _AF_INET6 = 1, 2, 10
_CLONE_THREAD = 0x10000
_CLONE_NEW = 0x7E020000  # CLONE_NEWNS CGROUP UTS IPC USER PID NET: no namespace for anybody
_SIGSYS = 31
_SOCK_TYPE, _STREAM, _DATAGRAM = 0xF, 1, 2
_MSG = 0x40 | 0x4000 | 0x8000  # MSG_DONTWAIT NOSIGNAL MORE; MSG_FASTOPEN would connect
_SOL_SOCKET, _TCP = 1, 6
_SET_SOCKET, _SET_TCP = (7,), (1, 3)  # SO_SNDBUF; TCP_NODELAY TCP_CORK
_GET_SOCKET = (3, 4, 17, 30, 38, 39)  # SO_TYPE ERROR PEERCRED ACCEPTCONN PROTOCOL DOMAIN
_PRCTL = (2, 3, 15, 16, 21, 23, 39)  # GET_PDEATHSIG GET_DUMPABLE SET_NAME GET_NAME GET_SECCOMP CAPBSET_READ GET_NNP
_PRCTL_NESTED = (1, 4, 22, 24, 38)  # SET_PDEATHSIG SET_DUMPABLE SET_SECCOMP CAPBSET_DROP SET_NO_NEW_PRIVS

# (when this test holds, or all of these, None for always; one of these promises is needed, "" for none that is; else this answer, None
# for the call's usual one). A rule with no clause that always holds would let the call through without any promise.
Clause = tuple["Check | tuple[Check, ...] | None", str, "int | None"]


def _any(arg: int, mask: int) -> Check:
    return Check(arg, (0,), mask=mask, negate=True)


def _not(arg: int, values: tuple[int, ...]) -> Check:
    return Check(arg, values, negate=True)


def _given(arg: int) -> Check:
    return Check(arg, (0,), negate=True, wide=True)


def _opening(flags: int) -> tuple[Clause, ...]:
    """open(2) with its flags in argument `flags` and the mode behind. An access mode of 3 is no reading, and needs wpath."""
    return (
        ((_any(flags, _CREAT | _TMPFILE), _any(flags + 1, _SPECIAL)), "", None),
        (_any(flags, _PATH), NESTED, None),  # Landlock refuses no O_PATH, and is set up with it
        (_any(flags, _CREAT | _TMPFILE), "cpath", None),
        (_any(flags, _TRUNC), "wpath", None),
        (_not_masked(flags, _ACCMODE, (_RDONLY,)), "wpath", None),
        (Check(flags, (_RDONLY, _RDWR), mask=_ACCMODE), _PATHS, None),
    )


def _not_masked(arg: int, mask: int, values: tuple[int, ...]) -> Check:
    return Check(arg, values, mask=mask, negate=True)


# fstat in glibc 2.33 to 2.38 is newfstatat(fd, "", ..., AT_EMPTY_PATH). A filter cannot see whether the path is empty, so
# stat of a path slips through with this flag: it tells mode, size and times where directory modes let it, no content.
def _looking(flags: int) -> tuple[Clause, ...]:
    return ((Check(flags, (0,), mask=_AT_EMPTY_PATH), _PATHS, None), (None, "stdio", None))


def _mapping(protection: int) -> tuple[Clause, ...]:
    return ((_any(protection, _PROT_EXEC), "prot_exec", None), (None, "stdio", None))


def _made(mode: int) -> tuple[Clause, ...]:
    return ((_any(mode, _SPECIAL), "", None), (None, "cpath", None))


def _sending(flags: int) -> Clause:
    return (_any(flags, ~_MSG & 0xFFFFFFFF), SOCKETS, None)


_MENDED: tuple[Clause, ...] = ((None, SOCKETS, None), (None, "fattr", None))  # the group of a socket that init makes
_OWN: tuple[Clause, ...] = ((None, SOCKETS, None), (None, _SOCKETS, None))

RULES: dict[str, tuple[Clause, ...]] = {
    "open": _opening(1),
    "openat": _opening(2),
    "mkdir": _made(1),
    "mkdirat": _made(2),
    # by descriptor alone: no Landlock refuses what chmod, chown or utime do to a path. utimensat without a path is futimens
    "chown": _MENDED,
    "fchownat": _MENDED,
    "fchmod": ((_any(1, _SPECIAL), "", None), (None, "fattr", None)),
    "utimensat": ((_given(1), "", None), (None, "fattr", None)),
    "newfstatat": _looking(3),
    "statx": _looking(2),
    "mmap": _mapping(2),
    "mprotect": _mapping(2),
    "pkey_mprotect": _mapping(2),
    "fcntl": ((Check(1, _LOCKS), "flock", None), (_not(1, _LOCKS + _FCNTL), "", None), (None, "stdio flock", None)),
    "ioctl": ((Check(1, _TERMINAL), "", errno.ENOTTY), (_not(1, _IOCTL), "", None), (None, "stdio", None)),
    # unix and inet are for sockets that were handed over: no actor but init makes one, gives it a name or connects it
    "socket": (
        (None, SOCKETS, None),
        (_not_masked(1, _SOCK_TYPE, (_STREAM, _DATAGRAM)), "", None),
        (Check(0, (_AF_UNIX,)), "unix", None),
        (Check(0, (_AF_INET, _AF_INET6)), "inet", None),
        (_not(0, (_AF_UNIX, _AF_INET, _AF_INET6)), "", None),
    ),
    "bind": _OWN,
    "connect": _OWN,
    "listen": _OWN,
    # channels. A pair of datagram sockets would send to any name: sendmsg's address is where no filter can look
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
    "sendto": ((_given(4), SOCKETS, None), _sending(3), (None, "stdio", None)),
    "sendmsg": (_sending(2), (None, "stdio sendfd recvfd", None)),
    "setpriority": ((_any(1, 0xFFFFFFFF), "", None), (None, "proc", None)),  # one's own
    "prlimit64": ((_any(0, 0xFFFFFFFF), "", None), (_given(2), "id", None), (None, "stdio id", None)),
    # whoever may set the handler of SIGSYS may live on after a broken promise, and hide it
    "rt_sigaction": ((Check(0, (_SIGSYS,)), NESTED, KILL_PROCESS), (None, "stdio", None)),
    "clone": (
        (_any(0, _CLONE_NEW), "", None),
        (_any(0, _CLONE_THREAD), NESTED, None),  # the children's, before they lock themselves in
        # fork() of a process with threads holds malloc's locks here, so that the report of a broken promise would wait for ever
        (Check(0, (0,), mask=_CLONE_THREAD), f"proc {THREADS}", None),
        (Check(0, (0,), mask=_CLONE_THREAD), "proc", errno.EPERM),
    ),
    # SCHED_OTHER, which is what everybody has
    "sched_setscheduler": ((_any(0, 0xFFFFFFFF), "", None), (_not(1, (0,)), "", None), (None, "stdio", None)),
    "prctl": (
        (Check(0, _PRCTL_NESTED), NESTED, None),
        (_not(0, _PRCTL + _PRCTL_NESTED), "", None),
        (None, "stdio", None),
    ),
}

__all__ = ["ALLOW", "ALWAYS", "GROUPS", "NESTED", "RULES", "SOCKETS", "SOFT", "THREADS", "Clause"]
