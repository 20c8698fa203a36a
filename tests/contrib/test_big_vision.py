"""big_vision trains models of vadapter. Needs big_vision: `make bridges` fetches it."""

import importlib
import json

import jax
import numpy as np
import pytest
from flax import linen as nn

import vadapter
from tests.contrib.conftest import ROOT, STEPS, World, experiment, missing, run
from tests.models import small
from vadapter.base import trees
from vadapter.base.errors import UserError
from vadapter.base.evaluator import whole_names
from vadapter.contrib import checkpoints
from vadapter.models.serialization import to_json
from vadapter.models.vlm import VLM

pytest.importorskip("big_vision", reason=missing("big_vision"))
from big_vision.models import vit as their_vit

from vadapter.contrib import big_vision
from vadapter.contrib.big_vision import encoder, evaluator, vision, vit, vlm

IMAGES = np.random.default_rng(0).uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)
SIZES = {"variant": "mu/16", "num_classes": 5}


def init(model, *args):
    return nn.unbox(model.init(jax.random.key(0), *args)["params"])


def noisy(params):
    """Parameters none of which is zero."""
    leaves, structure = jax.tree.flatten(params)
    rng = np.random.default_rng(1)
    return jax.tree.unflatten(structure, [np.asarray(x) + rng.normal(0, 0.05, x.shape).astype(x.dtype) for x in leaves])


def save(file, params):
    np.savez(file, **{path: np.asarray(x) for path, x in trees.flatten(params).items()})
    return str(file)


def assert_equal(found, expected):
    found, expected = trees.flatten(found), trees.flatten(expected)
    assert found.keys() == expected.keys()
    for path, x in expected.items():
        np.testing.assert_array_equal(np.asarray(found[path]), np.asarray(x), err_msg=path)


@pytest.mark.parametrize("pool_type", ["gap", "none"])
def test_our_vit_is_theirs_by_name_and_number(pool_type):
    theirs = their_vit.Model(**SIZES, pool_type=pool_type, scan=True)
    ours = vit.Model(**SIZES, pool_type=pool_type, image_size=32)
    params = noisy(init(theirs, IMAGES))
    assert_equal(jax.tree.map(lambda x: np.shape(x), init(ours, IMAGES)), jax.tree.map(np.shape, params))
    (expected, _), (found, out) = (m.apply({"params": params}, IMAGES) for m in (theirs, ours))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert out["pre_logits_2d"].shape == (2, 2, 2, 32)


@pytest.mark.parametrize("scan", [True, False])
def test_our_vit_loads_what_theirs_saved(tmp_path, scan):
    theirs = their_vit.Model(**SIZES, scan=scan)
    params = noisy(init(theirs, IMAGES))
    ours = vit.Model(**SIZES, image_size=32)
    loaded = vit.load(init(ours, IMAGES), save(tmp_path / "vit.npz", params), {})
    np.testing.assert_allclose(
        ours.apply({"params": loaded}, IMAGES)[0], theirs.apply({"params": params}, IMAGES)[0], atol=1e-5
    )


def test_bytes_and_floats_are_the_same_pixels():
    ours = vit.Model(**SIZES, image_size=32)
    params = noisy(init(ours, IMAGES))
    pixels = np.random.default_rng(2).integers(0, 256, (2, 32, 32, 3), np.uint8)
    found = [ours.apply({"params": params}, x)[0] for x in (pixels, pixels.astype(np.float32) / 127.5 - 1)]
    np.testing.assert_allclose(*found, atol=1e-5)


def test_pooling_that_we_do_not_have_is_refused():
    with pytest.raises(UserError, match="pool_type is 'map'"):
        vit.Model(**SIZES, pool_type="map", image_size=32)


def test_their_vit_is_our_encoder():
    config = encoder.BigVisionEncoderConfig(image_size=32, variant="mu/16")
    module = config.make()
    pixels = np.random.default_rng(2).integers(0, 256, (2, 32, 32, 3), np.uint8)
    params = noisy(init(module, pixels))
    found = module.apply({"params": params}, pixels)
    assert found.shape == (2, config.num_patches, config.width)
    ours = vit.Model(variant="mu/16", pool_type="none", image_size=32)
    np.testing.assert_allclose(found, ours.apply({"params": params}, pixels)[0], atol=1e-5)
    whole = small.vlm("perceiver", encoder=config)
    assert VLM(whole).init(jax.random.key(0), small.batch(whole, rows=1))["params"]["encoder"]


@pytest.mark.parametrize("wrong", [{"variant": "Huge/16"}, {"image_size": 30}, {"posemb": "rotary"}])
def test_an_encoder_that_cannot_be_is_refused(wrong):
    with pytest.raises(UserError, match="BigVisionEncoderConfig"):
        encoder.BigVisionEncoderConfig(**{"image_size": 32, "variant": "mu/16", **wrong})


