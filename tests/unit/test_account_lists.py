"""Test lists of accounts: each format, how it is detected, and what is refused with its line."""

import pytest
from popkernel.proto.files.account_lists import Account, expand, maildir_of, parse_accounts, quota_of

HASH = "$2y$05$evaQKKN2SwZFa8gExFp2n.bVIb0KC1gMYXiUuoZv/C5KPXBax5xGm"
ALICE = Account(1, "alice@example.org", HASH, "5000", "5001", "/srv/alice")


def read(text, form=""):
    accounts, findings = parse_accounts(text.encode(), "/l", form)
    assert findings == []
    return accounts


def faults(text, form=""):
    return [str(finding) for finding in parse_accounts(text.encode(), "/l", form)[1]]


def test_dovecot_s_passwd_file():
    assert read(f"alice@example.org:{HASH}:5000:5001::/srv/alice::\n") == [ALICE]
    assert read(f"\n# note\nbob:{{CRYPT}}{HASH}\n") == [Account(3, "bob", "{CRYPT}" + HASH)]
    extra = "userdb_mail=maildir:~/Mail:INDEX=/i userdb_quota_rule=*:storage=2G nologin allow_nets=10.0.0.0/8"
    assert read(f"a:{HASH}:1:2:A B:/h:/bin/sh:{extra}\n") == [
        Account(
            1,
            "a",
            HASH,
            "1",
            "2",
            "/h",
            "maildir:~/Mail:INDEX=/i",
            "2G",
            True,
            ("allow_nets is not taken over",),
        )
    ]
    (nobody,) = read("a:secret:1:2::/h::nopassword userdb_home=/other\r\n")
    assert (nobody.password, nobody.home) == ("", "/other") and "takes any password" in nobody.notes[0]
    assert read("a:x:1:2::/h::userdb_quota_over=1 quotaSECRET=1\n")[0].notes == (
        "quota_over is not taken over",
    )
    assert read("a:abc[13]:1:2::/h\n")[0].password == "abc"


def test_what_doveadm_prints():
    """As of 2.3: `doveadm user '*'`, and `doveadm user` and `doveadm auth lookup` for each name."""
    assert read("alice\nbob@example.org\n") == [Account(1, "alice"), Account(2, "bob@example.org")]
    table = "field\tvalue\nuid\t5000\ngid\t5001\nhome\t/srv/alice\n"
    lookup = f"passdb: alice@example.org\n  user      : alice@example.org\n  password  : {HASH}\n"
    lookup += "  nologin   \n            \n"
    text = f"user\talice@example.org\n{table}{lookup}user bob\n".replace("user bob", "user\tbob")
    assert read(text) == [ALICE._replace(locked=True), Account(11, "bob")]
    text = f"user alice@example.org\n{table}mail\tmaildir:~/Maildir\nquota_rule\t*:storage=1G:messages=9\n"
    (alice,) = read(text.replace("user ", "user\t"))
    assert (alice.mail, alice.quota) == ("maildir:~/Maildir", "1G,9C")
    assert faults("a b\n", "doveadm")[0].startswith("/l:1: the line is no name and no field")
    assert faults("uid\t1\n", "doveadm")[0].startswith("/l:1: a field before the first account")


def test_courier_s_userdb():
    fields = "uid=5000|gid=5001|home=/srv/alice"
    assert read(f"alice@example.org\t{fields}|systempw={HASH}\n") == [ALICE]
    (alice,) = read(f"alice\t{fields}|mail=/m|systempw=x|pop3pw={HASH}|quota=10000000S,100C|shell=/bin/sh\n")
    assert (alice.password, alice.mail, alice.quota) == (HASH, "/m", "10000000,100C")
    (alice,) = read(f"alice\t{fields}|hmac-md5pw=abc|options=disablepop3=1\n")
    assert alice.locked and alice.notes == ("hmac-md5pw is not taken over",)
    assert "/l:2: the line is not `name`, a tab" in faults(f"a\t{fields}\nb SECRET\n", "userdb")[0]


