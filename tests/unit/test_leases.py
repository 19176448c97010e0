"""The kernel's decisions: what holds whatever happens in whatever order, and the cases that once went wrong."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from popkernel.kernel.decisions import leases as core
from popkernel.kernel.decisions.leases import Core, Key, Settings
from popkernel.proto import messages as m
from popkernel.proto.files.tables import MailUser

USERS = {name: MailUser(1000 + n, 1000, f"/mail/{name}") for n, name in enumerate(("alice", "bob"))}
LISTENERS = ("listener.0", "listener.1")
PATIENCE = Settings(warm_seconds=60, warm_max=1, restart_intensity=3, restart_seconds=10, crowd=1)


def ended(session, user="alice"):
    return m.Ended(session, user, "", "", 0, 0, 0, 0, 0, 0, 0)


def make(**changed):
    return Core(dict(USERS), PATIENCE._replace(**changed))


def log_in(kernel, session, user="alice", listener="listener.0", now=0.0):
    kernel.awaits(listener, m.Awaiting(session))
    return kernel.granted(m.Granted(listener, session, user), now)


class Service(RuleBasedStateMachine):
    """Listeners, auth and maildir actors as they may behave, the kernel's core in their midst."""

    def __init__(self):
        super().__init__()
        self.core = Core(dict(USERS), PATIENCE)
        self.now = 0.0
        self.number = self.stayed = 0
        self.clients = {}  # Key -> "announced", "granted", "open", "turned"
        self.alive = {}  # name -> key that it serves, or None
        self.told = set()  # names of those told to go
        self.asleep = {}  # user -> Key of a session whose channel the shell holds

    def do(self, effects):
        for effect in effects:
            match effect:
                case core.Spawn(name, row):
                    assert name not in self.alive
                    assert row == self.core.users[name.removeprefix("maildir.")]
                    self.alive[name] = None
                case core.Join(one, to_one, other, to_other):
                    assert type(to_one) is m.Opened and type(to_other) is m.Open
                    key = Key(one, to_one.session)
                    assert to_other.session == key.session
                    assert other in self.alive and self.alive[other] is None, "a session for an actor that has one"
                    assert other not in self.told, "a session for an actor that goes"
                    assert self.clients.get(key) in ("granted", None)
                    self.alive[other] = key
                    if key in self.clients:
                        self.clients[key] = "open"
                case core.Rouse(user, name, _):
                    assert name in self.alive and self.alive[name] is None and name not in self.told
                    self.alive[name] = self.asleep.pop(user)
                case core.Forget(user):
                    self.clients.pop(self.asleep.pop(user), None)
                case core.Send(to, message) if type(message) is m.Turned:
                    key = Key(to, message.session)
                    assert self.clients.get(key) == "granted"
                    self.clients[key] = "turned"
                case core.Send(to, message):
                    assert type(message) is m.Retire
                    assert to in self.alive and to not in self.told and self.alive[to] is None
                    self.told.add(to)
                case core.Line() | core.Full():
                    pass
                case core.Suspect(name):
                    assert name in self.alive
                case _:
                    raise AssertionError(effect)

    # -- listeners and auth
    @rule(listener=st.sampled_from(LISTENERS))
    def announces(self, listener):
        self.number += 1
        key = Key(listener, self.number)
        self.clients[key] = "announced"
        assert self.core.awaits(listener, m.Awaiting(key.session)) == []

    @rule(data=st.data(), user=st.sampled_from([*USERS, "mallory"]))
    def grants(self, data, user):
        announced = [k for k, state in self.clients.items() if state == "announced"]
        if announced:
            key = data.draw(st.sampled_from(announced))
            self.clients[key] = "granted"
            self.do(self.core.granted(m.Granted(key.listener, key.session, user), self.now))
            assert self.clients[key] != "granted" or key in self.core.waiting

    @rule(room=st.sampled_from([None, None, 0, 1, 5]))
    def descriptors_become_few_or_many(self, room):
        self.do(self.core.short(room))

    @rule(data=st.data())
    def gives_up(self, data):
        """A listener whose patience is over tells its client no, and the kernel that it did."""
        keys = [k for k, state in self.clients.items() if state == "granted" and k in self.core.waiting]
        if keys:
            key = data.draw(st.sampled_from(keys))
            self.do(self.core.login_over(key.listener, key.session))
            self.clients[key] = "turned"
            assert key not in self.core.waiting

    @rule(data=st.data(), user=st.sampled_from(list(USERS)))
    def grants_what_nobody_announced(self, data, user):
        keys = [k for k, state in self.clients.items() if state != "announced"] + [Key("listener.0", 10**9), Key("listener.9", 1)]
        key = data.draw(st.sampled_from(keys))
        before = (dict(self.core.leases), dict(self.core.sessions), dict(self.core.waiting), set(self.core.maildirs))
        effects = self.core.granted(m.Granted(key.listener, key.session, user), self.now)
        assert all(isinstance(e, core.Line) for e in effects)
        assert before == (self.core.leases, self.core.sessions, self.core.waiting, set(self.core.maildirs))

    @rule(data=st.data())
    def announces_again_what_is_known(self, data):
        """A listener that lies: of a session that is open or waits no second login may come."""
        keys = [k for k, state in self.clients.items() if state in ("open", "granted")]
        if keys:
            key = data.draw(st.sampled_from(keys))
            self.core.awaits(key.listener, m.Awaiting(key.session))
            if key in self.core.sessions or key in self.core.waiting:
                assert key not in self.core.awaiting

    @rule(data=st.data())
    def client_goes(self, data):
        if self.clients:
            key = data.draw(st.sampled_from(sorted(self.clients)))
            del self.clients[key]
            leases = dict(self.core.leases)
            self.do(self.core.ended(key.listener, ended(key.session)))
            assert self.core.leases == leases, "a lease is not freed by a listener's word"

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
            self.do(self.core.closed(name, m.Closed(key.session, 1, failed), self.now))
            assert key not in self.core.sessions and key not in self.core.leases.values()

    @rule(data=st.data(), session=st.sampled_from([0, 10**9]))
    def closes_what_it_has_not(self, data, session):
        if self.alive:
            name = data.draw(st.sampled_from(sorted(self.alive)))
            leases = dict(self.core.leases)
            assert self.core.closed(name, m.Closed(session, 0, 0), self.now) == []
            assert self.core.parked(name, m.Parked(session, b""), self.now) == []
            assert self.core.leases == leases

    @rule(data=st.data(), hello=st.booleans())
    def dies(self, data, hello):
        if self.alive:
            name = data.draw(st.sampled_from(sorted(self.alive)))
            if hello:
                self.core.ending(name)
                self.told.add(name)
            key = self.alive.pop(name)
            self.told.discard(name)
            if key is not None:
                self.clients.pop(key, None)
            self.do(self.core.maildir_gone(name, self.now))
            if key is not None:
                assert key not in self.core.sessions

    @rule(data=st.data())
    def goes_as_told(self, data):
        if self.told:
            name = data.draw(st.sampled_from(sorted(self.told)))
            assert self.alive[name] is None
            del self.alive[name]
            self.told.discard(name)
            self.do(self.core.maildir_gone(name, self.now))

    @rule(data=st.data())
    def stays_for_a_delivery(self, data):
        if self.told:
            name = data.draw(st.sampled_from(sorted(self.told)))
            self.told.discard(name)
            self.stayed += 1
            self.do(self.core.stays(name.removeprefix("maildir."), self.now))

    @rule(data=st.data())
    def parks(self, data):
        serving = [name for name, key in self.alive.items() if key is not None]
        if serving:
            name = data.draw(st.sampled_from(sorted(serving)))
            user, key = name.removeprefix("maildir."), self.alive[name]
            self.alive[name] = None
            effects = self.core.parked(name, m.Parked(key.session, b"state"), self.now)
            if user in self.core.asleep:
                self.asleep[user] = key
            self.do(effects)

    @rule(data=st.data())
    def finds_its_maildir_moved(self, data):
        serving = [name for name, key in self.alive.items() if key is not None]
        if serving:
            name = data.draw(st.sampled_from(sorted(serving)))
            user, key = name.removeprefix("maildir."), self.alive[name]
            self.alive[name] = None
            self.told.add(name)  # of its own will
            self.do(self.core.parked(name, m.Moved(key.session, b""), self.now))
            if user in self.core.asleep:
                self.asleep[user] = key

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
        holders = {name.removeprefix("maildir."): key for name, key in self.alive.items() if key is not None} | self.asleep
        assert holders == c.leases
        assert {user: key for user, (key, _) in c.asleep.items()} == self.asleep
        assert {mail.name for mail in c.maildirs.values()} == set(self.alive)
        assert {mail.name for mail in c.maildirs.values() if mail.retiring} == self.told
        assert c.leaving <= set(c.sessions)

    @invariant()
    def whoever_waits_waits_for_something(self):
        c = self.core
        assert len(set(c.waiting.values())) == len(c.waiting)
        for key, user in c.waiting.items():
            maildir = c.maildirs[user]
            assert maildir.waiting == key
            assert maildir.retiring or maildir.key is not None
            assert self.clients.get(key) == "granted"
            assert key not in c.sessions and key not in c.awaiting
        assert {mail.waiting for mail in c.maildirs.values()} - {None} == set(c.waiting)
        assert {k for k, state in self.clients.items() if state == "granted"} == set(c.waiting), "neither served nor turned"

    @invariant()
    def the_idle_are_idle_and_few(self):
        for user in self.core.idle:
            maildir = self.core.maildirs[user]
            assert maildir.key is None and not maildir.retiring
        assert len(self.core.idle) <= PATIENCE.warm_max + self.stayed  # who takes a delivery is not to go, and counts

    def teardown(self):
        """Everybody goes: nothing is left, nobody waits."""
        for _ in range(20):
            for name in sorted(self.alive):
                key = self.alive.pop(name)
                self.told.discard(name)
                self.clients.pop(key, None)
                self.do(self.core.maildir_gone(name, self.now))
        for user in sorted(self.asleep):
            self.do(self.core.sleeper_gone(user))
        for name in sorted(self.alive):
            self.core.maildir_gone(name, self.now)
        assert not (self.core.leases or self.core.sessions or self.core.waiting or self.core.maildirs or self.core.asleep or self.core.leaving)


