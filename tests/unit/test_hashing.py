"""A password check by the C library and by the bcrypt package: the same answers, of any octets, from any number of threads."""

import ctypes
import random
import sys
import threading

import bcrypt
import pytest
from popkernel.actors.auth import hashing

LIBXCRYPT = hashing._libxcrypt() if sys.platform == "linux" else None
wants_libxcrypt = pytest.mark.skipif(LIBXCRYPT is None, reason="this system's crypt(3) is not libxcrypt's")


def test_the_known_hash_is_the_packages():
    assert bcrypt.checkpw(hashing._PASSWORD, hashing._KNOWN)


@wants_libxcrypt
def test_it_is_used_where_it_is():
    assert hashing.checker() is not bcrypt.checkpw


@wants_libxcrypt
@pytest.mark.parametrize("prefix", [b"$2a$", b"$2b$", b"$2y$"])
def test_it_agrees_with_the_package_on_any_octets(prefix):
    """Octets over 127 too, where libxcrypt's own $2a$ would differ: \\xff\\xa3 and its like, crypt(5)."""
    rng = random.Random(7)
    secrets = [bytes(rng.randrange(1, 256) for _ in range(n)) for n in range(1, 73)]
    secrets += [b"\xff\xff\xa3", b"\xff\xa334\xff\xff\xff\xa3345", b"\xa3", b"1\xa3345", b"\xff" * 72, "geheim\u00e4\u20ac".encode()]
    for secret in secrets:
        hashed = prefix + bcrypt.hashpw(secret, bcrypt.gensalt(4))[4:]
        assert LIBXCRYPT(secret, hashed)
        assert bcrypt.checkpw(secret, hashed)
        assert not LIBXCRYPT(secret[:-1] or b"x", hashed)
        assert not LIBXCRYPT(secret[:-1] + bytes([secret[-1] % 255 + 1]), hashed)


@wants_libxcrypt
def test_a_hash_that_only_looks_right_fits_no_password():
    good = bcrypt.hashpw(b"secret", bcrypt.gensalt(4))
    bad = [b"$2b$99" + good[6:], good[:28] + b"/" + good[29:], good[:10] + b"!" + good[11:], good[:-1], b"", b"$2b$04$", b"*0", good[:59] + b"\0"]
    assert not any(LIBXCRYPT(b"secret", one) for one in bad)


@wants_libxcrypt
def test_threads_do_not_mix_their_passwords_up():
    hashes = [bcrypt.hashpw(b"secret%d" % n, bcrypt.gensalt(4)) for n in range(8)]
    wrong = []

    def check(n):
        for turn in range(40):
            k = (n + turn) % 8
            if not LIBXCRYPT(b"secret%d" % k, hashes[k]) or LIBXCRYPT(b"secret%d" % k, hashes[k - 1]):
                wrong.append((n, turn))

    threads = [threading.Thread(target=check, args=(n,)) for n in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert not wrong


class _Other:
    """A libcrypt that is not libxcrypt's."""

    def __init__(self, name):
        if name != hashing._NAMES[0]:
            raise OSError(name)
        self.crypt_r = lambda *_: b"*0"


def test_another_crypt_is_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", _Other)
    assert hashing.checker() is bcrypt.checkpw


@pytest.mark.parametrize("answer", [None, b"*0", hashing._KNOWN])
def test_one_that_knows_no_bcrypt_or_says_yes_to_all_is_left_alone(monkeypatch, answer):
    monkeypatch.setattr(hashing, "_libxcrypt", lambda: hashing._by(lambda *_: answer))
    assert hashing.checker() is bcrypt.checkpw
