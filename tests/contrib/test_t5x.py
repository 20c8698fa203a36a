"""t5x trains an experiment of vadapter as vadapter does. Needs t5x: `make bridges` fetches it."""

import dataclasses
import importlib.util
import json
import shutil

import jax
import numpy as np
import pytest

import vadapter
from tests.contrib.conftest import ROOT, SCENES, STEPS, run
from vadapter.base import trees
from vadapter.contrib import checkpoints
from vadapter.data.scenes import builder
from vadapter.generation.config import DecodingConfig
from vadapter.models.decoder import Decoder
from vadapter.training import checkpoints as saved
from vadapter.weights.checkpoint import open_checkpoint

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("t5x") is None, reason="t5x is not importable; `make bridges` fetches it and tests"
    ),
]
GIN = ROOT / "vadapter/contrib/t5x"


def launch(world, name, script="t5x.train", gin="train.gin", more_files=(), **more):
    settings = {**world.from_weights(), "MODEL_DIR": f"'{world.folder / name}'", **more}
    flags = [f"--gin.{key}={value}" for key, value in settings.items()]
    files = [f"--gin_file={file}" for file in (GIN / gin, "experiments/scenes_stage1.gin", *more_files)]
    run(script, *files, *flags, cwd=world.folder)
    return world.folder / name


@pytest.fixture(scope="module")
def trained(world):
    return launch(world, "t5x", CHECKPOINT_PERIOD="2", STATS_PERIOD="1", EVAL_PERIOD="2")


def curve(folder, tag="loss"):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util import tensor_util

    found = EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()
    return {e.step: float(tensor_util.make_ndarray(e.tensor_proto)) for e in found.Tensors(tag)}


def ours(world, split):
    lines = map(json.loads, (world.folder / "ours" / "curve.jsonl").read_text().splitlines())
    return {line["step"]: line["loss"] for line in lines if line["split"] == split}


def test_losses_are_those_of_vadapter_train(world, trained):
    theirs, expected = curve(trained / "train"), ours(world, "train")
    assert sorted(expected) == list(range(1, STEPS + 1))
    for step, loss in expected.items():
        np.testing.assert_allclose(theirs[step], loss, rtol=1e-5)


def test_the_validation_loss_is_that_of_vadapter(world, trained):
    expected = ours(world, "val")[STEPS]
    np.testing.assert_allclose(curve(trained / "training_eval" / "val")[STEPS], expected, rtol=1e-5)


def test_its_checkpoint_becomes_a_run_with_the_parameters_of_vadapter_train(world, trained):
    checkpoints.to_run(str(trained / f"checkpoint_{STEPS}"), str(world.folder / "from_t5x"))
    found, expected = (trees.flatten(vadapter.load(world.folder / name).params) for name in ("from_t5x", "ours"))
    assert found.keys() == expected.keys()
    for path, x in expected.items():
        np.testing.assert_allclose(np.asarray(found[path], np.float32), np.asarray(x, np.float32), atol=2e-5)


def test_a_launch_that_was_stopped_goes_on_as_if_it_had_not(world, trained):
    again = world.folder / "again"
    shutil.copytree(trained, again)
    shutil.rmtree(again / f"checkpoint_{STEPS}")
    launch(world, "again", CHECKPOINT_PERIOD="2")
    found, expected = (open_checkpoint(str(x / f"checkpoint_{STEPS}")).tensors for x in (again, trained))
    assert found.infos.keys() == expected.infos.keys()
    assert all(np.array_equal(found.read(name), expected.read(name)) for name in expected.infos)


def test_what_vadapter_exports_writes_the_texts_of_vadapter_by_t5x(world):
    exported = checkpoints.to_t5x(str(world.folder / "ours"), str(world.folder / "exported"))
    out = world.folder / "texts"
    places = {"CHECKPOINT_PATH": f"'{exported}'", "INFER_OUTPUT_DIR": f"'{out}'"}
    launch(world, "unused", "t5x.infer", "infer.gin", **places)
    (file,) = out.glob("scenes_caption-predict.jsonl-00000-of-00001")
    texts = [json.loads(line)["prediction"] for line in file.read_text().splitlines()]
    assert len(texts) == 16
    records = builder.builder(str(world.folder / "data"), "images", SCENES).as_data_source("validation")
    images, decoding = [record["image"] for record in records], DecodingConfig(max_new_tokens=16)
    expected = vadapter.load(world.folder / "ours").caption(images, decoding=decoding)
    assert [text.strip() for text in texts] == [text.strip() for text in expected]


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ({"OptimizerConfig.name": "'adafactor'"}, "OptimizerConfig.name is 'adafactor'"),
        ({"TrainConfig.frozen_dtype": "'int8'"}, "frozen_dtype is 'int8'"),
        ({"utils.DatasetConfig.batch_size": "16"}, "a batch size of 16"),
    ],
)
def test_what_t5x_cannot_do_is_refused_before_anything_is_made(world, tmp_path, setting, expected):
    with pytest.raises(AssertionError, match=expected):
        launch(world, str(tmp_path / "refused"), **setting)
    assert not list((tmp_path / "refused").glob("checkpoint_*"))


def test_a_restore_that_renames_is_refused(world, tmp_path):
    own = tmp_path / "own.gin"
    own.write_text(
        "from __gin__ import dynamic_registration\n"
        "from t5x import utils\n"
        "utils.CheckpointConfig.restore = @utils.RestoreCheckpointConfig()\n"
        "utils.RestoreCheckpointConfig.path = []\n"
        "utils.RestoreCheckpointConfig.state_transformation_fns = [@utils.get_local_data]\n"
    )
    with pytest.raises(AssertionError, match="the wrong tensors without"):
        launch(world, "renamed", more_files=[own])


@pytest.mark.parametrize("changes", [{}, {"logits_via_embedding": True, "mlp_activations": ("gelu", "linear")}])
def test_its_decoder_only_example_is_imported_and_computes_the_same(tmp_path, changes):
    import orbax.checkpoint as ocp
    from t5x.examples.decoder_only import network

    sizes = {"vocab_size": 40, "emb_dim": 16, "num_heads": 2, "num_layers": 2, "head_dim": 8, "mlp_dim": 24}
    model = network.DecoderWrapper(network.TransformerConfig(**sizes, **changes))
    tokens = np.random.default_rng(0).integers(1, 40, (2, 150)).astype(np.int32)  # past the last bucket's distance
    params = model.init(jax.random.key(0), tokens, tokens, enable_dropout=False)["params"]
    expected = model.apply({"params": params}, tokens, tokens, enable_dropout=False)
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "checkpoint_0" / "state", {"target": params, "state": {"step": 0}})
    done = vadapter.import_weights(tmp_path / "checkpoint_0", tmp_path / "imported", dtype="f32")
    config = dataclasses.replace(done.config, dtype="float32")
    reader = saved.Checkpointer(str(tmp_path / "imported"), read_only=True)
    arrays = trees.unflatten(reader.read(0, reader.shapes(0)))
    module, segments = Decoder(config), np.ones_like(tokens)
    positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    run = lambda m: m.logits(m(m.embed(tokens), segments, positions)[0])  # noqa: E731
    found = module.apply({"params": arrays["decoder"]}, method=run)
    np.testing.assert_allclose(found, expected, atol=1e-4)
