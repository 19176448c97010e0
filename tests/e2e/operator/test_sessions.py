"""Test who, kick, explain, drain and health on a running service, as an operator uses them."""

import json
import os
import signal
import subprocess

import pytest
from popkernel.cli.common.sample_site import make_certificate
from popkernel.kernel.client import Client

from tests.support.lmtp import RawLmtp, deliver
from tests.support.pop3 import RawPop3
from tests.support.service import POPKERNEL, Service
from tests.support.waiting import wait_for

MAIL = [b"Subject: one\n\nFirst.\n", b"Subject: two\n\nSecond.\n"]
USERS = ("alice", "bob", "carol", "dave")


@pytest.fixture(scope="module")
def service():
    with Service(users=USERS, mail=MAIL, park_seconds=1, allow_plaintext=True) as running:
        yield running


def who(service, *arguments):
    return json.loads(service.command("who", "--json", *arguments).stdout)["sessions"]


def state(service, user):
    return next((row["state"] for row in who(service, user)), "")


def free(service, *user):
    """Wait until the user has no session, or nobody has."""
    wait_for(lambda: not who(service, *user))


def kicks(service, name, **environment):
    return subprocess.run(
        [*POPKERNEL, "kick", name, "--run-dir", service.config.run_dir],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env=os.environ | environment,
    )


def test_who_lists_sessions_of_several_kinds(service):
    with (
        RawPop3(service, user="alice") as alice,
        RawPop3(service, "stls", user="bob"),
        RawPop3(service, "", user="carol"),
    ):
        wait_for(lambda: state(service, "alice") == "parked")
        rows = {row["user"]: row for row in who(service)}
        assert {user: rows[user]["tls"] for user in rows} == {"alice": "1.3", "bob": "1.3", "carol": ""}
        port = alice.sock.getsockname()[1]
        assert rows["alice"]["address"] == f"127.0.0.1:{port}"
        assert rows["alice"]["mechanism"] == "PASS" and rows["alice"]["listener"] == "listener.0"
        assert rows["alice"]["seconds"] >= 1 and rows["alice"]["waits_seconds"] is not None
        assert alice.ask(b"NOOP").startswith(b"+OK")
        assert alice.ask(b"STAT").startswith(b"+OK")
        assert alice.ask(b"RETR 1").startswith(b"+OK")
        table = service.command("who").stdout
        assert "USER" in table and "\n3 sessions\n" in table
        assert [row["user"] for row in who(service, "ALICE")] == ["alice"]
        assert len(who(service, "127.0.0.0/8")) == 3 and who(service, "192.0.2.1") == []
    for user in USERS:
        free(service, user)


def test_a_kick_is_no_quit(service):
    """The marked message stays, the mailbox is free at once, and the log says who did it."""
    with RawPop3(service, user="alice") as alice:
        assert alice.ask(b"DELE 1").startswith(b"+OK")
        session = who(service, "alice")[0]["session"]
        done = kicks(service, session, SUDO_USER="jane\nforged")
        assert done.stdout.startswith(f"ended session {session} of alice from 127.0.0.1:")
        with RawPop3(service) as again:
            assert again.login("alice").startswith(b"+OK 2 messages"), "free at once, and nothing is removed"
            assert again.ask(b"QUIT").startswith(b"+OK")
        assert alice.end() == b""
    name = "root" if os.geteuid() == 0 else ""
    log = service.wait_log(f"session {session} of alice ended by {name}")
    assert f"(uid {os.geteuid()}), acting for jane\\nforged" in log
    service.wait_log("why=kicked user=alice")


def test_a_parked_session_is_kicked(service):
    with RawPop3(service, user="bob") as bob:
        wait_for(lambda: state(service, "bob") == "parked")
        assert kicks(service, "bob").returncode == 0
        with RawPop3(service, user="bob") as again:
            assert again.ask(b"QUIT").startswith(b"+OK")
        assert bob.end() == b""
    free(service, "bob")


