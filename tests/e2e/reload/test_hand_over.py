"""Replace auth at a reload: the new one takes over verified passwords and penalties from the old one.

In the service of most tests only the first auth hashes; those after it find every password wrong, except
"checked". So a login with "secret" that succeeds after a reload needed no hashing.
"""

import json
import os
import shutil
import signal
import subprocess
import threading
import time

import bcrypt
import pytest
from popkernel.proto.trace.recording import read

from tests.e2e.reload.test_reload import new_certificate, rewrite
from tests.replay.make import ends
from tests.support.faults.patched import patched
from tests.support.pop3 import RawPop3
from tests.support.processes import stopped, wait_all_ended
from tests.support.service import POPKERNEL, Service, serve
from tests.support.waiting import wait_for

OTHER = bcrypt.hashpw(b"other", bcrypt.gensalt(4)).decode()
KEY = b"a-key-that-no-trace-may-ever-get"
NO_HASHING = f"""
def patch():
    from popkernel.actors.auth import hand_over, main
    init = main.Auth.__init__
    def new_init(self, boot, table=None):
        init(self, boot, table)
        if "~" in boot.name:
            self.check = lambda secret, expected: secret == b"checked"
    main.Auth.__init__ = new_init
    hand_over.token_bytes = lambda octets: {KEY!r}
"""
USERS = ("alice", "bob", "carol", "dave", "erin")


def answer_of(service, user, password="secret"):
    with RawPop3(service, verify=False) as client:
        answer = client.login(user, password)
        if answer.startswith(b"+OK"):
            assert client.ask(b"QUIT").startswith(b"+OK")
        return answer


def pids(service):
    """Return the process ids of the actors that a reload may replace, by name.

    Without those that it has replaced: the status lists them until they have ended.
    """
    rows = [row for row in service.status()["actors"] if row["state"] != "draining"]
    return {row["name"]: row["pid"] for row in rows if row["name"].startswith(("auth", "listener", "gate"))}


def kept_and_replaced(service, before, how="replaced"):
    """Reload; return the first of the words that say what it did, and which actors stayed."""
    said = service.command("reload").stdout.splitlines()
    assert said[0] == "reloaded"
    after = pids(service)
    return said, {name.split(".")[0] for name, pid in before.items() if after.get(name) == pid}


def touch_table(service, text="# changed\n"):
    rewrite(service.site.auth_table, lambda before: before + text)


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    command = patched(tmp_path_factory.mktemp("patched"), NO_HASHING)
    with Service(command=command, users=USERS, mail=(), penalty_seconds=2, max_sessions_address=0) as running:
        for user in ("alice", "bob", "carol"):
            assert answer_of(running, user).startswith(b"+OK")
        yield running


def test_what_did_not_change_replaces_nothing(service):
    """A file counts by its content: a new time stamp is no change, nor is a copy in its place."""
    before = pids(service)
    os.utime(service.site.cert)
    rewrite(service.site.auth_table, lambda text: text)
    said, kept = kept_and_replaced(service, before)
    assert kept == {"auth", "listener"}
    assert said[1] == "users: 5 (+0 -0, 0 changed)" and said[3] == "replaced: no actor" and len(said) == 4
    assert said[2].startswith(f"certificate: {service.site.cert}, until 20") and said[2].endswith(" UTC")


def test_a_renewed_certificate_keeps_auth(service):
    before = pids(service)
    wanted = new_certificate(service)
    said, kept = kept_and_replaced(service, before)
    assert kept == {"auth"} and said[-1] == "replaced: listener.0~2"
    with RawPop3(service) as client:
        assert client.certificate() == wanted
    assert answer_of(service, "alice").startswith(b"+OK")


def test_a_setting_of_listeners_keeps_auth_and_one_of_auth_the_listeners(service):
    before = pids(service)
    rewrite(service.toml, lambda text: text + "idle_seconds = 700\n")
    assert kept_and_replaced(service, before)[1] == {"auth"}
    before = pids(service)
    rewrite(service.toml, lambda text: text + 'login_case = "exact"\n')
    assert kept_and_replaced(service, before)[1] == {"listener"}
    assert answer_of(service, "alice").startswith(b"+OK")


def test_changed_lines_miss_and_the_others_need_no_hashing(service):
    before = pids(service)
    with open(service.site.auth_table) as file:
        line = next(line for line in file if line.startswith("alice "))

    def change(text):
        lines = [row for row in text.splitlines() if row.split()[0] not in ("bob", "carol")]
        return "\n".join([*lines, f"bob {OTHER}", "added" + line.removeprefix("alice").rstrip()]) + "\n"

    rewrite(service.site.auth_table, change)
    with RawPop3(service) as waiting:  # it has no answer from auth before the reload
        assert waiting.ask(b"USER alice").startswith(b"+OK")
        said, kept = kept_and_replaced(service, before)
        assert waiting.ask(b"PASS secret").startswith(b"+OK")
    assert kept == {"listener"} and "passwords: +1 -1, 1 changed" in said
    service.wait_log("taken over from the auth before: 2 verified passwords, ")
    service.wait_log("passwords +1 -1, 1 changed; ")
    wait_for(lambda: answer_of(service, "alice").startswith(b"+OK"))
    for user in ("bob", "carol", "dave"):
        assert answer_of(service, user).startswith(b"-ERR [AUTH]"), user
    assert answer_of(service, "dave", "checked").startswith(b"+OK")


