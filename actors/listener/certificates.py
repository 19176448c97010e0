"""Inspect a certificate chain and its key, for the listener and for `popkernel check`.

OpenSSL decides whether they can be served at all. This module explains its errors, and finds what clients
will refuse. It reads the files with the rights of the user who starts the service, before the sandbox is
locked.
"""

import os
import shlex
import ssl
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple, TypeVar

from popkernel.kernel.config.regular_files import UnreadableError, read_named
from popkernel.proto.files.certificates import DamagedError, Link, chain
from popkernel.proto.files.tables import Finding

__all__ = [
    "MOST_PHRASE",
    "SOON_DAYS",
    "Inspected",
    "Phrase",
    "advice",
    "day",
    "inspect",
    "same_names",
    "try_client",
]

Phrase = bytes | str | None
"""The pass phrase (octets), or the path of the file that has it in its first line.

Empty: unknown. None: a person will be asked.
"""

MOST_PHRASE = 1024  # octets; OpenSSL's PEM_BUFSIZE
SOON_DAYS = 21
"""Days before its end at which a certificate is reported.

Certificates of 90 days are commonly renewed 30 days before their end, so at 21 the renewal has failed.
"""
_MOST_PEM = 1 << 20  # octets
_ENCRYPTED = (b"-----BEGIN ENCRYPTED PRIVATE KEY-----", b"Proc-Type: 4,ENCRYPTED")
_PRIVATE = b"PRIVATE KEY-----"
_BEGIN = b"-----BEGIN "
_GOOD_KEY = "get one with an ECDSA P-256 key, or an RSA key of 2048 bits or more"
_ORDER = "put the server's own first, then the one that signed it, and so on"


class Inspected(NamedTuple):
    """The findings about one pair. A pair with errors cannot be served; any other is."""

    chain: list[Link]
    context: ssl.SSLContext | None
    errors: list[Finding]
    warnings: list[Finding]
    """Faults for which most or all clients refuse it."""
    doubts: list[Finding]
    """Signs that others may have the key."""


class _Unfit(Exception):  # noqa: N818 - carries a finding
    def __init__(self, finding: Finding) -> None:
        super().__init__(str(finding))
        self.finding = finding


def inspect(
    cert: str,
    key: str,
    phrase: Phrase,
    moment: str,
    fresh: Callable[[], ssl.SSLContext],
    tried: dict[bytes, str] | None = None,
) -> Inspected:
    """Inspect a chain and its key, and load them.

    Args:
        cert: PEM file of the chain, the server's own certificate first.
        key: PEM file of the private key.
        phrase: the pass phrase, should the key need one.
        moment: now, UTC, in 14 digits, as Facts has times.
        fresh: makes a server context to load them into.
        tried: results of test handshakes by key algorithm, kept from pair to pair.
    """
    inspected = Inspected([], None, [], [], [])
    try:
        pem = _part(inspected, lambda: _read("cert", cert))
        secret = _read("key", key)
        if pem is None:
            return inspected
        if _holds(pem) == (False, True) and _holds(secret) == (True, False):
            mend = f"give the chain with -c {shlex.quote(key)}, the key with -k {shlex.quote(cert)}"
            raise _Unfit(
                Finding(cert, 1, f"this is a private key, and {key} a certificate: the two are swapped", mend)
            )
        inspected.chain.extend(_part(inspected, lambda: _chain(pem, cert)) or ())
        inspected.doubts.extend(_key_doubts(key, secret))
        opens = _phrase(phrase, key, secret, inspected)
        if _PRIVATE not in secret:
            raise _Unfit(_no_key(key))
        if inspected.chain:
            inspected.warnings.extend(_times(inspected.chain, cert, moment))
            inspected.warnings.extend(_order(inspected.chain, cert))
        if inspected.errors or opens is None:
            return inspected
        context = fresh()
        _load(context, cert, key, opens, (pem, inspected.chain))
    except _Unfit as unfit:
        inspected.errors.append(unfit.finding)
        return inspected
    inspected.warnings.extend(_connects(context, inspected.chain[0], cert, {} if tried is None else tried))
    return inspected._replace(context=context)


_Part = TypeVar("_Part")


def _part(inspected: Inspected, of: Callable[[], _Part]) -> _Part | None:
    """Return what `of` returns, or None with its error added: there may be more."""
    try:
        return of()
    except _Unfit as unfit:
        inspected.errors.append(unfit.finding)
        return None


