"""Test the listener's TLS in memory: certificates by name, pass phrases, times, versions and ciphers."""

import _ssl
import ctypes
import re
import ssl
import time

import pytest
from cryptography.hazmat.primitives import serialization
from popkernel.actors.listener.tls import TlsError, context, forget_errors, pick, serve
from popkernel.cli.common.sample_site import make_certificate


@pytest.fixture
def written(tmp_path):
    """Write a certificate for `names` and its key, encrypted if a phrase is given; return their paths."""

    def write(name, *names, phrase=None, **options):
        chain, key = make_certificate(names, **options)
        if phrase is not None:
            loaded = serialization.load_pem_private_key(key, None)
            lock = serialization.BestAvailableEncryption(phrase)
            key = loaded.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, lock)
        (tmp_path / f"{name}.pem").write_bytes(chain)
        (tmp_path / f"{name}.key").write_bytes(key)
        (tmp_path / f"{name}.key").chmod(0o600)
        return str(tmp_path / f"{name}.pem"), str(tmp_path / f"{name}.key")

    return write


def client_context(cafile=None):
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls.check_hostname = False
    tls.verify_mode = ssl.CERT_REQUIRED if cafile else ssl.CERT_NONE
    if cafile:
        tls.load_verify_locations(cafile)
    return tls


