"""Which frames a viewer is shown: of one user's or session's, nothing that is others', and word of every gap."""

import msgpack
import pytest
from popkernel.kernel.operator.viewers import Viewer, Wish

ALICE, BOB = (1 << 40) + 1, (1 << 40) + 2
KNOWN = {ALICE: "alice", BOB: "bob"}


class Client:
    """A client of the control socket that reads all."""

    def __init__(self):
        self.frames = []

    def push(self, data):
        self.frames.append(msgpack.unpackb(data))
        return True


def viewer(**wish):
    return Viewer(Client(), Wish(wish))


def frame(actor="listener.0", name="Timer", peer="", session=0, way="note", **fields):
    return {"time": 1, "turn": 1, "actor": actor, "way": way, "peer": peer, "name": name, "session": session, "octets": 0, "fields": fields}


def shown(viewer, *frames, known=KNOWN):
    before = len(viewer._client.frames)
    for one in frames:
        viewer.see(one, known, twin=False)
    return viewer._client.frames[before:]


SETTINGS = {
    "logins": [[ALICE, "alice", "192.0.2.1"], [BOB, "bob", "192.0.2.2"]], "known": [[0, "alice+x", "alice"], [0, "bob+x", "bob"]],
    "routes": ["alice", "bob"], "asked": [[1, 0, "bob"]], "sessions": [ALICE, BOB], "draining": False,
}


@pytest.mark.parametrize(("wish", "mine"), [({"user": "alice"}, True), ({"session": ALICE}, False)], ids=["user", "session"])
def test_settings_tell_of_no_other_user(wish, mine):
    (told,) = shown(viewer(**wish), frame(name="Settings", **SETTINGS))
    assert "bob" not in str(told)
    assert ("alice" in str(told)) == mine
    assert told["fields"]["draining"] is False
    (all_,) = shown(viewer(), frame(name="Settings", **SETTINGS))
    assert all_["fields"] == SETTINGS


def test_settings_of_an_actor_that_says_anything():
    strange = {"logins": 7, "known": [7, [], [1], {"x": 1}, ["alice"]], "routes": {"alice": 1}, "asked": None}
    (told,) = shown(viewer(user="alice"), frame(name="Settings", **strange))
    assert told["fields"] == dict.fromkeys(strange, [])


def test_a_timer_of_another_session_is_not_shown():
    for wish in ({"user": "alice"}, {"session": ALICE}):
        told = shown(viewer(**wish), frame(session=BOB), frame(session=ALICE), frame())
        assert [f["session"] for f in told] == [ALICE, 0]


def test_an_actors_end_is_everybodys_but_a_mailboxs_is_its_users():
    gone = [frame("mda", "Gone", peer, way="in", why="") for peer in ("kernel", "maildir.alice", "maildir.bob")]
    assert [f["peer"] for f in shown(viewer(user="alice"), *gone)] == ["kernel", "maildir.alice"]
    assert [f["peer"] for f in shown(viewer(session=ALICE), *gone)] == ["kernel"]


def test_what_concerns_all_of_another_users_actor_is_not_shown():
    """It is watched where somebody else watches everything."""
    frames = [frame("maildir.bob"), frame("maildir.bob", "Clock", seconds=1.0), frame("maildir.bob", "Settings"), frame("maildir.alice")]
    assert [f["actor"] for f in shown(viewer(user="alice"), *frames)] == ["maildir.alice"]


def test_of_a_session_whose_user_is_not_known_yet_no_mailbox_is_shown():
    one, known = viewer(session=ALICE), {}
    before = [frame("maildir.bob", "Settings"), frame("maildir.alice", "Settings", named=[]), frame("maildir.bob"), frame("maildir.alice")]
    assert shown(one, *before, known=known) == []
    known[ALICE] = "alice"
    told = shown(one, frame("maildir.bob", "Clock"), frame("maildir.alice", "Open", "kernel", ALICE, "in"), known=known)
    assert [(f["actor"], f["name"]) for f in told] == [("maildir.alice", "Settings"), ("maildir.alice", "Open")]


def test_frames_that_an_actor_had_no_room_for_are_told_with_the_next_that_is_shown():
    """The next of all may be another's."""
    one = viewer(user="alice")
    one.gaps["listener.0"] = 3
    told = shown(one, frame("auth"), frame(session=BOB), frame(session=ALICE), frame(session=ALICE))
    assert [(f["actor"], f.get("lost", 0)) for f in told] == [("auth", 0), ("listener.0", 3), ("listener.0", 0)]
