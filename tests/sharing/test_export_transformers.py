"""Folders for transformers, without transformers: what is in them, and what is refused."""

import dataclasses
import io
import json

import numpy as np
import pytest
import safetensors.numpy
import sentencepiece
import tokenizers

import vadapter
from tests.models import own_parts, small
from tests.sharing import bundles
from vadapter.base.errors import UserError
from vadapter.cli.main import main
from vadapter.runs import chat
from vadapter.runs.export_transformers import export_transformers
from vadapter.sharing import chat_template, transformers_folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    prompts = {"caption": "What is seen here: <media> ?", "image_question": "<media> <question>?"}
    config = bundles.model(small.perceiver(), num_frames=2)
    return bundles.write(tmp_path_factory.mktemp("made"), config, prompts=prompts, resize="crop")


def read(folder, name):
    return json.loads((folder / name).read_text())


def test_the_folder_has_all_that_transformers_needs(bundle, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["export", "--bundle", str(bundle), "--format=transformers", "--out", str(out)]) == 0
    assert "trust_remote_code" in capsys.readouterr().out
    names = {file.name for file in out.iterdir()}
    assert names >= {"config.json", "model.safetensors", "modeling_vadapter.py", "processing_vadapter.py"}
    assert names >= {"tokenizer.json", "chat_template.jinja", "preprocessor_config.json", "processor_config.json"}
    assert read(out, "preprocessor_config.json")["resize"] == "crop"
    assert read(out, "config.json")["dtype"] == "float32"
    tensors = safetensors.numpy.load_file(out / "model.safetensors")
    ours = safetensors.numpy.load_file(bundle / "adapter.safetensors")
    assert sum(x.size for x in tensors.values()) == sum(x.size for x in ours.values())
    kernel = ours["decoder/layers/mlp/up/kernel"][1]
    np.testing.assert_array_equal(tensors["decoder.layers.1.mlp.up.weight"], kernel.T)
    assert "What is seen here:" in (out / "chat_template.jinja").read_text()


