"""A run with an adapter to a bundle and back, with real checkpoints and without training."""

import dataclasses
import json
import os
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import linen as nn

from tests import saved
from tests.models import small as models
from tests.training import small
from vadapter.base import fingerprints, trees
from vadapter.base.errors import UserError
from vadapter.data.order.config import LoaderConfig
from vadapter.generation.decoding import DecodingConfig, make_generate
from vadapter.models.vlm import VLM
from vadapter.partitioning import abstract_params
from vadapter.runs import bundle as bundle_files
from vadapter.runs import description as descriptions
from vadapter.runs import warm_start
from vadapter.runs.description import Description
from vadapter.runs.experiment import Experiment
from vadapter.runs.export import export
from vadapter.runs.load import load, runnable
from vadapter.training import initialize
from vadapter.training.loop import TrainConfig
from vadapter.training.sources import Source

CONFIG = models.vlm("queries", decoder=models.decoder(depth=1), encoder=models.vit(depth=1), num_frames=2)
MODEL = VLM(CONFIG)
FROZEN_LM = ("adapter/(front/.*|projection/.*|queries)",)
START_RULES = (("adapter/(front|projection|queries)(/.*)?", r"\g<0>"),)  # nothing is left to be made at random
LM_RULES = ((r"decoder/((?:layers|final_norm)/.*)", r"adapter/lm/\1"),)


def weights(seed):
    return small.params(MODEL, seed=seed, example=models.batch(CONFIG, rows=1))


def boxed():
    return abstract_params(MODEL, CONFIG.example_batch())


def sources(root):
    one = {part: ((f"({part}/.*)", r"\1"),) for part in ("encoder", "decoder")}
    return [
        Source(str(root / "vit"), one["encoder"]),
        Source(str(root / "large"), one["decoder"]),
        Source(str(root / "stage1"), LM_RULES),
        Source(str(root / "start"), START_RULES),
    ]


def write_sources(root):
    bf16 = jax.tree.map(lambda x: np.asarray(x).astype(ml_dtypes.bfloat16), weights(3)["decoder"])
    tiny = {f"decoder/{path}": x for path, x in trees.flatten(weights(2)["adapter"]["lm"]).items()}
    saved.save_params(str(root / "vit"), {"encoder": weights(1)["encoder"], "head": np.ones(3)}, step=5)
    saved.save_params(str(root / "large"), {"decoder": bf16})
    saved.save_params(str(root / "stage1"), trees.unflatten(tiny), step=7)
    saved.save_params(str(root / "start"), {"adapter": weights(4)["adapter"]})


def write_run(root, name="run", trainable=FROZEN_LM, frozen_dtype="bfloat16"):
    """A run that took everything else from the sources: its checkpoint and its model.json."""
    program = small.program(MODEL, example=CONFIG.example_batch(), trainable=trainable, frozen_dtype=frozen_dtype)
    params, references = initialize.initial_params(
        program, jax.random.key(0), sources=sources(root), model_dir=str(root / name), say=lambda line: None
    )
    own = trees.split(params, trainable)[0]
    run = {"sources": [r.to_json() for r in references], "frozen_dtype": frozen_dtype}
    saved.save_params(str(root / name), own, step=20, run=run)
    descriptions.save(str(root / name), Description(CONFIG, frozen_dtype=frozen_dtype, training={"steps": 20}))
    return params


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Sources, a run, and its bundle."""
    folder = tmp_path_factory.mktemp("made")
    write_sources(folder)
    write_run(folder)
    export(str(folder / "run"), str(folder / "bundle"))
    return folder


@pytest.fixture
def root(made, tmp_path):
    """A copy of these, for the test to change."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def bundle(root):
    return root / "bundle"


def open_params(path, **given):
    return load(str(path), partitioner=small.partitioner(), **given).params


def assert_same(a, b):
    a, b = trees.flatten(a), trees.flatten(b)
    assert a.keys() == b.keys()
    for path in a:
        for x, y in zip(jax.tree.leaves(a[path]), jax.tree.leaves(b[path]), strict=True):
            assert x.dtype == y.dtype, path
            np.testing.assert_array_equal(x, y, err_msg=path)


@pytest.mark.parametrize(
    ("trainable", "frozen_dtype"),
    [
        *((FROZEN_LM, dtype) for dtype in ("bfloat16", "float32", "int8")),
        (("adapter/.*",), "int8"),
        (("adapter/.*", "decoder/.*"), "bfloat16"),
    ],
)
def test_a_bundle_gives_the_parameters_of_its_run(root, trainable, frozen_dtype):
    write_run(root, "other", trainable, frozen_dtype)
    made = export(str(root / "other"), str(root / "out"))
    assert {p.split("/")[0] for p in made.arrays()} == {pattern.split("/")[0] for pattern in trainable}
    assert {p for p in boxed_paths() if p.startswith("adapter/")} <= made.arrays().keys()
    needed = [part for backbone in made.backbones for part in backbone.parts]
    assert needed == ["encoder", "decoder"][: 2 if len(trainable) == 1 else 1]
    expected = initialize.restore(str(root / "other"), boxed(), small.partitioner()).params
    shutil.rmtree(root / "stage1")  # only the backbones are still needed
    assert_same(open_params(root / "out"), expected)


