"""Make TLS contexts: versions, ciphers, a certificate for each name. Errors name file and mend.

Fixed here, not configurable: only ECDHE and AEAD; the server's order; no renegotiation, compression or early
data. There are no session tickets in TLS 1.3: they save no round trip there, and one was measured to cost
more processor time than resuming saves.
"""

import _ssl
import ctypes
import ssl
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from popkernel.actors.listener.certificates import Inspected, Phrase, advice, inspect, same_names

__all__ = ["Served", "TlsError", "context", "examine", "forget_errors", "pick", "serve"]

_VERSIONS = {"1.3": ssl.TLSVersion.TLSv1_3, "1.2": ssl.TLSVersion.TLSv1_2}
# Mozilla's intermediate list, without ciphers of finite-field groups
_CIPHERS_12 = "ECDHE+AESGCM:ECDHE+CHACHA20"

# Through the module that is linked with it, so that it is the same library.
_clear = getattr(ctypes.CDLL(getattr(_ssl, "__file__", None)), "ERR_clear_error", lambda: None)


def forget_errors() -> None:
    """Empty this thread's error queue of OpenSSL.

    If a client goes away in the middle of a write or a close_notify, CPython 3.13 with OpenSSL 3.5 leaves an
    error there. The next read, of another client, would take it for its own, and that client would be cut
    off. (A handshake empties the queue before it begins.)
    """
    _clear()


class TlsError(Exception):
    """Raised if a certificate or a key can't be used."""


class Served(NamedTuple):
    """The TLS context of a listener, and warnings."""

    context: ssl.SSLContext
    warnings: list[str]
    """Findings that do not keep it from serving, each with file and mend."""


def serve(
    pairs: Sequence[tuple[str, str]], least: str, phrase: Phrase = b"", now: float | None = None
) -> Served:
    """Read every certificate and key.

    Args:
        pairs: chain file and key file, PEM; the first is for clients that name no host, or one that no
            certificate is for.
        least: lowest version, "1.3" or "1.2".
        phrase: pass phrase of every key that has one, see Phrase.
        now: seconds since the epoch, for tests; None: the system clock.

    Raises:
        TlsError: one of them can't be used; lists all faults, one a line.
    """
    inspected = examine(pairs, least, phrase, now)
    errors = [finding for one in inspected for finding in one.errors]
    if errors:
        raise TlsError("\n".join(map(str, errors)))
    contexts = [one.context for one in inspected if one.context is not None]
    if len(contexts) != len(pairs):
        raise TlsError("no pass phrase is known")
    by_name: dict[str, ssl.SSLContext] = {}
    for one, context in zip(inspected, contexts, strict=True):
        for name in one.chain[0].facts.names:
            by_name.setdefault(name, context)
    found = [finding for one in inspected for finding in (*one.doubts, *one.warnings)]
    found += same_names([(cert, one.chain) for (cert, _), one in zip(pairs, inspected, strict=True)])
    warnings = [str(finding) for finding in dict.fromkeys(found)]
    first = contexts[0]
    if len(contexts) > 1:

        def choose(connection: Any, name: str | None, current: ssl.SSLContext) -> None:
            wanted = pick(name, by_name, first)
            if wanted is not current:
                connection.context = wanted

        first.sni_callback = choose
    return Served(first, warnings)


def examine(
    pairs: Sequence[tuple[str, str]], least: str, phrase: Phrase = b"", now: float | None = None
) -> list[Inspected]:
    """Inspect each pair as `serve` does, and return all findings, for `popkernel check` too.

    Arguments as for `serve`.
    """
    now = time.time() if now is None else now
    moment = time.strftime("%Y%m%d%H%M%S", time.gmtime(now))
    tried: dict[bytes, str] = {}
    found = [inspect(cert, key, phrase, moment, lambda: _fresh(least), tried) for cert, key in pairs]
    for (cert, _), inspected in zip(pairs, found, strict=True):
        inspected.warnings.extend(advice(inspected.chain, cert, now))
    return found


def context(cert: str, key: str, least: str) -> ssl.SSLContext:
    """Make a server context of one certificate, as `serve` does."""
    return serve([(cert, key)], least).context


def pick(name: str | None, by_name: Mapping[str, ssl.SSLContext], default: ssl.SSLContext) -> ssl.SSLContext:
    """Return the context for the name that a client asks for.

    A certificate with the full name comes first, then a wildcard for its first label (RFC 9525 section 6.3).
    """
    host = (name or "").lower()
    found = by_name.get(host)
    if found is None:
        _, dot, parent = host.partition(".")
        found = by_name.get(f"*.{parent}") if dot else None
    return found or default


def _fresh(least: str) -> ssl.SSLContext:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.minimum_version = _VERSIONS[least]
    if least != "1.3":
        tls.set_ciphers(_CIPHERS_12)
    tls.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE | ssl.OP_NO_COMPRESSION
    tls.num_tickets = 0
    return tls
