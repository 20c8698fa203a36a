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
    """A system's word, a question about both pictures with its answer, and another; `url` gives the part of one."""
    first, second = map(url, PICTURES)
    turns = [{"role": "system", "content": "be brief"}, {"role": "user", "content": [first, text("or"), second]}]
    return [*turns, {"role": "assistant", "content": "a ring"}, {"role": "user", "content": "is it red ?"}]


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
    turns = conversation(lambda picture: parts[PICTURES.index(picture)])
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


@pytest.fixture(scope="module")
def tiled(tmp_path_factory, plain):
    return trained_on(task(tmp_path_factory.mktemp("tiled"), max_tiles=4), plain)


def test_a_question_about_a_picture_is_a_turn_of_a_conversation(tiled, plain, tmp_path):
    """Whatever asks: the text of one picture is that of the chat, alone and in a batch of other shapes."""
    from vadapter.runs.many import Item, say

    asked = "Describe it."  # no question mark: none is added
    alone = [tiled.chat([{"role": "user", "content": [{"type": "image", "image": x}, text(asked)]}]) for x in PICTURES]
    assert tiled.answer(PICTURES, asked) == alone
    assert tiled.answer(PICTURES, asked) != plain.answer(PICTURES, asked)
    for i, picture in enumerate(PICTURES):
        picture.save(tmp_path / f"{i}.png")
    paths = [str(tmp_path / f"{i}.png") for i in (0, 1)]
    assert [found.text for found in say(tiled, [Item(path, asked) for path in paths])] == alone
    assert [tiled.answer(np.asarray(picture), asked) for picture in PICTURES] == alone


def test_a_caption_is_of_a_picture_with_its_tiles(tiled, plain):
    row, whole = tiled.request(PICTURES[0]), plain.request(PICTURES[0])
    assert row.media.shape[1] == 5 and whole.media.shape[1] == 1
    np.testing.assert_array_equal(row.media[:, :1], whole.media)
    cut = np.asarray(PICTURES[0].resize((32, 32), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(row.media[0, 4, 0], cut[16:, 16:])  # of two rows of two, the last
    assert row.media.shape[3] == 16
    parsed = chat.parse([{"role": "user", "content": [{"type": "image", "image": PICTURES[0]}]}])
    assert same(tiled.conversation(parsed), row)
    per_medium = tiled.sizes.visual_tokens(1)
    counts = [[len(words) for words in model.words(PICTURES, 1)] for model in (tiled, plain)]
    assert counts == [[5 * per_medium, 4 * per_medium], [per_medium, per_medium]]
    losses = [model.loss(PICTURES, ["a ring", "a ball"]) for model in (tiled, plain)]
    assert (losses[0] != losses[1]).all()
    np.testing.assert_allclose(tiled.loss(PICTURES[1:], ["a ball"]), losses[0][1:], rtol=1e-5)


def test_a_prompt_of_another_task_shows_its_pictures_whole(tiled):
    text = dataclasses.replace(tiled.description.text, prompts={"caption": "say <media> :"})
    mixed = dataclasses.replace(tiled, description=dataclasses.replace(tiled.description, text=text))
    assert mixed.request(PICTURES[0]).media.shape[1] == 1
    assert mixed.request(PICTURES[0], prompt="say <media> :").media.shape[1] == 1
    assert mixed.request(PICTURES[0], prompt="show <media> !").media.shape[1] == 5
    assert mixed.request(PICTURES[0], "what ?").media.shape[1] == 5


def test_embeddings_are_of_tiles_too(tiled, tmp_path):
    import jax

    from vadapter.runs.embed import embed
    from vadapter.runs.many import Item

    for i, picture in enumerate(PICTURES):
        picture.save(tmp_path / f"{i}.png")
    items = [Item(str(tmp_path / f"{i}.png")) for i in (0, 1)]
    params = jax.device_get(tiled.params)
    for found, picture in zip(embed(tiled, items), PICTURES, strict=True):
        seen = tiled.seen(picture).frames
        expected = np.asarray(tiled.model.apply({"params": params}, seen[None], method="soft_tokens"))[0]
        assert found.values is not None and found.values.shape == expected.shape
        np.testing.assert_allclose(found.values, expected, atol=1e-5)
    whole = next(embed(tiled, items, whole=True)).values
    row = tiled.request(PICTURES[0])
    expected = np.asarray(tiled.model.apply({"params": params}, row, method="embed"))[0]
    assert whole is not None
    np.testing.assert_allclose(whole, expected[: len(whole)], atol=1e-5)
    assert len(whole) == (row.segment_ids > 0).sum()


def test_a_picture_of_a_model_of_clips_stands_still(tmp_path, plain):
    model = trained_on(task(tmp_path, media="video"), plain)
    row = model.request(PICTURES[0])
    assert row.media.shape[1:3] == (1, 2)
    np.testing.assert_array_equal(row.media[0, 0, 0], row.media[0, 0, 1])


def test_a_picture_in_memory_is_the_one_of_its_file(tiled, tmp_path):
    """Turned by EXIF and with what is transparent, in a chat as in a caption."""
    turned, clear = tmp_path / "turned.jpg", tmp_path / "clear.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    noise(3, 90, 30).save(turned, exif=exif)
    pixels = np.random.default_rng(4).integers(0, 255, (30, 60, 4), np.uint8)
    Image.fromarray(pixels, "RGBA").save(clear)
    for path in (turned, clear):
        parts = [{"type": "image", "image": x} for x in (str(path), Image.open(path))]
        of_file, of_memory = (tiled.conversation(chat.parse([{"role": "user", "content": [part]}])) for part in parts)
        assert of_file.media.shape[1] > 1
        assert same(of_file, of_memory) and same(of_file, tiled.request(str(path)))
        assert same(of_file, tiled.request(Image.open(path)))


def test_an_evaluation_of_other_data_shows_pictures_as_the_training(tmp_path, plain, tiled):
    """A question of a benchmark, or of a file of one's own: `ViewsSource` is in front of its source."""
    from vadapter.data.order.config import LoaderConfig
    from vadapter.data.tasks import add_mixture, jsonl_task
    from vadapter.runs.experiment import Evaluation, Experiment, Parts
    from vadapter.training.loop import TrainConfig

    chats = task(tmp_path, max_tiles=4)
    PICTURES[1].save(tmp_path / "b.png")
    asked = {"image": "b.png", "question": "what ?", "answers": ["a ball"]}
    file = chat_files.write_jsonl(tmp_path / "asked.jsonl", [asked])
    own = jsonl_task("asked", file, file, vocabulary="scenes", question_prompt="image_question")
    config = {"lengths": LENGTHS, "batch_size": 8}
    data = LoaderConfig(mixture=own, split="validation", **config)

    def loss(mixture: str) -> float:
        training = LoaderConfig(mixture=mixture, **config)
        made = Experiment(plain.description.model, str(tmp_path), training, TrainConfig(steps=1))
        return Parts(made).evaluator(Evaluation(data))(plain.params).scalars["loss"]

    def expected(model: TrainedModel) -> float:
        return model.loss([PICTURES[1]], ["a ball"], "what ?", prompt="image_question")[0]

    assert expected(tiled) != pytest.approx(expected(plain), rel=1e-4)
    assert loss(chats) == pytest.approx(expected(tiled), rel=1e-5)
    assert loss(own) == pytest.approx(expected(plain), rel=1e-5)
    # Trained on both: the file's own prompt shows its pictures whole.
    assert loss(add_mixture("both", [(chats, 1.0), (own, 1.0)])) == pytest.approx(expected(plain), rel=1e-5)
