"""Names in another case (D15): one rule for logins and deliveries."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from popkernel.proto.access.user_names import Spellings, fold, twins

NAMES = ("alice", "Bob", "carol", "CAROL", "Ärger", "josé")


@pytest.mark.parametrize(("typed", "found"), [
    ("alice", "alice"), ("Alice", "alice"), ("ALICE", "alice"), ("bob", "Bob"), ("BOB", "Bob"), ("Bob", "Bob"),
    ("carol", "carol"), ("CAROL", "CAROL"), ("Carol", None), ("Ärger", "Ärger"), ("ÄRGER", "Ärger"), ("ärger", None), ("JOSé", "josé"), ("JOSÉ", None),
    ("nobody", None), ("", None), ("\u212aarol", None),  # KELVIN SIGN, whose small letter is a k
])
def test_as_it_is_typed(typed, found):
    assert Spellings(NAMES, fold=True).find(typed, NAMES) == found
    assert Spellings(NAMES, fold=False).find(typed, NAMES) == (typed if typed in NAMES else None)


def test_a_name_that_is_none_counts_as_one_and_is_never_one_that_is_there():
    spellings = Spellings(NAMES, fold=True)
    assert spellings.none("Nobody") == spellings.none("NOBODY") == "nobody"
    assert spellings.none("Carol") == "Carol"
    assert Spellings(NAMES, fold=False).none("Nobody") == "Nobody"


@given(st.lists(st.text("aAbBéÉ", min_size=1, max_size=3), unique=True), st.text("aAbBéÉ", min_size=1, max_size=3))
def test_who_is_found_is_spelled_so_or_alone(names, typed):
    spellings = Spellings(names, fold=True)
    found = spellings.find(typed, names)
    same = [name for name in names if fold(name) == fold(typed)]
    assert found == (typed if typed in names else same[0] if len(same) == 1 else None)
    assert found is not None or spellings.none(typed) not in names
    said = twins(names, b"".join(b"%b x\n" % name.encode() for name in names), "t")
    assert bool(said) == (len({fold(name) for name in names}) < len(names))


def test_twins_are_said_with_the_later_line_and_not_without_end():
    assert [str(finding) for finding in twins(["a", "b", "A"], b"a x\n# A\nb x\nA x\n", "t")] == [
        "t:4: users a and A differ in case only: each is found only as it is written here; have one name for each user, or tell your users"]
    names = [name for n in range(50) for name in (f"u{n}", f"U{n}")]
    said = twins(names, b"", "t")
    assert len(said) == 11 and said[-1].what == "40 more names differ in case only"