TestService = Service.TestCase
TestService.settings = settings(max_examples=200, stateful_step_count=40)


def test_a_second_session_is_turned():
    kernel = make()
    assert [type(e) for e in log_in(kernel, 1)] == [core.Spawn, core.Join]
    (turned,) = log_in(kernel, 2, listener="listener.1")
    assert turned.to == "listener.1"
    assert turned.message[:2] == (2, "IN-USE")
    kernel.closed("maildir.alice", m.Closed(1, 0, 0), 1.0)
    assert [type(e) for e in log_in(kernel, 3)] == [core.Join]


def test_who_is_in_no_user_table_is_turned_as_if_the_password_were_wrong():
    *_, turned = log_in(make(), 1, "mallory")
    assert turned.message[1:] == ("AUTH", "wrong name or password")


def test_a_waiting_session_that_is_announced_again_ended_the_kernel_once():
    """Two users' retiring actors, one session number that waits for both: a listener's lie, and a KeyError in the kernel."""
    kernel = make()
    for session, user in ((1, "alice"), (2, "bob")):
        log_in(kernel, session, user)
        kernel.closed(f"maildir.{user}", m.Closed(session, 0, 0), 0.0)
    kernel.retire_all()
    assert log_in(kernel, 3, "alice") == [core.Suspect("maildir.alice")]
    log_in(kernel, 3, "bob")
    for user in ("alice", "bob"):
        kernel.maildir_gone(f"maildir.{user}", 1.0)
    assert kernel.leases == {"alice": Key("listener.0", 3)}


