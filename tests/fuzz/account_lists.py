"""Read any list of accounts: no error; each maildir is absolute; findings name lines and hide secrets."""

from popkernel.proto.files.account_lists import FORMATS, maildir_of, parse_accounts
from popkernel.proto.files.tables import MAX_FINDINGS

TEMPLATES = ("", "/srv/%d/%n", "%h/Maildir", "%x")


def one(data):
    for form in ("", *FORMATS):
        accounts, findings = parse_accounts(data, "/l", form)
        assert accounts or findings
        assert len(findings) <= MAX_FINDINGS + 1
        lines = data.count(b"\n") + 1
        for finding in findings:
            assert 0 <= finding.line <= lines
            assert "s3cr3t" not in str(finding)
        for account in accounts:
            assert 1 <= account.line <= lines
            assert not any("s3cr3t" in note for note in account.notes)
            for template in TEMPLATES:
                try:
                    path = maildir_of(account, template)
                except ValueError:
                    continue
                assert path.startswith("/")
                assert "//" not in path


SEEDS = [
    b"a@b.c:{PLAIN}s3cr3t:1:2:G:/h:/s:userdb_mail=maildir:~/M:INDEX=/i userdb_quota_rule=*:bytes=1 nologin\n",
    b"user\ta@b.c\nfield\tvalue\nuid\t1\nhome\t/h\nmail\tmaildir:~/M\n  password  : {PLAIN}s3cr3t\nbob\n",
    b"a@b.c\tuid=1|gid=2|home=/h|mail=M|systempw=s3cr3t|quota=10S,1C|options=disablepop3=1\n",
    b'user;password;uid;gid;home;quota\n"a@b.c";s3cr3t;1;2;/h;1G\nb;"s3cr3t\n',
    b"\xef\xbb\xbfuser,maildir\r\na,/m/%n\r\nb:\xe9\n\0",
]
