"""Test the kernel's lease decisions: invariants under any order of events, and single cases."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from popkernel.kernel.decisions import leases as core
from popkernel.kernel.decisions.actions import Forget, Full, Join, Kill, Rouse, Send, Spawn, Suspect, WriteLog
from popkernel.kernel.decisions.leases import Core, Key, Settings
from popkernel.proto import messages as m
from popkernel.proto.files.tables import MailUser

from tests.support.messages import login_started

USERS = {name: MailUser(1000 + n, 1000, f"/mail/{name}") for n, name in enumerate(("alice", "bob"))}
LISTENERS = ("listener.0", "listener.1")
PATIENCE = Settings(warm_seconds=60, warm_max=1, restart_intensity=3, restart_seconds=10, crowd=1)


def ended(session, user="alice"):
    return m.ConnectionEnded(session, user, "", "", 0, 0, 0, 0, 0, 0, 0)


def make(**changed):
    return Core(dict(USERS), PATIENCE._replace(**changed))


def log_in(kernel, session, user="alice", listener="listener.0", now=0.0):
    kernel.awaits(listener, login_started(session))
    return kernel.granted(m.LoginGranted(listener, session, user), now)


class Service(RuleBasedStateMachine):
    """Model listeners, auth and maildir actors around the kernel's core."""

    def __init__(self):
        super().__init__()
        self.core = Core(dict(USERS), PATIENCE)
        self.now = 0.0
        self.number = self.stayed = 0
        self.clients = {}  # Key -> "announced", "granted", "open", "turned"
        self.alive = {}  # name -> the key that it serves, or None
        self.retiring = set()  # names of actors told to retire
        self.asleep = {}  # user -> Key of a session whose channel is parked

    def do(self, actions):
        for action in actions:
            match action:
                case Spawn(name, row):
                    assert name not in self.alive
                    assert row == self.core.users[name.removeprefix("maildir.")]
                    self.alive[name] = None
                case Join(one, to_one, other, to_other):
                    assert type(to_one) is m.SessionAdmitted and type(to_other) is m.SessionOpen
                    key = Key(one, to_one.session)
                    assert to_other.session == key.session
                    assert other in self.alive and self.alive[other] is None, (
                        "a session for an actor that already has one"
                    )
                    assert other not in self.retiring, "a session for a retiring actor"
                    assert self.clients.get(key) in ("granted", None)
                    self.alive[other] = key
                    if key in self.clients:
                        self.clients[key] = "open"
                case Rouse(user, name, _):
                    assert name in self.alive and self.alive[name] is None and name not in self.retiring
                    self.alive[name] = self.asleep.pop(user)
                case Forget(user):
                    self.clients.pop(self.asleep.pop(user), None)
                case Send(to, message) if type(message) is m.SessionRefused:
                    key = Key(to, message.session)
                    assert self.clients.get(key) == "granted"
                    self.clients[key] = "turned"
                case Send(to, message):
                    assert type(message) is m.ActorRetire
                    assert to in self.alive and to not in self.retiring and self.alive[to] is None
                    self.retiring.add(to)
                case WriteLog() | Full():
                    pass
                case Suspect(name):
                    assert name in self.alive
                case _:
                    raise AssertionError(action)

    # -- listeners and auth
    @rule(listener=st.sampled_from(LISTENERS))
    def announces(self, listener):
        self.number += 1
        key = Key(listener, self.number)
        self.clients[key] = "announced"
        assert self.core.awaits(listener, login_started(key.session)) == []

    @rule(data=st.data(), user=st.sampled_from([*USERS, "mallory"]))
    def grants(self, data, user):
        announced = [k for k, state in self.clients.items() if state == "announced"]
        if announced:
            key = data.draw(st.sampled_from(announced))
            self.clients[key] = "granted"
            self.do(self.core.granted(m.LoginGranted(key.listener, key.session, user), self.now))
            assert self.clients[key] != "granted" or key in self.core.waiting

    @rule(room=st.sampled_from([None, None, 0, 1, 5]))
    def descriptors_become_few_or_many(self, room):
        self.do(self.core.short(room))

    @rule(data=st.data())
    def gives_up(self, data):
        """A listener whose patience is over refuses its client and tells the kernel."""
        keys = [k for k, state in self.clients.items() if state == "granted" and k in self.core.waiting]
        if keys:
            key = data.draw(st.sampled_from(keys))
            self.do(self.core.login_over(key.listener, key.session))
            self.clients[key] = "turned"
            assert key not in self.core.waiting

    @rule(data=st.data(), user=st.sampled_from(list(USERS)))
    def grants_what_nobody_announced(self, data, user):
        keys = [k for k, state in self.clients.items() if state != "announced"] + [
            Key("listener.0", 10**9),
            Key("listener.9", 1),
        ]
        key = data.draw(st.sampled_from(keys))
        before = (
            dict(self.core.leases),
            dict(self.core.sessions),
            dict(self.core.waiting),
            set(self.core.maildirs),
        )
        actions = self.core.granted(m.LoginGranted(key.listener, key.session, user), self.now)
        assert all(isinstance(e, WriteLog) for e in actions)
        assert before == (self.core.leases, self.core.sessions, self.core.waiting, set(self.core.maildirs))

    @rule(data=st.data())
    def announces_again_what_is_known(self, data):
        """A lying listener announces a second login on a session that is open or waiting."""
        keys = [k for k, state in self.clients.items() if state in ("open", "granted")]
        if keys:
            key = data.draw(st.sampled_from(keys))
            self.core.awaits(key.listener, login_started(key.session))
            if key in self.core.sessions or key in self.core.waiting:
                assert key not in self.core.awaiting
            else:  # its actor has ended it already
                self.clients[key] = "announced"

    @rule(data=st.data())
    def client_goes(self, data):
        if self.clients:
            key = data.draw(st.sampled_from(sorted(self.clients)))
            del self.clients[key]
            leases = dict(self.core.leases)
            self.do(self.core.ended(key.listener, ended(key.session)))
            assert self.core.leases == leases, "a listener's report does not free a lease"

    @rule(listener=st.sampled_from(LISTENERS))
    def listener_dies(self, listener):
        self.clients = {k: v for k, v in self.clients.items() if k.listener != listener}
        self.do(self.core.listener_gone(listener))
        assert not [k for k in self.core.waiting if k.listener == listener]

    # -- maildir actors
    @rule(data=st.data(), failed=st.integers(0, 1))
    def closes(self, data, failed):
        serving = [name for name, key in self.alive.items() if key is not None]
        if serving:
            name = data.draw(st.sampled_from(sorted(serving)))
            key, self.alive[name] = self.alive[name], None
            self.clients.pop(key, None)
            self.do(self.core.closed(name, m.SessionClosed(key.session, 1, failed, 0, []), self.now))
            assert key not in self.core.sessions and key not in self.core.leases.values()

    @rule(data=st.data(), session=st.sampled_from([0, 10**9]))
    def closes_what_it_has_not(self, data, session):
        if self.alive:
            name = data.draw(st.sampled_from(sorted(self.alive)))
            leases = dict(self.core.leases)
            assert self.core.closed(name, m.SessionClosed(session, 0, 0, 0, []), self.now) == []
            assert self.core.parked(name, m.SessionParked(session, b"", 0), self.now) == []
            assert self.core.leases == leases

    @rule(data=st.data(), hello=st.booleans())
    def dies(self, data, hello):
        if self.alive:
            name = data.draw(st.sampled_from(sorted(self.alive)))
            if hello:
                self.core.ending(name)
                self.retiring.add(name)
            key = self.alive.pop(name)
            self.retiring.discard(name)
            if key is not None:
                self.clients.pop(key, None)
            self.do(self.core.maildir_gone(name, self.now))
            if key is not None:
                assert key not in self.core.sessions

    @rule(data=st.data())
    def goes_as_told(self, data):
        if self.retiring:
            name = data.draw(st.sampled_from(sorted(self.retiring)))
            assert self.alive[name] is None
            del self.alive[name]
            self.retiring.discard(name)
            self.do(self.core.maildir_gone(name, self.now))

    @rule(data=st.data())
    def stays_for_a_delivery(self, data):
        if self.retiring:
            name = data.draw(st.sampled_from(sorted(self.retiring)))
            self.retiring.discard(name)
            self.stayed += 1
            self.do(self.core.stays(name.removeprefix("maildir."), self.now))

    @rule(data=st.data())
    def parks(self, data):
        serving = [name for name, key in self.alive.items() if key is not None]
        if serving:
            name = data.draw(st.sampled_from(sorted(serving)))
            user, key = name.removeprefix("maildir."), self.alive[name]
            self.alive[name] = None
            actions = self.core.parked(name, m.SessionParked(key.session, b"state", 0), self.now)
            if user in self.core.asleep:
                self.asleep[user] = key
            self.do(actions)

    @rule(data=st.data())
    def finds_its_maildir_moved(self, data):
        serving = [name for name, key in self.alive.items() if key is not None]
        if serving:
            name = data.draw(st.sampled_from(sorted(serving)))
            user, key = name.removeprefix("maildir."), self.alive[name]
            self.alive[name] = None
            self.retiring.add(name)  # by itself
            self.do(self.core.parked(name, m.SessionMoved(key.session, b""), self.now))
            if user in self.core.asleep:
                self.asleep[user] = key

    @precondition(lambda self: self.clients)
    @rule(data=st.data())
    def hangs_up(self, data):
        key = data.draw(st.sampled_from(sorted(self.clients)))
        self.do(self.core.client_hung_up(key.listener, m.ClientHungUp(key.session)))

    @precondition(lambda self: self.asleep)
    @rule(data=st.data())
    def stirs(self, data):
        user = data.draw(st.sampled_from(sorted(self.asleep)))
        if self.asleep[user] in self.clients:
            self.do(self.core.woken(user, self.now))
        else:
            self.do(self.core.sleeper_gone(user))

    # -- the kernel itself
    @rule(seconds=st.sampled_from([0.0, 1.0, 30.0, 100.0]))
    def time_passes(self, seconds):
        self.now += seconds
        self.do(self.core.sweep(self.now))
        due = self.core.next_sweep()
        assert due is None or due > self.now

    @rule(gone=st.sampled_from([None, "alice"]))
    def reloads(self, gone):
        self.core.users = {name: row for name, row in USERS.items() if name != gone}
        self.do(self.core.retire_all())

    @invariant()
    def leases_and_sessions_are_one_to_one(self):
        c = self.core
        assert {user: key for key, (user, _) in c.sessions.items()} == c.leases
        assert len(set(c.leases.values())) == len(c.leases)

    @invariant()
    def a_lease_has_its_holder(self):
        c = self.core
        holders = {
            name.removeprefix("maildir."): key for name, key in self.alive.items() if key is not None
        } | self.asleep
        assert holders == c.leases
        assert {user: key for user, (key, _) in c.asleep.items()} == self.asleep
        assert {mail.name for mail in c.maildirs.values()} == set(self.alive)
        assert {mail.name for mail in c.maildirs.values() if mail.retiring} == self.retiring
        assert c.leaving <= set(c.sessions)
        assert c.hung <= set(self.clients) - set(c.sessions)

    @invariant()
    def a_waiting_session_waits_for_something(self):
        c = self.core
        assert len(set(c.waiting.values())) == len(c.waiting)
        for key, user in c.waiting.items():
            maildir = c.maildirs[user]
            assert maildir.waiting == key
            assert maildir.retiring or maildir.key is not None
            assert self.clients.get(key) == "granted"
            assert key not in c.sessions and key not in c.awaiting
        assert {mail.waiting for mail in c.maildirs.values()} - {None} == set(c.waiting)
        assert {k for k, state in self.clients.items() if state == "granted"} == set(c.waiting), (
            "neither served nor refused"
        )

    @invariant()
    def idle_actors_are_idle_and_few(self):
        for user in self.core.idle:
            maildir = self.core.maildirs[user]
            assert maildir.key is None and not maildir.retiring
        # an actor with a delivery is not told to retire, and counts
        assert len(self.core.idle) <= PATIENCE.warm_max + self.stayed

    def teardown(self):
        """All actors end: nothing is left, and nobody waits."""
        for _ in range(20):
            for name in sorted(self.alive):
                key = self.alive.pop(name)
                self.retiring.discard(name)
                self.clients.pop(key, None)
                self.do(self.core.maildir_gone(name, self.now))
        for user in sorted(self.asleep):
            self.do(self.core.sleeper_gone(user))
        for name in sorted(self.alive):
            self.core.maildir_gone(name, self.now)
        assert not (
            self.core.leases
            or self.core.sessions
            or self.core.waiting
            or self.core.maildirs
            or self.core.asleep
            or self.core.leaving
        )


