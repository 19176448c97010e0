"""Test kernel/operator/commands.py, session_list.py and health.py without processes."""

import time
from types import SimpleNamespace

import msgpack
import pytest
from popkernel.kernel.decisions.actions import Kill, Send
from popkernel.kernel.decisions.leases import Core, Key, Settings
from popkernel.kernel.decisions.recipients import Rules
from popkernel.kernel.operator.commands import Commands
from popkernel.kernel.operator.health import Health
from popkernel.kernel.operator.history import History
from popkernel.kernel.operator.session_list import Announced, Chosen, SessionList
from popkernel.kernel.replay.loop import ReplayLoop
from popkernel.proto import messages as m
from popkernel.proto.files.tables import MailUser

from tests.support.messages import login_started
from tests.support.registry import LogRecorder, Registry

USERS = {name: MailUser(1000, 1000, f"/mail/{name}") for name in ("alice", "bob", "carol@example.org")}


class Operator:
    """Record the answers, as control.Client does."""

    uid, claim = 0, ""
    author = {"by": "root", "uid": 0}

    def __init__(self):
        self.answers = []

    def answer(self, answer):
        self.answers.append(answer)

    def answer_packed(self, data):
        self.answers.append(msgpack.unpackb(data))


class Kernel:
    def __init__(self, users=USERS):
        self.loop, self.log = ReplayLoop(), LogRecorder()
        self.core = Core(users, Settings())
        self.processes = Registry(self.loop)
        for name in ("auth", "listener.0", "spawner", "mda"):
            self.processes.comes(name, "init")
        self.clients, self.done, self.history = {}, [], History(100)
        self.load = {"oldest": 0.0}
        self.init_lives, self.ends = True, int(time.time()) + 60
        sessions = SessionList(
            self.core, self.processes, lambda: self.clients, lambda user: 5.0, lambda: self.loop.now
        )
        health = Health(
            self.loop,
            self.processes,
            self.core,
            SimpleNamespace(status=lambda: self.load),
            lambda: ["spawner", "auth", "listener.0"],
            lambda: self.init_lives,
            lambda: [("/etc/ssl/mail.pem", self.ends)],
        )
        self.commands = Commands(
            self.loop,
            self.processes,
            self.core,
            Rules,
            self.log,
            self.history,
            sessions,
            health,
            lambda: "auth",
            self.done.extend,
        )

    def ask(self, command, seconds=0.0, **more):
        operator = Operator()
        self.commands.run(operator, {"command": command, **more})
        for _ in range(1000):
            if operator.answers or not seconds:
                break
            self.loop.advance(self.loop.now + seconds / 100)
        return operator.answers[0] if operator.answers else None

    def announce(self, session, user="alice", address="192.0.2.1:4711", listener="listener.0"):
        key = Key(listener, session)
        self.clients[key] = Announced(user, address, 13, "PASS", self.loop.now)
        self.core.awaits(listener, login_started(session))
        return key

    def log_in(self, session, user="alice", address="192.0.2.1:4711"):
        key = self.announce(session, user, address)
        self.core.granted(m.LoginGranted("listener.0", session, user), self.loop.now)
        return key

    def said(self, name):
        return list(self.processes[name].channel.said)


@pytest.fixture
def kernel():
    return Kernel()


def states(answer):
    return {row["session"]: (row["state"], row["waits_for"]) for row in answer["sessions"]}


def test_each_state_is_told(kernel):
    kernel.log_in(1, "bob")
    kernel.announce(2)
    kernel.log_in(3)
    kernel.processes.comes("maildir.alice")
    kernel.core.ended("listener.0", m.ConnectionEnded(3, "", "", "", 0, 0, 0, 0, 0, 0, 0))
    kernel.log_in(4)
    assert states(kernel.ask("who", 1)) == {
        "0.1": ("opening", "maildir.bob, to start"),
        "0.2": ("logging in", "auth, for the password check or a delay"),
        "0.3": ("ending", "maildir.alice, to end the session"),
        "0.4": ("waiting", "session 0.3, to end"),
    }
    kernel.processes.comes("maildir.bob")
    assert states(kernel.ask("who", 1, who="bob")) == {"0.1": ("open", "")}
    kernel.core.parked("maildir.bob", m.SessionParked(1, b"x", 0), 9.0)
    (row,) = kernel.ask("who", 1, who="bob")["sessions"]
    assert row["state"] == "parked" and row["waits_seconds"] == pytest.approx(kernel.loop.now - 5, abs=0.1)


