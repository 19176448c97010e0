"""Test status, stop and reload against a small ZeroMQ ROUTER in place of the kernel."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading

import msgpack
import pytest
import zmq
from popkernel.cli import status, stop
from popkernel.cli.main import main
from popkernel.kernel.client import Client, ClientError

from tests.support.stranger import Stranger

ACTOR = {
    "name": "listener",
    "pid": 7,
    "uid": 64001,
    "gid": 64001,
    "state": "serving",
    "promises": "stdio inet unix",
    "unveiled": [],
    "restarts": 0,
    "resident_kib": 20480,
    "private_kib": 4096,
    "messages_in": 5,
    "messages_out": 6,
}
STATUS = {
    "ok": True,
    "pid": 4242,
    "version": "0.1.0",
    "uptime": 90061.5,
    "addresses": ["127.0.0.1:1995"],
    "actors": [ACTOR, {**ACTOR, "name": "maildir.al\x1b[2Jice", "promises": "stdio " * 40}],
    "sessions": [{"id": 17, "user": "alice"}],
    "leases": [{"user": b"alice\xff", "session": 17}],
}  # fmt: skip


@pytest.fixture
def serve(tmp_path):
    """Answer each command from `answers`: a map, raw octets, a callable, or None for silence."""
    context = zmq.Context()
    threads = []
    done = threading.Event()

    def loop(router, answers, asked):
        with contextlib.closing(router):
            while not done.is_set():
                if not router.poll(20):
                    continue
                peer, frame = router.recv_multipart()
                command = msgpack.unpackb(frame)
                asked.append(command)
                answer = answers.get(command["command"])
                answer = answer() if callable(answer) else answer
                if answer is not None:
                    router.send_multipart(
                        [peer, answer if isinstance(answer, bytes) else msgpack.packb(answer)]
                    )

    def start(answers):
        router = context.socket(zmq.ROUTER)
        router.setsockopt(zmq.LINGER, 0)
        router.bind(f"ipc://{tmp_path}/control.sock")
        asked = []
        threads.append(threading.Thread(target=loop, args=(router, answers, asked)))
        threads[-1].start()
        return asked

    yield start
    done.set()
    for thread in threads:
        thread.join(10)
    context.term()


def tell(command, tmp_path, *flags):
    return main([command, "--run-dir", str(tmp_path), *flags])


def test_status_as_json(serve, tmp_path, capsys):
    asked = serve({"status": STATUS})
    assert tell("status", tmp_path, "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert asked == [{"command": "status"}]
    assert shown["actors"][0] == ACTOR
    assert shown["leases"] == [{"user": "alice\\xff", "session": 17}]
    assert "ok" not in shown


def test_status_as_a_table(serve, tmp_path, capsys):
    serve({"status": STATUS})
    assert tell("status", tmp_path) == 0
    text = capsys.readouterr().out
    assert text.startswith("popkernel 0.1.0, pid 4242, up 1 d 1:01:01, on 127.0.0.1:1995\n")
    assert "maildir.al?[2Jice" in text
    assert "\x1b" not in text
    assert "1 session\n" in text and "1 lease\n" in text


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_table_fits(width):
    lines = status.summary(STATUS, width)
    assert max(map(len, lines)) <= width
    assert any("serving" in line for line in lines) == (width > 40)


def test_a_status_that_lacks_everything():
    assert (
        status.summary({"ok": True, "weaknesses": ["old"]}, 80)[-1]
        == "the sandbox is weaker on this system: old"
    )
    assert status.summary({"ok": True, "actors": None, "sessions": [1]}, 80)[0].endswith(", on no address")
    assert status.summary({"ok": True, "addresses": "pop3s 127.0.0.1:1"}, 80)[0].endswith(
        ", on pop3s 127.0.0.1:1"
    )


def test_a_status_with_logins():
    busy = {
        "waiting": 400,
        "oldest": 12.5,
        "checks": 30.04,
        "cache_hits": 0.256,
        "penalised": 2,
        "refused": {"max_sessions": 3, "penalty_seconds": 17},
    }
    assert status.summary({"logins": busy}, 300)[-1] == (
        "logins: 400 wait, the oldest for 12.5 s; 30.0 passwords checked a second; 26 % needed no check;"
        " addresses under penalty: 2; refused: 3 by max_sessions, 17 by penalty_seconds"
    )
    idle = {"waiting": 0, "oldest": 0.0, "checks": None, "cache_hits": None, "penalised": 0, "refused": {}}
    assert status.summary({"logins": idle}, 300)[-1] == "logins: 0 wait"
    strange = {"waiting": "\x1b[2J", "oldest": None, "refused": {"\x1b": "\n"}}
    assert status.summary({"logins": strange}, 300)[-1].isprintable()


def test_memory_is_filled_in_where_the_server_cannot_see_it(serve, tmp_path, capsys):
    mine = {"name": "a", "pid": os.getpid()}
    serve(
        {
            "status": {
                **STATUS,
                "actors": [mine, {"name": "gone", "pid": 2**22 + 1}, {**ACTOR, "pid": os.getpid()}],
            }
        }
    )
    assert tell("status", tmp_path, "--json") == 0
    actors = json.loads(capsys.readouterr().out)["actors"]
    if os.path.exists("/proc/self/smaps_rollup"):
        assert actors[0]["resident_kib"] > actors[0]["private_kib"] > 1000
    assert actors[1]["resident_kib"] is None
    assert actors[2]["resident_kib"] == 20480
    assert tell("status", tmp_path) == 0


def test_reload(serve, tmp_path, capsys):
    serve({"reload": {"ok": True}})
    assert tell("reload", tmp_path) == 0
    assert capsys.readouterr().out == "reloaded\n"


def test_reload_reports_waiting_settings_and_other_faults(serve, tmp_path, capsys):
    serve(
        {
            "reload": {
                "ok": True,
                "next_start": ["listeners", "warm_memory"],
                "warnings": ["/c\x1b:1: a; b"],
                "mailboxes": ["user bob: /b\x1b: is no directory; y"],
            }
        }
    )
    assert tell("reload", tmp_path) == 0
    said = capsys.readouterr()
    assert (
        said.out
        == "reloaded\nonly from the next start on: listeners\nonly from the next start on: warm_memory\n"
    )
    assert said.err == "warning: /c?:1: a; b\nwarning: user bob: /b?: is no directory; y\n"


@pytest.mark.parametrize("code", [None, 0, 1, 256, "65", True, [65]])
def test_a_refusal_with_an_unknown_code(serve, tmp_path, code):
    serve({"reload": {"ok": False, "error": "x", "code": code}})
    assert tell("reload", tmp_path) == os.EX_UNAVAILABLE


def test_reload_refused(serve, tmp_path, capsys):
    serve({"reload": {"ok": False, "error": "/a:3: user a again; remove one\n/a:4: \x1bx; y", "code": 65}})
    assert tell("reload", tmp_path) == os.EX_DATAERR
    said = capsys.readouterr()
    assert said.err == "popkernel: /a:3: user a again; remove one\npopkernel: /a:4: ?x; y\n"
    assert said.out == "not reloaded: what is in force stays\n"


def test_stop_waits_for_the_process(serve, tmp_path, capsys):
    # Ends with its standard input; the socket's file goes first, as in the kernel.
    with subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE
    ) as server:

        def end():
            os.unlink(tmp_path / "control.sock")
            server.stdin.close()
            return {"ok": True}

        serve({"status": {"ok": True, "pid": server.pid}, "stop": end})
        reaper = threading.Thread(target=server.wait)
        reaper.start()
        assert tell("stop", tmp_path) == 0
        assert capsys.readouterr().out == "stopped\n"
        reaper.join(10)
        assert server.returncode == 0


def test_stop_that_does_not_end(serve, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(stop, "STOP_SECONDS", 0.1)
    serve({"status": {"ok": True, "pid": os.getpid()}, "stop": {"ok": True}})
    assert tell("stop", tmp_path) == os.EX_TEMPFAIL
    assert "is not gone after" in capsys.readouterr().err
    monkeypatch.setattr(stop, "_open_pidfd", lambda _pid: None)
    assert tell("stop", tmp_path) == os.EX_TEMPFAIL


def test_stop_without_a_pid(serve, tmp_path):
    serve({"status": {"ok": True, "pid": 1}})
    assert tell("stop", tmp_path) == os.EX_SOFTWARE


ODD = [
    b"\xc1",
    b"",
    msgpack.packb([1]),
    msgpack.packb({"ok": 1}),
    msgpack.packb({1: 2}),
    b"\x81\x90\x01",
    b"\x91" * 2000 + b"\xc0",
    b"\xdf\xff\xff\xff\xff",
    b"\xc7\x0c\xff" + b"\xff" * 12,
]


@pytest.mark.parametrize("command", ["status", "stop", "reload"])
@pytest.mark.parametrize("answer", ODD)
def test_an_answer_that_is_none(serve, tmp_path, capsys, command, answer):
    serve({"status": answer, "reload": answer})
    assert tell(command, tmp_path) == os.EX_SOFTWARE
    what = (
        f"popkernel: what answers on {tmp_path} is no popkernel, or one of another version; stop it by the "
        f"means of its version\n"
    )
    assert capsys.readouterr().err == what


@pytest.mark.parametrize("flags", [[], ["--json"]])
@pytest.mark.parametrize(
    "more",
    [
        {"actors": 5},
        {"addresses": 5},
        {"sessions": True},
        {"uptime": float("nan")},
        {"uptime": float("inf")},
        {b"octets": 1},
        {"actors": [{b"k": 1}]},
        {"version": [[]] * 3},
        {"weaknesses": 7},
    ],
)
def test_a_status_of_another_shape(serve, tmp_path, capsys, flags, more):
    serve({"status": STATUS | more})
    code = tell("status", tmp_path, *flags)
    said = capsys.readouterr()
    assert (code == os.EX_OK and said.out and not said.err) or (
        code == os.EX_SOFTWARE and not said.out and "another version" in said.err
    )


def test_a_deep_status(serve, tmp_path, capsys):
    deep = b"\x83\xa2ok\xc3\xa3pid\x01\xa7version" + b"\x91" * 500 + b"\xc0"
    serve({"status": deep})
    assert tell("status", tmp_path) in (os.EX_OK, os.EX_SOFTWARE)
    assert tell("status", tmp_path, "--json") in (os.EX_OK, os.EX_SOFTWARE)


@pytest.mark.parametrize("error", [None, "", 7, b"x", [[]], {"a": 1}])
def test_a_refusal_without_a_reason(serve, tmp_path, capsys, error):
    serve({"reload": {"ok": False, "error": error, "code": 65}})
    assert tell("reload", tmp_path) == os.EX_DATAERR
    assert capsys.readouterr().err == "popkernel: the server gave no reason\n"


def test_an_answer_that_is_too_large(serve, tmp_path, monkeypatch):
    """libzmq closes the connection and drops the answer."""
    monkeypatch.setattr("popkernel.kernel.client._LARGEST_ANSWER", 1000)
    serve({"status": {"ok": True, "more": "x" * 1000}})
    with pytest.raises(ClientError, match="gave no answer in 0.3 seconds") as caught:
        Client(str(tmp_path)).ask("status", 0.3)
    assert caught.value.code == os.EX_TEMPFAIL


@pytest.mark.parametrize("octets", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\xff" * 200, b"", b"\0" * 64])
def test_a_peer_that_speaks_something_else(tmp_path, octets):
    with Stranger(tmp_path, octets), pytest.raises(ClientError) as caught:
        Client(str(tmp_path)).ask("status", 0.3)
    assert caught.value.code in (os.EX_TEMPFAIL, os.EX_SOFTWARE)


def test_no_answer(serve, tmp_path):
    serve({"status": None})
    with pytest.raises(ClientError, match="gave no answer in 0.1 seconds") as caught:
        Client(str(tmp_path)).ask("status", 0.1)
    assert caught.value.code == os.EX_TEMPFAIL


@pytest.mark.parametrize("command", ["status", "stop", "reload"])
def test_nobody_there(tmp_path, capsys, command):
    assert tell(command, tmp_path) == os.EX_UNAVAILABLE
    assert f"no popkernel runs on {tmp_path}" in capsys.readouterr().err
    assert tell(command, tmp_path / "none") == os.EX_UNAVAILABLE
    # the socket that a killed server leaves behind
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as left:
        left.bind(str(tmp_path / "control.sock"))
    assert tell(command, tmp_path) == os.EX_UNAVAILABLE


def test_something_else_there(tmp_path):
    (tmp_path / "control.sock").write_text("")
    assert tell("status", tmp_path) == os.EX_UNAVAILABLE


def test_a_directory_of_another_user(serve, tmp_path, monkeypatch):
    serve({"status": STATUS})
    if os.geteuid() == 0:
        os.chown(tmp_path, 64101, 64101)
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    assert tell("status", tmp_path) == os.EX_NOPERM


@pytest.mark.skipif(os.geteuid() == 0, reason="root may enter any directory")
def test_not_permitted(tmp_path):
    shut = tmp_path / "shut"
    shut.mkdir(mode=0)
    assert tell("status", shut) == os.EX_NOPERM


def test_a_run_dir_that_is_too_long(capsys):
    assert main(["status", "--run-dir", "/" + "x" * 100]) == os.EX_CONFIG
    assert "choose a shorter --run-dir" in capsys.readouterr().err