def test_a_kicked_login_is_a_failed_login(service):
    """Its client was told that it failed; so the log and explain have it, with the reason."""
    auth = service.actor("auth")["pid"]
    os.kill(auth, signal.SIGSTOP)
    try:
        with RawPop3(service) as client:
            client.send(b"USER carol\r\nPASS secret\r\n")
            wait_for(lambda: state(service, "carol") == "logging in")
            assert kicks(service, "carol").returncode == 0
            assert client.line() == b"+OK\r\n" and client.line().startswith(b"-ERR [SYS/TEMP] this session")
    finally:
        os.kill(auth, signal.SIGCONT)
    service.wait_log("reason=kicked")
    (failed,) = json.loads(service.command("explain", "carol", "--json").stdout)["logins"]
    assert failed["reason"] == "kicked"


def test_a_kick_of_nobody(service):
    for name in ("9.9", "nobody", "alice", os.fsdecode(b"\xff")):
        done = kicks(service, name)
        assert done.returncode == 1 and "`popkernel who` lists them" in done.stderr
    assert kicks(service, "127.0.0.1").returncode != 0
    assert kicks(service, "").returncode == 64


def test_a_name_means_the_user_who_logs_in_by_it():
    """Two users may differ in case only; the default domain may be given or left out."""
    with Service(
        users=("alice", "Alice", "bob", "carol@example.org"),
        mail=(),
        lmtp=False,
        login_case="exact",
        default_domain="example.org",
    ) as exact:
        with RawPop3(exact) as client:
            assert client.login("Bob").startswith(b"-ERR [AUTH]")
            assert client.login("carol", "wrong").startswith(b"-ERR [AUTH]")
        with (
            RawPop3(exact, user="alice") as alice,
            RawPop3(exact, user="Alice") as other,
            RawPop3(exact, user="carol@example.org") as carol,
        ):
            assert [row["user"] for row in who(exact, "alice")] == ["alice"]
            assert [row["user"] for row in who(exact, "carol")] == ["carol@example.org"]
            assert kicks(exact, "alice@example.org").stdout.count("ended session") == 1
            assert alice.end() == b""
            assert kicks(exact, "ALICE").returncode == 1
            assert other.ask(b"STAT").startswith(b"+OK") and carol.ask(b"STAT").startswith(b"+OK")
            assert [row["user"] for row in who(exact)] == ["Alice", "carol@example.org"]
            said = json.loads(exact.command("explain", "carol", "--json").stdout)
            assert said["user"] == "carol@example.org" and said["unknown_login"] == ""
            assert said["maildrop"] and [row["reason"] for row in said["logins"]] == ["password"]
            assert [row["user"] for row in said["open"]] == ["carol@example.org"]
            said = json.loads(exact.command("explain", "alice", "--json").stdout)
            assert said["open"] == [] and [row["why"] for row in said["sessions"]] == ["kicked"]
        said = json.loads(exact.command("explain", "Bob", "--json").stdout)
        assert (said["user"], said["unknown_login"]) == ("bob", "Bob")
        assert [row["reason"] for row in said["logins"]] == ["unknown"]
        text = exact.command("explain", "Bob").stdout
        assert "a login as Bob fails: the authorization table has no such user; its mail is bob's" in text


