"""Test `check`: each problem is found, with its place and its mend."""

import datetime as dt
import json
import os
import socket

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from popkernel.cli import check as check_module
from popkernel.cli.common import sample_site
from popkernel.cli.common.check_certificates import check_certificate
from popkernel.cli.common.sample_site import make_certificate, make_site
from popkernel.cli.main import main
from popkernel.kernel.init.mailbox_faults import PathAccess
from popkernel.proto.files.tables import MailUser

from tests.support.ports import free_ports


@pytest.fixture
def site(tmp_path, monkeypatch):
    # pytest's directories are 0700 and root's; the path above the site has its own test.
    monkeypatch.setattr(PathAccess, "blocked", lambda _self, _directory, _user: "")
    monkeypatch.setattr("popkernel.kernel.sandbox.lock.missing", list)
    return make_site(str(tmp_path / "s"), mail=(), ports=free_ports())


def found(site, *flags, capsys, code=None):
    ended = main(["check", "--json", "-f", os.path.join(site.directory, "popkernel.toml"), *flags])
    report = json.loads(capsys.readouterr().out)
    assert ended == code if code is not None else bool(ended) == bool(report["errors"])
    lines = {}
    for kind, findings in report.items():
        lines[kind] = [f"{one['path']}:{one['line']}: {one['what']}; {one['mend']}" for one in findings]
    return lines["errors"], lines["warnings"]


def test_a_sound_site(site, capsys):
    errors, warnings = found(site, capsys=capsys)
    assert errors == []
    assert not any("self-signed" in warning for warning in warnings)


def test_for_people(site, capsys):
    assert main(["check", "-f", os.path.join(site.directory, "popkernel.toml")]) == 0
    assert (
        f"\n{site.cert}:1: the certificate is self-signed: clients must be told to trust it\n"
        in "\n" + capsys.readouterr().out
    )
    assert main(["check"]) == os.EX_USAGE
    assert "command line: no auth" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["missing", "a FIFO", "not UTF-8", "no TOML"])
def test_a_configuration_that_cannot_be_read_is_the_only_finding(kind, tmp_path, capsys):
    path = str(tmp_path / "c.toml")
    if kind == "a FIFO":
        os.mkfifo(path)
    elif kind != "missing":
        with open(path, "wb") as file:
            file.write({"not UTF-8": b"verbose = \xff\n", "no TOML": b"?\n"}[kind])
    assert main(["check", "-f", path]) == os.EX_CONFIG
    said = capsys.readouterr().out
    assert said.startswith(path) and said.count("\n") == 1, said


def test_users_in_one_table_only(site, capsys):
    with open(site.auth_table, "ab") as file:
        file.write(b"# c\neve $2b$04$" + b"." * 53 + b"\n")
    with open(site.user_table, "a") as file:
        file.write(f"dan: {os.getuid() or 64001 + 500}:1:{site.mail_users['bob'].maildir}x\n")
    errors, warnings = found(site, capsys=capsys)
    assert any(
        line.startswith(f"{site.auth_table}:5: user eve is not in {site.user_table}") for line in warnings
    )
    assert any(
        line.startswith(f"{site.user_table}:4: user dan is not in {site.auth_table}") for line in warnings
    )
    assert any(
        line.startswith(f"{site.user_table}:4: user dan: ") and "install -d" in line for line in errors
    )


def test_table_errors(site, capsys):
    with open(site.auth_table, "ab") as file:
        file.write(b"eve $1$x$SECRET\n")
    errors, warnings = found(site, capsys=capsys)
    assert errors == []
    assert any(
        line.startswith(f"{site.auth_table}:4: user eve cannot log in: a $1$ hash") for line in warnings
    )
    assert "SECRET" not in str(warnings)
    assert any("user eve is not in" in warning for warning in warnings)
    with open(site.auth_table, "ab") as file:
        file.write(b"alice !\n")
    errors, warnings = found(site, capsys=capsys, code=65)
    assert errors == [f"{site.auth_table}:5: user alice again, first on line 1; remove one of the two lines"]
    assert not any("is not in" in warning for warning in warnings)
    os.unlink(site.user_table)
    os.mkdir(site.user_table)
    assert any(line.startswith(f"{site.user_table}:0: ") for line in found(site, capsys=capsys)[0])


