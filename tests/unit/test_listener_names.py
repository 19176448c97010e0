"""Test names of single-session listeners, and which session a frame concerns."""

import pytest
from popkernel.kernel.operator.viewers import frame_session
from popkernel.proto.topology import kind_of
from popkernel.proto.trace.session_names import GENERATION, listener_name, session_of


@pytest.mark.parametrize("session", [GENERATION + 1, 17 * GENERATION + 123456])
def test_a_name_and_its_session(session):
    name = listener_name(session)
    assert kind_of(name) == "listener"
    assert session_of(name) == session


@pytest.mark.parametrize(
    "name",
    [
        "",
        "listener",
        "listener.0",
        "listener.0~3",
        "listener.1.x",
        "listener..",
        "listener.1.2.3",
        "maildir.1.2",
        "mda.1.2",
    ],
)
def test_other_actors_have_no_session_of_their_own(name):
    assert session_of(name) == 0


@pytest.mark.parametrize(
    ("frame", "session"),
    [
        ({"session": 5, "actor": "listener.1.2", "peer": "kernel", "fields": {}}, 5),
        ({"session": 0, "actor": "listener.1.2", "peer": "kernel", "fields": {}}, GENERATION + 2),
        ({"session": 0, "actor": "kernel", "peer": "listener.1.2", "fields": {}}, GENERATION + 2),
        (
            {"session": 0, "actor": "kernel", "peer": "auth", "fields": {"name": "listener.1.2"}},
            GENERATION + 2,
        ),
        ({"session": 0, "actor": "kernel", "peer": "auth", "fields": {"name": ["listener.1.2"]}}, 0),
        ({"session": 0, "actor": "listener.0", "peer": "auth", "fields": {}}, 0),
    ],
)
def test_the_session_that_a_frame_concerns(frame, session):
    assert frame_session(frame) == session
