import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import saved
from tests.models import small as models
from tests.training import small
from vadapter.base import trees
from vadapter.base.errors import UserError
from vadapter.models.vlm import VLM
from vadapter.training.initialize import begin, initial_params, restore
from vadapter.training.loop import TrainConfig, train
from vadapter.training.sources import Source, rename

STAGE1_RULES = (("encoder/.*", r"\g<0>"), ("decoder/(.*)", r"adapter/lm/\1"))
STAGE2 = ("adapter/front/.*", "head/.*")


def run_stage1(folder, seed=1):
    """A run of which everything was trained."""
    saved.save_params(str(folder), small.params(small.Model(stage=1), seed=seed), step=7)


def start(model_dir, sources, trainable=STAGE2, model=None):
    program = small.program(model, trainable=trainable)
    return initial_params(program, jax.random.key(0), sources=sources, model_dir=str(model_dir))


def write_sources(root):
    run_stage1(root / "stage1")
    saved.save_params(str(root / "large"), {"decoder": small.params(seed=2)["decoder"]}, step=3)


def run_stage2(root):
    sources = [Source(str(root / "stage1"), STAGE1_RULES), Source(str(root / "large"))]
    config = TrainConfig(steps=3, trainable=STAGE2, optimizer=small.optimizer(), tensorboard=False)
    program, folder = small.program(trainable=STAGE2, steps=3), str(root / "stage2")
    begun = begin(program, folder, lambda: start(folder, sources))
    return train(config, program=program, start=begun, batches=small.batches, model_dir=folder)


def test_decoder_of_stage_1_becomes_adapter_of_stage_2(tmp_path):
    run_stage1(tmp_path / "stage1")
    saved.save_params(str(tmp_path / "large"), {"decoder": small.params(seed=2)["decoder"]})
    sources = [Source(str(tmp_path / "stage1"), STAGE1_RULES), Source(str(tmp_path / "large"))]
    params, references = start(tmp_path / "run", sources, trainable=("adapter/.*", "head/.*"))
    before = small.params(small.Model(stage=1), seed=1)
    np.testing.assert_array_equal(params["adapter"]["lm"]["kernel"], before["decoder"]["kernel"])
    np.testing.assert_array_equal(params["encoder"]["kernel"], before["encoder"]["kernel"].astype(jnp.bfloat16))
    assert params["adapter"]["lm"]["kernel"].dtype == jnp.float32
    assert params["adapter"]["front"]["kernel"].shape == (8, 8)  # no source has it: random
    assert [(r.path, r.step, r.frozen, r.initial) for r in references] == [
        ("../stage1", 7, 2, 2),
        ("../large", 0, 2, 0),
    ]


def test_a_run_is_found_again_and_its_checkpoint_has_no_frozen_weights(tmp_path):
    write_sources(tmp_path)
    trained = run_stage2(tmp_path).params
    stored = saved.load_params(str(tmp_path / "stage2"))
    assert {p.split("/")[0] for p in stored} == {"adapter", "head"}
    moved = tmp_path / "elsewhere/runs"
    moved.mkdir(parents=True)
    for name in ("stage1", "large", "stage2"):
        os.rename(tmp_path / name, moved / name)
    found = restore(str(moved / "stage2"), small.boxed(), small.partitioner(data=2, fsdp=2))
    assert found.step == 3
    assert trees.flatten(found.params).keys() == trees.flatten(trained).keys()
    for path, x in trees.flatten(trained).items():
        again = trees.flatten(found.params)[path]
        assert (again.dtype, np.asarray(again).tobytes()) == (x.dtype, np.asarray(x).tobytes()), path


def test_going_on_needs_the_frozen_weights_only(tmp_path):
    write_sources(tmp_path)
    lm = small.params(small.Model(stage=1), seed=1)
    saved.save_params(str(tmp_path / "frozen"), {"encoder": lm["encoder"], "decoder": lm["decoder"]})
    sources = [
        Source(str(tmp_path / "frozen"), STAGE1_RULES),
        Source(str(tmp_path / "large")),
        Source(str(tmp_path / "stage1"), (("decoder/(kernel|bias)", r"adapter/front/\1"),)),
    ]

    def run(steps, folder="stage2"):
        said, folder = [], str(tmp_path / folder)
        config = TrainConfig(steps=steps, trainable=STAGE2, optimizer=small.optimizer(), tensorboard=False)
        program = small.program(trainable=STAGE2, steps=6)
        begun = begin(program, folder, lambda: start(folder, sources), sources=sources, say=said.append)
        return train(config, program=program, start=begun, batches=small.batches, model_dir=folder), said

    whole, _ = run(6, "whole")
    run(3)
    shutil.rmtree(tmp_path / "stage1")
    resumed, said = run(6)
    for path, x in trees.flatten(whole.params).items():
        assert np.asarray(x).tobytes() == np.asarray(trees.flatten(resumed.params)[path]).tobytes(), path
    assert "stage1 is not there any more. It gave initial values only" in said[0]
    shutil.rmtree(tmp_path / "large")
    with pytest.raises(UserError, match="A checkpoint was expected in .*large; found no such folder"):
        run(6)


