"""Test import-uidl: a likely mistake gets a question and a non-zero exit code.

Otherwise clients would fetch all mail again.
"""

import os
import subprocess
import sys

import pytest
from popkernel.cli.common.sample_site import make_site


@pytest.fixture
def site(open_path):
    return make_site(str(open_path / "s"), mail=(b"a: b\n\nc\n",))


def imported(site, *arguments):
    command = [sys.executable, "-m", "popkernel", "import-uidl", "-u", site.user_table, *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in ended.stderr
    return ended.returncode, ended.stdout, ended.stderr.splitlines()


def bring(user, where=""):
    """Write the file that Dovecot keeps."""
    new = os.path.join(user.maildir, "new")
    path = os.path.join(user.maildir, where, "dovecot-uidlist")
    with open(path, "w") as file:
        file.write("3 V1 N2 G1\n" + "".join(f"{n} :{name}\n" for n, name in enumerate(os.listdir(new), 1)))
    os.chown(path, user.uid, user.gid)


def inside(user, sub):
    """Move the maildir one directory down."""
    path = f"{user.maildir}.kept"
    os.rename(user.maildir, path)
    os.mkdir(user.maildir, 0o700)
    os.rename(path, os.path.join(user.maildir, sub))
    os.chown(user.maildir, user.uid, user.gid)


def test_a_forgotten_e_is_asked_about(site):
    """ "Nothing to take over" with exit code 0 would make clients fetch all mail again."""
    for user in site.mail_users.values():
        bring(user)
        inside(user, "Maildir")
    for arguments in ((), ("-n",), ("--from", "dovecot")):
        code, _, errors = imported(site, *arguments)
        assert (code, errors[-1]) == (
            66,
            "popkernel import-uidl: no maildir found for 3 users; did you forget -e Maildir?",
        )
    code, said, errors = imported(site, "-e", "Maildir")
    assert (code, errors) == (0, []) and "3 unique ids taken over" in said.splitlines()[-1]
    code, _, errors = imported(site, "-e", "Mail")
    assert (code, errors[-1]) == (
        66,
        "popkernel import-uidl: no maildir found for 3 users; is -e Mail right?",
    )


def test_one_of_several_without_a_maildir(site):
    for user in site.mail_users.values():
        bring(user)
    os.rename(site.mail_users["bob"].maildir, site.mail_users["bob"].maildir + ".x")
    code, said, errors = imported(site)
    assert code == 66 and "2 unique ids taken over" in said.splitlines()[-1], "the others are served"
    assert errors[-1] == "popkernel import-uidl: no maildir found for 1 user; did you forget -e?"
    assert imported(site, "alice")[0] == 0


def test_no_ids_of_another_server_at_all(site):
    code, _, errors = imported(site)
    assert code == 66 and errors[-1].startswith(
        "popkernel import-uidl: no unique ids of another server found in any maildir; "
    )
    bring(site.mail_users["alice"])
    code, said, errors = imported(site)
    assert (code, errors) == (0, []) and "3 users, 2 with nothing to take over" in said


def test_a_table_that_cannot_be_used_ends_as_everywhere(site):
    with open(site.user_table, "w") as file:
        file.write("alice\n")
    code, _, errors = imported(site)
    assert code == 65 and errors[0].startswith(
        f"popkernel import-uidl: {site.user_table}:1: the line has no second column; "
    )
    code, _, errors = imported(site, "-e", "../elsewhere")
    assert code == 64 and errors == [
        (
            "popkernel import-uidl: -e: '../elsewhere' is no subdirectory; write it relative to the user's "
            "directory, without `..`"
        )
    ]
    os.truncate(site.user_table, 0)
    assert imported(site)[0] == 65
    os.unlink(site.user_table)
    assert imported(site)[0] == 66
