"""Every message between actors, in the order of the edges they travel on. Data only; who may send what stands in topology.py.

Numbers of messages are POP3's (1 is the first). Octets are counted as POP3 sends them (RFC 1939 section 11). A message
that CARRIES names hands over that many file descriptors with it (SCM_RIGHTS): always ends of channels that the kernel made.
"""

from typing import Annotated, NamedTuple

from popkernel.proto.schema import Address, Blob, Code, Count, Field, Name, Numbers, Octets, Secret, Session, Text

Uidls = Annotated[list[str], Field("strs", 0, 70, items=2048)]
Data = Annotated[bytes, Field("bytes", 0, 1 << 20, content=True)]
Status = Annotated[int, Field("int", 0, 0xFFFF)]  # as wait(2) gives it
Pid = Annotated[int, Field("int", 1, 2**31 - 1)]
Id = Annotated[int, Field("int", 0, 2**31 - 1)]
Roots = Annotated[list[bytes], Field("blobs", 0, 4096, items=256)]
Path = Annotated[bytes, Field("bytes", 0, 4096)]
Level = Annotated[int, Field("int", 0, 7)]  # syslog(3): 3 error, 4 warning, 5 notice, 6 info, 7 debug


# ---- any actor -> kernel
class Hello(NamedTuple):
    """I am locked in, and serve from now on."""

    pid: Pid
    promises: Text
    unveiled: Text


class Failed(NamedTuple):
    """I can't serve, and go: bad tables, a bad certificate, a cage that can't be had."""

    status: Status  # a sysexits(3) code
    text: Text


class Broke(NamedTuple):
    """I broke a promise: the call, and the promise that would have allowed it. The last word of an actor."""

    call: Text
    promise: Text


class Refused(NamedTuple):
    """A peer sent me what the topology does not allow on that edge. The kernel ends the peer."""

    edge: Text
    peer: Name
    reason: Text


class Log(NamedTuple):
    """A line for the log, of my own words: what came from outside is escaped before."""

    level: Level
    text: Text


class Counters(NamedTuple):
    """The answer to Report."""

    messages_in: Octets
    messages_out: Octets
    sessions: Count


# ---- kernel -> any actor
class Report(NamedTuple):
    """Tell me your counters."""


class Stop(NamedTuple):
    """Finish politely within so many seconds."""

    seconds: Count


class Peer(NamedTuple):
    """Here is your channel to that peer; one to an earlier instance of it is over. Carries the channel."""

    name: Name


class Watch(NamedTuple):
    """Somebody watches you: Tapped for each message you take or give, into this channel. Carries it. `payload`: mail content too."""

    payload: bool


class Unwatch(NamedTuple):
    """Nobody watches you any more."""


class Tapped(NamedTuple):
    """What passed at a watched actor: `way` in or out, or an event of its own ("note"); secrets and mail content taken out.

    `time` and `turn` (when the actor's loop woke) are nanoseconds of the monotonic clock. `ending`: at the end of that turn, when what
    was put off until then is done. `peer` is the other end, "" of a note;
    `session` 0 where it concerns none; `octets` the message's size; `lost` how many before this one did not fit into the
    channel; `fields` a msgpack map.
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
class Awaiting(NamedTuple):
    """I really have this connection, and its user has just asked to log in: auth's word on it will be true of me."""

    session: Session


class Ended(NamedTuple):
    """A connection is over; all that the log line of a session needs."""

    session: Session
    user: Annotated[str, Field("str", 0, 255)]
    address: Address
    why: Text
    commands: Octets
    octets_in: Octets
    octets_out: Octets
    retrieved: Count
    marked: Count  # by DELE, when it ended
    removed: Count  # by its QUIT
    milliseconds: Octets


class Deaf(NamedTuple):
    """A listening socket that I was given takes no connections any more: it was shut down. I take none at all, and serve on whom I have."""


class Late(NamedTuple):
    """That actor has not answered within its edge's deadline: the kernel is to see whether it does anything at all."""

    peer: Name


class LoginFailed(NamedTuple):
    """For the log, one line a failure. `why`: a response code, or auth's own word (Denied.why). `seconds`: until it may be tried again."""

    session: Session
    user: Annotated[str, Field("str", 0, 255)]
    address: Address
    why: Text
    seconds: Count


# ---- kernel -> listener
class Opened(NamedTuple):
    """Session so-and-so is logged in, as that user of the tables. Carries the channel to that user's maildir actor."""

    session: Session
    user: Name


class Turned(NamedTuple):
    """Session so-and-so was rightly authenticated but can't have its maildrop."""

    session: Session
    code: Code
    text: Text


# ---- kernel -> gate
class Seat(NamedTuple):
    """Your next client is this session, and its listener is called by it. Carries that listener's channel to the kernel."""

    session: Session


class Entered(NamedTuple):
    """That client of yours has logged in."""

    session: Session


class Drain(NamedTuple):
    """A new listener has taken over: accept no more, serve on whom you have, go when the last is gone."""


