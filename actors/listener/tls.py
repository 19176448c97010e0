"""The TLS context: what versions and ciphers, and errors that name the file and the mend."""

import ssl

__all__ = ["TlsError", "context"]

_VERSIONS = {"1.3": ssl.TLSVersion.TLSv1_3, "1.2": ssl.TLSVersion.TLSv1_2}
_CIPHERS_12 = "ECDHE+AESGCM:ECDHE+CHACHA20"  # Mozilla's intermediate list, without what needs finite-field groups


class TlsError(Exception):
    """The certificate or the key can't be used."""


def context(cert: str, key: str, least: str) -> ssl.SSLContext:
    """A server context. `cert`: chain file, `key`: its private key, both PEM; `least`: "1.3" or "1.2"."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.minimum_version = _VERSIONS[least]
    if least != "1.3":
        tls.set_ciphers(_CIPHERS_12)
    tls.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    tls.num_tickets = 1  # one is what a client's next visit needs; each costs the handshake some 20 microseconds
    for path in (cert, key):
        try:
            with open(path, "rb") as file:
                if b"-----BEGIN" not in file.read(1 << 20):
                    raise TlsError(f"{path}: holds no PEM block; give a PEM file")
        except OSError as error:
            raise TlsError(f"{path}: {error.strerror}; let it be there, readable by the one who starts the service") from None
    try:
        tls.load_cert_chain(cert, key, password=_no_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise TlsError(f"{key}: is not the key of the certificate in {cert}; give the pair that belongs together") from None
        what = (error.reason or "not usable").replace("_", " ").lower()
        raise TlsError(f"{cert}, {key}: {what}; check both with openssl(1)") from None
    return tls


def _no_password() -> str:
    raise TlsError("the private key is encrypted; give one without a pass phrase")