def test_false_addresses_of_a_listener_match_no_network(kernel):
    """An address is what the listener said: any text, which no filter takes for an address."""
    for session, address in enumerate(("", "192.0.2.1", "no address", "\x1b[2J:1", "[::1", "192.0.2.1:x"), 1):
        kernel.announce(session, "alice", address)
    found = kernel.ask("who", 1, who="192.0.2.0/24")["sessions"]
    assert sorted(row["session"] for row in found) == ["0.2", "0.6"]
    assert len(kernel.ask("who", 1)["sessions"]) == 6


def test_an_address_may_be_given_with_its_port_as_it_is_shown(kernel):
    kernel.announce(1, "alice", "192.0.2.1:4711")
    kernel.announce(2, "alice", "[2001:db8::1]:4711")
    for who, session in (("192.0.2.1:4711", "0.1"), ("[2001:db8::1]:4711", "0.2"), ("[2001:db8::1]", "0.2")):
        assert [row["session"] for row in kernel.ask("who", 1, who=who)["sessions"]] == [session]


def test_ten_thousand_sessions_are_listed_in_slices():
    """The kernel's loop goes on meanwhile: no slice takes 50 ms."""
    kernel = Kernel({f"user{n}": MailUser(1000, 1000, "/m") for n in range(10_000)})
    for n in range(10_000):
        kernel.log_in(n + 1, f"user{n}", f"192.0.2.{n % 250}:1")
    operator, longest, slices = Operator(), 0.0, 0
    job = kernel.commands._list(operator, Chosen(""))
    while not operator.answers:
        began = time.process_time()
        next(job, None)
        longest, slices = max(longest, time.process_time() - began), slices + 1
    assert len(operator.answers[0]["sessions"]) == 10_000
    assert slices > 20 and longest < 0.05
    assert len(kernel.ask("who", 1, who="192.0.2.7")["sessions"]) == 40


@pytest.mark.parametrize("command", ["who", "kick", "explain"])
@pytest.mark.parametrize("who", [7, "x" * 321, b"alice", None, ["alice"]])
def test_a_request_that_makes_no_sense_is_refused(kernel, command, who):
    answer = kernel.ask(command, who=who)
    assert (answer["ok"], answer["error"], answer["code"]) == (False, "who is a name", 64)


@pytest.mark.parametrize(
    ("who", "what"),
    [
        ("192.0.2.7/24", "write 192.0.2.0/24"),
        ("alice/24", "is no address and no network"),
        ("::/x", "number of bits"),
    ],
)
def test_a_wrong_network_is_an_error_and_not_a_user_without_sessions(kernel, who, what):
    answer = kernel.ask("who", 1, who=who)
    assert not answer["ok"] and what in answer["error"] and answer["code"] == 64


def test_a_user_with_a_slash_is_no_network():
    assert Kernel({"a/b": USERS["alice"]}).ask("who", 1, who="a/b")["sessions"] == []


def test_other_bad_requests(kernel):
    assert not kernel.ask("explain", who="alice", most=True)["ok"]
    assert not kernel.ask("explain", who="alice", most=1001)["ok"]
    assert not kernel.ask("explain", who="")["ok"]
    assert not kernel.ask("explain", who="192.0.2.0/24")["ok"]
    assert not kernel.ask("kick", who="192.0.2.1")["ok"]
    assert not kernel.ask("drain", on=1)["ok"]
    assert kernel.ask("no such") == {"ok": False, "error": "no such command"}
    assert kernel.ask(["who"]) == {"ok": False, "error": "no such command"}


# -- kick
def test_a_listener_that_ignores_a_kick_loses_the_session(kernel):
    key = kernel.log_in(1)
    kernel.processes.comes("maildir.alice")
    answer = kernel.ask("kick", who="0.1")
    assert [row["session"] for row in answer["ended"]] == ["0.1"]
    assert kernel.done == [Send("listener.0", m.SessionKick(1))]
    assert key in kernel.core.leaving, "the user's next login waits, and is not refused"
    kernel.loop.advance(kernel.loop.now + 11)
    assert kernel.done[1:] == [Kill("maildir.alice")]
    assert kernel.log[0] == "session 0.1 of alice ended by root (uid 0)"
    assert "listener.0 or maildir.alice has kept it for 10 s" in kernel.log[1]


def test_a_kick_that_is_obeyed_has_no_consequences_later(kernel):
    kernel.log_in(1)
    kernel.ask("kick", who="alice")
    kernel.core.closed("maildir.alice", m.SessionClosed(1, 0, 0, 0, []), kernel.loop.now)
    kernel.log_in(2)
    kernel.loop.advance(kernel.loop.now + 11)
    assert kernel.done == [Send("listener.0", m.SessionKick(1))] and len(kernel.log) == 1