def test_a_listener_that_announces_without_end_is_ended(monkeypatch):
    monkeypatch.setattr(core, "_MOST_AWAITING", 100)
    kernel = make()
    kernel.awaits("listener.1", m.Awaiting(1))
    effects = [kernel.awaits("listener.0", m.Awaiting(n)) for n in range(1, 101)]
    assert effects[-1][-1] == core.Kill("listener.0")
    assert not any(effects[:-1])
    kernel.listener_gone("listener.0")
    assert kernel.awaiting == {Key("listener.1", 1)}


def test_who_logs_in_again_on_a_session_whose_actor_died_is_heard():
    """The listener has seen the end of its channel, the kernel that of its own; the process's end comes later."""
    kernel = make()
    kernel.awaits("listener.0", m.Awaiting(1))
    kernel.granted(m.Granted("listener.0", 1, "alice"), 0.0)
    kernel.awaits("listener.0", m.Awaiting(1))
    assert not kernel.awaiting  # asked again, of another auth, while it is there
    kernel.ending("maildir.alice")
    kernel.awaits("listener.0", m.Awaiting(1))
    assert kernel.awaiting == {Key("listener.0", 1)} and not kernel.leases
    kernel.granted(m.Granted("listener.0", 1, "bob"), 0.0)
    assert kernel.sessions[Key("listener.0", 1)][0] == "bob"
    kernel.maildir_gone("maildir.alice", 0.0)
    assert kernel.sessions[Key("listener.0", 1)][0] == "bob" and kernel.leases == {"bob": Key("listener.0", 1)}


