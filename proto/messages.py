"""Declare every message between actors, in the order of the edges that carry them.

Data only; topology.py says which actor may send which. The first line of a message's docstring is its meaning
in `popkernel topology --format json`.

Message numbers are POP3's, from 1. Octets of mail are counted as POP3 sends them (RFC 1939 section 11). A
message in CARRIES transfers that many file descriptors (SCM_RIGHTS): always ends of channels that the kernel
made, but for the inputs of a reload and the connection to the system's log.
"""

from typing import Annotated, NamedTuple

from popkernel.proto.log_levels import DEBUG, ERROR
from popkernel.proto.schema import (
    Address,
    Blob,
    Code,
    Count,
    Field,
    Fields,
    Line,
    Name,
    Numbers,
    Octets,
    ReplyStatus,
    Secret,
    Session,
    Text,
)

Uidls = Annotated[list[str], Field("strs", 0, 70, items=2048)]
MOST_UIDLS = 20  # of SessionClosed
Data = Annotated[bytes, Field("bytes", 0, 1 << 20, content=True)]
Status = Annotated[int, Field("int", 0, 0xFFFF)]  # as wait(2) gives it
Pid = Annotated[int, Field("int", 1, 2**31 - 1)]
Id = Annotated[int, Field("int", 0, 2**31 - 1)]
Users = Annotated[list[str], Field("strs", 1, 64, items=128)]
Roots = Annotated[list[bytes], Field("blobs", 0, 4096, items=256)]
Path = Annotated[bytes, Field("bytes", 0, 4096)]
Tls = Annotated[int, Field("int", 0, 99)]  # tls_versions.py; 0: none
Level = Annotated[int, Field("int", ERROR, DEBUG)]  # log_levels.py
Mechanism = Annotated[str, Field("str", 0, 16)]  # PASS or a SASL mechanism's name
Reason = Annotated[str, Field("str", 1, 16)]  # a word of the log
Certificates = Annotated[list[str], Field("strs", 0, 400, items=64)]  # their paths
Ends = Annotated[list[int], Field("ints", 0, 2**63 - 1, items=64)]  # seconds since the epoch
# What an auth hands over to its successor: lists whose items belong together.
BATCH = 256
HandedKey = Annotated[bytes, Field("bytes", 0, 32, secret=True)]
HandedNames = Annotated[list[str], Field("strs", 0, 300, items=BATCH, secret=True)]
HandedDigests = Annotated[list[bytes], Field("blobs", 0, 32, items=BATCH, secret=True)]
HandedNumbers = Annotated[list[int], Field("ints", 0, 2**63 - 1, items=5 * BATCH, secret=True)]


# ---- any actor -> kernel
class Hello(NamedTuple):
    """The actor is locked in, and serves from now on."""

    pid: Pid
    promises: Text
    unveiled: Text


class ActorFailed(NamedTuple):
    """The actor cannot serve, and exits: bad tables, a bad certificate, no sandbox."""

    status: Status  # a sysexits(3) code
    text: Text


class PromiseBroken(NamedTuple):
    """The actor made a system call without the promise for it. The last message of that actor."""

    call: Text
    promise: Text


class PeerRefused(NamedTuple):
    """The peer sent something that the topology does not allow on this edge. The kernel ends the peer."""

    edge: Text
    peer: Name
    reason: Text


class LogEvent(NamedTuple):
    """An event for the log (log_events.py). The sender has escaped what came from outside."""

    level: Level
    event: Annotated[str, Field("str", 1, 64)]
    fields: Fields


class Counters(NamedTuple):
    """Answer to CountersRequest."""

    messages_in: Octets
    messages_out: Octets
    sessions: Count


# ---- kernel -> any actor
class CountersRequest(NamedTuple):
    """Send Counters."""


class ActorStop(NamedTuple):
    """Finish politely within that many seconds."""

    seconds: Count


class PeerChannel(NamedTuple):
    """Use this channel to that peer; a channel to an earlier instance of it is over. Carries the channel."""

    name: Name


class TraceStart(NamedTuple):
    """Send a TraceFrame into this channel for each message received or sent.

    Carries the channel. `payload`: with the content of mail.
    """

    payload: bool


class TraceStop(NamedTuple):
    """Stop tracing."""