TestService = Service.TestCase
TestService.settings = settings(max_examples=200, stateful_step_count=40)


def test_a_second_session_is_refused():
    kernel = make()
    assert [type(e) for e in log_in(kernel, 1)] == [Spawn, Join]
    (turned,) = log_in(kernel, 2, listener="listener.1")
    assert turned.to == "listener.1"
    assert turned.message[:2] == (2, "IN-USE")
    kernel.closed("maildir.alice", m.SessionClosed(1, 0, 0, 0, []), 1.0)
    assert [type(e) for e in log_in(kernel, 3)] == [Join]


def test_a_user_without_a_mailbox_gets_the_answer_for_a_wrong_password():
    *_, turned = log_in(make(), 1, "mallory")
    assert turned.message[1:] == ("AUTH", "wrong name or password")


def test_a_waiting_session_announced_again_ends_no_kernel():
    """A listener's lie must not end the kernel.

    One session number waits for the retiring actors of two users.
    """
    kernel = make()
    for session, user in ((1, "alice"), (2, "bob")):
        log_in(kernel, session, user)
        kernel.closed(f"maildir.{user}", m.SessionClosed(session, 0, 0, 0, []), 0.0)
    kernel.retire_all()
    assert log_in(kernel, 3, "alice") == [Suspect("maildir.alice")]
    log_in(kernel, 3, "bob")
    for user in ("alice", "bob"):
        kernel.maildir_gone(f"maildir.{user}", 1.0)
    assert kernel.leases == {"alice": Key("listener.0", 3)}


