"""Training from a feature cache: as without it, without the encoder; and what is refused."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.models import small
from tests.saved import load_params, save_params
from tests.training import small as training
from vadapter.base import trees
from vadapter.base.batch import Features
from vadapter.base.errors import UserError
from vadapter.data import tasks
from vadapter.data.order.config import LoaderConfig, PackingConfig
from vadapter.data.reading import features as stores
from vadapter.data.reading.records import RecordSource
from vadapter.models.vlm import VLM, VLMConfig
from vadapter.runs import feature_cache, train
from vadapter.runs.experiment import Evaluation, Experiment, Parts
from vadapter.training import loop
from vadapter.training.optimizers import OptimizerConfig
from vadapter.training.sources import Source

LENGTHS = {"inputs": 16, "targets": 24}
RECORDS, ROWS = 20, 8
LM = dataclasses.replace(small.TINY, vocab_size=400)
WORDS = dataclasses.replace(small.ADAPTERS["queries"], lm=LM, num_words=3)
MLP = small.mlp()


def vlm(adapter):
    return VLMConfig(small.decoder(vocab_size=512), small.vit(), adapter)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Pictures with captions, one of them unreadable, and random weights of an encoder, a decoder and a tiny LM."""
    root = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(0)
    lines = []
    for i in range(RECORDS):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(root / f"{i}.png")
        lines.append({"image": f"{i}.png", "caption": f"a red ring and {i} dots"})
    (root / "3.png").write_bytes(b"no picture")
    (root / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    tasks.jsonl_task("cached_pairs", str(root / "pairs.jsonl"), str(root / "pairs.jsonl"), vocabulary="scenes")
    params = trees.flatten(training.params(VLM(vlm(WORDS)), example=small.batch(vlm(WORDS), rows=1)))
    for part in ("encoder", "decoder", "adapter"):
        save_params(str(root / part), trees.unflatten({p: x for p, x in params.items() if p.startswith(part)}))
    return root


def experiment(world, folder, adapter=MLP, cache=None, **changes):
    sources = [Source(str(world / part), ((f"({part}/.*)", r"\1"),)) for part in ("encoder", "decoder")]
    if adapter is WORDS:
        sources.append(Source(str(world / "adapter"), (("(adapter/(?:lm|front)/.*)", r"\1"),)))
    data = LoaderConfig("cached_pairs", batch_size=ROWS, lengths=LENGTHS, max_bad_share=0.2)
    config = loop.TrainConfig(
        steps=3,
        trainable=("adapter/queries", "adapter/projection/.*") if adapter is WORDS else ("adapter/.*",),
        frozen_dtype="float32",
        optimizer=OptimizerConfig(warmup_steps=0, learning_rate=1e-2),
        log_every=1,
        tensorboard=False,
    )
    evaluations = (Evaluation(dataclasses.replace(data, split="validation")),)
    made = Experiment(vlm(adapter), str(folder), data, config, sources=tuple(sources), evaluations=evaluations)
    return dataclasses.replace(made, feature_cache=cache and str(cache), **changes)


@pytest.fixture(scope="module")
def cached(world, tmp_path_factory):
    """A whole cache, in shards of seven records."""
    folder = tmp_path_factory.mktemp("cache") / "features"
    size = 7 * stores.Layout(small.vit().num_patches, small.vit().width, small.vit().dtype).record(1).itemsize
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(stores, "_SHARD_BYTES", size)
        store = feature_cache.write(experiment(world, "unused"), str(folder))
    assert not store.missing() and len(store.places()) == 3
    return folder


def losses(folder):
    rows = [json.loads(line) for line in (Path(folder) / "curve.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if row["split"] == "train"]


def first_batch(made):
    parts = Parts(made)
    batches = parts.loader.batches(0)
    try:
        return next(batches)
    finally:
        batches.close()


def test_a_run_with_a_cache_is_that_without_and_does_not_open_pictures(world, cached, tmp_path, monkeypatch):
    train.run(experiment(world, tmp_path / "plain", evaluations=()))
    monkeypatch.setattr(RecordSource, "read_media", lambda *_: pytest.fail("a picture was opened"))
    train.run(experiment(world, tmp_path / "cached", cache=cached, evaluations=()))
    plain, found = losses(tmp_path / "plain"), losses(tmp_path / "cached")
    assert len(plain) == 3
    np.testing.assert_allclose(found, plain, rtol=1e-5)
    ends = [load_params(str(tmp_path / name)) for name in ("plain", "cached")]
    for path, values in ends[0].items():
        np.testing.assert_allclose(ends[1][path], values, rtol=1e-3, atol=1e-4, err_msg=path)


def test_rows_are_in_the_same_order_and_bad_pictures_have_no_weight(world, cached):
    plain = first_batch(experiment(world, "unused"))
    found = first_batch(experiment(world, "unused", cache=cached))
    assert isinstance(found.media, Features) and found.media.shape[:3] == plain.media.shape[:3]
    for name in ("tokens", "target_ids", "target_weights"):
        np.testing.assert_array_equal(getattr(found, name), getattr(plain, name))


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.01), ("int8", 0.02)])
def test_smaller_tokens_are_near(world, cached, tmp_path, dtype, tolerance):
    store = feature_cache.write(experiment(world, "unused"), str(tmp_path / dtype), dtype=dtype)
    assert store.nbytes() < 0.6 * sum(file.stat().st_size for file in cached.rglob("*.bin"))
    exact = first_batch(experiment(world, "unused", cache=cached)).media.tokens
    found = first_batch(experiment(world, "unused", cache=tmp_path / dtype)).media
    values = found.tokens.astype(np.float32) * (1 if found.scale is None else found.scale)
    assert np.abs(values - exact).max() < tolerance * np.abs(exact).max()
    Parts(experiment(world, "unused", cache=tmp_path / dtype)).program.lower()  # the step takes it