class TraceFrame(NamedTuple):
    """A message that a traced actor received or sent, or an event of its own, without secrets.

    `time` and `turn` (when the actor's loop woke): nanoseconds of the monotonic clock. `ending`: it belongs
    to the end of that turn, when deferred work is done. `way`: "in", "out" or "note" (an event). `peer`: the
    other end, "" for an event. `session`: 0 for none. `octets`: the message's size. `lost`: frames before
    this one that did not fit into the channel. `fields`: a msgpack map; mail is cut to its size unless the
    trace was started with `payload`.
    """

    time: Octets
    turn: Octets
    ending: bool
    way: Annotated[str, Field("str", 1, 4)]
    peer: Annotated[str, Field("str", 0, 255)]
    name: Name
    session: Octets
    octets: Octets
    lost: Octets
    fields: Blob


# ---- listener -> kernel
class LoginStarted(NamedTuple):
    """The user of this session asks to log in. The kernel believes auth about a session only after this.

    The other fields are for the operator: the name as the client gave it, the client's address, the version
    of TLS (tls_versions.py), the mechanism as in LoginRequest. A listener may lie in them.
    """

    session: Session
    user: Annotated[str, Field("str", 0, 255)]
    address: Address
    tls: Tls
    mechanism: Mechanism


class ConnectionEnded(NamedTuple):
    """A connection has ended; with everything for the session's log line.

    `tls`: its version (tls_versions.py). `mechanism`: of the last login. `queue_ms`: how long that waited for
    its turn in the listener; `login_ms`: from then until its maildrop was granted, or until now; `open_ms`:
    until the maildrop was listed. `fault`: what kept a client from logging in, "tls" or "client", and
    `reason` in plain words; both empty if nothing did.
    """

    session: Session
    user: Annotated[str, Field("str", 0, 255)]
    address: Address
    why: Text
    commands: Octets
    octets_in: Octets
    octets_out: Octets
    retrieved: Count
    marked: Count  # by DELE, at the end
    removed: Count  # by QUIT
    milliseconds: Octets
    tls: Tls = 0
    mechanism: Mechanism = ""
    tls_ms: Count = 0
    queue_ms: Count = 0
    login_ms: Count = 0
    open_ms: Count = 0
    fault: Annotated[str, Field("str", 0, 16)] = ""
    reason: Line = ""


class ClientHungUp(NamedTuple):
    """The client shut its sending side (shutdown(2), close_notify) while an answer to it is due."""

    session: Session


class ListenSocketShut(NamedTuple):
    """A listening socket of this listener was shut down and accepts no connections any more.

    The listener accepts none on any socket, and serves those it has.
    """


class PeerTimeout(NamedTuple):
    """That peer has not answered within its edge's deadline: the kernel checks whether it is alive."""

    peer: Name


class LoginFailed(NamedTuple):
    """A failed login, for one line of the log.

    `why`: a response code; "nomailbox" for a right password without a maildrop; "kicked" by the operator;
    "auth" if auth refused it and has told the kernel why (LoginDenied). `milliseconds`: how long its
    client waited for the answer.
    """

    session: Session
    user: Annotated[str, Field("str", 0, 255)]
    address: Address
    why: Text
    milliseconds: Octets


# ---- kernel -> listener
class SessionAdmitted(NamedTuple):
    """The session is logged in as this user of the tables.

    Carries the channel to that user's maildir actor.
    """

    session: Session
    user: Name


class SessionRefused(NamedTuple):
    """The session authenticated, but cannot have its maildrop."""

    session: Session
    code: Code
    text: Line


class SessionKick(NamedTuple):
    """End this session: the operator wants it. Nothing is removed."""

    session: Session


# ---- kernel -> listener, gate, mda
class ServiceDrain(NamedTuple):
    """Take no new clients from now on or, if not `on`, take them again. Those at hand are served."""

    on: bool


# ---- kernel -> gate
class GateSeat(NamedTuple):
    """Give the next client this session number; its listener is named after it.

    Carries that listener's channel to the kernel.
    """

    session: Session


class GateSeatLogin(NamedTuple):
    """A login of this session has begun, or failed: in between, the client waits for the server."""

    session: Session
    begun: bool


class GateSeatLoggedIn(NamedTuple):
    """The client of this session has logged in."""

    session: Session


# ---- gate -> kernel
class GateSeatTaken(NamedTuple):
    """The client of this session has that address. Its listener, which is forked next, may lie about it."""

    session: Session
    address: Address


