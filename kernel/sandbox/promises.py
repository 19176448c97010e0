"""What each promise lets through on Linux: calls by group with the reason, and rules for calls that depend on arguments.

The words are pledge(2)'s. Paths are not decided here: Landlock and ownership do that. A call that no group and no rule
names ends the process. Every clause of a rule whose test holds must be satisfied, or the call is refused.
"""

from __future__ import annotations

import errno

from popkernel.kernel.sandbox.bpf import ALLOW, KILL_PROCESS, Check

# Not promises: marks compile_program() adds for everybody, for processes that have threads already (and may start no more),
# and for those whose children lock themselves in further.
ALWAYS, THREADS, NESTED = "*", "+threads", "+nested"

_PATHS = "rpath getpw ps"  # getpw and ps read files of the system's on Linux: as far as they are unveiled
_SOCKETS = "unix inet"
_ABLE = "fattr chown"

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
        "sendmsg sendmmsg recvmsg recvmmsg recvfrom getsockopt getsockname getpeername shutdown",
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
            "stat lstat access faccessat faccessat2 readlink readlinkat getcwd chdir fchdir statfs "
            "getxattr lgetxattr listxattr llistxattr"
        ),
    ),
    ("wpath", "changing the length of a file", "truncate ftruncate fallocate"),
    (
        "cpath",
        "making, renaming and removing files and directories",
        "mkdir mkdirat rmdir unlink unlinkat rename renameat renameat2 link linkat symlink symlinkat",
    ),
    (
        "fattr",
        "modes and times of files",
        "chmod fchmod fchmodat fchmodat2 utime utimes utimensat futimesat",
    ),
    (_ABLE, "owner and group of files, as far as the system lets this user", "chown fchown lchown fchownat"),
    ("flock", "locks on whole files; fcntl's are below", "flock"),
    (_SOCKETS, "naming, connecting and tuning sockets", "bind connect listen accept accept4 setsockopt"),
    (
        "id",
        "becoming another user, and setting limits",
        "setuid setgid setreuid setregid setresuid setresgid setgroups setfsuid setfsgid setrlimit capset",
    ),
    (
        "proc",
        "children and process groups",
        (
            "fork vfork wait4 waitid kill tkill rt_sigqueueinfo rt_tgsigqueueinfo pidfd_open pidfd_send_signal "
            "setpgid setsid getpriority setpriority"
        ),
    ),
    ("exec", "another program; its start wants rpath and prot_exec too", "execve execveat arch_prctl"),
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
            "statfs getxattr lgetxattr listxattr llistxattr truncate "
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
_CREAT, _TRUNC, _TMPFILE = 0o100, 0o1000, 0o20000000
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
_PRCTL = (2, 3, 15, 16, 21, 23, 39)  # GET_PDEATHSIG GET_DUMPABLE SET_NAME GET_NAME GET_SECCOMP CAPBSET_READ GET_NNP
_PRCTL_NESTED = (1, 4, 22, 24, 38)  # SET_PDEATHSIG SET_DUMPABLE SET_SECCOMP CAPBSET_DROP SET_NO_NEW_PRIVS

# (when this test holds, None for always; one of these promises is needed, "" for none that is; else this answer, None
# for the call's usual one). A rule with no clause that always holds would let the call through without any promise.
Clause = tuple["Check | None", str, "int | None"]


def _any(arg: int, mask: int) -> Check:
    return Check(arg, (0,), mask=mask, negate=True)


def _not(arg: int, values: tuple[int, ...]) -> Check:
    return Check(arg, values, negate=True)


def _given(arg: int) -> Check:
    return Check(arg, (0,), negate=True, wide=True)


def _opening(flags: int) -> tuple[Clause, ...]:
    """open(2) with its flags in argument `flags`. An access mode of 3 is no reading, and needs wpath."""
    return (
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


_FAMILIES: tuple[Clause, ...] = (
    (Check(0, (_AF_UNIX,)), "unix", None),
    (Check(0, (_AF_INET, _AF_INET6)), "inet", None),
    (_not(0, (_AF_UNIX, _AF_INET, _AF_INET6)), "", None),
)

RULES: dict[str, tuple[Clause, ...]] = {
    "open": _opening(1),
    "openat": _opening(2),
    "creat": ((None, "cpath", None), (None, "wpath", None)),
    "newfstatat": _looking(3),
    "statx": _looking(2),
    "mmap": _mapping(2),
    "mprotect": _mapping(2),
    "pkey_mprotect": _mapping(2),
    "fcntl": ((Check(1, _LOCKS), "flock", None), (_not(1, _LOCKS + _FCNTL), "", None), (None, "stdio flock", None)),
    "ioctl": ((Check(1, _TERMINAL), "", errno.ENOTTY), (_not(1, _IOCTL), "", None), (None, "stdio", None)),
    "socket": _FAMILIES,
    "socketpair": _FAMILIES,
    # without an address, sendto is send
    "sendto": ((_given(4), _SOCKETS, None), (None, "stdio", None)),
    "prlimit64": ((_given(2), "id", None), (_any(0, 0xFFFFFFFF), "proc", None), (None, "stdio id", None)),
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
    "sched_setscheduler": ((Check(1, (0,)), "stdio", None), (_not(1, (0,)), "", None)),
    "prctl": (
        (Check(0, _PRCTL_NESTED), NESTED, None),
        (_not(0, _PRCTL + _PRCTL_NESTED), "", None),
        (None, "stdio", None),
    ),
}

__all__ = ["ALLOW", "ALWAYS", "GROUPS", "NESTED", "RULES", "SOFT", "THREADS", "Clause"]
