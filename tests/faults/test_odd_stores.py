"""File systems that lack what a disk has: folders that cannot be renamed, and listings that are late."""

import errno
import os

import numpy as np
import pytest

from tests import saved
from tests.training import small
from tests.training.test_loop import run
from vadapter.base import storage_errors
from vadapter.base.errors import UserError
from vadapter.runs import folder
from vadapter.training import checkpoints

KEPT = dict(checkpoint_every=2, keep_checkpoints=2, log_every=1)


def refuse_to_rename(monkeypatch, number):
    """Folders get no other name, as in a bucket that is mounted as a folder. Files do."""
    rename = os.rename

    def refusing(old, new, **options):
        if os.path.isdir(old):
            raise OSError(number, os.strerror(number), str(old))
        rename(old, new, **options)

    monkeypatch.setattr(os, "rename", refusing)
    monkeypatch.setattr(os, "replace", refusing)


def dies_at(last):
    def batches(start):
        for i, batch in enumerate(small.batches(start), start):
            if i == last:
                raise OSError("the machine is gone")
            yield batch

    return batches


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV, errno.ENOTEMPTY])
def test_a_store_that_renames_no_folders_is_told_before_anything_is_trained(tmp_path, monkeypatch, number):
    refuse_to_rename(monkeypatch, number)
    with pytest.raises(UserError, match="cannot hold checkpoints .renaming a folder fails: .*gs://bucket/run"):
        folder.check_store(str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_store_that_lists_late_is_told_before_anything_is_trained(tmp_path, monkeypatch):
    before = os.listdir(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(os, "listdir", lambda path: before)
        with pytest.raises(UserError, match="cannot hold checkpoints .it lists files late"):
            folder.check_store(str(tmp_path))
    folder.check_store(str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_disk_in_trouble_is_told_as_such(tmp_path, monkeypatch):
    refuse_to_rename(monkeypatch, errno.ENOSPC)
    with pytest.raises(OSError, match="No space") as found:
        folder.check_store(str(tmp_path))
    assert storage_errors.reason(found.value) == "no space is left on the device"


def test_a_store_that_stops_to_rename_ends_the_run_with_a_reason(tmp_path, monkeypatch):
    refuse_to_rename(monkeypatch, errno.EOPNOTSUPP)
    with pytest.raises(OSError) as found:  # noqa: PT011
        run(tmp_path, **KEPT)
    assert "such as to rename a folder" in (storage_errors.reason(found.value) or "")
    assert checkpoints.steps(str(tmp_path)) == []


def test_a_run_whose_newest_checkpoint_is_listed_late_ends_like_one_that_was_not_stopped(tmp_path, monkeypatch):
    """As when another host goes on: it sees the folder as it was a while ago."""
    run(tmp_path / "whole", **KEPT)
    with pytest.raises(OSError, match="gone"):
        run(tmp_path / "late", data=dies_at(5), **KEPT)
    assert checkpoints.steps(str(tmp_path / "late")) == [2, 4]
    named = checkpoints._named
    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "_named", lambda folder: [step for step in named(folder) if step != 4])
        run(tmp_path / "late", **KEPT)
    assert checkpoints.steps(str(tmp_path / "late")) == checkpoints.steps(str(tmp_path / "whole"))
    whole, late = (saved.load_params(str(tmp_path / name)) for name in ("whole", "late"))
    for name, values in whole.items():
        np.testing.assert_array_equal(late[name], values)