# ---- kernel -> listener, kernel -> gate
class ListenerDrain(NamedTuple):
    """A new listener has taken over: accept no more connections, serve those at hand, exit after the last."""


# ---- listener -> auth, auth -> listener, auth -> kernel
class LoginRequest(NamedTuple):
    """Check these credentials. The secret of XOAUTH2 and OAUTHBEARER is a token, any other a password."""

    session: Session
    user: Name
    secret: Secret
    address: Address
    mechanism: Mechanism


class LoginWithdrawn(NamedTuple):
    """The login of this session need not be checked if its turn has not come.

    `answer`: the client closed its sending side, and still takes an answer. Else it is gone, or its time is
    over, and no answer is wanted.
    """

    session: Session
    answer: bool


class LoginRefused(NamedTuple):
    """The login is refused, with the response code and the text for the client.

    The listener is not told why: the kernel is, by LoginDenied.
    """

    session: Session
    code: Code
    text: Line


class LoginGranted(NamedTuple):
    """The session of that listener belongs to this user, as the authorization table spells the name.

    Only auth may send it. Then how long the login waited for a thread, for the hash of its password, and
    because of earlier failures.
    """

    listener: Name
    session: Session
    user: Name
    queue_ms: Count = 0
    hash_ms: Count = 0
    penalty_ms: Count = 0


class LoginDenied(NamedTuple):
    """Auth refused a login of that session: the true reason, for the log only.

    `reason`: as for the event login.failed (docs/logs.md). `seconds`: until the next attempt is allowed, 0 if
    that is now. `milliseconds`: from the question to the answer.
    """

    listener: Name
    session: Session
    user: Name
    address: Address
    reason: Reason
    seconds: Count
    milliseconds: Octets


# ---- kernel -> auth and back
class AccountLookup(NamedTuple):
    """Say how a user stands in the authorization table, and whether a login would have to wait.

    For the operator. `user` or `address` may be empty.
    """

    request: Session
    user: Annotated[str, Field("str", 0, 255)]
    address: Address


class AccountState(NamedTuple):
    """Answer to AccountLookup.

    `user`: as the table has it, "" if absent. `entry`: absent, locked, unusable (its hash can't be checked)
    or present. `scheme`: of its hash, never the hash. `wait`: ms that a login of this user from this address
    would wait before its check.
    """

    request: Session
    user: Annotated[str, Field("str", 0, 255)]
    entry: Annotated[str, Field("str", 1, 16)]
    scheme: Annotated[str, Field("str", 0, 32)]
    wait: Octets


class LoginLoad(NamedTuple):
    """How busy auth is. Sent before Counters, and every few seconds while logins wait long."""

    waiting: Count  # logins that wait for a check
    oldest: Octets  # ms that the oldest of them has waited
    checks: Octets  # hashes and tokens checked since auth began
    hits: Octets  # logins since auth began that a remembered password answered
    misses: Octets  # and those that needed a check
    penalised: Count  # addresses whose logins have to wait


# ---- auth, listener or gate -> kernel
class PlacesRefused(NamedTuple):
    """So many clients were refused, or made room for others, by this bound since the last such message."""

    bound: Annotated[str, Field("str", 1, 32)]  # a configuration key
    clients: Count


# ---- kernel -> auth, auth -> auth, auth -> kernel: at a reload that replaces auth
class SuccessorChannel(NamedTuple):
    """Hand over what you remember of logins to the auth of that name. Carries the channel to it."""

    name: Name


class PredecessorChannel(NamedTuple):
    """Take over what the auth of that name remembers of logins. Carries the channel from it."""

    name: Name


class LoginMemoryBegin(NamedTuple):
    """The key of all digests that follow, and the bits of an IPv6 address that identify a client."""

    key: HandedKey
    prefix: Annotated[int, Field("int", 0, 128)]


class KnownAccounts(NamedTuple):
    """Users of the sender's authorization table, each with a keyed digest of name and hash (16 octets)."""

    users: HandedNames
    digests: HandedDigests


class VerifiedPasswords(NamedTuple):
    """Users with a keyed digest of the password that was right, and for how many milliseconds it counts."""

    users: HandedNames
    digests: HandedDigests
    milliseconds: HandedNumbers


