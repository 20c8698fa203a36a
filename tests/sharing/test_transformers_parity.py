"""Exported folders in transformers, live: logits to 1e-4, and greedy text token for token."""

import jax
import numpy as np
import pytest

import vadapter
from tests.models import small
from tests.sharing import bundles
from vadapter.models.adapters import LMAdapterConfig
from vadapter.models.lora import LoraConfig
from vadapter.models.positions import RopeScaling
from vadapter.models.words import WordQuantizationConfig
from vadapter.runs.embed import embed
from vadapter.runs.export_transformers import export_transformers
from vadapter.runs.many import Item

pytestmark = pytest.mark.parity

WORDS = small.decoder(vocab_size=bundles.ROWS, width=16, head_dim=4, num_kv_heads=1, tied_head=False)
GEMMA2 = dict(
    norm="rms_plus_one",
    post_norms=True,
    scale_embedding=True,
    attention_softcap=5.0,
    final_softcap=3.0,
    query_scale=0.3,
)
ADAPTERS = {
    "linear, squares": small.mlp(pixel_shuffle=2),
    "perceiver, shared": small.perceiver(layer_norm="shared", ffn=False),
    "perceiver, final": small.perceiver(layer_norm="final", concat_keys=False, time_embedding=False),
    "pooler": small.pooler(residual=True, time_embedding=True),
    "paper": LMAdapterConfig(small.decoder(width=16, causal=False), small.perceiver(num_layers=1)),
    "queries": LMAdapterConfig(small.TINY, small.mlp(), "appended", 3, num_prefix=2, num_suffix=1),
    "words": LMAdapterConfig(WORDS, small.pooler(), "appended", 3, num_words=4, num_suffix=1),
}
DECODERS = {
    "palm": dict(parallel_block=True, norm="layer_no_bias", activation="silu", num_kv_heads=1, tied_head=False),
    "gemma2": dict(GEMMA2, attention_pattern=("local", "global"), window=3),
    "gemma3": dict(
        norm="rms_plus_one",
        qk_norm=True,
        attention_pattern=("local", "global"),
        window=4,
        rope_base=1e6,
        rope_local_base=1e4,
        rope_scaling=RopeScaling("linear", 8.0),
        post_norms=True,
        scale_embedding=True,
    ),  # fmt: skip
    "qwen2 with yarn": dict(
        qkv_bias=True, activation="silu", rope_scaling=RopeScaling("yarn", 4.0, 1.0, 32.0, 64, magnitude=1.13)
    ),
    "llama3": dict(activation="silu", rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, 32), rope_base=500.0),
    "smollm3": dict(activation="silu", rope_pattern=(True, False)),
    "phi": dict(rope_dim=4, rope_scaling=RopeScaling("longrope", factors=(1.0, 3.0), magnitude=1.2)),
    "olmo2": dict(pre_norms=False, post_norms=True, qk_norm=True, qk_norm_over="all_heads", activation="silu"),
    "granite": dict(embedding_multiplier=3.0, residual_multiplier=0.3, logits_multiplier=0.25, query_scale=0.1),
    "not gated": dict(gated=False, norm="layer", activation="relu"),
}
ENCODERS = {
    "clip": dict(class_token=True, pre_norm=True, patch_bias=False, activation="quick_gelu", final_norm=False),
    "dinov2 with registers": dict(class_token=True, num_registers=2, layer_scale=True, activation="gelu"),
    "dinov3": dict(
        class_token=True,
        num_registers=2,
        positions="rotary",
        gated=True,
        biases=("query", "value", "out", "mlp"),
        activation="silu",
    ),  # fmt: skip
    "aimv2": dict(positions="sines", norm="rms", patch_norm=True, biases=(), gated=True, activation="silu"),
    "another size": dict(image_size=28, position_grid=2, position_resampling="bicubic", drop_edges=True),
}
MODELS = {
    **{f"adapter: {name}": bundles.model(adapter, num_frames=2) for name, adapter in ADAPTERS.items()},
    **{f"decoder: {name}": bundles.model(small.mlp(), fields) for name, fields in DECODERS.items()},
    **{f"encoder: {name}": bundles.model(small.mlp(), encoder=fields) for name, fields in ENCODERS.items()},
    "one frame of a still": bundles.model(small.perceiver(), num_frames=2, repeat_stills=False),
    "as words": bundles.model(small.mlp(), GEMMA2, quantization=WordQuantizationConfig("softmax", 0.5)),
    "as one word": bundles.model(small.mlp(), quantization=WordQuantizationConfig()),
    "lora": bundles.model(small.mlp(), dict(lora=LoraConfig(2, 8.0)), dict(lora=LoraConfig(2))),
}


def loaded(folder):
    """The model and the processor of a folder, in transformers."""
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
    return model.eval(), transformers.AutoProcessor.from_pretrained(folder, trust_remote_code=True)


def messages(image, question=None, kind="image"):
    said = [{"type": "text", "text": question}] if question else []
    return [{"role": "user", "content": [{"type": kind, kind: image}, *said]}]


