"""Run `popkernel` with another syslog socket: `python other_syslog.py SOCKET start -f ...`."""

import os
import sys

from popkernel.cli.main import main
from popkernel.kernel.runtime import system_log

COMMAND = [sys.executable, os.path.abspath(__file__)]

if __name__ == "__main__":
    system_log.PATH = sys.argv.pop(1)
    raise SystemExit(main(sys.argv[1:]))
