"""Test `popkernel drain`: what it says whenever it is interrupted."""

import pytest
from popkernel.cli.operator import drain


class Server:
    """A server that is interrupted at the question of this number."""

    def __init__(self, at):
        self.at = at

    def ask(self, command, on):
        assert command == "drain"
        self.at -= 1
        if not self.at:
            raise KeyboardInterrupt
        return {"draining": True, "changed": on, "sessions": 1}


class Out:
    """A standard output whose reader interrupts as soon as it has the line."""

    def write(self, text):
        return len(text)

    def flush(self):
        raise KeyboardInterrupt


@pytest.mark.parametrize("at", [1, 2, 3])
def test_an_interrupt_says_that_no_new_sessions_are_taken(at, capsys, monkeypatch):
    monkeypatch.setattr(drain, "_LOOK_SECONDS", 0)
    with pytest.raises(KeyboardInterrupt):
        drain._drain(Server(at), undo=False, wait=True)
    assert "until: popkernel drain --undo" in capsys.readouterr().err


def test_so_does_one_that_comes_with_the_first_line(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout", Out())
    with pytest.raises(KeyboardInterrupt):
        drain._drain(Server(0), undo=False, wait=False)
    assert "until: popkernel drain --undo" in capsys.readouterr().err