def test_a_listener_that_announces_without_end_is_ended(monkeypatch):
    monkeypatch.setattr(core, "_MOST_AWAITING", 100)
    kernel = make()
    kernel.awaits("listener.1", login_started(1))
    actions = [kernel.awaits("listener.0", login_started(n)) for n in range(1, 101)]
    assert actions[-1][-1] == Kill("listener.0")
    assert not any(actions[:-1])
    kernel.listener_gone("listener.0")
    assert kernel.awaiting == {Key("listener.1", 1)}


def test_a_login_after_the_actor_s_death_is_accepted():
    """The listener and the kernel have seen their channels end; the process's end comes later."""
    kernel = make()
    kernel.awaits("listener.0", login_started(1))
    kernel.granted(m.LoginGranted("listener.0", 1, "alice"), 0.0)
    kernel.awaits("listener.0", login_started(1))
    assert not kernel.awaiting  # a repeated announcement counts after its end only
    kernel.ending("maildir.alice")
    kernel.awaits("listener.0", login_started(1))
    assert kernel.awaiting == {Key("listener.0", 1)} and not kernel.leases
    kernel.granted(m.LoginGranted("listener.0", 1, "bob"), 0.0)
    assert kernel.sessions[Key("listener.0", 1)][0] == "bob"
    kernel.maildir_gone("maildir.alice", 0.0)
    assert kernel.sessions[Key("listener.0", 1)][0] == "bob" and kernel.leases == {
        "bob": Key("listener.0", 1)
    }


