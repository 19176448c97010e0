"""List every dangerous form of a system call and which actors may make it.

The unit test `test_refused_calls.py` checks every actor's filters against it, the e2e test of that name every
thread of every serving actor. A call of the sandbox's table, an actor or a promise without a row fails there.
A call that all may make has one row.
"""

import os
from typing import NamedTuple

# Actors: the topology's rows, and processes that run in another's sandbox. Each has its filters from the
# outermost, as (row, its promises).
INSIDE = {
    "init": ("init",),
    "kernel": ("kernel",),
    "spawner": ("init", "spawner"),
    "auth": ("init", "auth"),
    "listener": ("init", "listener"),
    "gate": ("init", "gate"),
    "listener of a gate": ("init", "gate", "lone"),
    "maildir.{user}": ("init", "spawner", "maildir.{user}"),
    "mda": ("init", "mda"),
}
ALL = frozenset(INSIDE)
INIT = frozenset({"init"})
NESTED = frozenset({"init", "spawner", "gate"})
ROOT = frozenset({"init", "spawner"})
TCP = frozenset({"init", "listener", "gate", "listener of a gate", "mda"})
UNIX = frozenset({"init", "kernel", "mda"})
READS = frozenset({"init", "kernel", "spawner", "maildir.{user}"})
WRITES = READS - {"kernel"}
MARKS = WRITES
NOBODY = frozenset()


class Refused(NamedTuple):
    """Describe one form of a call.

    `how`: "killed", or the errno returned to the caller. `others`: a different result for some actors.
    `landlock`: the errno with which Landlock refuses it to actors that may make the call; "" if it does not.
    """

    what: str
    call: str
    arguments: tuple
    who: frozenset = NOBODY
    how: str = "killed"
    landlock: str = ""
    others: dict = {}


