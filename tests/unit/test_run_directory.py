"""Test the run directory: what a start made is removed again, and `check` predicts a start's refusal."""

import os

import pytest
from popkernel.kernel.init import run_directory
from popkernel.kernel.init.run_directory import RunDir, StartError, problem

ROOT = os.geteuid() == 0


def test_parents_that_were_made_are_removed(tmp_path):
    made = RunDir(str(tmp_path / "a" / "b" / "run"))
    assert oct(os.stat(made.path).st_mode & 0o777) == "0o711"
    made.tidy()
    os.close(made.lock)
    assert os.listdir(tmp_path) == []


def test_existing_directories_stay(tmp_path):
    (tmp_path / "a").mkdir()
    made = RunDir(str(tmp_path / "a" / "b" / "run"))
    made.tidy()
    os.close(made.lock)
    assert os.listdir(tmp_path) == ["a"] and os.listdir(tmp_path / "a") == []


def test_files_of_others_stay(tmp_path):
    one, two = (RunDir(str(tmp_path / "a" / "b" / name)) for name in ("one", "two"))
    (tmp_path / "a" / "theirs").touch()
    one.tidy()
    assert os.listdir(tmp_path / "a" / "b") == ["two"]
    two.tidy()
    assert sorted(os.listdir(tmp_path / "a")) == ["b", "theirs"]  # the second had found `b` there
    for run in (one, two):
        os.close(run.lock)


def a_file(path):
    path.write_text("x")


def under_a_file(path):
    path.parent.rmdir()
    path.parent.write_text("x")


def dangling(path):
    path.symlink_to("nowhere")


def everybodys(path):
    path.mkdir()
    path.chmod(0o777)


def anothers(path):
    path.mkdir()
    os.chown(path, 65534, 65534)


def with_a_strange_lock(path):
    path.mkdir()
    (path / "lock").symlink_to("/etc/passwd")


BAD = {a_file: 73, under_a_file: 73, dangling: 73, everybodys: 77, with_a_strange_lock: 73}
if ROOT:
    BAD[anothers] = 77


@pytest.mark.parametrize("make", BAD)
def test_check_predicts_a_start_s_refusal(tmp_path, make):
    path = tmp_path / "above" / "my run"
    path.parent.mkdir()
    make(path)
    code, what, mend = problem(str(path))
    assert code == BAD[make] and what and mend
    if "chmod" in mend or "rm " in mend:
        assert f"'{path}'" in mend
    before = sorted(os.walk(tmp_path))
    with pytest.raises(StartError) as caught:
        RunDir(str(path))
    assert caught.value.status == code and str(path) in str(caught.value) and "; " in str(caught.value)
    assert sorted(os.walk(tmp_path)) == before


def test_a_world_writable_parent_is_left_unchanged(tmp_path):
    path = tmp_path / "tmp"
    path.mkdir()
    path.chmod(0o1777)
    code, what, mend = problem(str(path))
    assert (code, what) == (77, "can be written by everybody")
    assert mend.startswith("give a directory of its own with --run-dir, for example /")
    path.chmod(0o777)
    assert problem(str(path))[2].startswith(f"chmod o-w {path}, or give a directory of its own")


@pytest.mark.skipif(ROOT, reason="root may write anywhere")
def test_a_directory_of_another_user_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    assert problem(str(tmp_path / "run"))[0] == 73
    with pytest.raises(StartError):
        RunDir(str(tmp_path / "run"))
    tmp_path.chmod(0o700)


def test_good_ones(tmp_path):
    assert problem(str(tmp_path / "new" / "er")) is None
    assert problem(str(tmp_path)) is None
    made = RunDir(str(tmp_path / "r"))
    assert problem(made.path) is None
    with pytest.raises(StartError) as caught:
        RunDir(made.path)
    assert caught.value.status == 69
    made.tidy()
    os.close(made.lock)
    assert run_directory.problem("/") is None or not ROOT
