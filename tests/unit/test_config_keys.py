"""Test the configuration's flags and file: each error has its place and mend."""

import os
import socket
import sys

import pytest
from popkernel.kernel.config.addresses import Address
from popkernel.kernel.config.keys import Config, default_run_dir
from popkernel.kernel.config.loading import ConfigError, control_path, load
from popkernel.kernel.init.ids import actor_ids, make_user_command

FLAGS = {
    "auth_table": "/a",
    "user_table": "/u",
    "listen": ["127.0.0.1"],
    "cert": "/c",
    "key": "/k",
    "run_dir": "/r",
}


def findings(flags=FLAGS, toml_path=None):
    with pytest.raises(ConfigError) as caught:
        load(flags, toml_path)
    assert str(caught.value)
    return [str(finding) for finding in caught.value.findings]


def toml(tmp_path, text):
    path = tmp_path / "c.toml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("text", "host", "port", "shown"),
    [
        ("127.0.0.1", "127.0.0.1", 995, "127.0.0.1:995"),
        ("127.0.0.1:1995", "127.0.0.1", 1995, "127.0.0.1:1995"),
        ("127.0.0.1:0", "127.0.0.1", 0, "127.0.0.1:0"),
        ("::1", "::1", 995, "[::1]:995"),
        ("[::1]", "::1", 995, "[::1]:995"),
        ("[0:0::0:1]:65535", "::1", 65535, "[::1]:65535"),
        ("2001:DB8::1", "2001:db8::1", 995, "[2001:db8::1]:995"),
        ("fe80::1%eth0", "fe80::1%eth0", 995, "[fe80::1%eth0]:995"),
    ],
)
def test_addresses(text, host, port, shown):
    address = Address.parse(text, 995)
    assert address == (host, port)
    assert str(address) == shown
    assert Address.parse(shown, 1) == address
    assert address.family == (socket.AF_INET6 if ":" in host else socket.AF_INET)


@pytest.mark.parametrize(
    "text",
    ["", "localhost", "127.1", "1.2.3.4.5", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:65536", "127.0.0.1:-1",
     "[127.0.0.1]:9", "[::1", "::1]:9", "[::1]9", "[]", "*:995", "127.0.0.1:99 5", "1.2.3.4%eth0", "::1%",
     "::1%a b",
     "127.0.0.1\0", "٣.1.1.1"],
)  # fmt: skip
def test_malformed_addresses(text):
    with pytest.raises(ValueError, match="; write"):
        Address.parse(text, 995)


def test_loopback():
    assert Address("127.9.9.9", 1).is_loopback
    assert Address("::1", 1).is_loopback
    assert not Address("0.0.0.0", 1).is_loopback


def test_flags_alone():
    config = load({**FLAGS, "verbose": None, "listen_starttls": ["[::1]"]})
    assert config.listen == (Address("127.0.0.1", 995),)
    assert config.listen_starttls == (Address("::1", 110),)
    assert (config.verbose, config.login_seconds, config.idle_seconds, config.tls_min) == (0, 180, 600, "1.3")
    assert config.hostname
    assert config.control == "/r/control.sock"
    with pytest.raises(AttributeError):
        config.verbose = 1


def test_flags_win(tmp_path):
    path = toml(
        tmp_path,
        'auth_table = "/file"\nuser_table = "/u"\ncert = "/c"\nkey = "/k"\nverbose = 3\n'
        'listen = ["127.0.0.1:1", "[::1]:2"]\nlisten_starttls = "127.0.0.1:3"\nlmtp = false\n',
    )
    config = load({"auth_table": "/flag", "listen": None}, path)
    assert (config.auth_table, config.user_table, config.verbose, config.lmtp) == ("/flag", "/u", 3, False)
    assert [str(address) for address in config.listen] == ["127.0.0.1:1", "[::1]:2"]
    assert [str(address) for address in config.listen_starttls] == ["127.0.0.1:3"]


def test_quotes_are_mentioned_if_there_are_some(tmp_path):
    said = findings({**FLAGS, "listeners": 99999999})[0]
    assert said == "command line: --listeners: listeners: 99999999 is no whole number from 1 to 64; write one"
    path = toml(tmp_path, 'listeners = "5"\nlmtp = "yes"\nwatch = 1\n')
    assert [line.partition("; ")[2] for line in findings(FLAGS, path)] == [
        "write one, without quotes",
        "write one of the two, without quotes",
        "write one of the two",
    ]


