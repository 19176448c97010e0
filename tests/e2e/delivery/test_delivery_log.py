"""Test the log's lines about deliveries: what came, under which UIDL, and the replies to what was refused."""

import json
import smtplib

import pytest

from tests.support.lmtp import lmtp
from tests.support.service import Service

EVIL = '<1" mailbox=bob\x1b[2J\xff file=x@example.org>'


@pytest.fixture(scope="module")
def service():
    with Service(mail=(), users=["alice", "bob"], log_format="json", message_octets=200_000) as running:
        yield running


def rows(service, event, count=1):
    log = service.wait_log(f'"event": "{event}"', count=count)
    return [row for row in map(json.loads, log.splitlines()) if row["event"] == event]


@pytest.mark.parametrize("size", [10, 190_000])
def test_a_delivery(service, size):
    data = f"Message-ID: <{size}@example.org>\r\nSubject: x\r\n\r\n" + "y" * 70 + "\r\n"
    data += ("z" * 70 + "\r\n") * (size // 72)
    lmtp(service).sendmail("sender@example.net", ["alice"], data.encode())
    row = next(
        row
        for row in rows(service, "delivery.done", count=1 if size == 10 else 2)
        if str(size) in row["message_id"]
    )
    assert row["level"] == "info" and row["actor"] == "maildir.alice" and row["mailbox"] == "alice"
    assert (row["sender"], row["recipient"]) == ("sender@example.net", "alice")
    assert row["message_id"] == f"{size}@example.org" and row["ms"] >= 0
    assert row["octets"] > len(data.replace("\r", ""))
    client = service.pop3()
    assert row["uidl"] in [line.split()[1].decode() for line in client.uidl()[1]]
    client.quit()


def test_refusals(service):
    client = lmtp(service)
    with pytest.raises(smtplib.SMTPRecipientsRefused):
        client.sendmail("sender@example.net", ["nobody"], b"Subject: x\r\n\r\n")
    with pytest.raises(smtplib.SMTPException):
        client.sendmail("sender@example.net", ["bob"], b"x: y\r\n\r\n" + (b"z" * 70 + b"\r\n") * 4000)
    unknown, large = rows(service, "delivery.refused", count=2)[:2]
    assert unknown["level"] == "info" and unknown["recipient"] == "nobody"
    assert unknown["reply"].startswith("550 5.1.1 ")
    assert large["level"] == "notice" and large["reply"].startswith("552 5.3.4 ")


def test_a_hostile_message_id(service):
    count = len(rows(service, "delivery.done"))
    lmtp(service).sendmail("sender@example.net", ["bob"], f"Message-ID: {EVIL}\r\n\r\n".encode("latin-1"))
    row = rows(service, "delivery.done", count=count + 1)[-1]
    assert row["mailbox"] == "bob" and row["message_id"].startswith('1" mailbox=bob\\x1b[2J')
