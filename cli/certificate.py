"""What ``popkernel check`` finds out about a certificate chain and its private key."""

import datetime as dt
import os
import shlex
import ssl
import stat
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from popkernel.kernel.passphrase import is_encrypted
from popkernel.proto.certificate import facts
from popkernel.proto.tables import Finding

SOON = dt.timedelta(days=21)
"""Certificates of 90 days are commonly renewed 30 days before their end; 21 says that this has not worked."""
_MAX_PEM = 1 << 20
_MOST_PHRASE = 1024
"""Octets; OpenSSL's PEM_BUFSIZE."""
_BEGIN = b"-----BEGIN CERTIFICATE-----"
_PRIVATE = b"PRIVATE KEY-----"
_AS_READER = "name the file that is meant, and run this as the user who starts the server"


def check_certificate(cert_path: str, key_path: str, phrase_path: str = "") -> tuple[list[Finding], list[Finding]]:
    """Look at a chain and its key: readable, well-formed, matching, in order, in time, with names, the key kept secret.

    Args:
        cert_path: PEM file of the chain, the server's own certificate first.
        key_path: PEM file of the private key.
        phrase_path: file whose first line opens the key, should it have a pass phrase; "" for none.

    Returns:
        Errors and warnings.

    """
    errors: list[Finding] = []
    warnings: list[Finding] = []
    if cert_path != key_path and _swapped(cert_path, key_path):
        what = f"this is a private key, and {key_path} a certificate: the two are swapped"
        mend = f"give the chain with -c {shlex.quote(key_path)}, the key with -k {shlex.quote(cert_path)}"
        return [Finding(cert_path, 1, what, mend)], []
    chain, lines = _read_chain(cert_path, errors)
    phrase = _read_phrase(phrase_path, errors) if is_encrypted(key_path) else None
    if phrase is None and is_encrypted(key_path):
        if not phrase_path:
            mend = "start at a terminal, or name a file that holds it with key_passphrase_file"
            warnings.append(Finding(key_path, 1, "the private key has a pass phrase that a start has to ask for", mend))
        key = None
    else:
        key = _read_key(key_path, phrase, errors)
    if chain:
        _check_times(chain, lines, cert_path, errors, warnings)
        _check_order(chain, lines, cert_path, errors, warnings)
        _check_names(chain[0], lines[0], cert_path, warnings)
    if chain and key is not None and _check_match(chain, lines, key, (cert_path, key_path), errors):
        _check_by_openssl(cert_path, key_path, phrase, errors)
    return errors, warnings


def check_names(pairs: Sequence[tuple[str, str]]) -> list[Finding]:
    """Look at whom several certificates are for: at each name once, at one at least, as the listener chooses among them. Warnings."""
    warnings: list[Finding] = []
    file_of: dict[str, str] = {}
    for path, _key_path in pairs:
        try:
            with open(path, "rb") as file:
                names = facts(file.read(_MAX_PEM)).names
        except (OSError, ValueError):  # an error of check_certificate()'s
            continue
        for name in names:
            if file_of.setdefault(name, path) != path:
                what = f"it is for {name} as {file_of[name]} is, which is used"
                warnings.append(Finding(path, 0, what, "leave one of the two out"))
    return warnings


def _swapped(cert_path: str, key_path: str) -> bool:
    """Whether each of the two files holds what the other should, and nothing of its own."""
    holds = []
    for path in (cert_path, key_path):
        data = _read(path, []) or b""
        holds.append((_BEGIN in data, _PRIVATE in data))
    return holds == [(False, True), (True, False)]


def _read_phrase(path: str, errors: list[Finding]) -> bytes | None:
    """Give the first line of the file; None for no file, or one that cannot be used."""
    data = _read(path, errors) if path else None
    if data is None:
        return None
    mode = stat.S_IMODE(os.stat(path).st_mode)
    if mode & 0o027:
        errors.append(Finding(path, 0, f"mode {mode:04o} leaves the pass phrase open", f"chmod g-w,o-rwx {path}"))
    phrase = data.partition(b"\n")[0].removesuffix(b"\r")
    if not 0 < len(phrase) <= _MOST_PHRASE:
        what = "the first line is empty, or longer than a pass phrase can be"
        errors.append(Finding(path, 1, what, f"write the pass phrase here, 1 to {_MOST_PHRASE} octets"))
        return None
    return phrase


def _read(path: str, errors: list[Finding]) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read(_MAX_PEM)
    except OSError as error:
        errors.append(Finding(path, 0, error.strerror or str(error), _AS_READER))
        return None


def _read_chain(path: str, errors: list[Finding]) -> tuple[list[x509.Certificate], list[int]]:
    """Give the certificates and the line each begins on; none when one of them cannot be read."""
    data = _read(path, errors)
    if data is None:
        return [], []
    lines = [number for number, line in enumerate(data.split(b"\n"), 1) if line.strip() == _BEGIN]
    if not lines:
        errors.append(Finding(path, 1, "no certificate in PEM form", "write the chain here, the server's own first"))
        return [], []
    try:
        chain = x509.load_pem_x509_certificates(data)
    except ValueError:
        what = "a certificate in it is damaged"
        errors.append(Finding(path, lines[0], what, f"see which: openssl storeutl -noout -text -certs {shlex.quote(path)}"))
        return [], []
    return chain, lines