# ---- listener -> auth, auth -> listener, auth -> kernel
class Login(NamedTuple):
    """Is this who it says it is? The secret of XOAUTH2 and OAUTHBEARER is a token, else it is a password."""

    session: Session
    user: Name
    secret: Secret
    address: Address
    mechanism: Annotated[str, Field("str", 0, 16)]  # PASS or a SASL mechanism's name


class Denied(NamedTuple):
    """No; the response code and the words for the client.

    `why`: the word for the log where the code does not say it: "guard" (not looked at, too many have failed there lately; `seconds`
    until it may be tried again), "repeat" (a password that was found wrong there a moment ago). Else "" and 0.
    """

    session: Session
    code: Code
    text: Text
    why: Annotated[str, Field("str", 0, 16)]
    seconds: Count


class Granted(NamedTuple):
    """The session of that listener is that user, as the authorization table writes the name. Only auth may say so."""

    listener: Name
    session: Session
    user: Name


# ---- kernel -> maildir, maildir -> kernel
class Open(NamedTuple):
    """Serve a session; park it when it has been silent so many seconds. Carries the channel to the listener."""

    session: Session
    park: Count


class Wake(NamedTuple):
    """Serve on a session that was parked, or begin one whose `state` is empty. Carries its channel to the listener."""

    session: Session
    park: Count
    state: Blob


class Receive(NamedTuple):
    """Take deliveries. Carries the channel to the mda."""

    name: Name


class Retire(NamedTuple):
    """Go, you have been idle long enough."""


class Closed(NamedTuple):
    """A session is over here: the maildrop's lease is free."""

    session: Session
    removed: Count
    failed: Count


class Parked(NamedTuple):
    """A session that slept: all there is to it, for Wake. Carries its channel to the listener."""

    session: Session
    state: Blob


class Moved(NamedTuple):
    """Another directory is in my maildir's place, which I can't see: the session, not begun where `state` is empty, is for the next of me.

    Carries its channel to the listener.
    """

    session: Session
    state: Blob


# ---- listener -> maildir
class Retrieve(NamedTuple):
    """Send messages first .. first+many-1 whole, in order; then, if it costs no second frame, up to `ahead` more."""

    first: Count
    many: Count
    ahead: Count


class Top(NamedTuple):
    """Send the header, the blank line and so many lines of the body (RFC 1939 section 7)."""

    number: Count
    lines: Count


class List(NamedTuple):
    """Sizes of messages first .. first+many-1."""

    first: Count
    many: Count


class Uidl(NamedTuple):
    """Unique ids of messages first .. first+many-1."""

    first: Count
    many: Count


class Delete(NamedTuple):
    """Mark messages first .. first+many-1 as deleted."""

    first: Count
    many: Count


class Reset(NamedTuple):
    """Unmark all."""


class Credit(NamedTuple):
    """So many octets of bulk frames have gone out to the client: as many more may come."""

    octets: Octets


class Quit(NamedTuple):
    """Remove what is marked. `taken`: (first, many) pairs of messages given out that Retrieve did not ask for."""

    taken: Numbers


# ---- maildir -> listener
class Ready(NamedTuple):
    """The maildrop is open: how many messages, how many octets."""

    messages: Count
    octets: Octets


class Unready(NamedTuple):
    """The maildrop can't be opened, or can't be served on."""

    code: Code
    text: Text


class Mail(NamedTuple):
    """A bulk frame. `parts`: quadruples (number, octets of the whole message, octets of `data` that are its, kind).

    Kind: 1 if they are its last, 2 if they are all of one that was not asked for yet, else 0.

    `data` is ready for the wire: CRLF line ends, dots stuffed, without the closing dot.
    """

    parts: Numbers
    data: Data


class Missing(NamedTuple):
    """Message `number` can't be sent (deleted, gone, unreadable): the code and words for the client."""

    number: Count
    code: Code
    text: Text


class Sizes(NamedTuple):
    """A bulk frame: sizes from message `first` on, -1 for a deleted one; `last` where no more follow."""

    first: Count
    sizes: Numbers
    last: bool


class Ids(NamedTuple):
    """A bulk frame: unique ids from message `first` on, empty for a deleted one; `last` where no more follow."""

    first: Count
    uidls: Uidls
    last: bool


class Deleted(NamedTuple):
    """Marked, but for `refused` (marked before). The totals of the maildrop as they are now."""

    first: Count
    many: Count
    refused: Numbers
    messages: Count
    octets: Octets


class Totals(NamedTuple):
    """The totals of the maildrop after Reset."""

    messages: Count
    octets: Octets


class Bye(NamedTuple):
    """What was marked is removed, but for `failed` of them."""

    removed: Count
    failed: Count


# ---- kernel -> spawner, kernel -> init and back
class Spawn(NamedTuple):
    """Fork a maildir actor. Carries its channel to the kernel."""

    name: Name
    uid: Id
    gid: Id
    maildir: Path


class Execute(NamedTuple):
    """Start a singleton afresh: an actor of the topology table. Carries its channel to the kernel.

    `roots`: for the spawner, the directories under which all maildirs lie.
    """

    actor: Name
    name: Name
    roots: Roots