def test_a_password_that_a_reload_makes_right_is_checked_at_once():
    """It was wrong a moment ago, from the same address, because of the line that the reload replaced."""
    with Service(users=("alice", "bob", "carol"), mail=()) as service:
        with open(service.site.auth_table) as file:
            right = {line.split()[0]: line for line in file}
        wrong = right | {"alice": f"alice {OTHER}\n", "bob": right["bob"].replace(" ", " !"), "carol": ""}
        for lines, answer in ((wrong, b"-ERR [AUTH]"), (right, b"+OK")):
            rewrite(service.site.auth_table, lambda before, lines=lines: "".join(lines.values()))
            service.command("reload")
            for user in right:
                assert answer_of(service, user).startswith(answer), user


def test_no_login_between_is_lost_or_hashed(service):
    """A client logs in again and again while auth is replaced three times."""
    answers, over = [], threading.Event()

    def log_in():
        while not over.is_set():
            answers.append(answer_of(service, "alice"))

    client = threading.Thread(target=log_in)
    client.start()
    try:
        for _ in range(3):
            touch_table(service)
            assert "replaced: auth~" in service.command("reload").stdout
    finally:
        over.set()
        client.join()
    assert len(answers) > 5 and all(answer.startswith(b"+OK") for answer in answers), answers


def test_as_json_and_by_sighup(service):
    touch_table(service)
    said = json.loads(service.command("reload", "--json").stdout)
    assert said["users"] == 5 and said["passwords_changed"] == said["added"] == 0
    assert said["certificates"][0]["path"] == service.site.cert and len(said["replaced"]) == 1
    count = service.read_log().count("reloaded: 5 users (+0 -0, 0 changed); passwords +0 -0, 0 changed; ")
    assert count
    touch_table(service)
    service.signal(signal.SIGHUP)
    service.wait_log("reloaded: 5 users (+0 -0, 0 changed); passwords +0 -0, 0 changed; ", count=count + 1)


def test_penalties_go_over(service):
    """Seven users failed here, so a user that is new here waits: in the new auth too."""
    for number in range(7):
        assert answer_of(service, f"nobody{number}", "guess").startswith(b"-ERR")
    touch_table(service)
    service.command("reload")
    began = time.monotonic()
    assert answer_of(service, "erin", "checked").startswith(b"+OK")
    assert time.monotonic() - began > 0.9
    began = time.monotonic()
    assert answer_of(service, "alice").startswith(b"+OK"), "she is trusted here, in the new auth too"


