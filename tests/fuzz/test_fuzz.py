"""Run the harnesses: every input of the corpus, then seconds of hypothesis from it.

`python -m tests.fuzz` runs longer.
"""

import os
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.harness import HERE, NAMES, inputs, load


@pytest.mark.parametrize("name", NAMES)
def test_the_corpus(name):
    tried = 0
    for where, data in inputs(name):
        try:
            load(name).one(data)
        except Exception as error:
            raise AssertionError(f"{name}, {where}") from error
        tried += 1
    assert tried


@pytest.mark.parametrize("name", NAMES)
def test_mutations_of_the_corpus(name):
    known = [data for _, data in inputs(name)]
    one = load(name).one
    change = st.tuples(st.integers(0, 4096), st.integers(0, 12), st.binary(max_size=12))

    @settings(max_examples=150, database=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(known), st.lists(change, max_size=6))
    def changed(data, changes):
        for at, gone, put in changes:
            at = at % (len(data) + 1)
            data = data[:at] + put + data[at + gone :]
        one(data)

    changed()


def test_every_harness_is_listed_and_says_its_invariant_first():

    files = {name[:-3] for name in os.listdir(HERE) if name.endswith(".py")}
    assert files - {"__init__", "__main__", "harness", "test_fuzz"} == set(NAMES)
    for name in NAMES:
        with open(f"{HERE}/{name}.py") as file:
            first = file.readline()
        assert re.match(r'"""[A-Z][a-z]+ .*\bany\b.*: \w', first), "VERB any INPUT: INVARIANT"
