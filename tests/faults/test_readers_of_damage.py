"""Whoever reads another run's checkpoint, or imported weights, leaves out or refuses what is damaged."""

import random

import numpy as np
import pytest

from tests import saved
from tests.faults import damage
from tests.training import small
from tests.weights import test_store
from vadapter.base import trees
from vadapter.base.errors import UserError
from vadapter.partitioning import Partitioner
from vadapter.runs import tiny_lm
from vadapter.training import initialize
from vadapter.training.sources import Source, look
from vadapter.weights import store

TABLE = "decoder/embedder/embedding"


def flip_an_array(checkpoint, seed=0):
    file = max(damage.files(checkpoint / "params"), key=lambda path: path.stat().st_size)
    damage.flip(file, random.Random(seed))


@pytest.fixture
def run(tmp_path):
    """Two checkpoints of a run, the newer damaged."""
    for step in (1, 2):
        params = trees.unflatten({**trees.flatten(small.params()), TABLE: np.full((3, 2), step, np.float32)})
        saved.save_params(str(tmp_path / "run"), params, step)
    flip_an_array(tmp_path / "run" / "checkpoint_2")
    return tmp_path / "run"


def test_a_source_is_the_newest_whole_one(run, capsys):
    shapes = {path: x for path, x in trees.flatten(small.params()).items()}
    rules = (("encoder/(.*)", r"encoder/\1"),)
    assert look(Source(str(run), rules), shapes).step == 1
    assert "left out checkpoint_2, which is damaged" in capsys.readouterr().err
    for source in (Source(str(run), rules, step=2), Source(f"{run}/checkpoint_2", rules)):
        with pytest.raises(UserError, match="checkpoint_2 is damaged"):
            look(source, shapes)


def test_a_model_is_the_newest_whole_one(tmp_path):
    for step in (1, 2):
        saved.save_params(str(tmp_path), small.params(seed=step), step)
    flip_an_array(tmp_path / "checkpoint_2")
    restored = initialize.restore(str(tmp_path), small.boxed(), Partitioner())
    assert restored.step == 1
    expected = trees.flatten(small.params(seed=1))
    np.testing.assert_array_equal(trees.flatten(restored.params)["head/kernel"], expected["head/kernel"])
    with pytest.raises(UserError, match="checkpoint_2 is damaged"):
        initialize.restore(str(tmp_path), small.boxed(), Partitioner(), step=2)


def test_a_table_is_of_the_newest_whole_one(run):
    vocabulary = None  # it is not asked
    table = tiny_lm.read_table(tiny_lm.TinyLM(str(run), None, vocabulary, ""))  # pyright: ignore[reportArgumentType]
    assert table.tolist() == [[1, 1]] * 3
    with pytest.raises(UserError, match="checkpoint_2 is damaged"):
        tiny_lm.read_table(tiny_lm.TinyLM(str(run), 2, vocabulary, ""))  # pyright: ignore[reportArgumentType]


def test_imported_weights_that_are_damaged_are_refused(tmp_path):
    store.write(str(tmp_path), test_store.PARAMETERS, "float32", {})
    abstract = {path: x for path, x in test_store.WEIGHTS.items()}
    assert look(Source(str(tmp_path)), abstract).step == 0
    files = damage.files(tmp_path / "checkpoint_0")
    for seed, file in enumerate(files):
        content = file.read_bytes()
        damage.flip(file, random.Random(seed))
        if file.name not in ("_CHECKPOINT_METADATA", "commit_success.txt"):
            with pytest.raises(UserError, match=r"no whole checkpoint \(checkpoint_0: "):
                look(Source(str(tmp_path)), abstract)
        file.write_bytes(content)
    assert look(Source(str(tmp_path)), abstract).step == 0