def test_open_tables_and_keys(site, capsys):
    os.chmod(site.auth_table, 0o644)
    os.chmod(site.key, 0o644)
    errors, warnings = found(site, capsys=capsys)
    assert any("mode 0644 leaves the private key open; chmod" in line for line in errors)
    assert any("lets every user at the hashes; chmod o-rwx" in line for line in warnings)


@pytest.mark.parametrize("which", ["users", "auth", "popkernel.toml"])
def test_what_others_can_change(site, capsys, which):
    """The user table says which uids root forks processes for."""
    path = os.path.join(site.directory, which)
    code = 78 if which == "popkernel.toml" else 65
    mends = []
    for mode in (0o602, 0o620, 0o666):
        os.chown(path, -1, 1 if os.geteuid() == 0 else os.getegid())  # root's group may write
        os.chmod(path, mode)
        ((error, mend),) = [line.split("; ") for line in found(site, capsys=capsys, code=code)[0]]
        assert error == f"{path}:0: mode {mode:04o} lets others change whom popkernel serves, and as whom"
        mends.append(mend)
    assert set(mends) == {f"chmod go-w {path}"}
    assert os.system(mends[0]) == 0
    assert found(site, capsys=capsys, code=0)[0] == []
    os.chmod(site.directory, 0o777)
    assert [line.partition("; ")[2] for line in found(site, capsys=capsys)[0]] == [
        f"chmod o-w {site.directory}"
    ]
    os.chmod(site.directory, 0o1777)
    assert found(site, capsys=capsys, code=0)[0] == []


@pytest.mark.root("other owners need root")
def test_a_table_of_somebody_else(site, capsys):
    os.chown(site.user_table, 64999, 64999)
    assert [line for line in found(site, capsys=capsys, code=65)[0]] == [
        (
            f"{site.user_table}:0: belongs to uid 64999, who can change whom popkernel serves, and as "
            f"whom; chown 0 {site.user_table}"
        )
    ]
    away = site.user_table + ".away"
    os.rename(site.user_table, away)
    os.symlink(away, site.user_table)
    assert found(site, capsys=capsys, code=65)[0][0].startswith(f"{away}:0: belongs to uid 64999")


def test_maildirs(site, capsys):
    alice, bob, carol = (user.maildir for user in site.mail_users.values())
    os.rename(alice, alice + ".away")
    open(alice, "w").close()
    os.rmdir(bob + "/tmp")
    open(bob + "/tmp", "w").close()
    os.chmod(carol, 0o500)
    errors, _ = found(site, capsys=capsys)
    assert f"{site.user_table}:1: user alice: {alice}: is no directory" in errors[0]
    assert f"user bob: {bob}: tmp is no directory" in errors[1]
    assert "mode 0500 shuts its owner out" in errors[2]
    errors, _ = found(site, "-e", "Maildir", capsys=capsys)
    assert f"{bob}/Maildir: there is no such directory" in errors[1]


def test_the_same_maildir_twice(site, capsys):
    bob = site.mail_users["bob"]
    with open(site.user_table, "a") as file:
        file.write(f"bob2 {bob.uid}:{bob.gid}:{bob.maildir}\n")
    assert any("same maildir as bob" in line for line in found(site, capsys=capsys)[1])


@pytest.mark.root("other owners need root")
def test_owners(site, capsys):
    bob, carol = site.mail_users["bob"], site.mail_users["carol"]
    os.chown(bob.maildir, 64999, bob.gid)
    with open(site.user_table, "a") as file:
        file.write(f"thief 64002:64002:{carol.maildir}\n")
    errors, _ = found(site, capsys=capsys)
    assert any(
        f"belongs to uid 64999, not {bob.uid}; give this user uid 64999 in the table, or, " in line
        for line in errors
    )
    assert any("user thief has the uid of auth_user" in line for line in errors)


