"""Run a service with saboteurs in its actors and collect their reports, for the sandbox tests.

wrapper.py runs inside the actors.
"""

import json
import os
import poplib
import socket
import sys
import tempfile

import pytest
from popkernel.kernel.sandbox import lock
from popkernel.proto.topology import ACTORS

from tests.support.saboteur.attempts import OWN
from tests.support.service import Service

INSIDE = os.path.dirname(os.path.abspath(__file__))
needs_sandbox = pytest.mark.skipif(
    bool(sys.platform != "linux" or lock.missing()), reason=f"no sandbox here: {lock.missing()}"
)
PROMISES = {row.name: f"{row.promises} {OWN}" if row.sockets else row.promises for row in ACTORS}


class Sabotaged(Service):
    """Run a service whose actors follow `plan` (see wrapper.py), with one target to attack."""

    def __init__(self, plan, *, other="bob", lmtp=False, **options):
        self.place = tempfile.TemporaryDirectory(prefix="pkplace")
        outside = os.path.join(self.place.name, "outside")
        for folder in (outside, outside + "/empty", os.path.join(self.place.name, "counters")):
            os.mkdir(folder)
            os.chmod(folder, 0o777)
        os.chmod(self.place.name, 0o755)
        self.file = outside + "/file"
        with open(self.file, "w") as file:
            file.write("text")
        os.chmod(self.file, 0o666)
        self.abstract = socket.socket(socket.AF_UNIX)
        self.abstract.bind(f"\0popkernel-test-{os.path.basename(self.place.name)}")
        self.abstract.listen()
        name = self.abstract.getsockname()[1:].decode()
        self.plan = os.path.join(self.place.name, "plan.json")
        paths = {"file": self.file, "outside": outside, "abstract": name}
        with open(self.plan, "w") as file:
            json.dump(
                {
                    "place": paths,
                    "counters": os.path.join(self.place.name, "counters"),
                    "other": other,
                    **plan,
                },
                file,
            )
        super().__init__(
            command=[sys.executable, os.path.join(INSIDE, "driver.py"), self.plan], lmtp=lmtp, **options
        )

    def close(self):
        super().close()
        self.abstract.close()
        self.place.cleanup()

    def reports(self, what):
        """Return the saboteurs' reports of one kind: the words of each line."""
        lines = [line.partition("inside|")[2] for line in self.read_log().splitlines() if "inside|" in line]
        return [line.split("|")[1:] for line in lines if line.startswith(what + "|")]

    def login_error(self, user, password="secret"):
        """Return the reply to a login that must fail; "closed" if the server hangs up."""
        client = self.pop3(login=False)
        try:
            client.user(user)
            client.pass_(password)
        except poplib.error_proto as error:
            return str(error)
        except (OSError, EOFError):
            return "closed"
        finally:
            client.close()
        raise AssertionError(f"{user} was let in")

    def send_login(self, user):
        """Send a login, wait for no reply, and return the client."""
        client = self.pop3(login=False)
        client.user(user)
        client._putcmd("PASS secret")
        return client

    def serves(self, user="bob"):
        """Return whether that user can log in and out."""
        client = None
        try:
            client = self.pop3(login=False)
            client.user(user)
            client.pass_("secret")
            client.quit()
        except (OSError, EOFError, poplib.error_proto):
            return False
        finally:
            if client is not None:
                client.close()
        return True
