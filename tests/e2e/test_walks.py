"""Check that a login, a RETR and a delivery call the functions that docs/style.md names."""

import os
import re

from tests.support.faults.patched import patched
from tests.support.lmtp import deliver
from tests.support.service import Service

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
STEP = re.compile(r"^\d+\. `([\w/]+\.py): ([\w.]+)`", re.MULTILINE)

# Each process records every function that it calls, once.
NOTES = """
import os, sys, threading
def patch():
    noted = set()
    def note(frame, event, _):
        code = frame.f_code
        if event == "call" and code not in noted:
            noted.add(code)
            file = os.open(CALLS, os.O_WRONLY | os.O_APPEND)
            os.write(file, f"{code.co_filename}: {code.co_qualname}\\n".encode())
            os.close(file)
    watch = sys.setprofile
    sys.setprofile = lambda other: watch(other or note)  # the rehearsal has another for a while
    sys.setprofile(None)
    threading.setprofile(note)
"""


def test_the_walks_of_the_documents(open_path):
    calls = open_path / "calls"
    calls.touch()
    calls.chmod(0o666)  # written by every actor's user
    with Service(
        command=patched(open_path, f"CALLS = {str(calls)!r}{NOTES}"), arguments=["--insecure-no-sandbox"]
    ) as service:
        client = service.pop3()
        client.retr(1)
        client.quit()
        assert deliver(service).startswith(b"250")
    with open(f"{ROOT}/docs/style.md", encoding="utf-8") as file:
        steps = STEP.findall(file.read())
    noted = (line.split(": ") for line in calls.read_text().splitlines())
    called = {(os.path.relpath(os.path.realpath(path), os.path.realpath(ROOT)), name) for path, name in noted}
    assert len(steps) > 30
    for path, name in steps:
        assert any(at == path and (what == name or what.startswith(f"{name}.")) for at, what in called), (
            f"{path}: {name}"
        )