@pytest.mark.parametrize("waits", [False, True])
def test_a_leaving_actor_gets_no_other_session(waits):
    """It could not open the maildir; a new actor sees whether that was mended."""
    kernel = make()
    log_in(kernel, 1)
    if waits:
        kernel.ended("listener.0", ended(1))
        assert log_in(kernel, 2) == [Suspect("maildir.alice", core._QUIT_SECONDS)]
    kernel.ending("maildir.alice")
    assert kernel.closed("maildir.alice", m.SessionClosed(1, 0, 0, 0, []), 1.0) == (
        [Suspect("maildir.alice")] if waits else []
    )
    assert not kernel.idle
    if not waits:
        assert log_in(kernel, 2) == [Suspect("maildir.alice")]
    assert [type(e) for e in kernel.maildir_gone("maildir.alice", 2.0)] == [Spawn, Join]
    assert kernel.leases == {"alice": Key("listener.0", 2)}


def test_a_session_without_its_client_is_not_parked():
    kernel = make()
    log_in(kernel, 1)
    kernel.ended("listener.0", ended(1))
    assert log_in(kernel, 2) == [Suspect("maildir.alice", core._QUIT_SECONDS)]
    actions = kernel.parked("maildir.alice", m.SessionParked(1, b"", 0), 1.0)
    assert [type(e) for e in actions] == [Join]
    assert not kernel.asleep
    assert kernel.leases == {"alice": Key("listener.0", 2)}


