"""Check that the files and functions named in docs/style.md exist."""

import ast
import os
import re

import pytest
from popkernel.proto import messages

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
with open(f"{ROOT}/docs/style.md", encoding="utf-8") as _file:
    TEXT = _file.read()
STEPS = re.findall(r"`((?:proto|kernel|actors|cli|tests)/[\w/]+\.py): ([\w.]+)`", TEXT)
PATHS = set(re.findall(r"`((?:proto|kernel|actors|cli|tests|benchmarks)/[\w/.]*)`", TEXT)) - {"actors/NAME/"}


def defined(path):
    """Return the functions and classes of a file, methods as CLASS.METHOD."""
    with open(f"{ROOT}/{path}", "rb") as file:
        tree = ast.parse(file.read())
    names = set()
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {
                f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)
            }
    return names


@pytest.mark.parametrize(("path", "name"), STEPS, ids=[" ".join(step) for step in STEPS])
def test_a_step_of_a_walk_exists(path, name):
    assert name in defined(path)


def test_all_walks_exist():
    assert len(STEPS) > 30
    for heading in ("**A login**", "**A RETR**", "**A delivery**"):
        assert heading in TEXT


def test_the_messages_of_the_walks_exist():
    named = set(re.findall(r"(?<!\*)\*([A-Z]\w+)\*(?!\*)", TEXT))
    assert len(named) > 8
    assert not {name for name in named if not hasattr(messages, name)}


@pytest.mark.parametrize("path", sorted(PATHS))
def test_a_named_path_exists(path):
    assert os.path.exists(f"{ROOT}/{path}")
