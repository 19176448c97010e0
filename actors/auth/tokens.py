"""Check bearer tokens: JWTs (RFC 7519, 9068) that a configured issuer signed, with its keys from a file.

The file is a JWKS (RFC 7517). There is no network access: the administrator fetches the issuer's keys into
the file, and a reload reads them. PyJWT checks signatures, issuer and audience. This module decides which
keys and algorithms are accepted, at what times, and which user a token names. Only asymmetric algorithms:
with a shared secret every server that checks tokens could make them.

Loaded only if tokens are configured: cryptography takes several megabytes.
"""

import json
import re
import time
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jwt
from popkernel.proto.files.tables import Finding

__all__ = ["MOST_OCTETS", "Tokens", "parse_jwks", "warm"]

_ALGORITHMS = {("RSA", None): ("RS256", "PS256"), ("EC", "P-256"): ("ES256",), ("OKP", "Ed25519"): ("EdDSA",)}
_LEEWAY = 60  # seconds by which the clocks of two machines may differ
MOST_OCTETS = 1 << 20  # of a key set; a reader reads at most one octet more
_MOST_KEYS = 64
_MOST_TRIED = 8  # keys that a token without `kid` is checked with
_LEAST_RSA = 2048  # bits; NIST SP 800-131A
# RFC 7515 section 3.1: base64url without padding
_JWS = re.compile(rb"([A-Za-z0-9_-]+)\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_FETCH = "fetch the issuer's key set (its jwks_uri) anew"


class Key(NamedTuple):
    """A public key bound to one algorithm. `kid` is None if the file gives none."""

    kid: str | None
    algorithm: str
    key: jwt.PyJWK


def parse_jwks(data: bytes, path: str) -> tuple[list[Key], list[Finding]]:
    """Return the keys of a file that can check tokens, and the findings about it.

    Never raises. A finding about a key tells only its number.

    Keys for encryption, and of kinds that none of RS256, PS256, ES256 and EdDSA uses, are ignored: issuers
    list them too.
    """
    if len(data) > MOST_OCTETS:
        return [], [Finding(path, 0, f"the key set has over {MOST_OCTETS} octets", "is it the right file?")]
    try:
        whole = json.loads(data)
    except (ValueError, RecursionError):
        return [], [Finding(path, 0, "the key set is not JSON", _FETCH)]
    rows = whole.get("keys") if isinstance(whole, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows) or len(rows) > _MOST_KEYS:
        return [], [
            Finding(path, 0, f'the key set is not {{"keys": [...]}} of at most {_MOST_KEYS} keys', _FETCH)
        ]
    keys: list[Key] = []
    findings: list[Finding] = []
    for number, row in enumerate(rows, 1):
        what = _take(row, keys)
        if what:
            findings.append(
                Finding(path, 0, f"key {number} {what}", "remove it, or have the issuer give another")
            )
    if not keys and not findings:
        what = "no key for RS256, PS256, ES256 or EdDSA is in the key set"
        findings.append(Finding(path, 0, what, _FETCH))
    return keys, findings


def _take(row: dict[str, Any], keys: list[Key]) -> str:
    """Append a key to `keys`, once for each algorithm it may be used with.

    Returns what is wrong with it, or "".
    """
    kty, crv, kid, alg = (row.get(name) for name in ("kty", "crv", "kid", "alg"))
    if not all(value is None or isinstance(value, str) for value in (kty, crv, kid, alg)):
        return "has a kty, crv, kid or alg that is not a text"
    if kty == "oct":
        return "is a shared secret, which anybody who checks tokens could make them with"
    if "d" in row:
        return "is a private key: only the issuer may have that"
    operations = row.get("key_ops")
    if row.get("use", "sig") != "sig" or (isinstance(operations, list) and "verify" not in operations):
        return ""
    for algorithm in _ALGORITHMS.get((str(kty), crv if kty != "RSA" else None), ()):
        if alg is not None and alg != algorithm:
            continue
        try:
            key = jwt.PyJWK(row, algorithm=algorithm)
        except (jwt.PyJWTError, ValueError, TypeError, KeyError):
            return "is damaged"
        if kty == "RSA" and key.key.key_size < _LEAST_RSA:
            return f"is an RSA key of {key.key.key_size} bits, fewer than {_LEAST_RSA}"
        keys.append(Key(kid, algorithm, key))
    return ""


class Tokens:
    """Find the user that a token names.

    `claim` names the user; `scope`, if not empty, must be granted; `clock` gives seconds since 1970.
    """

    def __init__(
        self,
        keys: Collection[Key],
        issuer: str,
        audience: str,
        claim: str,
        scope: str = "",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._keys = keys
        self._issuer = issuer
        self._audience = audience
        self._claim = claim
        self._scope = scope
        self._clock = clock

    def user_of(self, token: bytes) -> str | None:
        """Return the user that a valid token names; None for any other token.

        Never raises, whatever the octets are.
        """
        try:
            return self._user_of(token)
        except (jwt.PyJWTError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
            return None  # the client is not told the reason

    def _user_of(self, token: bytes) -> str | None:
        shape = _JWS.fullmatch(token)
        if shape is None:
            return None
        header = jwt.get_unverified_header(token)
        # `crit` lists extensions that must be understood; no access token needs it, `zip` or `b64`. The key
        # never comes from the token (`jwk`, `jku`, `x5u`).
        if {"crit", "zip", "b64"} & set(header):
            return None
        kid, algorithm = header.get("kid"), header.get("alg")
        fitting = [key for key in self._keys if key.algorithm == algorithm and kid in (None, key.kid)]
        for key in fitting[:_MOST_TRIED]:
            try:
                claims = self._claims(token, key)
            except jwt.InvalidSignatureError:
                continue
            return self._named(claims)
        return None

    def _claims(self, token: bytes, key: Key) -> dict[str, Any]:
        """Return the claims of a token that this key signed and that is for this audience."""
        claims: dict[str, Any] = jwt.decode(
            token,
            key.key,
            algorithms=[key.algorithm],
            issuer=self._issuer,
            audience=self._audience,
            options={
                "require": ["exp", "iss", "aud"],
                "verify_exp": False,
                "verify_nbf": False,
                "verify_iat": False,
            },
        )
        return claims

    def _named(self, claims: dict[str, Any]) -> str | None:
        """Return the user if the token is valid now (RFC 7519 section 4.1) and has the scope."""
        now = self._clock()
        expires, begins = claims["exp"], claims.get("nbf", 0)
        if not all(type(value) in (int, float) for value in (expires, begins)):
            return None
        if not begins - _LEEWAY <= now < expires + _LEEWAY:
            return None
        if self._scope and self._scope not in _scopes(claims):
            return None
        # If an issuer lets users enter any mail address, it marks it unverified: then it proves nothing.
        if self._claim == "email" and claims.get("email_verified", True) is not True:
            return None
        user = claims.get(self._claim)
        return user if isinstance(user, str) and user else None


def _scopes(claims: dict[str, Any]) -> set[str]:
    """Return the scopes granted: `scope`, a text (RFC 8693 section 4.2), or `scp`, a text or a list."""
    found: set[str] = set()
    for value in (claims.get("scope"), claims.get("scp")):
        if isinstance(value, str):
            found |= set(value.split(" "))
        elif isinstance(value, list):
            found |= {item for item in value if isinstance(item, str)}
    return found


def warm(now: float) -> None:
    """Check a token made here, so that everything checking needs is loaded before the sandbox is locked."""
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

    private = generate_private_key(SECP256R1())
    row = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(private.public_key()))
    claims = {
        "iss": "i",
        "aud": ["a"],
        "exp": int(now) + 60,
        "nbf": int(now),
        "email": "u",
        "scope": "s",
        "sub": "u",
        "jti": "j",
    }
    token = jwt.encode(claims, private, algorithm="ES256").encode()
    keys, _ = parse_jwks(json.dumps({"keys": [row]}).encode(), "")
    if Tokens(keys, "i", "a", "email", "s", lambda: now).user_of(token) != "u":
        raise RuntimeError("PyJWT does not take a token that it has made itself")
