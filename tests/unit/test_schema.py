"""Test kinds of fields: annotations become checks."""

from typing import Annotated, NamedTuple

import pytest
from popkernel.proto import messages as m
from popkernel.proto.codec import Codec
from popkernel.proto.schema import (
    BadMessageError,
    Count,
    Field,
    Name,
    Numbers,
    Secret,
    compile_check,
    fields_of,
    fit_fields,
)


class Sample(NamedTuple):
    number: Count
    name: Name
    secret: Secret
    numbers: Numbers
    flag: bool


GOOD = [0, "a", b"", [-1, 5], False]


def test_fields_in_order():
    assert list(fields_of(Sample)) == ["number", "name", "secret", "numbers", "flag"]
    assert [f.secret for f in fields_of(Sample).values()] == [False, False, True, False, False]


def test_good_ones_pass():
    check = compile_check(Sample)
    check(GOOD)
    check(tuple(GOOD))
    check([2**31 - 1, "a" * 300, b"a" * 8192, [2**63 - 1] * 8192, True])


@pytest.mark.parametrize("place", range(5))
@pytest.mark.parametrize(
    "value",
    [
        None,
        -5,
        2**31,
        "",
        "a" * 301,
        b"a" * 8193,
        [True],
        [1.0],
        [-2],
        [2**63],
        {},
        1.0,
        True,
        b"x" * 9000,
        [1, True],
        [1, 2.0],
        [1, "a"],
        [1, []],
        [None, 1],
        [5, -2, 5],
        [5, 2**63, 5],
        [float("nan")],
        [1] * 8193,
    ],
)
def test_bad_ones_are_named_and_not_quoted(place, value):
    fits = place == 4 and value is True
    fields = [*GOOD[:place], value, *GOOD[place + 1 :]]
    if fits:
        compile_check(Sample)(fields)
        return
    with pytest.raises(
        BadMessageError, match=rf"^Sample\.{list(fields_of(Sample))[place]}: not \w+ within its bounds$"
    ):
        compile_check(Sample)(fields)


@pytest.mark.parametrize("fields", [[], GOOD[:4], [*GOOD, 1], ()])
def test_the_number_of_fields(fields):
    with pytest.raises(BadMessageError, match="not 5 fields"):
        compile_check(Sample)(fields)


def test_no_fields():
    class Empty(NamedTuple):
        pass

    compile_check(Empty)([])
    with pytest.raises(BadMessageError, match="not 0 fields"):
        compile_check(Empty)([1])


def test_a_field_without_a_kind_is_a_mistake():
    class Plain(NamedTuple):
        value: int

    class Odd(NamedTuple):
        value: Annotated[int, Field("float")]

    with pytest.raises(TypeError, match="has no kind"):
        fields_of(Plain)
    with pytest.raises(TypeError, match="no such kind"):
        compile_check(Odd)


def test_maps_are_names_and_printable_texts_or_numbers():
    class Map(NamedTuple):
        fields: Annotated[dict[str, str | int], Field("map", -9, 20, items=2)]

    check = compile_check(Map)
    for good in ({}, {"a": 1, "b": "c"}, {"a": "x" * 20}, {"a": -9}):
        check([good])
    for bad in ({"a": 1, "b": 1, "c": 1}, {"a": "x" * 21}, {"a": "x" * 11, "b": "x" * 11}, {"a": -10},
                {b"a": 1}, {1: 1}, {"a-b": 1}, {"a": 1.0}, {"a": b"x"}, {"a": "x\ny"}, {"a": "\u202e"}, [],
                None):  # fmt: skip
        with pytest.raises(BadMessageError):
            check([bad])


def test_fields_are_made_sayable():
    fields = {"path": "/a\n\udcff", "many": 3, "long": "\u2028" * 3000, "more": "x"}
    said = fit_fields(fields)
    assert said["path"] == "/a\\n\\udcff" and said["many"] == 3 and said["more"] == "x"
    assert sum(len(value) for value in said.values() if type(value) is str) <= 3000
    Codec("auth", "kernel").encode(m.LogEvent(4, "x", said))


def test_lists_of_texts_and_octets():
    class Lists(NamedTuple):
        texts: Annotated[list[str], Field("strs", 0, 2, items=2)]
        blobs: Annotated[list[bytes], Field("blobs", 0, 2, items=2)]

    check = compile_check(Lists)
    check([["ab", ""], [b"ab", b""]])
    for bad in (
        [["abc"], []],
        [["a"] * 3, []],
        [[b"a"], []],
        [[], ["a"]],
        [[], [b"abc"]],
        [[], [b""] * 3],
        [(), []],
    ):
        with pytest.raises(BadMessageError):
            check(bad)
