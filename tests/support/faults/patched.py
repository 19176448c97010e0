"""A service with something else in the place of a function of its own: what no input from outside can bring about."""

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
    """The command of a popkernel in which `patch()` of `source` has run: in init, and in each singleton before it is one.

    `in_init()`, where the source has it, runs in init alone, and so counts for the kernel, which is forked from it.
    """
    path = directory / "patched.py"
    path.write_text(source + _MAIN)
    return [sys.executable, str(path)]
