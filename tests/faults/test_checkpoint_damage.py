"""A checkpoint that is damaged is never read as if it were whole, and the newest whole one is taken."""

import contextlib
import json
import random
import re
import shutil

import jax
import numpy as np
import pytest

from tests import saved
from tests.faults import damage
from tests.training import small
from tests.training.test_loop import assert_same, lines, run
from vadapter.base.errors import UserError
from vadapter.training import checkpoints, integrity

SOURCE = {"path": "a", "step": 1, "rules": [["a", "b"]], "sha256": "0", "frozen": 1, "initial": 0}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of 6 steps that was killed after 5, with checkpoints of 2 and 4; and the same run without a stop."""

    def dies(start):
        for i, batch in enumerate(small.batches(start), start):
            if i == 5:
                raise OSError("the machine is gone")
            yield batch

    folder = tmp_path_factory.mktemp("trained")
    with pytest.raises(OSError, match="gone"):
        run(folder / "cut", data=dies, checkpoint_every=2, log_every=1)
    assert checkpoints.steps(str(folder / "cut")) == [2, 4]
    return folder / "cut", run(folder / "whole", checkpoint_every=2, log_every=1)


@pytest.fixture
def cut(trained, tmp_path):
    """A copy of the run that was killed."""
    return shutil.copytree(trained[0], tmp_path / "run")


def state_of(folder, step):
    """All that a checkpoint holds, on the host."""
    program = small.program()
    with checkpoints.Checkpointer(str(folder), read_only=True) as checkpointer:
        return jax.device_get((program.restore(checkpointer, step), checkpointer.run(step)))


def said(folder, capsys):
    step = checkpoints.newest(str(folder))
    return step, capsys.readouterr().err


@contextlib.contextmanager
def damaged(file, kind, seed):
    """Damages a file, and puts it back."""
    content = file.read_bytes()
    damage.KINDS[kind](file, random.Random(seed))
    integrity.tell.cache_clear()
    yield
    file.write_bytes(content)


@pytest.mark.parametrize("kind", sorted(damage.KINDS))
def test_damage_to_any_file_is_noticed(trained, capsys, kind):
    folder = trained[0]
    whole, files = state_of(folder, 4), damage.files(folder / "checkpoint_4")
    assert len(files) > 15
    unnoticed = []
    for seed, file in enumerate(files):
        with damaged(file, kind, seed):
            step, line = said(folder, capsys)
            if step == 2:
                why = r"left out checkpoint_4, which is damaged \(.+\). The newest whole one is checkpoint_2"
                assert re.search(why, line)
            else:
                unnoticed.append(file.name)
                jax.tree.map(np.testing.assert_array_equal, state_of(folder, 4), whole)
    # Marks that say when and where, but nothing of what is in the checkpoint.
    assert set(unnoticed) <= {"commit_success.txt", "_CHECKPOINT_METADATA"}
    if kind in ("delete", "empty", "cut", "zero"):
        assert "_CHECKPOINT_METADATA" not in unnoticed


def test_flipped_bits_are_noticed_wherever_they_are(trained):
    arrays = [file for file in damage.files(trained[0] / "checkpoint_4") if "/d/" in str(file)]
    for seed in range(100):
        with damaged(arrays[seed % len(arrays)], "flip", seed):
            assert checkpoints.newest(str(trained[0])) == 2
    assert checkpoints.newest(str(trained[0])) == 4


def test_an_empty_folder_is_left_out(cut, capsys):
    damage.empty_folder(cut / "checkpoint_4")
    (cut / "checkpoint_25").mkdir()
    step, line = said(cut, capsys)
    assert step == 2
    for name in ("checkpoint_4", "checkpoint_25"):
        assert f"left out {name}, which is damaged (_CHECKPOINT_METADATA is missing or damaged)" in line
    assert said(cut, capsys) == (2, "")  # it is said once


@pytest.mark.parametrize("kind", ["delete", "flip"])
def test_a_run_goes_on_from_the_whole_one_and_saves_the_other_again(trained, cut, kind):
    file = next(file for file in damage.files(cut / "checkpoint_4") if "/d/" in str(file))
    damage.KINDS[kind](file, random.Random(0))
    resumed = run(cut, checkpoint_every=2, log_every=1, keep_checkpoints=3)
    assert_same(resumed.params, trained[1].params)
    assert [row["step"] for row in lines(cut, "train")] == [1, 2, 3, 4, 5, 6]
    assert checkpoints.steps(str(cut)) == [2, 4, 6]
    assert integrity.damage(checkpoints._path(str(cut), 4)) is None


def test_the_whole_one_stays_until_another_is_whole(cut):
    """What was left out is not counted among those to keep."""
    damage.flip(damage.files(cut / "checkpoint_4")[3], random.Random(0))

    def dies(start):
        for i, batch in enumerate(small.batches(start), start):
            if i == 3:
                raise OSError("the machine is gone")
            yield batch

    with pytest.raises(OSError, match="gone"):
        run(cut, data=dies, checkpoint_every=3)
    assert checkpoints.newest(str(cut)) == 3
    damage.empty_folder(cut / "checkpoint_3")
    assert checkpoints.newest(str(cut)) == 2
    run(cut, checkpoint_every=3)
    assert checkpoints.steps(str(cut)) == [6]


def test_a_checkpoint_that_is_asked_for_is_not_replaced_by_another(cut):
    file = next(file for file in damage.files(cut / "checkpoint_4") if "/d/" in str(file))
    damage.cut(file, random.Random(0))
    for path, step in ((cut, 4), (cut / "checkpoint_4", None)):
        with pytest.raises(UserError, match=r"checkpoint_4 is damaged: .* has \d+ bytes instead of \d+.*checkpoint_2"):
            checkpoints.locate(str(path), step)
    assert checkpoints.locate(str(cut)) == (str(cut), 2)


def test_where_all_are_damaged_nothing_begins_anew(cut):
    for checkpoint in damage.checkpoints(cut):
        damage.delete(checkpoint / "run" / "metadata", random.Random(0))
    for read in (checkpoints.newest, checkpoints.locate, run):
        with pytest.raises(
            UserError, match=r"no whole checkpoint \(checkpoint_4: run/metadata is missing; checkpoint_2"
        ):
            read(str(cut))
    assert [p.name for p in damage.checkpoints(cut)] == ["checkpoint_2", "checkpoint_4"]


def without_checksums(checkpoint):
    """Makes a checkpoint such as earlier versions wrote."""
    (checkpoint / "checksums.json").unlink()
    file = checkpoint / "run" / "metadata"
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "checksums"}))


def test_a_checkpoint_without_checksums_is_read_in_silence(trained, cut, capsys):
    without_checksums(cut / "checkpoint_4")
    assert said(cut, capsys) == (4, "")
    jax.tree.map(np.testing.assert_array_equal, state_of(cut, 4)[0], state_of(trained[0], 4)[0])


@pytest.mark.parametrize("kind", ["delete", "empty", "cut"])
def test_damage_that_only_reading_finds_is_one_paragraph(cut, kind):
    without_checksums(cut / "checkpoint_4")
    for file in damage.files(cut / "checkpoint_4" / "params"):
        damage.KINDS[kind](file, random.Random(0))
    if checkpoints.newest(str(cut)) == 4:
        with pytest.raises(UserError, match="checkpoint_4 cannot be read"):
            saved.load_params(str(cut))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is no JSON"),
        ("[1, 2]", "holds a JSON list"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        (b"\xff\xfe", "is no JSON"),
        ({"step": "4"}, "the step is '4'"),
        ({"step": 5}, "the step is 5"),
        ({"step": True}, "the step is True"),
        ({"data": []}, "data is"),
        ({"sources": {}}, "sources is"),
        ({"sources": [1]}, "a source is 1"),
        ({"sources": [{"path": "/etc"}]}, "a source is"),
        ({"sources": [{**SOURCE, "step": -1}]}, "step of a source"),
        ({"sources": [{**SOURCE, "path": 3}]}, "path of a source"),
        ({"sources": [{**SOURCE, "rules": [["a"]]}]}, "the rules of a source"),
        ({"sources": [{**SOURCE, "rules": [["a", 2]]}]}, "the rules of a source"),
        ({"trainable": [1]}, "trainable holds"),
        ({"frozen_dtype": 8}, "frozen_dtype is 8"),
        ({"seconds": "1"}, "seconds is '1'"),
        ({"seconds": float("nan")}, "seconds are nan"),
        ({"goodput": {"steps": "x"}}, "goodput holds"),
        ({"went_back_to": ["x"]}, "went_back_to holds"),
    ],
)
def test_a_run_record_that_is_not_one_is_left_out_or_refused(cut, capsys, text, why):
    without_checksums(cut / "checkpoint_4")
    file = cut / "checkpoint_4" / "run" / "metadata"
    if isinstance(text, dict):
        text = json.dumps({**json.loads(file.read_text()), **text})
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=why):
        checkpoints.locate(str(cut), 4)
    with checkpoints.Checkpointer(str(cut), read_only=True) as checkpointer, pytest.raises(UserError, match=why):
        checkpointer.run(4)
    assert said(cut, capsys)[0] == 2


def test_a_run_record_that_is_huge_is_not_read(cut):
    without_checksums(cut / "checkpoint_4")
    with open(cut / "checkpoint_4" / "run" / "metadata", "ab") as file:
        file.truncate(1 << 30)  # takes no room on the disk
    with pytest.raises(UserError, match="has 1,073,741,824 bytes, more than"):
        checkpoints.locate(str(cut), 4)
