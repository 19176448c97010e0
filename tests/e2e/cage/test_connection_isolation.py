"""Test isolation = "connection": a listener process for each client.

Clients see the same as with a shared listener; the differences are tested here.
"""

import concurrent.futures
import contextlib
import os
import poplib
import ssl
import subprocess
import sys

import pytest
from popkernel.kernel.client import Client
from popkernel.kernel.sandbox import lock

from tests.e2e.reload.test_hand_over import touch_table
from tests.e2e.reload.test_reload import new_certificate
from tests.support.faults.patched import patched
from tests.support.limits import TOO_FAST, TOO_MANY_ADDRESS, greeting, resets
from tests.support.maildirs import mail_of
from tests.support.pop3 import RawPop3, connect
from tests.support.processes import continue_process, kill, pid_of, running, stop_process
from tests.support.service import ROOT, Service
from tests.support.tracing.trace_command import Trace, session
from tests.support.waiting import wait_for

MAIL = [b"Subject: %d\n\nmessage %d\n" % (n, n) for n in range(1, 4)]
USERS = ("alice", "bob", "carol")
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def serve(**site):
    """Run a service with gates and without delivery."""
    return Service(
        **{
            "lmtp": False,
            "isolation": "connection",
            "users": USERS,
            "mail": MAIL,
            "allow_plaintext": True,
            **site,
        }
    )


@pytest.fixture(scope="module")
def service():
    with serve(restart_intensity=1000, restart_seconds=1) as started:
        yield started


def listeners(service):
    return {a["name"]: a["pid"] for a in service.status()["actors"] if a["name"].startswith("listener.")}


def listener_of(service, user):
    """Return name and process id of the listener with that user's session."""
    name = wait_for(
        lambda: next((s["listener"] for s in service.status()["sessions"] if s["user"] == user), "")
    )
    return name, listeners(service)[name]


def none_left(service):
    wait_for(lambda: not listeners(service))


def cut_off(client):
    with pytest.raises((EOFError, OSError, poplib.error_proto)):
        client.stat()
    client.close()


def test_a_process_for_each_connection_and_none_afterwards(service):
    none_left(service)
    clients = [service.pop3(user) for user in USERS]
    plain = service.keep(RawPop3(service, "stls"))
    found = listeners(service)
    assert len(found) == len(set(found.values())) == 4
    names = {s["session"]: s["listener"] for s in service.status()["sessions"]}
    assert len(names) == 3
    assert all(listener == f"listener.{session}" for session, listener in names.items())  # one name for both
    for client in clients:
        assert [client.retr(n)[1][-1] for n in (1, 2, 3)] == [b"message 1", b"message 2", b"message 3"]
        client.quit()
    plain.close()
    none_left(service)
    later = service.pop3()
    assert not set(listeners(service)) & set(found)  # a name is used once
    later.quit()


@pytest.mark.parametrize("tls", ["tls", "stls", ""])
def test_the_ways_in(service, tls):
    with RawPop3(service, tls, user="alice") as client:
        assert client.ask(b"STAT").startswith(b"+OK 3 ")
        assert client.ask(b"QUIT").startswith(b"+OK")
        assert client.end() == b""
    with RawPop3(service, tls) as client:
        client.ask(b"USER alice")
        assert client.ask(b"PASS wrong").startswith(b"-ERR [AUTH]")
        client.ask(b"USER alice")
        assert client.ask(b"PASS secret").startswith(b"+OK")
        client.ask(b"QUIT")


def one_session(service, user):
    client = service.pop3(user, timeout=60)
    try:
        return client.stat()[0]
    finally:
        client.quit()


def test_two_hundred_at_once():
    users = [f"user{n}" for n in range(200)]
    with (
        serve(users=users, mail=MAIL[:1], max_logins_user=0) as service,
        concurrent.futures.ThreadPoolExecutor(200) as pool,
    ):
        assert list(pool.map(lambda user: one_session(service, user), users)) == [1] * 200
        none_left(service)
        log = service.read_log()
        assert "ended: " not in log and "rules" not in log
        assert service.actor("gate.0")["restarts"] == 0


@linux
def test_a_listener_holds_only_its_own_descriptors(service):
    """It holds its client's socket and channels to kernel, auth and maildir actor.

    It has no listening socket, no other client's socket and no epoll of the gate's.
    """
    clients = [service.pop3(user) for user in USERS]
    sockets = []
    gate = open_fds(pid_of(service, "gate.0"))
    for user in USERS:
        found = open_fds(listener_of(service, user)[1])
        mine = {target for fd, target in found.items() if fd > 2}
        assert len(mine) == 4
        assert all(target.startswith("socket:") for target in mine)
        sockets.append(mine)
        assert not mine & set(gate.values())
    assert not sockets[0] & sockets[1] and not sockets[0] & sockets[2] and not sockets[1] & sockets[2]
    for client in clients:
        client.quit()