def boxed_paths():
    return trees.flatten(nn.unbox(boxed()))


def test_a_bundle_has_the_bytes_of_its_parameters_and_little_more(root, bundle):
    parameters = sum(x.nbytes for x in bundle_files.read(str(bundle)).arrays().values())
    assert sum(file.stat().st_size for file in bundle.rglob("*")) < parameters + 64 * 1024


def test_run_and_bundle_write_the_same(root, bundle):
    placed = small.partitioner(data=2)
    generate = make_generate(MODEL, placed, DecodingConfig(max_new_tokens=6), end_ids=(1,))
    batch = placed.put_batch(models.batch(CONFIG, rows=2))
    of_run = load(str(root / "run"), partitioner=placed).params
    of_bundle = load(str(bundle), partitioner=placed).params
    np.testing.assert_array_equal(generate(of_run, batch), generate(of_bundle, batch))


def test_backbones_are_found_beside_the_bundle_or_where_one_says(root, bundle):
    before = open_params(bundle)
    moved = root / "published/bundle"
    shutil.copytree(bundle, moved)
    with pytest.raises(UserError, match="encoder of the bundle .*--encoder=DIR .*vadapter import"):
        open_params(moved)
    with pytest.raises(UserError, match="decoder of the bundle .*--decoder=DIR"):
        open_params(moved, encoder=str(root / "vit"))
    assert_same(open_params(moved, encoder=str(root / "vit"), decoder=str(root / "large")), before)
    # the same weights at another step, as another import of them has
    saved.save_params(str(root / "import"), {"encoder": weights(1)["encoder"]}, step=0)
    shutil.rmtree(root / "vit")
    assert_same(open_params(bundle, encoder=str(root / "import")), before)


@pytest.mark.parametrize("recorded", [False, True])
def test_other_backbones_are_refused_with_both_hashes(root, bundle, recorded):
    other = weights(9)["encoder"]
    saved.save_params(str(root / "other"), {"encoder": other})
    hashes = {f"encoder/{p}": fingerprints.of_array(np.asarray(x)) for p, x in trees.flatten(other).items()}
    if recorded:
        fingerprints.save(str(root / "other"), 0, hashes)
    theirs = bundle_files.read(str(bundle)).backbones[0].sha256
    with pytest.raises(UserError, match=f"{theirs}; .*other.* {fingerprints.combine(hashes)}"):
        open_params(bundle, encoder=str(root / "other"))


def test_options_that_the_bundle_has_no_use_for_are_refused(root):
    write_run(root, "other", ("adapter/.*", "decoder/.*"))
    export(str(root / "other"), str(root / "out"))
    with pytest.raises(UserError, match="--decoder was given, but .* has its decoder itself"):
        open_params(root / "out", decoder=str(root / "large"))


def test_what_cannot_be_exported_is_refused(root, bundle):
    with pytest.raises(UserError, match="bundle is there already"):
        export(str(root / "run"), str(bundle))
    with pytest.raises(UserError, match="checkpoint_4 was expected"):
        export(str(root / "run"), str(root / "new"), step=4)
    descriptions.save(str(root / "large"), Description(dataclasses.replace(CONFIG, encoder=None, adapter=None)))
    with pytest.raises(UserError, match="without an adapter"):
        export(str(root / "large"), str(root / "new"))
    with pytest.raises(UserError, match=r"no model.json"):
        export(str(root / "vit"), str(root / "new"))
    shutil.rmtree(root / "stage1")
    saved.save_params(str(root / "stage1"), {"decoder": weights(8)["adapter"]["lm"]}, step=7)
    with pytest.raises(UserError, match="The run .* was trained with weights whose sha256 is .*stage1.* gives"):
        export(str(root / "run"), str(root / "new"))
    assert not (root / "new").exists()


def test_the_outcome_of_the_training_is_exported(root):
    done = {"step": 20, "seconds": 3.5, "metrics": {"loss": 1.5}, "evals": {"val": {"loss": 1.75}}, "total_params": 1}
    (root / "run/done.json").write_text(json.dumps(done))
    training = export(str(root / "run"), str(root / "out")).description.training
    assert training["steps"] == 20
    assert training["evals"] == {"val": {"loss": 1.75}}
    assert [source.split(" ")[0] for source in training["sources"]] == ["../vit", "../large", "../stage1", "../start"]


