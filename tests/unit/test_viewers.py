"""Test which frames a viewer gets: its user's or session's, no other's, and a note of every gap."""

import msgpack
import pytest
from popkernel.kernel.operator.viewers import FilterError, TraceFilter, Viewer

ALICE, BOB = (1 << 40) + 1, (1 << 40) + 2
KNOWN = {ALICE: "alice", BOB: "bob"}


class Client:
    """Stand for a control client that reads everything."""

    def __init__(self):
        self.frames = []

    def push(self, data):
        self.frames.append(msgpack.unpackb(data))
        return True


def viewer(**wish):
    return Viewer(Client(), TraceFilter(wish))


def frame(actor="listener.0", name="Timer", peer="", session=0, way="note", **fields):
    return {
        "time": 1,
        "turn": 1,
        "actor": actor,
        "way": way,
        "peer": peer,
        "name": name,
        "session": session,
        "octets": 0,
        "fields": fields,
    }


def shown(viewer, *frames, known=KNOWN):
    before = len(viewer._client.frames)
    for one in frames:
        viewer.see(one, known, twin=False)
    return viewer._client.frames[before:]


SETTINGS = {
    "logins": [[ALICE, "alice", "192.0.2.1"], [BOB, "bob", "192.0.2.2"]],
    "known": [[0, "alice+x", "alice"], [0, "bob+x", "bob"]],
    "routes": ["alice", "bob"],
    "asked": [[1, 0, "bob"]],
    "sessions": [ALICE, BOB],
    "draining": False,
}


@pytest.mark.parametrize(
    ("wish", "mine"), [({"user": "alice"}, True), ({"session": ALICE}, False)], ids=["user", "session"]
)
def test_settings_reveal_no_other_user(wish, mine):
    (told,) = shown(viewer(**wish), frame(name="Settings", **SETTINGS))
    assert "bob" not in str(told)
    assert ("alice" in str(told)) == mine
    assert told["fields"]["draining"] is False
    (all_,) = shown(viewer(), frame(name="Settings", **SETTINGS))
    assert all_["fields"] == SETTINGS


def test_settings_with_arbitrary_content():
    strange = {"logins": 7, "known": [7, [], [1], {"x": 1}, ["alice"]], "routes": {"alice": 1}, "asked": None}
    (told,) = shown(viewer(user="alice"), frame(name="Settings", **strange))
    assert told["fields"] == dict.fromkeys(strange, [])


def test_a_timer_of_another_session_is_not_shown():
    for wish in ({"user": "alice"}, {"session": ALICE}):
        told = shown(viewer(**wish), frame(session=BOB), frame(session=ALICE), frame())
        assert [f["session"] for f in told] == [ALICE, 0]


def test_a_maildir_actor_s_end_is_shown_to_its_user_only():
    gone = [
        frame("mda", "Gone", peer, way="in", why="") for peer in ("kernel", "maildir.alice", "maildir.bob")
    ]
    assert [f["peer"] for f in shown(viewer(user="alice"), *gone)] == ["kernel", "maildir.alice"]
    assert [f["peer"] for f in shown(viewer(session=ALICE), *gone)] == ["kernel"]


def test_frames_of_another_user_s_actor_are_not_shown():
    """That actor is watched because somebody else watches everything."""
    frames = [
        frame("maildir.bob"),
        frame("maildir.bob", "Clock", seconds=1.0),
        frame("maildir.bob", "Settings"),
        frame("maildir.alice"),
    ]
    assert [f["actor"] for f in shown(viewer(user="alice"), *frames)] == ["maildir.alice"]


def test_before_the_user_is_known_no_mailbox_is_shown():
    one, known = viewer(session=ALICE), {}
    before = [
        frame("maildir.bob", "Settings"),
        frame("maildir.alice", "Settings", named=[]),
        frame("maildir.bob"),
        frame("maildir.alice"),
    ]
    assert shown(one, *before, known=known) == []
    known[ALICE] = "alice"
    told = shown(
        one,
        frame("maildir.bob", "Clock"),
        frame("maildir.alice", "SessionOpen", "kernel", ALICE, "in"),
        known=known,
    )
    assert [(f["actor"], f["name"]) for f in told] == [
        ("maildir.alice", "Settings"),
        ("maildir.alice", "SessionOpen"),
    ]