def test_explain_tells_what_happened(service):
    with RawPop3(service) as client:
        assert client.login("dave", "wrong").startswith(b"-ERR")
    assert deliver(service, "dave").startswith(b"250")
    with RawPop3(service, user="dave") as client:
        uidl = client.ask(b"UIDL 1").split()[2].decode()
        assert client.ask(b"DELE 1").startswith(b"+OK")
        assert client.ask(b"QUIT").startswith(b"+OK")
    with RawPop3(service, user="dave") as client:
        client.ask(b"DELE 1")
    free(service, "dave")
    service.wait_log("user=dave", count=3)

    def told():
        return json.loads(service.command("explain", "dave", "--json").stdout)

    said = wait_for(told, until=lambda said: len(said["sessions"]) == 2)
    assert said["account"] == {"entry": "present", "scheme": "BLF-CRYPT"}
    assert said["maildrop"]["maildir"] == service.site.mail_users["dave"].maildir
    assert [row["removed"] for row in said["sessions"]] == [1, 0]
    assert said["messages"][0]["uidls"] == [uidl] and len(said["messages"]) == 2
    assert said["logins"][0]["reason"] == "password"
    (delivery,) = said["deliveries"]
    assert delivery["recipient"] == "dave" and delivery["uidl"]
    text = service.command("explain", "dave").stdout
    assert "in the authorization table (BLF-CRYPT): may log in" in text
    assert f"removed: {uidl}" in text and "marked, not removed, come again: " in text
    assert "1 session ended without QUIT with 1 marked message: nothing was removed" in text
    assert "1 login failed: wrong password" in text
    assert f"mail for dave from <s@example.org> delivered: UIDL {delivery['uidl']}, " in text
    by_address = json.loads(service.command("explain", "127.0.0.1", "--json").stdout)
    assert len(by_address["sessions"]) >= 2 and by_address["logins"]
    assert json.loads(service.command("explain", "nobody", "--json").stdout)["account"]["entry"] == "absent"


def test_who_and_explain_of_a_login_under_way_and_one_that_is_refused(service):
    with RawPop3(service, user="carol"), RawPop3(service) as other:
        assert b"[IN-USE]" in other.login("Carol")
    # by the user's name, however the client typed it
    text = service.command("explain", "carol").stdout
    assert "another session has this mailbox open" in text
    free(service, "carol")


def test_drain_takes_no_new_sessions_and_lets_open_ones_finish(service):
    free(service)
    with RawPop3(service, user="alice") as alice, RawPop3(service) as idle, RawLmtp(service) as lmtp:
        assert service.command("drain").stdout == "no new sessions are taken; open: 1\n"
        assert ", as before" in service.command("drain").stdout
        with RawPop3(service) as refused:
            assert refused.greeting.startswith(b"-ERR [SYS/TEMP] no new sessions")
        with RawPop3(service, "") as refused:
            assert refused.greeting.startswith(b"-ERR [SYS/TEMP] no new sessions")
        assert idle.login("bob").startswith(b"-ERR [SYS/TEMP] no new sessions")
        lmtp.expect(b"421")
        with pytest.raises(AssertionError, match="421 4.3.2"):
            RawLmtp(service)
        assert "draining" in service.command("who").stdout and service.status()["draining"]
        health = service.command("health", "--json", check=False)
        assert health.returncode == 75
        assert [row["problem"] for row in json.loads(health.stdout)["problems"]] == ["draining"]
        assert service.command("reload").returncode == 0
        with RawPop3(service) as refused:
            assert refused.greeting.startswith(b"-ERR [SYS/TEMP]"), "also after a reload"
        assert alice.ask(b"STAT").startswith(b"+OK")
        with subprocess.Popen(
            [*POPKERNEL, "drain", "--wait", "--run-dir", service.config.run_dir], stdout=subprocess.PIPE
        ) as waits:
            assert b"open: 1" in waits.stdout.readline()
            assert alice.ask(b"QUIT").startswith(b"+OK")
            assert waits.stdout.readline() == b"no session is open\n" and waits.wait(10) == 0
        assert service.command("drain", "--undo").stdout == "new sessions are taken again\n"
    assert deliver(service, "alice").startswith(b"250")
    with RawPop3(service, user="bob") as client:
        assert client.ask(b"QUIT").startswith(b"+OK")
    log = service.read_log()
    assert "no new sessions: drain by " in log and "new sessions again: drain --undo by " in log


def test_an_undo_and_an_interrupt_end_a_wait_for_a_drain(service):
    wait = [*POPKERNEL, "drain", "--wait", "--run-dir", service.config.run_dir]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    free(service)
    with RawPop3(service, user="carol"):
        with subprocess.Popen(wait, **pipes) as waits:
            assert b"open: 1" in waits.stdout.readline()
            service.command("drain", "--undo")
            try:
                assert waits.wait(10) == 75 and b"by another drain --undo" in waits.stderr.read()
            finally:
                waits.kill()
        assert not service.status()["draining"], "the wait does not drain again"
        with subprocess.Popen(wait, **pipes) as waits:
            assert b"open: 1" in waits.stdout.readline()
            waits.send_signal(signal.SIGINT)
            try:
                assert waits.wait(10) == 130 and b"popkernel drain --undo" in waits.stderr.read()
                assert service.status()["draining"]
            finally:
                service.command("drain", "--undo")


