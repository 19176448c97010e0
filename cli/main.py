"""Run the program: parse, hand over to the command, turn what goes wrong into one line and a sysexits code.

Only the module of the command that is run is imported, so that `popkernel deliver` pays for nothing that it does not use.
"""

import os
import sys
from collections.abc import Sequence

from popkernel.cli.common import output
from popkernel.cli.registry import COMMANDS, build_parser, module_of
from popkernel.kernel.config.keys import COMMAND_LINE, ConfigError
from popkernel.kernel.runtime.descriptors import close_all_but


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
    words = sys.argv[1:] if arguments is None else arguments
    # No flag before the command takes a value, so the first word that is a command's name is the command.
    options = build_parser([word for word in words if word in COMMANDS][:1]).parse_args(words)
    command = COMMANDS[options.command]
    if arguments is None and command.serves:
        close_all_but(())
    if arguments is None and sys.stdin is None and options.command != "deliver":  # which says that it has no message
        sys.stdin = open(0, closefd=False)  # noqa: SIM115  /dev/null by now
    if command.acts:
        output.keep_going()
    try:
        return int(module_of(options.command).run(options))
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
