"""Serve until stopped: in the foreground, or detached."""

import contextlib
import os
import select
from collections.abc import Callable

import popkernel
from popkernel.kernel.config.keys import Config
from popkernel.kernel.init import main
from popkernel.kernel.init.pass_phrase import ask, file_of
from popkernel.kernel.init.singleton_start import short_of
from popkernel.kernel.runtime.child_process import do_and_leave
from popkernel.kernel.runtime.log import ERROR, say


def serve(
    config: Config, again: Callable[[], Config] | None = None, toml_path: str | None = None, on_ready: Callable[[], None] | None = None,
) -> int:
    """Serve; the exit code. `again` reads the configuration anew at a reload, `toml_path` is its file.

    `on_ready`: as init.run() has it, of a service in the foreground.
    """
    try:
        return _serve(config, again, toml_path, on_ready)
    except OSError as error:  # a process, a pipe
        say(ERROR, short_of(error), config.log_format)
        return os.EX_TEMPFAIL


def _serve(
    config: Config, again: Callable[[], Config] | None, toml_path: str | None, on_ready: Callable[[], None] | None,
) -> int:
    # Asked before anything is forked: a detached service has no terminal, and the kernel may not know the phrase.
    phrase = None if file_of(config.key_passphrase_file) else ask([(config.cert, config.key), *config.certs])

    def work(on_ready: Callable[[], None] | None = None) -> int:
        return main.run(config, again or (lambda: config), popkernel.__version__, on_ready, phrase, toml_path)

    return _detached(config, work) if config.daemon else work(on_ready)


def _detached(config: Config, work: Callable[[Callable[[], None]], int]) -> int:
    """Fork; this process waits for the service to be ready, or to fail, and ends with the service's exit code.

    What the service says on standard error comes here until then, and is passed on; a log that is wanted on standard error
    (--log stderr, into a file most likely) goes there directly, then and later.
    """
    said_in, said_out = os.pipe()
    ready_in, ready_out = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(said_in)
        os.close(ready_in)
        do_and_leave(lambda: _be_detached(config, work, said_out, ready_out), os.EX_SOFTWARE)
    os.close(said_out)
    os.close(ready_out)
    open_ends = {said_in, ready_in}
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
        while select.select([said_in], [], [], 0)[0] and (part := os.read(said_in, 4096)):
            _pass_on(part)
        return os.EX_OK
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code if code > 0 else os.EX_SOFTWARE


def _pass_on(part: bytes) -> None:
    with contextlib.suppress(OSError):  # nobody reads it: the service starts all the same
        os.write(2, part)


def _be_detached(config: Config, work: Callable[[Callable[[], None]], int], said: int, ready: int) -> int:
    """Be the service: a session of its own, no terminal."""
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    if config.log != "stderr":
        os.dup2(said, 2)
    os.close(said)
    os.close(null)
    os.chdir("/")

    def on_ready() -> None:
        os.write(ready, b"\0")
        os.close(ready)

    return work(on_ready)
