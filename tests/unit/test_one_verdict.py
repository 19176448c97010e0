"""One verdict: for inputs of every kind, `check` finds what a start finds, in the same words, and they agree on whether it is served."""

import datetime as dt
import os

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from popkernel.actors.listener.tls import TlsError, serve
from popkernel.cli.certificate import check_certificates

PEM, PLAIN = serialization.Encoding.PEM, serialization.NoEncryption()
ROOT_KEY, MIDDLE_KEY, KEY = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))


def signed(name, key, issuer="root", signer=ROOT_KEY, *, first=-1, last=90, identified=True):
    subject, by = (x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)]) for text in (name, issuer))
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder().subject_name(subject).issuer_name(by).public_key(key.public_key()).serial_number(x509.random_serial_number())
        .not_valid_before(now + dt.timedelta(days=first)).not_valid_after(now + dt.timedelta(days=last))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
    )  # fmt: skip
    if identified:
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        builder = builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    return builder.sign(signer, hashes.SHA256()).public_bytes(PEM)


def secret(key, lock=PLAIN):
    return key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, lock)


MIDDLE = signed("middle", MIDDLE_KEY)
OWN = signed("mail.example.org", KEY, "middle", MIDDLE_KEY)
STRAY = signed("middle", ec.generate_private_key(ec.SECP256R1()))  # of the same name, with another key
PRIVATE = secret(KEY)
LOCKED = secret(KEY, serialization.BestAvailableEncryption(b"sesame"))


def of_kind(key):
    return signed("mail.example.org", key, "middle", MIDDLE_KEY) + MIDDLE, secret(key)


# What is given, and what is said of it; a start serves with warnings, and refuses errors.
CERTIFICATES = {
    "sound": ((OWN + MIDDLE, PRIVATE), [], []),
    "a byte order mark before the chain": ((b"\xef\xbb\xbf" + OWN + MIDDLE, PRIVATE), [], []),
    "text before it, CR LF": ((b"# ours\r\n" + (OWN + MIDDLE).replace(b"\n", b"\r\n"), PRIVATE), [], []),
    "a stray one behind": ((OWN + STRAY, PRIVATE), [], ["this certificate did not sign the one before it"]),
    "another behind": ((OWN + MIDDLE + OWN, PRIVATE), [], ["this certificate did not sign the one before it"]),
    "ended": ((signed("a", KEY, first=-9, last=-1) + signed("root", ROOT_KEY), PRIVATE), [], ["the certificate ended on "]),
    "of tomorrow": ((signed("a", KEY, first=1) + signed("root", ROOT_KEY), PRIVATE), [], ["the certificate starts on "]),
    "an issuer that ended": ((OWN + signed("middle", MIDDLE_KEY, first=-9, last=-1), PRIVATE), [], ["the certificate ended on "]),
    "secp256k1": (of_kind(ec.generate_private_key(ec.SECP256K1())), [], ["no client can connect with this certificate's kind of key"]),
    "brainpool": (of_kind(ec.generate_private_key(ec.BrainpoolP256R1())), [], ["no client can connect with this certificate's kind of key"]),
    "P-521": (of_kind(ec.generate_private_key(ec.SECP521R1())), [], []),
    "Ed25519": (of_kind(ed25519.Ed25519PrivateKey.generate()), [], []),
    "RSA of 1024 bits": (of_kind(rsa.generate_private_key(65537, 1024)), ["OpenSSL refuses the certificate or key: ee key too small"], []),
    "no chain": ((b"hello\n", PRIVATE), ["no certificate in PEM form"], []),
    "empty": ((b"", b""), ["no certificate in PEM form", "no private key in PEM form, or a damaged one"], []),
    "a damaged one": ((OWN.replace(b"M", b"N", 3), PRIVATE), ["a certificate in it is damaged"], []),
    "a damaged one behind": ((OWN + MIDDLE[:300], PRIVATE), ["a certificate in it is damaged"], []),
    "half a key": ((OWN + MIDDLE, PRIVATE[:60]), ["no private key in PEM form, or a damaged one"], []),
    "two certificates": ((OWN + MIDDLE, OWN), ["no private key in PEM form, or a damaged one"], []),
    "swapped": ((PRIVATE, OWN + MIDDLE), ["this is a private key, and "], []),
    "another's key": ((OWN + MIDDLE, secret(ROOT_KEY)), ["the private key does not belong to the certificate in "], []),
    "not the first": ((MIDDLE + OWN, PRIVATE), ["this is the certificate of the private key, but not the first"], [...]),
    "a phrase too little": ((OWN + MIDDLE, LOCKED.replace(b"\n", b"\n", 1)), ["the pass phrase does not open"], []),
}


