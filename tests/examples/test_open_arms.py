"""The arms of the open-weights experiment: what each hands its adapter at the start."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import linen as nn

from tests.models import small
from vadapter.base import trees
from vadapter.training import freezing
from vadapter.training.optimizers import OptimizerConfig, lr_factors

PROMPT = {"before": [1, 5, 7], "after": [9]}


STARTED = (
    *("words", "words_frozen", "words_supervised", "words_slow_lm", "text_words", "random_32"),
    *("repaired", "text_repaired", "aligned"),
)


@pytest.mark.parametrize("arm", STARTED)
def test_an_arm_starts_from_what_its_name_says(example, arm):
    models = example("models")
    backbones = SimpleNamespace(encoder=small.vit(), tiny=small.TINY, large=small.decoder())
    kind = models.KIND_OF[arm]
    model = models.model_of(kind, backbones, PROMPT)
    shapes = trees.flatten(nn.unbox(jax.eval_shape(model.init, jax.random.key(0), small.batch(model.config))["params"]))
    made = {path: np.zeros(x.shape) for path, x in shapes.items() if path.startswith("adapter/")}
    lm = {path.removeprefix("adapter/lm/"): x for path, x in shapes.items() if path.startswith("adapter/lm/")}
    rng = np.random.default_rng(0)
    table = {"embedder/embedding": np.zeros((small.TINY.vocab_size, small.TINY.width))}
    tiny = {path: rng.normal(size=x.shape) for path, x in (table | lm).items()}
    aligned = {path: x + 1 for path, x in tiny.items()}
    stage1 = {f"decoder/{path}": x for path, x in aligned.items()}
    stage1 |= {path.replace("/front/", "/"): x + 2 for path, x in made.items() if "/front/" in path}
    fitted = made["adapter/projection/kernel"] + 3, made["adapter/projection/bias"] + 3
    given = {"tiny": tiny, "ridge": fitted, "text_ridge": fitted, "prompt": PROMPT}

    start = models.start(arm, made, given, stage1)
    assert {path: x.shape for path, x in start.items()} == {path: x.shape for path, x in made.items()}
    expected = tiny if arm.startswith("text") else aligned
    for path in lm:
        wanted = made[f"adapter/lm/{path}"] if arm == "random_32" else expected[path]
        np.testing.assert_array_equal(start[f"adapter/lm/{path}"], wanted)
    mapped = np.mean(start["adapter/projection/kernel"])
    assert mapped == (0 if arm in ("random_32", "aligned") else 3)
    for part, ids in (("prefix", PROMPT["before"]), ("suffix", PROMPT["after"])):
        if f"adapter/{part}" in made:
            np.testing.assert_array_equal(start[f"adapter/{part}"], expected["embedder/embedding"][ids])
    assert ("adapter/suffix" in made) == ("words" in arm)
    assert model.config.num_visual_tokens(1) == (32 if "words" in arm or arm == "random_32" else 16)


def test_an_arm_trains_the_tiny_lm_at_its_rate_and_never_its_table_of_words(example):
    models = example("models")
    backbones = SimpleNamespace(encoder=small.vit(), tiny=small.TINY, large=small.decoder())
    for kind, lm_rate in (("words", 1.0), ("words_frozen", None), ("words_slow_lm", 0.1)):
        model = models.model_of(kind, backbones, PROMPT)
        example_batch = small.batch(model.config)
        shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), example_batch)["params"])
        trainable = freezing.partition(shapes, models.TRAINABLE[kind])[0]
        trained = lr_factors(OptimizerConfig(lr_multipliers=models.LR_MULTIPLIERS.get(kind, ())), trainable)
        assert not any("embedder" in path for path in trained)
        rates = {rate for path, rate in trained.items() if path.startswith("adapter/lm/")}
        assert rates == (set() if lm_rate is None else {lm_rate})
        assert {trained[f"adapter/{part}"] for part in ("prefix", "suffix", "queries")} == {1.0}


def test_a_smaller_training_set_lies_within_a_larger_one(example):
    rows = example("rows")
    train = np.arange(3, 103, dtype=np.int32)
    few, more = rows.some(train, 1, 10), rows.some(train, 1, 30)
    assert len(few) == 10
    assert set(few) < set(more) < set(train)
    assert set(few) != set(rows.some(train, 2, 10))
    np.testing.assert_array_equal(rows.some(train, 1, 100), train)
    drawn = rows.order(few, 1, 5, 4)
    assert set(drawn[:2].ravel()) < set(drawn[:3].ravel()) == set(few)  # each comes once before any comes again


def test_rows_in_both_tokenisers_become_one_batch(example):
    rows = example("rows")
    records = [{"ids": {"gemma3": [11, 12, 1], "smollm2": [21, 22, 23, 2]}} for _ in range(3)]
    pictures = rows.Pictures(np.zeros((3, 8, 8, 3), np.uint8), records, {})
    laid = pictures.rows("gemma3", PROMPT, 5)
    laid["tiny"] = pictures.rows("smollm2", {"before": [3], "after": [4]}, 2)
    batch = rows.batch_of(laid, pictures.pixels, np.array([2, 0]), np.array([2, 0]))
    assert batch.media.shape == (2, 1, 1, 8, 8, 3)
    assert batch.target_ids[:, :3].tolist() == [[11, 12, 1]] * 2
    assert batch.tiny.tokens[:, :8].tolist() == [[3, 0, 0, 4, 21, 22, 23, 2]] * 2
    assert batch.tiny.media_index[0, :5].tolist() == [-1, 0, 1, -1, -1]
