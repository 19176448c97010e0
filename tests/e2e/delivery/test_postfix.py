"""Deliver from Postfix by `virtual_transport` over LMTP and by a `.forward` pipe to `popkernel deliver`."""

import os
import pwd

import pytest

from tests.e2e.delivery.test_opensmtpd import MAIL, body
from tests.support.maildirs import messages, pop_all
from tests.support.programs.mail_servers import (
    passable_directory,
    postfix,
    postfix_owner,
    reachable_popkernel,
    swaks,
    wait_settled,
)
from tests.support.service import Service

pytestmark = pytest.mark.root("a mail server needs root")


@pytest.fixture
def place():
    with passable_directory() as directory:
        yield directory


def test_virtual_transport(place):
    owner, _ = postfix_owner()
    with Service(mail=(), mta_users=[owner.pw_name]) as service:
        main = (
            f"virtual_mailbox_domains = example.org\nvirtual_transport = "
            f"lmtp:unix:{service.config.run_dir}/mta.sock\n"
        )
        with postfix(f"{place}/p", main) as mta:
            mail = MAIL % (b"p", b"3")
            swaks(mta.port, ["alice@example.org", "bob+x@example.org", "nobody@example.org"], mail)
            try:
                wait_settled(lambda: messages(service, "alice") and messages(service, "bob"))
            except AssertionError:
                raise AssertionError(mta.said() + service.read_log()) from None
            for user in ("alice", "bob"):
                (got,) = pop_all(service, user)
                assert body(got) == body(mail).replace(b"\n", b"\r\n")
                assert got.startswith(b"Return-Path: <sender@example.net>\r\nDelivered-To: ")
            wait_settled(lambda: "status=bounced" in mta.said())
            # carol's mailbox is read-only: her mail stays in Postfix's queue meanwhile
            maildir = service.site.mail_users["carol"].maildir
            os.chmod(f"{maildir}/tmp", 0)
            swaks(mta.port, ["carol@example.org"], mail)
            wait_settled(lambda: "status=deferred" in mta.said())
            os.chmod(f"{maildir}/tmp", 0o700)
            wait_settled(lambda: messages(service, "carol"))


def test_forward_file(place):
    """local(8) runs `"|popkernel deliver"` as that user, who may deliver to its own mailbox."""
    user = pwd.getpwnam("games")
    with Service(mail=(), users=["games"]) as service:
        table = service.site.user_table
        with open(table, "w") as file:
            file.write(f"games {user.pw_uid}:{user.pw_gid}:{service.site.mail_users['games'].maildir}\n")
        for folder, _, _ in os.walk(service.site.mail_users["games"].maildir):
            os.chown(folder, user.pw_uid, user.pw_gid)
        service.command("reload")
        home = f"{place}/forward"
        os.mkdir(home, 0o755)
        program = reachable_popkernel(home)
        with open(f"{home}/games", "w") as file:
            file.write(f'"|{program} deliver --run-dir {service.config.run_dir}"\n')
        os.chown(f"{home}/games", user.pw_uid, user.pw_gid)
        main = f"mydestination = example.org\nforward_path = {home}/$user\nlocal_transport = local\n"
        with postfix(f"{place}/p", main) as mta:
            mail = MAIL % (b"f", b"4")
            swaks(mta.port, ["games@example.org"], mail)
            try:
                wait_settled(lambda: messages(service, "games"))
            except AssertionError:
                raise AssertionError(mta.said() + service.read_log()) from None
            (got,) = pop_all(service, "games")
            assert body(got) == body(mail).replace(b"\n", b"\r\n")
            assert not got.startswith(b"From ")
            assert b"Return-Path: <sender@example.net>" in got