def theirs(model, processor, turns, new=12, decode=None, **options):
    """Logits of the first new token, and the text, of each conversation."""
    import torch

    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True} | options
    inputs = processor.apply_chat_template(turns, **options)
    with torch.no_grad():
        logits = model(**inputs).logits[:, -1].numpy()
        made = model.generate(**inputs, max_new_tokens=new, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    decode = decode or (lambda ids: processor.tokenizer.decode(ids, skip_special_tokens=True))
    return logits, [decode(ids).strip() for ids in made.tolist()]


def first_logits(ours, image, question=None):
    params = jax.device_get(ours.params)  # on one device: a batch of one does not divide over several
    return np.asarray(ours.model.apply({"params": params}, ours.request(image, question), 1, method="prefill")[0])


def decoding(new=12):
    return vadapter.DecodingConfig(max_new_tokens=new)


def compare(ours, model, processor, image, question=None, kind="image", decode=None):
    """Asserts that both say the same of an image."""
    logits, (text,) = theirs(model, processor, messages(image, question, kind), decode=decode)
    np.testing.assert_allclose(logits, first_logits(ours, image, question), atol=1e-4)
    options = {"decoding": decoding()}
    assert text == (ours.answer(image, question, **options) if question else ours.caption(image, **options))


@pytest.mark.parametrize("name", MODELS)
def test_exported_models_say_the_same(name, tmp_path):
    config = MODELS[name]
    made = bundles.write(tmp_path, config, resize="center_crop bicubic 3/2")
    export_transformers(made, tmp_path / "out")
    ours, (model, processor) = vadapter.load(made), loaded(tmp_path / "out")
    compare(ours, model, processor, bundles.pictures()[0])
    if config.num_frames > 1:
        compare(ours, model, processor, np.stack(bundles.pictures()), kind="video")


@pytest.mark.parametrize(
    "tokenizer, prompt_format",
    [
        ("gemma", "plain"),
        ("llama2", "llama2"),
        ("qwen", "chat"),
        ("llama3", "chat"),
        ("sentencepiece:llama2", "llama2"),
        ("sentencepiece:gemma", "chat"),
        ("scenes", "plain"),
    ],
)
def test_prompts_and_answers_of_every_kind_of_vocabulary_are_the_same(tokenizer, prompt_format, tmp_path):
    made = bundles.write(tmp_path, bundles.model(small.mlp()), tokenizer, prompt_format)
    export_transformers(made, tmp_path / "out")
    ours, (model, processor) = vadapter.load(made), loaded(tmp_path / "out")
    # The libraries differ in the text of bytes that are no UTF-8, so of pieces the ids are compared.
    decode = ours.vocabulary.decode if tokenizer == "scenes" else None
    compare(ours, model, processor, bundles.pictures()[0], "what colour is the ring??", decode=decode)
    # Programs that write the text first have the same ids: what begins a text is not there twice.
    image, turns = bundles.pictures()[0], messages(bundles.pictures()[0], "what colour is the ring??")
    text = processor.apply_chat_template(turns, add_generation_prompt=True)
    expected = processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=True)
    assert processor(text=text, images=[image])["input_ids"] == expected["input_ids"]


def test_a_batch_of_prompts_of_several_lengths_is_what_each_is_alone(tmp_path):
    config = bundles.model(small.mlp(), DECODERS["gemma2"])
    made = bundles.write(tmp_path, config)
    export_transformers(made, tmp_path / "out")
    ours, (model, processor) = vadapter.load(made), loaded(tmp_path / "out")
    images = bundles.pictures(3)
    turns = [messages(images[0]), messages(images[1], "what"), messages(images[2], "what colour is the ring ?")]
    logits, texts = theirs(model, processor, turns, padding=True)
    for i, question in enumerate((None, "what", "what colour is the ring ?")):
        np.testing.assert_allclose(logits[i], first_logits(ours, images[i], question)[0], atol=1e-4)
        say = {"decoding": decoding()}
        assert texts[i] == (ours.answer(images[i], question, **say) if question else ours.caption(images[i], **say))


@pytest.mark.parametrize("tokenizer, prompt_format", [("qwen", "chat"), ("llama2", "llama2"), ("gemma", "plain")])
def test_a_conversation_with_several_pictures_is_what_chat_makes_of_it(tokenizer, prompt_format, tmp_path):
    made = bundles.write(tmp_path, bundles.model(small.mlp()), tokenizer, prompt_format)
    export_transformers(made, tmp_path / "out")
    ours, (model, processor) = vadapter.load(made), loaded(tmp_path / "out")
    first, second = bundles.pictures(2)
    turns = [
        {"role": "system", "content": "one two three"},
        {"role": "user", "content": [{"type": "image", "image": first}, {"type": "text", "text": "what colour ?"}]},
        {"role": "assistant", "content": "yellow"},
        {"role": "user", "content": [{"type": "text", "text": "and "}, {"type": "image", "image": second}]},
    ]
    _, (text,) = theirs(model, processor, turns)
    assert text == ours.chat(turns, decoding=decoding())


