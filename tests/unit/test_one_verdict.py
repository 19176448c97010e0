"""Check that `check` and a start find the same faults, in the same words, and agree on whether to serve."""

import datetime as dt
import os
import ssl

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from popkernel.actors.listener.tls import TlsError, serve
from popkernel.cli.common.check_certificates import check_certificates
from popkernel.cli.common.sample_site import make_site
from popkernel.cli.main import main
from popkernel.kernel.config.keys import keys
from popkernel.kernel.runtime.log import doubt

from tests.support.ports import free_ports

PEM, PLAIN = serialization.Encoding.PEM, serialization.NoEncryption()
ROOT_KEY, MIDDLE_KEY, KEY = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))


def signed(name, key, issuer="root", signer=ROOT_KEY, *, first=-1, last=90, identified=True):
    subject, by = (x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)]) for text in (name, issuer))
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder().subject_name(subject).issuer_name(by).public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + dt.timedelta(days=first)).not_valid_after(now + dt.timedelta(days=last))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
    )  # fmt: skip
    if identified:
        builder = builder.add_extension(
            x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
        )
        builder = builder.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
    return builder.sign(signer, hashes.SHA256()).public_bytes(PEM)


def secret(key, lock=PLAIN):
    return key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, lock)


MIDDLE = signed("middle", MIDDLE_KEY)
OWN = signed("mail.example.org", KEY, "middle", MIDDLE_KEY)
STRAY = signed("middle", ec.generate_private_key(ec.SECP256R1()))  # the same name with another key
PRIVATE = secret(KEY)
LOCKED = secret(KEY, serialization.BestAvailableEncryption(b"sesame"))


def of_kind(key):
    return signed("mail.example.org", key, "middle", MIDDLE_KEY) + MIDDLE, secret(key)


