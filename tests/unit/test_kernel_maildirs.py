"""Test kernel/supervisor/maildirs.py: what a maildir actor may say about sessions."""

from types import SimpleNamespace

from popkernel.kernel.decisions.leases import Core, Settings
from popkernel.kernel.operator.history import History, Wanted
from popkernel.kernel.replay.loop import ReplayLoop
from popkernel.kernel.supervisor.maildirs import Maildirs
from popkernel.proto import messages as m
from popkernel.proto.files.tables import MailUser

from tests.support.messages import login_started


def test_an_actor_tells_of_a_session_s_messages_once():
    """An actor that repeats itself, or names sessions that it does not have, fills the history of all."""
    core, history = Core({"alice": MailUser(1000, 1000, "/mail/alice")}, Settings()), History(10)
    keeper = Maildirs(
        ReplayLoop(), None, core, None, None, None, None, None, history, lambda actions, about: None
    )
    core.awaits("listener.0", login_started(7))
    core.granted(m.LoginGranted("listener.0", 7, "alice"), 0.0)
    actor = SimpleNamespace(name="maildir.alice")
    for session in (1, 7, 7, 2):
        keeper.session_closed(actor, m.SessionClosed(session, 1, 0, 0, [f"uid{session}"]), [])
    (*_, kept) = history.find("messages", Wanted(user="alice"), 10)
    assert [record.fields["uidls"] for record in kept] == [["uid7"]]
