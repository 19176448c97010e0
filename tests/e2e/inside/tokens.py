"""`popkernel` whose listeners take lines of 12 KiB, and send on as a token a password that begins with a mechanism's name and a colon.

For what auth makes of tokens inside its cage, without AUTH's own words between.
"""

import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)

from popkernel.cli.main import main  # noqa: E402
from popkernel.kernel import boot, init  # noqa: E402
from popkernel.proto.pop3 import LineReader  # noqa: E402
from popkernel.proto.sasl import AUTH_LINE_LIMIT  # noqa: E402


def become():
    """Instead of popkernel.kernel.boot."""
    if sys.argv[1].startswith("listener"):
        from popkernel.actors.listener.main import Listener

        ask = Listener._ask

        def new_ask(self, client, login):
            mechanism, colon, token = login.secret.partition(b":")
            ask(self, client, login._replace(secret=token, mechanism=mechanism.decode()) if colon else login)

        LineReader.__init__.__defaults__ = (AUTH_LINE_LIMIT,)
        Listener._ask = new_ask
    boot.main()


if __name__ == "__main__":
    init.BOOT = ["-c", f"import sys; sys.path.insert(0, {HERE!r}); import tokens; tokens.become()"]
    raise SystemExit(main())
