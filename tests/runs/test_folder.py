"""What cannot be the folder of a run is refused before anything is loaded; files are written whole."""

import errno
import json
import logging
import os
import sys
import threading

import pytest
import tensorstore

from vadapter.base import files, storage_errors
from vadapter.base.errors import UserError
from vadapter.runs import folder
from vadapter.training.writing import CurveFile


@pytest.mark.parametrize("given", ["", " ", "a\0b", None, 3])
def test_what_is_no_path_is_refused(given):
    with pytest.raises(UserError, match="MODEL_DIR is .*; expected the path of a folder"):
        folder.check(given)


@pytest.mark.parametrize("name", ["file", "file/run", "file/a/b", "link", "link/run"])
def test_a_file_in_the_way_is_named(tmp_path, name):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=rf"{name.split('/')[0]} is a (file|link to nothing)"):
        folder.check(str(tmp_path / name))
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("name", ["curve.jsonl", "run.lock", "done.json", "bad_batches.jsonl"])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_in_the_place_of_one_is_told_and_not_waited_for(tmp_path, name, make):
    make(tmp_path / name)
    with pytest.raises(UserError, match=rf"{name} is a (FIFO|folder); only regular files are read. Remove it"):
        folder.check(str(tmp_path))


def test_a_folder_without_rights_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match="cannot be written to by this user"):
        folder.check(str(tmp_path / "a" / "b"))


def test_a_folder_that_will_be_made_is_fine_and_is_not_made(tmp_path):
    folder.check(str(tmp_path / "a" / "b"))
    folder.check(tmp_path)
    assert not list(tmp_path.iterdir())


def test_too_small_a_disk_is_told_before(tmp_path):
    folder.check_room(str(tmp_path / "a"), 1)
    with pytest.raises(UserError, match=r"takes about 1000000000\.0 GB"):
        folder.check_room(str(tmp_path / "a"), 10**18)


# ---- files


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "done.json"
    files.write_json(path, {"step": 1})

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write_json(path, {"step": 2})
    assert json.loads(path.read_text()) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["done.json"]


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "real.json").write_text("{}")
    (tmp_path / "link.json").symlink_to(tmp_path / "real.json")
    files.write_json(tmp_path / "link.json", [1])
    assert (tmp_path / "link.json").is_symlink() and json.loads((tmp_path / "real.json").read_text()) == [1]


@pytest.mark.parametrize("text", ['{"step": 2, "sec', "", "\0\0\0", "\xff"])
def test_a_json_file_that_was_cut_counts_as_none(tmp_path, text):
    (tmp_path / "done.json").write_bytes(text.encode("latin-1"))
    assert files.read_json(tmp_path / "done.json") is None
    assert files.read_json(tmp_path / "missing.json") is None


@pytest.mark.parametrize(
    "last", ['{"step": 3, "split": "tra', "\0\0\0\0", "3", "[1]", '{"split": "train"}', "\xff\xfe"]
)
def test_a_broken_last_line_of_the_curve_is_dropped_and_the_run_goes_on(tmp_path, last):
    path = tmp_path / "curve.jsonl"
    lines = [json.dumps({"step": step, "split": "train", "loss": float(step)}) for step in (1, 2, 3)]
    path.write_bytes("\n".join([*lines, last]).encode("latin-1"))
    curve = CurveFile(str(path), resume_step=2)
    curve.add(3, "train", {"loss": 0.5})
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(x["step"], x["loss"]) for x in found] == [(1, 1.0), (2, 2.0), (3, 0.5)]


def test_an_evaluation_that_is_made_again_has_one_line(tmp_path):
    path = tmp_path / "curve.jsonl"
    lines = [json.dumps({"step": 3, "split": split, "loss": 1.0}) for split in ("train", "val")]
    path.write_text("\n".join(lines) + "\n")
    CurveFile(str(path), resume_step=3).add(3, "val", {"loss": 0.5})
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(x["split"], x["loss"]) for x in found] == [("train", 1.0), ("val", 0.5)]


# ---- errors of the disk


def test_an_error_of_the_disk_is_found_in_whatever_it_is_wrapped():
    assert "no space" in (storage_errors.reason(OSError(errno.ENOSPC, "x")) or "")
    wrapped = ValueError("RESOURCE_EXHAUSTED: Error writing: No space left on device [os_error_code='28']")
    try:
        try:
            raise wrapped
        except ValueError as error:
            raise RuntimeError("cannot schedule new futures after shutdown") from error
    except RuntimeError as outer:
        assert "no space" in (storage_errors.reason(outer) or "")
        assert storage_errors.reason(ExceptionGroup("several", [TypeError(), outer]))
    assert storage_errors.reason(ValueError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate")) is None
    assert storage_errors.reason(FileNotFoundError(errno.ENOENT, "x")) is None


def test_threads_tell_of_the_disk_once_and_of_other_things_as_ever(capsys):
    def fails(error):
        raise error

    def thread(error):
        one = threading.Thread(target=fails, args=(error,))
        one.start()
        one.join()

    seen = []
    handler = logging.Handler()
    handler.emit = lambda record: seen.append(record.getMessage())
    logger = logging.getLogger("absl")
    logger.addHandler(handler)
    former = threading.excepthook
    threading.excepthook = lambda args: seen.append(str(args.exc_value))
    try:
        with storage_errors.told_once():
            thread(OSError(errno.ENOSPC, "full"))
            thread(TypeError("a bug"))
            logger.error("writing failed: No space left on device")
            logger.error("something else")
    finally:
        threading.excepthook = former
        logger.removeHandler(handler)
    assert seen == ["a bug", "something else"]


def test_a_result_that_comes_after_a_failed_save_prints_nothing(monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: seen.append(str(args.exc_value)))

    def ends(error):  # as threads of TensorStore tell of an error in what they call
        def late(_):
            raise error

        promise, future = tensorstore.Promise.new()
        future.add_done_callback(late)
        promise.set_result(1)

    with storage_errors.told_once():
        ends(RuntimeError("Event loop is closed"))
        ends(OSError(errno.ENOSPC, "full"))
        ends(RuntimeError("a bug"))
    ends(RuntimeError("Event loop is closed"))
    assert seen == ["a bug", "Event loop is closed"]
