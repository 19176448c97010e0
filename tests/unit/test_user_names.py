"""Test names in other spellings: one rule for logins and deliveries."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from popkernel.proto.access.user_names import (
    LoginNames,
    Spellings,
    case_conflicts,
    domain_conflicts,
    fold,
    names_beyond_clients,
)

NAMES = ("alice", "Bob", "carol", "CAROL", "Ärger", "josé")


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("alice", "alice"),
        ("Alice", "alice"),
        ("ALICE", "alice"),
        ("bob", "Bob"),
        ("BOB", "Bob"),
        ("Bob", "Bob"),
        ("carol", "carol"),
        ("CAROL", "CAROL"),
        ("Carol", None),
        ("Ärger", "Ärger"),
        ("ÄRGER", "Ärger"),
        ("ärger", None),
        ("JOSé", "josé"),
        ("JOSÉ", None),
        ("nobody", None),
        ("", None),
        ("\u212aarol", None),  # KELVIN SIGN, whose lower case is k
    ],
)
def test_typed_names(typed, found):
    assert Spellings(NAMES, fold=True).find(typed, NAMES) == found
    assert Spellings(NAMES, fold=False).find(typed, NAMES) == (typed if typed in NAMES else None)


def test_unknown_names_count_but_match_nothing():
    spellings = Spellings(NAMES, fold=True)
    assert spellings.unknown_form("Nobody") == spellings.unknown_form("NOBODY") == "nobody"
    assert spellings.unknown_form("Carol") == "Carol"
    assert Spellings(NAMES, fold=False).unknown_form("Nobody") == "Nobody"


@given(
    st.lists(st.text("aAbBéÉ", min_size=1, max_size=3), unique=True),
    st.text("aAbBéÉ", min_size=1, max_size=3),
)
def test_a_match_is_exact_or_unique(names, typed):
    spellings = Spellings(names, fold=True)
    found = spellings.find(typed, names)
    same = [name for name in names if fold(name) == fold(typed)]
    assert found == (typed if typed in names else same[0] if len(same) == 1 else None)
    assert found is not None or spellings.unknown_form(typed) not in names
    said = case_conflicts(names, b"".join(b"%b x\n" % name.encode() for name in names), "t")
    assert bool(said) == (len({fold(name) for name in names}) < len(names))


def test_names_that_differ_in_case_are_reported_up_to_a_limit():
    assert [str(finding) for finding in case_conflicts(["a", "b", "A"], b"a x\n# A\nb x\nA x\n", "t")] == [
        (
            "t:4: users a and A differ in case only: each is found only as it is written here; have one "
            "name for each user, or tell your users"
        )
    ]
    names = [name for n in range(50) for name in (f"u{n}", f"U{n}")]
    said = case_conflicts(names, b"", "t")
    assert len(said) == 11 and said[-1].what == "40 more names differ in case only"


# The default domain

SITE = ("alice", "bob@example.org", "carol", "carol@example.org", "Dave@Example.org", "erin@other.example")


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("alice", "alice"),
        ("alice@example.org", "alice"),
        ("Alice@EXAMPLE.org", "alice"),
        ("alice@other.example", None),
        ("bob", "bob@example.org"),
        ("BOB", "bob@example.org"),
        ("bob@example.org", "bob@example.org"),
        ("carol", "carol"),
        ("carol@example.org", "carol@example.org"),
        ("Carol", "carol"),
        ("Carol@Example.org", "carol@example.org"),
        ("dave", "Dave@Example.org"),
        ("erin", None),
        ("erin@other.example", "erin@other.example"),
        ("@example.org", None),
        ("alice@", None),
        ("alice@example.org@example.org", None),
        ("", None),
    ],
)
def test_a_name_with_or_without_the_default_domain(typed, found):
    names = LoginNames(SITE, fold=True, domain="example.org")
    assert names.find(typed) == found
    assert LoginNames(SITE, fold=True).find(typed) == Spellings(SITE, fold=True).find(typed, SITE)
    exact = LoginNames(SITE, fold=False, domain="example.org").find(typed)
    assert exact in (None, found)


@pytest.mark.parametrize(
    ("claim", "found"),
    [
        ("alice@example.org", "alice"),
        ("Alice@example.org", None),
        ("carol@example.org", "carol@example.org"),
        ("carol", "carol"),
        ("bob", "bob@example.org"),
        ("dave", None),
        ("mallory@example.org", None),
    ],
)
def test_a_token_s_claim_is_taken_to_the_letter(claim, found):
    assert LoginNames(SITE, fold=True, domain="example.org").claimed(claim) == found


@given(
    st.lists(st.text("aAb@d", min_size=1, max_size=4), unique=True),
    st.text("aAb@d", min_size=1, max_size=4),
    st.booleans(),
)
def test_a_name_of_the_table_is_always_that_user(names, typed, folds):
    rules = LoginNames(names, fold=folds, domain="d")
    found = rules.find(typed)
    assert all(rules.find(name) == rules.claimed(name) == name for name in names)
    assert found is None or found in names
    if found is None:
        assert rules.unknown_form(typed) not in names
        assert rules.find(rules.unknown_form(typed)) is None
    data = b"".join(b"%b x\n" % name.encode() for name in names)
    assert bool(domain_conflicts(names, data, "t", "d", folds=folds)) == any(
        Spellings(names, fold=folds).find(name[:-2], names) for name in names if name.endswith("@d")
    )


def test_names_that_are_there_with_and_without_the_default_domain():
    said = domain_conflicts(SITE, b"alice x\ncarol x\ncarol@example.org x\n", "t", "example.org", folds=True)
    assert "\n".join(map(str, said)) == (
        "t:3: users carol and carol@example.org differ in default_domain (example.org) only: each is found"
        " only as it is written here; have one name for each user, or tell your users"
    )


def test_names_that_no_client_can_give():
    said = names_beyond_clients(["alice", "no\u00a0break"], "no\u00a0break x\n".encode(), "t")
    assert "\n".join(map(str, said)) == (
        "t:1: 'no\\xa0break': no client can log in by this name: it has characters that are not printable;"
        " choose another name"
    )
