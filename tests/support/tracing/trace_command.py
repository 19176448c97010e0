"""Help the tests of `popkernel trace`: run the command, run a session, collect frames."""

import codecs
import os
import select
import subprocess
import time

from popkernel.kernel.client import Client

from tests.support.service import POPKERNEL


class Trace:
    """Run `popkernel trace ...` and wait until it is attached."""

    def __init__(self, service, *arguments, stdout=subprocess.PIPE, **options):
        self.process = subprocess.Popen(
            [*POPKERNEL, "trace", "--run-dir", service.config.run_dir, *arguments],
            stdout=stdout,
            stderr=subprocess.PIPE,
            **options,
        )
        service.keep(self)
        self.first = ""
        while "attached" not in self.first:
            line = self.process.stderr.readline().decode()
            assert line, self.first
            self.first += line
        self.text = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")()  # a write may end within a character

    def until(self, text, count=1):
        """Read the output until `text` has come `count` times; return it."""
        fd = self.process.stdout.fileno()
        os.set_blocking(fd, False)
        end = time.monotonic() + 15
        while self.text.count(text) < count:
            assert time.monotonic() < end, f"{text!r} was not told {count} times:\n{self.text}"
            select.select([fd], [], [], 0.1)
            self.text += self._decoder.decode(self.process.stdout.read() or b"")
        return self.text

    def close(self):
        """End the command if it was not stopped."""
        with self.process:  # waits for it and closes the pipes
            if self.process.poll() is None:
                self.process.kill()

    def stop(self, code=0):
        self.process.terminate()
        rest = self.process.communicate(timeout=20)
        assert self.process.returncode == code, rest[1]
        self.text += self._decoder.decode(rest[0] or b"", final=True)
        return self.text


def session(service, user="alice"):
    pop = service.pop3(user)
    pop.stat(), pop.retr(1), pop.quit()


def watcher(service, **wish):
    return Client(service.config.run_dir).follow(**wish)


def frames_of(viewer, until, seconds=15):
    """Return the frames up to one that satisfies `until`."""
    found = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        frame = viewer.next_frame(0.2)
        if frame is not None:
            found.append(frame)
            if until(frame):
                return found
    raise AssertionError(found[-5:])
