"""The entry of the program: parse, hand over to the command, turn what goes wrong into one line and a sysexits code.

Each command's module is imported when that command runs and not before, so that ``popkernel start`` pays for nothing it
does not use.
"""

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from popkernel.cli import output
from popkernel.cli.arguments import build_parser
from popkernel.kernel.config.keys import COMMAND_LINE, ConfigError
from popkernel.kernel.runtime.descriptors import close_all_but

# What serves others, or is run by a mail server: what its caller left open is not for them.
_LASTING = frozenset({"popkernel.cli.server_flags", "popkernel.cli.demo", "popkernel.cli.deliver"})
# Whose work is done, or not, whatever becomes of what is printed.
_ACTING = frozenset(
    f"popkernel.cli.{name}:run" for name in ("deliver", "passwd", "import_uidl")
) | {"popkernel.cli.server_flags:run_start", "popkernel.cli.control:stop", "popkernel.cli.control:reload"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: what stands after the program's name; None for sys.argv's.

    Returns:
        The exit code, from sysexits.h: 0 done, 64 wrong usage, 78 wrong configuration, and so on.

    """
    if arguments is not None:
        return _command(arguments)
    output.take()  # this process is ours
    try:
        code = _command(None)
    except SystemExit as left:  # argparse itself leaves so after --help, --version (0) and wrong usage (64)
        code = int(left.code or 0)
    except output.OutputError:
        code = os.EX_IOERR
    return output.settle(code)


def _command(arguments: Sequence[str] | None) -> int:
    options = build_parser().parse_args(arguments)
    module, _, function = options.run.partition(":")
    if arguments is None and module in _LASTING:
        close_all_but(())
    if arguments is None and sys.stdin is None and module != "popkernel.cli.deliver":  # which says that it has no message
        sys.stdin = open(0, closefd=False)  # noqa: SIM115  /dev/null by now
    if options.run in _ACTING:
        output.keep_going()
    try:
        return int(getattr(import_module(module), function)(options))
    except ConfigError as error:
        return _report(error)
    except KeyboardInterrupt:
        return 130  # 128 + SIGINT, as a shell counts


def _report(error: ConfigError) -> int:
    for finding in error.findings:
        print(f"popkernel: {finding}", file=sys.stderr)
    # What only the command line got wrong is wrong usage; what a file holds is wrong configuration.
    from_flags = all(finding.path.startswith(COMMAND_LINE) for finding in error.findings)
    return os.EX_USAGE if from_flags else os.EX_CONFIG


if __name__ == "__main__":
    sys.exit(main())