# Placeholders in arguments: a path outside every maildir, a directory there, another user's file; a socket's
# descriptor, any descriptor.
FILE, FOLDER, SHADOW, SOCK, ANY = b"{file}", b"{folder}", b"/etc/shadow", -1001, -1002
AT = -100  # AT_FDCWD
KERNEL, PARENT = -1003, -1004  # process ids
_FAMILIES = {
    "packet": 17,
    "netlink": 16,
    "vsock": 40,
    "alg": 38,
    "bluetooth": 31,
    "xdp": 44,
    "key": 15,
    "tipc": 30,
    "can": 29,
    "rds": 21,
    "smc": 43,
    "ax25": 3,
    "qipcrtr": 42,
    "ieee802154": 36,
    "nfc": 39,
    "x25": 9,
    "kcm": 41,
}
_OPTIONS = {  # (level, name): options that would change what a socket can do
    "SO_REUSEPORT": (1, 15),
    "SO_BINDTODEVICE": (1, 25),
    "SO_ATTACH_FILTER": (1, 26),
    "SO_DETACH_FILTER": (1, 27),
    "SO_SNDBUFFORCE": (1, 32),
    "SO_RCVBUFFORCE": (1, 33),
    "SO_MARK": (1, 36),
    "SO_PEEK_OFF": (1, 42),
    "SO_LOCK_FILTER": (1, 44),
    "SO_ATTACH_BPF": (1, 50),
    "SO_ATTACH_REUSEPORT_CBPF": (1, 51),
    "SO_ATTACH_REUSEPORT_EBPF": (1, 52),
    "SO_ZEROCOPY": (1, 60),
    "SO_TXTIME": (1, 61),
    "SO_KEEPALIVE": (1, 9),
    "SO_LINGER": (1, 13),
    "SO_PASSCRED": (1, 16),
    "SO_RCVTIMEO": (1, 20),
    "SO_BUSY_POLL": (1, 46),
    "IP_OPTIONS": (0, 4),
    "IP_TRANSPARENT": (0, 19),
    "IP_ADD_MEMBERSHIP": (0, 35),
    "MCAST_JOIN_GROUP": (0, 42),
    "IP_FREEBIND": (0, 15),
    "IPV6_ADD_MEMBERSHIP": (41, 20),
    "IPV6_V6ONLY": (41, 26),
    "IPV6_ADDRFORM": (41, 1),
    "TCP_DEFER_ACCEPT": (6, 9),
    "TCP_CONGESTION": (6, 13),
    "TCP_MD5SIG": (6, 14),
    "TCP_REPAIR": (6, 19),
    "TCP_REPAIR_QUEUE": (6, 20),
    "TCP_FASTOPEN": (6, 23),
    "TCP_NOTSENT_LOWAT": (6, 25),
    "TCP_FASTOPEN_CONNECT": (6, 30),
    "TCP_ULP": (6, 31),
    "TCP_AO_ADD_KEY": (6, 38),
    "SOL_UDP": (17, 100),
    "SOL_RAW": (255, 1),
    "SOL_TLS": (282, 1),
    "SOL_MPTCP": (284, 1),
}
_NEVER = (  # by number alone, for every actor
    "sendmmsg recvmmsg pidfd_open pidfd_send_signal pidfd_getfd rt_sigqueueinfo rt_tgsigqueueinfo ptrace "
    "process_vm_readv process_vm_writev process_madvise process_mrelease kcmp unshare setns mount umount2 "
    "pivot_root chroot open_tree open_tree_attr move_mount fsopen fsconfig fsmount fspick mount_setattr "
    "statmount listmount name_to_handle_at open_by_handle_at quotactl quotactl_fd fanotify_init "
    "fanotify_mark inotify_init inotify_init1 inotify_add_watch inotify_rm_watch setxattr lsetxattr "
    "fsetxattr setxattrat removexattr lremovexattr fremovexattr removexattrat fgetxattr flistxattr "
    "getxattrat listxattrat file_getattr file_setattr sync syncfs sync_file_range ioprio_set ioprio_get "
    "sched_setattr sched_getattr sched_setaffinity sched_setparam sched_rr_get_interval personality "
    "modify_ldt iopl ioperm remap_file_pages mlockall munlockall mbind set_mempolicy get_mempolicy "
    "set_mempolicy_home_node migrate_pages move_pages memfd_secret userfaultfd pkey_alloc pkey_free shmget "
    "shmat shmctl shmdt semget semop semtimedop semctl msgget msgsnd msgrcv msgctl mq_open mq_unlink "
    "mq_timedsend mq_timedreceive mq_notify mq_getsetattr add_key request_key keyctl bpf perf_event_open "
    "kexec_load kexec_file_load init_module finit_module delete_module create_module query_module "
    "get_kernel_syms swapon swapoff reboot sethostname setdomainname settimeofday clock_settime adjtimex "
    "clock_adjtime acct syslog vhangup uselib nfsservctl lookup_dcookie sysfs ustat _sysctl getpmsg putpmsg "
    "afs_syscall tuxcall security vserver epoll_ctl_old epoll_wait_old set_thread_area get_thread_area "
    "get_robust_list vmsplice tee timer_create timer_settime timer_gettime timer_getoverrun timer_delete "
    "io_setup io_destroy io_getevents io_submit io_cancel io_pgetevents lsm_set_self_attr uprobe uretprobe"
)
_LACKING = (
    "clone3 openat2 io_uring_setup io_uring_enter io_uring_register map_shadow_stack mseal cachestat "
    "lsm_get_self_attr lsm_list_modules"
)
_NO_PATH = {  # changes by path that Landlock does not refuse, and queries that nobody needs
    "chmod": (FILE, 0o666),
    "fchmodat": (AT, FILE, 0o666),
    "fchmodat2": (AT, FILE, 0o666, 0),
    "lchown": (FILE, 0, 0),
    "utime": (FILE, 0),
    "utimes": (FILE, 0),
    "futimesat": (AT, FILE, 0),
    "truncate": (FILE, 0),
    "creat": (FOLDER + b"/x", 0o600),
    "mknod": (FOLDER + b"/x", 0o100600, 0),
    "mknodat": (AT, FOLDER + b"/x", 0o20666, 0x103),
    "chdir": (FOLDER,),
    "fchdir": (ANY,),
    "statfs": (FOLDER, 0),
    "getxattr": (FILE, b"user.x", 0, 0),
    "lgetxattr": (FILE, b"user.x", 0, 0),
    "listxattr": (FILE, 0, 0),
    "llistxattr": (FILE, 0, 0),
}
_CLONES = {
    "NEWNS": 0x20000,
    "NEWCGROUP": 0x2000000,
    "NEWUTS": 0x4000000,
    "NEWIPC": 0x8000000,
    "NEWUSER": 0x10000000,
    "NEWPID": 0x20000000,
    "NEWNET": 0x40000000,
}
_IOCTLS = {
    "TIOCSTI": 0x5412,
    "TIOCLINUX": 0x541C,
    "TIOCSCTTY": 0x540E,
    "TIOCSETD": 0x5423,
    "KDSETMODE": 0x4B3A,
    "FIOASYNC": 0x5452,
    "FIGETBSZ": 2,
    "FIBMAP": 1,
    "FICLONE": 0x40049409,
    "FS_IOC_SETFLAGS": 0x40086602,
    "FS_IOC_FSSETXATTR": 0x401C5820,
    "SIOCGIFCONF": 0x8912,
    "SIOCSIFFLAGS": 0x8914,
    "SIOCATMARK": 0x8905,
    "TUNSETIFF": 0x400454CA,
    "NS_GET_USERNS": 0xB701,
    "FIDEDUPERANGE": 0xC0189436,
}
_FCNTLS = {
    "F_SETOWN": 8,
    "F_SETSIG": 10,
    "F_GETOWN": 9,
    "F_SETOWN_EX": 15,
    "F_SETLEASE": 1024,
    "F_NOTIFY": 1026,
    "F_SET_RW_HINT": 1036,
    "F_CANCELLK": 1029,
}
_PRCTLS = {
    "PR_SET_UNALIGN": 6,
    "PR_SET_KEEPCAPS": 8,
    "PR_SET_TIMING": 14,
    "PR_SET_ENDIAN": 20,
    "PR_SET_TSC": 26,
    "PR_SET_SECUREBITS": 28,
    "PR_SET_TIMERSLACK": 29,
    "PR_SET_MM": 35,
    "PR_SET_CHILD_SUBREAPER": 36,
    "PR_SET_THP_DISABLE": 41,
    "PR_CAP_AMBIENT": 47,
    "PR_SET_SPECULATION_CTRL": 53,
    "PR_SET_IO_FLUSHER": 57,
    "PR_SET_SYSCALL_USER_DISPATCH": 59,
    "PR_SCHED_CORE": 62,
    "PR_SET_MDWE": 65,
    "PR_SET_VMA": 0x53564D41,
    "PR_SET_PTRACER": 0x59616D61,
}
_SOFT = "EACCES"

