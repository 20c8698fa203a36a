"""Checkpoints of t5x and big_vision, which need neither package."""

import dataclasses
import subprocess
import sys
import types

import jax
import ml_dtypes
import numpy as np
import pytest

import vadapter
from tests.models import small
from tests.tiny_bundle import write_bundle
from vadapter.base import quantization, trees
from vadapter.base.errors import UserError
from vadapter.contrib import checkpoints, launch
from vadapter.models.lora import LoraConfig
from vadapter.models.losses import ObjectiveConfig
from vadapter.runs import description
from vadapter.weights.checkpoint import open_checkpoint


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return str(write_bundle(tmp_path_factory.mktemp("bundle")))


def params_of(model):
    return {path: np.asarray(x) for path, x in trees.flatten(vadapter.load(str(model)).params).items()}


@pytest.fixture(scope="module")
def params(bundle):
    return params_of(bundle)


def assert_same(found, params):
    assert found.keys() == params.keys()
    for path, x in params.items():
        assert found[path].dtype == x.dtype and found[path].tobytes() == x.tobytes(), path


def test_a_bundle_exported_for_t5x_has_the_same_bits(bundle, params, tmp_path):
    folder = checkpoints.to_t5x(bundle, str(tmp_path))
    assert folder.endswith("/checkpoint_1")
    assert_same(checkpoints.read_all(open_checkpoint(folder).tensors), params)


def test_a_bundle_exported_for_big_vision_has_the_same_bits(bundle, params, tmp_path):
    file = str(tmp_path / "all.npz")
    checkpoints.to_big_vision(bundle, file)
    assert_same(checkpoints.read_all(open_checkpoint(file).tensors), params)


def test_an_encoder_exported_for_big_vision_is_imported_again(bundle, params, tmp_path):
    file = str(tmp_path / "encoder.npz")
    checkpoints.to_big_vision(bundle, file, "encoder")
    vadapter.import_weights(file, str(tmp_path / "imported"), dtype="f32")
    found = open_checkpoint(file).tensors
    assert_same(
        {f"encoder/{k}": x for k, x in checkpoints.read_all(found).items()},
        {k: x for k, x in params.items() if k.startswith("encoder/")},
    )


def test_bf16_is_two_bytes_in_an_npz_file(tmp_path):
    x = np.arange(4).astype(ml_dtypes.bfloat16)
    np.savez(tmp_path / "x.npz", x=x)
    assert np.load(tmp_path / "x.npz")["x"].dtype.kind == "V"
    assert checkpoints.read_all(open_checkpoint(str(tmp_path / "x.npz")).tensors)["x"].tobytes() == x.tobytes()


def test_an_encoder_of_another_kind_is_refused_by_its_fields():
    config = small.vit(num_registers=2, layer_scale=True)
    with pytest.raises(UserError, match="num_registers = 2, layer_scale = True"):
        checkpoints.check_plain_vit(config)
    checkpoints.check_plain_vit(small.vit())


def launched(folder, bundle):
    """A MODEL_DIR as a launch writes it, where everything is trained."""
    described = vadapter.load(bundle).description
    training = {**described.training, "trainable": [".*"]}
    description.save(str(folder), dataclasses.replace(described, training=training).moved(bundle, str(folder)))
    (folder / launch.SOURCES).write_text('{"sources": []}')


def test_what_t5x_trained_becomes_a_run(bundle, params, tmp_path):
    launched(tmp_path, bundle)
    folder = checkpoints.to_t5x(bundle, str(tmp_path))
    checkpoints.to_run(folder, str(tmp_path / "run"))
    found = vadapter.load(str(tmp_path / "run"))
    assert found.step == 1
    assert_same({k: np.asarray(x) for k, x in trees.flatten(found.params).items()}, params)
    with pytest.raises(UserError, match="not empty"):
        checkpoints.to_run(folder, str(tmp_path / "run"))