def same_names(pairs: Sequence[tuple[str, list[Link]]]) -> Iterator[Finding]:
    """Yield findings about names that several certificates have, and about certificates without a name.

    For a name that several have, the listener uses the first.
    """
    file_of: dict[str, str] = {}
    for path, links in pairs:
        if not links:
            continue
        names = links[0].facts.names
        if not names and (len(pairs) > 1 or not links[0].has_address):
            what = "the certificate names no host (subjectAltName): clients will not accept it for any"
            yield Finding(path, links[0].line, what, "get one for the name that clients connect to")
        for name in names:
            if file_of.setdefault(name, path) != path:
                yield Finding(
                    path,
                    0,
                    f"it is for {name} as {file_of[name]} is, which is used",
                    "leave one of the two out",
                )


def _read(name: str, path: str) -> bytes:
    try:
        return read_named(name, path, _MOST_PEM)
    except UnreadableError as error:
        raise _Unfit(error.finding) from None


def _holds(pem: bytes) -> tuple[bool, bool]:
    """Return whether a PEM text has a certificate, and whether it has a private key."""
    return b"CERTIFICATE-----" in pem, _PRIVATE in pem


def _chain(pem: bytes, path: str) -> list[Link]:
    try:
        return chain(pem)
    except DamagedError as error:
        raise _Unfit(_damaged(path, error.line)) from None
    except ValueError:
        raise _Unfit(
            Finding(path, 1, "no certificate in PEM form", "write the chain here, the server's own first")
        ) from None


def _damaged(path: str, line: int) -> Finding:
    return Finding(
        path,
        line,
        "a certificate in it is damaged",
        f"see which: openssl storeutl -noout -text -certs {shlex.quote(path)}",
    )


def _no_key(path: str) -> Finding:
    return Finding(
        path,
        1,
        "no private key in PEM form, or a damaged one",
        "write the key that belongs to the certificate here",
    )


def _itself(path: str) -> str:
    """Return the file's real path, quoted for a command line: chmod(1) and chown(1) follow links."""
    return shlex.quote(os.path.realpath(path))


def _key_doubts(path: str, secret: bytes) -> Iterator[Finding]:
    try:
        found = os.stat(path)
    except OSError:  # it was removed since it was read: loading it finds that
        return
    # a certificate may be readable for all
    if found.st_mode & 0o027 and (_PRIVATE in secret or not _holds(secret)[0]):
        # The group may read it: Debian's group ssl-cert relies on that.
        mode = stat.S_IMODE(found.st_mode)
        yield Finding(
            path, 0, f"mode {mode:04o} leaves the private key open", f"chmod g-w,o-rwx {_itself(path)}"
        )
    if found.st_uid not in {0, os.geteuid()}:
        yield Finding(
            path, 0, f"the private key belongs to uid {found.st_uid}", f"chown root {_itself(path)}"
        )


def _phrase(phrase: Phrase, key: str, secret: bytes, inspected: Inspected) -> bytes | None:
    """Return the pass phrase of the key, b"" if it needs none, None if it is not known yet."""
    if not any(mark in secret for mark in _ENCRYPTED):
        return b""
    mend = "start at a terminal, or name a file that holds it with key_passphrase_file"
    if phrase is None:
        inspected.warnings.append(
            Finding(key, 1, "the private key has a pass phrase that a start has to ask for", mend)
        )
        return None
    if not phrase:
        raise _Unfit(Finding(key, 1, "the private key has a pass phrase", mend))
    if isinstance(phrase, bytes):
        if len(phrase) > MOST_PHRASE:
            raise _Unfit(
                Finding(
                    key,
                    1,
                    f"a pass phrase of more than {MOST_PHRASE} octets",
                    "encrypt the key with a shorter one",
                )
            )
        return phrase
    line = _read("key_passphrase_file", phrase).partition(b"\n")[0].removesuffix(b"\r")
    mode = stat.S_IMODE(os.stat(phrase).st_mode) if os.path.exists(phrase) else 0
    if mode & 0o027:
        inspected.doubts.append(
            Finding(
                phrase,
                0,
                f"mode {mode:04o} leaves the pass phrase open",
                f"chmod g-w,o-rwx {_itself(phrase)}",
            )
        )
    if not 0 < len(line) <= MOST_PHRASE:
        what = "the first line is empty, or longer than a pass phrase can be"
        raise _Unfit(Finding(phrase, 1, what, f"write the pass phrase here, 1 to {MOST_PHRASE} octets"))
    return line


def _times(links: list[Link], path: str, moment: str) -> Iterator[Finding]:
    """Yield certificates that are not valid now.

    They are served all the same: some clients accept them, and no server would help no client.
    """
    for link in links:
        if link.facts.ends <= moment:
            yield Finding(
                path,
                link.line,
                f"the certificate ended on {day(link.facts.ends)}",
                "renew it, then `popkernel reload`",
            )
        elif link.facts.starts > moment:
            yield Finding(
                path,
                link.line,
                f"the certificate starts on {day(link.facts.starts)} only",
                "set this machine's clock, or wait",
            )