def test_words_are_those_that_the_model_writes(world, tmp_path):
    made = experiment(world, tmp_path / "run", WORDS)
    feature_cache.write(made, str(tmp_path / "cache"), words=True)
    parts = Parts(made)
    params, _ = train.fresh(made, parts)
    plain, cached = (first_batch(experiment(world, "unused", WORDS, cache)) for cache in (None, tmp_path / "cache"))
    losses = [float(parts.loss_sums(params, parts.partitioner.put_batch(batch)).loss_sum) for batch in (plain, cached)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    other = cached.replace(media=cached.media.replace(words=(np.asarray(cached.media.words) + 1) % LM.vocab_size))
    changed = float(parts.loss_sums(params, parts.partitioner.put_batch(other)).loss_sum)
    assert abs(changed / losses[0] - 1) > 1e-4  # they are read


def test_packed_rows_take_features(world, cached):
    packed = dataclasses.replace(experiment(world, "unused").data, packing=PackingConfig(samples=2, window=4))
    plain = first_batch(experiment(world, "unused", data=packed))
    found = first_batch(experiment(world, "unused", cache=cached, data=packed))
    np.testing.assert_array_equal(found.tokens, plain.tokens)
    assert found.media.shape[:2] == plain.media.shape[:2]


def test_a_job_goes_on_and_machines_share_it(world, cached, tmp_path, monkeypatch):
    folder = tmp_path / "shared"
    size = 7 * stores.Layout(small.vit().num_patches, small.vit().width, small.vit().dtype).record(1).itemsize
    monkeypatch.setattr(stores, "_SHARD_BYTES", size)
    made = experiment(world, "unused")
    assert len(feature_cache.write(made, str(folder), part=(2, 2)).missing()) == 2
    with pytest.raises(UserError, match="2 of 3 files are missing"):
        Parts(experiment(world, "unused", cache=folder)).loader  # noqa: B018
    told = []
    feature_cache.write(made, str(folder), progress=lambda *now: told.append(now))
    assert told[-1] == ("records", 13, 13)  # seven were there
    for file in cached.rglob("*.bin"):
        assert file.read_bytes() == (folder / file.relative_to(cached)).read_bytes()


def test_stale_caches_are_refused(world, cached, tmp_path):
    made = experiment(world, "unused", cache=cached)
    other = trees.flatten(load_params(str(world / "encoder")))
    save_params(str(tmp_path / "other"), trees.unflatten({p: np.asarray(x) * 2 for p, x in other.items()}))
    weights = (Source(str(tmp_path / "other"), (("(encoder/.*)", r"\1"),)), *made.sources[1:])
    other_model = dataclasses.replace(vlm(MLP), encoder=small.vit(mean=(0.4, 0.4, 0.4)))
    for change, what in (
        ({"sources": weights}, "encoder.sha256"),
        ({"model": other_model}, "encoder.settings.mean"),
        ({"train": dataclasses.replace(made.train, frozen_dtype="bfloat16")}, "encoder.frozen_dtype"),
        ({"data": dataclasses.replace(made.data, split="validation")}, "split"),
    ):
        with pytest.raises(UserError, match=f"stale: its {what} is"):
            Parts(dataclasses.replace(made, **change)).loader  # noqa: B018
    with pytest.raises(UserError, match="holds the features of something else"):
        feature_cache.write(dataclasses.replace(made, **{"sources": weights}), str(cached))


@pytest.mark.parametrize(
    ("trainable", "words", "what"),
    [
        ((".*",), False, "trains the vision encoder"),
        (("adapter/.*",), True, "trains the tiny LM"),
    ],
)
def test_what_changes_at_every_step_is_not_kept(world, tmp_path, trainable, words, what):
    made = experiment(world, "unused", WORDS)
    made = dataclasses.replace(made, train=dataclasses.replace(made.train, trainable=trainable))
    with pytest.raises(UserError, match=what):
        feature_cache.write(made, str(tmp_path / "cache"), words=words)
    assert not (tmp_path / "cache").exists()


def test_damaged_caches_are_refused(world, cached, tmp_path):
    def refused(change, match):
        folder = tmp_path / match
        shutil.copytree(cached, folder)
        change(folder)
        with pytest.raises(UserError, match=match):
            first_batch(experiment(world, "unused", cache=folder))

    def damage(folder):
        for file in folder.rglob("*.bin"):
            content = bytearray(file.read_bytes())
            for place in range(40, len(content), 64):
                content[place] ^= 1
            file.write_bytes(content)

    refused(damage, "has changed since it was written")
    refused(lambda folder: (next(folder.rglob("*.bin"))).write_bytes(b""), "missing or cut")
    refused(lambda folder: (folder / "features.json").write_text("{"), "is no JSON")
    refused(lambda folder: (folder / "features.json").write_text("[]"), "JSON list")
    refused(lambda folder: (folder / "features.json").unlink(), "has no features.json")
    refused(lambda folder: (folder / "features.json").write_text('{"format": 1, "layout": 3}'), "not as vadapter cache")

    def without_tasks(folder):
        content = json.loads((folder / "features.json").read_text())
        (folder / "features.json").write_text(json.dumps(content | {"parts": {}}))

    refused(without_tasks, "the sizes that its own facts ask for")


def test_a_step_has_no_encoder(world, cached):
    plain, made = Parts(experiment(world, "unused")), Parts(experiment(world, "unused", cache=cached))
    without, found = (parts.flops()(first_batch(parts.experiment)) for parts in (plain, made))
    assert "encoder" in without and "encoder" not in found and without["decoder"] == found["decoder"]
    lowered: list[Any] = [parts.program.lower().cost_analysis() for parts in (made, plain)]
    assert lowered[0]["flops"] < lowered[1]["flops"]
