"""Test a server with testssl.sh (marked slow: minutes), nmap's scripts, and commands injected after STLS."""

import json
import os
import re
import shutil
import ssl
import subprocess

import pytest

from tests.support.pop3 import connect
from tests.support.service import Service

TESTSSL = shutil.which("testssl") or shutil.which("testssl.sh")
NMAP = shutil.which("nmap")
BAD = {"MEDIUM", "HIGH", "CRITICAL", "FATAL"}
# Findings about the test's certificate, not the server: it is self-signed, for localhost, valid for 30 days,
# without revocation and CAA records.
OF_THE_CERTIFICATE = re.compile(
    r"cert_(?:chain_of_trust|caIssuers|trust|revocation|crlDistributionPoints|ocspURL|expirationStatus|"
    r"extlifeSpan|notAfter|validityPeriod"
    r"|commonName_wo_SNI|commonName|subjectAltName|mustStapleExtension|eTLS)|DNS_CAArecord|OCSP_stapling|"
    r"overall_grade|grade_cap_reason.*"
)


@pytest.mark.slow
@pytest.mark.skipif(TESTSSL is None, reason="needs testssl.sh")
@pytest.mark.parametrize(("starttls", "least"), [(False, "1.2"), (True, "1.2"), (True, "1.3")])
def test_testssl_finds_nothing_above_low(tmp_path, starttls, least):
    with Service(tls_min=least, mail=[], verbose=0) as service:
        address = service.plain if starttls else service.tls
        found = tmp_path / "found.json"
        command = [
            TESTSSL, "--quiet", "--warnings", "batch", "--color", "0", "--add-ca", service.site.cert,
            "--jsonfile", str(found),
            "--openssl", shutil.which("openssl"), "--nodns", "none", "--ip", address.host,
            *(["--starttls", "pop3"] if starttls else []),
            f"localhost:{address.port}",
        ]  # fmt: skip
        ran = subprocess.run(
            command, capture_output=True, text=True, timeout=900, stdin=subprocess.DEVNULL, check=False
        )
        rows = json.loads(found.read_text())
        client = service.pop3()  # it still serves
        client.quit()
    by_id = {row["id"]: row for row in rows}
    assert len(rows) > 40, ran.stdout
    assert by_id["TLS1_3"]["severity"] == "OK", ran.stdout
    assert "not offered" in by_id["TLS1_1"]["finding"]
    assert ("not offered" in by_id["TLS1_2"]["finding"]) is (least == "1.3")
    bad = [
        row
        for row in rows
        if row["severity"] in BAD and not OF_THE_CERTIFICATE.fullmatch(row["id"].split(" ")[0])
    ]
    assert not bad, "\n".join(f"{row['severity']} {row['id']}: {row['finding']}" for row in bad)


def nmap(address, *scripts):
    """Return nmap's output for one port, with these scripts."""
    command = [
        NMAP,
        "-Pn",
        "-n",
        "-sT",
        "-sV",
        "--version-light",
        "-p",
        str(address.port),
        "--script",
        ",".join(scripts),
        address.host,
    ]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert f"{address.port}/tcp open" in ran.stdout, ran.stdout + ran.stderr
    return ran.stdout


@pytest.mark.slow
@pytest.mark.skipif(NMAP is None, reason="needs nmap")
def test_nmap_sees_capa_and_good_ciphers_only():
    with Service(tls_min="1.2", mail=[], verbose=0) as service:
        said = nmap(service.plain, "pop3-capabilities")
        assert "pop3" in said
        capabilities = re.search(r"pop3-capabilities: (.*)", said)[1]
        for word in ("UIDL", "TOP", "STLS", "PIPELINING", "RESP-CODES", "AUTH-RESP-CODE"):
            assert word in capabilities
        assert "USER" not in re.sub(r"\(.*?\)", "", capabilities)  # not without TLS
        ciphers = nmap(service.tls, "ssl-enum-ciphers")
        assert "TLSv1.2" in ciphers
        assert not re.search(r"SSLv3|TLSv1\.[01]:", ciphers)
        grades = re.findall(r"(TLS_\S+) .* - ([A-F])", ciphers)
        assert grades
        assert {grade for _, grade in grades} == {"A"}, ciphers
        assert all("ECDHE" in name or "TLS_AKE" in name for name, _ in grades), ciphers
        client = service.pop3()
        assert client.stat() == (0, 0)
        client.quit()


@pytest.mark.parametrize(
    "behind",
    [
        b"CAPA\r\n",
        b"USER alice\r\n",
        b"NOOP\r\nCAPA\r\nQUIT\r\n",
        b"CA",
        b"\x16\x03\x01",
        b"STLS\r\n",
        b"X" * 5000,
    ],
)
def test_clear_text_after_stls_is_not_answered_inside_tls(behind):
    """CVE-2011-0411 and its family (nostarttls.secvuln.info): commands in one packet with STLS."""
    tls = ssl.create_default_context()
    tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    with Service(mail=[], verbose=0) as service, connect(service.plain, timeout=10) as raw:
        greeting = raw.recv(100)
        assert greeting.startswith(b"+OK")
        raw.sendall(b"USER alice\r\nSTLS\r\n" + behind)
        answers = b""
        while answers.count(b"\r\n") < 2:
            part = raw.recv(1000)
            assert part, answers
            answers += part
        assert answers.count(b"\r\n") == 2, "clear text after STLS was answered"
        try:
            with tls.wrap_socket(raw) as sock:
                sock.settimeout(10)
                sock.sendall(b"PASS secret\r\nNOOP\r\n")
                with sock.makefile("rb") as lines:
                    # An earlier USER is forgotten; these two commands alone are answered, in this order.
                    said = [lines.readline(), lines.readline()]
                    sock.sendall(b"QUIT\r\n")
                    said += lines.readlines()
        except (ssl.SSLError, ConnectionResetError):
            return  # the clear text was taken for a bad handshake, which is as good
        assert [line.split(b" ")[0].strip() for line in said] == [b"-ERR", b"-ERR", b"+OK"], said
        assert os.fsencode("USER first") in said[0]
