"""Check that units, manual and help agree with the table of exit codes."""

import os

import pytest
from popkernel.cli.registry import build_parser
from popkernel.kernel.runtime.exit_codes import EXITS

HERE = os.path.join(os.path.dirname(__file__), "..", "..")


def read(path):
    with open(os.path.join(HERE, path)) as file:
        return file.read()


def test_codes_are_sysexits():
    assert {row.code for row in EXITS.values()} == {
        getattr(os, f"EX_{name.upper()}", row.code) for name, row in EXITS.items()
    }
    assert EXITS["data"].code == os.EX_DATAERR
    assert len({row.code for row in EXITS.values()}) == len(EXITS)


def test_the_unit_tries_again_only_what_may_mend_itself():
    line = next(
        line
        for line in read("packaging/popkernel.service").splitlines()
        if line.startswith("RestartPreventExitStatus=")
    )
    assert [int(word) for word in line.partition("=")[2].split()] == [
        row.code for row in EXITS.values() if row.human
    ]


def test_the_manual_page_has_the_table():
    section = read("docs/popkernel.8").partition(".Sh EXIT STATUS\n")[2].partition(".Sh ")[0]
    assert ".Cm deliver\n" in section
    for row in EXITS.values():
        assert f".It {row.code}\n{row.said[0].upper()}{row.said[1:]}.\n" in section


@pytest.mark.parametrize("command", ["start", "status", "stop", "reload", "check", "demo"])
def test_each_help_has_the_same_sentences(command):
    commands = next(a.choices for a in build_parser()._actions if a.choices)
    said = " ".join(commands[command].format_help().split())
    for row in EXITS.values():
        assert (
            f" {row.code} {row.said}" in said
            or f" {row.code} " not in said.partition("exit codes:")[2].partition("files:")[0]
        )
    assert f" 78 {EXITS['config'].said}" in said
