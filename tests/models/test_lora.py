"""LoRA in the decoder and the encoder."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import linen as nn

from tests.models import small
from tests.training import small as training
from vadapter.base import trees
from vadapter.base.errors import UserError
from vadapter.models import lora
from vadapter.models.lora import LoraConfig
from vadapter.models.serialization import from_json, to_json
from vadapter.models.vlm import VLM
from vadapter.training.objectives import make_objective

LORA = LoraConfig(rank=4, alpha=8.0)
TRAINABLE = ("adapter/.*", lora.PATHS)
PLAIN = small.vlm("mlp")
CONFIG = small.vlm("mlp", decoder=small.decoder(lora=LORA), encoder=small.vit(lora=LORA))
BATCH = small.batch(PLAIN, rows=2)


def params(seed=0):
    return training.params(VLM(CONFIG), seed=seed, example=BATCH)


def without(tree):
    return trees.unflatten({p: x for p, x in trees.flatten(tree).items() if "lora_" not in p})


def with_random_b(tree):
    rng = np.random.default_rng(0)
    flat = trees.flatten(tree)
    return trees.unflatten(
        {p: rng.normal(0, 0.1, x.shape).astype(np.float32) if p.endswith("lora_b") else x for p, x in flat.items()}
    )


def hidden(config, tree):
    return np.asarray(VLM(config).apply({"params": tree}, BATCH))


def test_a_model_starts_as_the_frozen_one():
    tree = jax.jit(VLM(CONFIG).init)(jax.random.key(0), BATCH)["params"]
    tree = nn.unbox(tree)
    assert all(np.any(x) for p, x in trees.flatten(tree).items() if p.endswith("lora_a"))
    np.testing.assert_array_equal(hidden(CONFIG, tree), hidden(PLAIN, without(tree)))


def test_merged_weights_compute_the_same():
    tree = with_random_b(params())
    assert np.abs(hidden(CONFIG, tree) - hidden(PLAIN, without(tree))).max() > 0.1
    np.testing.assert_allclose(hidden(CONFIG, tree), hidden(PLAIN, lora.merge(tree, LORA.scale)), atol=1e-4)


def test_targets_choose_the_maps():
    config = small.vlm("mlp", decoder=small.decoder(lora=LoraConfig(4, targets=("attention/(query|value)",))))
    tree = trees.flatten(jax.eval_shape(lambda: training.params(VLM(config), seed=0, example=BATCH)))
    maps = {p.rsplit("/", 1)[0] for p in tree if "lora_" in p}
    assert maps == {"decoder/layers/attention/query", "decoder/layers/attention/value"}


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "int8"])
def test_training_moves_lora_and_leaves_the_frozen_tree(stored):
    loss = make_objective(VLM(CONFIG))
    program = training.program(VLM(CONFIG), example=BATCH, loss=loss, trainable=TRAINABLE, frozen_dtype=stored)
    state, frozen = program.start(params())
    before = jax.tree.map(np.asarray, frozen)
    start = jax.tree.map(np.asarray, state.params)
    assert not any("kernel" in p for p in trees.flatten(start) if p.startswith(("decoder", "encoder")))
    for _ in range(2):
        state, metrics = program.step(state, frozen, program.put(BATCH))
    assert float(metrics["skipped"]) == 0
    moved = {p for p, x in trees.flatten(state.params).items() if np.any(np.asarray(x) != trees.flatten(start)[p])}
    assert {p for p in trees.flatten(start) if "lora_" in p} <= moved
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.asarray, frozen))


def test_a_config_survives_json():
    assert from_json(to_json(CONFIG)) == CONFIG


def test_flops_count_what_lora_adds():
    program = training.program(VLM(CONFIG), example=BATCH, trainable=TRAINABLE)
    plain = training.program(VLM(PLAIN), example=BATCH, trainable=("adapter/.*",))
    found = CONFIG.flops(trees.unflatten(program.shapes), program.storage.trained)(BATCH)
    base = PLAIN.flops(trees.unflatten(plain.shapes), plain.storage.trained)(BATCH)
    tokens = float((BATCH.segment_ids > 0).sum())
    extra = sum(x.size for p, x in program.shapes.items() if "lora_" in p and p.startswith("decoder"))
    assert found["decoder"] - base["decoder"] == pytest.approx(6 * extra * tokens)


@pytest.mark.parametrize(
    "changes, said",
    [
        (dict(rank=0), "rank is 0"),
        (dict(rank=1.5), "rank is 1.5"),
        (dict(alpha=float("nan")), "alpha is nan"),
        (dict(dropout=1.0), "dropout is 1.0"),
        (dict(dropout=float("nan")), "dropout is nan"),
        (dict(targets=()), "targets is"),
        (dict(targets="attention/.*"), "targets is"),
        (dict(targets=("(",)), "no regular expression"),
        (dict(targets=("(a+)+b",)), "repeat inside of a repeat"),
        (dict(targets=("attention/quer",)), "matches no map of the decoder.*attention/query"),
        (dict(rank=17, targets=("attention/key",)), "rank 17 is more than the smaller side of attention/key"),
    ],
)
def test_bad_settings_are_refused(changes, said):
    with pytest.raises(UserError, match=said):
        small.decoder(lora=LoraConfig(**{"rank": 4, **changes}))


@pytest.mark.parametrize(
    "trainable, said",
    [((".*",), "kernel is trained already"), (("adapter/.*", ".*/lora_b"), "Choose both or neither")],
)
def test_trainable_patterns_that_do_not_go_with_lora_are_refused(trainable, said):
    with pytest.raises(UserError, match=said):
        training.program(VLM(CONFIG), example=BATCH, trainable=trainable).storage  # noqa: B018


def test_the_scale_of_rslora():
    assert dataclasses.replace(LORA, rank_stabilized=True).scale == pytest.approx(4.0)
    assert LORA.scale == 2.0


def with_dropout(rate, **changes):
    lora_config = dataclasses.replace(LORA, dropout=rate, **changes)
    return small.vlm("mlp", decoder=small.decoder(lora=lora_config), encoder=small.vit(lora=lora_config))


def test_dropout_follows_from_seed_step_and_batch_and_is_off_in_evaluation():
    tree = with_random_b(params())

    def loss(config, step=None, batch=BATCH):
        objective = make_objective(VLM(config))
        return float((objective if step is None else objective.at(np.int32(step)))(tree, batch).loss_sum)

    config, plain = with_dropout(0.5), loss(CONFIG)
    assert loss(config) == plain == loss(CONFIG, step=3)  # evaluation has none, nor a run with a rate of 0
    drawn = loss(config, step=3)
    assert drawn == loss(config, step=3)
    others = (loss(config, step=4), loss(with_dropout(0.5, seed=1), step=3))
    assert len({plain, drawn, *others}) == 4


def test_dropout_keeps_the_expected_value_and_drops_its_share():
    one = LoraConfig(rank=4, dropout=0.25)

    class Map(nn.Module):
        @nn.compact
        def __call__(self, x):
            return lora.add(self, one, x, (-1,), (4,), ("embed", "mlp"))

    ones = np.ones((1000, 16), np.float32)
    a = np.zeros((16, 4), np.float32)
    a[:4] = np.eye(4)  # each of four inputs has an output of its own
    variables = {"params": {"lora_a": a, "lora_b": np.eye(4, dtype=np.float32)}}
    made = np.asarray(Map().apply(variables, ones, rngs={lora.DROPOUT: jax.random.key(0)})) / one.scale
    np.testing.assert_allclose(np.unique(made), [0, 4 / 3], rtol=1e-6)
    assert abs(made.mean() - 1) < 0.05


def test_parts_of_a_batch_drop_each_their_own():
    from vadapter.training import objectives

    first, second = (small.batch(PLAIN, rows=2, seed=seed) for seed in (0, 1))
    keys = [jax.random.key_data(objectives._key(np.int32(0), batch)).tolist() for batch in (first, second, first)]
    assert keys[0] != keys[1] and keys[0] == keys[2]
