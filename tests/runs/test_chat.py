"""Chats with several images: trained, measured and gone on with."""

import itertools

import jax
import numpy as np
import pytest

import vadapter
from tests.data import chat_files
from tests.data.loaders import make_loader
from tests.models import small
from vadapter.base.errors import UserError
from vadapter.data.tasks import chat_task
from vadapter.models.vlm import VLM, VLMConfig
from vadapter.runs import chat

pytestmark = pytest.mark.slow
COLOURS = {"red": (255, 0, 0), "blue": (0, 0, 255), "green": (0, 255, 0)}


def asked(left: str, right: str, which: int) -> dict:
    """A question about the first or the second of two pictures of one colour each."""
    parts = [{"type": "image", "image": np.full((8, 8, 3), COLOURS[name], np.uint8)} for name in (left, right)]
    text = {"type": "text", "text": f"picture {which + 1} ?"}
    return {"role": "user", "content": [parts[0], "and", parts[1], text]}


def record(left: str, right: str, which: int) -> dict:
    turn = asked(left, right, which)
    for part in turn["content"]:
        if isinstance(part, dict) and "image" in part:
            part["image"] = "data:image/png;base64," + _base64(part["image"])
    return {"messages": [turn, {"role": "assistant", "content": (left, right)[which]}]}


def _base64(pixels: np.ndarray) -> str:
    import base64
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chats")
    every = [record(a, b, which) for a, b in itertools.product(COLOURS, COLOURS) for which in (0, 1)]
    files = [chat_files.write_jsonl(folder / f"{name}.jsonl", every) for name in ("train", "validation")]
    mixture = chat_task("two", *files, vocabulary="scenes", prompt_format="plain")
    model = small.vlm("mlp", decoder=small.decoder(vocab_size=512, width=64, num_heads=2), num_frames=1)
    return vadapter.train(
        model,
        mixture,
        folder / "run",
        weights={},
        vocabulary="scenes",
        trainable=[".*"],
        steps=200,
        batch_size=24,
        lengths={"inputs": 32, "targets": 8},
        optimizer=vadapter.OptimizerConfig(learning_rate=3e-3, warmup_steps=20),
        frozen_dtype="float32",
    )


def test_a_model_learns_which_picture_is_which(trained):
    pairs = [(a, b, which) for a, b in itertools.permutations(COLOURS, 2) for which in (0, 1)]
    right = [trained.chat([asked(a, b, which)]) == (a, b)[which] for a, b, which in pairs]
    assert np.mean(right) > 0.9
    # With its pictures swapped, the same question has the other answer.
    swapped = [trained.chat([asked(b, a, which)]) == (a, b)[which] for a, b, which in pairs]
    assert np.mean(swapped) < 0.1


def test_a_chat_goes_on(trained):
    """What was said before is read: with other pictures in the first turn, the same question has other logits."""
    turns = [
        [asked(a, b, 0), {"role": "assistant", "content": a}, {"role": "user", "content": "picture 2 ?"}]
        for a, b in (("red", "blue"), ("red", "green"))
    ]
    first, second = (trained.conversation(chat.parse(turn)) for turn in turns)
    np.testing.assert_array_equal(first.tokens, second.tokens)
    params = jax.device_get(trained.params)
    logits = [trained.model.apply({"params": params}, row, 1, method="prefill")[0] for row in (first, second)]
    assert np.abs(logits[0] - logits[1]).max() > 1e-3


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        ([], "ends with the user's turn"),
        ([{"role": "assistant", "content": "hi"}], "ends with the user's turn"),
        ([{"role": "user", "content": "word " * 200}], "tokens more than the model reads"),
        ([{"role": "user", "content": [{"type": "image", "image": "/nowhere.png"}]}], "nowhere.png"),
        ([{"role": "user", "content": [{"type": "image", "image": b"no picture"}]}], "image 1 of the conversation"),
        (["hi"], "list of turns"),
    ],
)
def test_a_conversation_that_cannot_be_gone_on_with_says_why(trained, messages, why):
    with pytest.raises(UserError, match=why):
        trained.chat(messages)


def test_the_loss_of_text_alone_is_that_of_the_language_model(tmp_path):
    from tests.training import small as training

    chats = {"messages": [{"role": "user", "content": "what is red ?"}, {"role": "assistant", "content": "a colour"}]}
    pictured = record("red", "blue", 1)
    files = chat_files.write_jsonl(tmp_path / "a.jsonl", [chats, pictured])
    settings = {"vocabulary": "scenes", "prompt_format": "plain", "holdout": 0.0}
    config = small.vlm("mlp", decoder=small.decoder(vocab_size=512), num_frames=1)
    sizes = {"image_size": config.encoder.image_size, "num_visual_tokens": config.num_visual_tokens(1)}
    lengths = {"inputs": 32, "targets": 8}
    mixed = make_loader(chat_task("mixed", files, **settings), batch_size=2, lengths=lengths, **sizes)
    alone = make_loader(chat_task("alone", files, media="none", **settings), batch_size=1, lengths=lengths, **sizes)
    batch, _ = next(mixed.eval_batches())
    text, _ = next(alone.eval_batches())
    assert batch.media.shape[1] == 2 and text.media.shape[1] == 0
    weights = batch.target_weights * np.asarray([[1.0], [0.0]], np.float32)
    params = training.params(VLM(config), example=batch)
    language = VLM(VLMConfig(decoder=config.decoder))
    found = VLM(config).apply({"params": params}, batch.replace(target_weights=weights), method="loss_sums")
    expected = language.apply({"params": {"decoder": params["decoder"]}}, text, method="loss_sums")
    assert jax.tree.all(jax.tree.map(lambda a, b: np.allclose(a, b, rtol=1e-5), found, expected))
