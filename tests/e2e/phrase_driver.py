"""`popkernel start` whose listener takes its certificates as init's blob has them: run by test_certificates.py, never by pytest."""

import os
import sys


def main():
    """In the listener's process, before it becomes one."""
    from popkernel.actors.listener import main as listener
    from popkernel.actors.listener.tls import TlsError, serve
    from popkernel.kernel import boot

    real = listener.main

    def wrapped(told):
        pairs = [tuple(pair) for pair in told.config["pairs"]]
        listener.context = lambda *_: serve(pairs, told.config["tls_min"], told.config["phrase"]).context
        assert TlsError
        real(told)

    listener.main = wrapped
    boot.main()


if __name__ == "__main__":
    from popkernel.cli.main import main as command
    from popkernel.kernel import init

    here = os.path.dirname(os.path.abspath(__file__))
    init.BOOT[:] = ["-c", f"import sys; sys.path.insert(0, {here!r}); import phrase_driver; phrase_driver.main()"]
    sys.exit(command())
