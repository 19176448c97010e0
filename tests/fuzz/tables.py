"""No octets make a table parser raise; what it takes is within bounds, what it refuses is told by line, and no secret stands in a finding."""

from popkernel.proto.files.tables import MAX_FINDINGS, MAX_ID, MAX_NAME, few, parse_auth, parse_users


def one(data):
    hashes, findings, shut_out, locked = parse_auth(data, "/t")
    assert hashes or findings or locked
    assert not set(hashes) & {*shut_out, *locked} or findings  # a name that is there twice is an error
    for name, value in hashes.items():
        assert 0 < len(name.encode()) <= MAX_NAME
        assert len(value) == 60
        assert value.startswith(b"$2")
        assert name.isprintable()
    told(findings, data)
    told(few(list(shut_out.values()), "more"), data)
    users, findings = parse_users(data, "/t", "Maildir" if len(data) % 2 else "")
    for user in users.values():
        assert 0 < user.uid <= MAX_ID
        assert 0 <= user.gid <= MAX_ID
        assert user.maildir.startswith("/")
        assert "\0" not in user.maildir
        assert ".." not in user.maildir.split("/")
    told(findings, data)


def told(findings, data):
    assert len(findings) <= MAX_FINDINGS + 1  # and how many more
    for finding in findings:
        assert 0 <= finding.line <= data.count(b"\n") + 1
        assert HASH[7:].decode() not in str(finding)
        assert "s3cr3t" not in str(finding)


HASH = b"$2b$04$abcdefghijklmnopqrstuuABCDEFGHIJKLMNOPQRSTUVWXYZ01234"
SEEDS = [
    b"alice " + HASH + b"\nbob: " + HASH + b"\n# note\n\n \t x@example.org\t" + HASH + b"\n",
    b"a {BLF-CRYPT}" + HASH + b"\nb !" + HASH + b"\nc {SSHA}s3cr3t\nd $2b$31$" + HASH[7:] + b"\n",
    b"alice 1000:1000:/var/mail/alice\nbob: 1001:1001:/var/mail/b c\n# note\nx 0:0:/\ny 1:1:relative\n",
    b"\xef\xbb\xbfalice s3cr3t\nalice {SHA}x\nalice $1$x\r\n\0",
]