@pytest.mark.parametrize("tied_head", [True, False])
def test_an_adapter_with_a_decoder_of_its_own_goes_both_ways_with_the_same_bits(tied_head, tmp_path):
    bundle = str(write_bundle(tmp_path, adapter="queries", tied_head=tied_head))
    expected = params_of(bundle)
    assert ("decoder/head/embedding" in expected) != tied_head
    assert any(path.startswith("adapter/lm/") for path in expected)
    file, folder = str(tmp_path / "all.npz"), checkpoints.to_t5x(bundle, str(tmp_path / "exported"))
    checkpoints.to_big_vision(bundle, file)
    for name, source in (("from_npz", file), ("from_t5x", folder)):
        checkpoints.to_run(source, str(tmp_path / name), like=bundle)
        assert_same(params_of(tmp_path / name), expected)
        again = checkpoints.to_t5x(str(tmp_path / name), str(tmp_path / f"{name}_again"))
        assert_same(checkpoints.read_all(open_checkpoint(again).tensors), expected)


def test_weights_of_another_model_are_refused(bundle, tmp_path):
    other = str(write_bundle(tmp_path, "other", tied_head=False))
    wide = str(write_bundle(tmp_path, "wide", mlp_dim=32))
    file = str(tmp_path / "all.npz")
    checkpoints.to_big_vision(bundle, file)
    for like, expected in ((other, "head/embedding is only there"), (wide, "mlp"), (None, "--like")):
        with pytest.raises(UserError, match=expected):
            checkpoints.to_run(file, str(tmp_path / "run"), like=like)
    assert not (tmp_path / "run").exists()


def test_int8_weights_are_refused(monkeypatch, tmp_path):
    model = types.SimpleNamespace(step=1, params={"decoder": {"w": quantization.quantize(np.ones((4, 4)), 1)}})
    monkeypatch.setattr(checkpoints, "load", lambda path: model)
    with pytest.raises(UserError, match="int8 weights"):
        checkpoints.to_t5x("run", str(tmp_path))


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match="t5x runs in 2 processes"):
        launch.check(types.SimpleNamespace(model=None, train=None), "t5x")


@pytest.mark.parametrize(
    ("dropout", "cache", "tiny_loss", "expected"),
    [(0.1, None, 0, "LoRA drops out"), (0.0, "cache", 0, "gives a model pixels"), (0.0, None, 1, "tiny_loss is set")],
)
def test_what_a_launcher_does_not_tell_a_model_is_refused(dropout, cache, tiny_loss, expected):
    model = small.vlm(decoder=small.decoder(lora=LoraConfig(rank=2, dropout=dropout)))
    train = types.SimpleNamespace(frozen_dtype="float32", optimizer=types.SimpleNamespace(accumulate=1))
    experiment = types.SimpleNamespace(model=model, train=train, feature_cache=None, objective=ObjectiveConfig())
    if not dropout:
        assert launch.check(experiment, "t5x") == model
    experiment.feature_cache, experiment.objective = cache, ObjectiveConfig(tiny_loss=tiny_loss)
    with pytest.raises(UserError, match=expected):
        launch.check(experiment, "t5x")


def test_a_checkpoint_away_from_its_launch_is_refused(bundle, tmp_path):
    folder = checkpoints.to_t5x(bundle, str(tmp_path))
    with pytest.raises(UserError, match=launch.SOURCES):
        checkpoints.to_run(folder, str(tmp_path / "run"))


@pytest.mark.parametrize("name", ["checkpoint_x", "checkpoint.bv-000000002"])
def test_what_is_no_checkpoint_is_refused(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match="big_vision"):
        checkpoints.to_run(str(tmp_path / name), str(tmp_path / "run"))


def test_the_command_says_what_is_wrong_without_a_traceback(tmp_path):
    command = [sys.executable, "-m", "vadapter.contrib", "to_t5x", str(tmp_path / "none"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "error: " in done.stderr and "Traceback" not in done.stderr
