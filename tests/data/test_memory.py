"""Batches of images and texts in memory: the rows of training, without a data set and without TensorFlow."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.files import clip, picture
from tests.data.loaders import make_loader
from vadapter.base.errors import UserError
from vadapter.data.rows import memory, vocabulary
from vadapter.data.rows.sizes import Sizes

SIZES = Sizes(16, 4, {1: 3, 4: 5})
LENGTHS = {"inputs": 12, "targets": 8}


@pytest.fixture(scope="module")
def words():
    return vocabulary.load_vocabulary("scenes")


@pytest.fixture
def folder(tmp_path):
    for i in range(3):
        picture(tmp_path / f"{i}.png", (80 * i, 10, 200))
    clip(tmp_path / "d.mp4", [20, 100, 180, 240])
    return tmp_path


def batch(images, prompt="caption", targets=None, questions=None, **changes):
    model = {"vocabulary": vocabulary.load_vocabulary("scenes"), "lengths": LENGTHS, "sizes": SIZES}
    return memory.batch(images, prompt, targets, questions, **(model | changes))


def assert_same(a, b):
    for field in dataclasses.fields(a):
        np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name), err_msg=field.name)


def test_captions_and_batches_need_no_tensorflow(folder):
    program = f"""
import sys
from vadapter.data.rows import converters, formats, memory, preprocessors, prompts, vocabulary
from vadapter.data.rows.sizes import Sizes
made = memory.batch(
    [{str(folder / "0.png")!r}], "caption", ["a field"], vocabulary=vocabulary.load_vocabulary("scenes"),
    lengths={LENGTHS}, sizes=Sizes(16, 4, 3),
)
clips = memory.batch(
    [{str(folder / "d.mp4")!r}], "caption", vocabulary=vocabulary.load_vocabulary("scenes"),
    lengths={LENGTHS}, sizes=Sizes(16, 4, 3),
)
assert made.tokens.shape == (1, 23) and clips.media.shape == (1, 1, 4, 16, 16, 3)
print(sorted({{"tensorflow", "seqio", "tensorflow_datasets"}} & set(sys.modules)))
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=root)
    assert done.stdout.strip() == "[]", done.stderr


def test_rows_are_those_that_a_task_of_the_same_records_makes(folder):
    from vadapter.data import tasks

    lines = [{"image": f"{i}.png", "caption": f" field {i} "} for i in range(3)]
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    name = tasks.jsonl_task("own", str(folder / "a.jsonl"), str(folder / "a.jsonl"), vocabulary="scenes")
    loader = make_loader(name, split="validation", batch_size=3, num_visual_tokens=SIZES.num_visual_tokens)
    images = [folder / f"{i}.png" for i in range(3)]
    for for_decoding, targets in ((False, [f" field {i} " for i in range(3)]), (True, None)):
        ((whole, _),) = loader.eval_batches(for_decoding)
        made = batch(images, "caption", targets, lengths=loader.config.lengths)
        ids = {} if targets else {"target_ids": whole.target_ids, "target_positions": whole.target_positions}
        assert_same(made.replace(**ids), whole)  # rows for decoding keep targets where there are some


def test_an_image_may_be_a_path_a_picture_or_an_array(folder):
    file = folder / "1.png"
    opened = Image.open(file)
    made = batch([str(file), file, opened, np.asarray(opened)])
    assert made.media.shape == (4, 1, 1, 16, 16, 3)
    assert (made.media == made.media[:1]).all() and made.media[0, 0, 0, 8, 8].tolist() == [80, 10, 200]
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert (batch([clear]).media == 255).all()


def test_a_video_may_be_a_path_or_its_frames(folder):
    frames = [np.full((8, 8, 3), shade, np.uint8) for shade in range(0, 80, 10)]
    for video in (frames, np.stack(frames), [Image.fromarray(frame) for frame in frames]):
        made = batch([video])
        assert made.media.mean((0, 1, 3, 4, 5)).tolist() == [10, 30, 50, 70]
        assert (made.media_index >= 0).sum() == 5
    np.testing.assert_allclose(batch([folder / "d.mp4"]).media.mean((0, 1, 3, 4, 5)), [20, 100, 180, 240], atol=8)


