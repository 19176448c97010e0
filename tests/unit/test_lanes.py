"""Two password checks at once: the answers of the bcrypt package and of libxcrypt, in both lanes, of any octets, from any number of threads."""

import _ctypes
import ctypes
import faulthandler
import math
import os
import random
import shutil
import sys
import threading
from importlib.machinery import EXTENSION_SUFFIXES

import bcrypt
import popkernel
import pytest
from popkernel.actors.auth import hashing, lanes

LIBXCRYPT = hashing._libxcrypt() if sys.platform == "linux" else None
COMPILER = next(filter(shutil.which, ("cc", "gcc", "clang")), None)
REAL = lanes._load()
BUILT = next((p for d in popkernel.__path__ for s in EXTENSION_SUFFIXES if os.path.exists(p := os.path.join(d, f"_lanes{s}"))), "")
PAIR = lanes.pairs(hashing.checker())
# With a compiler the library has to be there (`make dev` builds it), so that nothing is skipped in silence where it can be tested.
wants_lanes = pytest.mark.skipif(REAL is None and COMPILER is None, reason="the second lane was not built: no C compiler")


def without_words(call):
    """pytest's faulthandler would tell of a child that ends as it should."""

    def quiet(path):
        enabled = faulthandler.is_enabled()
        faulthandler.disable()
        try:
            return call(path)
        finally:
            if enabled:
                faulthandler.enable()

    return quiet


def hashed(secret, cost=4, prefix=b"$2b$"):
    return prefix + bcrypt.hashpw(secret, bcrypt.gensalt(cost))[4:]


@wants_lanes
def test_it_is_there_and_is_taken():
    assert REAL is not None and PAIR is not None


@wants_lanes
def test_it_agrees_with_the_package_on_any_octets_in_both_lanes():
    rng = random.Random(8)
    secrets = [bytes(rng.randrange(1, 256) for _ in range(n)) for n in range(73)]
    secrets += [b"\xff\xff\xa3", b"\xff\xa334\xff\xff\xff\xa3345", b"\xa3", b"1\xa3345", b"\xff" * 72, "geheim\u00e4\u20ac".encode()]
    others = rng.sample(secrets, len(secrets))
    for turn, (a, b) in enumerate(zip(secrets, others, strict=True)):
        cost = (4, 4, 4, 5, 6)[turn % 5]
        for_a, for_b = hashed(a, cost, rng.choice((b"$2a$", b"$2b$", b"$2y$"))), hashed(b, cost, rng.choice((b"$2a$", b"$2b$", b"$2y$")))
        assert PAIR((a, for_a), (b, for_b)) == (True, True)
        wrong = (a[:-1] + bytes([a[-1] % 255 + 1]) if a else b"x", for_a), (b[:-1] if b else b"\xff", for_b)
        assert PAIR(wrong[0], (b, for_b)) == (False, True)
        assert PAIR((a, for_a), wrong[1]) == (True, False)
    assert PAIR(*wrong) == (False, False)


@wants_lanes
def test_one_password_for_two_hashes_and_two_for_one():
    one, other = hashed(b"secret"), hashed(b"secret")
    assert PAIR((b"secret", one), (b"secret", other)) == (True, True)
    assert PAIR((b"secret", one), (b"Secret", one)) == (True, False)


