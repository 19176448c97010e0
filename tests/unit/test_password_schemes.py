"""Test the schemes of hashes: what a table may hold, what a check costs, and the libraries that check."""

import builtins
import hashlib
import threading
import time
from collections import Counter

import bcrypt
import pytest
from popkernel.actors.auth import main, passwords, schemes
from popkernel.actors.auth.passwords import Table, fits, usable
from popkernel.kernel.replay.harness import Harness, no_socket
from popkernel.proto import messages as m
from popkernel.proto.files import password_schemes
from popkernel.proto.files.password_schemes import UnusableHashError, cost_of, decoy_of, read_hash, scheme_of
from popkernel.proto.files.tables import parse_auth

# By other programs: crypt(3), `doveadm pw`, and argon2(1).
HASHES = {
    "BLF-CRYPT": bcrypt.hashpw(b"popkernel", bcrypt.gensalt(4)),
    "SHA512-CRYPT": b"$6$rounds=1000$abc$/MontJ4XCkykQYLoTbnPTszO8hKzBdHuMjDepG./TBxkscrBc6b3FOYfbDQ17k."
    b"dOVBmIS8GQ.cFsodRb.wZr1",
    "SHA256-CRYPT": b"$5$077jlo2.dkQttzfo$sgjEjyFzkQh0YT8UiNqRFn/IUW56Y6f0Yn1ZhFUyLM1",
    "ARGON2ID": b"$argon2id$v=19$m=1024,t=1,p=1$cG9wa2VybmVsc2FsdA"
    b"$LkzsoI2KcgevfoJvahbz38FmRigtxdzlsklj7wqmJL0",
}
SHA512, ARGON2 = HASHES["SHA512-CRYPT"], HASHES["ARGON2ID"]


@pytest.fixture(autouse=True)
def libraries():
    for scheme in HASHES:
        assert schemes.import_library(scheme) == ""


@pytest.mark.parametrize("scheme", HASHES)
def test_a_hash_with_and_without_dovecot_s_prefix(scheme):
    hashed = HASHES[scheme]
    for prefix in ("", f"{{{scheme}}}", f"{{{scheme.lower()}}}"):
        assert read_hash(prefix.encode() + hashed) == hashed
    assert scheme_of(hashed) == scheme
    assert fits(b"popkernel", hashed) and not fits(b"popkerneL", hashed)
    with pytest.raises(UnusableHashError, match="the prefix says"):
        read_hash(b"{SHA512-CRYPT}" + hashed if scheme != "SHA512-CRYPT" else b"{ARGON2ID}" + hashed)
    assert read_hash(f"{{{scheme}}}!".encode() + hashed) == b""


@pytest.mark.parametrize("scheme", HASHES)
def test_a_decoy_costs_the_same_and_fits_nothing(scheme):
    hashed = HASHES[scheme]
    decoy = decoy_of(cost_of(hashed))
    assert read_hash(decoy) == decoy and cost_of(decoy) == cost_of(hashed) and scheme_of(decoy) == scheme
    assert not fits(b"popkernel", decoy)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (SHA512.replace(b"rounds=1000", b"rounds=999"), "rounds"),
        (SHA512.replace(b"rounds=1000", b"rounds=01000"), "rounds"),
        (SHA512.replace(b"rounds=1000", b"rounds=1000001"), "rounds"),
        (SHA512.replace(b"$abc$", b"$$"), "malformed"),  # without a salt
        (SHA512 + b".", "malformed"),
        (SHA512.replace(b"$6$", b"$5$"), "malformed"),
        (ARGON2.replace(b"m=1024", b"m=7"), "m=7 KiB, not 8 to 262144"),
        (ARGON2.replace(b"m=1024", b"m=262145"), "m=262145 KiB"),
        (ARGON2.replace(b"t=1", b"t=4097"), "too long a check"),
        (ARGON2.replace(b"p=1", b"p=2"), "only p=1 is checked"),
        (ARGON2.replace(b"v=19", b"v=16"), "not v=19"),
        (ARGON2.replace(b"cG9wa2VybmVsc2FsdA", b"cG9wa2Vyb"), "malformed"),
        (ARGON2[:-22], "malformed"),
        (ARGON2[:-2], "malformed"),  # 41 characters are no base64
        # bits that mean nothing are set: libargon2 refuses it at each check, which told that the user exists
        (ARGON2.replace(b"cG9wa2VybmVsc2FsdA", b"cG9wa2VybmVsc2FsdB"), "malformed"),
        (ARGON2[:-1] + b"1", "malformed"),
    ],
)
def test_a_hash_out_of_bounds_is_refused_with_its_line(value, said):
    table = parse_auth(b"ok " + HASHES["BLF-CRYPT"] + b"\nalice " + value + b"\n", "/etc/auth")
    assert list(table.hashes) == ["ok"] and not table.errors
    text = str(table.shut_out["alice"])
    assert text.startswith("/etc/auth:2: user alice cannot log in: ") and said in text
    assert "popkernel passwd" in text and value[-20:].decode() not in text


