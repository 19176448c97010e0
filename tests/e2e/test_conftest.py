"""Test conftest.py: a failing test makes no other test of its file fail."""

import os
import subprocess
import sys

HERE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
TESTS = """
import os, signal
import pytest
from tests.support.service import Service

@pytest.fixture(scope="module")
def service():
    with Service(lmtp=False) as running:
        running.held = running.pop3("carol")
        yield running

def test_fails_with_a_session_open(service):
    service.pop3("alice").stat()
    assert service is None

def test_has_the_mailbox(service):
    service.pop3("alice").quit()
    assert service.held.stat()[0] == 6  # of the fixture's own

def test_fails_with_the_service_gone(service):
    os.kill(service.process.pid, signal.SIGKILL)
    service.process.wait()
    assert service is None

def test_has_a_service(service):
    service.pop3("alice").quit()
"""


def test_one_failure_is_one_failure(tmp_path):
    (tmp_path / "test_these.py").write_text(TESTS)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-c",
        f"{HERE}/pyproject.toml",
        "-p",
        "tests.conftest",
        "-p",
        "no:cacheprovider",
        "-q",
        str(tmp_path),
    ]
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}
    done = subprocess.run(
        command, cwd=HERE, capture_output=True, text=True, timeout=120, check=False, env=environment
    )
    assert "2 failed, 2 passed" in done.stdout, done.stdout + done.stderr