@pytest.mark.parametrize("waits", [False, True])
def test_an_actor_that_leaves_by_itself_is_given_no_other_session(waits):
    """It could not open the maildir; when that is mended, a new one sees it."""
    kernel = make()
    log_in(kernel, 1)
    if waits:
        kernel.ended("listener.0", ended(1))
        assert log_in(kernel, 2) == [core.Suspect("maildir.alice", core._QUIT_SECONDS)]
    kernel.ending("maildir.alice")
    assert kernel.closed("maildir.alice", m.Closed(1, 0, 0), 1.0) == ([core.Suspect("maildir.alice")] if waits else [])
    assert not kernel.idle
    if not waits:
        assert log_in(kernel, 2) == [core.Suspect("maildir.alice")]
    assert [type(e) for e in kernel.maildir_gone("maildir.alice", 2.0)] == [core.Spawn, core.Join]
    assert kernel.leases == {"alice": Key("listener.0", 2)}


def test_a_session_whose_client_has_gone_is_not_put_to_sleep():
    kernel = make()
    log_in(kernel, 1)
    kernel.ended("listener.0", ended(1))
    assert log_in(kernel, 2) == [core.Suspect("maildir.alice", core._QUIT_SECONDS)]
    effects = kernel.parked("maildir.alice", m.Parked(1, b""), 1.0)
    assert [type(e) for e in effects] == [core.Join]
    assert not kernel.asleep
    assert kernel.leases == {"alice": Key("listener.0", 2)}


def test_a_sleeper_that_gives_way_to_one_that_waits_is_forgotten():
    """The shell must hear of it at once: else it wakes later what is no more, and that ended the kernel."""
    kernel = make()
    log_in(kernel, 1)
    kernel.parked("maildir.alice", m.Parked(1, b""), 0.0)
    kernel.retire_all()
    kernel.ended("listener.0", ended(1))
    assert log_in(kernel, 2) == [core.Forget("alice"), core.Suspect("maildir.alice")]
    assert [type(e) for e in kernel.maildir_gone("maildir.alice", 1.0)] == [core.Spawn, core.Join]


def test_a_sleeper_that_stirs_is_served_by_an_actor_that_stays():
    kernel = make(crowd=0)
    log_in(kernel, 1)
    assert core.Send("maildir.alice", m.Retire()) in kernel.parked("maildir.alice", m.Parked(1, b"s"), 1.0)
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


def test_a_session_handed_back_is_for_the_next_actor_once():
    """And has its lease all the while; who hands it back again ends it."""
    kernel = make()
    log_in(kernel, 1)
    for again in (False, True):
        effects = kernel.parked("maildir.alice", m.Moved(1, b""), 1.0)
        assert any(type(e) is core.Line for e in effects) == again
        assert ("alice" in kernel.asleep) != again
        assert kernel.leases == ({} if again else {"alice": Key("listener.0", 1)})
        turned = log_in(kernel, 2 + again, now=1.0)
        assert (kernel.maildirs["alice"].waiting is not None) == again
        if not again:
            assert turned[-1].message.code == "IN-USE"
        after = kernel.maildir_gone("maildir.alice", 2.0)
        assert [type(e) for e in after] == [core.Spawn, core.Join if again else core.Rouse]
        if not again:
            assert (after[1].message.session, after[1].message.state) == (1, b"")