# Input and expected findings; a start serves despite warnings, and refuses errors.
CERTIFICATES = {
    "sound": ((OWN + MIDDLE, PRIVATE), [], []),
    "a byte order mark before the chain": ((b"\xef\xbb\xbf" + OWN + MIDDLE, PRIVATE), [], []),
    "text before it, CR LF": ((b"# ours\r\n" + (OWN + MIDDLE).replace(b"\n", b"\r\n"), PRIVATE), [], []),
    "a stray one behind": ((OWN + STRAY, PRIVATE), [], ["this certificate did not sign the one before it"]),
    "another behind": (
        (OWN + MIDDLE + OWN, PRIVATE),
        [],
        ["this certificate did not sign the one before it"],
    ),
    "ended": (
        (signed("a", KEY, first=-9, last=-1) + signed("root", ROOT_KEY), PRIVATE),
        [],
        ["the certificate ended on "],
    ),
    "of tomorrow": (
        (signed("a", KEY, first=1) + signed("root", ROOT_KEY), PRIVATE),
        [],
        ["the certificate starts on "],
    ),
    "an issuer that ended": (
        (OWN + signed("middle", MIDDLE_KEY, first=-9, last=-1), PRIVATE),
        [],
        ["the certificate ended on "],
    ),
    "secp256k1": (
        of_kind(ec.generate_private_key(ec.SECP256K1())),
        [],
        ["no client can connect with this certificate's kind of key"],
    ),
    "brainpool": (  # RFC 8734: in TLS 1.3 since OpenSSL 3.2
        of_kind(ec.generate_private_key(ec.BrainpoolP256R1())),
        [],
        ["no client can connect with this certificate's kind of key"] * (ssl.OPENSSL_VERSION_INFO < (3, 2)),
    ),
    "P-521": (of_kind(ec.generate_private_key(ec.SECP521R1())), [], []),
    "Ed25519": (of_kind(ed25519.Ed25519PrivateKey.generate()), [], []),
    "RSA of 1024 bits": (
        of_kind(rsa.generate_private_key(65537, 1024)),
        ["OpenSSL refuses the certificate or key: ee key too small"],
        [],
    ),
    "no chain": ((b"hello\n", PRIVATE), ["no certificate in PEM form"], []),
    "empty": ((b"", b""), ["no certificate in PEM form", "no private key in PEM form, or a damaged one"], []),
    "a damaged one": ((OWN.replace(b"M", b"N", 3), PRIVATE), ["a certificate in it is damaged"], []),
    "a damaged one behind": ((OWN + MIDDLE[:300], PRIVATE), ["a certificate in it is damaged"], []),
    "half a key": ((OWN + MIDDLE, PRIVATE[:60]), ["no private key in PEM form, or a damaged one"], []),
    "two certificates": ((OWN + MIDDLE, OWN), ["no private key in PEM form, or a damaged one"], []),
    "swapped": ((PRIVATE, OWN + MIDDLE), ["this is a private key, and "], []),
    "another's key": (
        (OWN + MIDDLE, secret(ROOT_KEY)),
        ["the private key does not belong to the certificate in "],
        [],
    ),
    "not the first": (
        (MIDDLE + OWN, PRIVATE),
        ["this is the certificate of the private key, but not the first"],
        [...],
    ),
    "a phrase too little": (
        (OWN + MIDDLE, LOCKED.replace(b"\n", b"\n", 1)),
        ["the pass phrase does not open"],
        [],
    ),
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
    """Compare the findings of a listener with those of `check`."""
    refused, said = [], []
    pairs = [(paths[0], paths[1])]
    try:
        said = serve(pairs, "1.3", paths[2]).warnings
    except TlsError as error:
        refused = str(error).split("\n")
    assert len(refused) == len(errors) and all(
        wanted in line for wanted, line in zip(errors, refused, strict=True)
    ), refused
    found, advised = ([str(finding) for finding in part] for part in check_certificates(pairs, paths[2]))
    assert found == refused
    assert set(said) <= set(advised)
    if warnings != [...]:
        advice = ("has no intermediate", "self-signed", " days; renew it")
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
def test_a_start_reports_a_key_or_phrase_that_others_may_read(which, tmp_path):
    paths = [str(tmp_path / name) for name in ("chain", "key", "phrase")]
    for path, data in zip(paths, (OWN + MIDDLE, LOCKED, b"sesame\n"), strict=True):
        with open(path, "wb") as file:
            file.write(data)
        os.chmod(path, 0o600)
    os.chmod(paths[which], 0o644)
    (said,) = serve([(paths[0], paths[1])], "1.3", paths[2]).warnings
    assert said == (
        f"{paths[which]}: mode 0644 leaves the {('', 'private key', 'pass phrase')[which]} open; chmod "
        f"g-w,o-rwx {paths[which]}"
    )
    assert [str(finding) for finding in check_certificates([(paths[0], paths[1])], paths[2])[0]] == [said]


# -- the configuration
WRONG = {
    **dict.fromkeys(("file", "directory"), ['""', '"relative"', "3", "[]", '"a\\u0000b"']),
    "addresses": ['"localhost"', "995", '["[fe80::1]"]', '["1.2.3.4:99999"]', '["224.0.0.1"]',
    '["[::ffff:1.2.3.4]"]'],
    "certs": ["1", '["relative"]'], "subdir": ['"/x"', '"a/../b"', "1"],
    "int": ['"1"', "true", "-99", "1.5", "99999999999999"], "choice": ['"?"', "1"],
    "bool": ["1", '"yes"'], "user": ['""', '"a b"', '"0:0"', "1"], "text": ["1", '"a b"'],
    "networks": ["1", '["x"]', '["1.2.3.4/8"]'],
    "users": ["1", '["a b"]'], "separators": ['" "', "1"], "domain": ["1", '"a@b"'],
    "domains": ["1", '["a@b"]'], "quota": ["1", '"x"'],
    "quotas": ["1", '["x"]', '["a=x"]'], "hostname": ['"a b"', "1"], "size": ["1", '"x"', '"-1"', '"1.5G"'],
}  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return make_site(str(tmp_path_factory.mktemp("pk") / "s"), mail=(), ports=free_ports())


def verdicts(site, capsys, toml, *flags):
    """Return lines and exit code of `start`, which must not begin to serve, and of `check`."""
    path = os.path.join(site.directory, "wrong.toml")
    with open(path, "wb") as file:
        file.write(toml)
    said = []
    for command in ("start", "check"):
        code = main([command, "-f", path, *flags])
        out, err = capsys.readouterr()
        said.append(
            (
                [
                    line.removeprefix("popkernel: ")
                    for line in (out if command == "check" else err).splitlines()
                ],
                code,
            )
        )
    return said


@pytest.mark.parametrize("turn", range(max(map(len, WRONG.values()))))
def test_every_key_with_wrong_values(site, capsys, turn):
    values = [(key.name, WRONG[key.metadata["kind"]]) for key in keys()]
    rows = [(name, wrong[turn % len(wrong)]) for name, wrong in values]
    (started, code), (checked, said) = verdicts(
        site, capsys, "".join(f"{name} = {value}\n" for name, value in rows).encode()
    )
    assert (started, code) == (checked[: len(started)], said) and code == 78
    for line, (name, value) in enumerate(rows, 1):
        told = [text for text in started if f"wrong.toml:{line}: {name}: " in text]
        assert len(told) == 1 and "; " in told[0], (name, value, told)


@pytest.mark.parametrize(
    "toml",
    [
        b"",
        b"\xff\n",
        b"[",
        b"a = \n",
        b"nonsense = 1\n",
        b"\xef\xbb\xbflisten = 1\n",
        b"x = 1\nx = 2\n",
        b'listen = ["127.0.0.1:9", "127.0.0.1:9"]\n',
    ],
)
def test_configurations_that_are_none(site, capsys, toml):
    (started, code), (checked, said) = verdicts(site, capsys, toml)
    assert started and (started, code) == (checked[: len(started)], said)


def test_an_address_that_another_one_includes(site, capsys):
    """Each can be bound alone, but not both together."""
    port, other = free_ports()
    flags = [
        "-f",
        os.path.join(site.directory, "popkernel.toml"),
        "-l",
        f"0.0.0.0:{port}",
        "-l",
        f"127.0.0.1:{port}",
        "-L",
        f"127.0.0.1:{other}",
    ]
    said = f"listen: 127.0.0.1:{port}: the port is taken by another program"
    assert main(["check", *flags]) == 69
    assert said in capsys.readouterr().out


def test_an_address_listed_twice_is_reported_as_that_only(site, capsys):
    port, other = free_ports()
    flags = [
        "-f",
        os.path.join(site.directory, "popkernel.toml"),
        "-l",
        f"127.0.0.1:{port}",
        "-l",
        f"127.0.0.1:{port}",
        "-L",
        f"127.0.0.1:{other}",
    ]
    assert main(["check", *flags]) == 64
    said = capsys.readouterr().out
    assert f"127.0.0.1:{port} is listened on twice; remove one of the two" in said
    assert "is taken" not in said


@pytest.mark.skipif(os.path.exists("/dev/log"), reason="this machine has a syslog")
def test_a_log_to_a_closed_standard_error(site, capsys):
    assert main(["check", "-f", os.path.join(site.directory, "popkernel.toml"), "--log", "syslog"]) in (0, 65)
    said = str(doubt("syslog", daemon=False))
    assert f"warning: {said}" in capsys.readouterr().out
    assert doubt("auto", daemon=True) == doubt("syslog", daemon=False)
    assert doubt("auto", daemon=False) is doubt("stderr", daemon=True) is None


@pytest.mark.parametrize("command", ["status", "stop", "reload", "trace"])
def test_an_empty_name_is_not_the_default_server(command, capsys):
    """`popkernel stop --run-dir "$DIR"` with an unset variable must not stop the default server."""
    assert main([command, "--run-dir", ""]) == 64
    assert (
        capsys.readouterr().err
        == "popkernel: command line: --run-dir: no name; give one, or leave the flag out\n"
    )