def open_fds(pid):
    return {int(fd): os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}


@linux
@pytest.mark.skipif(bool(lock.missing()), reason="no sandbox here")
def test_a_listener_is_locked_in_and_dies_with_its_gate(service):
    client = service.pop3()
    pid = listener_of(service, "alice")[1]
    assert {
        (s["Seccomp"], s["NoNewPrivs"], s["Seccomp_filters"]) for s in lock.thread_states(pid).values()
    } == {(2, 1, 3)}
    with open(f"/proc/{pid}/status") as file:
        rows = dict(line.split(":", 1) for line in file if ":" in line)
    if ROOT:
        assert rows["Uid"].split() == ["64001"] * 4
        assert int(rows["CapEff"], 16) == 0
    assert int(rows["PPid"]) == pid_of(service, "gate.0")
    client.quit()


def hello_random(service):
    """Return the server's random octets of a new handshake (RFC 8446 section 4.1.3)."""
    to_server = ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), to_server).do_handshake()
    with connect(service.tls) as sock:
        sock.sendall(to_server.read())
        said = b""
        while len(said) < 43:
            said += sock.recv(4096)
    assert said[:1] == b"\x16" and said[5:6] == b"\x02"
    return said[11:43]


def test_no_two_listeners_draw_the_same_random_octets(service):
    """OpenSSL reseeds after a fork."""
    assert len({hello_random(service) for _ in range(20)}) == 20


@linux
def test_a_silent_client_costs_no_process(service):
    none_left(service)
    with contextlib.ExitStack() as stack:
        for _ in range(50):
            stack.enter_context(connect(service.tls))
        with connect(service.tls):
            pass  # a probe
        client = service.pop3()
        assert len(listeners(service)) == 1
        client.quit()


def test_a_silent_client_is_cut_off_in_time():
    with serve(login_seconds=1) as service:
        silent = service.keep(connect(service.tls))
        with RawPop3(service, "tls") as slow, RawPop3(service, "") as plain:
            assert silent.recv(1) == b""
            assert slow.end() == plain.end() == b""
        none_left(service)


# Limits of the gate


def test_sessions_of_one_address_and_a_place_that_is_free_again():
    with serve(max_sessions_address=2, users=("alice", "bob")) as service:
        with RawPop3(service, user="alice") as one, RawPop3(service, "", user="bob") as two:
            assert greeting(service) == greeting(service, "") == TOO_MANY_ADDRESS
            assert greeting(service, source="127.0.0.2").startswith(b"+OK")
            assert one.ask(b"NOOP").startswith(b"+OK") and two.ask(b"NOOP").startswith(b"+OK")
        for leave in (lambda c: c.ask(b"QUIT"), RawPop3.close, lambda c: resets(service, c)):
            for _ in range(5):  # the next connection does not count the previous process
                with RawPop3(service) as one, RawPop3(service, "") as two:
                    assert one.greeting.startswith(b"+OK") and two.greeting.startswith(b"+OK")
                    leave(one)
                    leave(two)


def test_a_client_before_login_makes_room():
    with serve(max_sessions=2, login_seconds=60) as service:
        with RawPop3(service, user="alice") as served, RawPop3(service, "") as idle:
            assert greeting(service).startswith(b"+OK")
            service.wait_log('why="made room for another"')
            assert idle.end() == b""
            assert greeting(service, "").startswith(b"+OK")
            assert served.ask(b"STAT").startswith(b"+OK 3 ")
        assert "SIGKILL" not in service.read_log()  # a kill by the gate is not reported


def test_handshakes_at_a_time():
    """A client counts from the whole first message to its login; a partial one needs no process.

    The oldest makes room for one of another address at once, for one of its own when it has had two seconds.
    """
    with serve(max_handshakes=2, login_seconds=60) as service:
        with (
            RawPop3(service, user="alice") as served,
            connect(service.tls) as one,
            connect(service.tls) as two,
            RawPop3(service, "") as oldest,
            RawPop3(service, ""),
        ):
            one.send(b"\x16")
            two.send(b"\x16\x03\x01\x02\x00\x01\x00")
            for _ in range(3):
                for tls in ("tls", ""):
                    assert greeting(service, tls, source="127.0.0.2").startswith(b"+OK")
            assert greeting(service).startswith(b"+OK")
            with contextlib.suppress(ConnectionError):
                assert oldest.end() == b""
            one.setblocking(False), two.setblocking(False)
            for half in (one, two):  # it cost nothing, and so is still connected
                with pytest.raises(BlockingIOError):
                    half.recv(1)
            service.wait_log('why="made room for another handshake"')
            service.wait_log(
                "warning: gate.0: 127.0.0.2: another made room: max_handshakes is met (2 in this process)"
            )
            assert served.ask(b"STAT").startswith(b"+OK 3 ")


