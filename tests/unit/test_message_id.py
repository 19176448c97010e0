"""Test what the log has of a message: its Message-ID, as far as it is one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from popkernel.actors.maildir.deliveries import message_id
from popkernel.proto.log_events import text_of
from popkernel.proto.schema import fit_fields


@pytest.mark.parametrize(
    ("head", "found"),
    [
        (b"Message-ID: <1@example.org>\nSubject: x\n\nbody", "1@example.org"),
        (b"Subject: x\nmessage-id:<1@example.org>\n", "1@example.org"),
        (b"MESSAGE-ID:\n\t<1@example.org> \nA: b\n\n", "1@example.org"),
        (b"Subject: x\n\nMessage-ID: <1@example.org>\n", ""),
        (b"X: Message-ID: <1@example.org>\n\n", ""),
        (b"Message-ID:\nSubject: x\n\n", ""),
        (b"", ""),
        (b"\nMessage-ID: <1@example.org>\n", ""),
        (b"A: " + b"x" * 40_000 + b"\nMessage-ID: <1@example.org>\n\n", ""),
    ],
)
def test_the_header_s(head, found):
    assert message_id(head) == found


@given(st.binary(max_size=400))
def test_any_octets_stay_one_field_of_one_line(data):
    fields = {"mailbox": "alice", "message_id": message_id(b"Message-ID: <" + data), "file": "1.a"}
    line = text_of("delivery.done", fit_fields(fields))
    assert line.isprintable() and len(line) < 1200
    assert line.startswith("delivered: mailbox=alice message_id=") and line.endswith(" file=1.a")
    assert len(line.split('"')[0].split(" ")) <= 5
