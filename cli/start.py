"""`popkernel start`: run the service, in the foreground or detached."""

import argparse

from popkernel.cli.common.parser import CommandParser
from popkernel.cli.common.server_flags import add_server_flags, config_from, toml_help


def define(parser: CommandParser) -> None:
    """Define the flags and the help, which ends with the keys of the TOML file."""
    parser.describe(
        "Serve maildirs over POP3, in the foreground unless --daemon. All paths are absolute.",
        """
        popkernel start -a /etc/popkernel/auth -u /etc/popkernel/users -l 192.0.2.1 -l '[2001:db8::1]' \\
            -c /etc/ssl/mail.pem -k /etc/ssl/private/mail.key -e Maildir
        popkernel start -f /etc/popkernel/popkernel.toml --daemon
        popkernel start -f /etc/popkernel/popkernel.toml -v --log stderr
        """,
        "usage data noinput unavailable software oserr cantcreat noperm config",
        files="""
        RUN_DIR/control.sock  for `popkernel status`, `stop` and `reload`
        """,
        more=toml_help,
    )
    add_server_flags(parser)


def run(options: argparse.Namespace) -> int:
    """Run `popkernel start`."""
    config = config_from(options)
    from popkernel.cli.common.serving import serve

    # A reload applies the flags and reads the file again.
    return serve(config, lambda: config_from(options), options.toml_path)
