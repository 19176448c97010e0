"""Test kernel/decisions/deliveries.py: permissions, channels, and actors that come and go."""

from popkernel.kernel.decisions.actions import Join, Send, Spawn, Suspect
from popkernel.kernel.decisions.deliveries import Deliveries
from popkernel.kernel.decisions.leases import Core, Settings
from popkernel.kernel.decisions.recipients import Rules
from popkernel.proto import messages as m
from popkernel.proto.files.tables import MailUser

from tests.support.messages import login_started

ALICE, BOB = MailUser(1001, 1001, "/m/alice"), MailUser(1002, 1002, "/m/bob")


def world(*, tcp=False, **settings):
    core = Core({"alice": ALICE, "bob": BOB}, Settings(**settings))
    return core, Deliveries(core, Rules(), frozenset({0, 500}), tcp=tcp)


def asked(address="alice", uid=0, request=1, look=False, lost=False):
    return m.RecipientLookup(request, address, uid, look, lost)


def status(actions):
    (action,) = actions
    return action.message.status


def kinds(actions):
    return [type(e) for e in actions]


def test_the_first_recipient_makes_actor_and_channel():
    core, deliveries = world()
    actions = deliveries.recipient("mda", asked("Alice+x@y"), 0.0)
    assert actions == [
        Spawn("maildir.alice", ALICE),
        Join("mda", m.RecipientFound(1, "alice", fresh=True), "maildir.alice", m.DeliveryChannel("mda")),
    ]
    assert deliveries.recipient("mda", asked(request=2), 0.0) == [
        Send("mda", m.RecipientFound(2, "alice", fresh=False))
    ]
    assert kinds(deliveries.recipient("mda", asked(request=3, lost=True), 0.0)) == [Suspect, Join], (
        "its channel has ended, the actor has not"
    )
    assert core.idle == {"alice": 0.0}


def test_delivery_permission_by_uid():
    _, deliveries = world()
    for uid in (0, 500, 1001):
        assert kinds(deliveries.recipient("mda", asked(uid=uid, look=True), 0.0)) == [Send]
    assert status(deliveries.recipient("mda", asked("bob", uid=1001), 0.0)) == "5.7.1"
    assert status(deliveries.recipient("mda", asked("nobody", uid=1001), 0.0)) == "5.7.1"
    assert status(deliveries.recipient("mda", asked("nobody", uid=0), 0.0)) == "5.1.1"
    assert status(deliveries.recipient("mda", asked(uid=-1), 0.0)) == "5.7.1", (
        "without a TCP port the mda's claim is false"
    )
    _, deliveries = world(tcp=True)
    assert isinstance(deliveries.recipient("mda", asked(uid=-1, look=True), 0.0)[0].message, m.RecipientFound)


def test_a_lookup_alone_starts_nothing():
    core, deliveries = world()
    assert deliveries.recipient("mda", asked(look=True), 0.0) == [
        Send("mda", m.RecipientFound(1, "alice", fresh=False))
    ]
    assert core.maildirs == {}


def test_an_actor_that_goes_is_waited_for():
    core, deliveries = world(warm_seconds=10)
    deliveries.recipient("mda", asked(), 0.0)
    assert core.sweep(10.0) == [Send("maildir.alice", m.ActorRetire())]
    assert deliveries.recipient("mda", asked(request=2), 10.0) == [Suspect("maildir.alice")], (
        "in case it never ends"
    )
    core.maildir_gone("maildir.alice", 11.0)
    assert kinds(deliveries.maildir_gone("maildir.alice", 11.0)) == [Spawn, Join]


def test_a_busy_actor_stays_and_gets_a_channel_anew():
    core, deliveries = world(warm_seconds=10)
    deliveries.recipient("mda", asked(), 0.0)
    core.sweep(10.0)
    deliveries.recipient("mda", asked(request=2), 10.0)
    (action,) = deliveries.busy("maildir.alice", 10.0)
    assert action == Join(
        "mda", m.RecipientFound(2, "alice", fresh=True), "maildir.alice", m.DeliveryChannel("mda")
    )
    assert core.sweep(19.0) == []
    assert core.sweep(20.0) == [Send("maildir.alice", m.ActorRetire())]


def test_a_session_waits_for_no_delivery():
    core, deliveries = world(warm_seconds=10)
    deliveries.recipient("mda", asked(), 0.0)
    core.sweep(10.0)
    core.awaits("listener.0", login_started(7))
    assert core.granted(m.LoginGranted("listener.0", 7, "alice"), 10.0) == [Suspect("maildir.alice")]
    assert Join in kinds(deliveries.busy("maildir.alice", 10.0))
    assert core.leases


def test_warm_max_counts_deliveries_too():
    core, deliveries = world(warm_max=1)
    deliveries.recipient("mda", asked(), 0.0)
    assert deliveries.recipient("mda", asked("bob"), 1.0)[-1] == Send("maildir.alice", m.ActorRetire())
    assert list(core.idle) == ["bob"]


def test_a_moved_mailbox():
    core, deliveries = world()
    deliveries.recipient("mda", asked(), 0.0)
    core.awaits("listener.0", login_started(7))
    core.granted(m.LoginGranted("listener.0", 7, "alice"), 0.0)
    core.users = {"alice": ALICE._replace(maildir="/elsewhere")}
    assert core.retire_all() == []
    assert status(deliveries.recipient("mda", asked(), 1.0)) == "4.3.2"
    assert status(deliveries.recipient("mda", asked("bob"), 1.0)) == "5.1.1"


def test_a_removed_user_s_waiting_mail_is_refused():
    core, deliveries = world(warm_seconds=1)
    deliveries.recipient("mda", asked(), 0.0)
    core.sweep(2.0)
    deliveries.recipient("mda", asked(request=2), 2.0)
    core.users = {}
    core.maildir_gone("maildir.alice", 3.0)
    assert status(deliveries.maildir_gone("maildir.alice", 3.0)) == "5.1.1"


def test_another_mda():
    core, deliveries = world(warm_seconds=1)
    deliveries.recipient("mda", asked(), 0.0)
    core.sweep(2.0)
    deliveries.recipient("mda", asked(request=2), 2.0)
    deliveries.mda_gone("mda")
    core.maildir_gone("maildir.alice", 3.0)
    assert deliveries.maildir_gone("maildir.alice", 3.0) == []
    assert kinds(deliveries.recipient("mda", asked(request=1), 4.0)) == [Spawn, Join]


def test_no_room_for_one_more_actor():
    core, deliveries = world()
    core.short(0)
    full, answer = deliveries.recipient("mda", asked(), 0.0)
    assert (
        (full.user, answer.message.status) == ("alice", "4.3.2")
        and not core.maildirs
        and not deliveries.holders
    )
    core.short(None)
    assert kinds(deliveries.recipient("mda", asked(), 1.0)) == [Spawn, Join]
