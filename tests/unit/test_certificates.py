"""Compare the certificate parser with `cryptography`: same names and times, ValueError for anything else."""

import base64
import datetime as dt

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st
from popkernel.proto.files.certificates import facts

KEY = ec.generate_private_key(ec.SECP256R1())


def certificate(
    names,
    starts=dt.datetime(2024, 2, 29, 1, 2, 3),
    ends=dt.datetime(2049, 12, 31, 23, 59, 59),
    others=(),
    critical=False,
):
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "somebody" * 5)])
    builder = (
        x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(KEY.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(starts).not_valid_after(ends)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    )  # fmt: skip
    if names or others:
        general = [*map(x509.DNSName, names), *others]
        builder = builder.add_extension(x509.SubjectAlternativeName(general), critical=critical)
    builder = builder.add_extension(
        x509.SubjectKeyIdentifier.from_public_key(KEY.public_key()), critical=False
    )
    return builder.sign(KEY, hashes.SHA256())


DER = certificate(["mail.example.org"]).public_bytes(serialization.Encoding.DER)


def pem(one):
    return one.public_bytes(serialization.Encoding.PEM)


@settings(max_examples=60)
@given(
    st.lists(st.from_regex(r"\A(\*\.)?[a-zA-Z0-9-]{1,60}(\.[a-z]{1,20}){0,3}\Z"), max_size=20),
    st.datetimes(dt.datetime(1951, 1, 1), dt.datetime(2020, 1, 1)),
    st.datetimes(dt.datetime(2021, 1, 1), dt.datetime(2999, 1, 1)),
    st.booleans(),
)
def test_names_and_times(names, starts, ends, critical):
    found = facts(
        b"# text before\n"
        + pem(certificate(names, starts, ends, critical=critical))
        + pem(certificate(["other"]))
    )
    assert found == (tuple(n.lower() for n in names), f"{starts:%Y%m%d%H%M%S}", f"{ends:%Y%m%d%H%M%S}")


def test_other_names_are_not_host_names():
    import ipaddress

    others = [
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        x509.RFC822Name("a@example.org"),
        x509.UniformResourceIdentifier("x:y"),
    ]
    assert facts(pem(certificate(["a.example.org"], others=others))).names == ("a.example.org",)
    assert facts(pem(certificate([], others=others))).names == ()
    assert facts(pem(certificate([]))).names == ()


@settings(max_examples=300)
@given(st.data())
def test_damage_gives_a_value_error_only(data):
    der = bytearray(DER)
    for _ in range(data.draw(st.integers(1, 4))):
        der[data.draw(st.integers(0, len(der) - 1))] = data.draw(st.integers(0, 255))
    del der[data.draw(st.integers(0, len(der))) :]
    try:
        found = facts(
            b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(der) + b"-----END CERTIFICATE-----\n"
        )
    except ValueError as error:
        assert str(error) in ("a certificate that is damaged", "no certificate in PEM form")
    else:
        assert len(found.starts) == len(found.ends) == 14


@pytest.mark.parametrize(
    "octets",
    [b"", b"-----BEGIN CERTIFICATE-----", b"-----BEGIN CERTIFICATE-----\n*\n-----END CERTIFICATE-----"],
)
def test_other_octets_are_no_certificate(octets):
    with pytest.raises(ValueError, match="certificate"):
        facts(octets)