@wants_lanes
def test_a_hash_that_only_looks_right_fits_no_password_and_takes_no_other_along():
    good = hashed(b"secret")
    spare = [good[:28] + bytes([good[28] + 1]) + good[29:], good[:59] + bytes([good[59] + 1])]  # bits that mean nothing, set
    bad = [*spare, good[:10] + b"!" + good[11:], good[:10] + b"+" + good[11:], good[:10] + b"=" + good[11:], good[:10] + b"\xff" + good[11:],
           good[:40] + b"!" + good[41:], good[:6] + b"." + good[7:], good[:-1], good + b".", good[:59] + b"\0", good[:20], b"$2b$04$", b"$2b$04"]
    for one in bad:
        assert PAIR((b"secret", one), (b"secret", good)) == (False, True), one
        assert PAIR((b"secret", good), (b"secret", one)) == (True, False), one
    bad_costs = [b"$2b$%b" % cost + good[6:] for cost in (b"03", b"00", b"32", b"99", b"-4", b" 4", b"4$", b"\xb2\xb2")] + [b"", b"*0"]
    assert {PAIR((b"secret", one), (b"secret", one)) for one in bad_costs} == {(False, False)}
    if LIBXCRYPT is not None:
        assert not any(LIBXCRYPT(b"secret", one) for one in bad + bad_costs)


@wants_lanes
def test_two_costs_are_refused_without_a_word_of_the_passwords():
    with pytest.raises(ValueError, match="one cost") as caught:
        PAIR((b"secret", hashed(b"secret", 4)), (b"geheim", hashed(b"geheim", 5)))
    assert "secret" not in str(caught.value) and "geheim" not in str(caught.value)