class Kill(NamedTuple):
    """End that child of yours at once."""

    name: Name


class Started(NamedTuple):
    """It runs."""

    name: Name
    pid: Pid


class Exited(NamedTuple):
    """It is gone, and no process of it is left; status as wait(2) has it.

    Of one that could not be forked `pid` is the number of who tells, `status` that of an exit with 75.
    """

    name: Name
    pid: Pid
    status: Status


class Displaced(NamedTuple):
    """Maildirs lie under `root`, which leads to another directory by now than the one that my cage holds: my children can't see them."""

    root: Path


class Unstarted(NamedTuple):
    """It could not be started, for want of what the text names: no process of it was there."""

    name: Name
    text: Text


class Reread(NamedTuple):
    """The configuration is good: put what it names in force. Carries the user table. `later`: keys that wait for the next start."""

    later: Text


class Syslog(NamedTuple):
    """A connection to whoever takes the system's log; carries it."""


class Unread(NamedTuple):
    """What a reload begins with can't be had: why, and the code (sysexits(3)) for whoever asked for it."""

    status: Status
    text: Text


class Signal(NamedTuple):
    """Init's word: TERM (end), ALIVE (answer the same).

    Then, after "start" or "reload": MAILBOX, that word and what is wrong with one; LOOKED and that word when that was all.
    The kernel's word to init: HUP (read the configuration anew), then DONE, or NOT (what was before stays); SYSLOG (who took the log is
    gone: connect anew).
    """

    name: Text


class Running(NamedTuple):
    """The service is whole: say so to whoever waits (the terminal, sd_notify)."""

    text: Text


class Ending(NamedTuple):
    """The kernel is done, with this exit code."""

    status: Status
    text: Text


# ---- mda <-> kernel, mda <-> maildir
class Recipient(NamedTuple):
    """Whose maildrop is this recipient's? `uid` is the sender's, as the socket has it (-1: it came over TCP).

    `look`: only say whether there is one; no channel is wanted yet. `lost`: the channel you last spoke of has ended here.
    """

    request: Session
    address: Name
    uid: Annotated[int, Field("int", -1, 2**32 - 2)]
    look: bool
    lost: bool


class Maildrop(NamedTuple):
    """It is that user's. Carries the channel to the maildir actor where this mda has none yet (`fresh`)."""

    request: Session
    user: Name
    fresh: bool


class NoMaildrop(NamedTuple):
    """There is none, or not for you, or not now: an RFC 3463 status and words."""

    request: Session
    status: Name
    text: Text


class Anew(NamedTuple):
    """The user table has changed: believe nothing I said about recipients before, ask again."""


class Busy(NamedTuple):
    """No, I can't retire now: a message is on its way in."""


class Post(NamedTuple):
    """A whole message in one, LF line ends: who sends it, to which address. Make it safe."""

    delivery: Session
    sender: Annotated[str, Field("str", 0, 320)]
    recipient: Annotated[str, Field("str", 0, 320)]
    data: Data


class Deliver(NamedTuple):
    """A message too large for Post begins: who sends it, to which address, how large its sender said it was (0: it did not)."""

    delivery: Session
    sender: Annotated[str, Field("str", 0, 320)]
    recipient: Annotated[str, Field("str", 0, 320)]
    octets: Octets


class Content(NamedTuple):
    """Its next octets, LF line ends."""

    delivery: Session
    data: Data


class Commit(NamedTuple):
    """It is whole: make it safe."""

    delivery: Session


class Abort(NamedTuple):
    """It will not be whole: forget it."""

    delivery: Session


class Accepted(NamedTuple):
    """So many octets of content are taken in (credit), or, with `safe`, the message is safe on disk."""

    delivery: Session
    octets: Octets
    safe: bool


class Rejected(NamedTuple):
    """The message is not taken: an RFC 3463 status and words."""

    delivery: Session
    status: Name
    text: Text


class Leaving(NamedTuple):
    """I am about to go. To the mda: send nothing new on this channel, and close it once all you sent is answered.

    To the kernel, where it did not ask for it: give me nothing new, wait for my end.
    """


# How many descriptors a message carries; 0 for those that are not here. `Maildrop` carries one only where `fresh`.
CARRIES: dict[type, int] = {
    Watch: 1, Peer: 1, Opened: 1, Seat: 1, Open: 1, Wake: 1, Receive: 1, Parked: 1, Moved: 1, Spawn: 1, Execute: 1, Reread: 1,
    Syslog: 1,
}


WINDOW = 640 * 1024  # octets of bulk frames that a session may have on their way to its client: one being sent, one behind it


def bulk_octets(message: tuple[object, ...]) -> int:
    """What a bulk frame costs of the credit: about the octets that it makes on the client's wire."""
    if isinstance(message, Mail):
        return len(message.data)
    if isinstance(message, Sizes):
        return 16 * len(message.sizes)
    if isinstance(message, Ids):
        return 80 * len(message.uidls)
    return 0