def day(digits: str) -> str:
    """Format a time of Facts for people, to the minute."""
    return f"{digits[:4]}-{digits[4:6]}-{digits[6:8]} {digits[8:10]}:{digits[10:12]} UTC"


def advice(links: list[Link], path: str, now: float) -> Iterator[Finding]:
    """Yield what to mend in a chain that serves well today. `now`: seconds since the epoch."""
    days = [time.strftime("%Y%m%d%H%M%S", time.gmtime(now + 86400 * day)) for day in range(SOON_DAYS + 1)]
    for link in links:
        if days[0] < link.facts.ends < days[-1]:
            left = sum(moment < link.facts.ends for moment in days) - 1
            what = f"the certificate ends on {day(link.facts.ends)}, in {left} day{'s' * (left != 1)}"
            yield Finding(path, link.line, what, "renew it, then `popkernel reload`")
    if len(links) == 1 and not links[0].self_issued:
        what = "the file has no intermediate certificate: most clients cannot verify the server's own then"
        yield Finding(path, links[0].line, what, "append the chain of the authority (fullchain.pem)")


def _order(links: list[Link], path: str) -> Iterator[Finding]:
    for link, issuer in pairwise(links):
        if not link.issued_by(issuer):
            yield Finding(path, issuer.line, "this certificate did not sign the one before it", _ORDER)


def _load(
    context: ssl.SSLContext, cert: str, key: str, phrase: bytes, found: tuple[bytes, list[Link]]
) -> None:
    try:
        context.load_cert_chain(cert, key, password=phrase)
        return
    except ssl.SSLError as error:
        reason = error.reason or ""
    except OSError as error:  # removed since it was read
        raise _Unfit(Finding(cert, 0, error.strerror or str(error), "name both files anew")) from None
    pem, links = found
    if reason == "KEY_VALUES_MISMATCH":
        raise _Unfit(_stranger(cert, key, phrase, pem, links))
    if "TOO_SMALL" in reason or "TOO_WEAK" in reason:
        what = f"OpenSSL refuses the certificate or key: {reason.replace('_', ' ').lower()}"
        raise _Unfit(Finding(cert, 0, what, _GOOD_KEY))
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(
            cadata=pem[pem.index(_BEGIN) :].decode("ascii", "replace")
        )
    except (ssl.SSLError, ValueError):
        raise _Unfit(_damaged(cert, links[0].line)) from None
    if phrase:
        what = "the pass phrase does not open this private key, or it is damaged"
        raise _Unfit(Finding(key, 1, what, "give the one it was encrypted with"))
    raise _Unfit(_no_key(key))


def _stranger(cert: str, key: str, phrase: bytes, pem: bytes, links: list[Link]) -> Finding:
    """Find which certificate the key belongs to, if not to the first.

    Each is tried in a file of its own, for OpenSSL takes no octets.
    """
    lines = pem.split(b"\n")
    for link in links[1:] if hasattr(os, "memfd_create") else ():
        fd = os.memfd_create("certificate")
        try:
            os.write(fd, b"\n".join(lines[link.line - 1 :]))
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
                f"/proc/self/fd/{fd}", key, password=phrase
            )
        except OSError:  # ssl.SSLError is one
            continue
        finally:
            os.close(fd)
        return Finding(
            cert, link.line, "this is the certificate of the private key, but not the first", _ORDER
        )
    return Finding(
        key,
        0,
        f"the private key does not belong to the certificate in {cert}",
        "give the two that were made together",
    )


def _connects(context: ssl.SSLContext, own: Link, path: str, tried: dict[bytes, str]) -> Iterator[Finding]:
    """Yield a finding if no client with OpenSSL's defaults can connect.

    Some keys load and are of no use, those on curve secp256k1 for example.
    """
    if own.algorithm not in tried:
        tried[own.algorithm] = try_client(context)
    if tried[own.algorithm]:
        yield Finding(
            path,
            own.line,
            f"no client can connect with this certificate's kind of key ({tried[own.algorithm]})",
            _GOOD_KEY,
        )


def try_client(server: ssl.SSLContext) -> str:
    """Do a TLS handshake in memory, without verification. Returns "", or OpenSSL's error."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [client.wrap_bio(to_client, to_server), server.wrap_bio(to_server, to_client, server_side=True)]
    for _ in range(10):
        for end in list(ends):
            try:
                end.do_handshake()
                ends.remove(end)
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLError as error:
                return (error.reason or "handshake failure").replace("_", " ").lower()
    return "" if not ends else "the handshake does not end"
