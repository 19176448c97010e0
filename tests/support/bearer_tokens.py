"""Provide a token issuer for tests: its keys as a JWKS file, signed tokens and SASL responses."""

import base64
import json
import time

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa

ISSUER = "https://issuer"
SCOPE = "mail"
EC, RSA = ec.generate_private_key(ec.SECP256R1()), rsa.generate_private_key(65537, 2048)


def key_set(private=EC, kid="one"):
    algorithm = jwt.algorithms.ECAlgorithm if private is EC else jwt.algorithms.RSAAlgorithm
    return json.dumps({"keys": [json.loads(algorithm.to_jwk(private.public_key())) | {"kid": kid}]}).encode()


def token(private=EC, kid="one", **claims):
    # A token made at import must outlive the whole suite.
    data = {
        "iss": ISSUER,
        "aud": "pop3",
        "exp": time.time() + 86400,
        "email": "alice",
        "scope": SCOPE,
    } | claims
    return jwt.encode(
        data, private, algorithm="ES256" if private is EC else "PS256", headers={"kid": kid}
    ).encode()


def settings(path):
    """Return the configuration keys; `path` is the key set's."""
    return {"oauth_issuer": ISSUER, "oauth_audience": "pop3", "oauth_jwks": str(path), "oauth_scope": SCOPE}


def xoauth2(secret, user="alice"):
    return base64.b64encode(b"user=%b\1auth=Bearer %b\1\1" % (user.encode(), secret))


def oauthbearer(secret, user="alice"):
    return base64.b64encode(
        b"n,a=%b,\1host=localhost\1port=995\1auth=Bearer %b\1\1" % (user.encode(), secret)
    )


RESPONSES = {b"XOAUTH2": xoauth2, b"OAUTHBEARER": oauthbearer}
