"""Test hashes of all schemes on a real service: their libraries work inside auth's sandbox."""

import os
import subprocess
import threading

import pytest

from tests.e2e.reload.test_reload import write
from tests.support.pop3 import RawPop3
from tests.support.service import POPKERNEL, serve
from tests.unit.test_password_schemes import ARGON2, HASHES

argon2 = pytest.importorskip("argon2")
LARGE = 262_144  # KiB, the most that is allowed


def logged_in(service, user, secret="popkernel"):
    with RawPop3(service) as client:
        said = client.login(user, secret)
        if said.startswith(b"+OK"):
            assert client.ask(b"QUIT").startswith(b"+OK")
        return said.startswith(b"+OK")


def libraries(service):
    """Return which libraries auth has mapped."""
    with open(f"/proc/{service.actor('auth')['pid']}/maps") as file:
        text = file.read()
    return {name for name in ("argon2", "bcrypt") if name in text}


def test_every_scheme_in_the_sandbox():
    large = argon2.low_level.hash_secret(b"popkernel", b"saltsalt", 1, LARGE, 1, 32, argon2.Type.ID)
    users = {scheme.lower(): hashed for scheme, hashed in HASHES.items()} | {"large": large}
    with serve(users=[*users, "alice"], mail=(), max_logins=50) as service:
        if os.geteuid() == 0:
            assert libraries(service) == {"bcrypt"}  # no other is loaded for bcrypt alone
        lines = [
            b"%b {%b}%b\n" % (n.encode(), n.upper().encode(), h) for n, h in users.items() if n != "large"
        ]
        weak = b"alice {PLAIN}popkernel\n"
        write(service.site.auth_table, b"".join([*lines, b"large " + large + b"\n", weak]))
        service.command("reload")
        for user in users:
            assert logged_in(service, user), user
            assert logged_in(service, user), "from the cache"
            assert not logged_in(service, user, "popkerne"), user
        assert not logged_in(service, "alice"), "a plain text password is no hash"
        found = []
        several = [
            threading.Thread(target=lambda n=n: found.append(logged_in(service, "large", f"guess {n}")))
            for n in range(2)
        ]
        for thread in several:
            thread.start()
        for thread in several:
            thread.join(60)
        assert found == [False] * 2 and logged_in(service, "large")
        auth = service.actor("auth")
        assert auth["restarts"] == 0
        log = service.read_log()
        assert f"{service.site.auth_table}:6: user alice cannot log in: a {{PLAIN}} hash" in log
        assert "popkernel" not in log.partition("{PLAIN}")[2].partition("\n")[0].partition(";")[0]
        check = subprocess.run(
            [*POPKERNEL, "check", "-f", service.toml], capture_output=True, text=True, timeout=60, check=False
        )
        counted = "2 ARGON2ID, 1 BLF-CRYPT, 1 SHA256-CRYPT, 1 SHA512-CRYPT"
        assert f"{service.site.auth_table}: hashes: {counted}\n" in check.stdout


def test_check_names_a_library_that_is_missing(tmp_path):
    (tmp_path / "argon2.py").write_text("raise ImportError\n")
    with serve(users=["alice", "bob"], mail=()) as service:
        write(service.site.auth_table, b"alice " + HASHES["BLF-CRYPT"] + b"\nbob " + ARGON2 + b"\n")
        check = subprocess.run(
            [*POPKERNEL, "check", "-f", service.toml],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
        )
        said = "1 user has ARGON2ID hashes, and argon2 is not installed; install argon2-cffi"
        assert f"warning: {service.site.auth_table}: {said}" in check.stdout
        assert f"warning: {service.site.auth_table}:2: user bob cannot log in" in check.stdout
        assert "bin/pip install 'popkernel[schemes]'" in check.stdout
