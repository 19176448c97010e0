"""Define the topology: the actors, what each may do, and which messages each may send to which other.

Spawner, sandbox, channels, codecs, trace, `popkernel topology`, the diagrams of the documentation and the
tests read it. Everything that is not in it is forbidden; no row says "all". To add a message: a class in
messages.py, and its place in an edge below.

`{user}` is the only template: one maildir actor a user, started on demand. Actors are started in the order of
their rows, and stopped in reverse order. An edge is one direction; two actors that send to each other have
two edges, which share one channel: a connected pair of unix-domain sockets. The kernel makes it, and hands
one end to each.
"""

from collections.abc import Mapping
from typing import NamedTuple

from popkernel.proto import messages as m
from popkernel.proto.schema import fields_of

KIB = 1024
MIB = 1024 * KIB


class Unveiled(NamedTuple):
    """A path that an actor sees: an entry of its configuration, with `permissions` as in unveil(2)."""

    what: str
    permissions: str
    why: str


class Actor(NamedTuple):
    """A row of the table; times in seconds, sizes in octets, promises as in pledge(2)."""

    name: str
    module: str  # has its `main`; imported by the actor's process
    runs_as: str  # root, a configured user of that name, or the mail user
    promises: str  # while serving
    why: str  # the reason for each promise
    unveiled: tuple[Unveiled, ...] = ()
    singleton: bool = True
    restart: str = "permanent"  # permanent: always; temporary: on demand; never: the service ends with it
    shutdown: int = 5  # seconds from ActorStop to its end
    threads: bool = False  # starts threads: after Landlock and before seccomp, never later
    nested: bool = False  # has children with tighter sandboxes
    # capabilities(7) that it keeps if it runs as root; the others have none
    capabilities: str = ""
    sockets: bool = False  # creates sockets; for the others, unix and inet cover inherited sockets only
    nofile: int = 64  # descriptors
    memory: int = 512 * MIB  # address space, octets


class Edge(NamedTuple):
    """The messages that `source` may send to `target`; `answers` name those that answer them."""

    source: str
    target: str
    messages: tuple[type, ...]
    answers: Mapping[str, tuple[str, ...]]  # message -> its answers on the edge back
    # the largest frame: two texts of 2,000 characters, four octets each, and the other fields
    octets: int = 20 * KIB
    # seconds until the sender gives up waiting for an answer, or checks whether the peer lives; 0: no answers
    deadline: int = 0
    depth: int = 256  # frames in a queue; at more, the peer that does not read is ended
    secrets: tuple[str, ...] = ()  # Message.field that is never shown, logged or recorded


_SPAWNED = (m.Hello, m.ActorFailed, m.PromiseBroken, m.PeerRefused, m.LogEvent, m.Counters)
_REPORT = {"CountersRequest": ("Counters",)}
_ALIVE = 10  # seconds within which an actor that may hang must answer CountersRequest
_WATCHED = (m.TraceStart, m.TraceStop)