def test_the_card_has_the_figures_of_the_checkpoint_and_the_published_models_behind_it(root):
    source = {"name": "siglip", "hub": "hf:google/siglip", "commit": "ab", "license": "apache-2.0", "files": ["a"]}
    (root / "vit/import.json").write_text(json.dumps({"source": source, "family": "siglip"}))
    evaluation = {
        "checkpoint": f"{root}/run at step 20",
        "scores": {"vqa/accuracy": 0.5, "vqa/nothing": None},
        "intervals": {"vqa/accuracy": [0.25, 0.75]},
        "evaluations": {"vqa": {"data": "cats", "split": "test", "records": 12}},
    }
    (root / "run/metrics.json").write_text(json.dumps(evaluation))
    (root / "run/old").mkdir()
    (root / "run/old/metrics.json").write_text(json.dumps({**evaluation, "checkpoint": "run at step 10"}))
    export(str(root / "run"), str(root / "out"), license="mit")
    card = (root / "out/README.md").read_text()
    assert "| siglip | hf:google/siglip (commit `ab`) | siglip | apache-2.0 |" in card
    assert "| large | not known | not known | not known |" in card
    assert "| vqa/accuracy | 0.5 | 0.25 to 0.75 | cats test | 12 records |" in card
    assert card.count("vqa/") == 1
    assert 'license: "mit"' in card and 'base_model: ["google/siglip"]' in card


# Training from a bundle


def start(root, **changes):
    """What a run that begins with the bundle has."""
    given = dict(
        model=CONFIG,
        model_dir=str(root / "more"),
        data=LoaderConfig("none"),
        train=TrainConfig(trainable=FROZEN_LM),
        sources=tuple(sources(root)),
        bundle=os.path.relpath(root / "bundle"),
    )
    experiment = Experiment(**{**given, **changes})
    model, shapes, placed = VLM(experiment.model), experiment.model.example_batch(), small.partitioner(fsdp=2)
    program = small.program(model, placed, shapes, trainable=experiment.train.trainable)
    params, references = initialize.initial_params(
        program,
        jax.random.key(5),
        sources=experiment.sources,
        model_dir=experiment.model_dir,
        say=lambda line: None,
    )
    start = bundle_files.read(experiment.bundle)
    return warm_start.warm_start(params, references, start, program, experiment.model, experiment.model_dir)


def test_a_run_starts_where_the_bundle_is(root, bundle):
    params, record = start(root)
    assert_same(params, open_params(bundle))
    opened = bundle_files.read(str(bundle))
    assert (record.path, record.step, record.sha256) == ("../bundle", 20, opened.sha256)
    assert (record.frozen, record.initial) == (0, 5)


def test_more_can_be_trained_than_the_bundle_trained(root, bundle):
    params, record = start(root, train=TrainConfig(trainable=("adapter/.*",)))
    lm = trees.flatten(params["adapter"]["lm"])
    assert {x.dtype for x in lm.values()} == {np.dtype(np.float32)}
    arrays = bundle_files.read(str(bundle)).arrays()
    for path, x in lm.items():
        np.testing.assert_array_equal(x, arrays[f"adapter/lm/{path}"])
    assert record.initial == len(arrays)


def test_a_bundle_of_another_model_does_not_start_a_run(root, bundle):
    adapter = dataclasses.replace(CONFIG.adapter, lm=dataclasses.replace(CONFIG.adapter.lm, causal=False))
    with pytest.raises(UserError, match="another adapter than this run: lm.causal is True there and False here"):
        start(root, model=dataclasses.replace(CONFIG, adapter=adapter))
    saved.save_params(str(root / "other"), {"encoder": weights(9)["encoder"]})
    others = (dataclasses.replace(sources(root)[0], path=str(root / "other")), *sources(root)[1:])
    sha256 = bundle_files.read(str(bundle)).backbones[0].sha256
    with pytest.raises(UserError, match=f"trained with the encoder whose sha256 is {sha256}; .*../other gives"):
        start(root, sources=others)
    saved.save_params(str(root / "stage9"), {"decoder": weights(8)["adapter"]["lm"]})
    others = (*sources(root), Source(str(root / "stage9"), LM_RULES))
    with pytest.raises(UserError, match="other values for adapter/lm/.* which freezes it"):
        start(root, sources=others)


# Without the machine of the training


def test_attention_runs_on_another_kind_of_machine(monkeypatch):
    config = models.vlm("paper", decoder=models.decoder(attention_impl="cudnn"))
    tiny = dataclasses.replace(config.adapter.lm, attention_impl="cudnn")
    front = dataclasses.replace(config.adapter.front, attention_impl="splash")
    config = dataclasses.replace(config, adapter=dataclasses.replace(config.adapter, lm=tiny, front=front))
    assert runnable(config) == models.vlm("paper")
    perceiver = models.vlm("perceiver")
    splash = dataclasses.replace(perceiver, adapter=dataclasses.replace(perceiver.adapter, attention_impl="splash"))
    assert runnable(splash) == perceiver
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    kept = runnable(config)
    assert (kept.decoder.attention_impl, kept.adapter.front.attention_impl) == ("cudnn", "xla")