def test_dropped_frames_are_counted_in_the_next_shown_frame():
    """The next frame of all may be another user's."""
    one = viewer(user="alice")
    one.gaps["listener.0"] = 3
    told = shown(one, frame("auth"), frame(session=BOB), frame(session=ALICE), frame(session=ALICE))
    assert [(f["actor"], f.get("lost", 0)) for f in told] == [
        ("auth", 0),
        ("listener.0", 3),
        ("listener.0", 0),
    ]


def test_the_number_of_lost_frames_is_sent_once_to_a_viewer_that_takes_it_at_once():
    """The push that empties the connection's queue reports room, and so comes back here."""
    one = viewer()

    def push(data):
        Client.push(one._client, data)
        one.tell_lost()  # as Connection.on_room does
        return True

    one._client.push = push
    one.missed(), one.missed()
    one.tell_lost()
    assert one._client.frames == [{"lost": 2}]
    one._client.push = lambda data: False
    one.missed()
    one.tell_lost()
    one._client.push = push
    one.tell_lost()
    assert one._client.frames[1:] == [{"lost": 1}], "kept while there is no room"


# -- clients' addresses, and slow sessions
HOSTS = {ALICE: "192.0.2.7", BOB: "198.51.100.9"}


def test_an_address_or_a_network_chooses_sessions():
    one = viewer(address="192.0.2.0/24")
    frames = [
        frame(name="Typed", session=ALICE, way="in", peer="client"),
        frame(name="Typed", session=BOB, way="in", peer="client"),
        frame("maildir.alice", name="Retrieve", session=ALICE, way="in", peer="listener.0"),
        frame(name="Typed", session=BOB + 1, way="in", peer="client"),
    ]
    for each in frames:
        one.see(each, KNOWN, HOSTS, twin=False)
    assert [(f["name"], f["session"]) for f in one._client.frames] == [("Typed", ALICE), ("Retrieve", ALICE)]


def at(milliseconds, name, session=ALICE, **fields):
    way = "out" if name == "Reply" else "in"
    return frame(name=name, session=session, way=way, peer="client", **fields) | {
        "time": milliseconds * 1_000_000
    }


def test_only_slow_sessions_are_shown_with_what_came_before():
    one = viewer(slow=500)
    assert (
        shown(
            one,
            at(0, "Connected"),
            at(1, "Secured"),
            at(5, "Typed", lines=["CAPA"]),
            at(6, "Typed", BOB, lines=["STAT"]),
            at(7, "Reply", BOB),
            at(400, "Reply"),
            at(500, "Typed", lines=[]),  # a part of a line: the client waits for nothing
            at(9000, "Typed", lines=["STAT"]),
            at(9499, "Reply"),
        )
        == []
    )
    assert [f["name"] for f in shown(one, at(9500, "Typed", lines=["RETR 1"]), at(10_000, "Reply"))] == [
        *("Connected", "Secured", "Typed", "Reply", "Typed", "Typed", "Reply", "Typed", "Reply")
    ]
    assert len(shown(one, at(10_001, "Typed", lines=["QUIT"]), at(10_002, "Reply"))) == 2, "from then on all"


def test_octets_held_for_sessions_that_may_become_slow_are_bounded():
    """With the payload a frame may have a mebioctet: 64 of them for each of 2,000 sessions."""
    one = viewer(slow=1000)
    for n in range(200):
        for _ in range(2):
            shown(
                one,
                frame("maildir.alice", "MailContent", session=ALICE + n, way="out", data=b"x" * (1 << 20)),
            )
    held = [each for frames in one._slow._held.values() for each in frames]
    assert 20 <= len(held) <= 32 and one._slow._octets == sum(size for _, size in held) <= 32 << 20
    assert ALICE + 199 in one._slow._held, "the least recently active session goes first"


def test_frames_held_for_sessions_that_may_become_slow_are_bounded():
    one = viewer(slow=1000)
    for session in range(ALICE, ALICE + 3000):
        for _ in range(70):
            shown(one, at(0, "Typed", session, lines=["NOOP"]))
    held = one._slow._held
    assert len(held) == 2000 and all(len(frames) == 64 for frames in held.values())


@pytest.mark.parametrize(
    "wish",
    [
        {"address": "alice"},
        {"address": "192.0.2.7/24"},
        {"address": 7},
        {"slow": -1},
        {"slow": "5"},
        {"slow": True},
        {"slow": 10**9},
        {"slow": 5, "actor": "auth"},
        {"slow": 5, "edge": "listener:auth"},
    ],
)
def test_bad_addresses_and_times(wish):
    with pytest.raises(FilterError):
        TraceFilter(wish)
