"""Run `python -m popkernel` as `popkernel`."""

import sys

from popkernel.cli.main import main

sys.exit(main())
