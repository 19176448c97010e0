"""Test the two tables: what is accepted, what is refused, and that no secret shows."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from popkernel.proto.files import tables
from popkernel.proto.files.tables import Finding, MailUser, damage, parse_auth, parse_users

HASH = b"$2b$10$" + b"abcdefghijklmnopqrstu" + b"v" * 32
OTHER = b"$2y$04$" + b"." * 53
assert len(HASH) == len(OTHER) == 60


def only(findings):
    assert len(findings) == 1, findings
    return findings[0]


def test_the_original_s_form():
    assert parse_auth(b"alice " + HASH + b"\nbob2\t \t" + OTHER + b"\n", "auth") == (
        {"alice": HASH, "bob2": OTHER},
        [],
        {},
        [],
    )
    users, findings = parse_users(b"alice 1000:1001:/home/alice\nbob2\t7:8:/b/\n", "users")
    assert (users, findings) == (
        {"alice": MailUser(1000, 1001, "/home/alice"), "bob2": MailUser(7, 8, "/b")},
        [],
    )


def test_opensmtpd_s_form():
    data = (
        b"# people\n\n  joe@example.org:\t"
        + HASH
        + b"  \n\t# more\nann:"
        + OTHER
        + b"\neve : "
        + HASH
        + b"\n"
    )
    assert parse_auth(data, "auth") == ({"joe@example.org": HASH, "ann": OTHER, "eve": HASH}, [], {}, [])
    data = b"# people\n \njoe@example.org: 1:2:/home/joe smith\nann 3:4:/x#y\n"
    expected = {"joe@example.org": MailUser(1, 2, "/home/joe smith"), "ann": MailUser(3, 4, "/x#y")}
    assert parse_users(data, "users") == (expected, [])


def test_eight_bit_names_and_paths():
    assert parse_auth("josé ".encode() + HASH + b"\n", "a") == ({"josé": HASH}, [], {}, [])
    users, findings = parse_users("josé 1:1:/home/".encode() + b"\xff\n", "u")
    assert (users, findings) == ({"josé": MailUser(1, 1, "/home/\udcff")}, [])
    assert "invisible character" in only(parse_auth("jo\u200bsé ".encode() + HASH + b"\n", "a")[1]).what
    assert "not UTF-8" in only(parse_auth(b"jos\xe9 " + HASH + b"\n", "a")[1]).what


@pytest.mark.parametrize("subdir", ["Maildir", "/Maildir/", "Maildir/"])
def test_subdirectory(subdir):
    fast = parse_users(b"a 1:1:/home/a/\n", "u", subdir)
    careful = parse_users(b"a 1:1:/home/a/ \n", "u", subdir)
    assert fast == careful == ({"a": MailUser(1, 1, "/home/a/Maildir")}, [])


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (b"$6$salt$SECRETSECRET", "SHA512-CRYPT hash is malformed"),
        (b"$argon2id$v=19$SECRET", "ARGON2ID hash is malformed"),
        (b"$argon2i$v=19$SECRET", "$argon2i$"),
        (b"$1$salt$SECRET", "$1$"),
        (b"{PLAIN}SECRET", "{PLAIN}"),
        (b"{MD5}SECRET", "{MD5}"),
        (b"{SHA}SECRET", "{SHA}"),
        (b"{NTLM}SECRET", "{NTLM}"),
        (b"{DES-CRYPT}SECRET", "{DES-CRYPT}"),
        (b"$y$j9T$SECRET", "$y$"),
        (b"{SSHA}SECRET", "{SSHA}"),
        (b"{SECRET}", "not a hash of bcrypt"),
        (b"$SECRET$x", "not a hash of bcrypt"),
        (b"SECRET", "not a hash of bcrypt"),
        (b"$2b$03$" + b"S" * 53, "cost"),
        (b"$2b$32$" + b"S" * 53, "cost"),
        (b"$2b$xx$" + b"S" * 53, "cost"),
        (b"$2b$10$" + b"S" * 52, "59 characters"),
        (b"$2b$10$" + b"S" * 54, "61 characters"),
        (b"$2b$10$" + b"S" * 52 + b"_", "character"),
        (HASH + b" SECRET", "67 characters"),
        (b"$2x$10$" + b"S" * 53, "$2x$"),
        (b"{BLF-CRYPT}$6$SECRET", "SHA512-CRYPT hash is malformed"),
        (b"{ssha512.b64}SECRET", "{ssha512.b64}"),
        (b"{BLF-CRYPT.B64}SECRET", "{BLF-CRYPT.B64}"),
        (b"$2b$19$" + b"S" * 53, "cost 19 takes longer than a client waits"),
        (b"{BLF-CRYPT}$2b$31$" + b"S" * 53, "cost 31 takes longer than a client waits"),
    ],
)
def test_an_unsupported_hash_locks_out_its_user_and_is_named_by_scheme(value, said):
    hashes, errors, shut_out, locked = parse_auth(b"ok " + HASH + b"\nalice " + value + b"\n", "/etc/auth")
    assert (list(hashes), errors, locked) == (["ok"], [], [])
    finding = shut_out.pop("alice")
    assert not shut_out
    assert (finding.path, finding.line) == ("/etc/auth", 2)
    assert "cannot log in: " in finding.what and said in finding.what
    assert ("alice" in finding.what) == (
        b"SECRET" != value[:6] and b"{SECRET" not in value and value != b"$SECRET$x"
    ), "a possible password is not shown"
    assert "SECRET" not in str(finding)
    assert "SSSS" not in str(finding)
    assert "popkernel passwd" in finding.mend


def test_the_hashes_of_other_servers_tools():
    """`doveadm pw -s BLF-CRYPT` writes its scheme before the hash."""
    lines = (
        b"a {BLF-CRYPT}" + OTHER + b"\nb: {CRYPT}" + HASH + b"\nc {blf-crypt}" + HASH + b"\nd " + HASH + b"\n"
    )
    for data in (lines, lines + b" e " + HASH + b" \n"):  # the fast parser, then the careful one
        hashes, *others = parse_auth(data, "t")
        assert list(hashes.values())[:4] == [OTHER, HASH, HASH, HASH] and others == [[], {}, []]


@pytest.mark.parametrize(
    "value", [b"!", b"*", b"!!", b"*LK*", b"!" + HASH, b"*" + HASH, b"{BLF-CRYPT}!" + HASH, b"{CRYPT}*"]
)
def test_locked_users(value):
    assert parse_auth(b"ok " + HASH + b"\nalice " + value + b"\n", "t") == ({"ok": HASH}, [], {}, ["alice"])
    assert parse_auth(b"alice " + value + b"\n", "t") == ({}, [], {}, ["alice"]), (
        "the last user who could log in is locked at once"
    )
    assert (
        "again, first on line 1"
        in only(parse_auth(b"alice " + value + b"\nalice " + HASH + b"\n", "t").errors).what
    )


def test_a_table_without_any_hash_is_refused():
    errors = parse_auth(b"alice 1:1:/home/a\nbob 2:2:/home/b\n", "t").errors
    assert [(f.line, f.what.partition(": ")[0]) for f in errors] == [
        (1, "its user cannot log in"),
        (2, "its user cannot log in"),
    ]
    assert (
        len(parse_auth(b"".join(b"u%d x\n" % n for n in range(500)), "t").errors) == tables.MAX_FINDINGS + 1
    )


@pytest.mark.parametrize("line", [b"alice", b"alice ", b"alice:", b"alice : ", b":" + HASH])
def test_a_line_without_second_column(line):
    assert "no second column" in only(parse_auth(line + b"\n", "a")[1]).what


def test_swapped_columns_do_not_show_the_hash():
    finding = only(parse_auth(HASH + b" alice\n", "a")[1])
    assert HASH.decode() not in str(finding)
    twice = parse_auth(2 * (HASH + b" " + HASH + b"\n"), "a")
    assert twice[0] == {}
    assert all(HASH.decode() not in str(finding) for finding in twice[1])


def test_duplicates_name_both_lines():
    finding = only(parse_auth(b"# c\na " + HASH + b"\nb " + HASH + b"\na " + OTHER + b"\n", "auth")[1])
    assert str(finding) == "auth:4: user a again, first on line 2; remove one of the two lines"
    _, findings = parse_users(b"eve 1:1:/a\n" + b"eve 0:0:/b\n" * 60, "users")
    assert [(f.line, f.what) for f in findings[:2]] == [
        (2, "user eve again, first on line 1"),
        (2, "uid 0 is root's"),
    ]
    assert len(findings) == 101 and findings[-1].what == "20 more errors"
    assert only(parse_users(b"a 1:1:/a\na 1:1:/a\n", "u")[1]).line == 2


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (b"0:1:/a", "uid 0"),
        (b"1:0:/a", "gid 0"),
        (b"1:00:/a", "gid 0"),
        (b"2147483648:1:/a", "uid is over"),
        (b"1:4294967295:/a", "gid is over"),
        (b"x:1:/a", "numbers"),
        (b"-1:1:/a", "numbers"),
        (b"1:1", "numbers"),
        (b"1:1:", "absolute"),
        (b"1:1:home/a", "absolute"),
        (b"1:1:/home/../a", ".."),
        (b"1:1:/home/..", ".."),
        (b"1:1:/", "root directory"),
        (b"1:1:///", "root directory"),
        (b"1:1:/a\x01b", "control"),
    ],
)
def test_user_values_that_are_refused(value, said):
    users, findings = parse_users(b"ok 1:1:/..ok\na " + value + b"\n", "u")
    assert list(users) == ["ok"]
    assert said in only(findings).what
    assert only(findings).line == 2


@pytest.mark.parametrize("parse", [parse_auth, parse_users])
@pytest.mark.parametrize(
    ("data", "line", "said"),
    [
        (b"", 1, "no user"),
        (b"# only\n# comments\n", 3 - 1, "no user"),
        (b"a b\r\nc d\r\n", 1, "CR LF"),
        (b"#\n\0\0\0\n", 2, "NUL"),
        (b"\xef\xbb\xbfa b\n", 1, "byte order mark"),
        (b"\xff\xfea\0", 1, "byte order mark"),
        (b"#\n#\nhalf", 3, "half written"),
    ],
)
def test_files_that_are_no_table(parse, data, line, said):
    entries, findings = parse(data, "t")[:2]
    assert entries == {}
    assert said in only(findings).what
    assert only(findings).line == line
    assert only(findings).mend


def test_a_half_edited_file_reports_all_errors():
    findings = parse_auth(b"a x\nb $2b$10$ab", "t")[1]
    assert [finding.line for finding in findings] == [1, 2]


def test_limits():
    assert "over 248" in only(parse_auth(b"n" * 249 + b" " + HASH + b"\n", "t")[1]).what
    assert parse_auth(b"n" * 248 + b" " + HASH + b"\n", "t")[1] == []
    assert "over 4608" in only(parse_users(b"a 1:1:/" + b"x" * 5000 + b"\n", "t")[1]).what
    findings = parse_auth(b"zzz\n" * 1000, "t")[1]
    assert len(findings) == tables.MAX_FINDINGS + 1
    assert "900 more errors" in findings[-1].what
    findings = parse_auth(b"zzz\n" * 1000 + b"half", "t")[1]
    assert len(findings) == tables.MAX_FINDINGS + 1
    assert "901 more errors" in findings[-1].what
    assert "half written" in parse_auth(b"zzz\n" * (tables.MAX_FINDINGS - 1) + b"half", "t")[1][-1].what


def test_a_huge_file_is_one_finding():
    data = b"#" * (tables.MAX_TABLE + 1)
    assert "over 67108864 octets" in only(parse_auth(data, "t")[1]).what
    assert damage(data, "t") is not None


def test_damage():
    assert damage(b"", "t") is None
    assert damage(b"anything goes\n", "t") is None
    assert damage(b"a\nb", "t").line == 2


def test_finding_text():
    assert str(Finding("f", 3, "bad", "mend it")) == "f:3: bad; mend it"
    assert str(Finding("f", 0, "bad", "mend it")) == "f: bad; mend it"


@given(st.binary(max_size=400))
def test_no_octets_make_the_parser_raise(data):
    for parse in (parse_auth, parse_users):
        entries, findings = parse(data, "t")[:2]
        assert entries or findings or parse(data, "t")[3]


_names = st.text("ab.@-é\"'", min_size=1, max_size=3)
_gaps = st.sampled_from([" ", "\t", ":", ": ", " :", "  "])
_homes = st.sampled_from(["/a", "/a/", "/", "/..", "/..a", "/a b", "a", "/a/../b", "/é"])
_ids = st.sampled_from(["0", "1", "01", "2147483647", "2147483648", "12345678901", "x"])
_user_lines = st.tuples(_names, _gaps, _ids, _ids, _homes).map(
    lambda t: f"{t[0]}{t[1]}{t[2]}:{t[3]}:{t[4]}\n".encode()
)


@given(st.lists(_user_lines | st.sampled_from([b"\n", b"# c\n", b" \n"]), min_size=1, max_size=4))
def test_the_fast_way_and_the_careful_way_agree(lines):
    data = b"".join(lines)
    # A blank at the end of each line is allowed, and matches no fast pattern.
    careful = b"".join(line[:-1] + b" \n" for line in lines)
    fast_users, fast_findings = parse_users(data, "t", "sub")
    assert (fast_users, bool(fast_findings)) == (lambda u, f: (u, bool(f)))(*parse_users(careful, "t", "sub"))


def test_speed():
    """Ten thousand users take 30 ms on an idle machine; ten times that here, since tests share theirs."""
    auth = b"# c\n" + b"".join(b"user%05d %s\n" % (i, HASH) for i in range(10_000))
    users = b"# c\n" + b"".join(b"user%05d %d:%d:/home/u%d\n" % (i, i + 1, i + 1, i) for i in range(10_000))
    for parse, data in ((parse_auth, auth), (parse_users, users)):
        began = time.process_time()
        assert len(parse(data, "t")[0]) == 10_000
        assert time.process_time() - began < 0.3