def test_all_missing_settings_are_reported_at_once():
    said = "\n".join(findings({}))
    for flag in ("-a FILE", "-u FILE", "-c FILE", "-k FILE", "-l ADDR"):
        assert flag in said


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("listenn = []", "did you mean listen?"),
        ("certificate = '/a'", "did you mean cert?"),
        ("private_key = '/a'", "did you mean key?"),
        ("max_sessions = 6", "this is given twice; remove one of the two"),
        ("auth-table = '/a'", "did you mean auth_table?"),
        ("zzz = 1", "unknown key 'zzz'"),
        ("[server]\nport = 1", "unknown key 'server'"),
        ("'verbose' = 11", "no whole number from 0 to 10"),
        ("verbose = true", "no whole number"),
        ('verbose = "1"', "no whole number"),
        ("lmtp = 1", "neither true nor false"),
        ("listen = 995", "no list of addresses"),
        ("listen = [995]", "int where a text is wanted"),
        ('listen = ["mail.example.org"]', "no numeric address"),
        ('log = "file"', '"auto", "syslog", "stderr"'),
        ('tls_min = "1.1"', '"1.2", "1.3"'),
        ('auth_user = "root:0"', "no user"),
        ('auth_user = "0:5"', "from 1 to"),
        ('subdir = "/x"', "no subdirectory"),
        ('subdir = "a/../b"', "no subdirectory"),
        ('cert = "relative.pem"', "no absolute path; write /"),
        ('hostname = "a b"', "no host name"),
        ('lmtp_listen = ["0.0.0.0:24"]', "no loopback address"),
        ('listen_starttls = ["127.0.0.1:995"]', "listened on twice"),
        ('key = ""', "empty"),
        ("verbose = ", "Invalid value"),
    ],
)
def test_errors_in_the_file_have_their_line(tmp_path, line, said):
    path = toml(tmp_path, f"# first\nmax_sessions = 5\n{line}\n")
    flags = (
        {**FLAGS, line.partition(" =")[0]: None} if line.startswith(("cert", "key", "listen = ")) else FLAGS
    )
    found = findings(flags, path)
    assert any(text.startswith(f"{path}:3: ") and said in text for text in found), found


def test_files_that_cannot_be_read(tmp_path):
    assert "No such file" in findings(FLAGS, str(tmp_path / "none"))[0]
    (tmp_path / "latin").write_bytes(b"#\n#\n# \xe9\n")
    assert findings(FLAGS, str(tmp_path / "latin")) == [
        f"{tmp_path}/latin:3: the file is not UTF-8; save it as UTF-8"
    ]
    assert "irectory" in findings(FLAGS, str(tmp_path))[0]


def test_errors_in_flags_name_the_flag():
    assert findings({**FLAGS, "listen": ["x"]})[0].startswith(
        "command line: -l: listen: 'x' is no numeric address; "
    )
    assert findings({**FLAGS, "listeners": 0})[0].startswith("command line: --listeners: ")


def test_long_run_dir():
    assert "over 100" in findings({**FLAGS, "run_dir": "/" + "r" * 90})[0]
    assert control_path("/" + "r" * 86).endswith("/control.sock")


def test_default_run_dir(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/4242")
    assert default_run_dir() == "/run/user/4242/popkernel"
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert default_run_dir() == "/tmp/popkernel-4242"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_run_dir().endswith("/run/popkernel")


def test_ids_of_an_ordinary_user(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    monkeypatch.setattr(os, "getegid", lambda: 4243)
    assert actor_ids(Config()) == dict.fromkeys(("listener", "auth", "mda"), (4242, 4243))


def test_ids_as_root(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    numbers = {"listener_user": "5:6", "auth_user": "7:8", "mda_user": "9:10"}
    assert actor_ids(Config(**numbers)) == {"listener": (5, 6), "auth": (7, 8), "mda": (9, 10)}
    for users, said in (
        ({"auth_user": "nosuchuser-x"}, "there is no user nosuchuser-x; make it: useradd "),
        ({"auth_user": "root"}, "root's uid"),
        ({"auth_user": "5:9"}, "same uid, 5, as listener_user"),
    ):
        with pytest.raises(ConfigError) as caught:
            actor_ids(Config(**{**numbers, **users}))
        assert said in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        actor_ids(Config(listener_user="nosuch-x", auth_user="nosuch-y", mda_user="nosuch-z"))
    mends = [
        finding.mend.partition(", or write numbers in the file of -f: ")[2]
        for finding in caught.value.findings
    ]
    assert mends == ['listener_user = "64301:64301"', 'auth_user = "64302:64302"', 'mda_user = "64303:64303"']


def test_the_command_that_makes_a_user(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    assert "--system" in make_user_command("_pop3d")
    monkeypatch.setattr(sys, "platform", "openbsd7")
    assert make_user_command("_x") == "useradd -L daemon -s /sbin/nologin -d /var/empty _x"


@pytest.mark.parametrize(
    ("text", "lacks"),
    [
        ('oauth_issuer = "https://i"\n', "oauth_audience, oauth_jwks is missing"),
        ('oauth_audience = "pop3"\n', "oauth_issuer, oauth_jwks is missing"),
        ('oauth_issuer = "https://i"\noauth_jwks = "/jwks"\n', "oauth_audience is missing"),
        ('oauth_scope = "mail"\n', "oauth_issuer, oauth_audience, oauth_jwks is missing"),
        ('oauth_user_claim = "sub"\n', "oauth_issuer, oauth_audience, oauth_jwks is missing"),
        (
            'oauth_issuer = "https://i"\noauth_jwks = "/jwks"\noauth_audience = "p"\noauth_user_claim = ""\n',
            "oauth_user_claim is empty",
        ),
        ('oauth_issuer = "a b"\noauth_jwks = "/jwks"\noauth_audience = "p"\n', "is no word"),
    ],
)
def test_tokens_in_part(tmp_path, text, lacks):
    found = findings(toml_path=toml(tmp_path, text))
    assert lacks in found[0] and "c.toml:" in found[0] and "; " in found[0]


def test_tokens_whole_and_none(tmp_path):
    whole = 'oauth_issuer = "https://i"\noauth_jwks = "/jwks"\noauth_audience = "p"\n'
    assert load(FLAGS, toml(tmp_path, whole)).oauth_user_claim == "email"
    assert load(FLAGS, toml(tmp_path, 'oauth_issuer = ""\noauth_scope = ""\n')).oauth_issuer == ""
