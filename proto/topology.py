"""The one table: which actors there are, what each may do, and who may say what to whom.

Spawner, sandbox, channels, decoders, trace, `popkernel topology`, the documentation's diagrams and the tests read it. What
is not in it is forbidden; no row says "all". To add a message: a class in messages.py, its place in an edge below, no more.

`{user}` is the only template: one maildir actor a user, made when first needed. Order of the actor rows is the order of
start; they are stopped in reverse. An edge is one direction; two actors that speak both ways have two edges, which share
one channel: a connected pair of unix-domain sockets that the kernel made and of which it handed one end to each.
"""

from collections.abc import Mapping
from typing import NamedTuple

from popkernel.proto import messages as m
from popkernel.proto.schema import fields_of

KIB = 1024
MIB = 1024 * KIB


class Unveiled(NamedTuple):
    """A path an actor sees: `what` names an entry of the actor's configuration, `permissions` are unveil(2)'s letters."""

    what: str
    permissions: str
    why: str


class Actor(NamedTuple):
    """A row of the table. Seconds, octets; promises as in pledge(2)."""

    name: str
    module: str  # where its `main` is; imported by the process that becomes it
    runs_as: str  # root, a configured user of that name, or the mail user
    promises: str  # while serving
    why: str  # each promise, in words
    unveiled: tuple[Unveiled, ...] = ()
    singleton: bool = True
    restart: str = "permanent"  # permanent: always; temporary: when next needed; never: its end is everyone's
    shutdown: int = 5  # seconds from Stop to the end
    threads: bool = False  # may start threads, between Landlock and seccomp and not later
    nested: bool = False  # has children that lock themselves in further
    capabilities: str = ""  # what it keeps of root's powers where it runs as root, capabilities(7); others have none
    sockets: bool = False  # makes sockets of its own; for the others unix and inet mean what was handed over
    nofile: int = 64  # descriptors
    memory: int = 512 * MIB  # address space, octets


class Edge(NamedTuple):
    """Who may say what to whom. `answer` names the edge's answer for each message that has one."""

    source: str
    target: str
    messages: tuple[type, ...]
    answers: Mapping[str, tuple[str, ...]]  # message -> what answers it on the way back
    octets: int = 20 * KIB  # the largest frame: two texts of 2,000 characters, four octets each, and what belongs to them
    deadline: int = 0  # seconds an answer may take before the asker gives up, or sees whether the other lives; 0: it has nothing to ask
    depth: int = 256  # frames that may wait in a queue; more ends the peer that does not read
    secrets: tuple[str, ...] = ()  # Message.field that is never shown, logged or recorded


_SPAWNED = (m.Hello, m.Failed, m.Broke, m.Refused, m.Log, m.Counters)
_REPORT = {"Report": ("Counters",)}
_ALIVE = 10  # seconds within which who is said not to answer must answer a Report
_WATCHED = (m.Watch, m.Unwatch)

