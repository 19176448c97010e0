"""Check that every test named in docs/pop3.md exists."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[2]


def test_each_rule_has_its_test():
    there = {
        name
        for path in ROOT.glob("tests/**/test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)
    }
    rows = [line for line in (ROOT / "docs/pop3.md").read_text().splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 30
    for row in rows:
        named = re.findall(r"\btest_\w+", row.split("|")[-2])
        assert named and set(named) <= there, (row, set(named) - there)
