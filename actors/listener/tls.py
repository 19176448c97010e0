"""The TLS context: versions, ciphers, one certificate for each name a client may ask for, and errors that name the file and the mend.

What is decided here, besides what configuration decides: ECDHE and AEAD only; the server's order; no renegotiation, no compression, no
early data, and no session tickets in TLS 1.3, where they spare no round trip: measured, one costs more processor time than resuming saves.
"""

import ssl
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from popkernel.kernel.regular import read_regular
from popkernel.proto.certificate import Facts, facts

__all__ = ["Served", "TlsError", "context", "pick", "serve"]

_VERSIONS = {"1.3": ssl.TLSVersion.TLSv1_3, "1.2": ssl.TLSVersion.TLSv1_2}
_CIPHERS_12 = "ECDHE+AESGCM:ECDHE+CHACHA20"  # Mozilla's intermediate list, without what needs finite-field groups
_MOST_PEM = 1 << 20  # octets
_MOST_PHRASE = 1024  # octets; OpenSSL's PEM_BUFSIZE


class TlsError(Exception):
    """The certificate or the key can't be used."""


class Served(NamedTuple):
    """What a listener serves with."""

    context: ssl.SSLContext
    warnings: list[str]
    """What it serves in spite of, each with file and mend."""


def serve(pairs: Sequence[tuple[str, str]], least: str, phrase: bytes | str = b"", now: float | None = None) -> Served:
    """Read every certificate and key.

    Args:
        pairs: chain file and key file, PEM; the first is for clients that name no host, or one that no certificate is for.
        least: "1.3" or "1.2".
        phrase: pass phrase of every key that has one, or the path of a file whose first line it is; empty: none is known.
        now: seconds since the epoch, for tests; None asks the clock.

    Raises:
        TlsError: one of them can't be used, or is not valid yet.

    """
    moment = time.strftime("%Y%m%d%H%M%S", time.gmtime(now))
    warnings: list[str] = []
    by_name: dict[str, ssl.SSLContext] = {}
    file_of: dict[str, str] = {}
    contexts = []
    for cert, key in pairs:
        known = _facts(cert)
        _check_time(cert, known, moment, warnings)
        one = _load(cert, key, least, phrase)
        contexts.append(one)
        if not known.names and len(pairs) > 1:
            warnings.append(f"{cert}: names no host (subjectAltName), so no client can ask for it; get one that does, or leave it out")
        for name in known.names:
            by_name.setdefault(name, one)
            if file_of.setdefault(name, cert) != cert:
                warnings.append(f"{cert}: is for {name} as {file_of[name]} is, which is used; leave one of the two out")
    first = contexts[0]
    if len(contexts) > 1:

        def choose(connection: Any, name: str | None, current: ssl.SSLContext) -> None:
            wanted = pick(name, by_name, first)
            if wanted is not current:
                connection.context = wanted

        first.sni_callback = choose
    return Served(first, warnings)


def context(cert: str, key: str, least: str) -> ssl.SSLContext:
    """A server context of one certificate, as `serve` makes it."""
    return serve([(cert, key)], least).context


def pick(name: str | None, by_name: Mapping[str, ssl.SSLContext], default: ssl.SSLContext) -> ssl.SSLContext:
    """The context for the name a client asks for: one that has it in full, then a wildcard for its first label (RFC 9525 section 6.3)."""
    host = (name or "").lower()
    found = by_name.get(host)
    if found is None:
        _, dot, parent = host.partition(".")
        found = by_name.get(f"*.{parent}") if dot else None
    return found or default


def _facts(cert: str) -> Facts:
    try:
        return facts(_pem(cert))
    except ValueError as error:
        raise TlsError(f"{cert}: {error}; give the chain, the server's own certificate first") from None


def _pem(path: str) -> bytes:
    try:
        data = read_regular(path, _MOST_PEM)
    except OSError as error:
        raise TlsError(f"{path}: {error.strerror}; let it be there, readable by the one who starts the service") from None
    if b"-----BEGIN" not in data:
        raise TlsError(f"{path}: holds no PEM block; give a PEM file")
    return data


def _check_time(cert: str, known: Facts, moment: str, warnings: list[str]) -> None:
    """One that has ended is served all the same: some clients do not mind, and none is better off with no server."""
    if known.starts > moment:
        raise TlsError(f"{cert}: the certificate starts on {_day(known.starts)} only; set this machine's clock, or wait")
    if known.ends <= moment:
        warnings.append(f"{cert}: the certificate ended on {_day(known.ends)}; renew it, then `popkernel reload`")


def _day(digits: str) -> str:
    return f"{digits[:4]}-{digits[4:6]}-{digits[6:8]} {digits[8:10]}:{digits[10:12]} UTC"


def _load(cert: str, key: str, least: str, phrase: bytes | str) -> ssl.SSLContext:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.minimum_version = _VERSIONS[least]
    if least != "1.3":
        tls.set_ciphers(_CIPHERS_12)
    tls.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE | ssl.OP_NO_COMPRESSION
    tls.num_tickets = 0
    _pem(key)
    used = []

    def secret() -> bytes:
        used.append(True)
        return _phrase(phrase, key)

    try:
        tls.load_cert_chain(cert, key, password=secret)
    except ssl.SSLError as error:
        raise TlsError(_refusal(error, cert, key, opened=not used)) from None
    return tls


def _refusal(error: ssl.SSLError, cert: str, key: str, *, opened: bool) -> str:
    """What OpenSSL has against them. Of a phrase that is wrong it says a different thing for each cipher and version, or none."""
    reason = error.reason or ""
    if reason == "KEY_VALUES_MISMATCH":
        return f"{key}: is not the key of the certificate in {cert}; give the pair that belongs together"
    if not opened:
        return f"{key}: the pass phrase does not open this private key; give the one it was encrypted with"
    what = (reason or "not usable").replace("_", " ").lower()
    return f"{cert}, {key}: {what}; check both with openssl(1)"


def _phrase(phrase: bytes | str, key: str) -> bytes:
    """Asked for by OpenSSL, and only for a key that has one."""
    if isinstance(phrase, bytes):
        found = phrase
    else:
        try:
            found = read_regular(phrase, _MOST_PEM).partition(b"\n")[0].removesuffix(b"\r")
        except OSError as error:
            raise TlsError(f"{phrase}: {error.strerror}; write the pass phrase of {key} there, mode 0600") from None
        if not found:
            raise TlsError(f"{phrase}: its first line is empty; write the pass phrase of {key} there")
    if not found:
        mend = "start at a terminal, or name a file that holds it with key_passphrase_file"
        raise TlsError(f"{key}: the private key has a pass phrase; {mend}")
    if len(found) > _MOST_PHRASE:
        raise TlsError(f"{key}: a pass phrase of more than {_MOST_PHRASE} octets; encrypt the key with a shorter one")
    return found