def test_images_and_videos_make_a_batch_of_each(folder):
    media = [folder / "0.png", folder / "d.mp4", folder / "1.png"]
    with pytest.raises(UserError, match="2 images and 1 videos, such as place 2"):
        batch(media)
    assert list(memory.by_kind(media)) == [[0, 2], [1]]


def test_targets_and_questions_are_of_one_row_each(folder, words):
    images = [folder / "0.png", folder / "1.png"]
    made = batch(
        images, "See <media> <question> ?", ["red", "blue"], ["a ?", "b"], lengths={"inputs": 16, "targets": 4}
    )
    assert [words.decode(row) for row in made.target_ids] == [" red", " blue"]
    assert made.target_weights.sum(1).tolist() == [2, 2]
    assert [" a ?" in words.decode(made.tokens[i][made.media_index[i] < 0][1:]) for i in (0, 1)] == [True, False]
    with pytest.raises(UserError, match="found 2, 3"):
        batch(images, "caption", ["a", "b", "c"])
    with pytest.raises(UserError, match="<question> once"):
        batch(images, "caption", None, "what?")


def test_copies_are_of_the_whole(folder):
    images = [folder / "0.png", folder / "1.png"]
    made = batch(images, copies=2)
    assert_same(made, batch(images * 2))


def test_text_without_images(words):
    made = batch(None, "a red ring", " on it", sizes=Sizes())
    assert made.media.shape[:2] == (1, 0) and (made.media_index == -1).all()
    tokens = made.tokens[0][made.segment_ids[0] > 0]
    assert words.decode(tokens[1:]) == "a red ring on it"
    assert len(batch(None, ["a", "b"], sizes=Sizes()).tokens) == 2
    with pytest.raises(UserError, match="no images were given"):
        batch(None, "See <media>", sizes=Sizes())


def test_an_image_that_cannot_be_read_is_named_by_its_place(folder):
    (folder / "bad.jpg").write_bytes(b"no picture")
    good = folder / "0.png"
    with pytest.raises(UserError, match=r"image 3 of 5, .*bad.jpg: .*look like text"):
        batch([good, good, folder / "bad.jpg", good, good])
    with pytest.raises(UserError, match=r"image 2 of 2, .*none.png: .*No such file"):
        batch([good, folder / "none.png"])
    (folder / "bad.mp4").write_bytes(b"no video")
    with pytest.raises(UserError, match=r"video 1 of 1, .*bad.mp4"):
        batch([folder / "bad.mp4"])


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((8, 8, 3)), r"uint8 array \[height, width, 3\]; found float64 \[8, 8, 3\]: convert values of 0..1"),
        (np.zeros((8, 8), np.uint8), r"found uint8 \[8, 8\]"),
        (np.zeros((3, 8, 8), np.uint8), r"found uint8 \[3, 8, 8\]"),
        (np.zeros((0, 8, 3), np.uint8), r"found uint8 \[0, 8, 3\]"),
        ([], "has no frames"),
        (None, "a PIL image, an array or a path; found NoneType"),
        (b"\x89PNG", "found bytes"),
    ],
)
def test_other_things_are_no_images(image, message):
    with pytest.raises(UserError, match="(image|video) 1 of 1: .*" + message):
        batch([image])


def test_text_that_does_not_fit_says_how_many_tokens_it_has(folder):
    images = [folder / "0.png", folder / "1.png"]
    with pytest.raises(UserError, match=r"target of row 2 of 2 has 13 tokens with its end token.* 8, so 5 do not fit"):
        batch(images, "caption", ["a ring", "a ring " * 6])
    with pytest.raises(UserError, match="The prompt has .* tokens with the start token; the model reads 12"):
        batch(images[:1], "image_question", None, "what is it?")


def test_frames_that_the_model_was_not_made_for(folder):
    with pytest.raises(UserError, match="media of 4 frames.*found 1"):
        batch([folder / "0.png"], sizes=Sizes(16, 4, {4: 5}))