def test_logins_that_wait_for_auth_take_no_handshake_s_place():
    """They make no room for others either, though all are of one address."""
    with serve(max_handshakes=2, login_seconds=60) as service, contextlib.ExitStack() as stack:
        stop_process(auth := pid_of(service, "auth"))
        clients = []
        for user in ("alice", "bob", "carol", "nobody"):
            clients.append(client := stack.enter_context(RawPop3(service, "")))
            client.ask(b"USER " + user.encode())
            client.send(b"PASS secret\r\n")
        assert greeting(service).startswith(b"+OK")
        continue_process(auth)
        assert [client.line()[:3] for client in clients] == [b"+OK"] * 3 + [b"-ER"]
        assert "made room" not in service.read_log()


def test_connections_a_minute_and_proxy_headers():
    with serve(connects_per_minute=2, proxy_networks=["127.0.0.3"]) as service:
        assert [greeting(service, tls)[:3] for tls in ("tls", "")] == [b"+OK"] * 2
        assert greeting(service) == greeting(service, "") == TOO_FAST
        with connect(service.plain, source="127.0.0.3") as sock:
            sock.sendall(b"PROXY TCP4 192.0.2.9 192.0.2.1 51000 110\r\n")
            assert sock.recv(100) == b"+OK POP3 ready\r\n"
            sock.sendall(b"QUIT\r\n")
        service.wait_log("address=192.0.2.9:51000")


# Life and death


def test_parked_sessions_wake(service):
    with serve(park_seconds=1, warm_seconds=0, warm_memory="0") as sleepy:
        client = sleepy.pop3()
        client.dele(1)
        wait_for(lambda: not sleepy.running("maildir.alice"))
        assert client.stat()[0] == 2
        client.quit()
        assert len(mail_of(sleepy)) == 2


def test_a_listener_killed_costs_its_own_client(service):
    mail = mail_of(service)
    alice, bob = service.pop3("alice"), service.pop3("bob")
    alice.dele(1)
    name, pid = listener_of(service, "alice")
    gate = pid_of(service, "gate.0")
    kill(pid)
    cut_off(alice)
    service.wait_log(f"warning: {name} ended: signal SIGKILL")
    assert bob.stat()[0] == 3
    bob.quit()
    again = service.pop3("alice")  # the lease is free, nothing was removed
    assert again.stat()[0] == 3
    again.quit()
    assert mail_of(service) == mail
    assert pid_of(service, "gate.0") == gate


def test_a_gate_killed_takes_its_listeners_along_and_another_takes_over(service):
    mail = mail_of(service)
    alice, bob = service.pop3("alice"), service.pop3("bob")
    alice.dele(2)
    pids = list(listeners(service).values())
    gate = service.actor("gate.0")
    kill(gate["pid"])
    wait_for(lambda: not running(pids))
    cut_off(alice)
    cut_off(bob)
    wait_for(
        lambda: service.actor("gate.0"),
        until=lambda row: row and row["state"] == "serving" and row["restarts"] == gate["restarts"] + 1,
    )
    assert one_session(service, "alice") == one_session(service, "bob") == 3
    none_left(service)
    assert mail_of(service) == mail


def test_auth_killed_while_a_login_waits_for_it(service):
    bob = service.pop3("bob")
    pid = pid_of(service, "auth")
    with RawPop3(service) as client:
        assert client.ask(b"USER alice").startswith(b"+OK")
        stop_process(pid)
        client.send(b"PASS secret\r\n")
        kill(pid)
        assert client.line().startswith(b"+OK")  # it waited for the next auth
        assert client.ask(b"QUIT").startswith(b"+OK")
    assert bob.stat()[0] == 3
    bob.quit()