def test_other_weights_in_a_source_are_refused(tmp_path):
    write_sources(tmp_path)
    run_stage2(tmp_path)
    shutil.rmtree(tmp_path / "stage1")
    run_stage1(tmp_path / "stage1", seed=5)
    with pytest.raises(UserError, match="weights whose sha256 is .*stage1 at step 7 gives"):
        restore(str(tmp_path / "stage2"), small.boxed(), small.partitioner())
    shutil.rmtree(tmp_path / "stage1")
    with pytest.raises(UserError, match="checkpoint_7 was expected in .*stage1; found no such folder"):
        restore(str(tmp_path / "stage2"), small.boxed(), small.partitioner())


def test_a_source_of_initial_values_only_is_not_needed_afterwards(tmp_path):
    run_stage1(tmp_path / "stage1")
    source = Source(str(tmp_path / "stage1"), (("encoder/.*", r"\g<0>"),))
    params, references = start(tmp_path / "run", [source], trainable=(".*",))
    run = {"sources": [r.to_json() for r in references]}
    saved.save_params(str(tmp_path / "run"), params, run=run)
    shutil.rmtree(tmp_path / "stage1")
    found = restore(str(tmp_path / "run"), small.boxed(), small.partitioner())
    np.testing.assert_array_equal(found.params["encoder"]["kernel"], params["encoder"]["kernel"])


def test_mistakes_in_sources(tmp_path):
    run_stage1(tmp_path / "stage1")
    path = str(tmp_path / "stage1")
    with pytest.raises(UserError, match="'decodr/.\\*' matches no parameter.*decoder/"):
        start(tmp_path / "run", [Source(path, (("decodr/.*", "x"),))])
    with pytest.raises(UserError, match="gives the parameter adapter/ml/.*the nearest are adapter/lm/"):
        start(tmp_path / "run", [Source(path, (("decoder/(.*)", r"adapter/ml/\1"),))])
    with pytest.raises(UserError, match="head/bias with the shape \\(8,\\); the model expects \\(4,\\)"):
        start(tmp_path / "run", [Source(path, (("decoder/bias", "head/bias"),))])
    with pytest.raises(UserError, match="frozen parameters come from no source, the first is adapter/lm/bias"):
        start(tmp_path / "run", [Source(path, (("encoder/.*", r"\g<0>"),))])
    with pytest.raises(UserError, match="checkpoint_9 was expected in .*found checkpoint_7"):
        start(tmp_path / "run", [Source(path, step=9)])
    with pytest.raises(UserError, match="found no such folder"):
        start(tmp_path / "run", [Source(str(tmp_path / "nowhere"))])


def test_a_rule_for_what_the_source_froze_is_told_where_that_is(tmp_path):
    write_sources(tmp_path)
    run_stage2(tmp_path)
    source = Source(str(tmp_path / "stage2"), (("decoder/.*", r"\g<0>"),))
    with pytest.raises(UserError, match=r"matches no parameter.*what the run froze is in \.\./stage1, \.\./large"):
        start(tmp_path / "run", [source])


def test_rename_takes_the_first_rule_and_refuses_collisions():
    flat = {"a/x": 1, "a/y": 2, "b": 3}
    assert rename(flat, (("a/x", "c"), ("a/(.*)", r"d/\1")), "run") == {"c": 1, "d/y": 2}
    with pytest.raises(UserError, match="Two parameters of the source run get the path c"):
        rename(flat, (("a/.*", "c"),), "run")
    with pytest.raises(UserError, match="is malformed"):
        rename(flat, (("a/.*", r"\3"),), "run")


def test_queries_start_at_positions(tmp_path):
    config = models.vlm("queries", decoder=models.decoder(depth=1), encoder=models.vit(depth=1))
    model, batch = VLM(config), models.batch(config, rows=2)
    others = {p: x for p, x in trees.flatten(small.params(model, example=batch)).items() if p != "adapter/queries"}
    saved.save_params(str(tmp_path / "others"), trees.unflatten(others))
    program = small.program(model, small.partitioner(fsdp=2), batch, trainable=(".*",))
    sources = [Source(str(tmp_path / "others"))]
    params, _ = initial_params(program, jax.random.key(0), sources=sources, model_dir=str(tmp_path / "run"))
    size = config.encoder.image_size
    grey = np.full((1, 1, 1, size, size, 3), 128, np.uint8)
    read = lambda m: m.adapter.places(m.encode(grey))  # noqa: E731
    places = jax.jit(lambda p: model.apply({"params": p}, method=read))(params)
    np.testing.assert_allclose(params["adapter"]["queries"], places, rtol=1e-4, atol=1e-5)
    assert np.std(np.asarray(places), axis=0).max() > 0.01
