"""The second thread of an actor that finds much unmeasured mail: caged as the first, gone with the first listing."""

import os
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


def test_both_threads_are_caged_and_one_is_left_after_the_listing():
    with Service(mail=(), lmtp=True) as service:
        fill(service, "alice")
        with smtplib.LMTP(f"{service.config.run_dir}/lmtp.sock") as mta:  # an actor that lists nothing yet
            mta.sendmail("a@example.org", ["alice"], b"Subject: last\r\n\r\nbody\r\n")
        pid = wait_for(lambda: pid_of(service, "maildir.alice"))
        states = lock.thread_states(pid)
        assert len(states) == 2
        assert all((state["Seccomp"], state["Seccomp_filters"], state["NoNewPrivs"]) == (2, 3, 1) for state in states.values())
        client = service.pop3("alice")
        assert client.stat()[0] == MESSAGES + 1
        wait_for(lambda: len(lock.thread_states(pid)) == 1)
        assert client.retr(MESSAGES)[1][0] == b"Subject: %d" % (MESSAGES - 1)
        client.quit()
        assert pid_of(service, "maildir.alice") == pid


def test_a_fork_of_an_actor_with_two_threads_is_refused_softly():
    """A report would wait for malloc's locks, which fork() holds: see promises.py. All else ends it, and is told."""
    plan = {"deadly": {"maildir.alice": ["fork"], "maildir.bob": ["fork"]}}
    with Sabotaged(plan, users={"alice": "secret", "bob": "secret"}, mail=()) as service:
        fill(service, "alice")
        client = service.pop3("alice")
        assert client.stat()[0] == MESSAGES
        client.quit()
        assert service.told("survived") == [["maildir.alice", "fork: [Errno 1] Operation not permitted"]]
        assert "SYS/TEMP" in service.login_error("bob")
        service.wait_log("error: maildir.bob broke its promises")