def test_health(service, tmp_path):
    done = service.command("health")
    assert (done.stdout, done.stderr) == ("healthy\n", "")
    assert service.command("health", "-q").stdout == ""
    away = subprocess.run(
        [*POPKERNEL, "health", "--run-dir", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert away.returncode == 69 and "no popkernel runs" in away.stderr


# -- traces
def test_a_trace_of_an_address_and_of_slow_sessions(service):
    client = Client(service.config.run_dir)
    with (
        client.follow(address="127.0.0.2") as there,
        client.follow(slow=60_000) as slow,
        RawPop3(service, source="127.0.0.2", user="alice") as mine,
        RawPop3(service, user="bob") as other,
    ):
        assert mine.ask(b"QUIT").startswith(b"+OK") and other.ask(b"QUIT").startswith(b"+OK")
        seen = []
        while not seen or seen[-1].name != "ConnectionEnded":
            seen.append(there.next_frame(10))
            assert seen[-1] is not None, [frame.name for frame in seen]
        sessions = {frame.session for frame in seen if frame.session}
        assert len(sessions) == 1 and "alice" in {frame.fields.get("user") for frame in seen}
        assert "bob" not in {frame.fields.get("user") for frame in seen}
        assert all(not frame.session for frame in iter(lambda: slow.next_frame(0.1), None))
    for bad in ("no address", "10.0.0.1/8"):
        done = service.command("trace", "--address", bad, check=False)
        assert done.returncode == 64, done.stderr


@pytest.mark.root("mail in a trace")
def test_who_sees_mail_in_a_trace_is_logged(service):
    with Client(service.config.run_dir).follow(user="alice", payload=True):
        log = service.wait_log("sees the content of mail in a trace (user=alice)")
    assert "root (uid 0)" in log


# -- a listener for each connection
def test_kick_and_drain_with_a_listener_for_each_connection():
    with (
        Service(users=("alice", "bob"), mail=MAIL, isolation="connection", lmtp=False) as gated,
        RawPop3(gated, user="alice") as alice,
    ):
        assert alice.ask(b"DELE 1").startswith(b"+OK")
        (row,) = who(gated)
        assert row["listener"] == f"listener.{row['session']}" and row["tls"] == "1.3"
        assert kicks(gated, row["session"]).returncode == 0
        assert alice.end() == b""
        with RawPop3(gated) as again, RawPop3(gated) as idle:
            assert again.login("alice").startswith(b"+OK 2 messages")
            gated.command("drain")
            with RawPop3(gated) as refused:
                assert refused.greeting.startswith(b"-ERR [SYS/TEMP] no new sessions")
            assert idle.login("bob").startswith(b"-ERR [SYS/TEMP] no new sessions")
            assert again.ask(b"STAT").startswith(b"+OK")
            assert gated.command("health", check=False).returncode == 75
            gated.command("drain", "--undo")
            assert idle.login("bob").startswith(b"+OK")


def write(service, pair):
    for path, pem in zip((service.site.cert, service.site.key), pair, strict=True):
        with open(path, "wb") as file:
            file.write(pem)


@pytest.mark.slow
def test_an_expired_certificate_is_no_health():
    """Its end is known from the start, and anew after a reload."""
    with Service(mail=(), lmtp=False) as running:
        assert running.command("health").stdout == "healthy\n"
        write(running, make_certificate(days=-1, starts=-9))
        running.command("reload")
        assert f"{running.site.cert} has expired" in running.command("health", check=False).stderr
        running.stop()
        running.process.stderr.close()
        running.start()
        running.wait_ready()
        assert running.command("health", check=False).returncode == 75
        write(running, make_certificate())
        running.command("reload")
        assert running.command("health").stdout == "healthy\n"
