"""Test the files of packaging/{lnav,rsyslog,logrotate} with the programs that read them."""

import os
import shutil
import subprocess

import pytest
from popkernel.kernel.runtime.log import as_json, stamp
from popkernel.proto.log_events import EVENTS, text_of
from popkernel.proto.log_levels import level_name

PACKAGING = os.path.join(os.path.dirname(__file__), "..", "..", "..", "packaging")
UNPACKED = os.environ.get("POPKERNEL_LNAV", "/var/tmp/popkernel-tests/lnav")  # by tests/packages.sh
LNAV = shutil.which("lnav") or next(filter(os.path.exists, [f"{UNPACKED}/usr/bin/lnav"]), None)
SBIN = f"{os.environ['PATH']}:/usr/sbin"
RSYSLOGD, LOGROTATE = (shutil.which(name, path=SBIN) for name in ("rsyslogd", "logrotate"))


def rows():
    """Return an event of each kind, as text and as JSON."""
    for event, known in EVENTS.items():
        level = known.levels[0]
        prefix = f"{level_name(level)}: " if level <= 4 else ""
        text = f"{stamp()} popkernel: {prefix}{text_of(event, known.example)}"
        yield event, as_json(level, "kernel", event, known.example), text


@pytest.mark.skipif(LNAV is None, reason="needs lnav(1)")
@pytest.mark.parametrize(("form", "at"), [("json", 1), ("text", 2)])
def test_lnav_knows_each_line(tmp_path, form, at):
    formats = tmp_path / ".lnav" / "formats" / "installed"
    formats.mkdir(parents=True)
    shutil.copy(os.path.join(PACKAGING, "lnav", "popkernel.json"), formats)
    env = {**os.environ, "HOME": str(tmp_path), "TERM": "dumb"}
    env.pop("XDG_CONFIG_HOME", None)

    def lnav(*arguments):
        done = subprocess.run(
            [LNAV, *arguments], capture_output=True, text=True, env=env, timeout=60, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "error" not in lnav("-C")
    log = tmp_path / "log"
    log.write_text("".join(f"{row[at]}\n" for row in rows()))
    count = lnav("-n", "-c", f";SELECT count(*) FROM popkernel_{form}", "-c", ":write-csv-to -", str(log))
    assert count.split() == ["count(*)", str(len(EVENTS))]
    if form == "json":
        users = ";SELECT user, reason FROM popkernel_json WHERE event = 'login.failed'"
        assert "alice,guard" in lnav("-n", "-c", users, "-c", ":write-csv-to -", str(log))


@pytest.mark.skipif(RSYSLOGD is None, reason="needs rsyslogd(8)")
def test_rsyslog_takes_the_rules():
    rules = os.path.join(PACKAGING, "rsyslog", "popkernel.conf")
    done = subprocess.run([RSYSLOGD, "-N1", "-f", rules], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(LOGROTATE is None, reason="needs logrotate(8)")
def test_logrotate_rotates_the_files_of_rsyslog(tmp_path):
    with open(os.path.join(PACKAGING, "logrotate", "popkernel")) as file:
        rules = file.read()
    for path, here in (("/var/log/popkernel", tmp_path), ("/usr/lib/rsyslog/rsyslog-rotate", "touch told")):
        assert path in rules
        rules = rules.replace(path, str(here))
    (tmp_path / "rules").write_text(rules)
    (tmp_path / "rules").chmod(0o644)
    for name in ("users", "popkernel"):
        (tmp_path / f"{name}.log").write_text("a line\n")
    command = [LOGROTATE, "--force", "--state", str(tmp_path / "state"), str(tmp_path / "rules")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert {"users.log.1", "popkernel.log.1", "told"} <= {*os.listdir(tmp_path)}