def test_prompt_embeds_serve_as_inputs_embeds(tmp_path):
    """What vLLM calls prompt_embeds: the language model alone goes on from them."""
    torch = pytest.importorskip("torch")

    made = bundles.write(tmp_path, bundles.model(small.perceiver(), DECODERS["gemma2"], num_frames=2))
    export_transformers(made, tmp_path / "out")
    ours, (model, _) = vadapter.load(made), loaded(tmp_path / "out")
    image, question = bundles.pictures()[0], "what colour is the ring ?"
    (found,) = embed(ours, [Item(image, question)], whole=True)
    ids = model.generate(inputs_embeds=torch.tensor(found.values)[None], max_new_tokens=12, do_sample=False)
    assert ours.vocabulary.decode(ids[0].tolist()).strip() == ours.answer(image, question, decoding=decoding())


CHATS = {"preprocessors": {"chat": [{"name": "Chat"}]}}


@pytest.mark.parametrize("clips", [False, True])
def test_pictures_have_the_tiles_of_the_training(clips, tmp_path):
    """Alone, in a batch and in a conversation, of a model of chats; the prompt of captions shows them whole."""
    config = bundles.model(small.mlp(), num_frames=2)
    seen = {"max_tiles": 4, "clips": clips, "training": CHATS}
    made = bundles.write(tmp_path, config, "qwen", "chat", "pad", {"caption": "say <media> :"}, **seen)
    export_transformers(made, tmp_path / "out")
    ours, (model, processor) = vadapter.load(made), loaded(tmp_path / "out")
    rng = np.random.default_rng(5)
    wide, tall = (rng.integers(0, 256, size, np.uint8) for size in ((20, 61, 3), (75, 30, 3)))
    compare(ours, model, processor, wide)
    compare(ours, model, processor, wide, "Describe it.")
    compare(ours, model, processor, np.stack([wide, wide[::-1]]), kind="video")
    compare(ours, model, processor, np.stack([wide, wide[::-1]]), "what moves ?", kind="video")
    turns = [messages(tall, "what colour ?"), messages(wide, "red ?")]
    _, texts = theirs(model, processor, turns, padding=True)
    assert texts == [ours.chat(each, decoding=decoding()) for each in turns]
    parts = [{"type": "image", "image": x} for x in (wide, tall)]
    both = [{"role": "user", "content": [parts[0], {"type": "text", "text": "or"}, parts[1]]}]
    # A picture beside a video is a clip that stands still, with clips and without.
    video = [{"role": "user", "content": [{"type": "video", "video": np.stack([wide, wide[::-1]])}, parts[1]]}]
    _, texts = theirs(model, processor, both)
    assert texts == [ours.chat(both, decoding=decoding())]
    inputs = processor.apply_chat_template(video, tokenize=True, return_dict=True, add_generation_prompt=True)
    assert len(inputs["pixel_values_videos"]) == 5 and "pixel_values" not in inputs  # the video, the picture, 3 tiles


@pytest.mark.parametrize("resize", ["stretch", "crop", "pad", "center_crop", "pad bicubic", "center_crop lanczos 5/4"])
def test_pixels_are_those_of_the_training(resize, tmp_path):
    import importlib.util

    from PIL import Image

    from vadapter.data.rows import memory
    from vadapter.data.rows.sizes import Sizes, Views
    from vadapter.sharing import transformers_folder

    pytest.importorskip("transformers")
    transformers_folder.write_code(tmp_path)
    spec = importlib.util.spec_from_file_location("processing", tmp_path / "processing_vadapter.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    rng = np.random.default_rng(6)
    turned = Image.Exif()
    turned[0x0112] = 6
    noise = Image.fromarray(rng.integers(0, 256, (40, 90, 3), np.uint8)).resize((900, 400), Image.Resampling.BICUBIC)
    noise.save(tmp_path / "turned.jpg", exif=turned)
    noise.convert("CMYK").save(tmp_path / "cmyk.jpg")
    noise.save(tmp_path / "turned.png", exif=turned)
    Image.fromarray(rng.integers(0, 256, (31, 17, 4), np.uint8), "RGBA").save(tmp_path / "clear.png")
    Image.fromarray(rng.integers(0, 65536, (20, 50)).astype(np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(rng.random((50, 20), np.float32)).save(tmp_path / "floats.tiff")
    files = sorted(str(path) for path in tmp_path.iterdir() if not path.suffix.startswith(".py"))
    assert len(files) == 6
    theirs = module.VAdapterImageProcessor(16, resize, max_tiles=6)
    for file in files:
        ours = memory.read([file], Sizes(16), resize, Views(6))[0].frames[:, 0]
        assert len(ours) > 1
        expected = (ours.astype(np.float32) / np.float32(255) - 0.5) / np.float32(0.5)
        np.testing.assert_array_equal(theirs.views(file), expected.transpose(0, 3, 1, 2), err_msg=file)