REFUSED = (
    # -- sockets: while serving, unix and inet mean sockets that were handed over
    Refused("TCP", "socket", (2, 1, 0), INIT, _SOFT),
    Refused("UDP", "socket", (2, 2, 0), INIT, _SOFT),
    Refused("TCP of IPv6", "socket", (10, 0x80001, 0), INIT, _SOFT),
    Refused("MPTCP", "socket", (2, 1, 262), INIT, _SOFT),
    Refused("SCTP", "socket", (2, 5, 132), NOBODY, _SOFT),
    Refused("raw", "socket", (2, 3, 1), NOBODY, _SOFT),
    Refused("unix stream", "socket", (1, 1, 0), INIT, _SOFT),
    Refused("unix datagram", "socket", (1, 2, 0), INIT, _SOFT),
    *(Refused(name, "socket", (number, 3, 0), NOBODY, _SOFT) for name, number in _FAMILIES.items()),
    Refused("stream pair", "socketpair", (1, 0x80801, 0, FILE), UNIX, _SOFT),
    Refused("datagram pair", "socketpair", (1, 2, 0, FILE), NOBODY, _SOFT),
    Refused("packet pair", "socketpair", (1, 5, 0, FILE), NOBODY, _SOFT),
    Refused("TCP pair", "socketpair", (2, 1, 0, FILE), NOBODY, _SOFT),
    Refused("a port", "bind", (SOCK, bytes([2, 0, *bytes(14)]), 16), INIT),
    Refused("a name", "bind", (SOCK, b"\1\0\0x", 4), INIT),
    Refused("to an address", "connect", (SOCK, bytes([2, 0, 0, 1, 127, 0, 0, 1, *bytes(8)]), 16), INIT),
    Refused("to nobody", "connect", (SOCK, bytes(16), 16), INIT),
    Refused("on it", "listen", (SOCK, 1), INIT),
    Refused("who waits", "accept", (SOCK, 0, 0), TCP | UNIX),
    Refused("who waits", "accept4", (SOCK, 0, 0, 0), TCP | UNIX),
    Refused(
        "to an address", "sendto", (SOCK, b"x", 1, 0, bytes([2, 0, 0, 1, 127, 0, 0, 1, *bytes(8)]), 16), INIT
    ),
    Refused("MSG_FASTOPEN", "sendto", (SOCK, b"x", 1, 0x20000000, 0, 0), INIT),
    Refused("MSG_OOB", "sendto", (SOCK, b"x", 1, 1, 0, 0), INIT),
    Refused("MSG_FASTOPEN", "sendmsg", (SOCK, bytes(56), 0x20000000), INIT),
    Refused("MSG_ZEROCOPY", "sendmsg", (SOCK, bytes(56), 0x4000000), INIT),
    Refused("SO_SNDBUF", "setsockopt", (SOCK, 1, 7, b"\0\0\1\0", 4), UNIX),
    Refused("TCP_NODELAY", "setsockopt", (SOCK, 6, 1, b"\1\0\0\0", 4), TCP),
    Refused("TCP_CORK", "setsockopt", (SOCK, 6, 3, b"\1\0\0\0", 4), TCP),
    *(
        Refused(what, "setsockopt", (SOCK, *pair, b"\1\0\0\0" * 8, 32), INIT)
        for what, pair in _OPTIONS.items()
    ),
    Refused("SO_PEERPIDFD", "getsockopt", (SOCK, 1, 77, bytes(8), b"\4\0\0\0"), INIT),
    Refused("SO_GET_FILTER", "getsockopt", (SOCK, 1, 26, bytes(8), b"\4\0\0\0"), INIT),
    Refused("TCP_ZEROCOPY_RECEIVE", "getsockopt", (SOCK, 6, 35, bytes(8), b"\4\0\0\0"), INIT),
    Refused("both ways", "shutdown", (SOCK, 2), TCP),
    # -- files: unveiled ones only, changed by descriptor, without setuid, setgid or sticky bits
    *(
        Refused(what, "openat", (AT, path, flags, 0o600), who, _SOFT, _SOFT)
        for what, path, flags, who in (
            ("to read", SHADOW, os.O_RDONLY, READS),
            ("to list", FOLDER, os.O_RDONLY | os.O_DIRECTORY, READS),
            ("to write", FILE, os.O_WRONLY, WRITES),
            ("to read and write", FILE, os.O_RDWR, WRITES),
            ("cut", FILE, os.O_RDONLY | os.O_TRUNC, WRITES),
            ("make", FOLDER + b"/x", os.O_WRONLY | os.O_CREAT | os.O_EXCL, WRITES),
            ("make without a name", FOLDER, os.O_WRONLY | os.O_TMPFILE, WRITES),
            ("a process", b"/proc/self/mem", os.O_RDWR, WRITES),
        )
    ),
    Refused("to read", "open", (SHADOW, 0, 0), READS, _SOFT, _SOFT),
    Refused("to write", "open", (FILE, os.O_WRONLY, 0), WRITES, _SOFT, _SOFT),
    Refused("a place", "openat", (AT, SHADOW, os.O_PATH, 0), NESTED & READS, _SOFT),
    Refused("setuid", "openat", (AT, FOLDER + b"/x", os.O_WRONLY | os.O_CREAT, 0o6755), NOBODY, _SOFT),
    Refused(
        "setuid without a name", "openat", (AT, FOLDER, os.O_WRONLY | os.O_TMPFILE, 0o4755), NOBODY, _SOFT
    ),
    Refused("setuid", "open", (FOLDER + b"/x", os.O_WRONLY | os.O_CREAT, 0o4755), NOBODY, _SOFT),
    *(Refused("a path", call, arguments, NOBODY, _SOFT) for call, arguments in _NO_PATH.items()),
    Refused("a path", "chown", (FILE, 0, 0), INIT, _SOFT),
    Refused("a path", "fchownat", (AT, FILE, 0, 0, 0), INIT, _SOFT),
    Refused("a descriptor", "fchown", (ANY, 0, 0)),
    Refused("a descriptor", "fchmod", (ANY, 0o600), MARKS),
    Refused("setuid", "fchmod", (ANY, 0o4755)),
    Refused("a path", "utimensat", (AT, FILE, 0, 0), NOBODY, _SOFT),
    Refused("a descriptor", "utimensat", (ANY, 0, 0, 0), MARKS, _SOFT),
    Refused("a descriptor", "ftruncate", (ANY, 0), WRITES),
    Refused("a descriptor", "fallocate", (ANY, 0, 0, 1), WRITES),
    *(
        Refused("look", call, arguments, READS, _SOFT)
        for call, arguments in {
            "stat": (FILE, 0),
            "lstat": (FILE, 0),
            "access": (FILE, 0),
            "faccessat": (AT, FILE, 0),
            "faccessat2": (AT, FILE, 0, 0),
            "readlink": (FILE, 0, 0),
            "readlinkat": (AT, FILE, 0, 0),
            "getcwd": (0, 0),
            "newfstatat": (AT, FILE, 0, 0),
            "statx": (AT, FILE, 0, 0, 0),
        }.items()
    ),
    *(
        Refused("outside", call, arguments, READS, _SOFT, _SOFT)
        for call, arguments in {
            "mkdir": (FOLDER + b"/x", 0o700),
            "mkdirat": (AT, FOLDER + b"/x", 0o700),
            "rmdir": (FOLDER + b"/empty",),
            "unlink": (FILE,),
            "unlinkat": (AT, FILE, 0),
            "rename": (FILE, FOLDER + b"/x"),
            "renameat": (AT, FILE, AT, FOLDER + b"/x"),
            "renameat2": (AT, FILE, AT, FOLDER + b"/x", 0),
            "link": (FILE, FOLDER + b"/x"),
            "linkat": (AT, FILE, AT, FOLDER + b"/x", 0),
            "symlink": (b"x", FOLDER + b"/x"),
            "symlinkat": (b"x", AT, FOLDER + b"/x"),
        }.items()
    ),
    Refused("sticky", "mkdir", (FOLDER + b"/x", 0o1777), NOBODY, _SOFT),
    Refused("setgid", "mkdirat", (AT, FOLDER + b"/x", 0o2755), NOBODY, _SOFT),
    Refused("lock", "flock", (ANY, 1), MARKS),
    Refused("F_SETLK", "fcntl", (ANY, 6, bytes(32)), MARKS),
    *(Refused(what, "fcntl", (ANY, number, 0)) for what, number in _FCNTLS.items()),
    *(Refused(what, "ioctl", (ANY, number, FILE)) for what, number in _IOCTLS.items()),
    Refused("TCGETS", "ioctl", (ANY, 0x5401, FILE), NOBODY, "ENOTTY"),
    # -- processes
    Refused("a process", "fork", (), NESTED),
    Refused("a process", "vfork", (), NESTED),
    Refused("a process", "clone", (17, 0, 0, 0, 0), NESTED, others={"auth": "EPERM", "listener": "EPERM"}),
    Refused("a thread", "clone", (0x10F00, 0, 0, 0, 0), NESTED),
    *(Refused(what, "clone", (flag | 17, 0, 0, 0, 0)) for what, flag in _CLONES.items()),
    Refused("a program", "execve", (b"/bin/true", 0, 0), INIT),
    Refused("a program", "execveat", (AT, b"/bin/true", 0, 0, 0), INIT),
    Refused("ARCH_SET_FS", "arch_prctl", (0x1002, 0), INIT),
    Refused("the kernel", "kill", (KERNEL, 0), NESTED, landlock="EPERM"),
    Refused("all", "kill", (-1, 0), NESTED, landlock="EPERM"),
    Refused("the kernel", "tkill", (KERNEL, 0), NESTED, landlock="EPERM"),
    Refused("the kernel", "tgkill", (KERNEL, KERNEL, 0), ALL, landlock="EPERM"),
    Refused("the parent", "tgkill", (PARENT, PARENT, 0), ALL, landlock="EPERM"),
    *(Refused("children", call, (-1, 0, 1, 0), NESTED) for call in ("wait4", "waitid")),
    *(Refused("of processes", call, (0, 0), NESTED) for call in ("setpgid", "setsid", "getpriority")),
    Refused("its own", "setpriority", (0, 0, 0), NESTED),
    Refused("of others", "setpriority", (0, KERNEL, 19)),
    Refused("of others", "sched_setscheduler", (KERNEL, 0, bytes(4)), NOBODY, "EPERM"),
    Refused("FIFO", "sched_setscheduler", (0, 1, b"\1\0\0\0"), NOBODY, "EPERM"),
    Refused("of others", "prlimit64", (KERNEL, 7, bytes(16), 0)),
    Refused("looked at, of others", "prlimit64", (KERNEL, 7, 0, bytes(16))),
    Refused("its own", "prlimit64", (0, 7, bytes(16), 0), ROOT),
    *(
        Refused("ids and limits", call, (0, 0, 0), ROOT)
        for call in (
            "setuid setgid setreuid setregid setresuid setresgid setgroups setfsuid setfsgid setrlimit capset"
        ).split()
    ),
    *(
        Refused("further", call, (0, 0, 0, 0), NESTED)
        for call in ("seccomp", "landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self")
    ),
    *(
        Refused(what, "prctl", (number, 1, 0, 0, 0), NESTED, "EINVAL")
        for what, number in {
            "PR_SET_PDEATHSIG": 1,
            "PR_SET_DUMPABLE": 4,
            "PR_SET_SECCOMP": 22,
            "PR_CAPBSET_DROP": 24,
            "PR_SET_NO_NEW_PRIVS": 38,
        }.items()
    ),
    *(Refused(what, "prctl", (number, 1, 0, 0, 0), NOBODY, "EINVAL") for what, number in _PRCTLS.items()),
    Refused("of SIGSYS", "rt_sigaction", (31, 0, 0, 8), NESTED, "ended"),
    # -- memory
    Refused("code", "mmap", (0, 4096, 5, 0x22, -1, 0), INIT),
    Refused("code", "mprotect", (0, 4096, 5), INIT),
    Refused("code", "pkey_mprotect", (0, 4096, 5, -1), INIT),
    Refused("a file without a name", "memfd_create", (b"x", 0), INIT),
    # -- calls that no actor makes or that this system may lack
    *(Refused("for nobody", call, (0, 0, 0, 0, 0, 0)) for call in _NEVER.split()),
    *(
        Refused("as if it were not there", call, (0, 0, 0, 0, 0, 0), NOBODY, "ENOSYS")
        for call in _LACKING.split()
    ),
)

