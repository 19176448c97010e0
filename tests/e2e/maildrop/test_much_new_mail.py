"""Test a mailbox with much new mail: served at once from new/, and moved to cur/ later.

It is moved after the session, or while that is parked.
"""

import os

from tests.support.service import serve
from tests.support.waiting import wait_for

MAIL = [b"Subject: %d\n\nbody %d\n" % (i, i) for i in range(400)]


def session(service):
    return service.pop3(timeout=60)


def parts(service):
    place = service.site.mail_users["alice"].maildir
    return [len(os.listdir(os.path.join(place, part))) for part in ("new", "cur")]


def test_much_new_mail_is_served_from_new_and_moved_while_parked():
    with serve(mail=MAIL, park_seconds=1) as service:
        client = session(service)
        assert client.stat()[0] == 400
        assert parts(service) == [400, 0]
        before = client.uidl()[1]
        assert client.retr(7)[1] == MAIL[6].splitlines()
        client.dele(9)
        wait_for(lambda: parts(service) == [0, 400], seconds=30)  # the session is parked
        assert client.retr(11)[1] == MAIL[10].splitlines()
        assert client.uidl()[1] == [row for row in before if not row.startswith(b"9 ")]
        client.quit()
        assert parts(service) == [0, 399]
        again = session(service)
        assert [row.split()[1] for row in again.uidl()[1]] == [
            row.split()[1] for row in before if not row.startswith(b"9 ")
        ]
        again.quit()


def test_much_new_mail_is_moved_after_quit():
    with serve(mail=MAIL) as service:
        client = session(service)
        client.dele(1)
        client.quit()
        assert parts(service)[0] == 399
        wait_for(lambda: parts(service) == [0, 399], seconds=30)
