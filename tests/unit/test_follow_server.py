"""Follow a trace from a small ZeroMQ ROUTER, or a stranger, in place of the kernel."""

import contextlib
import os
import socket
import threading

import msgpack
import pytest
from popkernel.cli.main import main
from popkernel.kernel import client
from popkernel.kernel.client import Client, ClientError
from popkernel.proto.bus.zmtp import Reader, frame_head, preface

from tests.support.stranger import Stranger

ANSWER = {
    "ok": True,
    "topology": "x",
    "version": "0.1.0",
    "wall": 1,
    "monotonic": 1,
    "watches": {},
    "running": [],
    "awaits": [],
}
FRAME = {
    "time": 1,
    "turn": 1,
    "actor": "auth",
    "way": "in",
    "peer": "listener.0",
    "name": "LoginRequest",
    "session": 3,
    "octets": 6,
    "fields": {"user": "al"},
}
HELLO = preface(b"ROUTER")


def frame(thing):
    data = thing if isinstance(thing, bytes) else msgpack.packb(thing)
    return frame_head(len(data)) + data


def settings(actor, **fields):
    return FRAME | {
        "actor": actor,
        "way": "note",
        "peer": "",
        "name": "Settings",
        "session": 0,
        "fields": fields,
    }


@pytest.fixture
def server(tmp_path):
    """Start a server that takes one request, sends `things` and closes if it `ends`.

    Returns the requests it received.
    """
    questions, threads, kept = [], [], []
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(f"{tmp_path}/control.sock")
    sock.listen(4)

    def serve(octets, ends):
        while True:
            try:
                peer, _ = sock.accept()
            except OSError:  # shut down
                return
            with peer if ends else contextlib.nullcontext():
                kept.append(peer)
                reader, asked = Reader(1 << 16, (b"DEALER",)), []
                try:
                    peer.sendall(HELLO)
                    while not asked and (data := peer.recv(1 << 16)):
                        asked = reader.feed(data)
                    if asked:
                        questions.extend(map(msgpack.unpackb, asked))
                        peer.sendall(octets)
                except OSError:  # a client that only checked for a listener
                    continue

    def start(*things, ends=True):
        threads.append(threading.Thread(target=serve, args=(b"".join(map(frame, things)), ends)))
        threads[0].start()
        return questions

    yield start
    sock.shutdown(socket.SHUT_RDWR)
    for thread in threads:
        thread.join()
    for one in (sock, *kept):
        one.close()


def follow(tmp_path, **wish):
    return Client(str(tmp_path)).follow(**wish)


def trace(tmp_path, *flags):
    return main(["trace", "--run-dir", str(tmp_path), *flags])


def test_all_frames_come_before_the_end(server, tmp_path):
    questions = server(ANSWER, *[FRAME] * 2000, {"lost": 7}, FRAME | {"lost": 2})
    with follow(tmp_path, user="al", types=["LoginRequest"]) as frames:
        seen = [frame.name for frame in frames]
        assert seen == ["LoginRequest"] * 2000 + ["Lost", "LoginRequest"]
        assert frames.ended
        assert frames.lost == 9
        assert frames.next_frame(0) is None
    assert questions[0] == {
        "command": "trace",
        "actor": "",
        "user": "al",
        "session": 0,
        "edge": "",
        "types": ["LoginRequest"],
        "address": "",
        "slow": 0,
        "payload": False,
        "decisions": False,
    }


def test_no_end_in_time(server, tmp_path):
    server(ANSWER, ends=False)
    with follow(tmp_path) as frames:
        assert frames.next_frame(0) is None
        assert frames.next_frame(0.01) is None
        assert not frames.ended
    assert frames.ended
    assert frames.next_frame() is None
    frames.close()


def test_the_sessions_of_the_begin(server, tmp_path):
    server(
        ANSWER | {"awaits": ["listener.0", "mda"], "running": ["listener.0", "listener.1.17"]},
        FRAME,
        settings("listener.0", sessions=[5, "x", [], 6]),
        settings("mda", clients=[[7, "a"], [], 8, [[]]], sessions=9),
    )
    with follow(tmp_path) as frames:
        assert frames.sessions == {0, 5, 6, 7, (1 << 40) + 17}
        assert [frame.name for frame in frames] == ["LoginRequest", "Settings", "Settings"]


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\xc1",
        [1],
        {"ok": 1},
        {"ok": True},
        ANSWER | {"running": 5},
        ANSWER | {"awaits": [[]]},
        ANSWER | {"monotonic": "x"},
        ANSWER | {"watches": None},
        ANSWER | {"maildir": "/x"},
        b"\x81\x90\x01",
        b"\x91" * 2000 + b"\xc0",
    ],
)
def test_an_answer_that_is_none(server, tmp_path, capsys, answer):
    server(answer)
    assert trace(tmp_path) == os.EX_SOFTWARE
    assert (
        capsys.readouterr().err
        == f"popkernel: what answers on {tmp_path} is no popkernel, or one of another version\n"
    )


