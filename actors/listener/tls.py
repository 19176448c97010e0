"""The TLS context: versions, ciphers, one certificate for each name a client may ask for, and errors that name the file and the mend.

What is decided here, besides what configuration decides: ECDHE and AEAD only; the server's order; no renegotiation, no compression, no
early data, and no session tickets in TLS 1.3, where they spare no round trip: measured, one costs more processor time than resuming saves.
"""

import _ssl
import ctypes
import ssl
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from popkernel.actors.listener.certificates import Looked, Phrase, advice, look, same_names

__all__ = ["Served", "TlsError", "context", "examine", "forget_errors", "pick", "serve"]

_VERSIONS = {"1.3": ssl.TLSVersion.TLSv1_3, "1.2": ssl.TLSVersion.TLSv1_2}
_CIPHERS_12 = "ECDHE+AESGCM:ECDHE+CHACHA20"  # Mozilla's intermediate list, without what needs finite-field groups

# By the module that is linked with it, so that it is the very library in use.
_clear = getattr(ctypes.CDLL(getattr(_ssl, "__file__", None)), "ERR_clear_error", lambda: None)


def forget_errors() -> None:
    """Empty OpenSSL's queue of errors, which is the thread's.

    CPython 3.13 with OpenSSL 3.5 leaves an error there when a client is gone in the middle of a write or of a close_notify, and takes it
    for that of the next client it reads from, who would be cut off. (A handshake alone empties the queue before it begins.)
    """
    _clear()


class TlsError(Exception):
    """The certificate or the key can't be used."""


class Served(NamedTuple):
    """What a listener serves with."""

    context: ssl.SSLContext
    warnings: list[str]
    """What it serves in spite of, each with file and mend."""


def serve(pairs: Sequence[tuple[str, str]], least: str, phrase: Phrase = b"", now: float | None = None) -> Served:
    """Read every certificate and key.

    Args:
        pairs: chain file and key file, PEM; the first is for clients that name no host, or one that no certificate is for.
        least: "1.3" or "1.2".
        phrase: pass phrase of every key that has one, see Phrase.
        now: seconds since the epoch, for tests; None asks the clock.

    Raises:
        TlsError: one of them can't be used; all that is wrong, a line for each.

    """
    looked = examine(pairs, least, phrase, now)
    errors = [finding for one in looked for finding in one.errors]
    if errors:
        raise TlsError("\n".join(map(str, errors)))
    contexts = [one.context for one in looked if one.context is not None]
    if len(contexts) != len(pairs):
        raise TlsError("no pass phrase is known")
    by_name: dict[str, ssl.SSLContext] = {}
    for one, context in zip(looked, contexts, strict=True):
        for name in one.chain[0].facts.names:
            by_name.setdefault(name, context)
    found = [finding for one in looked for finding in (*one.doubts, *one.warnings)]
    found += same_names([(cert, one.chain) for (cert, _), one in zip(pairs, looked, strict=True)])
    warnings = [str(finding) for finding in dict.fromkeys(found)]
    first = contexts[0]
    if len(contexts) > 1:

        def choose(connection: Any, name: str | None, current: ssl.SSLContext) -> None:
            wanted = pick(name, by_name, first)
            if wanted is not current:
                connection.context = wanted

        first.sni_callback = choose
    return Served(first, warnings)


def examine(pairs: Sequence[tuple[str, str]], least: str, phrase: Phrase = b"", now: float | None = None) -> list[Looked]:
    """What `serve` finds of each pair, errors and all: `popkernel check` says the same. Arguments as there."""
    now = time.time() if now is None else now
    moment = time.strftime("%Y%m%d%H%M%S", time.gmtime(now))
    tried: dict[bytes, str] = {}
    found = [look(cert, key, phrase, moment, lambda: _fresh(least), tried) for cert, key in pairs]
    for (cert, _), looked in zip(pairs, found, strict=True):
        looked.warnings.extend(advice(looked.chain, cert, now))
    return found


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


def _fresh(least: str) -> ssl.SSLContext:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.minimum_version = _VERSIONS[least]
    if least != "1.3":
        tls.set_ciphers(_CIPHERS_12)
    tls.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE | ssl.OP_NO_COMPRESSION
    tls.num_tickets = 0
    return tls