@pytest.mark.parametrize("title", CERTIFICATES)
def test_certificates(title, tmp_path):
    octets, errors, warnings = CERTIFICATES[title]
    paths = [str(tmp_path / name) for name in ("chain", "key", "phrase")]
    for path, data in zip(paths, (*octets, b"open\n"), strict=True):
        with open(path, "wb") as file:
            file.write(data)
        os.chmod(path, 0o600)
    same(paths, errors, warnings)


def same(paths, errors, warnings):
    """What a listener says, and what `check` does."""
    refused, said = [], []
    pairs = [(paths[0], paths[1])]
    try:
        said = serve(pairs, "1.3", paths[2]).warnings
    except TlsError as error:
        refused = str(error).split("\n")
    assert len(refused) == len(errors) and all(wanted in line for wanted, line in zip(errors, refused, strict=True)), refused
    found, advised = ([str(finding) for finding in part] for part in check_certificates(pairs, paths[2]))
    assert found == refused
    assert set(said) <= set(advised)
    if warnings != [...]:
        advice = ("has no intermediate", "signed by itself", " days; renew it")
        assert len(warnings) == len([line for line in advised if not any(part in line for part in advice)])
        assert all(any(wanted in line for line in advised) for wanted in warnings), advised
        assert refused or len(said) == len(warnings), said


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("kind", ["missing", "a directory", "a FIFO", "too large"])
def test_certificates_keys_and_phrases_that_are_no_files(kind, which, tmp_path):
    paths = [str(tmp_path / name) for name in ("chain", "key", "phrase")]
    for path, data in zip(paths, (OWN + MIDDLE, LOCKED, b"sesame\n"), strict=True):
        with open(path, "wb") as file:
            file.write(data)
        os.chmod(path, 0o600)
    same(paths, [], [])
    os.unlink(paths[which])
    said = "No such file or directory"
    if kind == "a directory":
        os.mkdir(paths[which])
        said = "Is a directory"
    elif kind == "a FIFO":
        os.mkfifo(paths[which])
        said = "is a FIFO, not a regular file"
    elif kind == "too large":
        with open(paths[which], "wb") as file:
            file.truncate(2 << 20)
        os.chmod(paths[which], 0o600)
        said = "has over 1048576 octets"
    same(paths, [f"{paths[which]}: {said}; "], [...])


@pytest.mark.parametrize("which", [1, 2])
def test_a_key_or_a_phrase_that_others_may_read_is_told_of_by_a_start_too(which, tmp_path):
    paths = [str(tmp_path / name) for name in ("chain", "key", "phrase")]
    for path, data in zip(paths, (OWN + MIDDLE, LOCKED, b"sesame\n"), strict=True):
        with open(path, "wb") as file:
            file.write(data)
        os.chmod(path, 0o600)
    os.chmod(paths[which], 0o644)
    (said,) = serve([(paths[0], paths[1])], "1.3", paths[2]).warnings
    assert said == f"{paths[which]}: mode 0644 leaves the {('', 'private key', 'pass phrase')[which]} open; chmod g-w,o-rwx {paths[which]}"
    assert [str(finding) for finding in check_certificates([(paths[0], paths[1])], paths[2])[0]] == [said]