ACTORS: tuple[Actor, ...] = (
    Actor(
        "init",
        "popkernel.kernel.init.main",
        "root",
        "stdio rpath wpath cpath fattr flock unix inet proc exec prot_exec id sendfd recvfd",
        "the process the operator started: binds ports, starts singletons afresh (proc exec prot_exec) and does nothing else;"
        " reads nothing but the kernel's orders. The rest is what the actors it starts need until they lock themselves in",
        restart="never",
        nested=True,
        capabilities="chown dac_override dac_read_search kill net_bind_service setgid setpcap setuid sys_nice sys_resource",  # to hand on
        sockets=True,
        nofile=1024,
        memory=0,
    ),
    Actor(
        "kernel",
        "popkernel.kernel.supervisor.main",
        "root",
        "stdio rpath cpath unix sendfd recvfd",
        "accepts the operator's control connections and makes channels (unix), hands them over (sendfd), takes parked sessions and, at a"
        " reload, the user table that init has had read (recvfd); removes what is in the run directory should init be gone (rpath cpath)",
        unveiled=(Unveiled("run_dir", "rc", "its sockets, to be removed should init be gone"),),
        restart="never",
        nofile=65536,
        memory=0,
    ),
    Actor(
        "spawner",
        "popkernel.kernel.spawner.main",
        "root",
        "stdio rpath wpath cpath fattr flock proc id sendfd recvfd",
        "the kernel's hand: forks maildir actors from a warm image (proc) under their users' ids (id); the rest is what its"
        " children keep",
        unveiled=(Unveiled("maildir_roots", "rwc", "what its children will be narrowed to"),),
        nested=True,
        capabilities="kill setgid setuid",  # its children are other users'
        nofile=4096,
        memory=0,
    ),
    Actor(
        "auth",
        "popkernel.actors.auth.main",
        "auth",
        "stdio recvfd",
        "hashes; takes new listeners' channels (recvfd). Its table was read before it locked itself in",
        threads=True,
        nofile=65536,  # a listener's channel each; with isolation = "connection" there are as many as clients
        memory=1024 * MIB,
    ),
    Actor(
        "listener",
        "popkernel.actors.listener.main",
        "listener",
        "stdio inet recvfd",
        "serves TCP connections on the listening sockets it was handed (inet); takes sessions' channels (recvfd)",
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
        'with isolation = "connection", in the listeners\' place: takes TCP connections on the listening sockets it was handed (inet)'
        " and forks a listener for each (proc), whose channel to the kernel was sent ahead (recvfd)",
        nested=True,
        nofile=65536,
        shutdown=10,
    ),
    Actor(
        "maildir.{user}",
        "popkernel.actors.maildir.main",
        "the mail user",
        "stdio rpath wpath cpath fattr flock sendfd recvfd",
        "reads, marks, removes and writes mail in one maildir (rpath wpath cpath fattr), under the popcache lock (flock); takes"
        " sessions' channels (recvfd) and gives a sleeping one back (sendfd)",
        unveiled=(Unveiled("maildir", "rwc", "that user's mail"),),
        singleton=False,
        restart="temporary",
        shutdown=10,
        memory=1536 * MIB,  # a million messages take half of it
    ),
    Actor(
        "mda",
        "popkernel.actors.mda.main",
        "mda",
        "stdio unix inet recvfd",
        "serves LMTP on the sockets it was handed (unix, inet on loopback); takes channels to maildir actors (recvfd)",
        nofile=8192,
        memory=1024 * MIB,
    ),
)
_ROWS = {row.name.split(".", 1)[0]: row for row in ACTORS}