class FailedPasswords(NamedTuple):
    """Keyed digests of passwords that were wrong, and for how many milliseconds they are remembered."""

    digests: HandedDigests
    milliseconds: HandedNumbers


class LoginPenalties(NamedTuple):
    """Scores of clients' addresses, of users (keyed digests), and of pairs of both (guessing.py).

    `clients` and `users`: "" and b"" for a score of the other alone. `numbers`: five for each score, as
    Guard.row returns them.
    """

    clients: HandedNames
    users: HandedDigests
    numbers: HandedNumbers


class LoginMemoryEnd(NamedTuple):
    """All is sent. What follows are changes since, until the sender ends."""


class LoginMemoryTaken(NamedTuple):
    """The sender has taken over what its predecessor remembers of logins or, if not `complete`, nothing.

    `passwords`: verified ones. `penalties`: addresses under one. `added`, `removed`, `changed`: how the
    users of its authorization table, and their hashes, differ from the predecessor's.
    """

    complete: bool
    passwords: Count
    penalties: Count
    added: Count
    removed: Count
    changed: Count


# ---- kernel -> maildir, maildir -> kernel
class SessionOpen(NamedTuple):
    """Serve a session; park it after that many seconds of silence.

    Carries the channel to the listener.
    """

    session: Session
    park: Count


class SessionWake(NamedTuple):
    """Resume a parked session, or begin one if `state` is empty.

    Carries its channel to the listener.
    """

    session: Session
    park: Count
    state: Blob


class DeliveryChannel(NamedTuple):
    """Accept deliveries on this channel. Carries the channel to the mda."""

    name: Name


class ActorRetire(NamedTuple):
    """Exit: the actor has been idle long enough."""


class SessionClosed(NamedTuple):
    """The session is over here: the maildrop's lease is free.

    `peak`: the most memory that the actor ever had, own or shared, in KiB, without what it had when it was
    forked; 0: unknown. `uidls`: of messages that the session had marked, or that are removed, the first
    twenty.
    """

    session: Session
    removed: Count
    failed: Count
    peak: Count
    uidls: Annotated[list[str], Field("strs", 0, 70, items=MOST_UIDLS)]


class SessionParked(NamedTuple):
    """The session is parked, with the state for SessionWake. Carries its channel to the listener.

    `peak`: as in SessionClosed.
    """

    session: Session
    state: Blob
    peak: Count


class SessionMoved(NamedTuple):
    """The maildir now leads outside this actor's sandbox: another actor must serve the session.

    The state is empty if the session has not begun. Carries its channel to the listener.
    """

    session: Session
    state: Blob


# ---- listener -> maildir
class Retrieve(NamedTuple):
    """Send messages first .. first+many-1 whole, in order; then up to `ahead` more if the frame has room."""

    first: Count
    many: Count
    ahead: Count


class Top(NamedTuple):
    """Send the header, the blank line and that many lines of the body (RFC 1939 section 7)."""

    number: Count
    lines: Count


class List(NamedTuple):
    """Send the sizes of messages first .. first+many-1."""

    first: Count
    many: Count


class Uidl(NamedTuple):
    """Send the unique ids of messages first .. first+many-1."""

    first: Count
    many: Count


class Delete(NamedTuple):
    """Mark messages first .. first+many-1 as deleted."""

    first: Count
    many: Count


class Reset(NamedTuple):
    """Unmark all messages."""


class FlowCredit(NamedTuple):
    """That many octets of bulk frames have gone to the client: as many more may be sent."""

    octets: Octets


class Quit(NamedTuple):
    """Remove the marked messages.

    `taken`: (first, many) pairs of messages that the client got without a Retrieve for them.
    """

    taken: Numbers


# ---- maildir -> listener
class MaildropReady(NamedTuple):
    """The maildrop is open; with the number of messages and of octets."""

    messages: Count
    octets: Octets


class MaildropUnready(NamedTuple):
    """The maildrop cannot be opened, or can no longer be served."""

    code: Code
    text: Line


class MailContent(NamedTuple):
    """Octets of messages, in one bulk frame.

    `parts`: quadruples (number, octets of the whole message, its octets in `data`, kind). Kind: 1 if they end
    the message, 2 if they are the whole of a message not asked for yet, else 0.

    `data` is ready for the wire: CRLF line ends, stuffed dots, no closing dot.
    """

    parts: Numbers
    data: Data


