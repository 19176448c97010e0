"""Test which changes of files replace an actor at a reload."""

import os
import time

import pytest
from popkernel.cli.common.sample_site import make_certificate
from popkernel.kernel.config.keys import Config
from popkernel.kernel.init import contents
from popkernel.kernel.init.contents import ends, files_of, fingerprint

DAY = 86400


@pytest.fixture
def config(tmp_path):
    def write(name, data):
        (tmp_path / name).write_bytes(data)
        return str(tmp_path / name)

    cert, key = make_certificate(days=90)
    return Config(
        auth_table=write("auth", b"alice x\n"),
        user_table=write("users", b"alice 1:1:/a\n"),
        cert=write("cert", cert),
        key=write("key", key),
        block_list=write("blocked", b"192.0.2.1\n"),
        key_passphrase_file=write("phrase", b"x\n"),
    )


def both(config):
    return [fingerprint(config, actor, lambda _: None) for actor in ("auth", "listener")]


def test_the_files_of_each_actor(config):
    assert files_of(config, "auth") == [config.auth_table]
    wanted = {config.cert, config.key, config.block_list, config.key_passphrase_file}
    assert set(files_of(config, "listener")) == set(files_of(config, "gate")) == wanted
    assert not files_of(config, "mda") and not files_of(config, "spawner")


@pytest.mark.parametrize("name", ["auth_table", "cert", "key", "block_list", "key_passphrase_file"])
def test_content_and_mode_count_and_time_stamps_do_not(config, name):
    path, which = getattr(config, name), name != "auth_table"
    before = both(config)
    os.utime(path, (1, 1))
    os.rename(path, path + ".old")
    with open(path + ".old", "rb") as old, open(path, "wb") as new:
        new.write(old.read())
    assert both(config) == before
    os.chmod(path, 0o640)
    changed = both(config)
    assert changed[which] != before[which] and changed[not which] == before[not which]
    with open(path, "ab") as file:
        file.write(b"# more\n")
    more = both(config)
    assert more[which] not in (before[which], changed[which]) and more[not which] == before[not which]


def test_a_file_that_is_not_there_counts_as_changed_and_a_fifo_is_not_waited_for(config):
    os.unlink(config.key)
    assert both(config)[1] == "" != both(config)[0]
    os.mkfifo(config.key)
    assert both(config)[1] == ""


def test_the_last_days_of_a_certificate_count_each(config, monkeypatch):
    now = time.time()

    def on_day(day):
        monkeypatch.setattr(contents.time, "time", lambda: now + day * DAY)
        return both(config)[1]

    assert len({on_day(day) for day in (0, 1, 30, 50)}) == 1
    assert len({on_day(day) for day in (50, 65, 66, 80, 95)}) == 5
    assert on_day(80) == on_day(80.0001)


def test_the_ends_of_certificates(config, tmp_path):
    ((path, end),) = ends(config)
    assert path == config.cert and abs(end - time.time() - 90 * DAY) < 2 * DAY
    (tmp_path / "cert").write_bytes(b"garbage")
    assert ends(config) == []
