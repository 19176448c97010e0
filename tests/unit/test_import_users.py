"""Test import-users: what it writes, what it leaves, and what it refuses."""

import io
import os
import stat
import subprocess
import sys

import pytest
from popkernel.actors.auth import schemes
from popkernel.cli import import_users
from popkernel.cli.common import table_files
from popkernel.cli.main import main
from popkernel.proto.files.tables import parse_auth, parse_users

BCRYPT = "$2y$05$evaQKKN2SwZFa8gExFp2n.bVIb0KC1gMYXiUuoZv/C5KPXBax5xGm"
SHA512 = "$6$salt$" + "a" * 86
GOOD = f"""\
alice@example.org:{{BLF-CRYPT}}{BCRYPT}:5000:5000::/srv/alice::userdb_quota_rule=*:storage=1G
bob:{{SHA512-CRYPT}}{SHA512}:5001:5001::/srv/bob::userdb_mail=maildir:/mail/bob
carol:!{BCRYPT}:5002:5002::/srv/carol::
dave:{BCRYPT}:5003:5003::/srv/dave::nologin
"""
WEAK = "eve:{SSHA}SECRETSECRET:5004:5004::/srv/eve::\nfred:SECRETSECRET:5005:5005::/srv/fred\n"


class Place:
    def __init__(self, path, capsys):
        self.path, self.capsys = path, capsys
        self.auth, self.users, self.list = path / "auth", path / "users", path / "list"

    def run(self, text, *flags):
        self.list.write_text(text)
        flags = ("--maildir", "%h/Maildir", *flags)
        code = main(["import-users", "-a", str(self.auth), "-u", str(self.users), *flags, str(self.list)])
        out, err = self.capsys.readouterr()
        assert "SECRET" not in out + err
        return code, out, err

    def files(self):
        return sorted(os.listdir(self.path))


@pytest.fixture
def place(tmp_path, capsys):
    return Place(tmp_path, capsys)


def test_a_whole_list(place):
    code, out, err = place.run(GOOD)
    assert (code, err) == (0, "")
    assert out == (
        "4 accounts: 2 keep their password (1 BLF-CRYPT, 1 SHA512-CRYPT), 2 were locked, 0 need a new one\n"
        f"{place.users} got 4 new lines, {place.auth} 4\n"
        "quotas of the list, for the configuration:\n"
        'quota_users = ["alice@example.org=1G"]\n'
    )
    auth = parse_auth(place.auth.read_bytes(), "t")
    assert auth.hashes == {"alice@example.org": BCRYPT.encode(), "bob": SHA512.encode()}
    assert auth.locked == ["carol", "dave"] and b"dave !$2y$05" in place.auth.read_bytes()
    users, findings = parse_users(place.users.read_bytes(), "t")
    assert findings == [] and users["bob"] == (5001, 5001, "/mail/bob")
    assert users["alice@example.org"] == (5000, 5000, "/srv/alice/Maildir")
    assert stat.S_IMODE(place.auth.stat().st_mode) == stat.S_IMODE(place.users.stat().st_mode) == 0o600
    assert place.files() == ["auth", "list", "users"]
    assert main(["passwd", "-a", str(place.auth), "--unlock", "carol"]) == 0
    assert "carol" in parse_auth(place.auth.read_bytes(), "t").hashes


def test_a_password_that_cannot_be_kept_is_named_and_marked(place):
    code, out, err = place.run(GOOD + WEAK)
    assert (code, out, place.files()) == (65, "", ["list"])
    assert (
        f"warning: {place.list}:5: account eve: a {{SSHA}} hash, not bcrypt, SHA-crypt or Argon2id: it" in err
    )
    assert f"{place.list}:6: account fred: its password is of no known scheme: it needs a new password" in err
    assert f"popkernel passwd -a {place.auth} fred" in err
    assert "nothing is written: 2 of 6 accounts cannot keep their password; with --mark" in err
    code, out, err = place.run(GOOD + WEAK, "--mark")
    assert code == 0 and "2 keep their password" in out and "2 need a new one" in out
    text = place.auth.read_text()
    assert f"# import-users: {place.list}:5: a {{SSHA}} hash, not bcrypt" in text and "\neve !\n" in text
    assert parse_auth(text.encode(), "t").locked == ["carol", "dave", "eve", "fred"]
    assert parse_users(place.users.read_bytes(), "t")[0]["eve"].uid == 5004  # his mail is taken
    assert "SECRET" not in text