class MessageMissing(NamedTuple):
    """Message `number` cannot be sent (deleted, gone, unreadable); with the code and text for the client."""

    number: Count
    code: Code
    text: Line


class MessageSizes(NamedTuple):
    """Sizes from message `first` on, -1 for a deleted one, in one bulk frame; `last` if none follow."""

    first: Count
    sizes: Numbers
    last: bool


class MessageUidls(NamedTuple):
    """Unique ids from message `first` on, "" for a deleted one, in one bulk frame; `last` if none follow."""

    first: Count
    uidls: Uidls
    last: bool


class MessagesMarked(NamedTuple):
    """The messages are marked, except `refused` (marked before); with the maildrop's totals now."""

    first: Count
    many: Count
    refused: Numbers
    messages: Count
    octets: Octets


class MaildropTotals(NamedTuple):
    """Answer to Reset: the totals of the maildrop."""

    messages: Count
    octets: Octets


class QuitDone(NamedTuple):
    """The marked messages are removed, except `failed` of them."""

    removed: Count
    failed: Count


# ---- kernel -> spawner, kernel -> init and back
class ActorSpawn(NamedTuple):
    """Fork a maildir actor. Carries its channel to the kernel."""

    name: Name
    uid: Id
    gid: Id
    maildir: Path


class SingletonStart(NamedTuple):
    """Start a singleton, an actor of the topology table. Carries its channel to the kernel.

    `roots`: for the spawner, the directories that contain all maildirs.
    """

    actor: Name
    name: Name
    roots: Roots


class ProcessKill(NamedTuple):
    """Kill that child at once."""

    name: Name


class ProcessStarted(NamedTuple):
    """The process runs."""

    name: Name
    pid: Pid


class ProcessExited(NamedTuple):
    """The process has ended, and all its children; status as wait(2) gives it.

    If it could not be forked, `pid` is the sender's, and `status` that of an exit with 75.
    """

    name: Name
    pid: Pid
    status: Status


class RootDisplaced(NamedTuple):
    """The path `root` now leads outside the sender's sandbox: its children cannot see the maildirs there."""

    root: Path


class ImageTried(NamedTuple):
    """The memory of a maildir actor that was forked on trial at the spawner's start.

    `octets`: the actor's own when it was idle, 0 if unknown. `peak`: as in SessionClosed.
    """

    octets: Octets
    peak: Count


class RootsMissing(NamedTuple):
    """So many directories above maildirs did not exist when the spawner entered its sandbox."""

    roots: Count


class ProcessUnstarted(NamedTuple):
    """The process could not be started; the text says what was missing."""

    name: Name
    text: Text


class ReloadInputs(NamedTuple):
    """The new configuration is good: put it in force.

    Carries the user table. `later`: keys that apply at the next start. `spawner`: a setting of the spawner
    has changed. `mail`: one of all maildir actors has; else `users` are those whose own settings have.
    `auth`, `listeners`: a setting of that actor has changed, its user, or the content of a file that it
    reads. `certificates`: their files, and in `ends` when each ends.
    """

    later: Text
    spawner: bool
    mail: bool
    users: Users
    auth: bool
    listeners: bool
    certificates: Certificates
    ends: Ends


class SyslogChannel(NamedTuple):
    """A connection to the system's log, which it carries."""


class ReloadInputsFailed(NamedTuple):
    """The reload cannot begin: the reason, and the exit code (sysexits(3)) for `popkernel reload`."""

    status: Status
    text: Text


class ServiceStop(NamedTuple):
    """Init to kernel: stop the service."""


class KernelCheck(NamedTuple):
    """Init to kernel: answer with KernelLives."""


class KernelLives(NamedTuple):
    """Kernel to init: answer to KernelCheck."""


class MailboxFault(NamedTuple):
    """Init to kernel: a fault of one mailbox, found after a start or a reload (`after`)."""

    after: Annotated[str, Field("str", 1, 16)]
    text: Text


class MailboxesChecked(NamedTuple):
    """Init to kernel: every MailboxFault after that start or reload (`after`) has been sent."""

    after: Annotated[str, Field("str", 1, 16)]


class ReloadRequest(NamedTuple):
    """Kernel to init: read the configuration again; answer with ReloadInputs or ReloadInputsFailed."""