@pytest.mark.parametrize(
    "thing",
    [
        b"",
        b"\xc1",
        [1],
        {"lost": "x"},
        FRAME | {"octets": None},
        FRAME | {"way": "up"},
        FRAME | {"more": 1},
        b"\x81\x90\x01",
    ],
)
def test_a_frame_that_is_none(server, tmp_path, capsys, thing):
    server(ANSWER, thing)
    assert trace(tmp_path) == os.EX_SOFTWARE
    assert f"popkernel: the server on {tmp_path} is of another version: " in capsys.readouterr().err


def test_a_refusal(server, tmp_path, capsys):
    server({"ok": False, "error": "no user \x1b", "code": 67})
    assert trace(tmp_path) == os.EX_NOUSER
    assert capsys.readouterr().err == "popkernel: no user ?\n"


def test_too_many_types(tmp_path):
    with pytest.raises(ClientError, match="that is too much to ask for: fewer types") as caught:
        follow(tmp_path, types=["x" * 100] * 50)
    assert caught.value.code == os.EX_USAGE


def test_the_server_ends(server, tmp_path, capsys):
    server(ANSWER)
    assert trace(tmp_path) == os.EX_UNAVAILABLE
    assert capsys.readouterr().err.endswith("popkernel: the server has ended\n")


@pytest.mark.parametrize("octets", [b"", HELLO[:40], HELLO])
def test_a_peer_that_closes(tmp_path, capsys, octets):
    """The server closes the connection of a client without permission, or of one too many."""
    with Stranger(tmp_path, octets, "close"):
        assert trace(tmp_path) == os.EX_TEMPFAIL
    closed = "closed the connection: not permitted, or too many watch already"
    assert capsys.readouterr().err == f"popkernel: the server on {tmp_path} {closed}\n"


@pytest.mark.parametrize(
    "octets", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\xff" * 200, preface(b"PAIR"), b"\0" * 64]
)
@pytest.mark.parametrize("then", ["close", "wait"])
def test_a_peer_that_speaks_something_else(tmp_path, capsys, monkeypatch, octets, then):
    monkeypatch.setattr(client, "ANSWER_SECONDS", 1.0)
    with Stranger(tmp_path, octets, then):
        assert trace(tmp_path) in (os.EX_SOFTWARE, os.EX_TEMPFAIL)
    said = capsys.readouterr().err
    assert said.startswith("popkernel: ") and said.count("\n") == 1
    assert ("no popkernel: it does not speak ZMTP 3" in said) == (octets[:2] == b"\xff\xff")


def test_no_answer(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(client, "ANSWER_SECONDS", 0.2)
    with Stranger(tmp_path, HELLO):
        assert trace(tmp_path) == os.EX_TEMPFAIL
    assert capsys.readouterr().err == f"popkernel: the server on {tmp_path} gave no answer in 0.2 seconds\n"


def test_a_frame_larger_than_any_ends_it(server, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(client, "_LARGEST_FRAME", 1000)
    server(ANSWER, FRAME, FRAME | {"fields": {"user": "x" * 1000}}, FRAME)
    # With the connection, libzmq may drop frames that were not read yet, the answer too.
    code, error = trace(tmp_path), capsys.readouterr().err
    closed = "closed the connection: not permitted, or too many watch already"
    assert (code, error.splitlines()[-1]) in (
        (os.EX_UNAVAILABLE, "popkernel: the server has ended"),
        (os.EX_TEMPFAIL, f"popkernel: the server on {tmp_path} {closed}"),
    )


def test_nobody_there(tmp_path, capsys):
    assert trace(tmp_path) == os.EX_UNAVAILABLE
    assert (
        capsys.readouterr().err
        == f"popkernel: no popkernel runs on {tmp_path}; start it, or give another -f or --run-dir\n"
    )
