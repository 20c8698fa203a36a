"""A run whose tiny LM keeps its loss of stage 1, by a tokeniser of its own."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image

import vadapter
from tests.data.tokenizer_files import write_tokenizer
from tests.models import small
from tests.runs import stage1
from tests.saved import load_params
from vadapter.base.errors import UserError
from vadapter.data import seqio_tasks, tasks
from vadapter.data.order.config import LoaderConfig, PackingConfig
from vadapter.data.rows import preprocessors
from vadapter.data.rows.vocabulary import load_vocabulary
from vadapter.models.losses import ObjectiveConfig
from vadapter.models.vlm import VLMConfig
from vadapter.runs import train
from vadapter.runs.experiment import Evaluation, Experiment, Parts
from vadapter.training import loop
from vadapter.training.best import BestConfig
from vadapter.training.optimizers import OptimizerConfig
from vadapter.training.sources import Source

LENGTHS = {"inputs": 96, "targets": 40}
STEPS = 6
TINY = dataclasses.replace(small.TINY, vocab_size=400)
WORDS = dataclasses.replace(small.ADAPTERS["queries"], lm=TINY, num_words=2)
MODEL = VLMConfig(small.decoder(vocab_size=512), small.vit(), WORDS, num_frames=2, repeat_stills=False)
CAPTION, QUESTION = "a big red square", ("what colour is the ring ?", "yellow")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Pictures with captions and questions, chats, random backbones with two tokenisers, and a stage 1 of two steps."""
    root = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(0)
    lines, chats = [], []
    for i in range(16):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(root / f"{i}.png")
        lines.append({"image": f"{i}.png", "caption": CAPTION})
        lines.append({"image": f"{i}.png", "question": QUESTION[0], "answers": [QUESTION[1]]})
        said = [
            ("user", "<image>\nwhat ring ?"),
            ("assistant", "red"),
            ("user", "and the other <image>"),
            ("assistant", "blue"),
        ]
        turns = [{"role": role, "content": text} for role, text in said]
        chats.append({"messages": turns, "images": [f"{i}.png", f"{(i + 1) % 16}.png"]})
    captions = [line for line in lines if "caption" in line]
    for name, some in (("pairs", lines), ("captions", captions), ("chats", chats)):
        (root / f"{name}.jsonl").write_text("\n".join(map(json.dumps, some)))
    aligned = VLMConfig(TINY, small.vit(), WORDS.front, num_frames=2, repeat_stills=False)
    stage1.write(root, MODEL, aligned, "captions.jsonl", LENGTHS)
    pairs = str(root / "pairs.jsonl")
    tasks.jsonl_task("tiny_pairs", pairs, pairs, vocabulary="scenes")
    tasks.jsonl_task("tiny_other", pairs, pairs, vocabulary="scenes", caption_prompt="<media>Tell me")
    tasks.chat_task("tiny_chats", str(root / "chats.jsonl"), vocabulary="scenes", prompt_format="plain", holdout=0)
    return root


def experiment(world, folder, mixture="tiny_pairs", tiny_loss=1.0, **changes):
    sources = [Source(str(world / part), ((f"({part}/.*)", r"\1"),)) for part in ("encoder", "decoder")]
    sources.append(Source(str(world / "stage1"), WORDS.stage1_rules()))
    data = LoaderConfig(mixture, batch_size=8, lengths=LENGTHS, seed=3)
    config = loop.TrainConfig(
        steps=STEPS,
        trainable=("adapter/.*",),
        frozen_dtype="float32",
        optimizer=OptimizerConfig(warmup_steps=0, learning_rate=1e-2),
        log_every=1,
        eval_every=3,
        checkpoint_every=3,
        tensorboard=False,
        best=BestConfig("val/loss", "min"),
    )
    made = Experiment(
        MODEL,
        str(folder),
        data,
        config,
        ObjectiveConfig(tiny_loss=tiny_loss),
        tuple(sources),
        (Evaluation(dataclasses.replace(data, split="validation")),),
        tiny_lm=str(world / "stage1"),
    )
    return dataclasses.replace(made, **changes)