def test_no_trace_and_no_recording_has_a_secret(service, tmp_path):
    path = tmp_path / "all.rec"
    command = [*POPKERNEL, "trace", "--run-dir", service.config.run_dir, "--record", str(path), "--payload"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as trace:
        assert b"attached" in trace.stderr.readline()
        assert answer_of(service, "alice").startswith(b"+OK")
        touch_table(service)
        service.command("reload")
        assert answer_of(service, "alice").startswith(b"+OK"), service.read_log()
        wait_for(lambda: ends(2)(read(path.read_bytes())))
        trace.send_signal(signal.SIGINT)
        shown = trace.communicate(timeout=20)[0]
    recorded = path.read_bytes()
    for name in (b"LoginMemoryBegin", b"KnownAccounts", b"VerifiedPasswords", b"LoginPenalties"):
        assert name in recorded, name
    for data in (shown, recorded, service.log):
        assert KEY not in data and KEY.hex().encode() not in data
    replay = subprocess.run(
        [*POPKERNEL, "replay", str(path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert replay.returncode == 0, replay.stdout + replay.stderr


def test_an_auth_that_was_started_again_is_replaced(service):
    """It has read its table at another time than the last reload."""
    (name,) = [name for name in pids(service) if name.startswith("auth")]
    before = pids(service)
    os.kill(before[name], signal.SIGKILL)
    wait_for(lambda: pids(service).get(name) not in (None, 0, before[name]))
    wait_for(lambda: service.actor(name)["state"] == "serving")
    before = pids(service)
    assert kept_and_replaced(service, before)[1] == {"listener"}
    before = pids(service)
    assert kept_and_replaced(service, before)[0][-1] == "replaced: no actor"


def test_with_a_listener_for_each_connection():
    with serve(users=USERS, mail=(), isolation="connection") as service, RawPop3(service) as early:
        before = pids(service)
        assert early.ask(b"USER alice").startswith(b"+OK")
        assert answer_of(service, "bob").startswith(b"+OK")
        touch_table(service)
        said, kept = kept_and_replaced(service, before)
        assert "gate" in kept and said[-1] == "replaced: auth~2"
        assert early.ask(b"PASS secret").startswith(b"+OK")
        for user in ("bob", "carol"):
            assert answer_of(service, user).startswith(b"+OK"), user
        new_certificate(service)
        before = pids(service)
        said, kept = kept_and_replaced(service, before)
        assert "auth~2" in kept and said[-1] == "replaced: gate.0~2"
        assert answer_of(service, "dave").startswith(b"+OK")
        assert early.ask(b"QUIT").startswith(b"+OK")
        wait_all_ended([before["gate.0"]])


def test_an_old_auth_that_is_stopped(tmp_path):
    with serve(users=USERS, mail=()) as service:
        assert answer_of(service, "alice").startswith(b"+OK")
        old = service.actor("auth")["pid"]
        touch_table(service)
        with stopped(old):
            began = time.monotonic()
            said = service.command("reload")
            assert 1.5 < time.monotonic() - began < 8
            assert "it did not hand them over in time" in said.stderr and "auth~2" in said.stdout
            assert answer_of(service, "alice").startswith(b"+OK")
        wait_all_ended([old])
        assert answer_of(service, "alice").startswith(b"+OK")


HOSTILE = """
import os, time
from popkernel.proto import messages as m

def octets(sender):
    yield m.LoginMemoryBegin(b"k" * 32, 64)
    sender._channel.sock.send(b"\\xff" * 100)

def dies(sender):
    yield m.LoginMemoryBegin(b"k" * 32, 64)
    yield m.VerifiedPasswords(["alice"], [b"d" * 32], [1000])
    os._exit(1)

def accuses(sender):
    sender.accuse()
    time.sleep(0.3)
    yield m.LoginMemoryBegin(b"k" * 32, 64)
    yield m.LoginMemoryEnd()

def of(*messages):
    def send(sender):
        yield from messages
    return send

begin = lambda octets=32: m.LoginMemoryBegin(b"k" * octets, 64)
PLANS = {
    "auth": octets,
    "auth~2": of(begin(), begin()),
    "auth~3": dies,
    "auth~4": accuses,
    "auth~5": of(begin(), m.LoginMemoryEnd(), m.LoginMemoryEnd()),
    "auth~6": of(
        begin(),
        m.KnownAccounts(["alice"] * 256, [b"d"] * 256),
        m.VerifiedPasswords(["alice", "nobody", "root"], [b"d" * 32] * 3, [2**62] * 3),
        m.LoginPenalties(["", "192.0.2.1", "x" * 64], [b"u" * 8, b"", b"u" * 8], [2**62] * 15),
        m.LoginPenalties([""], [b""], [0] * 5),
        m.LoginMemoryEnd(),
    ),
}

def patch():
    from popkernel.actors.auth import hand_over, main
    hand_over._SILENT_SECONDS = 0.5
    init = main.Auth._hand_over
    def new(self, message, fds):
        hand_over.Sender._all = PLANS.get(self.boot.name, hand_over.Sender._all)
        hand_over.Sender.accuse = lambda _: self.send(m.PeerRefused("auth>auth", message.name, "lies"))
        init(self, message, fds)
    main.Auth._hand_over = new
"""


def test_a_hostile_old_auth_keeps_no_new_one_out(tmp_path):
    """Each auth hands over in a way of its own; the next takes nothing that is untrue, and serves."""
    command = patched(tmp_path, HOSTILE)
    with serve(command=command, users=("alice", "bob"), mail=(), penalty_seconds=1) as service:
        for number in range(2, 8):
            old = service.actor(f"auth~{number - 1}" if number > 2 else "auth")["pid"]
            touch_table(service)
            said = service.command("reload")
            assert f"auth~{number}" in said.stdout, number
            assert answer_of(service, "alice").startswith(b"+OK"), (number, service.read_log())
            wait_all_ended([old])
        log = service.read_log()
        assert log.count("could be taken over from the auth before") == 3, log
        assert log.count(": taken over from the auth before: ") == 3
        assert log.count("refused a message on auth") == 4


SILENT = """
def patch():
    from popkernel.actors.auth import main
    main.Auth.taken_over = lambda *_: None
def in_init():
    from popkernel.kernel.supervisor import reload
    reload._TAKE_OVER_SECONDS = 1
"""


def test_a_new_auth_that_does_not_answer(tmp_path):
    with serve(command=patched(tmp_path, SILENT), users=USERS, mail=()) as service:
        touch_table(service)
        assert "auth~2" in service.command("reload").stdout
        service.wait_log("auth~2: no verified passwords and no penalties could be taken over from the auth")
        assert answer_of(service, "alice").startswith(b"+OK")


def test_a_warning_of_an_actor_that_stays_is_told_again():
    with serve(users=USERS, mail=()) as service:
        shutil.copy2(service.site.auth_table, service.site.auth_table + ".kept")
        touch_table(service, "foreign {SSHA}abcdefgh\n")
        first = service.command("reload").stderr
        assert "user foreign cannot log in" in first
        assert service.command("reload").stderr == first
        os.rename(service.site.auth_table + ".kept", service.site.auth_table)
        assert service.command("reload").stderr == ""