def test_a_parked_session_that_ends_for_a_waiting_one_is_forgotten():
    """The shell must hear of it at once, or it would later wake a session that no longer exists."""
    kernel = make()
    log_in(kernel, 1)
    kernel.parked("maildir.alice", m.SessionParked(1, b"", 0), 0.0)
    kernel.retire_all()
    kernel.ended("listener.0", ended(1))
    assert log_in(kernel, 2) == [Forget("alice"), Suspect("maildir.alice")]
    assert [type(e) for e in kernel.maildir_gone("maildir.alice", 1.0)] == [Spawn, Join]


def test_the_more_actors_there_are_the_sooner_a_silent_session_parks():
    kernel = make(crowd=10, park_seconds=30)
    seconds = []
    for number in range(1, 13):
        kernel.users = {**kernel.users, f"u{number}": kernel.users["alice"]}
        seconds.append(log_in(kernel, number, f"u{number}")[-1].to_other.park)
    assert seconds == [30, 30, 30, 30, 30, 24, 18, 12, 6, 1, 1, 1]
    assert make(crowd=0, park_seconds=0)._park(core.Maildir("alice", None), 0.0) == 0, "0: never"


def test_a_woken_session_is_served_by_the_staying_actor():
    kernel = make(crowd=0)
    log_in(kernel, 1)
    assert Send("maildir.alice", m.ActorRetire()) in kernel.parked(
        "maildir.alice", m.SessionParked(1, b"s", 0), 1.0
    )
    assert kernel.woken("alice", 2.0) == []
    (roused,) = kernel.stays("alice", 3.0)
    assert (roused.user, roused.name) == ("alice", "maildir.alice")


@pytest.mark.parametrize("intensity", [0, 1, 3])
def test_restarts_with_pauses_that_double_until_given_up(intensity):
    kernel = make(restart_intensity=intensity, restart_seconds=10.0)
    pauses = [kernel.died("auth", 0.1 * n).seconds for n in range(intensity + 1)]
    assert pauses[-1] < 0
    assert pauses[:-1] == [0.0, 0.1, 0.2][:intensity]
    assert kernel.died("listener.0", 0.0).seconds == (0.0 if intensity else -1.0)
    assert kernel.died("auth", 1000.0).seconds == (0.0 if intensity else -1.0)


def test_a_moved_session_goes_to_the_next_actor_once():
    """It keeps its lease meanwhile; an actor that hands it back again ends it."""
    kernel = make()
    log_in(kernel, 1)
    for again in (False, True):
        actions = kernel.parked("maildir.alice", m.SessionMoved(1, b""), 1.0)
        assert any(type(e) is WriteLog for e in actions) == again
        assert ("alice" in kernel.asleep) != again
        assert kernel.leases == ({} if again else {"alice": Key("listener.0", 1)})
        turned = log_in(kernel, 2 + again, now=1.0)
        assert (kernel.maildirs["alice"].waiting is not None) == again
        if not again:
            assert turned[-1].message.code == "IN-USE"
        after = kernel.maildir_gone("maildir.alice", 2.0)
        assert [type(e) for e in after] == [Spawn, Join if again else Rouse]
        if not again:
            assert (after[1].message.session, after[1].message.state) == (1, b"")


