"""Test the command line: help, exit codes, quick start-up, completion."""

import os
import shutil
import subprocess
import sys
import types

import pytest
from popkernel.cli import registry
from popkernel.cli.common.server_flags import config_from
from popkernel.cli.main import main
from popkernel.cli.registry import build_parser
from popkernel.kernel.config.keys import keys

COMMANDS = [*registry.COMMANDS]
START = ["start", "-a", "/a", "-u", "/u", "-l", "127.0.0.1", "-c", "/c", "-k", "/k", "--run-dir", "/r"]


def leaves(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    shown = capsys.readouterr()
    return caught.value.code, shown.out, shown.err


@pytest.mark.parametrize("command", COMMANDS)
def test_each_help_has_examples_and_exit_codes(command, capsys):
    code, out, _ = leaves([command, "--help"], capsys)
    assert code == 0
    assert "examples:" in out
    assert f"popkernel {command}" in out
    assert "exit codes:\n  0   " in out
    assert "  64  wrong usage" in out


def test_the_main_help_names_every_command(capsys):
    _, out, _ = leaves(["--help"], capsys)
    assert all(f"    {command}" in out for command in COMMANDS)


def test_the_help_of_start_has_every_key(capsys):
    _, out, _ = leaves(["start", "--help"], capsys)
    assert all(f"  {key.name} " in out for key in keys())


@pytest.mark.parametrize(
    "arguments", [[], ["nonsense"], ["start", "--nonsense"], ["passwd"], ["start", "--listen", "x"]]
)
def test_wrong_usage(arguments, capsys):
    code, out, err = leaves(arguments, capsys)
    assert (code, out) == (os.EX_USAGE, "")
    command = arguments[0] + " " if arguments and arguments[0] in COMMANDS else ""
    assert f"Try `popkernel {command}--help`" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--for", "-1"],
        ["--for", "0"],
        ["--for", "nan"],
        ["--for", "inf"],
        ["--count", "0"],
        ["--count", "-3"],
        ["--count", "x"],
    ],
)
def test_a_trace_of_nothing_is_refused(arguments, capsys):
    code, _, err = leaves(["trace", *arguments], capsys)
    assert code == os.EX_USAGE
    assert "; give " in err


def test_version(capsys):
    code, out, _ = leaves(["--version"], capsys)
    assert code == 0
    assert out.startswith("popkernel ")


def test_the_original_s_flags():
    options = build_parser().parse_args(
        [*START, "-e", "Maildir", "-vvv", "-L", "127.0.0.1:1110", "-l", "[::1]:2"]
    )
    config = config_from(options)
    assert (config.subdir, config.verbose, config.run_dir) == ("Maildir", 3, "/r")
    assert [str(address) for address in config.listen] == ["127.0.0.1:995", "[::1]:2"]
    assert [str(address) for address in config.listen_starttls] == ["127.0.0.1:1110"]
    assert not (config.daemon or config.allow_plaintext or config.insecure_no_sandbox)
    flags = ["--listeners", "3", "--allow-plaintext", "--daemon", "--log", "syslog", "--insecure-no-sandbox"]
    config = config_from(build_parser().parse_args(START + flags))
    assert (config.listeners, config.log) == (3, "syslog")
    assert config.daemon
    assert config.allow_plaintext
    assert config.insecure_no_sandbox


def test_start_hands_the_configuration_over(monkeypatch):
    module = types.ModuleType("popkernel.cli.common.serving")
    module.serve = lambda config, again, path: (
        5 if config.auth_table == "/a" and again() == config and path is None else 6
    )
    monkeypatch.setitem(sys.modules, "popkernel.cli.common.serving", module)
    assert main(START) == 5


def test_wrong_configuration(tmp_path, capsys):
    assert main([*START, "-l", "localhost"]) == os.EX_USAGE
    assert "command line: -l: listen: 'localhost'" in capsys.readouterr().err
    assert main([*START, *["-v"] * 11]) == os.EX_USAGE
    path = tmp_path / "c.toml"
    path.write_text("verbos = 1\n")
    assert main([*START, "-f", str(path)]) == os.EX_CONFIG
    assert f"popkernel: {path}:1: unknown key 'verbos'; did you mean verbose?" in capsys.readouterr().err


