"""Parse any table: no error; accepted values are within bounds; findings name lines and hide secrets."""

from popkernel.proto.files.password_schemes import (
    MAX_MEMORY,
    cost_of,
    decoy_of,
    memory_of,
    read_hash,
    scheme_of,
)
from popkernel.proto.files.tables import (
    MAX_FINDINGS,
    MAX_ID,
    MAX_NAME,
    first_findings,
    parse_auth,
    parse_users,
)


def one(data):
    hashes, findings, shut_out, locked = parse_auth(data, "/t")
    assert hashes or findings or locked
    assert not set(hashes) & {*shut_out, *locked} or findings  # a name that occurs twice is an error
    for name, value in hashes.items():
        assert 0 < len(name.encode()) <= MAX_NAME
        assert read_hash(value) == value
        assert read_hash(b"{%b}" % scheme_of(value).encode() + value) == value
        decoy = decoy_of(cost_of(value))
        assert read_hash(decoy) == decoy
        assert cost_of(decoy) == cost_of(value)
        if scheme_of(value) == "ARGON2ID":
            assert memory_of(value) <= MAX_MEMORY
        assert name.isprintable()
    check_findings(findings, data)
    check_findings(first_findings(list(shut_out.values()), "more"), data)
    users, findings = parse_users(data, "/t", "Maildir" if len(data) % 2 else "")
    for user in users.values():
        assert 0 < user.uid <= MAX_ID
        assert 0 <= user.gid <= MAX_ID
        assert user.maildir.startswith("/")
        assert "\0" not in user.maildir
        assert ".." not in user.maildir.split("/")
    check_findings(findings, data)


def check_findings(findings, data):
    assert len(findings) <= MAX_FINDINGS + 1  # one more states how many were left out
    for finding in findings:
        assert 0 <= finding.line <= data.count(b"\n") + 1
        assert HASH[7:].decode() not in str(finding)
        assert "s3cr3t" not in str(finding)


HASH = b"$2b$04$abcdefghijklmnopqrstuuABCDEFGHIJKLMNOPQRSTUVWXYZ01234"
SEEDS = [
    b"alice " + HASH + b"\nbob: " + HASH + b"\n# note\n\n \t x@example.org\t" + HASH + b"\n",
    b"a {BLF-CRYPT}" + HASH + b"\nb !" + HASH + b"\nc {SSHA}s3cr3t\nd $2b$31$" + HASH[7:] + b"\n",
    b"alice 1000:1000:/var/mail/alice\nbob: 1001:1001:/var/mail/b c\n# note\nx 0:0:/\ny 1:1:relative\n",
    b"a {SHA512-CRYPT}$6$rounds=1000$abc$" + b"b" * 86 + b"\nb $5$salt$" + b"c" * 43 + b"\n",
    b"a $argon2id$v=19$m=65536,t=3,p=1$c2FsdHNhbHQ$" + b"d" * 43 + b"\nb $6$$x\nc $argon2id$v=19$m=9\n",
    b"\xef\xbb\xbfalice s3cr3t\nalice {SHA}x\nalice $1$x\r\n\0",
]