def _read_key(path: str, phrase: bytes | None, errors: list[Finding]) -> Any:
    """Give the private key; None when it cannot be read. Whatever it says is about the file, never of it."""
    data = _read(path, errors)
    if data is None:
        return None
    found = os.stat(path)
    if found.st_mode & 0o027 and (_PRIVATE in data or _BEGIN not in data):  # else it is a certificate, for all to read
        # Reading by the group stays allowed: Debian's group ssl-cert works so.
        mode = stat.S_IMODE(found.st_mode)
        errors.append(Finding(path, 0, f"mode {mode:04o} leaves the private key open", f"chmod g-w,o-rwx {_itself(path)}"))
    if found.st_uid not in {0, os.geteuid()}:
        errors.append(Finding(path, 0, f"the private key belongs to uid {found.st_uid}", f"chown root {_itself(path)}"))
    try:
        return serialization.load_pem_private_key(data, phrase)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        if phrase is not None:
            what = "the pass phrase does not open this private key, or it is damaged"
            errors.append(Finding(path, 1, what, "write the one it was encrypted with into the file of key_passphrase_file"))
            return None
        mend = "write the key that belongs to the certificate here"
        errors.append(Finding(path, 1, "no private key in PEM form, or a damaged one", mend))
    return None


def _itself(path: str) -> str:
    """The file for a command line: chmod(1) and chown(1) would follow a link, so what it leads to is named."""
    return shlex.quote(os.path.realpath(path))


def _check_times(
    chain: Sequence[x509.Certificate], lines: list[int], path: str, errors: list[Finding], warnings: list[Finding]
) -> None:
    now = dt.datetime.now(dt.UTC)
    for certificate, line in zip(chain, lines, strict=False):
        starts, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if ends <= now:
            errors.append(Finding(path, line, f"the certificate ended on {ends:%Y-%m-%d %H:%M} UTC", "renew it"))
        elif starts > now:
            what = f"the certificate starts on {starts:%Y-%m-%d %H:%M} UTC only"
            errors.append(Finding(path, line, what, "set this machine's clock, or wait"))
        elif ends - now < SOON:
            what = f"the certificate ends on {ends:%Y-%m-%d %H:%M} UTC, in {(ends - now).days} day{'s' * ((ends - now).days != 1)}"
            warnings.append(Finding(path, line, what, "renew it, then `popkernel reload`"))


def _check_order(
    chain: Sequence[x509.Certificate], lines: list[int], path: str, errors: list[Finding], warnings: list[Finding]
) -> None:
    for number, (certificate, issuer) in enumerate(pairwise(chain), 1):
        if not _issued(certificate, issuer):
            what = "this certificate did not sign the one before it"
            mend = "put the server's own first, then the one that signed it, and so on"
            errors.append(Finding(path, lines[number], what, mend))
    own = chain[0]
    if own.issuer == own.subject:
        what = "the certificate is signed by itself: clients must be told to trust it"
        warnings.append(Finding(path, lines[0], what, "get one from an authority that clients know"))
    elif len(chain) == 1:
        what = "the file has no intermediate certificate: most clients cannot verify the server's own then"
        warnings.append(Finding(path, lines[0], what, "append the chain of the authority (fullchain.pem)"))


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _check_names(own: x509.Certificate, line: int, path: str, warnings: list[Finding]) -> None:
    try:
        names = own.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        named = bool(names.get_values_for_type(x509.DNSName) or names.get_values_for_type(x509.IPAddress))
    except (x509.ExtensionNotFound, ValueError):
        named = False
    if not named:
        what = "the certificate names no host (subjectAltName): clients will not accept it for any"
        warnings.append(Finding(path, line, what, "get one for the name that clients connect to"))


def _check_match(
    chain: Sequence[x509.Certificate], lines: list[int], key: Any, paths: tuple[str, str], errors: list[Finding]
) -> bool:
    """Whether the key is the first certificate's; says which other it is of."""
    wanted = _public_octets(key.public_key())
    owners = [line for certificate, line in zip(chain, lines, strict=False) if _public_octets(certificate.public_key()) == wanted]
    if owners and owners[0] == lines[0]:
        return True
    if owners:
        what = "this is the certificate of the private key, but not the first"
        errors.append(Finding(paths[0], owners[0], what, "put it first, then the one that signed it, and so on"))
    else:
        what = f"the private key does not belong to the certificate in {paths[0]}"
        errors.append(Finding(paths[1], 0, what, "give the two that were made together"))
    return False


def _public_octets(key: Any) -> bytes:
    octets: bytes = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return octets


def _check_by_openssl(cert_path: str, key_path: str, phrase: bytes | None, errors: list[Finding]) -> None:
    """Let the library that will serve them load them: it has opinions of its own, about short keys for example."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert_path, key_path, password=phrase)
    except ssl.SSLError as error:
        what = f"OpenSSL refuses the certificate or key: {error.reason or error}"
        errors.append(Finding(cert_path, 0, what, "get one with an ECDSA P-256 key, or an RSA key of 2048 bits or more"))
    except OSError as error:
        errors.append(Finding(cert_path, 0, error.strerror or str(error), _AS_READER))
