"""The entry of the program: parse, hand over to the command, turn what goes wrong into one line and a sysexits code.

Each command's module is imported when that command runs and not before, so that ``popkernel start`` pays for nothing it
does not use.
"""

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from popkernel.cli.arguments import build_parser
from popkernel.kernel.config import COMMAND_LINE, ConfigError
from popkernel.kernel.descriptors import close_inherited

# What serves others, or is run by a mail server: what its caller left open is not for them.
_LASTING = frozenset({"popkernel.cli.serverflags", "popkernel.cli.demo", "popkernel.cli.deliver"})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: what stands after the program's name; None for sys.argv's.

    Returns:
        The exit code, from sysexits.h: 0 done, 64 wrong usage, 78 wrong configuration, and so on.

    """
    # argparse itself leaves by SystemExit after --help, --version (0) and wrong usage (64).
    options = build_parser().parse_args(arguments)
    module, _, function = options.run.partition(":")
    if arguments is None and module in _LASTING:  # this process is ours
        close_inherited(fill=module != "popkernel.cli.deliver")  # which says that it has no message, where standard input is closed
    try:
        code = int(getattr(import_module(module), function)(options))
        sys.stdout.flush()
    except ConfigError as error:
        return _report(error)
    except BrokenPipeError:
        # The reader went away (`| head`). Python would complain once more when it closes standard output at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return os.EX_IOERR
    except KeyboardInterrupt:
        return 130  # 128 + SIGINT, as a shell counts
    return code


def _report(error: ConfigError) -> int:
    for finding in error.findings:
        print(f"popkernel: {finding}", file=sys.stderr)
    # What only the command line got wrong is wrong usage; what a file holds is wrong configuration.
    from_flags = all(finding.path.startswith(COMMAND_LINE) for finding in error.findings)
    return os.EX_USAGE if from_flags else os.EX_CONFIG


if __name__ == "__main__":
    sys.exit(main())
