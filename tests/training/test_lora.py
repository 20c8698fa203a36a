"""Runs with LoRA: over a mesh, and stopped and resumed."""

import jax
import numpy as np

from tests import saved
from tests.models import small as models
from tests.training import small
from vadapter.base import trees
from vadapter.models.lora import LoraConfig
from vadapter.models.vlm import VLM
from vadapter.training.initialize import begin
from vadapter.training.loop import TrainConfig, train
from vadapter.training.objectives import make_objective

LORA = LoraConfig(rank=4, alpha=8.0)
CONFIG = models.vlm("mlp", decoder=models.decoder(depth=2, lora=LORA), encoder=models.vit(depth=1))
BATCH = models.batch(CONFIG, rows=8)
TRAINABLE = ("adapter/.*", "decoder/.*/lora_[ab]")


def program(placed=None):
    model = VLM(CONFIG)
    return small.program(model, placed, BATCH, make_objective(model), trainable=TRAINABLE, frozen_dtype="float32")


def params(placed=None):
    return small.params(VLM(CONFIG), placed, example=BATCH)


def steps(placed):
    ran = program(placed)
    state, frozen = ran.start(params(placed))
    for _ in range(2):
        state, _ = ran.step(state, frozen, ran.put(BATCH))
    return trees.flatten(state.params)


def test_a_mesh_trains_what_one_device_does():
    mesh = small.partitioner(data=2, fsdp=2, tensor=2)
    alone, spread = steps(small.partitioner()), steps(mesh)
    assert alone.keys() == spread.keys()
    for path, x in alone.items():
        np.testing.assert_allclose(np.asarray(spread[path]), np.asarray(x), atol=2e-4, err_msg=path)
    a, b = (spread[f"decoder/layers/attention/query/lora_{name}"] for name in "ab")
    # A lies like the kernel's inputs, over fsdp; B like its outputs, over tensor; the rank on every device.
    assert a.sharding.shard_shape(a.shape) == (2, CONFIG.decoder.width // 2, LORA.rank)
    assert b.sharding.shard_shape(b.shape)[1:3] == (LORA.rank, CONFIG.decoder.num_heads // 2)


def test_a_run_that_was_stopped_goes_on_bit_for_bit(tmp_path):
    def run(until, folder):
        config = TrainConfig(steps=until, trainable=TRAINABLE, optimizer=small.optimizer(), tensorboard=False)
        folder = str(tmp_path / folder)
        ran = program()
        begun = begin(ran, folder, lambda: (params(), []), say=lambda line: None)

        def batches(start):
            for step in range(start, 100):
                yield models.batch(CONFIG, rows=8, seed=step)

        train(config, program=ran, start=begun, batches=batches, model_dir=folder)
        return saved.load_params(folder)

    whole = run(4, "whole")
    run(2, "stopped")
    resumed = run(4, "stopped")
    assert {path.split("/")[0] for path in whole} == {"adapter", "decoder"}
    assert not any(path.startswith("decoder") and "lora_" not in path for path in whole)
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)