def test_reload_with_open_sessions():
    with serve(login_seconds=60) as service:
        alice, early = service.pop3("alice"), service.keep(RawPop3(service))
        before = {a["name"]: a["pid"] for a in service.status()["actors"]}
        new_certificate(service)  # for a new gate
        touch_table(service)  # for a new auth
        service.command("reload")
        gates = {a["state"]: a for a in service.status()["actors"] if a["name"].startswith("gate")}
        assert gates["draining"]["pid"] == before["gate.0"]
        bob = service.pop3("bob")
        name, pid = listener_of(service, "bob")
        assert name.startswith("listener.2.")
        assert int(open_status(pid)["PPid"]) == gates["serving"]["pid"]
        assert alice.stat()[0] == 3  # served by its old listener
        assert early.login("carol").startswith(b"+OK 3 ")  # it asks the new auth
        alice.quit()
        assert early.ask(b"QUIT").startswith(b"+OK")
        early.close()
        wait_for(
            lambda: (
                not running([before["gate.0"], *(p for n, p in before.items() if n.startswith("listener"))])
            )
        )
        assert bob.stat()[0] == 3
        bob.quit()
        assert "warning: listener" not in service.read_log()


def open_status(pid):
    with open(f"/proc/{pid}/status") as file:
        return dict(line.split(":", 1) for line in file if ":" in line)


def test_a_reload_that_fails_changes_nothing(service):
    alice = service.pop3()
    with open(service.config.cert) as file:
        good = file.read()
    try:
        with open(service.config.cert, "w") as file:
            file.write("nothing")
        assert service.command("reload", check=False).returncode == 78
    finally:
        with open(service.config.cert, "w") as file:
            file.write(good)
    assert alice.stat()[0] == 3
    alice.quit()
    assert one_session(service, "bob") == 3


def test_stop_with_open_sessions():
    with serve() as service:
        alice, plain = service.keep(RawPop3(service)), service.keep(RawPop3(service, ""))
        silent = service.keep(connect(service.tls))
        assert alice.login().startswith(b"+OK")
        assert alice.ask(b"DELE 1").startswith(b"+OK")
        pids = service.pids()
        assert service.stop() == 0
        assert b"-ERR [SYS/TEMP] the server is going down" in alice.end()
        assert b"-ERR [SYS/TEMP] the server is going down" in plain.end()
        assert silent.recv(1) == b""
        for one in (alice, silent, plain):
            one.close()
        assert not running(pids)
        assert len(mail_of(service)) == 3


def test_the_service_ends_with_its_kernel_and_leaves_no_process():
    with serve() as service:
        client = service.pop3()
        pids = service.pids()
        kill(next(a["pid"] for a in service.status()["actors"] if a["name"] == "kernel"))
        service.process.wait(20)
        wait_for(lambda: not running(pids))
        client.close()


# The operator's view


LIAR = """
def patch():
    from popkernel.actors.listener import connections
    told = connections.Connections.new_session
    def new_session(self, address, **more):
        return told(self, "192.0.2.66:1", **more)
    connections.Connections.new_session = new_session
"""


def test_a_listener_that_lies_about_its_client_s_address(tmp_path):
    """The log, and so fail2ban, believes the gate; so does `who`."""
    with Service(
        isolation="connection", users=("alice",), mail=(), command=patched(tmp_path, LIAR)
    ) as service:
        with RawPop3(service) as client:
            assert client.login("alice", "wrong").startswith(b"-ERR")
        with RawPop3(service) as client:
            assert client.login("alice").startswith(b"+OK")
            (row,) = Client(service.config.run_dir).ask("who", who="alice")["sessions"]
            assert row["address"].startswith("127.0.0.1:")
        log = service.wait_log("user=alice listener=")
        assert "login failed: address=127.0.0.1:" in log and "192.0.2.66" not in log


def test_one_users_session_recorded_among_others_and_replayed(service, tmp_path):
    record = tmp_path / "alice.rec"
    tracing = Trace(service, "--user", "alice", "--with-maildir", "--record", str(record))
    for user in ("bob", "alice", "carol"):
        session(service, user)
    wait_for(lambda: b"QuitDone" in record.read_bytes())
    none_left(service)
    tracing.stop()
    done = subprocess.run(
        [sys.executable, "-m", "popkernel", "replay", str(record)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = [line for line in done.stdout.splitlines() if "listener." in line]
    assert len(found) == 1 and found[0].endswith("as recorded")  # its own listener, whole, and no other


def test_status_and_trace_of_a_session(service):
    tracing = Trace(service, "--user", "alice")
    session(service, "bob")
    session(service, "alice")
    text = tracing.until("ConnectionEnded")
    tracing.stop()
    begun = next(line for line in text.splitlines() if "Connected" in line)
    name = begun.split("→ ")[1].split()[0]
    assert f"{name} → auth" in text and "auth → kernel" in text
    assert {word for word in text.split() if word.startswith("listener.")} == {name}