def test_encoder_and_adapter_are_an_image_model_of_paligemma():
    whole = small.vlm("perceiver")
    texts = {"encoder": json.dumps(to_json(whole.encoder)), "adapter": json.dumps(to_json(whole.adapter))}
    model = vision.Model(24, **texts)
    size = whole.encoder.image_size
    image = np.zeros((2, size, size, 3), np.float32)
    params = init(model, image)
    soft, _ = model.apply({"params": params}, image)
    assert soft.shape == (2, whole.adapter.num_tokens(1, whole.encoder.num_patches), 24)
    with pytest.raises(UserError, match=r"model\.img\.adapter is no JSON"):
        vision.Model(24, encoder=texts["encoder"], adapter="{")


@pytest.fixture(scope="module")
def whole():
    config = small.vlm("perceiver", repeat_stills=True)
    params = noisy(init(VLM(config), small.batch(config, rows=1)))
    return config, params


def test_visual_tokens_before_the_text_are_the_same_as_in_slots(whole):
    config, params = whole
    size, count = config.encoder.image_size, config.num_visual_tokens(1)
    image = np.random.default_rng(3).integers(0, 256, (2, size, size, 3), np.uint8)
    text = np.asarray([[1, 5, 6], [1, 7, 8]], np.int32)
    slots = np.concatenate([np.full((2, count), vlm.VISUAL, np.int32), text], axis=1)
    prefix = vlm.Model(config=json.dumps(to_json(config)), layout="prefix")
    inline = vlm.Model(config=json.dumps(to_json(config)))
    found, _ = prefix.apply({"params": params}, image, text, np.ones_like(text))
    expected, _ = inline.apply({"params": params}, image, slots, np.ones_like(slots))
    assert found.shape == (2, 3, config.vocab_size)
    np.testing.assert_allclose(found, expected[:, count:], atol=1e-5)


def test_a_whole_model_and_parts_of_it_are_loaded(whole, tmp_path):
    config, params = whole
    file = save(tmp_path / "whole.npz", params)
    zeros = jax.tree.map(np.zeros_like, params)
    assert_equal(vlm.load(zeros, file, None), params)
    parts = vlm.load(zeros, {"encoder": f"{file}:encoder", "decoder": f"{file}:decoder"}, None)
    assert_equal(parts, {**params, "adapter": zeros["adapter"]})
    assert_equal(vlm.load(zeros, file, None, ["adapter/.*"]), {**params, "adapter": zeros["adapter"]})
    with pytest.raises(UserError, match="'text'; the model's parts"):
        vlm.load(zeros, {"text": file}, None)


@pytest.mark.parametrize("wrong", [{"config": "["}, {"config": "{}"}, {"layout": "infix"}])
def test_a_model_that_cannot_be_made_is_refused(whole, wrong):
    with pytest.raises(UserError, match=r"model\.|layout"):
        vlm.Model(**{"config": json.dumps(to_json(whole[0])), **wrong})


def test_names_are_registered():
    big_vision.register()
    assert importlib.import_module("big_vision.models.vadapter") is vlm
    assert importlib.import_module("big_vision.models.vadapter_vit") is vit
    assert importlib.import_module("big_vision.evaluators.vadapter") is evaluator


@pytest.fixture
def paligemma(monkeypatch):
    """`proj.paligemma.paligemma` before a small Gemma."""
    from big_vision.models.ppp import gemma
    from big_vision.models.proj.paligemma import paligemma

    big_vision.register()
    sizes = gemma.get_config("gemma_2b")
    sizes.update(width=32, depth=1, mlp_dim=32, num_heads=2, num_kv_heads=1, head_dim=16, vocab_size=64)
    monkeypatch.setattr(gemma, "get_config", lambda variant: sizes)
    return lambda name, **img: paligemma.Model(img_model=name, img=img, llm={"variant": "gemma_2b", "vocab_size": 64})


def test_encoder_and_adapter_stand_before_the_language_model_of_paligemma(paligemma):
    whole = small.vlm("perceiver")
    texts = {"encoder": json.dumps(to_json(whole.encoder)), "adapter": json.dumps(to_json(whole.adapter))}
    image, text = np.zeros((2, 16, 16, 3), np.float32), np.ones((2, 5), np.int32)
    model = paligemma("vadapter_vision", **texts)
    params = init(model, image, text, np.ones_like(text))
    assert set(params["img"]) == {"encoder", "adapter"}
    assert model.apply({"params": params}, image, text, np.ones_like(text))[0].shape == (2, 5, 64)


def test_our_vit_stands_in_the_place_of_theirs_in_paligemma(paligemma):
    image, text = IMAGES, np.ones((2, 5), np.int32)
    theirs = paligemma("vit", variant="mu/16", pool_type="none", scan=True)
    ours = paligemma("vadapter_vit", variant="mu/16", pool_type="none", image_size=32)
    params = noisy(init(theirs, image, text, np.ones_like(text)))
    (expected, _), (found, _) = (m.apply({"params": params}, image, text, np.ones_like(text)) for m in (theirs, ours))
    np.testing.assert_allclose(found, expected, atol=1e-3)


