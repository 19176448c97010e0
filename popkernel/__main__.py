"""`python -m popkernel` is the same as `popkernel`."""

import sys

from popkernel.cli.main import main

sys.exit(main())