def test_a_dry_run_writes_nothing(place):
    code, out, _ = place.run(GOOD + WEAK, "--mark", "-n")
    assert code == 0 and f"{place.users} would get 6 new lines" in out
    assert place.files() == ["list"]


def test_tables_that_exist_are_neither_overwritten_nor_changed(place):
    assert place.run(GOOD)[0] == 0
    old = place.auth.read_bytes(), place.users.read_bytes()
    code, _, err = place.run(GOOD)
    assert code == 73 and f"{place.users} exists; name another, or add to it with --append" in err
    assert place.run(GOOD, "-n")[0] == 73
    more = f"alice@example.org:{SHA512}:1:1::/elsewhere\nnew:{BCRYPT}:5009:5009::/srv/new\n"
    place.auth.chmod(0o640)
    code, out, _ = place.run(more, "--append")
    assert code == 0 and "got 1 new lines" in out
    assert place.auth.read_bytes() == old[0] + f"new {BCRYPT}\n".encode()
    assert place.users.read_bytes() == old[1] + b"new 5009:5009:/srv/new/Maildir\n"
    assert stat.S_IMODE(place.auth.stat().st_mode) == 0o640


def test_an_interrupted_import_goes_on(place, monkeypatch):
    replace, calls = table_files.replace, []

    def failing(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        replace(*arguments)

    monkeypatch.setattr(table_files, "replace", failing)
    code, _, err = place.run(GOOD)
    assert code == 73 and f"{place.users} is written, and {place.auth} is not: No space left" in err
    assert "--append" in err and place.files() == ["list", "users"]
    code, out, _ = place.run(GOOD, "--append")
    assert code == 0 and f"{place.users} got 0 new lines, {place.auth} 4" in out


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (f"root:{BCRYPT}:0:0::/root", "5: account root: uid 0 is root's"),
        (f"x:{BCRYPT}:1:0::/x", "5: account x: gid 0 is root's"),
        (f"x:{BCRYPT}:::: /x", "5: account x: the list has no uid; write it as a number, or give --uid"),
        (
            f"x:{BCRYPT}:no-such-user:1::/x",
            "5: account x: its uid is unknown here; write it as a number, or make it",
        ),
        ("x:{PLAIN}two:SECRET:5001:5001::/x", "5: account x: its uid is unknown here"),
        (f"x:{BCRYPT}:99999999999:1::/x", "5: account x: there is no uid 99999999999"),
        (f"bob:{BCRYPT}:1:1::/x", "5: account bob: is there again, see line 2"),
        (f"Bob:{BCRYPT}:1:1::/x", "5: account Bob: differs from bob in case only, see line 2"),
        (
            f"x:{BCRYPT}:5001:5001::/x::userdb_mail=/mail/./bob",
            "has the same maildir as bob on line 2: /mail/bob",
        ),
        (f"x:{BCRYPT}:1:1::/a/../b", "5: account x: the maildir's path has a `..`"),
        (f"x:{BCRYPT}:1:1::/x::userdb_mail=mbox:~/mail", "the mail is in mbox format, not a maildir"),
        (f"x y:{BCRYPT}:1:1::/x", "5: account x y: the name has a blank"),
        (
            f"$x:{BCRYPT}:1:1::/x",
            "5: account $x: the name has a blank, a colon or a control character, or starts",
        ),
        (f"x\u200b:{BCRYPT}:1:1::/x", "the name has an invisible character; choose"),
        (":SECRET", "5: the line is not user:password"),
    ],
)
def test_an_error_keeps_everything_from_being_written(place, line, said):
    code, out, err = place.run(GOOD + line + "\n", "--mark", "--format", "passwd-file")
    assert (code, out) == (65, "") and said in err and "SECRET" not in err
    assert "nothing is written: 1 error; mend" in err
    assert place.files() == ["list"]


def test_what_the_tables_have_already_is_no_other_s(place):
    assert place.run(GOOD)[0] == 0
    for line, said in (
        (
            f"ALICE@example.org:{BCRYPT}:1:1::/x",
            "differs in case only from alice@example.org, which is in a table",
        ),
        (
            f"x:{BCRYPT}:1:1::/srv/carol",
            f"has the same maildir as carol in {place.users}: /srv/carol/Maildir",
        ),
    ):
        code, _, err = place.run(line + "\n", "--append")
        assert code == 65 and said in err


