"""Test kernel/decisions/recipients.py: which user an address belongs to."""

import pytest
from popkernel.kernel.decisions.recipients import Rules
from popkernel.proto.files.tables import MailUser

ROW = MailUser(1, 1, "/m")
USERS = dict.fromkeys(("alice", "Bob", "bob+own", "joe@example.org", "carol", "CAROL", "a b", "team+x"), ROW)


@pytest.mark.parametrize(
    ("address", "user"),
    [
        ("alice", "alice"),
        ("alice@example.org", "alice"),
        ("alice+list@example.org", "alice"),
        ("alice+a+b@x", "alice"),
        ("Alice@EXAMPLE.org", "alice"),
        ("bob@x", "Bob"),
        ("BOB+y@x", "Bob"),
        ("bob+own@x", "bob+own"),
        ("team+x@y", "team+x"),
        ("joe@example.org", "joe@example.org"),
        ("joe@EXAMPLE.ORG.", "joe@example.org"),
        ("joe+x@example.org", "joe@example.org"),
        ("JOE@example.org", "joe@example.org"),
        ("joe@other.org", None),
        ("joe", None),
        ("carol@x", "carol"),
        ("CAROL@x", "CAROL"),
        ("Carol@x", None),
        ('"a b"@x', "a b"),
        ('"al\\ice"@x', "alice"),
        ("+x@y", None),
        ("nobody@x", None),
        ("", None),
        ("@", None),
    ],
)
def test_as_it_comes(address, user):
    assert Rules().find(address, USERS) == user


def test_exact_case():
    assert Rules(fold=False).find("Alice@x", USERS) is None
    assert Rules(fold=False).find("Bob+x@X", USERS) == "Bob"


def test_other_separators():
    assert Rules(separators="-").find("alice-x@y", USERS) == "alice"
    assert Rules(separators="").find("alice+x@y", USERS) is None
    assert Rules(separators="+-").find("alice-x+y@z", USERS) == "alice"


def test_domains():
    rules = Rules(domains=("example.org",))
    assert rules.find("alice@example.org", USERS) == "alice"
    assert rules.find("alice@other.org", USERS) is None
    assert rules.find("alice", USERS) == "alice"
    assert Rules(domains=("x",)).find("joe@example.org", USERS) == "joe@example.org"


def test_another_table_is_seen():
    rules = Rules()
    assert rules.find("ALICE", USERS) == "alice"
    assert rules.find("ALICE", {"Alice": ROW}) == "Alice"
