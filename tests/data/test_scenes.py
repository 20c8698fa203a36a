"""The scenes world: words, pixels, questions, and the TFDS data set."""

import collections
import io
import random

import numpy as np
import pytest
from PIL import Image

from tests.data.conftest import SMALL
from vadapter.base.errors import UserError
from vadapter.data.scenes import drawing, questions, text, world
from vadapter.data.scenes.config import SPLITS, ScenesConfig

SQUARE = world.Object("square", "red", "big", 0)
SEVEN = world.Object("7", "blue", "small", 4)


def test_a_scene_in_words():
    scene = world.Scene((SQUARE, SEVEN))
    assert world.facts(scene) == "big red square top left ; small blue 7 centre ;"
    assert world.captions(scene)[0] == "a big red square top left and a small blue 7 centre"
    assert len(set(world.captions(scene))) == 4
    assert world.captions(scene, 1) == world.captions(scene)[:1]


def test_labels_are_kind_colour_and_size_of_each_cell():
    labels = world.labels(world.Scene((SQUARE, SEVEN)))
    assert labels == [2, 1, 1, *[0] * 9, 14, 3, 2, *[0] * 12]
    assert len(world.NUM_CLASSES) == 27 and world.NUM_CLASSES[:3] == (17, 9, 3)


def test_a_clip_in_words():
    clip = world.Scene((SQUARE, SEVEN), "right", 2)
    assert world.facts(clip) == "big red square top left moves right ; small blue 7 centre ;"
    assert world.captions(clip)[0] == "a big red square moves right and a small blue 7 stays"
    answers = {q.type: q.answer for q in questions.clip_questions(random.Random(0), clip)}
    assert answers | {"moves": "?"} == {
        "direction": "right",
        "mover_kind": "square",
        "mover_colour": "red",
        "start": "top left",
        "end": "top right",
        "moves": "?",
    }


def test_clips_move_in_their_direction_and_hit_nothing():
    rng = random.Random(0)
    for _ in range(300):
        clip = world.sample_clip(rng, 3)
        dy, dx = world.DIRECTIONS[clip.direction]
        start, end = clip.objects[0].cell, clip.end
        assert np.sign(end // 3 - start // 3) == dy and np.sign(end % 3 - start % 3) == dx
        way = range(min(start, end), max(start, end) + 1, 3 if dy else 1)
        assert not {o.cell for o in clip.objects[1:]} & set(way)


@pytest.mark.parametrize("sample", [world.sample_image, world.sample_clip])
def test_no_type_of_question_is_answered_by_its_commonest_answer(sample):
    rng, balancer = random.Random(0), questions.Balancer(2, 4)
    given = collections.defaultdict(collections.Counter)
    for _ in range(512):
        for q in balancer.choose(rng, sample(rng, 2)):
            given[q.type][q.answer] += 1
    assert len(given) == (8 if sample is world.sample_image else 6)
    for type_, answers in given.items():
        possible = questions.possible_answers(type_)
        assert set(answers) == set(possible)
        assert max(answers.values()) / sum(answers.values()) < 1.15 / len(possible), type_


def test_questions_are_true_of_the_scene():
    scene = world.Scene((SQUARE, SEVEN))
    asked = {q.text: q.answer for q in questions.image_questions(random.Random(0), scene)}
    assert asked["what colour is the 7"] == "blue"
    assert asked["what is at the centre"] == "7"
    assert asked["where is the red square"] == "top left"
    assert asked["is the red square left of the blue 7"] == "yes"
    assert asked["is the red square below the blue 7"] == "no"
    assert asked["how many objects are big"] == "one"
    assert [a for t, a in asked.items() if t.startswith("is there a red square")] == ["yes"]


def test_no_handwritten_digit_is_in_two_splits():
    owned = [{i for indices in drawing.digit_indices(s).values() for i in indices} for s in SPLITS]
    assert all(owned)
    assert sum(len(o) for o in owned) == len(set.union(*owned)) == 1797


def test_drawing_puts_colours_in_cells():
    pixels = drawing.draw(world.Scene((SQUARE,)), "train", random.Random(0), 48)
    assert pixels.shape == (1, 48, 48, 3)
    np.testing.assert_array_equal(pixels[0, 8, 8], drawing.RGB["red"])
    assert pixels[0, 24:, 24:].max() < 100


def test_a_clip_moves_in_pixels():
    pixels = drawing.draw(world.Scene((SQUARE,), "down", 6), "train", random.Random(0), 48, num_frames=4)
    red = (pixels[..., 0].astype(int) - pixels[..., 1] > 120).nonzero()
    heights = [red[1][red[0] == f].mean() for f in range(4)]
    assert heights[0] < 12 and heights[3] > 36 and sorted(heights) == heights


def test_documents_have_the_prompts_and_facts_where_visual_tokens_go():
    docs = text.documents(random.Random(0), 2000, 2, 4)
    begins = collections.Counter(d.split(":")[0].split(".")[0].strip() for d in docs)
    assert 0.28 < begins["Describe the following"] / 2000 < 0.36
    assert 0.36 < begins["Answer the question given the images"] / 2000 < 0.44
    assert any(" moves " in d and d.startswith("Describe the following: ") and "; : " in d for d in docs)


def test_the_data_set_is_the_same_each_time_and_not_written_twice(scenes_dir, tmp_path):
    from vadapter.data.scenes import builder

    built = builder.builder(scenes_dir, "images", SMALL)
    before = {f.name: f.stat().mtime for f in built.data_path.iterdir()}
    builder.prepare(scenes_dir, SMALL)
    assert {f.name: f.stat().mtime for f in built.data_path.iterdir()} == before
    builder.prepare(str(tmp_path), SMALL, ("images",))
    again = builder.builder(str(tmp_path), "images", SMALL)
    for a, b in zip(built.as_data_source("validation"), again.as_data_source("validation"), strict=True):
        np.testing.assert_array_equal(a["image"], b["image"])
        assert list(a["captions"]) == list(b["captions"]) and list(a["questions"]) == list(b["questions"])


def test_records_agree_with_their_pictures(scenes_dir):
    from vadapter.data.scenes import builder

    record = builder.builder(scenes_dir, "images", SMALL).as_data_source("train")[0]
    assert record["image"].shape == (32, 32, 3)
    assert len(record["captions"]) == 4 and len(record["questions"]) == len(record["answers"]) == 4
    first = np.flatnonzero(record["labels"])[0]
    assert record["facts"].decode().split()[1] == world.COLOURS[record["labels"][first + 1] - 1]


def test_bad_settings_are_named():
    from vadapter.data.scenes import builder

    with pytest.raises(UserError, match="max_objects from 1 to 9; found 0"):
        builder.prepare("/nonexistent", ScenesConfig(max_objects=0))


def test_png_keeps_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(drawing.png(pixels)))), pixels)