ACTORS: tuple[Actor, ...] = (
    Actor(
        "init",
        "popkernel.kernel.init.main",
        "root",
        "stdio rpath wpath cpath fattr flock unix inet proc exec prot_exec id sendfd recvfd",
        "the process that the operator started: binds ports, starts singletons (proc exec prot_exec) and"
        " does nothing else; reads nothing but the kernel's orders. The other promises are for the actors"
        " that it starts, which need them until they lock themselves in",
        restart="never",
        nested=True,
        # for its children
        capabilities="chown dac_override dac_read_search kill net_bind_service setgid setpcap setuid"
        " sys_nice sys_resource",
        sockets=True,
        nofile=1024,
        memory=0,
    ),
    Actor(
        "kernel",
        "popkernel.kernel.supervisor.main",
        "root",
        "stdio rpath cpath unix sendfd recvfd",
        "accepts the operator's control connections and makes channels (unix), hands them over (sendfd),"
        " takes parked sessions and, at a reload, the user table from init (recvfd); cleans the run"
        " directory if init is gone (rpath cpath)",
        unveiled=(Unveiled("run_dir", "rc", "its sockets, to be removed if init is gone"),),
        restart="never",
        nofile=65536,
        memory=0,
    ),
    Actor(
        "spawner",
        "popkernel.kernel.spawner.main",
        "root",
        "stdio rpath wpath cpath fattr flock proc id sendfd recvfd",
        "forks maildir actors for the kernel from a warm image (proc) under their users' ids (id); the other"
        " promises are for its children",
        unveiled=(Unveiled("maildir_roots", "rwc", "each child narrows it to one maildir"),),
        nested=True,
        capabilities="kill setgid setuid",  # its children run as other users
        nofile=4096,
        memory=0,
    ),
    Actor(
        "auth",
        "popkernel.actors.auth.main",
        "auth",
        "stdio recvfd",
        "checks passwords and tokens; takes channels to new listeners and, at a reload, to another auth"
        " (recvfd). Its table is read before it locks itself in",
        threads=True,
        nofile=65536,  # a channel for each listener; with isolation = "connection", for each client
        memory=1024 * MIB,
    ),
    Actor(
        "listener",
        "popkernel.actors.listener.main",
        "listener",
        "stdio inet recvfd",
        "serves TCP connections on the listening sockets it was handed (inet); takes sessions' channels"
        " (recvfd)",
        threads=True,  # its watchdog
        nofile=65536,
        shutdown=10,
        memory=4096 * MIB,
    ),
    Actor(
        "gate",
        "popkernel.actors.listener.gate",
        "listener",
        "stdio inet proc recvfd",
        'with isolation = "connection", in place of the listeners: takes TCP connections on the listening'
        " sockets it was handed (inet) and forks a listener for each (proc), whose channel to the kernel"
        " comes in advance (recvfd)",
        nested=True,
        nofile=65536,
        shutdown=10,
    ),
    Actor(
        "maildir.{user}",
        "popkernel.actors.maildir.main",
        "the mail user",
        "stdio rpath wpath cpath fattr flock sendfd recvfd",
        "reads, marks, removes and writes mail in one maildir (rpath wpath cpath fattr), under the popcache"
        " lock (flock); takes sessions' channels (recvfd) and gives those of parked sessions back (sendfd)",
        unveiled=(Unveiled("maildir", "rwc", "that user's mail"),),
        singleton=False,
        restart="temporary",
        shutdown=10,
        memory=1536 * MIB,  # a million messages use half of it
    ),
    Actor(
        "mda",
        "popkernel.actors.mda.main",
        "mda",
        "stdio unix inet recvfd",
        "serves LMTP on the sockets it was handed (unix, inet on loopback); takes channels to maildir actors"
        " (recvfd)",
        nofile=8192,
        memory=1024 * MIB,
    ),
)
_ROWS = {row.name.split(".", 1)[0]: row for row in ACTORS}

