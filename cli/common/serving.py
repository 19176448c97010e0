"""Run the service until it is stopped: in the foreground, or detached."""

import contextlib
import os
import select
from collections.abc import Callable

import popkernel
from popkernel.kernel.config.keys import Config
from popkernel.kernel.init import main
from popkernel.kernel.init.pass_phrase import ask_phrase, phrase_file
from popkernel.kernel.init.singleton_start import start_failure
from popkernel.kernel.runtime.child_process import do_and_leave
from popkernel.kernel.runtime.log import say
from popkernel.proto.log_levels import ERROR


def serve(
    config: Config,
    again: Callable[[], Config] | None = None,
    toml_path: str | None = None,
    on_ready: Callable[[], None] | None = None,
) -> int:
    """Run the service. Returns the exit code.

    `again` reads the configuration from `toml_path` for a reload. `on_ready`: see init.run(); foreground
    only.
    """
    try:
        return _serve(config, again, toml_path, on_ready)
    except OSError as error:  # no process or no pipe could be made
        say(ERROR, "service.failed", config.log_format, error=start_failure(error))
        return os.EX_TEMPFAIL


def _serve(
    config: Config,
    again: Callable[[], Config] | None,
    toml_path: str | None,
    on_ready: Callable[[], None] | None,
) -> int:
    # Before the fork: a detached service has no terminal, and the kernel must not know the phrase.
    phrase = (
        None
        if phrase_file(config.key_passphrase_file)
        else ask_phrase([(config.cert, config.key), *config.certs])
    )

    def work(on_ready: Callable[[], None] | None = None) -> int:
        return main.run(config, again or (lambda: config), popkernel.__version__, on_ready, phrase, toml_path)

    return _detached(config, work) if config.daemon else work(on_ready)


def _detached(config: Config, work: Callable[[Callable[[], None]], int]) -> int:
    """Fork the service, and wait until it is ready or fails. Returns its exit code.

    Until then its standard error comes through a pipe and is passed on. With --log stderr it writes to
    standard error, most likely a file, itself.
    """
    stderr_in, stderr_out = os.pipe()
    ready_in, ready_out = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(stderr_in)
        os.close(ready_in)
        do_and_leave(lambda: _run_detached(config, work, stderr_out, ready_out), os.EX_SOFTWARE)
    os.close(stderr_out)
    os.close(ready_out)
    open_ends = {stderr_in, ready_in}
    ready = False
    while open_ends and not ready:
        for fd in select.select(list(open_ends), [], [])[0]:
            part = os.read(fd, 4096)
            if fd == ready_in and part:
                ready = True
            elif part:
                _pass_on(part)
            else:
                open_ends.discard(fd)
    if ready:
        while select.select([stderr_in], [], [], 0)[0] and (part := os.read(stderr_in, 4096)):
            _pass_on(part)
        return os.EX_OK
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code if code > 0 else os.EX_SOFTWARE


def _pass_on(part: bytes) -> None:
    with contextlib.suppress(OSError):  # without a reader the service starts nevertheless
        os.write(2, part)


def _run_detached(config: Config, work: Callable[[Callable[[], None]], int], stderr: int, ready: int) -> int:
    """Run the service in a session of its own, without a terminal."""
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    if config.log != "stderr":
        os.dup2(stderr, 2)
    os.close(stderr)
    os.close(null)
    os.chdir("/")

    def on_ready() -> None:
        os.write(ready, b"\0")
        os.close(ready)

    return work(on_ready)