def test_csv():
    rows = f'User;PASSWORD;uid;gid;home;quota\n"alice@example.org";{HASH};5000;5001;/srv/alice;1G\n'
    assert read(rows) == [ALICE._replace(line=2, quota="1G")]
    assert read('user,maildir\n"a","/m/a, b"\n\nb,\n') == [Account(2, "a", mail="/m/a, b"), Account(4, "b")]
    assert "column 2 has an unknown name" in faults("user,passwort\na,SECRET\n")[0]
    assert "column 3 has an unknown name, or one that another has" in faults("user,uid,uid\na,1,2\n")[0]
    said = faults('user,password\na,SECRET,x\n"b,SECRET\nc,d\n')
    assert said[0] == "/l:2: the row has 3 cells, and the header 2; mend the row"
    assert said[1].startswith("/l:3: the row is no CSV") and "SECRET" not in "".join(said)
    assert "no header row" in faults("a,b\n", "csv")[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "/l: neither a passwd-file"),
        ("# nothing\n\n", "/l: neither a passwd-file"),
        ("a b c\n", "say which with --format"),
        ("user,uid\n", "/l: the file has no account; is it the right one?"),
        ("a:x\n:SECRET\n", "/l:2: the line is not user:password"),
        ("a:x\nb:\0\n", "/l:2: NUL octet"),
        ("a:" + "x" * 20_000 + "\n", "/l:1: the line is too long"),
    ],
)
def test_what_cannot_be_read(text, said):
    accounts, findings = parse_accounts(text.encode(), "/l")
    assert said in str(findings[0]) and "SECRET" not in str(findings)


def test_octets_that_are_no_utf_8():
    assert str(parse_accounts(b"a:x\nb:\xe9\n", "/l")[1][0]).startswith("/l:2: the line is not UTF-8")
    assert parse_accounts(b"\xef\xbb\xbfuser,uid\na,1\n", "/l")[0] == [Account(2, "a", uid="1")]


def test_a_thousand_faults_are_counted():
    said = faults("a:x\n" + ":x\n" * 1000)
    assert len(said) == 101 and "900 more errors" in said[-1]


@pytest.mark.parametrize(
    ("text", "quota"),
    [
        ("*:storage=1G", "1G"),
        ("*:storage=1048576", "1048576K"),
        ("*:storage=0", "none"),
        ("*:bytes=1000:messages=10", "1000,10C"),
        ("*:storage=1GB", "1G"),
        ("500M,2000C", "500M,2000C"),
        ("1000S,10C", "1000,10C"),
        ("Trash:storage=+10%", ""),
        ("1Gx", ""),
        ("", ""),
    ],
)
def test_quotas(text, quota):
    assert quota_of(text) == quota


@pytest.mark.parametrize(
    ("mail", "template", "path"),
    [
        ("maildir:~/Maildir:INDEX=/var/i", "", "/srv/alice/Maildir"),
        ("maildir:/m/%d/%n", "", "/m/example.org/alice"),
        ("/m/%{user | domain}/%{user|username}/", "", "/m/example.org/alice"),
        ("~", "", "/srv/alice"),
        ("Maildir", "", "/srv/alice/Maildir"),
        ("", "%h/./Maildir", "/srv/alice/Maildir"),
        ("", "/m/%u%%", "/m/alice@example.org%"),
        ("/own", "/m/%u", "/own"),
    ],
)
def test_where_the_mail_is(mail, template, path):
    assert maildir_of(ALICE._replace(mail=mail), template) == path


@pytest.mark.parametrize(
    ("account", "template", "why"),
    [
        (ALICE, "", "give --maildir, as '%h/Maildir'"),
        (Account(1, "a"), "", "give --maildir, as '/srv/mail/%d/%n'"),
        (Account(1, "a"), "/m/%d/%n", "no domain for %d"),
        (Account(1, "a"), "%h/Maildir", "no home for %h"),
        (ALICE, "/m/%x", "%x is not"),
        (ALICE, "/m/%{owner}", "%{owner} is not"),
        (ALICE, "/m/%", "% is not"),
        (Account(1, "../b/c@d"), "/m/%n", "slash"),
        (Account(1, "a@../e"), "/m/%d", "slash"),
        (Account(1, "a@."), "/m/%d/%n", "a dot"),
        (ALICE._replace(mail="mbox:~/mail"), "", "mbox format, not a maildir"),
        (ALICE._replace(mail="sdbox:~/mail"), "/m", "sdbox format"),
        (Account(1, "a", mail="maildir:rel"), "", "no absolute path"),
    ],
)
def test_where_the_mail_cannot_be_told(account, template, why):
    with pytest.raises(ValueError, match=why.replace("(", r"\(").replace("{", r"\{")):
        maildir_of(account, template)
    assert expand("%n", "a@b", "") == "a"