def test_a_session_handed_back_may_sleep_and_be_handed_back_again():
    kernel = make()
    log_in(kernel, 1)
    for now in (1.0, 100.0, 200.0):
        assert kernel.parked("maildir.alice", m.Moved(1, b"s"), now) == []
        kernel.maildir_gone("maildir.alice", now)
        kernel.parked("maildir.alice", m.Parked(1, b"s"), now + 50)
        kernel.woken("alice", now + 60)


def test_who_hands_back_what_is_not_its_own_goes_and_nothing_is_put_to_sleep():
    kernel = make()
    log_in(kernel, 1)
    assert kernel.parked("maildir.alice", m.Moved(2, b""), 1.0) == []
    assert kernel.asleep == {} and kernel.maildirs["alice"].retiring
    assert kernel.parked("maildir.nobody", m.Moved(2, b""), 1.0) == []
    log_in(kernel, 3, "bob")
    kernel.ended("listener.0", ended(3, "bob"))
    assert kernel.parked("maildir.bob", m.Moved(3, b""), 1.0) == []
    assert kernel.asleep == {} and "bob" not in kernel.leases


def test_a_login_that_its_listener_gave_up_waits_no_more():
    """It kept others out with IN-USE, and the same session's next login had no answer at all."""
    kernel = make()
    log_in(kernel, 1)
    kernel.ended("listener.0", ended(1))
    assert core.Suspect("maildir.alice", core._QUIT_SECONDS) in log_in(kernel, 2), "who waits for one that hangs would wait for ever"
    assert kernel.login_over("listener.0", 2) == [] and not kernel.waiting
    assert [e for e in log_in(kernel, 3) if type(e) is core.Send] == []
    assert list(kernel.waiting) == [Key("listener.0", 3)]
    log_in(kernel, 3)
    assert list(kernel.waiting) == [Key("listener.0", 3)]
    effects = kernel.maildir_gone("maildir.alice", 1.0)
    assert [e.to_one for e in effects if type(e) is core.Join] == [m.Opened(3, "alice")]


def test_where_there_is_little_room_the_idle_go_and_then_logins_are_turned_away():
    """The kernel ended with EMFILE at so many users, and all their sessions with it."""
    kernel = Core({name: MailUser(1000, 1000, name) for name in ("alice", "bob", "carol", "dave")}, PATIENCE._replace(warm_max=9))
    for number, user in enumerate(("alice", "bob"), 1):
        log_in(kernel, number, user)
        kernel.closed(f"maildir.{user}", m.Closed(number, 0, 0), 0.0)
    kernel.short(1)
    assert log_in(kernel, 3, "carol")[:2] == [core.Send("maildir.alice", m.Retire()), core.Send("maildir.bob", m.Retire())]
    assert kernel.full
    (full, turned) = log_in(kernel, 4, "dave")
    assert full == core.Full("dave") and turned.message.code == "SYS/TEMP" and "dave" not in kernel.leases
    kernel.maildir_gone("maildir.alice", 1.0)
    kernel.short(1)
    assert [type(e) for e in log_in(kernel, 5, "dave")] == [core.Spawn, core.Join]
    kernel.short(None)
    assert not kernel.full


def test_where_there_is_little_room_a_session_that_sleeps_has_no_idle_actor_besides():
    kernel = make(crowd=100)
    log_in(kernel, 1)
    kernel.short(5)
    assert kernel.parked("maildir.alice", m.Parked(1, b""), 1.0) == [core.Send("maildir.alice", m.Retire())]
    kernel.maildir_gone("maildir.alice", 2.0)
    kernel.short(0)
    assert [type(e) for e in kernel.woken("alice", 3.0)] == [core.Spawn, core.Rouse], "who wakes needs no descriptor more than who sleeps"