EDGES: tuple[Edge, ...] = (
    # The kernel's hands.
    Edge(
        "kernel",
        "init",
        (m.Execute, m.Kill, m.Running, m.Ending, m.Signal, m.Report),
        {"Execute": ("Started", "Unstarted", "Hello"), "Kill": ("Exited",), "Signal": ("Reread", "Unread", "Syslog"), **_REPORT},
        octets=256 * KIB,
        deadline=20,  # to its hello
    ),
    Edge(
        "init",
        "kernel",
        (m.Started, m.Unstarted, m.Exited, m.Reread, m.Unread, m.Syslog, m.Signal, m.Counters),
        {"Reread": ("Signal",), "Signal": ("Signal",)},
        deadline=20,  # to any word while it owes init one
    ),
    Edge(
        "kernel",
        "spawner",
        (m.Spawn, m.Kill, m.Report, m.Stop),
        {"Spawn": ("Hello", "Exited"), "Kill": ("Exited",), **_REPORT},
        octets=8 * KIB,
        deadline=_ALIVE,
        depth=20000,
    ),
    Edge("spawner", "kernel", (*_SPAWNED, m.Exited, m.Displaced), {}),
    # Logging in. Only auth can make a session somebody's, and only one that a listener announced.
    Edge("listener", "auth", (m.Login,), {"Login": ("Denied",)}, octets=10 * KIB, deadline=60, depth=4096, secrets=("Login.secret",)),
    Edge("auth", "listener", (m.Denied,), {}, depth=4096),
    Edge("kernel", "auth", (m.Peer, m.Report, m.Stop, *_WATCHED), _REPORT, deadline=_ALIVE),
    Edge("auth", "kernel", (*_SPAWNED, m.Granted), {}, depth=4096),
    Edge("kernel", "listener", (m.Peer, m.Opened, m.Turned, m.Drain, m.Report, m.Stop, *_WATCHED), _REPORT, deadline=_ALIVE, depth=4096),
    Edge(
        "listener",
        "kernel",
        (*_SPAWNED, m.Awaiting, m.Ended, m.LoginFailed, m.Late, m.Deaf),
        {"Awaiting": ("Opened", "Turned")},
        deadline=60,
        depth=4096,
    ),
    # A listener for each connection: what it will need is there before its client is.
    Edge(
        "kernel",
        "gate",
        (m.Seat, m.Entered, m.Drain, m.Kill, m.Report, m.Stop),
        {"Kill": ("Exited",), **_REPORT},
        deadline=_ALIVE,
        depth=20000,
    ),
    Edge("gate", "kernel", (*_SPAWNED, m.Ended, m.Exited, m.Deaf), {}, depth=20000),
    # One session of one user. The channel is the session: who holds no end of it can say nothing about it.
    Edge(
        "kernel",
        "maildir.{user}",
        (m.Open, m.Wake, m.Receive, m.Retire, m.Report, m.Stop, *_WATCHED),
        {"Open": ("Ready", "Unready"), "Retire": ("Exited", "Busy"), **_REPORT},  # who waits for the listing is the listener, who says Late
        octets=256 * KIB,
        deadline=_ALIVE,
    ),
    Edge("maildir.{user}", "kernel", (*_SPAWNED, m.Closed, m.Parked, m.Moved, m.Busy, m.Leaving), {}, octets=256 * KIB),
    Edge(
        "listener",
        "maildir.{user}",
        (m.Retrieve, m.Top, m.List, m.Uidl, m.Delete, m.Reset, m.Credit, m.Quit),
        {
            "Retrieve": ("Mail", "Missing"),
            "Top": ("Mail", "Missing"),
            "List": ("Sizes",),
            "Uidl": ("Ids",),
            "Delete": ("Deleted",),
            "Reset": ("Totals",),
            "Quit": ("Bye",),
        },
        octets=64 * KIB,
        deadline=60,
        depth=1024,
    ),
    Edge(
        "maildir.{user}",
        "listener",
        (m.Ready, m.Unready, m.Mail, m.Missing, m.Sizes, m.Ids, m.Deleted, m.Totals, m.Bye),
        {},
        octets=320 * KIB,
        depth=1024,
    ),
    # Delivery.
    Edge("kernel", "mda", (m.Maildrop, m.NoMaildrop, m.Anew, m.Report, m.Stop, *_WATCHED), _REPORT, deadline=_ALIVE, depth=4096),
    Edge("mda", "kernel", (*_SPAWNED, m.Recipient, m.Late), {"Recipient": ("Maildrop", "NoMaildrop")}, deadline=10, depth=4096),
    Edge(
        "mda",
        "maildir.{user}",
        (m.Post, m.Deliver, m.Content, m.Commit, m.Abort),
        dict.fromkeys(("Post", "Content", "Commit"), ("Accepted", "Rejected")),
        octets=320 * KIB,
        deadline=300,
        depth=4096,
    ),
    Edge("maildir.{user}", "mda", (m.Accepted, m.Rejected, m.Leaving), {}, depth=4096),
    # Who is watched writes what passes into a channel of its own, whose other end, "tap", is the kernel's: never the other way.
    *(Edge(watched, "tap", (m.Tapped,), {}, octets=512 * KIB, depth=0) for watched in ("auth", "listener", "maildir.{user}", "mda")),
)


def kind_of(instance: str) -> str:
    """The row an instance belongs to: `listener.0` -> `listener`, `maildir.alice` -> `maildir.{user}`.

    What follows a `~` counts the replacements of a singleton. KeyError if there is no such row.
    """
    return actor(instance).name


def actor(instance: str) -> Actor:
    """The row of an actor or of an instance of it; KeyError if none."""
    return _ROWS[instance.partition("~")[0].partition(".")[0]]


def edge(source: str, target: str) -> Edge:
    """The edge between two rows (not instances); KeyError for a pair that may not speak."""
    for row in EDGES:
        if row.source == source and row.target == target:
            return row
    raise KeyError(f"{source} -> {target}")


def digest() -> str:
    """A short name for this very table: changes with any message, field, bound or edge. Recordings carry it."""
    from hashlib import sha256  # not for the warm image: it loads libcrypto

    text = []
    for row in EDGES:
        text.append(f"{row.source}>{row.target}:{row.octets}")
        text += [f"{c.__name__}({', '.join(f'{n}:{f}' for n, f in fields_of(c).items())})" for c in row.messages]
    return sha256("\n".join(text).encode()).hexdigest()[:16]