def test_a_moved_session_may_park_and_move_again():
    kernel = make()
    log_in(kernel, 1)
    for now in (1.0, 100.0, 200.0):
        assert kernel.parked("maildir.alice", m.SessionMoved(1, b"s"), now) == []
        kernel.maildir_gone("maildir.alice", now)
        kernel.parked("maildir.alice", m.SessionParked(1, b"s", 0), now + 50)
        kernel.woken("alice", now + 60)


def test_an_actor_that_moves_another_s_session_ends():
    kernel = make()
    log_in(kernel, 1)
    assert kernel.parked("maildir.alice", m.SessionMoved(2, b""), 1.0) == []
    assert kernel.asleep == {} and kernel.maildirs["alice"].retiring
    assert kernel.parked("maildir.nobody", m.SessionMoved(2, b""), 1.0) == []
    log_in(kernel, 3, "bob")
    kernel.ended("listener.0", ended(3, "bob"))
    assert kernel.parked("maildir.bob", m.SessionMoved(3, b""), 1.0) == []
    assert kernel.asleep == {} and "bob" not in kernel.leases


def test_a_login_given_up_by_its_listener_no_longer_waits():
    """It must not keep others out with IN-USE, and the same session's next login must be answered."""
    kernel = make()
    log_in(kernel, 1)
    kernel.ended("listener.0", ended(1))
    assert Suspect("maildir.alice", core._QUIT_SECONDS) in log_in(kernel, 2), (
        "a session that waits for a hung actor would wait for ever"
    )
    assert kernel.login_over("listener.0", 2) == [] and not kernel.waiting
    assert [e for e in log_in(kernel, 3) if type(e) is Send] == []
    assert list(kernel.waiting) == [Key("listener.0", 3)]
    log_in(kernel, 3)
    assert list(kernel.waiting) == [Key("listener.0", 3)]
    actions = kernel.maildir_gone("maildir.alice", 1.0)
    assert [e.to_one for e in actions if type(e) is Join] == [m.SessionAdmitted(3, "alice")]


def test_with_little_room_idle_actors_end_and_then_logins_are_refused():
    """The kernel must not run out of descriptors (EMFILE), which would end all sessions."""
    kernel = Core(
        {name: MailUser(1000, 1000, name) for name in ("alice", "bob", "carol", "dave")},
        PATIENCE._replace(warm_max=9),
    )
    for number, user in enumerate(("alice", "bob"), 1):
        log_in(kernel, number, user)
        kernel.closed(f"maildir.{user}", m.SessionClosed(number, 0, 0, 0, []), 0.0)
    kernel.short(1)
    assert log_in(kernel, 3, "carol")[:2] == [
        Send("maildir.alice", m.ActorRetire()),
        Send("maildir.bob", m.ActorRetire()),
    ]
    assert kernel.full
    (full, turned) = log_in(kernel, 4, "dave")
    assert full == Full("dave") and turned.message.code == "SYS/TEMP" and "dave" not in kernel.leases
    kernel.maildir_gone("maildir.alice", 1.0)
    kernel.short(1)
    assert [type(e) for e in log_in(kernel, 5, "dave")] == [Spawn, Join]
    kernel.short(None)
    assert not kernel.full


def test_with_little_room_a_parked_session_has_no_idle_actor():
    kernel = make(crowd=100)
    log_in(kernel, 1)
    kernel.short(5)
    assert kernel.parked("maildir.alice", m.SessionParked(1, b"", 0), 1.0) == [
        Send("maildir.alice", m.ActorRetire())
    ]
    kernel.maildir_gone("maildir.alice", 2.0)
    kernel.short(0)
    assert [type(e) for e in kernel.woken("alice", 3.0)] == [Spawn, Rouse], (
        "waking needs no further descriptor"
    )


def hang_up(kernel, session, listener="listener.0"):
    return kernel.client_hung_up(listener, m.ClientHungUp(session))


def test_the_next_login_waits_for_a_session_whose_client_hung_up():
    kernel = make()
    log_in(kernel, 1)
    assert hang_up(kernel, 1) == []
    assert log_in(kernel, 2) == [Suspect("maildir.alice", 30)]
    (in_use,) = log_in(kernel, 3)
    assert in_use.message.session == 3 and in_use.message.code == "IN-USE", "session 2's client is there"
    hang_up(kernel, 2)
    (in_use, _) = log_in(kernel, 4)
    assert in_use.message.session == 2 and in_use.message.code == "IN-USE"
    (joined,) = kernel.closed("maildir.alice", m.SessionClosed(1, 0, 0, 0, []), 1.0)
    assert joined.to_one.session == 4


