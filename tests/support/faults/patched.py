"""Run a service with one of its functions replaced, for states that no outside input can cause."""

import sys

_MAIN = """
if __name__ == "__main__":
    import os, sys
    patch()
    from popkernel.cli.main import main
    from popkernel.kernel.init import main as init
    if "in_init" in globals():
        in_init()
    here = os.path.dirname(os.path.abspath(__file__))
    init.BOOT = ["-c", f"import sys; sys.path.insert(0, {here!r}); import patched; patched.patch()\\n"
        "from popkernel.kernel.runtime.singleton_boot import main; main()"]
    sys.exit(main(sys.argv[1:]))
"""


def patched(directory, source):
    """Return a popkernel command that runs `patch()` of `source` in init and in each singleton.

    In a singleton `patch()` runs before it becomes an actor. If `source` defines `in_init()`, that runs in
    init alone, and so affects the kernel, which is forked from init.
    """
    path = directory / "patched.py"
    path.write_text(source + _MAIN)
    return [sys.executable, str(path)]
