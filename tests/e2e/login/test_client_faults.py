"""Test that one line at the default verbosity says in plain words why a client cannot log in."""

import contextlib
import shutil
import socket
import ssl
import subprocess
import time

import pytest
from popkernel.actors.listener.session import client_faults

from tests.support.service import Service

OLD = 'the client offers TLS 1.2; tls_min is 1.3: tls_min = "1.2" would let it in'
# Each test's client has an address of its own, since one fault of one address is logged once a minute.
_HOSTS = (f"127.0.0.{n}" for n in range(2, 255))


@pytest.fixture(scope="module", params=["shared", "connection"])
def service(request):
    with Service(mail=(), lmtp=False, verbose=0, isolation=request.param) as running:
        yield running


@pytest.fixture
def host():
    return next(_HOSTS)


def reach(service, host, *, tls=True):
    where = service.config.listen[0] if tls else service.config.listen_starttls[0]
    return socket.create_connection(tuple(where)[:2], timeout=20, source_address=(host, 0))


def lines_about(service, host, words, count=1):
    log = service.wait_log(f"address={host}:", count=count)
    lines = [line for line in log.splitlines() if f"address={host}:" in line]
    assert len(lines) == count and all(words in line for line in lines), lines
    return lines


def handshake(service, host, **settings):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    for name, value in settings.items():
        setattr(context, name, value)
    with reach(service, host) as raw, contextlib.suppress(OSError), context.wrap_socket(raw) as client:
        client.recv(100)


def test_a_client_with_an_older_version(service, host):
    handshake(service, host, maximum_version=ssl.TLSVersion.TLSv1_2)
    (line,) = lines_about(service, host, OLD)
    assert "popkernel: TLS failed: address=" in line


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
def test_a_client_with_a_version_that_no_setting_allows(service, host):
    handshake(service, host, minimum_version=ssl.TLSVersion.TLSv1_1, maximum_version=ssl.TLSVersion.TLSv1_1)
    lines_about(service, host, "the client offers TLS 1.1; tls_min is 1.3, and may be 1.2: the client needs")


def test_a_client_that_does_not_trust_the_certificate(service, host):
    handshake(service, host, verify_mode=ssl.CERT_REQUIRED)
    lines_about(service, host, "the client refuses the certificate (alert 'unknown ca'): is ")


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl(1)")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-k", "--tls-max", "1.2"], OLD),
        ([], "the client refuses the certificate"),
    ],
)
def test_curl(service, host, arguments, words):
    port = service.config.listen[0][1]
    command = [
        "curl",
        "-s",
        *arguments,
        "--interface",
        host,
        "-u",
        "alice:secret",
        f"pop3s://127.0.0.1:{port}/",
    ]
    assert subprocess.run(command, capture_output=True, timeout=30, check=False).returncode in (35, 56, 60)
    lines_about(service, host, words)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl(1)")
@pytest.mark.parametrize(("version", "words"), [("-tls1_2", OLD), ("-tls1_1", "client offers TLS 1.1; ")])
def test_openssl(service, host, version, words):
    port = service.config.listen[0][1]
    old = ["-cipher", "ALL:@SECLEVEL=0"]
    command = [
        "openssl",
        "s_client",
        version,
        *old,
        "-bind",
        f"{host}:0",
        "-connect",
        f"127.0.0.1:{port}",
    ]
    subprocess.run(command, capture_output=True, timeout=30, check=False, stdin=subprocess.DEVNULL)
    lines_about(service, host, words)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (
            b"CAPA\r\n",
            "the client speaks POP3 without TLS on a port for TLS: set it to ",
        ),
        (b"GET / HTTP/1.1\r\n\r\n", "the client speaks HTTP"),
        (b"\x00\xff\x1b[2J\n", "the client's first octets are no TLS"),
        (b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10" + bytes(37), "the client offers SSL 2"),
    ],
)
def test_no_tls_on_a_port_for_tls(service, host, data, words):
    with reach(service, host) as client:
        client.sendall(data)
        with contextlib.suppress(OSError):
            client.recv(100)
    lines_about(service, host, words)


def test_tls_on_a_port_for_stls(service, host):
    context = ssl.create_default_context()
    with (
        reach(service, host, tls=False) as raw,
        pytest.raises(ssl.SSLError),
        context.wrap_socket(raw, server_hostname="localhost"),
    ):
        pass
    lines_about(service, host, client_faults.TLS_ON_PLAIN)


def test_a_login_without_tls_where_it_is_needed(service, host):
    with reach(service, host, tls=False) as client:
        client.sendall(b"USER alice\r\nQUIT\r\n")
        while client.recv(1000):
            pass
    lines_about(service, host, client_faults.NO_TLS)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (b"APOP alice c4c9334bac560ecc979e58001b3e22fb", "no login: "),
        (
            b"AUTH CRAM-MD5",
            "the client asks for AUTH CRAM-MD5, which is not offered: ",
        ),
        (b'AUTH x\x1b[2J\xff\x0b="y"', "the client asks for AUTH with an unknown mechanism, "),
    ],
)
def test_a_mechanism_that_is_not_offered(service, host, command, words):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with reach(service, host) as raw, context.wrap_socket(raw) as client:
        client.sendall(command + b"\r\nQUIT\r\n")
        with contextlib.suppress(OSError):
            while client.recv(1000):
                pass
    lines_about(service, host, words)


def test_checks_and_scans_have_no_line(service, host):
    """They connect and leave, or look at the greeting; one that is refused a login has been told why."""
    for tls in (True, False):
        reach(service, host, tls=tls).close()
    with reach(service, host, tls=False) as client:
        client.sendall(b"CAPA\r\nQUIT\r\n")
        while client.recv(1000):
            pass
    with reach(service, host) as client:
        client.sendall(b"CAPA\r\n")  # a fault: the others' ends have been reported when this has its line
        with contextlib.suppress(OSError):
            client.recv(100)
    lines_about(service, host, "the client speaks POP3 without TLS")


def test_a_fault_that_comes_again_has_one_line(service, host):
    for _ in range(20):
        with reach(service, host) as client:
            client.sendall(b"CAPA\r\n")
            with contextlib.suppress(OSError):
                client.recv(100)
    with reach(service, host) as client:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        with contextlib.suppress(OSError):
            client.recv(100)
    first, second = [
        line for line in service.wait_log(f"{host}:", count=2).splitlines() if f"{host}:" in line
    ]
    assert "speaks POP3 without TLS" in first and "speaks HTTP" in second


@pytest.mark.slow
def test_a_client_that_waits_for_a_greeting(service, host):
    with reach(service, host):
        time.sleep(client_faults.SILENT_SECONDS + 0.5)
    lines_about(service, host, "the client sends nothing: it may wait for a greeting without TLS")
