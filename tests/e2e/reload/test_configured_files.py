"""Configure files that are not regular or hang: a reload fails, and the service and its end do not."""

import contextlib
import os
import signal
import subprocess

import pytest

from tests.support.faults.patched import patched
from tests.support.pop3 import RawPop3
from tests.support.processes import pid_of, stop_process, wait_all_ended
from tests.support.service import POPKERNEL, serve
from tests.support.waiting import wait_for

# A service in which FILE hangs while FILE.hangs exists, with deadlines of 1 s.
HANGS = """
import os, time
def hung(read):
    def reading(path, *most):
        while os.path.exists(path + ".hangs"):
            time.sleep(0.05)
        return read(path, *most)
    return reading
def patch():
    from popkernel.kernel.config import regular_files
    regular_files.read_regular = hung(regular_files.read_regular)
def in_init():
    from popkernel.kernel.init import inputs
    from popkernel.kernel.runtime import deadlines
    from popkernel.kernel.supervisor import singletons
    deadlines._SECONDS = inputs.SECONDS = 1
    singletons._START_PATIENCE = 5
    inputs.read_table = hung(inputs.read_table)
"""


@pytest.fixture
def hanging(tmp_path):
    """Return the command for such a service."""
    return patched(tmp_path, HANGS)


@contextlib.contextmanager
def hangs(path):
    with open(f"{path}.hangs", "w"):
        pass
    try:
        yield
    finally:
        os.unlink(f"{path}.hangs")


@contextlib.contextmanager
def fifo(path):
    """Replace a file by a FIFO."""
    os.rename(path, path + ".away")
    os.mkfifo(path)
    try:
        yield
    finally:
        os.rename(path + ".away", path)


def works(service):
    # the certificate's file may be a FIFO, which the client must not open either
    with RawPop3(service, verify=False) as client:
        return client.login().startswith(b"+OK") and client.ask(b"QUIT").startswith(b"+OK")


def test_a_fifo_in_the_place_of_any_file_is_not_waited_for():
    with serve(mail=()) as service, RawPop3(service) as client:
        assert client.login("bob").startswith(b"+OK")
        block_list, phrase = f"{service.site.directory}/blocked", f"{service.site.directory}/phrase"
        for path in (block_list, phrase):
            with open(path, "w") as file:
                file.write("192.0.2.1\n")
        with open(service.toml, "a") as file:
            file.write(f'block_list = "{block_list}"\nkey_passphrase_file = "{phrase}"\n')
        assert service.command("reload").stdout.startswith("reloaded\n")
        for path in (
            service.site.user_table,
            service.site.auth_table,
            service.site.cert,
            service.site.key,
            block_list,
            service.toml,
        ):
            with fifo(path):
                result = service.command("reload", check=False)
                assert f"{path}: is a FIFO, not a regular file; " in result.stderr and result.returncode in (
                    66,
                    78,
                ), result
                assert works(service)
        assert service.command("reload").stdout.startswith("reloaded\n")
        assert client.ask(b"STAT").startswith(b"+OK")


def test_a_fifo_in_the_place_of_a_watched_table():
    with serve(mail=(), arguments=["--watch"]) as service:
        with fifo(service.site.user_table):
            service.wait_log(
                f"not reloaded, what is in force stays: {service.site.user_table}: is a FIFO, not a "
                f"regular file"
            )
            assert works(service)
        service.wait_log("reloaded: ")
        assert service.stop() == 0


@pytest.mark.parametrize("which", ["user_table", "auth_table", "cert"])
def test_a_start_with_a_fifo_says_so_and_ends(which):
    with serve(mail=()) as service:
        assert service.stop() == 0
        path = getattr(service.site, which)
        with fifo(path):
            command = [*POPKERNEL, "start", "-f", service.toml, "--log", "stderr"]
            result = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20, check=False
            )
        assert result.returncode == (78 if which == "cert" else 66)
        assert f"{path}: is a FIFO, not a regular file; " in result.stderr
        assert "Traceback" not in result.stderr and not os.path.exists(service.config.run_dir)


def test_tables_on_a_disk_that_hangs_cost_a_reload(hanging):
    with serve(mail=(), command=hanging) as service, RawPop3(service) as client:
        assert client.login("bob").startswith(b"+OK")
        for path, why, code in (
            (service.site.user_table, f"{service.site.user_table} could not be read within 1 s", 74),
            (service.toml, "the configuration, or a file that it names, could not be read within 1 s", 74),
            (service.site.auth_table, f"{service.site.auth_table} could not be read within 1 s", 74),
            (service.site.key, f"{service.site.key} could not be read within 1 s", 74),
        ):
            with hangs(path):
                result = service.command("reload", check=False)
                assert why in result.stderr and result.returncode == code, result
                service.wait_log(f"not reloaded, what is in force stays: {why}")
                assert works(service)
        with hangs(service.site.user_table):
            service.signal(signal.SIGHUP)
            assert service.stop() == 0  # in the middle of the reload
        assert not os.path.exists(service.config.run_dir)


@pytest.mark.parametrize("told", ["nothing", "SIGTERM"])
@pytest.mark.parametrize("which", ["user_table", "auth_table"])
def test_a_start_from_a_disk_that_hangs_ends(hanging, which, told):
    with serve(mail=()) as service:
        assert service.stop() == 0
        path = getattr(service.site, which)
        with (
            hangs(path),
            subprocess.Popen(
                [*hanging, "start", "-f", service.toml, "--log", "stderr"], stderr=subprocess.PIPE, text=True
            ) as start,
        ):
            wait_for(lambda: os.path.exists(f"{service.config.run_dir}/lock"))
            if told == "SIGTERM":
                start.send_signal(signal.SIGTERM)
            said = start.stderr.read()
            assert start.wait(20) == (0 if told == "SIGTERM" else 74), said
            if told == "nothing":
                assert f"{path} could not be read within 1 s" in said
            assert "Traceback" not in said and not os.path.exists(service.config.run_dir)


@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGHUP])
def test_a_kernel_that_hangs_is_ended_by_init(hanging, asked):
    with serve(mail=(), command=hanging) as service:
        pids = service.pids()
        stop_process(pid_of(service, "kernel"))
        service.signal(asked)
        assert service.process.wait(20) == 70
        assert "the kernel is not alive: it has not answered for 1 s; ended" in service.read_log()
        wait_all_ended(pids)
        assert not os.path.exists(service.config.run_dir)


def test_the_kernel_sees_its_run_directory_and_no_table():
    with serve(mail=()) as service:
        assert service.actor("kernel")["unveiled"] == [f"{service.config.run_dir}:rc"]
        assert service.command("reload").stdout.startswith("reloaded\n")
        fds = f"/proc/{pid_of(service, 'kernel')}/fd"
        shown = []
        for fd in os.listdir(fds):
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                shown.append(os.readlink(f"{fds}/{fd}"))
        assert shown
        assert not any(service.site.user_table in path or "memfd" in path for path in shown), shown