def test_a_kicked_login_is_granted_no_more(kernel):
    kernel.announce(1, "Alice")
    assert len(kernel.ask("kick", who="alice")["ended"]) == 1
    kernel.core.granted(m.LoginGranted("listener.0", 1, "alice"), 0.0)
    assert not kernel.core.sessions


def test_a_parked_session_whose_listener_ignores_the_kick_is_forgotten(kernel):
    kernel.log_in(1)
    kernel.core.parked("maildir.alice", m.SessionParked(1, b"x", 0), 0.0)
    kernel.ask("kick", who="alice")
    kernel.loop.advance(kernel.loop.now + 11)
    assert not kernel.core.sessions and not kernel.core.leases


# -- names
@pytest.mark.parametrize(
    ("who", "found", "ended"),
    [
        ("bob", None, ["0.1", "0.3"]),
        ("Bob", None, ["0.2", "0.3"]),
        ("BOB", "", ["0.3"]),
        ("bob@example.org", "bob", ["0.1", "0.3"]),
        ("Bob@example.org", "Bob", ["0.2", "0.3"]),
        ("1.2.x", "", []),
    ],
)
def test_a_name_means_whom_it_means_in_a_login(who, found, ended):
    """Auth is asked for a name that the user table does not have; a session has its user's name itself.

    Who types a name in another case, and has not been checked, may be the user.
    """
    kernel = Kernel({name: USERS["bob"] for name in ("bob", "Bob")})
    kernel.log_in(1, "bob")
    kernel.log_in(2, "Bob")
    kernel.announce(3, "boB")
    operator = Operator()
    kernel.commands.run(operator, {"command": "kick", "who": who})
    asked = [message for message in kernel.said("auth") if isinstance(message, m.AccountLookup)]
    assert asked == ([] if found is None else [m.AccountLookup(1, who, "")])
    if found is not None:
        state = m.AccountState(1, found, "present" if found else "absent", "", 0)
        kernel.commands.account_state(None, state, [])
    kernel.loop.advance(kernel.loop.now + 1)
    assert [row["session"] for row in operator.answers[0]["ended"]] == ended


def test_a_kick_does_not_need_auth(kernel):
    """The user's row is gone, and auth does not answer."""
    kernel.log_in(1)
    kernel.core.users = {}
    assert len(kernel.ask("kick", 200, who="alice")["ended"]) == 1


# -- explain
def test_an_auth_that_does_not_answer(kernel):
    """Nothing waits for it longer than a second."""
    kernel.history.event("login.failed", {"address": "192.0.2.9:1", "user": "alice", "reason": "password"})
    operator = Operator()
    kernel.commands.run(operator, {"command": "explain", "who": "alice"})
    assert kernel.said("auth")[-1] == m.AccountLookup(1, "alice", "192.0.2.9:1")
    kernel.loop.advance(kernel.loop.now + 0.9)
    assert not operator.answers
    kernel.loop.advance(kernel.loop.now + 0.2)
    (answer,) = operator.answers
    assert answer["account"] is None and answer["maildrop"]["uid"] == 1000
    assert [row["reason"] for row in answer["logins"]] == ["password"]
    kernel.commands.account_state(None, m.AccountState(1, "alice", "present", "BLF-CRYPT", 0), [])
    assert len(operator.answers) == 1, "a late answer changes nothing"


def test_the_delay_is_that_of_the_login_under_way(kernel):
    kernel.history.event("login.failed", {"address": "192.0.2.9:1", "user": "alice", "reason": "password"})
    kernel.announce(1, address="192.0.2.8:4711")
    operator = Operator()
    kernel.commands.run(operator, {"command": "explain", "who": "alice"})
    kernel.loop.advance(kernel.loop.now)
    assert kernel.said("auth")[-1] == m.AccountLookup(1, "alice", "192.0.2.8:4711")
    kernel.commands.account_state(None, m.AccountState(1, "alice", "present", "BLF-CRYPT", 2500), [])
    (answer,) = operator.answers
    assert (answer["wait_seconds"], answer["wait_address"]) == (2.5, "192.0.2.8")


def test_auth_s_answer_is_passed_on(kernel):
    operator = Operator()
    kernel.commands.run(operator, {"command": "explain", "who": "bob"})
    kernel.commands.account_state(None, m.AccountState(1, "bob", "locked", "", 2500), [])
    (answer,) = operator.answers
    assert answer["account"] == {"entry": "locked", "scheme": ""} and answer["wait_seconds"] == 2.5


