"""Say in plain words why a client cannot log in, and what would let it. Pure.

For the log's events tls.failed and client.failed: whoever reads them has the client's user on the telephone.
"""

from popkernel.proto.tls_hello import HANDSHAKE, offered_version
from popkernel.proto.tls_versions import tls_name

__all__ = [
    "KNOWN_MECHANISMS",
    "NO_TLS",
    "SILENT_SECONDS",
    "TLS_ON_PLAIN",
    "handshake_fault",
    "not_offered",
    "silent_fault",
]

SILENT_SECONDS = 5.0  # a client of a TLS port that sends nothing for so long expects the server to begin

NO_TLS = "the client logs in without TLS: set it to STARTTLS; allow_plaintext would let it in without"
TLS_ON_PLAIN = (
    "the client begins with TLS on a port for STLS: set it to STARTTLS, or to a port of `listen` (pop3s, 995)"
)
_PLAIN_ON_TLS = (
    "on a port for TLS: set it to SSL/TLS, or to STARTTLS on a port of `listen_starttls` (pop3, 110)"
)
_VERBS = (b"CAPA", b"USER", b"AUTH", b"APOP", b"STLS", b"QUIT", b"NOOP")
_HTTP = (b"GET ", b"HEAD", b"POST", b"OPTI", b"PRI ", b"CONN", b"PUT ")
# OpenSSL's reasons, in lower case, with words for those whose cause is known
_WORDS = {
    "no shared cipher": "the client offers no cipher that is served: ECDHE with AES-GCM or ChaCha20",
    "no suitable key share": "the client offers no group for the key exchange that the server has",
    "no shared group": "the client offers no group for the key exchange that the server has",
    "no suitable signature algorithm": "the client offers no signature that the certificate's key can make",
    "inappropriate fallback": "the client tried again with an older TLS version than both have",
    "tlsv1 alert protocol version": "the client refuses the TLS version that the server chose",
}
# alerts by which a client refuses a certificate, RFC 8446 section 6.2
_UNTRUSTED = (
    "unknown ca",
    "certificate unknown",
    "bad certificate",
    "certificate expired",
    "unsupported certificate",
    "certificate revoked",
    "no certificate",
)
# those that mail programs ask for; most are in IANA's registry of SASL mechanisms
KNOWN_MECHANISMS = frozenset(
    [
        "PLAIN",
        "LOGIN",
        "CRAM-MD5",
        "DIGEST-MD5",
        "NTLM",
        "GSSAPI",
        "GSS-SPNEGO",
        "KERBEROS_V4",
        "EXTERNAL",
        "ANONYMOUS",
        "OTP",
        "SKEY",
        "SECURID",
        "XOAUTH",
        "XOAUTH2",
        "OAUTHBEARER",
        "SCRAM-SHA-1",
        "SCRAM-SHA-1-PLUS",
        "SCRAM-SHA-256",
        "SCRAM-SHA-256-PLUS",
        "SCRAM-SHA-512",
        "SCRAM-SHA-512-PLUS",
    ]
)
_CERTIFICATE = "is the chain in `cert` whole, not expired, of a CA that it knows, for the name that it uses?"


def handshake_fault(reason: str, head: bytes, least: int) -> str:
    """Return why a handshake failed.

    Args:
        reason: OpenSSL's, in lower case with blanks, or "connection lost".
        head: the first octets of the client, empty if there were none.
        least: the lowest version that is served, as in tls_versions.py.

    """
    if not head:
        return ""
    if head[0] != HANDSHAKE:
        return _no_hello(head)
    offered = offered_version(head)
    if offered and offered < least and "alert" not in reason:
        return _too_old(offered, least)
    for alert in _UNTRUSTED:
        if alert in reason and "alert" in reason:
            return f"the client refuses the certificate (alert {alert!r}): {_CERTIFICATE}"
    if reason == "connection lost" or "eof" in reason:
        return f"the client left during the handshake, perhaps because of the certificate: {_CERTIFICATE}"
    return _WORDS.get(reason, reason)


def _too_old(offered: int, least: int) -> str:
    said = f"the client offers TLS {tls_name(offered)}; tls_min is {tls_name(least)}"
    if offered < 12:
        may = "and may be 1.2" if least > 12 else "the lowest that it may be"
        return f"{said}, {may}: the client needs a newer program or system"
    return f'{said}: tls_min = "{tls_name(offered)}" would let it in'


def _no_hello(head: bytes) -> str:
    word = head[:4].upper()
    if word in _VERBS:
        return f"the client speaks POP3 without TLS {_PLAIN_ON_TLS}"
    if word in _HTTP:
        return "the client speaks HTTP"
    if head[0] & 0x80 and head[2:3] == b"\1":
        return "the client offers SSL 2, which no setting allows"
    return "the client's first octets are no TLS"


def silent_fault(seconds: float) -> str:
    """Return why a client that sent nothing to a TLS port failed.

    Empty if it left soon, as checks and scans do.
    """
    if seconds < SILENT_SECONDS:
        return ""
    return f"the client sends nothing: it may wait for a greeting without TLS {_PLAIN_ON_TLS}"


def not_offered(command: str, mechanism: str = "") -> str:
    """Return why a client failed that asked for a mechanism or command which this server does not have.

    Only a known mechanism is named: another word may be a password.
    """
    if mechanism:
        known = mechanism in KNOWN_MECHANISMS
        command = f"{command} {mechanism}" if known else f"{command} with an unknown mechanism"
    return f"the client asks for {command}, which is not offered: set it to a normal password (PLAIN)"