def shake(server, client, name=None, session=None):
    """Do a handshake and send one octet from the server, which tickets would precede; return both ends."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = client.wrap_bio(to_client, to_server, server_hostname=name, session=session)
    other = server.wrap_bio(to_server, to_client, server_side=True)
    ends = [one, other]
    for _ in range(10):
        for end in list(ends):
            try:
                end.do_handshake()
                ends.remove(end)
            except ssl.SSLWantReadError:
                pass
        if not ends:
            break
    other.write(b"x")
    assert one.read(1) == b"x"
    return one, other


def subject(end):
    return dict(part[0] for part in end.getpeercert()["subject"])["commonName"]


@pytest.mark.parametrize("least", ["1.2", "1.3"])
def test_the_certificate_is_for_the_name_that_is_asked_for(written, tmp_path, least):
    pairs = [
        written("a", "a.example.org"),
        written("b", "b.example.org", "x.b.example.org"),
        written("w", "*.example.net", "c.example.org"),
    ]
    served = serve(pairs, least)
    assert served.warnings == []
    for name, wanted in (
        (None, "a.example.org"), ("a.example.org", "a.example.org"), ("b.example.org", "b.example.org"),
        ("X.B.Example.org", "b.example.org"), ("mail.example.net", "*.example.net"),
        ("c.example.org", "*.example.net"),
        ("deep.mail.example.net", "a.example.org"), ("example.net", "a.example.org"),
        ("nobody.test", "a.example.org"),
    ):  # fmt: skip
        cafile = next(
            cert for cert, _ in pairs if cert.endswith({"a": "a.pem", "b": "b.pem", "*": "w.pem"}[wanted[0]])
        )
        assert subject(shake(served.context, client_context(cafile), name)[0]) == wanted, name


def test_a_full_name_goes_before_a_wildcard():
    full, wild, default = object(), object(), object()
    by_name = {"a.example.org": full, "*.example.org": wild}
    names = ("A.example.org", "b.example.org", "*.example.org", "org", "", None)
    assert [pick(n, by_name, default) for n in names] == [full, wild, wild, default, default, default]


def test_duplicate_and_missing_names(written):
    pairs = [written("a", "a.test"), written("b", "a.test", "b.test")]
    assert [w.split(": ", 1)[1] for w in serve(pairs, "1.3").warnings] == [
        f"it is for a.test as {pairs[0][0]} is, which is used; leave one of the two out"
    ]


def test_tickets_are_for_1_2_alone_which_has_only_modern_ciphers(written):
    pair = written("a", "a.test")
    for least, highest in (("1.3", None), ("1.2", ssl.TLSVersion.TLSv1_2)):
        server, client = context(*pair, least), client_context()
        if highest:
            client.maximum_version = highest
        first, _ = shake(server, client, "a.test")
        assert not first.session_reused
        second, _ = shake(
            server, client, "a.test", first.session if first.session and first.session.has_ticket else None
        )
        assert second.session_reused == bool(highest)
        assert first.compression() is None
    for cipher in server.get_ciphers():
        assert cipher["aead"], cipher["name"]
        assert cipher["protocol"] == "TLSv1.3" or cipher["name"].startswith("ECDHE-")


def test_old_tls_versions_are_not_served(written):
    server, client = context(*written("a", "a.test"), "1.3"), client_context()
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError):
        shake(server, client)
    server = context(*written("a", "a.test"), "1.2")
    client.set_ciphers("AES128-SHA:ECDHE-ECDSA-AES128-SHA")
    with pytest.raises(ssl.SSLError):
        shake(server, client)


def test_pass_phrases(written, tmp_path):
    pair = written("a", "a.test", phrase=b"s\xc3\xa9same")
    path = tmp_path / "phrase"
    path.write_bytes(b"s\xc3\xa9same\n")
    path.chmod(0o600)
    for phrase in (b"s\xc3\xa9same", str(path)):
        assert shake(serve([pair], "1.3", phrase).context, client_context())
    for phrase, said in (
        (b"", "has a pass phrase; start at a terminal, or name a file"),
        (b"wrong", "does not open this private key"),
        (b"x" * 1025, "more than 1024 octets"),
        (str(tmp_path / "none"), "No such file or directory; name the right file with key_passphrase_file"),
    ):
        with pytest.raises(TlsError, match=said) as caught:
            serve([pair], "1.3", phrase)
        assert "same" not in str(caught.value)
    path.write_bytes(b"\n")
    with pytest.raises(TlsError, match="first line is empty"):
        serve([pair], "1.3", str(path))
    assert serve([written("b", "b.test")], "1.3", b"not needed").warnings == []


def test_times(written):
    day = 86400
    pair = written("a", "a.test", days=30, starts=2)
    # the clock may be wrong at boot: the unit must try again
    served = serve([pair], "1.3")
    (said,) = served.warnings
    assert re.search(
        r"a.pem:1: the certificate starts on \d{4}-\d\d-\d\d \d\d:\d\d UTC only; set this machine's clock, "
        r"or wait$",
        said,
    )
    assert shake(served.context, client_context())
    assert serve([pair], "1.3", now=time.time() + 3 * day).warnings == []
    warnings = serve([pair], "1.3", now=time.time() + 31 * day).warnings
    assert len(warnings) == 1
    assert "the certificate ended on " in warnings[0]


def test_mismatched_or_malformed_pairs(written, tmp_path):
    a, b = written("a", "a.test"), written("b", "b.test")
    with pytest.raises(TlsError, match="does not belong to the certificate in .*a.pem"):
        serve([b, (a[0], b[1])], "1.3")
    (tmp_path / "bad").write_bytes(b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n")
    for cert, said in (
        (str(tmp_path / "bad"), "damaged"),
        (a[1], "no certificate in PEM form"),
        ("/nowhere", "No such file"),
    ):
        with pytest.raises(TlsError, match=said):
            serve([(cert, a[1])], "1.3")


def test_errors_of_one_connection_are_forgotten_before_the_next():
    """CPython 3.13 leaves such errors behind.

    tests/e2e/protocol/test_clients_gone_mid_answer.py sees it there.
    """
    library = ctypes.CDLL(_ssl.__file__)
    library.ERR_peek_error.restype = ctypes.c_ulong
    library.ERR_new()
    library.ERR_set_error(2, 32, None)  # ERR_LIB_SYS, EPIPE
    assert library.ERR_peek_error()
    forget_errors()
    assert not library.ERR_peek_error()
