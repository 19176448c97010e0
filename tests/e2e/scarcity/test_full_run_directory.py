"""Rehearse in a run directory whose file system is full, at one step after the other: nothing hangs."""

import contextlib
import json
import subprocess
import sys

import pytest

from tests.support.service import ROOT

MOST = 16  # files and directories that a rehearsal does not fill, with the root of the file system
REHEARSE = """
import gc, json, os, sys
from popkernel.actors.maildir.rehearsal import rehearse
from popkernel.kernel.config.keys import Config, actor_settings
settings = actor_settings(Config(hostname="localhost"), "maildir")
for directory in sys.argv[1:]:
    before, said = os.listdir("/proc/self/fd"), ""
    try:
        rehearse(directory, settings, sandboxed=False)
    except OSError as error:
        said = error.strerror
    gc.collect()  # as before the first fork
    print(json.dumps([said, os.listdir("/proc/self/fd") == before, os.listdir(directory)]), flush=True)
"""


@contextlib.contextmanager
def small_file_system(path, files):
    """Mount one at `path` that holds so many files and directories, its root among them."""
    path.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"nr_inodes={files},mode=700", "none", path],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        pytest.skip(f"no file system can be mounted here: {made.stderr}")
    try:
        yield str(path)
    finally:
        subprocess.run(["umount", path], check=True)


@pytest.mark.skipif(not ROOT, reason="only root can mount a file system")
def test_a_rehearsal_that_finds_no_room(tmp_path):
    with contextlib.ExitStack() as stack:
        directories = [
            stack.enter_context(small_file_system(tmp_path / str(files), files))
            for files in range(1, MOST + 1)
        ]
        said = subprocess.run(
            [sys.executable, "-c", REHEARSE, *directories],
            stdout=subprocess.PIPE,
            text=True,
            timeout=30,
            check=True,
        ).stdout
    results = [json.loads(line) for line in said.splitlines()]
    assert [result[1:] for result in results] == [[True, []]] * MOST
    errors = [result[0] for result in results]
    assert errors[0] == "No space left on device" and errors[-1] == ""
    assert any("new: No space" in error for error in errors)
    assert any("the actor gave up" in error for error in errors)
