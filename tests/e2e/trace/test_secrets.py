"""Send a unique password through every path, then search every frame, recording and log for it."""

import base64
import subprocess

import pytest
from popkernel.kernel.client import Client
from popkernel.proto.trace.recording import pack, read

from tests.support.bearer_tokens import RESPONSES, key_set, settings, token
from tests.support.pop3 import RawPop3
from tests.support.service import POPKERNEL, ROOT, Service

WORD = "vErY-sEcReT-47110815"
TOKEN = token()


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    jwks = tmp_path_factory.mktemp("oauth") / "jwks"
    jwks.write_bytes(key_set())
    with Service(users={"alice": WORD}, allow_plaintext=True, verbose=9, **settings(jwks)) as running:
        yield running


def tokens():
    """Send tokens in every way.

    Accepted, another user's, in pieces, too long, at the wrong time, as a password, and after an explained
    error.
    """
    for mechanism, response in RESPONSES.items():
        good, bad = response(TOKEN), response(TOKEN, "bob")
        head = b"AUTH " + mechanism
        yield [head + b" " + good + b"\r\nQUIT\r\n"]
        yield [head + b"\r\n", good[:300], good[300:] + b"\r\nSTAT\r\nQUIT\r\n"]
        yield [head + b" " + bad + b"\r\n", b"AQ==\r\nQUIT\r\n"]
        yield [head + b" " + bad + b"\r\n" + bad + b"\r\n" + bad + b"\r\n" + TOKEN + b"\r\nQUIT\r\n"]
        yield [head + b" " + good[:-4] + b"\r\n" + good + b"\r\n" + head + b"  " + good + b"\r\nQUIT\r\n"]
        yield [head + b" " + good * 30 + b"\r\nQUIT\r\n"]
        yield [head + b" " + good[:-9]]
        yield [
            b"AUTH PLAIN "
            + good
            + b"\r\nAUTH "
            + good
            + b"\r\nAUTH"
            + good
            + b"\r\nUSER alice\r\nPASS "
            + TOKEN[:240]
            + b"\r\nQUIT\r\n"
        ]
        yield [
            b"AUTH LOGIN\r\n" + base64.b64encode(b"alice") + b"\r\n",
            base64.b64encode(TOKEN) + b"\r\nQUIT\r\n",
        ]
        yield [
            head + b" " + good + b"\r\n" + head + b" " + good + b"\r\nRETR " + TOKEN[:100] + b"\r\nQUIT\r\n"
        ]


def conversations(service):
    """Send passwords in every way: right, wrong, in pieces, at the wrong time, in the wrong command."""
    word = WORD.encode()
    wrong = word + b"-wrong"
    sasl = base64.b64encode(b"\0alice\0" + word)
    token = base64.b64encode(b"user=alice\1auth=Bearer " + word + b"\1\1")
    parts = [base64.b64encode(b"alice") + b"\r\n", base64.b64encode(word) + b"\r\n"]
    for tls in ("tls", "stls", ""):
        for data in (
            [b"USER alice\r\nPASS " + word + b"\r\nQUIT\r\n"],
            [b"USER alice\r\nPASS " + wrong + b"\r\nQUIT\r\n"],
            [b"USER alice\r\npass " + word + b"\r\nQUIT\r\n"],
            [b"USER alice\r\npAsS   " + word + b"  \r\nQUIT\r\n"],
            [b"USER alice\r\nPASS\t" + word + b"\r\n PASS " + word + b"\r\nPASS" + word + b"\r\nQUIT\r\n"],
            [b"USER alice\r\nPA", b"SS " + word[:7], word[7:], b"\r\nQUIT\r\n"],
            [b"USER alice\r\nPASS " + word],
            [b"PASS " + word + b"\r\n" + word + b"\r\nUSER alice " + word + b"\r\nQUIT " + word + b"\r\n"],
            [b"AUTH PLAIN " + sasl + b"\r\n", b"AUTH PLAIN\r\n", sasl + b"\r\n", b"*\r\nQUIT\r\n"],
            [b"AUTH LOGIN\r\n", *parts, b"AUTH LOGIN " + parts[0], parts[1], b"QUIT\r\n"],
            [
                b"auth login\r\n"
                + b"".join(parts)
                + b"AUTH "
                + word
                + b"\r\nAUTH LOGIN\r\n"
                + word
                + b"\r\nQUIT\r\n"
            ],
            [
                b"AUTH XOAUTH2 " + token + b"\r\n",
                b"AUTH OAUTHBEARER\r\n",
                token + b"\r\nAUTH PLAIN\r\n" + sasl[:9],
                sasl[9:] + b"\r\nQUIT\r\n",
            ],
            [
                word
                + b"\r\nUSER alice\r\n"
                + word
                + b"\r\nPASSWORD "
                + word
                + b"\r\nLIST "
                + word
                + b"\r\n\xff"
                + word
                + b"\r\nQUIT\r\n"
            ],
            [
                b"USER alice\r\nPASS " + word * 40,
                word * 9 + b" ",
                word + b"\r\n" + word * 30 + b"\r\nQUIT\r\n",
            ],
            [
                b"USER alice\r\n",
                b"P",
                b"ASS",
                b" ",
                *(bytes([octet]) for octet in word),
                b"\r\nSTAT\r\nQUIT\r\n",
            ],
            [
                b"APOP alice "
                + word
                + b"\r\nXYZ "
                + word
                + b"\r\nUSER alice\r\nPASS "
                + word * 300
                + b"\r\nQUIT\r\n"
            ],
            [
                b"USER alice\r\nPASS "
                + word
                + b"\r\nPASS "
                + word
                + b"\r\nRETR "
                + word
                + b"\r\nSTAT "
                + word
                + b"\r\nNOOP\r\nQUIT\r\n"
            ],
        ):
            yield tls, data
        for data in tokens():
            yield tls, data