def test_what_is_no_mail_in_a_maildir_is_counted(site, capsys):
    maildir = site.mail_users["bob"].maildir
    os.makedirs(f"{maildir}/new", exist_ok=True)
    os.mkdir(f"{maildir}/new/a-directory")
    os.mkfifo(f"{maildir}/new/a-fifo")
    _, warnings = found(site, capsys=capsys)
    assert [
        line
        for line in warnings
        if f"user bob: {maildir}: 2 names in cur and new are no regular files" in line
    ]


@pytest.mark.skipif(os.geteuid() == 0, reason="root can serve everyone")
def test_an_ordinary_user_serves_itself_alone(site, capsys):
    with open(site.user_table, "a") as file:
        file.write("other 64002:64002:/nowhere\n")
    assert any("only root can serve the mail of uid 64002" in line for line in found(site, capsys=capsys)[0])


def test_the_way_to_a_maildir(tmp_path):
    tmp_path.chmod(0o711)
    shut = tmp_path / "shut"
    inner = shut / "inner"
    inner.mkdir(parents=True)
    shut.chmod(0o700)
    inner.chmod(0o711)
    shut_for = [MailUser(64500, 64500, "x"), MailUser(shut.stat().st_uid, 1, "x")]
    # A directory above tmp_path may exclude uid 64500 already.
    assert PathAccess().blocked(str(inner), shut_for[0]) in {str(shut), *map(str, tmp_path.parents)}
    assert PathAccess().blocked(str(inner), shut_for[1]) != str(shut)
    assert PathAccess().blocked(str(tmp_path / "missing"), shut_for[1]) in {"", *map(str, tmp_path.parents)}