def test_a_client_that_hung_up_before_its_password_was_checked_is_waited_for_too():
    kernel = make()
    kernel.awaits("listener.0", login_started(1))
    hang_up(kernel, 1)
    kernel.granted(m.LoginGranted("listener.0", 1, "alice"), 0.0)
    assert log_in(kernel, 2) == [Suspect("maildir.alice", 30)]
    kernel.awaits("listener.0", login_started(5))
    hang_up(kernel, 5)
    kernel.listener_gone("listener.0")
    assert not kernel.hung


def idle(kernel, *users, peak=0, now=0.0):
    """Let each user log in and quit."""
    actions = []
    for user in users:
        kernel.users = {**kernel.users, user: kernel.users["alice"]}
        session = len(kernel.maildirs) + 1000 * (1 + int(now))
        log_in(kernel, session, user, now=now)
        actions += kernel.closed(f"maildir.{user}", m.SessionClosed(session, 0, 0, peak, []), now)
    return actions


def retired(*users):
    return [Send(f"maildir.{user}", m.ActorRetire()) for user in users]


def test_actors_stay_warm_until_their_memory_is_used():
    kernel = make(warm_max=100, warm_octets=3 * 2_000_000)
    kernel.measured(2_000_000, 14_000)
    assert kernel.holds == 3
    assert idle(kernel, "a", "b", "c") == []
    assert idle(kernel, "a", now=1.0) == [], "used again"
    assert idle(kernel, "d", now=2.0) == retired("b"), "the one that was unused longest"
    assert kernel.idle_octets == 6_000_000
    assert kernel.measured(2_500_000, 14_000) == retired("c"), "another spawner's actors are larger"
    assert kernel.measured(0, 0) == [] and kernel.actor_octets == 2_500_000, "it could not measure"


GROWN = 2000 * 1024 + (1 << 19)  # octets: by the peak, and inherited pages that were copied


def test_an_actor_that_has_grown_counts_with_all_that_it_had():
    kernel = make(warm_max=100, warm_octets=24_000_000)
    kernel.measured(2_000_000, 10_000)
    assert idle(kernel, "a", "b", "c", peak=10_900) == [] and kernel.idle_octets == 6_000_000, "no growth"
    assert idle(kernel, "d", peak=12_000) == [] and kernel.idle_octets == 8_000_000 + GROWN
    assert idle(kernel, "a", now=1.0) == []
    assert idle(kernel, "e", "f", peak=12_000, now=2.0) == [] and kernel.idle_grown == 3 * GROWN
    kernel.ending("maildir.d")
    kernel.maildir_gone("maildir.e", 3.0)
    assert kernel.idle_grown == GROWN and kernel.idle_octets == 8_000_000 + GROWN
    assert idle(kernel, "g", peak=1 << 30, now=4.0) == retired("g"), "a lie, or a huge mailbox: others stay"
    kernel.let_go(9)
    assert kernel.idle_grown == 0 == kernel.idle_octets


def test_growth_is_unknown_where_the_spawner_could_not_measure():
    kernel = make(warm_max=100)
    idle(kernel, "a", peak=1 << 30)
    kernel.measured(2_000_000, 14_000)
    idle(kernel, "b", peak=0)
    assert kernel.idle_grown == 0 and list(kernel.idle) == ["a", "b"]


def test_when_the_system_is_short_the_longest_unused_go():
    kernel = make(warm_max=100)
    idle(kernel, "a", "b", "c")
    log_in(kernel, 7, "a")
    assert kernel.let_go(1) == retired("b")
    assert kernel.let_go(5) == retired("c") and kernel.let_go(5) == []


def test_no_memory_is_no_warm_actor():
    kernel = make(warm_octets=0)
    assert idle(kernel, "a") == retired("a")


