"""Test tokens and key sets: what is accepted, every refusal, no error, and no key or token shown."""

import base64
import hashlib
import hmac
import json

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st
from popkernel.actors.auth import tokens
from popkernel.actors.auth.tokens import Tokens, parse_jwks

NOW = 1_800_000_000
RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()
OTHER = ec.generate_private_key(ec.SECP256R1())
ALGORITHMS = {
    "RS256": (RSA, jwt.algorithms.RSAAlgorithm),
    "PS256": (RSA, jwt.algorithms.RSAAlgorithm),
    "ES256": (EC, jwt.algorithms.ECAlgorithm),
    "EdDSA": (ED, jwt.algorithms.OKPAlgorithm),
}
CLAIMS = {
    "iss": "https://issuer",
    "aud": "pop3",
    "exp": NOW + 300,
    "nbf": NOW - 5,
    "email": "alice",
    "sub": "1234",
    "scope": "openid mail.read",
}


def row(private, algorithm, **more):
    return json.loads(algorithm.to_jwk(private.public_key())) | more


def key_set(*rows):
    return json.dumps({"keys": list(rows)}).encode()


ROWS = [
    row(RSA, jwt.algorithms.RSAAlgorithm, kid="r"),
    row(EC, jwt.algorithms.ECAlgorithm, kid="e", alg="ES256"),
    row(ED, jwt.algorithms.OKPAlgorithm, kid="d"),
]
KEYS, FINDINGS = parse_jwks(key_set(*ROWS), "jwks")


def checker(keys=KEYS, **settings):
    made = {
        "issuer": "https://issuer",
        "audience": "pop3",
        "claim": "email",
        "scope": "",
        "clock": lambda: NOW,
    } | settings
    return Tokens(keys, **made)


def signed(algorithm="ES256", private=None, headers=None, without=(), **claims):
    data = {name: value for name, value in (CLAIMS | claims).items() if name not in without}
    return (
        jwt.PyJWS()
        .encode(
            json.dumps(data).encode(),
            private or ALGORITHMS[algorithm][0],
            algorithm=algorithm,
            headers=headers,
        )
        .encode()
    )


def b64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("with_kid", [True, False])
def test_good_ones(algorithm, with_kid):
    kid = {"RS256": "r", "PS256": "r", "ES256": "e", "EdDSA": "d"}[algorithm]
    assert not FINDINGS
    assert checker().user_of(signed(algorithm, headers={"kid": kid} if with_kid else None)) == "alice"


@pytest.mark.parametrize(
    "changed",
    [
        {"iss": "https://other"},
        {"iss": ["https://issuer"]},
        {"aud": "imap"},
        {"aud": []},
        {"aud": ["imap", "smtp"]},
        {"exp": NOW - 60},
        {"exp": "soon"},
        {"exp": True},
        {"exp": None},
        {"exp": float("nan")},
        {"nbf": NOW + 61},
        {"nbf": "now"},
        {"email": None},
        {"email": ""},
        {"email": ["alice"]},
        {"email": 7},
        {"email_verified": False},
        {"email_verified": "true"},
        {"sub": 7},
        {"without": ["iss"]},
        {"without": ["aud"]},
        {"without": ["exp"]},
        {"without": ["email"]},
    ],
    ids=str,
)
def test_claims_that_are_not_right(changed):
    assert checker().user_of(signed(**changed)) is None


def test_claims_that_are():
    assert checker().user_of(signed(aud=["imap", "pop3"])) == "alice"
    assert checker().user_of(signed(exp=NOW - 59)) == "alice"  # clocks may differ by a minute
    assert checker().user_of(signed(nbf=NOW + 60)) == "alice"
    assert checker().user_of(signed(without=["nbf"], email_verified=True)) == "alice"
    assert checker(claim="sub").user_of(signed(email_verified=False)) == "1234"
    assert checker(claim="preferred").user_of(signed()) is None


def test_scopes():
    asks = checker(scope="mail.read")
    assert asks.user_of(signed()) == "alice"
    assert asks.user_of(signed(scope="mail.read.all openid")) is None
    assert asks.user_of(signed(without=["scope"])) is None
    assert asks.user_of(signed(without=["scope"], scp=["mail.read"])) == "alice"
    assert asks.user_of(signed(without=["scope"], scp="x mail.read")) == "alice"
    assert asks.user_of(signed(scope=7, scp={"mail.read": 1})) is None


def test_other_keys_and_other_algorithms():
    assert checker().user_of(signed(private=OTHER)) is None
    assert checker().user_of(signed(private=OTHER, headers={"kid": "e"})) is None
    assert checker().user_of(signed(headers={"kid": "r"})) is None
    assert checker().user_of(signed(headers={"kid": "unknown"})) is None
    assert checker().user_of(signed("RS384", private=RSA)) is None
    assert checker().user_of(signed("RS512", private=RSA, headers={"kid": "r"})) is None


@pytest.mark.parametrize("alg", ["none", "None", "NONE", "", "HS256", None, 7, ["ES256"]])
def test_unsigned_and_signed_with_the_public_key(alg):
    """The two common attacks: no signature, and the public key used as a shared secret."""
    head, body = b64(json.dumps({"alg": alg, "typ": "JWT"}).encode()), b64(json.dumps(CLAIMS).encode())
    for key in (b"", key_set(*ROWS), RSA.public_key().public_bytes(*pem()), json.dumps(ROWS[0]).encode()):
        mark = b64(hmac.digest(key, head + b"." + body, hashlib.sha256))
        for token in (head + b"." + body + b"." + mark, head + b"." + body + b".", head + b"." + body):
            assert checker().user_of(token) is None


