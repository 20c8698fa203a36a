"""Bundles of a run with LoRA, merged and not."""

import dataclasses

import jax
import numpy as np
import pytest

from tests import saved
from tests.models import small as models
from tests.training import small
from vadapter.base import trees
from vadapter.base.errors import UserError
from vadapter.models.lora import LoraConfig
from vadapter.models.vlm import VLM, VLMConfig
from vadapter.runs import description as descriptions
from vadapter.runs import warm_start
from vadapter.runs.description import Description
from vadapter.runs.export import export
from vadapter.runs.load import load
from vadapter.training import initialize
from vadapter.training.sources import Source

LORA = LoraConfig(rank=2, alpha=4.0, targets=("attention/.*",))
CONFIG = models.vlm("mlp", decoder=models.decoder(depth=2, lora=LORA), encoder=models.vit(depth=1))
BATCH = models.batch(CONFIG, rows=1)
TRAINABLE = ("adapter/.*", ".*/lora_[ab]")


def fresh(root, config, trainable):
    """What a run of that model starts from, its record, and its program."""
    program = small.program(VLM(config), example=config.example_batch(), trainable=trainable, frozen_dtype="float32")
    source = Source(str(root / "base"), (("(.*)", r"\1"),))
    params, references = initialize.initial_params(
        program, jax.random.key(0), sources=[source], model_dir=str(root / "run"), say=lambda line: None
    )
    return params, references, program


def started(root, bundle, config=CONFIG, trainable=TRAINABLE):
    """The parameters of a run that starts from a bundle, by path."""
    params, references, program = fresh(root, config, trainable)
    params, _ = warm_start.warm_start(params, references, bundle, program, config, str(root / "run"))
    return trees.flatten(params)


def with_lora(lora):
    return dataclasses.replace(CONFIG, decoder=dataclasses.replace(CONFIG.decoder, lora=lora))


@pytest.fixture(scope="module")
def plain(root):
    return export(root / "run", root / "plain")


@pytest.fixture(scope="module")
def merged(root):
    return export(root / "run", root / "merged", merge=True)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("lora")
    weights = small.params(VLM(CONFIG), seed=1, example=BATCH)
    flat = trees.flatten(weights)
    base = {p: x for p, x in flat.items() if "lora_" not in p and not p.startswith("adapter")}
    saved.save_params(str(root / "base"), trees.unflatten(base))
    _, references, _ = fresh(root, CONFIG, TRAINABLE)
    trained = {p: x for p, x in flat.items() if "lora_" in p or p.startswith("adapter")}
    run = {"sources": [r.to_json() for r in references], "frozen_dtype": "float32"}
    saved.save_params(str(root / "run"), trees.unflatten(trained), step=3, run=run)
    descriptions.save(str(root / "run"), Description(CONFIG, frozen_dtype="float32", training={"steps": 3}))
    return root


def hidden(model):
    return np.asarray(model.model.apply({"params": model.params}, BATCH), np.float32)


def test_a_merged_and_an_unmerged_bundle_compute_what_the_run_does(root, plain, merged):
    run = load(str(root / "run"))
    np.testing.assert_array_equal(hidden(load(str(root / "plain"))), hidden(run))
    opened = load(str(root / "merged"))
    model = opened.description.model
    assert isinstance(model, VLMConfig) and model.decoder.lora is None
    assert not any("lora_" in path for path in merged.arrays())
    np.testing.assert_allclose(hidden(opened), hidden(run), atol=1e-4)


def test_without_lora_there_is_nothing_to_merge(root):
    weights = trees.flatten(small.params(VLM(CONFIG), seed=1, example=BATCH))
    plain = {p: x for p, x in weights.items() if "lora_" not in p}
    saved.save_params(str(root / "other"), trees.unflatten(plain), step=1, run={"sources": []})
    descriptions.save(str(root / "other"), Description(models.vlm("mlp", encoder=CONFIG.encoder)))
    with pytest.raises(UserError, match="no LoRA, so there is nothing to merge"):
        export(root / "other", root / "never", merge=True)


def test_a_run_starts_from_the_lora_of_a_bundle(root, plain):
    found = started(root, plain)
    for path, x in plain.arrays().items():
        np.testing.assert_array_equal(np.asarray(found[path]), x)


@pytest.mark.parametrize("lora", [None, dataclasses.replace(LORA, alpha=8.0)])
def test_a_run_with_other_lora_than_the_bundle_is_refused(root, plain, lora):
    trainable = TRAINABLE if lora else ("adapter/.*",)
    with pytest.raises(UserError, match=r"alpha=4.0.* in its decoder, and this run has .*Use the bundle's"):
        started(root, plain, with_lora(lora), trainable)


@pytest.mark.parametrize("lora, trainable", [(None, ("adapter/.*",)), (LORA, TRAINABLE)])
def test_a_run_that_freezes_merged_kernels_is_refused(root, merged, lora, trainable):
    with pytest.raises(UserError, match="other values for decoder/.*export without --merge"):
        started(root, merged, with_lora(lora), trainable)


def test_a_run_that_trains_merged_kernels_starts_from_them(root, merged):
    found = started(root, merged, with_lora(None), ("adapter/.*", "decoder/.*"))
    kernels = {path: x for path, x in merged.arrays().items() if path.startswith("decoder")}
    assert len(kernels) == 4
    for path, x in kernels.items():
        np.testing.assert_array_equal(np.asarray(found[path]), x)