def test_a_password_over_72_octets_is_bcrypt_s_limit_alone():
    from passlib.hash import sha512_crypt

    secret = b"x" * 100
    hashed = sha512_crypt.using(rounds=1000).hash(secret).encode()
    assert read_hash(hashed) == hashed
    assert usable(secret, hashed) and fits(secret, hashed) and not fits(secret[:72], hashed)
    assert not usable(secret, HASHES["BLF-CRYPT"]) and not usable(b"x" * 256, hashed)
    assert not usable(b"a\0b", hashed)


def test_any_octets_fit_their_hash_alone():
    from argon2.low_level import Type, hash_secret
    from passlib.hash import sha256_crypt, sha512_crypt

    for secret in (bytes(range(1, 256)), b"\xff\xff\xa3", b"x", "geheim\u00e4\u20ac".encode()):
        for hashed in (
            sha512_crypt.using(rounds=1000).hash(secret).encode(),
            sha256_crypt.using(rounds=1000).hash(secret).encode(),
            hash_secret(secret, b"saltsalt", 1, 8, 1, 16, Type.ID),
        ):
            assert read_hash(hashed) == hashed
            assert fits(secret, hashed)
            assert not fits(secret[:-1] + bytes([secret[-1] % 255 + 1]), hashed)


def test_unknown_names_cost_in_the_shares_of_the_table():
    hashes = {f"user{n}": HASHES["BLF-CRYPT"] if n % 4 else SHA512 for n in range(40)}
    table = Table(hashes)
    names = [f"nobody{n}" for n in range(2000)]
    found = Counter(scheme_of(table.hash_of(name)[0]) for name in names)
    assert 400 < found["SHA512-CRYPT"] < 600 and found["BLF-CRYPT"] == 2000 - found["SHA512-CRYPT"]
    assert not any(known for _, known in map(table.hash_of, names))
    # after a reload with a user more: next to no name changes its decoy
    other = Table({**hashes, "new": HASHES["BLF-CRYPT"]})
    assert sum(table.hash_of(name) != other.hash_of(name) for name in names) < 40
    assert Table({}).hash_of("nobody") == (decoy_of(b"$2b$10$"), False)
    # who does not know the table cannot tell which one a name gets
    secret = Table({name: hashed[:-1] + b"." for name, hashed in hashes.items()})
    assert sum(table.hash_of(name)[0] != secret.hash_of(name)[0] for name in names) > 200