def pem():
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return Encoding.PEM, PublicFormat.SubjectPublicKeyInfo


def test_a_key_that_the_token_brings_along():
    brought = row(OTHER, jwt.algorithms.ECAlgorithm)
    for headers in ({"jwk": brought}, {"jku": "https://evil/jwks"}, {"x5u": "file:///etc/passwd"}):
        assert checker().user_of(signed(private=OTHER, headers=headers)) is None


@pytest.mark.parametrize(
    "headers", [{"crit": ["exp"]}, {"zip": "DEF"}, {"b64": True}, {"crit": []}, {"kid": 7}]
)
def test_headers_that_are_not_understood(headers):
    token = signed()
    head = json.loads(base64.urlsafe_b64decode(token.split(b".")[0] + b"=="))
    unsigned = b64(json.dumps(head | headers).encode()) + b"." + token.split(b".")[1]
    signature = jwt.algorithms.ECAlgorithm(jwt.algorithms.ECAlgorithm.SHA256).sign(unsigned, EC)
    assert checker().user_of(unsigned + b"." + b64(signature)) is None


@given(st.binary(max_size=200) | st.text(alphabet="abcXYZ019-_.", max_size=200).map(str.encode))
def test_no_octets_raise(data):
    assert checker().user_of(data) is None


@given(st.integers(0, 10**6), st.binary(min_size=1, max_size=4))
def test_a_token_with_any_octet_changed_is_none(at, octets):
    token = signed()
    at %= len(token)
    changed = token[:at] + octets + token[at + len(octets) :]
    # four bits of the last letter mean nothing
    last = changed[-1:] != token[-1:] and changed[:-1] == token[:-1]
    assert changed == token or last or checker().user_of(changed) is None


def test_deep_and_large_ones():
    for data in (
        b"[" * 6000,
        b'{"a":' * 1000,
        b'{"exp":' + b"9" * 5000 + b"}",
        b'{"alg":"ES256","x":' + b"[" * 5000,
    ):
        for token in (b64(data) + b".e30.AA", signed().split(b".")[0] + b"." + b64(data) + b".AA"):
            assert checker().user_of(token) is None


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "of at most"),
        (b'{"keys": 7}', "of at most"),
        (b'{"keys": ["x"]}', "of at most"),
        (key_set(*[{}] * 65), "of at most"),
        (b'{"keys": []}', "no key for RS256"),
        (key_set({"kty": "oct", "k": "SECRET"}), "key 1 is a shared secret"),
        (key_set(ROWS[0], {"kty": "oct", "k": "SECRET"}), "key 2 is a shared secret"),
        (key_set(ROWS[0] | {"d": "SECRET"}), "key 1 is a private key"),
        (key_set({"kty": "RSA", "n": "SECRET", "e": "AQAB"}), "RSA key of"),
        (key_set({"kty": "RSA", "e": "AQAB"}), "is damaged"),
        (key_set({"kty": "RSA", "n": 7, "e": "AQAB"}), "is damaged"),
        (key_set({"kty": "EC", "crv": "P-256", "x": "SECRET", "y": "SECRET"}), "is damaged"),
        (key_set({"kty": 7}), "not a text"),
        (key_set({"kty": ["RSA"]}), "not a text"),
        (b" " * ((1 << 20) + 1), "octets"),
        (
            key_set(row(rsa.generate_private_key(65537, 1024), jwt.algorithms.RSAAlgorithm)),
            "RSA key of 1024 bits",
        ),
        (
            key_set(row(ec.generate_private_key(ec.SECP384R1()), jwt.algorithms.ECAlgorithm)),
            "no key for RS256",
        ),
        (key_set(ROWS[0] | {"use": "enc"}), "no key for RS256"),
        (key_set(ROWS[0] | {"alg": "RSA-OAEP"}), "no key for RS256"),
        (key_set(ROWS[0] | {"key_ops": ["encrypt"]}), "no key for RS256"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_key_sets_that_are_refused(data, what):
    _, findings = parse_jwks(data, "/etc/jwks")
    assert len(findings) == 1 and what in findings[0].what, findings
    assert findings[0].path == "/etc/jwks" and findings[0].mend
    assert "SECRET" not in str(findings[0])


def test_keys_for_other_things_are_passed_over():
    others = [
        ROWS[0] | {"use": "enc"},
        {"kty": "EC", "crv": "secp256k1"},
        {"kty": "OKP", "crv": "X25519"},
        {"kty": "new"},
        {},
    ]
    keys, findings = parse_jwks(key_set(*others, ROWS[1] | {"use": "sig", "key_ops": ["verify"]}), "jwks")
    assert not findings and [(key.kid, key.algorithm) for key in keys] == [("e", "ES256")]


def test_an_algorithm_in_the_file_binds():
    keys, _ = parse_jwks(key_set(ROWS[0] | {"alg": "PS256"}), "jwks")
    assert checker(keys).user_of(signed("PS256")) == "alice"
    assert checker(keys).user_of(signed("RS256")) is None


def test_the_warming_checks_a_real_token(monkeypatch):
    tokens.warm(1_700_000_000.5)
    monkeypatch.setattr(tokens, "_ALGORITHMS", {})
    with pytest.raises(RuntimeError):
        tokens.warm(1_700_000_000.5)
