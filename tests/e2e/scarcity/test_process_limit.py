"""Leave init no room for a process: sessions go on, a reload fails, and ended actors restart later."""

import sys

from tests.support.pop3 import RawPop3
from tests.support.processes import kill
from tests.support.service import serve
from tests.support.waiting import wait_for

# A service whose init can fork nothing while that file exists.
FULL = """
import errno, os, sys
from popkernel.cli.main import main
from popkernel.kernel.supervisor.main import Supervisor
full, fork = sys.argv.pop(1), os.fork
def forking():
    if os.path.exists(full):
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return fork()
os.fork = forking
sys.exit(main(sys.argv[1:]))
"""


def test_a_process_limit_is_survived(tmp_path):
    full = tmp_path / "full"
    (tmp_path / "service.py").write_text(FULL)
    command = [sys.executable, str(tmp_path / "service.py"), str(full)]
    with (
        serve(mail=(), command=command, restart_intensity=2, restart_seconds=60) as service,
        RawPop3(service) as client,
    ):
        assert client.login("bob").startswith(b"+OK")
        full.touch()
        result = service.command("reload", check=False)
        assert (
            result.returncode == 75
            and "no room for a process: Resource temporarily unavailable" in result.stderr
        ), result
        kill(service.actor("auth")["pid"])
        service.wait_log(
            "auth could not be started: no room for a process: Resource temporarily unavailable; again in",
            count=4,
        )
        assert client.ask(b"STAT").startswith(b"+OK")
        full.unlink()
        wait_for(
            lambda: service.actor("auth"), until=lambda row: row and row["state"] == "serving", seconds=30
        )
        with RawPop3(service) as other:
            assert other.login().startswith(b"+OK")
        assert service.command("reload").stdout.startswith("reloaded\n")
        assert service.stop() == 0