def talk(service):
    for tls, parts in conversations(service):
        with RawPop3(service, tls) as client:
            for part in parts:
                client.send(part)
            if not parts[-1].endswith(b"\r\n"):
                client.sock.close()
            else:
                client.end()
        service.read_log()  # the log is larger than a pipe


def inside_base64(word):
    """Return a word's base64 forms at each alignment, without their ends, which depend on neighbours."""
    return [base64.b64encode(b"x" * shift + word)[4 * bool(shift) : -4] for shift in range(3)]


def forms(data):
    """Return the places of the word in any of its forms."""
    word = WORD.encode()
    plain = (word, word.lower(), word.upper(), word[:7], word[7:], word[::-1], word.hex().encode())
    pieces = [TOKEN[at : at + 40] for at in range(0, len(TOKEN) - 40, 20)]
    return [
        form
        for form in (
            *plain,
            *inside_base64(word),
            *pieces,
            *(form for piece in pieces for form in inside_base64(piece)),
        )
        if form in data
    ]


def test_a_secret_would_be_found():
    for before in (b"", b"a", b"\0alice\0", b"user=alice\1auth=Bearer "):
        assert forms(base64.b64encode(before + WORD.encode() + b"\1\1"))
    assert forms(WORD[:9].encode())
    for response in RESPONSES.values():
        assert forms(response(TOKEN))
    assert forms(TOKEN[100:180])


def test_no_frame_no_recording_no_log_has_it(service, tmp_path):
    path = tmp_path / "all.rec"
    payload = ["--payload"] if ROOT else []
    command = [
        *POPKERNEL,
        "trace",
        "--run-dir",
        service.config.run_dir,
        "--format",
        "json",
        "--record",
        str(path),
        *payload,
    ]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as trace,
        Client(service.config.run_dir).follow(payload=ROOT, decisions=True) as viewer,
    ):
        trace.stderr.readline()
        taken = []
        viewer.next_frame(0)
        talk(service)
        last = service.pop3()
        last.quit()
        while (frame := viewer.next_frame(1)) is not None:
            taken.append(frame)
        trace.terminate()
        out, error = trace.communicate(timeout=20)
    raw = path.read_bytes()
    names = {f.name for f in taken}
    assert names >= {
        "Typed",
        "LoginRequest",
        "LoginGranted",
        "LoginRefused",
        "Reply",
        "LoginFailed",
        "ConnectionEnded",
    }
    logins = [f.fields for f in taken if f.name == "LoginRequest" and f.way == "in"]
    assert {f["mechanism"] for f in logins} == {"PASS", "PLAIN", "LOGIN", "XOAUTH2", "OAUTHBEARER"}
    assert {f["secret"] for f in logins} == {b"[secret]"} or {f["secret"] for f in logins} == {"[secret]"}
    assert len(logins) > 50
    said = b"".join(map(pack, taken))
    assert said.count(b"[secret]") > 30  # they were recorded
    assert forms(said) == []
    assert forms(raw) == []
    assert forms(out + error) == []
    assert forms(service.read_log().encode()) == []
    assert not read(raw).damage


def test_no_length_reveals_a_secret(service):
    """The recorded size of a secret is that of its mark, whatever the password's length."""
    with Client(service.config.run_dir).follow(types=["LoginRequest", "Typed"]) as viewer:
        for word in (b"x", b"x" * 40):
            with RawPop3(service, "tls") as client:
                client.send(b"USER alice\r\nPASS " + word + b"\r\nQUIT\r\n")
                client.end()
        frames = []
        while (frame := viewer.next_frame(1)) is not None:
            frames.append(frame)
    logins = [f for f in frames if f.name == "LoginRequest" and f.way == "in"]
    assert len(logins) == 2
    assert len({f.octets - len(f.fields["address"]) for f in logins}) == 1
    assert {f.octets for f in frames if f.name == "Typed"} == {0}