@pytest.mark.parametrize(
    ("who", "user", "address"),
    [
        ("alice", "alice", ""),
        ("ALICE", "alice", ""),
        ("alice+list@example.net", "alice", ""),
        ("carol@example.org", "carol@example.org", ""),
        ("nobody", "nobody", ""),
        ("192.0.2.7", "", "192.0.2.7"),
        ("::ffff:192.0.2.7", "", "192.0.2.7"),
        ("2001:DB8:0::1", "", "2001:db8::1"),
        ("192.0.2.7:40022", "", "192.0.2.7"),
        ("[2001:db8::1]:40022", "", "2001:db8::1"),
    ],
)
def test_a_name_is_a_user_a_mail_address_or_a_client_s_address(kernel, who, user, address):
    answer = kernel.ask("explain", 200, who=who)
    assert (answer["user"], answer["address"]) == (user, address)


# -- drain
def test_a_drain_reaches_those_that_take_clients_and_all_logins(kernel):
    kernel.ask("drain", on=True)
    kernel.core.drain(True)  # the harness carries out no decisions
    assert kernel.said("listener.0")[-1] == kernel.said("mda")[-1] == m.ServiceDrain(True)
    assert not kernel.said("spawner")
    kernel.announce(1)
    (refused,) = kernel.core.granted(m.LoginGranted("listener.0", 1, "alice"), 0.0)
    assert refused.message.code == "SYS/TEMP" and not kernel.core.sessions
    assert kernel.ask("drain", on=True)["changed"] is False
    kernel.core.drain(False)
    kernel.log_in(1)
    assert kernel.core.sessions


# -- health
def problems(kernel, *, answering=("spawner", "auth", "listener.0")):
    operator = Operator()
    kernel.commands.run(operator, {"command": "health"})
    for name in answering:
        if name in kernel.processes:
            kernel.processes[name].counters_answered = kernel.processes[name].counters_asked
    kernel.loop.advance(kernel.loop.now + 1.0)
    (answer,) = operator.answers
    assert answer["healthy"] is not bool(answer["problems"])
    return [row["problem"] for row in answer["problems"]]


def test_a_healthy_service(kernel):
    assert problems(kernel) == []


def test_what_is_no_health(kernel):
    assert problems(kernel, answering=("spawner", "auth")) == ["silent"]
    kernel.processes._processes.pop("auth")
    assert problems(kernel) == ["missing"]
    kernel.init_lives, kernel.load, kernel.core.room = False, {"oldest": 7.5}, 0
    kernel.processes.phase, kernel.core.draining = "starting", True
    kernel.ends -= 120
    assert problems(kernel) == ["starting", "draining", "init", "full", "certificate", "load"]


def test_thousands_of_logins_are_kicked_in_slices():
    """Whoever may connect can have thousands of logins of one name under way: the loop goes on meanwhile."""
    kernel, operator = Kernel(), Operator()
    for n in range(5000):
        kernel.announce(n + 1, "alice", f"192.0.2.{n % 250}:1")
    kernel.commands.run(operator, {"command": "kick", "who": "alice"})
    assert 0 < len(kernel.done) <= 250
    for _ in range(50):
        kernel.loop.advance(kernel.loop.now + 0.1)
    assert len(operator.answers[0]["ended"]) == 5000 and not kernel.core.awaiting


def test_a_listener_that_takes_no_more_is_given_time():
    """With more than 4,096 in its channel it would be ended, and all its sessions with it."""
    kernel = Kernel()
    for n in range(100):
        kernel.announce(n + 1)
    kernel.processes["listener.0"].channel.waiting = True
    assert kernel.ask("kick", who="alice") is None and len(kernel.done) == 1
    kernel.loop.advance(kernel.loop.now + 0.05)
    assert len(kernel.done) < 10
    kernel.processes["listener.0"].channel.waiting = False
    kernel.loop.advance(kernel.loop.now + 0.05)
    assert len(kernel.done) == 100


def test_ten_thousand_sessions_are_searched_in_slices_for_an_explanation():
    kernel, operator, looked = Kernel(), Operator(), []
    for n in range(10_000):
        kernel.announce(n + 1, "alice", f"[2001:db8:{n:x}::1]:1")
    kernel.clients = Looked(kernel.clients, looked)
    kernel.commands.run(operator, {"command": "explain", "who": "2001:db8:9::1"})
    assert len(looked) <= 250
    for _ in range(50):
        kernel.loop.advance(kernel.loop.now + 0.1)
    assert [row["session"] for row in operator.answers[0]["open"]] == ["0.10"]


class Looked(dict):
    """Note each look-up."""

    def __init__(self, rows, looked):
        super().__init__(rows)
        self.looked = looked

    def get(self, key, default=None):
        self.looked.append(key)
        return super().get(key, default)
