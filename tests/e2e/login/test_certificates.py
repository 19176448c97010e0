"""Test several certificates and locked keys: SNI, pass phrases from file, credential and terminal, reloads.

Processes that do not need a pass phrase must not have it in memory.
"""

import os
import pty
import select
import ssl
import sys

import pytest
from cryptography.hazmat.primitives import serialization
from popkernel.cli.common.sample_site import make_certificate, make_site

from tests.e2e.reload.test_reload import write
from tests.support.pop3 import RawPop3, connect
from tests.support.service import POPKERNEL, Service
from tests.support.waiting import wait_for

PHRASE = b"open sesame 4711"


def lock(key_path, phrase=PHRASE, before=None):
    with open(key_path, "rb") as file:
        key = serialization.load_pem_private_key(file.read(), before)
    lock = serialization.BestAvailableEncryption(phrase)
    with open(key_path, "wb") as file:
        file.write(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, lock))


def asked(address, name, *, stls=False):
    """Return the PEM certificate that a client gets for `name`, and the greeting."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with connect(address) as raw:
        said = raw.recv(100) if stls else b""
        if stls:
            raw.sendall(b"STLS\r\n")
            assert raw.recv(100).startswith(b"+OK")
        with context.wrap_socket(raw, server_hostname=name) as tls:
            return ssl.DER_cert_to_PEM_cert(tls.getpeercert(binary_form=True)), said or tls.recv(100)


def visit(service):
    client = service.pop3()
    assert client.stat()
    client.quit()


class Locked(Service):
    """Run a service with a second certificate, for pop.example.org."""

    def __init__(self, tmp_path, command=None, **options):
        self.more = str(tmp_path / "more.pem")
        self.chain, key = make_certificate(["pop.example.org"])
        with open(self.more, "wb") as file:
            file.write(self.chain + key)
        super().__init__(command=command, certs=[self.more], **options)


@pytest.fixture
def locked_sites(monkeypatch):
    """Give every new site a locked key."""

    def made(*arguments, **options):
        site = make_site(*arguments, **options)
        lock(site.key)
        return site

    monkeypatch.setattr("tests.support.service.make_site", made)


def test_names_and_a_phrase_from_a_file_and_reload(tmp_path, locked_sites):
    path = str(tmp_path / "phrase")
    with open(path, "wb") as file:
        file.write(PHRASE + b"\n")
    with Locked(tmp_path, key_passphrase_file=path) as service:
        with open(service.site.cert) as file:
            own = file.read()
        assert asked(service.tls, "pop.example.org")[0] == service.chain.decode()
        assert asked(service.tls, "localhost") == (own, b"+OK POP3 ready\r\n")
        held = service.pop3()
        with open(path, "wb") as file:
            file.write(b"another\n")
        refused = service.command("reload", check=False)
        assert refused.returncode
        service.wait_log("does not open this private key")
        # the old certificate is still in force
        assert asked(service.tls, "pop.example.org")[1].startswith(b"+OK")
        lock(service.site.key, b"another", PHRASE)
        service.command("reload")
        assert held.stat()
        held.quit()
        assert asked(service.tls, "localhost")[0] == own
        assert PHRASE.decode() not in service.read_log()


def test_a_phrase_from_a_credential(tmp_path, locked_sites):
    (tmp_path / "popkernel.passphrase").write_bytes(PHRASE)
    with Locked(tmp_path, env={**os.environ, "CREDENTIALS_DIRECTORY": str(tmp_path)}) as service:
        visit(service)


def test_without_a_phrase_or_a_terminal_the_start_says_what_is_missing(tmp_path, locked_sites):
    with Locked(tmp_path, expect_ready=False) as service:
        assert "the private key has a pass phrase; start at a terminal, or name a file" in service.wait_log(
            "has a pass phrase"
        )
        assert service.process.wait(20) != 0


def memory_holds(pid, needle):
    """Return whether a process has these octets in its writable memory."""
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in maps:
            span, rights = line.split()[:2]
            if rights.startswith("rw") and "[vvar" not in line:
                begin, end = (int(part, 16) for part in span.split("-"))
                memory.seek(begin)
                try:
                    if needle in memory.read(end - begin):
                        return True
                except OSError:
                    continue
    return False


class AtTerminal(Locked):
    """Start at a terminal of its own, where `typed` is typed at every prompt."""

    def __init__(self, tmp_path, typed, **options):
        self.master, slave = pty.openpty()
        self.typed = typed
        self.screen = b""
        self.slave = os.ttyname(slave)
        script = (
            "import os, sys; os.setsid(); fd = os.open(sys.argv[1], os.O_RDWR); os.dup2(fd, 0); "
            "os.dup2(fd, 1); os.execv(sys.argv[2], sys.argv[2:])"
        )
        super().__init__(tmp_path, command=[sys.executable, "-c", script, self.slave, *POPKERNEL], **options)
        os.close(slave)

    def wait_log(self, text, **options):
        while self.typed:
            wait_for(lambda: self._asked(), seconds=20)
            os.write(self.master, self.typed.pop(0) + b"\n")
        return super().wait_log(text, **options)

    def _asked(self):
        if select.select([self.master], [], [], 0.05)[0]:
            self.screen += os.read(self.master, 4096)
        if self.screen.rstrip(b" ").endswith(b":") and b"pass phrase of" in self.screen:
            self.screen = b""
            return True
        return False

    def close(self):
        super().close()
        os.close(self.master)


def test_a_phrase_from_the_terminal_is_known_to_init_and_listeners_alone(tmp_path, locked_sites):
    with AtTerminal(tmp_path, [b"wrong", PHRASE]) as service:
        visit(service)
        service.change_files()
        service.command("reload")  # the new listener gets it too
        visit(service)
        # those that were replaced are about to end
        wait_for(lambda: not [a for a in service.status()["actors"] if a["state"] == "draining"])
        names = {}
        for pid in service.pids():
            with open(f"/proc/{pid}/comm") as file:
                names[pid] = file.read().strip()
            for place in ("cmdline", "environ"):
                with open(f"/proc/{pid}/{place}", "rb") as file:
                    assert PHRASE not in file.read(), names[pid]
        if os.geteuid() == 0:
            knows = {names[pid] for pid in names if memory_holds(pid, PHRASE)}
            others = {
                name
                for name in names.values()
                if not name.startswith(("listener", "init", "popkernel", "python"))
            }
            assert {name.partition("~")[0] for name in others} >= {"kernel", "auth", "spawner"}, names
            assert not knows & others, knows
            assert knows  # otherwise this looked in the wrong place
        assert PHRASE.decode() not in service.read_log()


def test_renewed_certificates_come_in_force_and_no_session_is_dropped(tmp_path):
    """Certificates change one after the other, then a third name is added.

    Tested over TLS and STLS, with sessions in every state.
    """
    paths = [str(tmp_path / "one.pem"), str(tmp_path / "two.pem")]
    chains = {}

    def renew(path, *names):
        chain, key = make_certificate(names)
        chains.update(dict.fromkeys(names, chain.decode()))
        write(path, chain + key)

    for path, names in zip(paths, (["one.example"], ["two.example", "*.two.example"]), strict=True):
        open(path, "w").close()
        renew(path, *names)
    with Service(certs=paths, mail=[b"Subject: x\n\ny\n"]) as service:
        with open(service.site.cert) as file:
            own = file.read()

        def all_right():
            for name, chain in chains.items():
                assert asked(service.tls, name.replace("*", "any"))[0] == chain, name
                assert asked(service.plain, name.replace("*", "any"), stls=True)[0] == chain, name
            for other in (None, "localhost", "three.example", "deep.any.two.example", "example"):
                assert asked(service.tls, other) == (own, b"+OK POP3 ready\r\n")

        all_right()
        with (
            RawPop3(service, user="alice") as reading,
            RawPop3(service) as typing,
            RawPop3(service, "") as plain,
        ):
            typing.ask(b"USER bob")
            for change in (
                lambda: renew(paths[0], "one.example"),
                lambda: renew(paths[1], "two.example", "*.two.example"),
                lambda: renew(paths[0], "one.example", "pop.one.example"),
            ):
                change()
                service.command("reload")
                all_right()
                assert reading.many(b"RETR 1") == b"Subject: x\r\n\r\ny\r\n.\r\n"
            assert typing.ask(b"PASS secret").startswith(b"+OK 1 ")
            assert plain.ask(b"STLS").startswith(b"+OK")
            plain.secure()  # with the certificate in force when it connected
            assert plain.ask(b"CAPA").startswith(b"+OK")
            assert reading.ask(b"QUIT") == typing.ask(b"QUIT") == b"+OK bye\r\n"
