"""`popkernel reload`: have the running server read its configuration again."""

import argparse
import json
import sys
from typing import Any

from popkernel.cli.common.parser import CommandParser
from popkernel.cli.common.question import with_server
from popkernel.cli.common.run_directory import add_which_server
from popkernel.kernel.client import Client, ClientError, plain

_COUNTS = ("added", "removed", "changed")


def define(parser: CommandParser) -> None:
    """Define the flags and the help."""
    parser.describe(
        "Read configuration, tables, certificate and key again. Open sessions go on. If any of them has\n"
        "errors, nothing changes and the errors are printed. Only actors whose settings or files changed\n"
        "are replaced. It prints what it did: users that came, went and changed, when certificates end,\n"
        "which actors were replaced, changed keys that apply only at the next start, and up to ten\n"
        "mailboxes that cannot be served.",
        "f=/etc/popkernel/popkernel.toml; popkernel check -f $f && popkernel reload -f $f",
        "usage data noinput unavailable software ioerr tempfail noperm config",
    )
    add_which_server(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(options: argparse.Namespace) -> int:
    """Run `popkernel reload`."""
    return with_server(options, lambda server: _reload(server, as_json=options.json))


def _reload(server: Client, *, as_json: bool) -> None:
    try:
        answer = server.ask("reload")
    except ClientError as error:
        if error.refused and not as_json:
            print("not reloaded: what is in force stays", flush=True)
        raise
    if as_json:
        print(json.dumps({name: value for name, value in answer.items() if name != "ok"}))
        return
    print("reloaded")
    for line in _done(answer):
        print(plain(line))
    for line in (*_list(answer, "warnings"), *_list(answer, "mailboxes")):
        print(f"warning: {plain(line)}", file=sys.stderr)


def _done(answer: dict[str, Any]) -> list[str]:
    """Return what the reload did, a line each."""
    lines = []
    if "added" in answer:
        lines.append("users: {} (+{} -{}, {} changed)".format(*_values(answer, "users", *_COUNTS)))
    if "passwords_added" in answer:
        counts = _values(answer, *(f"passwords_{name}" for name in _COUNTS))
        lines.append("passwords: +{} -{}, {} changed".format(*counts))
    lines += [
        f"certificate: {one.get('path')}, until {str(one.get('ends')).replace('T', ' ').replace('Z', ' UTC')}"
        for one in _list(answer, "certificates")
        if isinstance(one, dict)
    ]
    if "replaced" in answer:
        lines.append(f"replaced: {', '.join(map(str, _list(answer, 'replaced'))) or 'no actor'}")
    return lines + [f"only from the next start on: {key}" for key in _list(answer, "next_start")]


def _values(answer: dict[str, Any], *names: str) -> list[Any]:
    return [answer.get(name) for name in names]


def _list(answer: dict[str, Any], name: str) -> list[Any]:
    found = answer.get(name)
    return found if isinstance(found, list) else []