def first_batches(made, count=1, **settings):
    parts = Parts(dataclasses.replace(made, data=dataclasses.replace(made.data, **settings)))
    batches = parts.loader.batches(0)
    try:
        return [next(batches) for _ in range(count)]
    finally:
        batches.close()


def curve(folder, split):
    rows = [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]
    return [row for row in rows if row["split"] == split]


def test_rows_have_the_same_text_in_both_tokenisers(world):
    (batch,) = first_batches(experiment(world, "unused"))
    (plain,) = first_batches(experiment(world, "unused", tiny_loss=0.0))
    assert plain.tiny is None
    jax.tree.map(np.testing.assert_array_equal, batch.replace(tiny=None), plain)
    tiny, large, own = batch.tiny, load_vocabulary("scenes"), load_vocabulary(str(world / "tiny"))
    kinds = set()
    for row in range(8):
        said = [
            words.decode(text.target_ids[row][text.target_weights[row] > 0])
            for words, text in ((large, batch), (own, tiny))
        ]
        assert said[0].strip() == said[1].strip()
        kinds.add(said[0].strip())
        used = tiny.segment_ids[row] > 0
        slots = tiny.media_index[row][used]
        assert slots[slots >= 0].tolist() == list(range(4))  # the patches of a picture, as stage 1 saw it
        asked = own.decode(tiny.tokens[row][used & (tiny.media_index[row] < 0)][1:])
        if said[0].strip() == CAPTION:
            assert asked.startswith("Describe the following: :")
        else:
            assert QUESTION[0].rstrip(" ?") in asked
        # Each target follows the slot that predicts it.
        at, ids = tiny.target_positions[row], tiny.target_ids[row]
        weighted = np.flatnonzero(tiny.target_weights[row] > 0)[:-1]
        np.testing.assert_array_equal(tiny.tokens[row][at[weighted] + 1], ids[weighted])
    assert kinds == {CAPTION, QUESTION[1]}


def test_training_from_python_keeps_the_loss(world, tmp_path):
    vadapter.train(
        MODEL,
        world / "pairs.jsonl",
        tmp_path / "run",
        weights={part: world / part for part in ("encoder", "decoder")},
        vocabulary="scenes",
        stage1=world / "stage1",
        tiny_loss=1.0,
        validation=world / "pairs.jsonl",
        steps=4,
        batch_size=8,
        lengths=LENGTHS,
        optimizer=OptimizerConfig(warmup_steps=0, learning_rate=1e-2),
    )
    (measured,) = curve(tmp_path / "run", "val")
    assert 0 < measured["tiny_loss"] < 6


def test_conversations_with_two_pictures_are_written_too(world):
    (batch,) = first_batches(experiment(world, "unused", "tiny_chats"))
    own = load_vocabulary(str(world / "tiny"))
    tiny = batch.tiny
    assert batch.media.shape[1] == 2
    for row in range(8):
        slots = tiny.media_index[row]
        assert slots[slots >= 0].tolist() == list(range(8))
        ids = tiny.target_ids[row][tiny.target_weights[row] > 0]
        ends = np.flatnonzero(ids == own.end)
        assert [own.decode(part).strip() for part in np.split(ids, ends[:-1] + 1)] == ["red", "blue"]


def test_text_that_is_too_long_for_the_tiny_lm_alone_is_counted(world):
    made = experiment(world, "unused")
    lengths = {"inputs": 96, "targets": 6}
    large, own = load_vocabulary("scenes"), load_vocabulary(str(world / "tiny"))
    assert len(large.answer(CAPTION)) <= 6 < len(own.answer(CAPTION))
    with pytest.raises(UserError, match="Expected text within lengths"):
        first_batches(made, lengths=lengths, long_text="error")
    (batch,) = first_batches(made, lengths=lengths, long_text="drop")
    kept = batch.target_weights.sum(axis=1) > 0
    assert 0 < kept.sum() < 8
    assert all(large.decode(ids).strip() == QUESTION[1] for ids in batch.target_ids[kept])


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert train.run(experiment(world, folder)).step == STEPS
    return folder


