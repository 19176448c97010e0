"""The helper of an actor that finds much unmeasured mail: caged more tightly than the actor, gone with the first listing or with the actor."""

import os
import poplib
import signal
import smtplib

import pytest
from popkernel.kernel.sandbox import lock

from tests.e2e.inside.service import Sabotaged, needs_cage
from tests.service import Service, wait_for

pytestmark = needs_cage
MESSAGES = 1500


def fill(service, user):
    """Much new mail under names so long that the directory is large."""
    owner = service.site.mail_users[user]
    new = os.path.join(owner.maildir, "new")
    for number in range(MESSAGES):
        path = os.path.join(new, f"{1_600_000_000 + number}.{'x' * 200}.localhost")
        with open(path, "wb") as file:
            file.write(b"Subject: %d\n\nbody\n" % number)
        os.chown(path, owner.uid, owner.gid)
    if os.stat(new).st_size + os.stat(os.path.dirname(new) + "/cur").st_size < 256 << 10:
        pytest.skip("this file system does not say how large a directory is")


def pid_of(service, actor):
    return {a["name"]: a["pid"] for a in service.status()["actors"]}.get(actor)


def deliver(service, user):
    """Wake an actor that lists nothing yet; its pid."""
    with smtplib.LMTP(f"{service.config.run_dir}/lmtp.sock") as mta:
        mta.sendmail("a@example.org", [user], b"Subject: last\r\n\r\nbody\r\n")
    return wait_for(lambda: pid_of(service, f"maildir.{user}"))


def helpers(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(word) for word in file.read().split()]


def caged(pid):
    (state,) = lock.thread_states(pid).values()
    return state["Seccomp"], state["Seccomp_filters"], state["NoNewPrivs"]


def is_there(pid):
    """Not so where it is gone, or waits to be forgotten."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def ids_of(pid):
    with open(f"/proc/{pid}/status") as file:
        return [line for line in file if line.startswith(("Uid:", "Gid:", "Groups:"))]


def test_both_are_caged_and_one_is_left_after_the_listing():
    with Service(mail=(), lmtp=True) as service:
        fill(service, "alice")
        pid = deliver(service, "alice")
        (helper,) = helpers(pid)
        wait_for(lambda: caged(helper) == (2, 3, 1))
        assert caged(pid) == (2, 3, 1)
        assert ids_of(helper) == ids_of(pid)
        # Nothing but the maildir's directories, its pipes and what every process has: no channel to anybody.
        links = [os.readlink(f"/proc/{helper}/fd/{fd}") for fd in os.listdir(f"/proc/{helper}/fd")]
        assert not [link for link in links if link.startswith("socket:") and int(link[8:-1]) not in standard(helper)]
        client = service.pop3("alice")
        assert client.stat()[0] == MESSAGES + 1
        wait_for(lambda: not helpers(pid))
        assert client.retr(MESSAGES)[1][0] == b"Subject: %d" % (MESSAGES - 1)
        client.quit()
        assert pid_of(service, "maildir.alice") == pid


def standard(pid):
    """Inodes of sockets that are its standard input, output and error."""
    links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in (0, 1, 2) if os.path.islink(f"/proc/{pid}/fd/{fd}")]
    return {int(link[8:-1]) for link in links if link.startswith("socket:")}


def test_a_helper_that_is_killed_costs_nobody_anything():
    with Service(mail=(), lmtp=True) as service:
        fill(service, "alice")
        pid = deliver(service, "alice")
        (helper,) = helpers(pid)
        os.kill(helper, signal.SIGKILL)
        wait_for(lambda: not is_there(helper))
        client = service.pop3("alice")
        assert client.stat() == (MESSAGES + 1, sum(len(b"Subject: %d\r\n\r\nbody\r\n" % n) for n in range(MESSAGES)) + delivered(client))
        client.quit()
        assert pid_of(service, "maildir.alice") == pid


def delivered(client):
    return int(client.list(MESSAGES + 1).split()[2])


def test_a_helper_ends_with_its_actor():
    with Service(mail=(), lmtp=True) as service:
        fill(service, "alice")
        pid = deliver(service, "alice")
        (helper,) = helpers(pid)
        os.kill(helper, signal.SIGSTOP)  # it does not see the end of its pipe: the system has to end it
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not is_there(helper))


def test_a_helper_that_hangs_is_not_waited_for():
    with Service(mail=(), lmtp=True) as service:
        fill(service, "alice")
        pid = deliver(service, "alice")
        (helper,) = helpers(pid)
        os.kill(helper, signal.SIGSTOP)
        client = service.pop3("alice")
        assert client.stat()[0] == MESSAGES + 1
        client.quit()
        assert pid_of(service, "maildir.alice") == pid
    wait_for(lambda: not is_there(helper))


def test_an_actor_that_hangs_in_its_listing_is_ended_when_a_login_has_waited_its_time():
    with Service(mail=(), lmtp=True, login_seconds=2) as service:
        pid = deliver(service, "alice")
        os.kill(pid, signal.SIGSTOP)
        client = service.pop3(login=False)
        client.user("alice")
        with pytest.raises((poplib.error_proto, OSError, EOFError)):
            client.pass_("secret")
        client.close()
        wait_for(lambda: not is_there(pid), seconds=30)
        client = service.pop3("alice")
        assert client.stat()[0] == 1
        client.quit()


def test_an_actor_that_has_a_helper_may_fork_no_other():
    plan = {"deadly": {"maildir.alice": ["fork"]}}
    with Sabotaged(plan, users={"alice": "secret", "bob": "secret"}, mail=()) as service:
        fill(service, "alice")
        assert "SYS/TEMP" in service.login_error("alice")
        service.wait_log("error: maildir.alice broke its promises")