def test_idle_actors_are_no_crowd():
    """They have a budget of their own: thousands who poll must not make open sessions park at once."""
    kernel = make(crowd=10, park_seconds=30, warm_max=100, warm_octets=1 << 40)
    idle(kernel, *(f"u{n}" for n in range(50)))
    assert log_in(kernel, 1)[-1].to_other.park == 30
    assert kernel.parked("maildir.alice", m.SessionParked(1, b"", 0), 40.0) == []


def test_in_a_crowd_of_sessions_parked_ones_keep_no_actor():
    """Neither those parked from now on, nor one by one those that were parked before."""
    kernel = make(crowd=2, park_seconds=30, warm_max=100, warm_octets=1 << 40)
    idle(kernel, "poll")
    for number, user in enumerate(("a", "b", "c", "d"), 1):
        kernel.users = {**kernel.users, user: kernel.users["alice"]}
        log_in(kernel, number, user)
        if number <= 2:
            assert kernel.parked(f"maildir.{user}", m.SessionParked(number, b"", 0), 40.0) == []
    assert kernel.parked("maildir.c", m.SessionParked(3, b"", 0), 40.0) == retired("c", "a")
    assert kernel.parked("maildir.d", m.SessionParked(4, b"", 0), 40.0) == retired("d", "b")
    assert list(kernel.idle) == ["poll"]


def test_a_reload_keeps_what_did_not_change():
    kernel = make(warm_max=100)
    idle(kernel, "alice", "bob", "carol")
    kernel.users = {**kernel.users, "dora": USERS["alice"]}
    log_in(kernel, 7, "dora")
    kernel.users = {**kernel.users, "bob": kernel.users["bob"]._replace(maildir="/moved")}
    assert kernel.retire_changed(["dora"]) == retired("bob"), "busy ones end after their sessions"
    assert kernel.closed("maildir.dora", m.SessionClosed(7, 0, 0, 0, []), 1.0) == retired("dora")
    assert set(kernel.idle) == {"alice", "carol"}
    del kernel.users["carol"]
    assert kernel.retire_changed([]) == retired("carol")
    assert kernel.retire_all() == retired("alice")


def test_a_large_actor_that_refuses_to_retire_costs_others_little():
    """It receives mail, or gives a false number to have the others' actors retired."""
    kernel = make(warm_max=100, warm_octets=16_000_000)
    kernel.measured(1_000_000, 10_000)
    idle(kernel, "a", "b", "c")
    assert idle(kernel, "evil", peak=1 << 40, now=1.0) == retired("evil")
    assert kernel.stays("evil", 2.0) == []
    assert idle(kernel, "d", now=2.0) == [], "the others stay"
    assert kernel.idle_octets <= 5_000_000 + 2_000_001
    assert kernel.next_sweep() == 3.0 and kernel.sweep(3.0) == retired("evil"), (
        "told again, not after an hour"
    )


def test_an_actor_that_lies_about_its_end_leaves_the_budget_as_it_is():
    """It says that it ends, and then that it stays, while it has a session, whose end changes its size."""
    kernel = make(warm_max=100, warm_octets=16_000_000)
    kernel.measured(1_000_000, 10_000)
    for session, peak in enumerate((1 << 40, 11_100, 1 << 40, 0), 1):
        log_in(kernel, session)
        kernel.ending("maildir.alice")
        assert kernel.stays("alice", 1.0) == [] and not kernel.idle, "it has a session"
        kernel.closed("maildir.alice", m.SessionClosed(session, 0, 0, peak, []), 1.0)
        kernel.stays("alice", 1.0)
    kernel.maildir_gone("maildir.alice", 2.0)
    assert kernel.idle_grown == 0


def test_mail_does_not_keep_an_actor_with_old_settings():
    kernel = make(warm_max=100, warm_seconds=3600)
    idle(kernel, "alice", "bob")
    assert kernel.retire_changed(["alice"]) == retired("alice")
    kernel.stays("alice", 1.0)
    assert kernel.used("alice", 1.5) == [] and kernel.used("bob", 1.6) == []
    assert kernel.sweep(2.1) == retired("alice")
    assert kernel.retire_all() == retired("bob")
    kernel.stays("alice", 2.5)
    kernel.stays("bob", 3.4)
    assert kernel.sweep(3.6) == retired("alice"), "though the other one's second is not over"