def test_ids_and_maildirs_by_flags(place):
    text = f"user,password\nalice@example.org,{BCRYPT}\n"
    code, _, err = place.run(text, "--uid", "daemon", "--gid", "12", "--maildir", "/srv/%d/%n")
    assert (code, err) == (0, "")
    assert place.users.read_text() == "alice@example.org 1:12:/srv/example.org/alice\n"


def test_quotas_that_most_have(place):
    line = "u%d:" + BCRYPT + ":%d:100::/srv/%d::userdb_quota_rule=*:storage=%s\n"
    rows = [(1, "1G"), (2, "1G"), (3, "5G")]
    _, out, _ = place.run("".join(line % (n, 5000 + n, n, quota) for n, quota in rows))
    assert out.endswith('quota = "1G"\nquota_users = ["u3=5G"]\n')


def test_a_scheme_whose_library_is_missing(place, monkeypatch):
    monkeypatch.setattr(
        import_users, "_missing", lambda scheme: "" if scheme == "BLF-CRYPT" else "it is not here"
    )
    code, _, err = place.run(GOOD)
    assert code == 65
    assert "account bob: a SHA512-CRYPT hash, and it is not here; install libpass" in err
    assert "and import it then, or give --keep-schemes\n" in err
    assert "it needs a new password" not in err, "it can be kept"
    assert err.endswith("locked lines (1 of them only because a library is not installed: see above)\n")
    assert place.run(GOOD, "-n", "--mark")[1].startswith(
        "4 accounts: 1 keep their password (1 BLF-CRYPT), 2 were locked, 1 need a new one (1 of "
    )
    assert place.run(GOOD, "--keep-schemes")[0] == 0
    assert "bob" in parse_auth(place.auth.read_bytes(), "t").hashes
    assert schemes.import_library("BLF-CRYPT") == ""


def test_a_damaged_table_is_not_added_to(place):
    place.users.write_bytes(b"half")
    code, _, err = place.run(GOOD, "--append")
    assert code == 65 and "half written" in err
    assert place.files() == ["list", "users"]
    place.users.write_bytes(b"a 0:0:/a\n")
    code, _, err = place.run(GOOD, "--append", "-n")
    assert code == 65 and f"{place.users}:1: uid 0 is root's" in err


def test_the_list_and_the_tables_must_be_there(place):
    assert main(["import-users", "-a", str(place.auth), "-u", str(place.users), "/no/such"]) == 66
    assert main(["import-users", "-a", "/no/such/dir/a", "-u", str(place.users), str(place.list)]) == 66
    place.list.write_text(GOOD)
    code = main(
        ["import-users", "-a", str(place.auth), "-u", str(place.auth), str(place.list), "--maildir", "%h"]
    )
    assert code == 64 and "name the same file" in place.capsys.readouterr().err
    flags = ["--maildir", "%h", str(place.list)]
    assert main(["import-users", "-a", "/no/such/dir/a", "-u", str(place.users), *flags]) == 73
    assert place.files() == ["list"]


def test_a_list_from_standard_input(place, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"a:{BCRYPT}:1:1::/h\n:x\n".encode())))
    code = main(["import-users", "-a", str(place.auth), "-u", str(place.users), "--maildir", "%h", "-"])
    assert code == 65 and "standard input:2: the line is not" in place.capsys.readouterr().err


def test_a_table_changed_meanwhile_keeps_the_change(place):
    """Both tables are read under the lock that `passwd` takes."""
    assert place.run(GOOD)[0] == 0
    with table_files.locked(str(place.auth)) as descriptor:
        place.list.write_text(f"new:{BCRYPT}:5009:5009::/srv/new\n")
        command = ["import-users", "-a", str(place.auth), "-u", str(place.users), "--append", str(place.list)]
        waiting = subprocess.Popen([sys.executable, "-m", "popkernel", *command, "--maildir", "%h"])
        data = place.auth.read_bytes() + f"meanwhile {BCRYPT}\n".encode()
        table_files.replace(str(place.auth), data, descriptor)
    assert waiting.wait(30) == 0
    assert list(parse_auth(place.auth.read_bytes(), "t").hashes)[-2:] == ["meanwhile", "new"]