EDGES: tuple[Edge, ...] = (
    # Processes, reload, end of the service.
    Edge(
        "kernel",
        "init",
        (
            m.SingletonStart,
            m.ProcessKill,
            m.ServiceRunning,
            m.ServiceEnding,
            m.ReloadRequest,
            m.ReloadDone,
            m.SyslogRequest,
            m.KernelLives,
            m.CountersRequest,
        ),
        {
            "SingletonStart": ("ProcessStarted", "ProcessUnstarted", "Hello"),
            "ProcessKill": ("ProcessExited",),
            "ReloadRequest": ("ReloadInputs", "ReloadInputsFailed"),
            "SyslogRequest": ("SyslogChannel",),
            **_REPORT,
        },
        octets=256 * KIB,
        deadline=20,  # until Hello
    ),
    Edge(
        "init",
        "kernel",
        (
            m.ProcessStarted,
            m.ProcessUnstarted,
            m.ProcessExited,
            m.ReloadInputs,
            m.ReloadInputsFailed,
            m.SyslogChannel,
            m.ServiceStop,
            m.KernelCheck,
            m.MailboxFault,
            m.MailboxesChecked,
            m.Counters,
        ),
        {"ReloadInputs": ("ReloadDone",), "KernelCheck": ("KernelLives",)},
        octets=192 * KIB,  # the paths of many certificates
        deadline=20,  # until any message from the kernel while an answer is due
    ),
    Edge(
        "kernel",
        "spawner",
        (m.ActorSpawn, m.ProcessKill, m.CountersRequest, m.ActorStop),
        {"ActorSpawn": ("Hello", "ProcessExited"), "ProcessKill": ("ProcessExited",), **_REPORT},
        octets=8 * KIB,
        deadline=_ALIVE,
        depth=20000,
    ),
    Edge(
        "spawner", "kernel", (*_SPAWNED, m.ImageTried, m.ProcessExited, m.RootDisplaced, m.RootsMissing), {}
    ),
    # Login. Only auth grants one, and only for a session that a listener has announced.
    Edge(
        "listener",
        "auth",
        (m.LoginRequest, m.LoginWithdrawn),
        {"LoginRequest": ("LoginRefused",)},
        octets=10 * KIB,
        deadline=60,
        depth=4096,
        secrets=("LoginRequest.secret",),
    ),
    Edge("auth", "listener", (m.LoginRefused,), {}, depth=4096),
    Edge(
        "kernel",
        "auth",
        (
            m.PeerChannel,
            m.SuccessorChannel,
            m.PredecessorChannel,
            m.AccountLookup,
            m.CountersRequest,
            m.ActorStop,
            *_WATCHED,
        ),
        {
            "PredecessorChannel": ("LoginMemoryTaken",),
            "AccountLookup": ("AccountState",),
            **_REPORT,
        },
        deadline=_ALIVE,
    ),
    Edge(
        "auth",
        "kernel",
        (
            *_SPAWNED,
            m.LoginGranted,
            m.LoginDenied,
            m.LoginMemoryTaken,
            m.AccountState,
            m.LoginLoad,
            m.PlacesRefused,
        ),
        {},
        depth=4096,
    ),
    # At a reload, to the successor. The kernel makes this channel, and keeps no end of it.
    Edge(
        "auth",
        "auth",
        (
            m.LoginMemoryBegin,
            m.KnownAccounts,
            m.VerifiedPasswords,
            m.FailedPasswords,
            m.LoginPenalties,
            m.LoginMemoryEnd,
        ),
        {},
        octets=512 * KIB,
        depth=4096,
        secrets=(
            "LoginMemoryBegin.key",
            "KnownAccounts.users",
            "KnownAccounts.digests",
            "VerifiedPasswords.users",
            "VerifiedPasswords.digests",
            "VerifiedPasswords.milliseconds",
            "FailedPasswords.digests",
            "FailedPasswords.milliseconds",
            "LoginPenalties.clients",
            "LoginPenalties.users",
            "LoginPenalties.numbers",
        ),
    ),
    Edge(
        "kernel",
        "listener",
        (
            m.PeerChannel,
            m.SessionAdmitted,
            m.SessionRefused,
            m.SessionKick,
            m.ServiceDrain,
            m.ListenerDrain,
            m.CountersRequest,
            m.ActorStop,
            *_WATCHED,
        ),
        _REPORT,
        deadline=_ALIVE,
        depth=4096,
    ),
    Edge(
        "listener",
        "kernel",
        (
            *_SPAWNED,
            m.LoginStarted,
            m.ClientHungUp,
            m.ConnectionEnded,
            m.LoginFailed,
            m.PeerTimeout,
            m.ListenSocketShut,
            m.PlacesRefused,
        ),
        {"LoginStarted": ("SessionAdmitted", "SessionRefused")},
        deadline=60,
        depth=4096,
    ),
    # A listener for each connection: its number and its channel are sent before its client connects.
    Edge(
        "kernel",
        "gate",
        (
            m.GateSeat,
            m.GateSeatLogin,
            m.GateSeatLoggedIn,
            m.ServiceDrain,
            m.ListenerDrain,
            m.ProcessKill,
            m.CountersRequest,
            m.ActorStop,
        ),
        {"ProcessKill": ("ProcessExited",), **_REPORT},
        deadline=_ALIVE,
        depth=20000,
    ),
    Edge(
        "gate",
        "kernel",
        (
            *_SPAWNED,
            m.ConnectionEnded,
            m.ProcessExited,
            m.ListenSocketShut,
            m.PlacesRefused,
            m.GateSeatTaken,
        ),
        {},
        depth=20000,
    ),
    # One session of one user. A process without an end of its channel can send nothing about it.
    Edge(
        "kernel",
        "maildir.{user}",
        (
            m.SessionOpen,
            m.SessionWake,
            m.DeliveryChannel,
            m.ActorRetire,
            m.CountersRequest,
            m.ActorStop,
            *_WATCHED,
        ),
        # the listener waits for the listing, and reports a delay by PeerTimeout
        {
            "SessionOpen": ("MaildropReady", "MaildropUnready"),
            "ActorRetire": ("ProcessExited", "RetireRefused"),
            **_REPORT,
        },
        octets=256 * KIB,
        deadline=_ALIVE,
    ),
    Edge(
        "maildir.{user}",
        "kernel",
        (*_SPAWNED, m.SessionClosed, m.SessionParked, m.SessionMoved, m.RetireRefused, m.ActorLeaving),
        {},
        octets=256 * KIB,
    ),
    Edge(
        "listener",
        "maildir.{user}",
        (m.Retrieve, m.Top, m.List, m.Uidl, m.Delete, m.Reset, m.FlowCredit, m.Quit),
        {
            "Retrieve": ("MailContent", "MessageMissing"),
            "Top": ("MailContent", "MessageMissing"),
            "List": ("MessageSizes",),
            "Uidl": ("MessageUidls",),
            "Delete": ("MessagesMarked",),
            "Reset": ("MaildropTotals",),
            "Quit": ("QuitDone",),
        },
        octets=64 * KIB,
        deadline=60,
        depth=1024,
    ),
    Edge(
        "maildir.{user}",
        "listener",
        (
            m.MaildropReady,
            m.MaildropUnready,
            m.MailContent,
            m.MessageMissing,
            m.MessageSizes,
            m.MessageUidls,
            m.MessagesMarked,
            m.MaildropTotals,
            m.QuitDone,
        ),
        {},
        octets=320 * KIB,
        depth=1024,
    ),
    # Delivery.
    Edge(
        "kernel",
        "mda",
        (
            m.RecipientFound,
            m.RecipientUnknown,
            m.RecipientsChanged,
            m.ServiceDrain,
            m.CountersRequest,
            m.ActorStop,
            *_WATCHED,
        ),
        _REPORT,
        deadline=_ALIVE,
        depth=4096,
    ),
    Edge(
        "mda",
        "kernel",
        (*_SPAWNED, m.RecipientLookup, m.PeerTimeout),
        {"RecipientLookup": ("RecipientFound", "RecipientUnknown")},
        deadline=10,
        depth=4096,
    ),
    Edge(
        "mda",
        "maildir.{user}",
        (m.DeliveryWhole, m.DeliveryBegin, m.DeliveryContent, m.DeliveryCommit, m.DeliveryAbort),
        dict.fromkeys(
            ("DeliveryWhole", "DeliveryContent", "DeliveryCommit"), ("DeliveryAccepted", "DeliveryRejected")
        ),
        octets=320 * KIB,
        deadline=300,
        depth=4096,
    ),
    Edge("maildir.{user}", "mda", (m.DeliveryAccepted, m.DeliveryRejected, m.ActorLeaving), {}, depth=4096),
    # A traced actor writes frames into a separate channel, whose other end "tap" is the kernel's. Nothing is
    # ever sent back on it.
    *(
        Edge(watched, "tap", (m.TraceFrame,), {}, octets=512 * KIB, depth=0)
        for watched in ("auth", "listener", "maildir.{user}", "mda")
    ),
)


def kind_of(instance: str) -> str:
    """Return the name of an instance's row: `listener.0` -> `listener`, `maildir.alice` -> `maildir.{user}`.

    The part after a `~` counts the replacements of a singleton. Raises KeyError if there is no such row.
    """
    return actor(instance).name


def actor(instance: str) -> Actor:
    """Return the row of an actor or of an instance. Raises KeyError if there is none."""
    return _ROWS[instance.partition("~")[0].partition(".")[0]]


def edge(source: str, target: str) -> Edge:
    """Return the edge between two rows (not instances). Raises KeyError if there is none."""
    for row in EDGES:
        if row.source == source and row.target == target:
            return row
    raise KeyError(f"{source} -> {target}")


def digest() -> str:
    """Return a short digest of the table: it changes with any message, field, bound or edge.

    Recordings carry it.
    """
    from hashlib import sha256  # here, because it loads libcrypto, which the warm image must not hold

    text = []
    for row in EDGES:
        text.append(f"{row.source}>{row.target}:{row.octets}")
        text += [
            f"{c.__name__}({', '.join(f'{n}:{f}' for n, f in fields_of(c).items())})" for c in row.messages
        ]
    return sha256("\n".join(text).encode()).hexdigest()[:16]