def test_start_up_imports_nothing_heavy():
    code = (
        "import sys; from popkernel.cli.registry import build_parser; from "
        "popkernel.cli.common.server_flags import config_from\n"
        f"import popkernel.cli.main; config_from(build_parser(['start']).parse_args({START!r}))\n"
        "print(*sorted({'zmq', 'cryptography', 'shtab', 'bcrypt', 'msgpack', 'asyncio', 'json', 'ssl'} & "
        "set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_imports_no_other(command):
    code = (
        "import contextlib, sys; from popkernel.cli.main import main\n"
        f"with contextlib.suppress(SystemExit), contextlib.redirect_stdout(None): main([{command!r}, "
        f"'--help'])\n"
        "from popkernel.cli.registry import COMMANDS\n"
        "print(*[name for name in COMMANDS if any(m.startswith('popkernel.cli.') and m.endswith('.' + "
        "name.replace('-', '_')) for m in sys.modules)], "
        "'zmq' in sys.modules)"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout
        == f"{command} False\n"
    )


def test_a_reader_that_goes_away():
    command = [sys.executable, "-m", "popkernel", "completion", "bash"]
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (os.EX_IOERR, b""), "`| head` gives no error"


def test_interrupted(monkeypatch):
    module = types.ModuleType("popkernel.cli.common.serving")

    def run(_config, _again, _path):
        raise KeyboardInterrupt

    module.serve = run
    monkeypatch.setitem(sys.modules, "popkernel.cli.common.serving", module)
    assert main(START) == 130


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "tcsh"])
def test_completion(shell, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(command in script for command in COMMANDS)
    if shell != "tcsh" and shutil.which(shell):
        ended = subprocess.run([shell, "-n"], input=script.encode(), capture_output=True, check=False)
        assert (ended.returncode, ended.stderr) == (0, b"")


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash here")
def test_bash_completes(capsys):
    main(["completion", "bash"])
    script = capsys.readouterr().out
    ask = 'COMP_WORDS=(popkernel st); COMP_CWORD=1; _shtab_popkernel; echo "${COMPREPLY[@]}"'
    ended = subprocess.run(["bash", "-c", f"{script}\n{ask}"], capture_output=True, check=True)
    assert ended.stdout.split() == [b"start", b"status", b"stop"]


@pytest.mark.skipif(not shutil.which("fish"), reason="no fish here")
def test_fish_completes(capsys, tmp_path):
    main(["completion", "fish"])
    (tmp_path / "script").write_text(capsys.readouterr().out)
    (tmp_path / "one.toml").touch()

    def completed(line):
        ended = subprocess.run(
            ["fish", "--no-config", "-c", 'source script; complete -C "$argv"', line],
            cwd=tmp_path,
            env={**os.environ, "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
        )
        return [row.partition("\t")[0] for row in ended.stdout.splitlines()]

    assert completed("popkernel st") == ["start", "status", "stop"]
    assert completed("popkernel start --log ") == ["auto", "stderr", "syslog"]
    assert completed("popkernel completion ") == ["bash", "fish", "tcsh", "zsh"]
    assert completed("popkernel start --run") == ["--run-dir"]
    assert completed("popkernel start -f one") == ["one.toml"]
    assert completed("popkernel status one") == []


def popkernel(redirections, words):
    command = ["sh", "-c", f'exec "$@" {redirections}', "sh", sys.executable, "-m", "popkernel", *words]
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20, check=False
    )


# Closed descriptors, the command, and its exit code.
CODES = {
    "topology": (["topology"], 0),
    "completion": (["completion", "bash"], 0),
    "check": (["check", "-a", "/missing/a"], None),
    "status": (["status", "--run-dir", "/missing"], os.EX_UNAVAILABLE),
    "reload": (["reload", "--run-dir", "/missing"], os.EX_UNAVAILABLE),
    "replay": (["replay", "/missing"], os.EX_NOINPUT),
    "trace": (["trace", "--run-dir", "/missing"], os.EX_UNAVAILABLE),
    "deliver": (["deliver", "-u", "alice", "--run-dir", "/missing"], os.EX_TEMPFAIL),
    "deliver to nobody": (["deliver", "-u", ""], os.EX_USAGE),
    "passwd": (["passwd", "-a", "/missing/a", "--stdin", "alice"], None),
    "start": (["start", "-f", "/missing"], os.EX_CONFIG),
    "usage": (["nonsense"], os.EX_USAGE),
    "help": (["start", "--help"], 0),
}


@pytest.mark.parametrize("name", CODES)
def test_closed_descriptors_change_no_exit_code(name):
    words, code = CODES[name]
    as_ever = popkernel("", words)
    assert code in (None, as_ever.returncode), as_ever
    for how in (">&-", "2>&-", ">&- 2>&-", ">&- 2>/dev/full") + (
        (">&- 2>&- <&-",) if "deliver" not in words else ()
    ):
        ended = popkernel(how, words)
        assert ended.returncode == as_ever.returncode and "Traceback" not in ended.stderr, (how, ended)


@pytest.mark.parametrize(
    "words",
    [["topology"], ["completion", "bash"], ["check", "-a", "/missing/a"], ["topology", "--help"]],
    ids=lambda words: words[0],
)
def test_output_that_cannot_be_written_is_one_line(words):
    ended = popkernel("> /dev/full", words)
    assert ended.returncode == os.EX_IOERR, ended
    assert (
        ended.stderr == "popkernel: standard output: No space left on device; send it where there is room\n"
    )
    assert popkernel("> /dev/full 2>&1", words).returncode == os.EX_IOERR