# Calls that every actor makes; their refused forms stand above.
FREE = frozenset(
    (
        "exit exit_group rt_sigreturn restart_syscall read write readv writev pread64 pwrite64 preadv "
        "pwritev preadv2 pwritev2 lseek sendfile copy_file_range splice close close_range dup dup2 dup3 pipe "
        "pipe2 fsync fdatasync fadvise64 readahead fstat fstatfs getdents getdents64 recvmsg recvfrom "
        "getsockname getpeername poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait "
        "epoll_pwait epoll_pwait2 eventfd eventfd2 signalfd signalfd4 brk munmap mremap madvise mincore "
        "mlock mlock2 munlock msync clock_gettime clock_getres clock_nanosleep nanosleep gettimeofday time "
        "times alarm getitimer setitimer pause timerfd_create timerfd_settime timerfd_gettime futex "
        "futex_wait futex_wake futex_requeue futex_waitv set_robust_list set_tid_address rseq membarrier "
        "getcpu sched_yield sched_getaffinity sched_getparam sched_getscheduler sched_get_priority_max "
        "sched_get_priority_min rt_sigprocmask rt_sigpending rt_sigsuspend rt_sigtimedwait sigaltstack "
        "getpid getppid gettid getpgid getpgrp getsid getuid geteuid getgid getegid getresuid getresgid "
        "getgroups getrusage getrlimit uname sysinfo umask capget getrandom"
    ).split()
)
