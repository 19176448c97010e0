"""Run the program: parse the command line, run the command, turn errors into one line and a sysexits code.

Imports only the module of the command, so that `popkernel deliver` does not pay for what it does not use.
"""

import os
import sys
from collections.abc import Sequence

from popkernel.cli.common import output
from popkernel.cli.registry import COMMANDS, build_parser, module_of
from popkernel.kernel.config.loading import COMMAND_LINE, ConfigError
from popkernel.kernel.runtime.descriptors import close_all_but


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: the words after the program's name; None for those of sys.argv.

    Returns:
        The exit code (sysexits.h): 0 done, 64 wrong usage, 78 wrong configuration, and so on.

    """
    if arguments is not None:
        return _command(arguments)
    output.take()
    try:
        code = _command(None)
    except SystemExit as left:  # argparse exits after --help and --version (0) and wrong usage (64)
        code = int(left.code or 0)
    except output.OutputError:
        code = os.EX_IOERR
    return output.settle(code)


def _command(arguments: Sequence[str] | None) -> int:
    words = sys.argv[1:] if arguments is None else arguments
    # No flag before the command takes a value: the first word that is a command's name is the command.
    options = build_parser([word for word in words if word in COMMANDS][:1]).parse_args(words)
    command = COMMANDS[options.command]
    if arguments is None and command.serves:
        close_all_but(())
    # `deliver` reports a closed standard input itself.
    if arguments is None and sys.stdin is None and options.command != "deliver":
        sys.stdin = open(0, closefd=False)  # noqa: SIM115  descriptor 0 is /dev/null by now
    if command.acts:
        output.keep_going()
    try:
        return int(module_of(options.command).run(options))
    except ConfigError as error:
        return _report(error)
    except KeyboardInterrupt:
        return 130  # 128 + SIGINT, as shells do


def _report(error: ConfigError) -> int:
    for finding in error.findings:
        print(f"popkernel: {finding}", file=sys.stderr)
    # Errors of the command line alone are wrong usage; those of a file are wrong configuration.
    from_flags = all(finding.path.startswith(COMMAND_LINE) for finding in error.findings)
    return os.EX_USAGE if from_flags else os.EX_CONFIG


if __name__ == "__main__":
    sys.exit(main())
