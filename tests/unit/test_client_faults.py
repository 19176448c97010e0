"""Test the words about clients that cannot log in, with real ClientHellos and hostile octets."""

import ssl
import warnings

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from popkernel.actors.listener.session.client_faults import (
    KNOWN_MECHANISMS,
    SILENT_SECONDS,
    handshake_fault,
    not_offered,
    silent_fault,
)
from popkernel.proto.tls_hello import offered_version

VERSIONS = {
    10: ssl.TLSVersion.TLSv1,
    11: ssl.TLSVersion.TLSv1_1,
    12: ssl.TLSVersion.TLSv1_2,
    13: ssl.TLSVersion.TLSv1_3,
}


def hello(most, least=10):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        context.minimum_version, context.maximum_version = VERSIONS[least], VERSIONS[most]
    out = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), out, server_hostname="pop.example.org")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return out.read()


HELLOS = {most: hello(most) for most in VERSIONS}


@pytest.mark.parametrize("most", VERSIONS)
def test_the_highest_version_that_is_offered(most):
    assert offered_version(HELLOS[most]) == offered_version(hello(most, least=most)) == most


@pytest.mark.parametrize("most", VERSIONS)
def test_a_hello_cut_anywhere(most):
    for end in range(len(HELLOS[most])):
        assert offered_version(HELLOS[most][:end]) in {0, most}


@given(st.binary(max_size=300) | st.binary(max_size=60).map(lambda data: HELLOS[13][:40] + data))
def test_hostile_octets(data):
    assert offered_version(data) in range(14)
    for reason in ("unsupported protocol", "tlsv1 alert unknown ca", "connection lost", "\x1b[2J"):
        text = handshake_fault(reason, data, 13)
        assert bool(text) == bool(data) and len(text) < 300


@pytest.mark.parametrize(
    ("reason", "head", "least", "text"),
    [
        ("unsupported protocol", HELLOS[12], 13, "the client offers TLS 1.2; tls_min is 1.3: tls_min"),
        ("unsupported protocol", HELLOS[11], 12, "the client offers TLS 1.1; tls_min is 1.2, the lowest"),
        ("unsupported protocol", HELLOS[11], 13, "the client offers TLS 1.1; tls_min is 1.3, and may be 1.2"),
        ("no shared cipher", HELLOS[12], 12, "the client offers no cipher that is served"),
        ("sslv3 alert bad certificate", HELLOS[13], 13, "the client refuses the certificate"),
        ("tlsv1 alert unknown ca", HELLOS[12], 12, "the client refuses the certificate (alert 'unknown ca')"),
        ("connection lost", HELLOS[13], 13, "the client left during the handshake"),
        ("unexpected eof while reading", HELLOS[13], 13, "the client left during the handshake"),
        ("some new reason", HELLOS[13], 13, "some new reason"),
        ("http request", b"GET / HTTP/1.0\r\n", 13, "the client speaks HTTP"),
        ("wrong version number", b"user x\r\n", 13, "the client speaks POP3 without TLS on a port for TLS"),
        ("wrong version number", b"\x16", 13, "wrong version number"),
        ("connection lost", b"", 13, ""),
    ],
)
def test_words(reason, head, least, text):
    said = handshake_fault(reason, head, least)
    assert said.startswith(text) and bool(said) == bool(text)


def test_a_silent_client_is_none_that_only_looks_whether_the_port_is_open():
    assert silent_fault(SILENT_SECONDS - 0.1) == "" and "sends nothing" in silent_fault(SILENT_SECONDS)


@given(st.text(max_size=100))
def test_a_word_that_is_no_known_mechanism_may_be_a_password(text):
    assume(text and text not in KNOWN_MECHANISMS)
    assert not_offered("AUTH", text) == not_offered("AUTH", "secret")
    assert "secret" not in not_offered("AUTH", "secret")


@pytest.mark.parametrize("mechanism", sorted(KNOWN_MECHANISMS))
def test_a_known_mechanism_is_named(mechanism):
    assert f"AUTH {mechanism}," in not_offered("AUTH", mechanism)
