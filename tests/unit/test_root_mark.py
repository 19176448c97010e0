"""Test the mark `root` of tests/conftest.py: other users skip the test, with the reason."""

import pytest

from tests import conftest


class Item:
    """Stand for a pytest item as the hook sees it."""

    def __init__(self, *marks):
        self.marks = [mark.mark for mark in marks]

    def get_closest_marker(self, name):
        return next((mark for mark in self.marks if mark.name == name), None)

    def add_marker(self, mark):
        self.marks.append(mark.mark)

    def skipped(self):
        mark = self.get_closest_marker("skip")
        return mark and mark.kwargs["reason"]


@pytest.mark.parametrize("root", [True, False])
def test_a_test_marked_root_is_skipped_for_everybody_else(monkeypatch, root):
    monkeypatch.setattr(conftest, "ROOT", root)
    marked, unmarked = Item(pytest.mark.root("other uids")), Item(pytest.mark.slow)
    conftest.pytest_collection_modifyitems([marked, unmarked])
    assert marked.skipped() == (None if root else "needs root: other uids")
    assert unmarked.skipped() is None