def test_the_run_trains_and_shows_both_losses(world, trained, tmp_path):
    steps, ends = curve(trained, "train"), curve(trained, "val")
    assert steps[-1]["tiny_loss"] < steps[0]["tiny_loss"] - 0.5
    assert np.isfinite(steps[-1]["loss"]) and ends[-1]["tiny_loss"] > 0
    assert np.exp(ends[-1]["loss"]) == pytest.approx(ends[-1]["perplexity"])
    best = json.loads((trained / "best.json").read_text())
    assert best["metric"] == "val/loss"
    # Without it the first loss is the same: what is shown is the decoder's alone, on the same rows.
    train.run(experiment(world, tmp_path / "plain", tiny_loss=0.0))
    plain = curve(tmp_path / "plain", "train")
    assert plain[0]["loss"] == pytest.approx(steps[0]["loss"], rel=1e-5)
    assert "tiny_loss" not in plain[0] and "tiny_loss" not in curve(tmp_path / "plain", "val")[-1]
    # Its table of words learns from it alone.
    tables = [load_params(str(f))["adapter/lm/embedder/embedding"] for f in (trained, tmp_path / "plain")]
    start = load_params(str(world / "stage1"))["decoder/embedder/embedding"]
    moved = [np.abs(table - start).max(axis=1) > 1e-6 for table in tables]
    assert moved[0].sum() > moved[1].sum()


def test_a_run_that_is_stopped_goes_on_as_one_that_was_not(world, trained, tmp_path):
    made = experiment(world, tmp_path / "stopped")
    paused = dataclasses.replace(made, train=dataclasses.replace(made.train, pause_at=3))
    assert train.run(paused).step == 3
    other = dataclasses.replace(made, tiny_lm=str(write_tokenizer(tmp_path / "other", "llama2")))
    with pytest.raises(UserError, match="the tiny LM's tokeniser"):
        train.run(other)
    assert train.run(made).step == STEPS
    whole, gone_on = load_params(str(trained)), load_params(str(tmp_path / "stopped"))
    for path, values in whole.items():
        np.testing.assert_array_equal(gone_on[path], values, err_msg=path)


def test_the_trained_model_needs_nothing_of_it(world, trained, tmp_path):
    bundle = tmp_path / "bundle"
    vadapter.export(str(trained), str(bundle))
    recorded = json.loads((bundle / "bundle.json").read_text())
    assert "tiny_lm" not in json.dumps(recorded["model"])
    picture = [np.asarray(Image.open(world / "0.png"))]
    assert vadapter.load(str(bundle)).caption(picture) == vadapter.load(str(trained)).caption(picture)


REFUSED = {
    "packed rows": ({"packing": PackingConfig()}, {}),
    "num_words of 1 or more": ({}, {"model": dataclasses.replace(MODEL, adapter=small.ADAPTERS["queries"])}),
    "needs the tokeniser of stage 1": ({}, {"tiny_lm": None}),
    "Experiment.tiny_lm: nowhere is not there": ({}, {"tiny_lm": "nowhere"}),
    "Give the task stage 1's prompt": ({"mixture": "tiny_other"}, {}),
    "the table of the tiny LM in the adapter has 320 rows": (
        {},
        {
            "model": dataclasses.replace(
                MODEL, adapter=dataclasses.replace(WORDS, lm=dataclasses.replace(TINY, vocab_size=320))
            )
        },
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_is_refused_before_anything_is_read(world, message):
    data, changes = REFUSED[message]
    made = experiment(world, "unused")
    made = dataclasses.replace(made, data=dataclasses.replace(made.data, **data), **changes)
    with pytest.raises(UserError, match=message):
        Parts(made).loader  # noqa: B018


def test_preprocessors_of_others_are_refused(world):
    records = seqio_tasks.tasks_of("tiny_pairs")[0].records
    steps = [preprocessors.Caption(), lambda dataset: dataset]
    name = tasks.add_task("tiny_foreign", records, steps, vocabulary=load_vocabulary("scenes"))
    with pytest.raises(UserError, match="1 preprocessors of another kind"):
        first_batches(experiment(world, "unused", name))