@wants_lanes
def test_threads_do_not_mix_their_passwords_up():
    hashes = [hashed(b"secret%d" % n) for n in range(8)]
    wrong = []

    def check(n):
        for turn in range(30):
            k = (n + turn) % 8
            right, other = (b"secret%d" % k, hashes[k]), (b"secret%d" % k, hashes[k - 1])
            if PAIR(right, other) != (True, False) or PAIR(other, right) != (False, True):
                wrong.append((n, turn))

    threads = [threading.Thread(target=check, args=(n,)) for n in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert not wrong


@wants_lanes
def test_the_c_code_refuses_a_cost_that_bcrypt_has_not():
    out = ctypes.create_string_buffer(48)
    assert [REAL(bytes(4168), bytes(144), bytes(32), cost, out) for cost in (0, 3, 32, 2**31)] == [-1] * 4
    assert out.raw == bytes(48)


def lane_that_errs(lane):
    def errs(initial, keys, salts, cost, out):
        REAL(initial, keys, salts, cost, out)
        out[24 * lane] = bytes([out[24 * lane][0] ^ 1])
        return 0
    return errs


def same_key_in_both(initial, keys, salts, cost, out):
    return REAL(initial, keys[:72] * 2, salts, cost, out)


def same_salt_in_both(initial, keys, salts, cost, out):
    return REAL(initial, keys, salts[:16] * 2, cost, out)


def blind_for_the_last_octet(initial, keys, salts, cost, out):
    return REAL(initial, keys[:71] + b"\0" + keys[72:143] + b"\0", salts, cost, out)


def seven_bits(initial, keys, salts, cost, out):
    return REAL(initial, bytes(octet & 127 for octet in keys), salts, cost, out)


@wants_lanes
@pytest.mark.parametrize("library", [
    lane_that_errs(0), lane_that_errs(1), same_key_in_both, same_salt_in_both, blind_for_the_last_octet, seven_bits, lambda *_: -1, lambda *_: 0,
], ids=["left", "right", "key", "salt", "last", "sevenbits", "refuses", "nothing"])
def test_one_that_answers_wrongly_is_not_taken(monkeypatch, library):
    monkeypatch.setattr(lanes, "_load", lambda: library)
    assert lanes.pairs(hashing.checker()) is None


@wants_lanes
def test_one_that_refuses_later_gives_no_answer(monkeypatch):
    monkeypatch.setattr(lanes, "_load", lambda: lambda *asked: REAL(*asked) if asked[3] == 4 else -1)
    pair = lanes.pairs(hashing.checker())
    with pytest.raises(ValueError, match="refused"):
        pair((b"secret", hashed(b"secret", 5)), (b"secret", hashed(b"secret", 5)))


@wants_lanes
def test_wrong_digits_of_pi_are_not_taken(monkeypatch):
    right = lanes._pi(4168)
    monkeypatch.setattr(lanes, "_pi", lambda octets: right[:-1] + bytes([right[-1] ^ 1]))
    assert lanes.pairs(hashing.checker()) is None


@wants_lanes
def test_one_that_is_not_of_the_checks_mind_is_not_taken():
    assert lanes.pairs(lambda *_: False) is None


def refuses(*_):
    raise ValueError


@wants_lanes
def test_a_check_that_fails_leaves_no_pair_check():
    assert lanes.pairs(refuses) is None


@pytest.fixture
def package(tmp_path, monkeypatch):
    monkeypatch.setattr(popkernel, "__path__", [str(tmp_path)])
    return tmp_path


def test_none_is_built(package):
    assert lanes._load() is None and lanes.pairs(hashing.checker()) is None


@pytest.mark.parametrize("octets", [b"", b"\x7fELF and no more"])
def test_what_is_no_library(package, octets):
    (package / f"_lanes{EXTENSION_SUFFIXES[0]}").write_bytes(octets)
    assert lanes._load() is None and lanes.pairs(hashing.checker()) is None


def test_another_library_of_that_name(package):
    if not os.path.isfile(getattr(_ctypes, "__file__", "")):
        pytest.skip("this Python has ctypes built in: no library to take in its place")
    shutil.copy(_ctypes.__file__, package / f"_lanes{EXTENSION_SUFFIXES[0]}")
    assert lanes._load() is None and lanes.pairs(hashing.checker()) is None


@wants_lanes
def test_one_that_was_cut_short_ends_nobody(package, monkeypatch):
    """Some lengths can't be loaded, and some end who tries (SIGBUS): a child of ours, and the service goes on."""
    with open(BUILT, "rb") as file:
        whole = file.read()
    monkeypatch.setattr(lanes, "_survived", without_words(lanes._survived))
    for octets in range(1024, min(len(whole), 16384), 1024):
        (package / f"_lanes{EXTENSION_SUFFIXES[0]}").write_bytes(whole[:octets])
        lanes._survived(str(package / f"_lanes{EXTENSION_SUFFIXES[0]}"))
    (package / f"_lanes{EXTENSION_SUFFIXES[0]}").write_bytes(whole[:10_000])
    assert lanes._load() is None and lanes.pairs(hashing.checker()) is None


@pytest.mark.parametrize("abi", [lanes._ABI - 1, lanes._ABI, lanes._ABI + 1])
def test_a_stale_library(package, monkeypatch, abi):
    class Library:
        def __init__(self, path):
            assert path == str(package / f"_lanes{EXTENSION_SUFFIXES[-1]}")
            self.popkernel_lanes = lambda *_: 0
            self.popkernel_lanes_abi = lambda: abi

    (package / f"_lanes{EXTENSION_SUFFIXES[-1]}").write_bytes(b"")
    monkeypatch.setattr(ctypes, "CDLL", Library)
    assert (lanes._load() is not None) == (abi == lanes._ABI)


def test_the_digits_of_pi():
    octets = lanes._pi(4168)
    assert len(octets) == 4168
    assert [octets[n:n + 4].hex() for n in (0, 4, 8, 12)] == ["243f6a88", "85a308d3", "13198a2e", "03707344"]
    assert octets[72:76].hex() == "d1310ba6"  # S begins
    assert octets[-4:].hex() == "3ac372e6"  # and ends
    assert octets[:6] == int((math.pi - 3) * 2**48).to_bytes(6, "big")
    assert octets[:1000] == lanes._pi(1000)


def test_a_password_is_cycled_with_its_nul():
    assert lanes._cycled(b"") == bytes(72)
    assert lanes._cycled(b"ab") == b"ab\0" * 24
    assert lanes._cycled(b"x" * 71) == b"x" * 71 + b"\0"
    assert lanes._cycled(b"x" * 72) == b"x" * 72