class ReloadDone(NamedTuple):
    """Kernel to init: the contents of ReloadInputs are in force or, if not `good`, nothing has changed."""

    good: bool


class SyslogRequest(NamedTuple):
    """Kernel to init: the system's log is gone; connect again, and answer with SyslogChannel."""


class ServiceRunning(NamedTuple):
    """Kernel to init: the service is up; tell the terminal and the service manager (sd_notify).

    `memory`: the budget of warm maildir actors, for people; "" if none stays.
    """

    addresses: Text
    users: Count
    memory: Text
    milliseconds: Octets


class ServiceEnding(NamedTuple):
    """Kernel to init: the service ends with this exit code."""

    status: Status
    text: Text


# ---- mda <-> kernel, mda <-> maildir
class RecipientLookup(NamedTuple):
    """Find the user of a recipient's address.

    `uid`: that of the connected mail server, from the socket; -1 over TCP. `look`: say only whether there is
    one, without a channel. `lost`: the last channel to that user has ended at the sender.
    """

    request: Session
    address: Name
    uid: Annotated[int, Field("int", -1, 2**32 - 2)]
    look: bool
    lost: bool


class RecipientFound(NamedTuple):
    """The recipient is that user. Carries a channel to the maildir actor if the mda has none (`fresh`)."""

    request: Session
    user: Name
    fresh: bool


class RecipientUnknown(NamedTuple):
    """The recipient is unknown, forbidden to this sender, or not available now: RFC 3463 status and text."""

    request: Session
    status: ReplyStatus
    text: Line


class RecipientsChanged(NamedTuple):
    """The user table has changed: earlier answers about recipients are void."""


class RetireRefused(NamedTuple):
    """The actor cannot retire now: a message is being delivered."""


class DeliveryWhole(NamedTuple):
    """A whole message with LF line ends, its sender and recipient address: store it safely."""

    delivery: Session
    sender: Annotated[str, Field("str", 0, 320)]
    recipient: Annotated[str, Field("str", 0, 320)]
    data: Data


class DeliveryBegin(NamedTuple):
    """A message too large for DeliveryWhole begins; `octets`: the size that its sender announced, or 0."""

    delivery: Session
    sender: Annotated[str, Field("str", 0, 320)]
    recipient: Annotated[str, Field("str", 0, 320)]
    octets: Octets


class DeliveryContent(NamedTuple):
    """The next octets of the message, with LF line ends."""

    delivery: Session
    data: Data


class DeliveryCommit(NamedTuple):
    """The message is whole: store it safely."""

    delivery: Session


class DeliveryAbort(NamedTuple):
    """The message will not become whole: discard it."""

    delivery: Session


class DeliveryAccepted(NamedTuple):
    """That many octets of content are taken (credit) or, if `safe`, the message is safe on disk."""

    delivery: Session
    octets: Octets
    safe: bool


class DeliveryRejected(NamedTuple):
    """The message is not accepted: RFC 3463 status and text."""

    delivery: Session
    status: ReplyStatus
    text: Line


class ActorLeaving(NamedTuple):
    """The actor is about to exit.

    To the mda: send nothing new on this channel, and close it once everything sent is answered. To the
    kernel, if it did not ask for it: send nothing new, and wait for the end of the process.
    """


# How many descriptors a message carries; 0 if it is not listed. RecipientFound carries one only if `fresh`.
CARRIES: dict[type, int] = {
    TraceStart: 1,
    PeerChannel: 1,
    SuccessorChannel: 1,
    PredecessorChannel: 1,
    SessionAdmitted: 1,
    GateSeat: 1,
    SessionOpen: 1,
    SessionWake: 1,
    DeliveryChannel: 1,
    SessionParked: 1,
    SessionMoved: 1,
    ActorSpawn: 1,
    SingletonStart: 1,
    ReloadInputs: 1,
    SyslogChannel: 1,
}


# Octets of bulk frames that a session may have on the way to its client: one being sent, one waiting.
WINDOW = 640 * 1024


def bulk_octets(message: tuple[object, ...]) -> int:
    """Return how much credit a bulk frame uses: about the octets it takes on the client's wire."""
    if isinstance(message, MailContent):
        return len(message.data)
    if isinstance(message, MessageSizes):
        return 16 * len(message.sizes)
    if isinstance(message, MessageUidls):
        return 80 * len(message.uidls)
    return 0
