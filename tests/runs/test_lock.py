"""Two processes do not write into one run, and what a killed one left does not hold up the next."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest

from vadapter.base.errors import UserError
from vadapter.runs import lock


def write(place, **changes):
    """The lock of another process; returns its text."""
    holder = dataclasses.replace(lock.Holder.here(place), token="theirs", since="yesterday", **changes)
    text = json.dumps(dataclasses.asdict(holder))
    (place / lock.FILE).write_text(text)
    return text


@pytest.fixture
def gone():
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_second_process_is_refused_and_told_who_holds_the_folder(tmp_path):
    with (
        lock.held(str(tmp_path / "run")),
        pytest.raises(UserError, match=rf"process {os.getpid()} on \S+, since .* UTC.*another MODEL_DIR"),
        lock.held(str(tmp_path / "run")),
    ):
        pass
    with lock.held(str(tmp_path / "run")):  # it was given up
        pass


def test_a_real_second_process_is_refused(tmp_path):
    code = f"from vadapter.runs import lock\nwith lock.held({str(tmp_path)!r}): print('in')"
    with lock.held(str(tmp_path)):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and "Another process writes into" in done.stderr and not done.stdout


def test_a_process_that_was_killed_leaves_a_lock_that_is_taken_over(tmp_path):
    code = f"import os\nfrom vadapter.runs import lock\nwith lock.held({str(tmp_path)!r}): os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert (tmp_path / lock.FILE).exists()
    said = []
    with lock.held(str(tmp_path), say=said.append):
        assert json.loads((tmp_path / lock.FILE).read_text())["pid"] == os.getpid()
    assert len(said) == 1 and "Took over" in said[0]
    assert not list(tmp_path.iterdir())


def test_a_later_process_of_the_same_number_is_not_the_holder(tmp_path):
    write(tmp_path, started="1")
    said = []
    with lock.held(str(tmp_path), say=said.append):
        pass
    assert "Took over" in said[0]


def test_the_lock_in_a_copy_of_a_folder_holds_nobody_up(tmp_path):
    write(tmp_path, folder="0:0")  # its process lives, and trains in the original
    with lock.held(str(tmp_path), say=lambda line: None):
        pass


@pytest.mark.parametrize("where", [{"host": "elsewhere"}, {"machine": "another container"}])
def test_a_silent_process_of_another_host_is_watched_and_then_taken_for_gone(tmp_path, where):
    write(tmp_path, **where)
    said, waited = [], []
    with lock.held(str(tmp_path), say=said.append, wait=waited.append):
        pass
    assert sum(waited) == lock.PATIENCE
    assert "looking for up to 90 s" in said[0] and "Took over" in said[1]


def test_a_process_of_another_host_that_gives_a_sign_keeps_its_lock(tmp_path):
    text = write(tmp_path, host="elsewhere")
    path = tmp_path / lock.FILE

    def wait(seconds):
        os.utime(path, ns=(1, 1))

    with (
        pytest.raises(UserError, match="on elsewhere, since yesterday"),
        lock.held(str(tmp_path), say=lambda line: None, wait=wait),
    ):
        pass
    assert path.read_text() == text


@pytest.mark.parametrize("content", ["", '{"token": "a', "[]", '{"unknown": 1}'])
def test_a_lock_that_was_cut_is_taken_over_when_nothing_moves(tmp_path, content):
    (tmp_path / lock.FILE).write_text(content)
    with lock.held(str(tmp_path), say=lambda line: None, wait=lambda seconds: None):
        assert json.loads((tmp_path / lock.FILE).read_text())["pid"] == os.getpid()


def test_a_lock_that_is_given_up_while_it_is_watched_is_free(tmp_path):
    write(tmp_path, host="elsewhere")
    with lock.held(str(tmp_path), say=lambda line: None, wait=lambda s: (tmp_path / lock.FILE).unlink(True)):
        assert json.loads((tmp_path / lock.FILE).read_text())["token"] != "theirs"


def test_the_lock_of_another_process_is_not_removed_at_the_end(tmp_path):
    with lock.held(str(tmp_path)):
        text = write(tmp_path)
    assert (tmp_path / lock.FILE).read_text() == text


def test_a_refused_run_leaves_no_folder(tmp_path):
    with pytest.raises(ZeroDivisionError), lock.held(str(tmp_path / "a" / "b")):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
    (tmp_path / "mine").mkdir()
    with lock.held(str(tmp_path / "mine")):
        pass
    assert (tmp_path / "mine").is_dir()  # it was there before


def test_signs_of_life_are_given(tmp_path, monkeypatch):
    mine = lock.Holder.here(tmp_path)
    lock._make(tmp_path / lock.FILE, mine)
    os.utime(tmp_path / lock.FILE, ns=(1, 1))

    class Once:
        calls = 0

        def wait(self, seconds):
            self.calls += 1
            return self.calls > 1

    lock._beat(tmp_path / lock.FILE, mine, Once())
    assert (tmp_path / lock.FILE).stat().st_mtime_ns > 1


def test_a_holder_that_lost_its_lock_is_told(tmp_path, capsys):
    mine = lock.Holder.here(tmp_path)
    write(tmp_path, host="elsewhere")

    class Never:
        def wait(self, seconds):
            return False

    lock._beat(tmp_path / lock.FILE, mine, Never())
    assert "now held by" in capsys.readouterr().err


def test_a_bucket_is_not_locked():
    with lock.held("gs://bucket/run"):
        pass