def test_ports(site, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        errors, _ = found(site, "-l", f"127.0.0.1:{port}", capsys=capsys)
    said = "the port is taken by another program; end it (`ss -ltnp` shows it), or choose another port"
    assert errors == [f"listen:0: 127.0.0.1:{port}: {said}"]
    errors, _ = found(site, "-l", "192.0.2.1:9995", capsys=capsys)
    assert errors[0].startswith(
        "listen:0: 192.0.2.1:9995: this machine has no such address; give one of its own"
    )


def test_ports_of_the_running_server_are_its_own(site, capsys, monkeypatch):
    monkeypatch.setattr(check_module, "_serving", lambda _run_dir: True)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert found(site, "-l", f"127.0.0.1:{taken.getsockname()[1]}", capsys=capsys)[0] == []


def test_sandbox(site, capsys, monkeypatch):
    monkeypatch.setattr("popkernel.kernel.sandbox.lock.missing", lambda: ["no Landlock: boot with it"])
    assert "sandbox:0: no Landlock; boot with it" in found(site, capsys=capsys)[0]
    assert "sandbox:0: no Landlock; boot with it" in found(site, "--insecure-no-sandbox", capsys=capsys)[1]


def test_plain_text_is_warned_of(site, capsys):
    assert any("without TLS" in line for line in found(site, "--allow-plaintext", capsys=capsys)[1])


def test_trash_flag_without_hide_trashed_is_warned_of(site, capsys):
    toml = os.path.join(site.directory, "popkernel.toml")
    with open(toml, "a") as file:
        file.write('deletion = "trash-flag"\n')
    assert any("hide_trashed = true" in line for line in found(site, capsys=capsys)[1])
    with open(toml, "a") as file:
        file.write("hide_trashed = true\n")
    assert not any("hide_trashed" in line for line in found(site, capsys=capsys)[1])


@pytest.fixture
def pair(tmp_path):
    """Write a chain and a key, and return check_certificate()'s findings as texts."""

    def said(chain, key, mode=0o600, phrase=None):
        cert_path, key_path = tmp_path / "c.pem", tmp_path / "k.pem"
        cert_path.write_bytes(chain)
        key_path.write_bytes(key)
        key_path.chmod(mode)
        phrase_path = tmp_path / "p"
        if phrase is not None:
            phrase_path.write_bytes(phrase)
            phrase_path.chmod(mode)
        parts = check_certificate(str(cert_path), str(key_path), "" if phrase is None else str(phrase_path))
        return tuple([str(finding).replace(f"{tmp_path}/", "") for finding in part] for part in parts)

    return said


def _signed(name, issuer=None, days=90, san=True):
    """Return one certificate of a chain and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    by, signer = (issuer[0].subject, issuer[1]) if issuer else (subject, key)
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder().subject_name(subject).issuer_name(by).public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=100)).not_valid_after(now + dt.timedelta(days=days))
    )  # fmt: skip
    if san:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
    return builder.sign(signer, hashes.SHA256()), key


def _pem(*certificates):
    return b"".join(one[0].public_bytes(serialization.Encoding.PEM) for one in certificates)


def _key(one, password=None):
    lock = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return one[1].private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, lock)


def test_a_good_chain(pair):
    root = _signed("root")
    middle = _signed("middle", root)
    leaf = _signed("mail.example.org", middle)
    assert pair(_pem(leaf, middle), _key(leaf)) == ([], [])
    assert pair(_pem(leaf, middle), _key(leaf), 0o640) == ([], [])
    assert "no intermediate" in pair(_pem(leaf), _key(leaf))[1][0]
    lines = _pem(leaf).count(b"\n")
    errors, warnings = pair(_pem(leaf, root), _key(leaf))
    assert errors == [] and [line.partition("; ")[0] for line in warnings] == [
        f"c.pem:{lines + 1}: this certificate did not sign the one before it"
    ]
    assert any("but not the first" in line for line in pair(_pem(middle, leaf), _key(leaf))[0])


def test_certificates_and_time(pair):
    old, soon, unborn = _signed("a", days=-1), _signed("a", days=5), make_certificate(starts=2)
    for one, said in ((pair(_pem(old), _key(old)), "ended on "), (pair(*unborn), "starts on ")):
        assert one[0] == [], "it is served"
        assert one[1][0].startswith(f"c.pem:1: the certificate {said}")
    assert "in 4 days; renew it" in pair(_pem(soon), _key(soon))[1][0]


def test_keys(pair):
    one, other = _signed("a"), _signed("a")
    assert pair(_pem(one), _key(other))[0] == [
        (
            "k.pem: the private key does not belong to the certificate in c.pem; give the two that were "
            "made together"
        )
    ]
    assert (
        "no private key in PEM form"
        in pair(_pem(one), b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")[0][0]
    )
    assert "no private key in PEM form" in pair(_pem(one), b"garbage")[0][0]
    for mode in (0o644, 0o660, 0o604):
        assert "leaves the private key open" in pair(_pem(one), _key(one), mode)[0][0]


def test_certificate_and_key_swapped(pair, tmp_path):
    one = _signed("a")
    errors, warnings = pair(_key(one), _pem(one), 0o644)
    assert errors == [
        (
            "c.pem:1: this is a private key, and k.pem a certificate: the two are swapped; give the chain "
            "with -c k.pem, the key with -k c.pem"
        )
    ]
    assert warnings == []
    # The certificate given as both: its mode is right for a certificate, so there is no finding about it.
    assert pair(_pem(one), _pem(one), 0o644)[0] == [
        (
            "k.pem:1: no private key in PEM form, or a damaged one; write the key that belongs to the "
            "certificate here"
        )
    ]
    assert len(pair(_pem(one), _key(one) + _pem(one), 0o644)[0]) == 1  # both in one file: the mode counts


def test_keys_with_a_pass_phrase(pair):
    one, other = _signed("a"), _signed("a")
    locked = _key(one, b"open \xc3\xa4")
    assert pair(_pem(one), locked, phrase=b"open \xc3\xa4\nmore\n")[0] == []
    assert pair(_pem(one), locked, phrase=b"open \xc3\xa4\r\n")[0] == []
    errors, warnings = pair(_pem(one), locked)
    assert errors == []
    assert "has a pass phrase that a start has to ask for" in "".join(warnings)
    assert "does not open this private key" in pair(_pem(one), locked, phrase=b"shut")[0][0]
    assert "the first line is empty" in pair(_pem(one), locked, phrase=b"\nx")[0][0]
    assert "leaves the pass phrase open" in "".join(
        pair(_pem(one), locked, 0o644, phrase=b"open \xc3\xa4")[0]
    )
    assert "does not belong" in pair(_pem(other), locked, phrase=b"open \xc3\xa4")[0][0]


def test_further_certificates(site, capsys):
    place = os.path.join(site.directory, "more.pem")
    chain, key = make_certificate(["pop.example.org", "localhost"])
    with open(place, "wb") as file:
        file.write(chain + key)
    os.chmod(place, 0o600)
    toml = os.path.join(site.directory, "popkernel.toml")
    with open(toml, "a") as file:
        file.write(f'certs = ["{place}"]\n')
    errors, warnings = found(site, capsys=capsys)
    assert errors == []
    assert any(f"{place}:0: it is for localhost as {site.cert} is" in line for line in warnings)
    with open(place, "wb") as file:
        file.write(chain)
    assert f"{place}:1: no private key in PEM form" in found(site, capsys=capsys)[0][0]


def test_certificates_that_are_none(pair):
    key = _key(_signed("a"))
    assert pair(b"", key)[0][0].startswith("c.pem:1: no certificate in PEM form")
    broken = b"#\n-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    assert pair(broken, key)[0][0].startswith("c.pem:2: a certificate in it is damaged")
    nameless = _signed("a", san=False)
    assert any("names no host" in line for line in pair(_pem(nameless), _key(nameless))[1])
    errors, _ = check_certificate("/nonexistent/c", "/nonexistent/k")
    assert [error.path for error in errors] == ["/nonexistent/c", "/nonexistent/k"]


def test_free_ports_differ():
    assert len(set(sample_site.free_ports())) == 2


def with_file(site, key, data, mode=0o644, more=""):
    """Write a file of the site and set the key that names it."""
    path = os.path.join(site.directory, key)
    with open(path, "wb") as file:
        file.write(data)
    os.chmod(path, mode)
    with open(os.path.join(site.directory, "popkernel.toml"), "a") as file:
        file.write(f'{more}\n{key} = "{path}"\n')
    return path


OAUTH = 'oauth_issuer = "https://issuer"\noauth_audience = "pop3"'


def jwks(**more):
    import jwt

    key = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(ec.generate_private_key(ec.SECP256R1()).public_key()))
    return json.dumps({"keys": [key | more, key | {"kid": "other"}]}).encode()


def test_the_issuer_s_keys(site, capsys):
    path = with_file(site, "oauth_jwks", jwks(kid="one"), more=OAUTH)
    errors, warnings = found(site, capsys=capsys)
    assert not errors and not any(path in line for line in warnings)
    os.chmod(path, 0o666)
    assert any(
        line.startswith(f"{path}:0: mode 0666 lets others change whom")
        for line in found(site, capsys=capsys)[0]
    )
    os.chmod(path, 0o644)
    with open(path, "wb") as file:
        file.write(jwks())
    assert any(path in line and "no `kid`" in line for line in found(site, capsys=capsys)[1])
    with open(path, "wb") as file:
        file.write(b'{"keys": [{"kty": "oct", "k": "SECRET"}]}')
    errors, _ = found(site, capsys=capsys)
    assert (
        len(errors) == 1 and f"{path}:0: key 1 is a shared secret" in errors[0] and "SECRET" not in errors[0]
    )
    os.unlink(path)
    assert any(line.startswith(f"{path}:0: No such file") for line in found(site, capsys=capsys)[0])


def test_a_block_list(site, capsys):
    path = with_file(site, "block_list", b"# bad\n192.0.2.0/24\n198.51.100.1/24\n")
    errors, _ = found(site, capsys=capsys)
    assert errors == [
        f"{path}:3: '198.51.100.1/24' has bits beyond its length; write 198.51.100.0/24, or the address alone"
    ]
    with open(path, "wb") as file:
        file.write(b"127.0.0.0/8\n")
    errors, warnings = found(site, capsys=capsys)
    assert not errors and any(f"{path}:0: this machine itself is blocked" in line for line in warnings)
