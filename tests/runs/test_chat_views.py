"""A chat shows a model its pictures as the training did: with their tiles, and as clips where rows have videos."""

import base64
import dataclasses
import io
import json

import numpy as np
import pytest
from PIL import Image

import vadapter
from tests import tiny_bundle
from tests.data import chat_files
from tests.data.loaders import make_loader
from vadapter.base.batch import Batch
from vadapter.base.errors import UserError
from vadapter.data import mixture_description
from vadapter.data.tasks import chat_task
from vadapter.runs import chat
from vadapter.runs.description import Description
from vadapter.runs.model import TrainedModel

LENGTHS = {"inputs": 64, "targets": 32}


def noise(seed: int, width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8))


def encoded(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


PICTURES = [noise(0, 40, 40), noise(1, 90, 30)]  # 2 x 2 tiles and 3 x 1


def conversation(url) -> list[dict]:
    """A system's word, then a question about both pictures; `url` gives the part of one."""
    first, second = map(url, PICTURES)
    return [{"role": "system", "content": "be brief"}, {"role": "user", "content": [first, text("or"), second]}]


def text(words: str) -> dict:
    return {"type": "text", "text": words}


def by_url(picture: Image.Image) -> dict:
    url = "data:image/png;base64," + base64.b64encode(encoded(picture)).decode()
    return {"type": "image_url", "image_url": {"url": url}}


def task(folder, **settings) -> str:
    record = {"messages": [*conversation(by_url), {"role": "assistant", "content": "so"}]}
    files = [chat_files.write_jsonl(folder / f"{name}.jsonl", [record]) for name in ("train", "validation")]
    return chat_task("views", *files, max_media=9, vocabulary="scenes", prompt_format="plain", **settings)


def row_of(name: str, model: TrainedModel) -> Batch:
    """The row for decoding that evaluation of the task reads, without the room that it leaves."""
    sizes: dict = {key: getattr(model.sizes, key) for key in ("image_size", "num_frames", "num_visual_tokens")}
    loader = make_loader(name, split="validation", batch_size=1, lengths=LENGTHS, **sizes)
    batch, _ = next(loader.eval_batches(for_decoding=True))
    assert isinstance(batch, Batch)
    return batch


def shown(batch: Batch) -> tuple[list[int], list[int], np.ndarray]:
    """Tokens and media of a row as far as it has some, its pixels last."""
    used = np.asarray(batch.segment_ids[0]) > 0
    index = np.asarray(batch.media_index[0])[used]
    seen: np.ndarray = np.asarray(batch.media)[0]
    return np.asarray(batch.tokens[0])[used].tolist(), index.tolist(), seen[seen.any(axis=(1, 2, 3, 4))]


def same(a: Batch, b: Batch) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(shown(a), shown(b), strict=True))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return vadapter.load(str(tiny_bundle.write_bundle(tmp_path_factory.mktemp("views"), lengths=LENGTHS)))


def trained_on(name: str, model: TrainedModel) -> TrainedModel:
    """The model, as if it had been trained on a task: what is known of that goes through JSON."""
    found = mixture_description.describe(name)
    seen = {key: found[key] for key in ("max_tiles", "clips")}
    steps = {"preprocessors": found["preprocessors"]}
    described = dataclasses.replace(model.description, training=steps, **seen)
    described = Description.from_json(json.loads(json.dumps(described.to_json())), "it")
    return dataclasses.replace(model, description=described)


@pytest.mark.parametrize(
    ("settings", "media", "frames"),
    [({}, 2, 1), ({"max_tiles": 4}, 9, 1), ({"media": "video"}, 2, 2), ({"media": "video", "max_tiles": 2}, 4, 2)],
)
def test_a_request_is_the_row_of_the_training(tmp_path, plain, settings, media, frames):
    name = task(tmp_path, **settings)
    model = trained_on(name, plain)
    row, found = row_of(name, model), chat.parse(conversation(by_url))
    made = model.conversation(found)
    assert made.media.shape[1:3] == (media, frames)
    assert same(made, row)
    assert np.unique(shown(row)[2].reshape(media, -1), axis=0).shape[0] == media  # no two of them are alike


def test_tiles_are_seen_by_whatever_asks(tmp_path, plain):
    model = trained_on(task(tmp_path, max_tiles=4), plain)
    in_memory = conversation(lambda picture: {"type": "image", "image": picture})
    said = model.chat(in_memory)
    assert said and said != plain.chat(in_memory)
    assert said == model.chat(conversation(by_url))
    # Files, decoded together with others, as `vadapter infer --jsonl` does it.
    from vadapter.runs.many import Item, say

    for i, picture in enumerate(PICTURES):
        picture.save(tmp_path / f"{i}.png")
    parts = [{"type": "image", "image": f"{i}.png"} for i in (0, 1)]
    turns = [{"role": "system", "content": "be brief"}, {"role": "user", "content": [parts[0], "or", parts[1]]}]
    assert [found.text for found in say(model, [Item(chat={"messages": turns}, folder=str(tmp_path))])] == [said]


def test_a_server_shows_tiles_and_counts_pictures(tmp_path, plain):
    pytest.importorskip("starlette", reason="needs the extra serve")
    from vadapter.serving import prompts
    from vadapter.serving.api_errors import ApiError
    from vadapter.serving.limits import Limits

    name = task(tmp_path, max_tiles=4)
    model = trained_on(name, plain)
    assert same(prompts.make(model, conversation(by_url), 2, Limits(), None), row_of(name, model))
    damaged = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    messages = [{"role": "user", "content": [by_url(PICTURES[0]), damaged]}]
    with pytest.raises(ApiError, match="Image 2 of 2 cannot be read"):
        prompts.make(model, messages, 2, Limits(), None)


@pytest.mark.parametrize("wrong", [{"max_tiles": 10**9}, {"max_tiles": -1}, {"max_tiles": "4"}, {"clips": 3}])
def test_a_file_that_says_nonsense_of_tiles_is_refused(plain, wrong):
    record = plain.description.to_json()
    record["preprocessing"] |= wrong
    with pytest.raises(UserError, match="not as vadapter writes it"):
        Description.from_json(record, "it")