# ---- its own launcher

# With as many targets in each row, the mean over rows of each row's mean (big_vision's) is that over all targets.
SAME = {
    "TASK_FEATURE_LENGTHS": "{'inputs': 24, 'targets': 2}",
    "OptimizerConfig.schedule": "'constant'",
    "EVALUATIONS": "[@val/Evaluation(), @generation/Evaluation()]",
}


def launch(world, stage, name, **more):
    settings = {**world.from_weights(stage), **SAME, **more}
    text = "; ".join(f"gin.{key}={value}" for key, value in settings.items())
    config = f"{ROOT / 'vadapter/contrib/big_vision/config.py'}:gin_file={experiment(stage)}; {text}"
    trainer = "big_vision.trainers.proj.paligemma.train"
    run(trainer, "--workdir", str(world.folder / name), "--config", config, cwd=world.folder)
    return world.folder / name


def lines(file):
    return list(map(json.loads, file.read_text().splitlines()))


def losses(folder):
    """Those of all steps in order, the last one twice. The step written beside one may be the next: it is read late."""
    found = lines(folder / "big_vision_metrics.txt")
    return [line["training_loss"] for line in found if "training_loss" in line]


@pytest.fixture(scope="module")
def trained(world, stage):
    return launch(world, stage, f"big_vision_{stage}")


@pytest.fixture(scope="module")
def expected(world, stage):
    """What vadapter's own training finds, by split and step."""
    world.train(f"same_{stage}", {**world.from_weights(stage), **SAME}, gin_file=experiment(stage))
    return {(line["split"], line["step"]): line for line in lines(world.folder / f"same_{stage}" / "curve.jsonl")}


@pytest.mark.slow
def test_losses_are_those_of_vadapter_train(trained, expected):
    found = losses(trained)
    assert len(found) == STEPS + 1
    for step in range(STEPS):
        # Rounding grows from step to step.
        np.testing.assert_allclose(found[step], expected["train", step + 1]["loss"], rtol=1e-4 if step else 1e-5)


@pytest.mark.slow
def test_its_metrics_have_the_scores_of_vadapter(trained, expected):
    found = {name: value for line in lines(trained / "big_vision_metrics.txt") for name, value in line.items()}
    for split in ("val", "generation"):
        line = expected[split, STEPS]
        scores = {name: x for name, x in line.items() if isinstance(x, float) and name != "seconds"}
        assert scores
        for name, score in whole_names(split, scores).items():
            np.testing.assert_allclose(found[name], score, rtol=1e-4, err_msg=name)


def test_an_evaluation_that_is_not_there_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluator, "workdir", lambda: str(tmp_path / "run"))
    settings = "; ".join(f"gin.{name}={value}" for name, value in World(tmp_path).from_weights().items())
    text = f"gin_file=experiments/scenes_stage1.gin; {settings}"
    with pytest.raises(UserError, match="no evaluation 'ocr'; its evaluations are val"):
        evaluator.Evaluator(None, experiment=text, evaluation="ocr")


@pytest.mark.slow
def test_its_checkpoint_becomes_a_run(world, stage, trained, expected):
    out = world.folder / f"from_big_vision_{stage}"
    checkpoints.to_run(str(trained / f"checkpoint.bv-{STEPS:09d}"), str(out))
    found = vadapter.load(out)
    assert found.step == STEPS
    saved = checkpoints.open_big_vision(str(trained / f"checkpoint.bv-{STEPS:09d}"))
    assert_equal(found.params, trees.unflatten(checkpoints.read_all(saved)))
    assert world.captions(out.name) == world.captions(f"same_{stage}")


@pytest.mark.slow
def test_a_launch_that_was_stopped_goes_on_as_if_it_had_not(world, stage, trained):
    half = launch(world, stage, f"half_{stage}", TRAIN_STEPS=str(STEPS // 2))
    launch(world, stage, half.name)
    found, expected = losses(half), losses(trained)
    assert len(expected) == STEPS + 1
    assert found[: STEPS // 2] + found[STEPS // 2 + 1 :] == expected


@pytest.mark.slow
def test_vadapter_trains_on_the_vit_of_big_vision(world):
    settings = {
        **world.settings,
        "TRAIN_STEPS": "1",
        "SOURCES": "[]",
        "TRAINABLE": "['.*']",
        "ENCODER": "@BigVisionEncoderConfig()",
        "BigVisionEncoderConfig.image_size": "32",
        "BigVisionEncoderConfig.variant": "'mu/16'",
    }
    world.train("their_vit", settings, "--module=vadapter.contrib.big_vision.encoder")
    (loss,) = [x["loss"] for x in lines(world.folder / "their_vit" / "curve.jsonl") if x["split"] == "train"]
    assert np.isfinite(loss)
