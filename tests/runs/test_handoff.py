"""What an adapter starts from in stage 2: maps, prefix and queries that fit the language models on both sides."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

import vadapter
from tests.data.tokenizer_files import write_tokenizer
from tests.models import small
from tests.runs import stage1
from tests.saved import load_params
from vadapter.base import trees
from vadapter.base.errors import UserError
from vadapter.data.rows.vocabulary import load_vocabulary
from vadapter.models.vlm import VLMConfig
from vadapter.runs import text_pairs, tiny_lm
from vadapter.runs.handoff import Handoff
from vadapter.runs.ridge import RidgeFit
from vadapter.runs.tiny_lm import prompt_length

WORDS = ("red", "blue", "green", "ring", "square", "dot", "small", "big", "left", "right", "top", "yellow")
LENGTHS = {"inputs": 24, "targets": 32}
TINY = dataclasses.replace(small.TINY, vocab_size=400)
QUERIES = dataclasses.replace(small.ADAPTERS["queries"], lm=TINY)
PAPER = dataclasses.replace(small.ADAPTERS["paper"], lm=TINY)


def vlm(adapter, decoder=None):
    return VLMConfig(decoder or small.decoder(vocab_size=512), small.vit(), adapter)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Pictures with texts, random backbones with tokenisers of two kinds, and a stage 1 of two steps."""
    root = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(0)
    lines = []
    for i in range(64):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(root / f"{i}.png")
        lines.append({"image": f"{i}.png", "caption": " ".join(rng.choice(WORDS, 8))})
    (root / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    stage1.write(root, vlm(small.ADAPTERS["mlp"]), vlm(small.mlp(depth=1), TINY), "pairs.jsonl", LENGTHS)
    return root


def stage2(world, name, adapter, **changes):
    """A stage 2 of no step: its parameters are those that it starts from. Returns them, by path, and the folder."""
    arguments = dict(
        weights={"encoder": world / "encoder", "decoder": world / "decoder"},
        stage1=world / "stage1" if hasattr(adapter, "stage1_rules") else None,
        vocabulary="scenes",
        steps=1,
        batch_size=8,
        lengths=LENGTHS,
        optimizer=vadapter.OptimizerConfig(learning_rate=1e-12, warmup_steps=0),
    )
    vadapter.train(vlm(adapter), world / "pairs.jsonl", world / name, **{**arguments, **changes})
    return load_params(str(world / name)), world / name


def prefixed(world, adapter=QUERIES):
    return dataclasses.replace(adapter, num_prefix=prompt_length(str(world / "stage1")))


def test_pieces_say_where_they_begin():
    words = load_vocabulary("scenes")
    text = "a big red square at the top left"
    ids, begins = text_pairs.pieces(text, words)
    assert len(ids) == len(begins) and begins[0] == 0
    for i, at in enumerate(begins[1:], 1):
        assert words.decode(ids[:i]).strip() == text[:at].strip()


@pytest.mark.parametrize("family", ["gemma", "llama2", "qwen"])
def test_pairs_are_of_the_same_place(tmp_path, family):
    reader, speaker = load_vocabulary(str(write_tokenizer(tmp_path, family))), load_vocabulary("scenes")
    texts = ["a big red square at the top left", "one  two\nthree", "ein großes rotes Quadrat"]
    pairs = text_pairs.pair(texts, reader, speaker, wanted=1000)
    assert len(pairs.slot) > 10 and (pairs.slot > 0).all()
    for text, slot, piece in zip(pairs.text, pairs.slot, pairs.piece, strict=True):
        read = reader.decode(pairs.tokens[text, 1 : slot + 1]).strip()
        rest = " ".join(texts[text].split()).removeprefix(read).strip()
        said = speaker.decode([piece]).strip()
        assert said == "\ufffd" or rest.startswith(said), (read, rest)  # the first byte of a letter


def test_no_more_positions_than_wanted(tmp_path):
    words = load_vocabulary("scenes")
    pairs = text_pairs.pair(["a red ring", "a blue ring"] * 10, words, words, wanted=3)
    assert len(pairs.slot) == 3


def test_a_linear_relation_is_found():
    rng = np.random.default_rng(0)
    states, kernel, bias = rng.normal(size=(500, 6)) + 3, rng.normal(size=(6, 4)), rng.normal(size=4)
    fit = RidgeFit(6, 4, penalty=1e-6)
    for part in np.split(states, 5):
        fit.add(part, part @ kernel + bias, np.arange(100) % 10 == 0)
    found, offset, facts = fit.solve()
    np.testing.assert_allclose(found, kernel, atol=1e-4)
    np.testing.assert_allclose(offset, bias, atol=1e-4)
    assert facts["r2"] > 0.999 and facts["positions"] == 450
    assert 0.85 < facts["constant_share"] < 0.95  # 9 of 10 parts of the energy are in the mean


@pytest.mark.parametrize("adapter", [QUERIES, PAPER], ids=["queries", "paper"])
def test_the_map_goes_from_what_was_read_to_what_comes_next(world, adapter):
    name = f"regression_{adapter.readout}"
    params, folder = stage2(world, name, prefixed(world, adapter), handoff=Handoff())
    facts = json.loads((folder / "handoff.json").read_text())
    assert facts["output"] == "regression" and facts["positions"] > 2 * TINY.width
    # Computed anew from the stored models, for one text.
    own = trees.flatten(load_params(str(world / "stage1")))
    words, large = load_vocabulary(str(world / "tiny")), load_vocabulary("scenes")
    decoder = TINY.make()
    pairs = text_pairs.pair(["red blue green ring square dot small big"], words, large, wanted=100)
    lm = trees.unflatten({p.removeprefix("decoder/"): x for p, x in own.items() if p.startswith("decoder/")})

    def read(module, tokens):
        slots = np.arange(tokens.shape[1])[None]
        return module(module.embed(tokens), np.ones_like(tokens), slots)[0]

    hidden = np.asarray(decoder.apply({"params": lm}, pairs.tokens, method=read))[0][pairs.slot]
    table = load_params(str(world / "decoder"))["decoder/embedder/embedding"][pairs.piece]
    said = hidden @ params["adapter/projection/kernel"] + params["adapter/projection/bias"]
    # A map of random models explains little, but more than the mean does, and it has the size of embeddings.
    assert np.square(said - table).sum() < np.square(table).sum()
    assert 0.2 < np.sqrt(np.square(said).mean() / np.square(table).mean()) < 2


def test_prefix_and_queries_start_at_the_prompt_of_stage_1(world):
    adapter = dataclasses.replace(prefixed(world), query_init="normal")
    params, folder = stage2(world, "prompt", adapter, handoff=Handoff(queries="answer"))
    words = load_vocabulary(str(world / "tiny"))
    table = load_params(str(world / "stage1"))["decoder/embedder/embedding"]
    before = [words.bos_id, *words.head("Describe the following:")]
    np.testing.assert_allclose(params["adapter/prefix"], table[before], rtol=1e-5, atol=1e-6)
    last = table[words.more(" :")[-1]]
    queries = params["adapter/queries"]
    assert np.abs(queries - last).max() < 0.5 * np.abs(last).max()
    assert np.abs(queries[0] - queries[1]).max() > 1e-3
    assert len(json.loads((folder / "handoff.json").read_text())["prefix"]) == len(before)


def test_an_lm_that_writes_stands_where_stage_1_let_it_speak(world):
    source = str(world / "stage1")
    adapter = dataclasses.replace(prefixed(world), num_words=2, num_suffix=tiny_lm.prompt_rest(source))
    trainable = [r"adapter/(?!lm/embedder/).*"]
    params, folder = stage2(world, "words", adapter, handoff=Handoff(), trainable=trainable)
    table = load_params(source)["decoder/embedder/embedding"]
    after = load_vocabulary(str(world / "tiny")).tail(" :")
    np.testing.assert_allclose(params["adapter/suffix"], table[after], rtol=1e-5, atol=1e-6)
    assert "adapter/lm/embedder/embedding" not in params
    assert len(json.loads((folder / "handoff.json").read_text())["suffix"]) == len(after)
    model = vadapter.load(str(folder))  # the frozen table is read again from stage 1
    assert isinstance(model.caption([np.zeros((16, 16, 3), np.uint8)])[0], str)


def test_the_published_tiny_lm_has_the_same_start_without_stage_1(world):
    adapter = dataclasses.replace(QUERIES, num_prefix=prompt_length(str(world / "tiny")))
    params, _ = stage2(world, "published", adapter, handoff=Handoff(source=str(world / "tiny")))
    words = load_vocabulary(str(world / "tiny"))
    table = load_params(str(world / "tiny"))["decoder/embedder/embedding"]
    np.testing.assert_allclose(params["adapter/prefix"][0], table[words.bos_id], rtol=1e-5, atol=1e-6)


def test_a_run_on_text_alone_is_a_language_model(world, tmp_path):
    # Its description has a vocabulary and no prompts.
    run = tmp_path / "text"
    shutil.copytree(world / "stage1", run)
    said = json.loads((run / "model.json").read_text())
    said["text"]["vocabulary"], said["text"]["prompts"] = str(world / "tiny"), {}
    (run / "model.json").write_text(json.dumps(said))
    tiny = tiny_lm.find(str(run))
    assert tiny.before == tiny_lm.find(str(world / "tiny")).before and tiny.before


def test_one_checkpoint_of_stage_1_can_be_named(world):
    tiny = tiny_lm.find(str(world / "stage1" / "checkpoint_2"))
    assert (tiny.folder, tiny.step) == (str(world / "stage1"), 2)
    assert tiny.before == tiny_lm.find(str(world / "stage1")).before
    table = load_params(str(world / "stage1"))["decoder/embedder/embedding"]
    np.testing.assert_array_equal(tiny_lm.read_table(tiny), table)
    with pytest.raises(UserError, match="checkpoint_1 is not there"):
        tiny_lm.find(str(world / "stage1" / "checkpoint_1"))


@pytest.mark.parametrize("name", ["mlp", "perceiver", "pooler"])
def test_soft_tokens_start_as_large_as_embeddings(world, name):
    adapter = small.ADAPTERS[name]
    params, folder = stage2(world, f"scale_{name}", adapter, handoff=Handoff(output="scale"))
    plain, _ = stage2(world, f"plain_{name}", adapter)
    factor = json.loads((folder / "handoff.json").read_text())["scale"]
    kernel = f"adapter/{adapter.output_map}/kernel"
    np.testing.assert_allclose(params[kernel], factor * plain[kernel], rtol=1e-4, atol=1e-6)
    model = vadapter.load(folder)
    media = np.stack([np.asarray(Image.open(world / f"{i}.png")) for i in range(64)])[:, None, None]
    soft = np.asarray(model.model.apply({"params": model.params}, media, method="soft_tokens"), np.float32)
    table = load_params(str(world / "decoder"))["decoder/embedder/embedding"]
    assert 0.7 < np.sqrt(np.square(soft).mean() / np.square(table).mean()) < 1.4


def test_it_is_the_same_every_time_and_computed_once(world, capsys):
    first, folder = stage2(world, "first", prefixed(world), handoff=Handoff(penalty=3.0))
    assert "fitting" in capsys.readouterr().out
    again, other = stage2(world, "again", prefixed(world), handoff=Handoff(penalty=3.0))
    assert "fitting" not in capsys.readouterr().out
    for path, x in first.items():
        np.testing.assert_array_equal(x, again[path], err_msg=path)
    for cached in (world / "stage1" / "handoff").iterdir():  # cut off
        cached.write_bytes(cached.read_bytes()[:100])
    anew, _ = stage2(world, "anew", prefixed(world), handoff=Handoff(penalty=3.0))
    np.testing.assert_array_equal(anew["adapter/projection/kernel"], first["adapter/projection/kernel"])


@pytest.mark.slow
def test_it_is_the_same_on_a_mesh(world):
    one, _ = stage2(world, "one_way", prefixed(world), handoff=Handoff(penalty=5.0), mesh=vadapter.MeshConfig(data=-1))
    for cached in (world / "stage1" / "handoff").iterdir():
        cached.unlink()
    mesh = vadapter.MeshConfig(data=2, fsdp=2, tensor=len(jax.devices()) // 4)
    many, _ = stage2(world, "many_ways", prefixed(world), handoff=Handoff(penalty=5.0), mesh=mesh)
    for path in ("adapter/projection/kernel", "adapter/prefix"):
        np.testing.assert_allclose(many[path], one[path], atol=2e-4, err_msg=path)


def test_a_resumed_run_does_not_start_again(world, capsys):
    arguments = dict(handoff=Handoff(penalty=7.0))
    stage2(world, "resumed", prefixed(world), **arguments)
    capsys.readouterr()
    params, _ = stage2(world, "resumed", prefixed(world), steps=2, **arguments)
    assert "Hand-off" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "adapter, start, message",
    [
        (small.ADAPTERS["perceiver"], Handoff(output="regression"), "Choose 'scale'"),
        (dataclasses.replace(QUERIES, num_prefix=2), Handoff(), "Set num_prefix="),
        (dataclasses.replace(QUERIES, num_suffix=9), Handoff(), "Set num_suffix="),
        (PAPER, Handoff(queries="answer"), "appended queries"),
        (QUERIES, Handoff(source="nowhere"), "nowhere is not there"),
        (QUERIES, Handoff(output="regression", positions=20), "Handoff.texts"),
        (QUERIES, Handoff(positions=100_000, texts="no.txt"), "no.txt cannot be read"),
    ],
)
def test_what_cannot_be_is_refused_before_training(world, adapter, start, message):
    with pytest.raises(UserError, match=message):
        stage2(world, "refused", adapter, handoff=start)
    assert not list((world / "refused").glob("checkpoint*"))


def test_with_too_little_text_the_last_map_is_random_and_of_the_right_scale(world, capsys):
    _, folder = stage2(world, "little_text", QUERIES, handoff=Handoff(positions=20))
    facts = json.loads((folder / "handoff.json").read_text())
    assert facts["output"] == "scale" and facts["scale"] > 0
    assert "Handoff.texts" in capsys.readouterr().out


def test_what_a_run_would_not_keep_is_refused(world):
    with pytest.raises(UserError, match="adapter/projection/kernel its first value, and the run freezes it"):
        stage2(world, "refused", QUERIES, handoff=Handoff(), trainable=("adapter/queries",))


def test_settings_that_are_not_known_are_named():
    with pytest.raises(UserError, match="Handoff.output"):
        Handoff(output="ridge")
    with pytest.raises(UserError, match="penalty"):
        Handoff(penalty=0)