@pytest.mark.parametrize("tokenizer, prompt_format", [("qwen", "chat"), ("llama2", "llama2"), ("gemma", "plain")])
def test_a_conversation_is_written_as_chat_writes_it(tokenizer, prompt_format, tmp_path):
    """A whole conversation, and what asks a model of conversations about one picture; a caption has its own prompt."""
    seen = {"max_tiles": 4, "training": {"preprocessors": {"chat": [{"name": "Chat"}]}}}
    prompts = {"caption": "say <media> :"}
    made = bundles.write(tmp_path, bundles.model(small.mlp()), tokenizer, prompt_format, prompts=prompts, **seen)
    export_transformers(made, tmp_path / "out")
    ours, template = vadapter.load(made), (tmp_path / "out" / "chat_template.jinja").read_text()
    words = tokenizers.Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    mark = read(tmp_path / "out", "config.json")["image_token_index"]

    def theirs(turns):
        text = chat_template.render(template, turns)
        whole = chat_template.WHOLE_IMAGE in text
        ids = words.encode(text.replace(chat_template.WHOLE_IMAGE, chat_template.IMAGE), add_special_tokens=False).ids
        return ids, whole

    def of(batch):
        """Ids of a row with one mark for each picture, which is square here: five media."""
        index = batch.media_index[0][batch.segment_ids[0] > 0]
        each = ours.sizes.visual_tokens(1) * (1 if batch.media.shape[1] == 1 else 5)
        starts = np.diff(np.where(index >= 0, index // each, -1), prepend=-1) != 0
        kept = (index < 0) | starts
        return np.where(index >= 0, mark, batch.tokens[0][: len(index)])[kept].tolist()

    first, second = (np.full((8, 8, 3), value, np.uint8) for value in (9, 200))
    one = [{"type": "image", "image": first}, {"type": "text", "text": "what colour ?"}]
    turns = [
        {"role": "system", "content": "one two three"},
        {"role": "user", "content": one},
        {"role": "assistant", "content": "yellow"},
        {"role": "user", "content": [{"type": "text", "text": "and "}, {"type": "image", "image": second}]},
    ]
    assert theirs(turns) == (of(ours.conversation(chat.parse(turns))), False)
    asked = [{"role": "user", "content": one}]
    assert theirs(asked) == (of(ours.request(first, "what colour ?")), False)
    assert theirs([{"role": "user", "content": one[:1]}]) == (of(ours.request(first)), True)
    settings = [read(tmp_path / "out", f"{name}_config.json") for name in ("preprocessor", "processor")]
    assert settings[0]["max_tiles"] == 4 and settings[1]["stills_are_clips"] is False


def test_large_weights_are_split_with_an_index(tmp_path):
    tensors = [(f"x{i}", np.full((10,), i, np.float32)) for i in range(5)]
    assert transformers_folder.write_weights(tmp_path, tensors, shard=80) == 50
    where = read(tmp_path, "model.safetensors.index.json")["weight_map"]
    assert where == {f"x{i}": f"model-0000{i // 2 + 1}-of-00003.safetensors" for i in range(5)}
    for name, file in where.items():
        assert name in safetensors.numpy.load_file(tmp_path / file)


def test_an_export_says_what_it_cannot_write(bundle, tmp_path, capsys):
    def fails(*arguments):
        assert main(["export", *arguments]) == 2
        return capsys.readouterr().err

    out = str(tmp_path / "out")
    assert "is there already" in fails("--bundle", str(bundle), "--format=transformers", "--out", str(bundle))
    assert "--format=transformers" in fails("--bundle", str(bundle), "--out", out)
    assert "always merged" in fails("--bundle", str(bundle), "--format=transformers", "--merge", "--out", out)
    assert "one checkpoint" in fails("--bundle", str(bundle), "--format=transformers", "--step=1", "--out", out)
    assert "goes with --format" in fails("--checkpoint", out, "--encoder=x", "--out", out)
    assert "bundle was expected" in fails("--bundle", str(tmp_path), "--format=transformers", "--out", out)
    assert not list(tmp_path.iterdir())


def test_parts_of_your_own_are_refused(tmp_path):
    config = bundles.model(own_parts.AveragePoolConfig())
    with pytest.raises(UserError, match="AveragePoolConfig.*Share a bundle"):
        export_transformers(bundles.write(tmp_path, config), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("part", ["decoder", "adapter"])
def test_relative_position_biases_are_refused(tmp_path, part):
    config = bundles.model(small.ADAPTERS["queries"])
    if part == "decoder":
        config = dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, relative_buckets=8))
    else:
        lm = dataclasses.replace(config.adapter.lm, relative_buckets=8)
        config = dataclasses.replace(config, adapter=dataclasses.replace(config.adapter, lm=lm))
    with pytest.raises(UserError, match="relative position biases"):
        export_transformers(bundles.write(tmp_path, config), tmp_path / "out")


LLAMA = {"norm": "rms", "activation": "silu"}


@pytest.mark.parametrize(
    "adapter, decoder, encoder, more, says",
    [
        (small.perceiver(), LLAMA, {}, {}, "the adapter is a Perceiver"),
        (small.mlp(pixel_shuffle=2), LLAMA, {}, {}, "pixel_shuffle"),
        (small.mlp(depth=2, hidden_dim=64), LLAMA, {}, {}, "deeper than 2 or wider"),
        (small.mlp(), LLAMA, {"class_token": True, "num_registers": 2}, {}, "num_registers 2"),
        (small.mlp(), LLAMA, {"pre_norm": True}, {}, "like none of CLIP, SigLIP and ViT"),
        (small.mlp(), {"norm": "rms_plus_one", "post_norms": True}, {}, {}, "scale_embedding False"),
        (small.mlp(), {**LLAMA, "final_softcap": 3.0, "query_scale": 0.1}, {}, {}, "final_softcap 3.0; .*query_scale"),
        (small.mlp(), LLAMA, {}, {"num_frames": 2}, "reads videos"),
        (small.mlp(), LLAMA, {}, {"max_tiles": 4}, "pictures have up to 4 tiles"),
    ],
)
def test_what_llava_cannot_compute_is_refused_and_the_other_layout_named(
    adapter, decoder, encoder, more, says, tmp_path
):
    seen = {"max_tiles": more.pop("max_tiles")} if "max_tiles" in more else {}
    made = bundles.write(tmp_path, bundles.model(adapter, decoder, encoder, **more), **seen)
    with pytest.raises(UserError, match=f"{says}.*--format=transformers"):
        export_transformers(made, tmp_path / "out", layout="llava")
    assert not (tmp_path / "out").exists()


def test_llava_s_folder_has_no_code_and_never_says_a_mark(tmp_path, capsys):
    from vadapter.sharing.chat_template import IMAGE

    made, out = bundles.write(tmp_path, bundles.model(small.mlp(), LLAMA)), tmp_path / "out"
    assert main(["export", "--bundle", str(made), "--format=llava", "--out", str(out)]) == 0
    assert "LlavaForConditionalGeneration" in capsys.readouterr().out
    assert (
        not list(out.glob("*.py"))
        and 'LlavaForConditionalGeneration.from_pretrained("out")' in (out / "README.md").read_text()
    )
    config, tensors = read(out, "config.json"), safetensors.numpy.load_file(out / "model.safetensors")
    assert len(tensors["language_model.model.embed_tokens.weight"]) == config["text_config"]["vocab_size"]
    behind = range(bundles.ROWS, config["text_config"]["vocab_size"])
    assert read(out, "generation_config.json").get("suppress_tokens", []) == [*behind]
    words = {w["content"]: w["id"] for w in read(out, "tokenizer.json")["added_tokens"]}
    assert words[IMAGE] == config["image_token_index"] < config["text_config"]["vocab_size"]


def test_a_vocabulary_that_has_no_tokenizer_json_is_refused(tmp_path):
    words = io.BytesIO()
    texts = iter(
        ["a red ring", "what is this Describe the following : Answer question given images Given Question"] * 3
    )
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=texts, model_writer=words, model_type="word", vocab_size=16, minloglevel=2
    )
    made = bundles.write(tmp_path, bundles.model(small.mlp()), words=words.getvalue())
    with pytest.raises(UserError, match="words or characters"):
        export_transformers(made, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_frozen_int8_is_written_as_the_layers_see_it(tmp_path):
    config = bundles.model(small.mlp())
    made = bundles.write(tmp_path, config)
    record = json.loads((made / "bundle.json").read_text())
    record["frozen_dtype"] = "int8"
    record["adapter"]["frozen"] = [p for p in bundles.random_params(config) if not p.startswith("adapter/")]
    (made / "bundle.json").write_text(json.dumps(record))
    export_transformers(made, tmp_path / "out")
    tensors = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    kernel = tensors["decoder.layers.0.mlp.up.weight"]
    assert kernel.dtype == np.float32
    assert all(len(np.unique(row)) <= 255 for row in kernel)
    ours = bundles.random_params(config)["decoder/layers/mlp/up/kernel"][0].T
    assert 0 < np.abs(kernel - ours).max() < 0.02


def test_a_bfloat16_model_is_written_as_one(tmp_path):
    config = bundles.model(dataclasses.replace(small.mlp(), dtype="bfloat16"), {"dtype": "bfloat16"})
    export_transformers(bundles.write(tmp_path, config), tmp_path / "out")
    assert read(tmp_path / "out", "config.json")["dtype"] == "bfloat16"