def test_a_missing_library_shuts_out_its_users_and_no_others(monkeypatch):
    def refused(name, *rest):
        if name.partition(".")[0] == "argon2":
            raise ImportError
        return real(name, *rest)

    real = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", refused)
    monkeypatch.setattr(schemes, "_checks", {})
    data = b"".join(b"%b {%b}%b\n" % (name.lower().encode(), name.encode(), HASHES[name]) for name in HASHES)
    table, missing = schemes.without_missing(parse_auth(data, "/etc/auth"), data, "/etc/auth")
    assert list(table.hashes) == ["blf-crypt", "sha512-crypt", "sha256-crypt"] and not table.errors
    assert [str(finding) for finding in missing] == [
        "/etc/auth: 1 user has ARGON2ID hashes, and argon2 is not installed; "
        + schemes.library_mend("ARGON2ID")
    ]
    assert str(table.shut_out["argon2id"]).startswith(
        "/etc/auth:4: user argon2id cannot log in: an ARGON2ID hash, and argon2 is not installed"
    )
    alone = b"a " + ARGON2 + b"\n"
    table, missing = schemes.without_missing(parse_auth(alone, "t"), alone, "t")
    assert table.errors == missing and not table.hashes  # nobody could log in


def test_no_library_is_imported_for_bcrypt_alone(monkeypatch):
    monkeypatch.setattr(schemes, "_checks", {})
    data = b"a " + HASHES["BLF-CRYPT"] + b"\nb {SSHA}x\nc !" + SHA512 + b"\n"
    table = parse_auth(data, "t")
    assert schemes.without_missing(table, data, "t") == (table, [])
    assert schemes._checks == {}


def test_a_library_that_gives_wrong_answers_is_not_used(monkeypatch):
    monkeypatch.setattr(schemes, "_checks", {})
    monkeypatch.setattr(schemes, "_sha_crypt", lambda _: lambda *_: True)
    assert schemes.import_library("SHA512-CRYPT") == "passlib gives wrong answers"
    monkeypatch.setattr(schemes, "_argon2", lambda: 1 / 0)
    assert schemes.import_library("ARGON2ID") == "argon2 fails (ZeroDivisionError)"
    assert schemes._checks == {}


def test_argon2_checks_wait_for_memory():
    memory, order = schemes._Memory(10), []
    memory.take(6)

    def large():
        memory.take(10)
        order.append("large")
        memory.give(10)

    thread = threading.Thread(target=large)
    thread.start()
    memory.take(4)
    order.append("small")
    memory.give(4)
    memory.give(6)
    thread.join(20)
    assert order == ["small", "large"]


def test_without_memory_a_login_is_refused_for_the_moment(tmp_path, monkeypatch):
    table = tmp_path / "auth"
    table.write_bytes(b"alice " + ARGON2 + b"\n")
    harness = Harness(payload=False)
    auth = main.Auth(harness.boot("auth", {"auth_table": str(table)}, 100.0))
    harness.enter(auth)
    auth.join("listener.0", no_socket())

    def check(*_):
        raise MemoryError

    monkeypatch.setattr(auth, "check", check)
    monkeypatch.setattr(main.os, "read", lambda *_: b"")
    auth._on_login(
        auth.listeners["listener.0"], m.LoginRequest(1, "alice", b"popkernel", "192.0.2.7:1", "PASS"), []
    )
    attempt = auth.work.get_nowait()
    auth.done.append((attempt, auth._judge(attempt)))
    auth._answers(1)
    harness.loop.settle()
    said = {one.name: one.fields for one in harness.said}
    assert (said["LoginRefused"]["code"], said["LoginDenied"]["reason"]) == ("SYS/TEMP", "temp")
    assert auth.given == 0


def test_a_large_table_is_parsed_soon():
    """A hundred thousand lines, which do not take the fast way of a table of bcrypt alone."""
    salts = [hashlib.sha256(b"%d" % n).hexdigest()[:16].encode() for n in range(100_000)]
    data = b"".join(b"user%d $6$%b$%b\n" % (n, salt, b"a" * 86) for n, salt in enumerate(salts))
    began = time.process_time()
    assert len(Table(parse_auth(data, "t").hashes)) == 100_000
    assert time.process_time() - began < 5


def test_the_bounds_are_those_of_the_documents():
    assert (password_schemes.MAX_MEMORY, password_schemes.MAX_ROUNDS) == (256 * 1024, 1_000_000)
    assert passwords.DENIED[0] == "AUTH"
