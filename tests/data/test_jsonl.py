"""A user's own folder."""

import json
import logging

import numpy as np
import pytest
from PIL import Image

from tests.data.files import clip, copy_to_ram, picture
from tests.data.loaders import make_loader
from vadapter.base import resources
from vadapter.base.errors import UserError
from vadapter.data.reading import images


@pytest.fixture
def folder(tmp_path):
    """Three images and a video with all four kinds of records."""
    for name, colour in (("a.jpg", (250, 0, 0)), ("b.png", (0, 250, 0)), ("c.webp", (0, 0, 250))):
        picture(tmp_path / name, colour)
    clip(tmp_path / "d.mp4", [20, 100, 180, 240])
    write(
        tmp_path,
        {"image": "a.jpg", "caption": "a red field"},
        {"image": "b.png", "caption": ["a green field", "Grünes Feld"]},
        {"image": "c.webp", "caption": "a blue field", "id": "sea"},
        {"image": "c.webp", "question": "What colour is it?", "answers": ["blue"]},
        {"video": "d.mp4", "caption": "it gets light"},
        {"video": "d.mp4", "question": "does it get dark", "answers": ["no", "No."]},
    )
    return tmp_path


def write(folder, *lines):
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    (folder / "all.jsonl").write_text(text, encoding="utf-8")
    return str(folder / "all.jsonl")


def register(folder, **settings):
    from vadapter.data import tasks

    settings = {"validation": str(folder / "all.jsonl"), "vocabulary": "scenes", **settings}
    return tasks.jsonl_task("own", str(folder / "all.jsonl"), **settings)


def rows(mixture, **changes):
    settings = {"split": "validation", "batch_size": 2, "max_bad_share": 1.0}
    made = make_loader(mixture, **(settings | changes))
    return [(batch, i, row) for batch, found in made.eval_batches() for i, row in enumerate(found) if row["id"]]


def test_each_kind_of_record_becomes_a_task(folder):
    register(folder)
    found = {(row["task"], row["id"]): (row, batch, i) for batch, i, row in rows("own") if row["valid"]}
    assert len(found) == 6
    row, batch, i = found["own_image_caption", "sea"]
    assert row["references"] == ["a blue field"] and batch.media.shape == (2, 1, 1, 16, 16, 3)
    np.testing.assert_allclose(batch.media[i, 0, 0, 8, 8], (0, 0, 250), atol=12)
    row, _, _ = found["own_image_caption", "all.jsonl:2"]
    assert row["references"] == ["a green field", "Grünes Feld"]
    row, _, _ = found["own_image_question", "all.jsonl:4"]
    assert row["prompt"].endswith("Question : What colour is it ? Answer:") and row["answers"] == ["blue"]
    row, batch, i = found["own_video_question", "all.jsonl:6"]
    assert row["prompt"].endswith("Answer in exactly one word:") and row["answers"] == ["no", "No."]
    np.testing.assert_allclose(batch.media[i, 0].mean((1, 2, 3)), [20, 100, 180, 240], atol=8)


def test_training_batches_of_the_mixture(folder):
    made = make_loader(register(folder), batch_size=4)
    batches = made.batches()
    assert {next(batches).media.shape[2] for _ in range(10)} == {1, 4}
    assert made.counters()["skipped"] == 0


def test_no_image_is_in_both_splits_of_a_hold_out(folder):
    from vadapter.data.reading.jsonl import read_splits

    lines = [{"image": f"{i // 2}.png", "caption": f"take {i}"} for i in range(40)]
    path = write(folder, *lines)
    splits = read_splits(path, holdout=0.25)
    parts = {split: {line.record.path for line in some} for split, some in splits.items()}
    assert not parts["train"] & parts["validation"]
    assert (len(parts["train"]), len(parts["validation"])) == (15, 5)
    assert read_splits(path, holdout=0.25) == splits


def test_a_hold_out_takes_names_that_are_no_text(folder):
    from vadapter.data.reading.jsonl import read_splits

    path = write(folder, *({"image": f"{i}\udcff.png", "caption": "x"} for i in range(4)))
    assert [len(lines) for lines in read_splits(path, holdout=0.25).values()] == [3, 1]


def test_own_prompts_and_resize(folder):
    register(folder, caption_prompt="Look: <media>\nSay:", resize="pad")
    found = [(b, i, r) for b, i, r in rows("own") if r["id"] == "all.jsonl:1"]
    batch, i, row = found[0]
    assert row["prompt"] == "Look: <media>\nSay:" and batch.media[i, 0, 0, 0].max() == 0


def test_pictures_become_square_as_the_encoder_has_it_unless_the_task_says_otherwise(folder):
    wide = np.random.RandomState(0).randint(0, 256, (30, 90, 3)).astype(np.uint8)
    Image.fromarray(wide).save(folder / "wide.png")
    write(folder, {"image": "wide.png", "caption": "noise"})
    published = "center_crop bicubic 256/224"
    for task, wanted in ((None, published), ("pad", "pad")):
        mixture = register(folder, resize=task)
        for encoder in (published, "stretch"):
            expected = images.load(folder / "wide.png", 16, wanted if task else encoder)
            (batch, i, _), *_ = rows(mixture, resize=encoder)
            np.testing.assert_array_equal(batch.media[i, 0, 0], expected)


def test_the_sample_folder_is_readable():
    from vadapter.data import tasks

    path = str(resources.folder("data") / "samples" / "captions.jsonl")
    tasks.jsonl_task("samples", path, path, vocabulary="scenes")
    assert sum(row["valid"] for _, _, row in rows("samples", max_bad_share=0.0)) == 7


def test_missing_and_damaged_files_are_skipped_and_named(folder, caplog):
    (folder / "b.png").write_bytes(b"not a picture")
    (folder / "c.webp").unlink()
    register(folder)
    found = {row["id"]: row["valid"] for _, _, row in rows("own_image_caption", batch_size=3)}
    assert found == {"all.jsonl:1": True, "all.jsonl:2": False, "sea": False}
    assert "skipped all.jsonl:2" in caplog.text and "c.webp" in caplog.text
    with pytest.raises(UserError, match=r"at most 1.0%.*found \d of"):
        rows("own_image_caption", max_bad_share=0.01)


def test_a_folder_in_a_bucket(folder, caplog):
    """`ram://` is read as `gs://` is, through TensorFlow's file systems."""
    (folder / "b.png").unlink()
    remote = f"ram://{folder.name}"
    copy_to_ram(folder, remote)
    from vadapter.data import tasks

    tasks.jsonl_task("own", f"{remote}/all.jsonl", validation=f"{remote}/all.jsonl", vocabulary="scenes")
    found = {(row["task"], row["id"]): (batch, i) for batch, i, row in rows("own") if row["valid"]}
    assert len(found) == 5
    batch, i = found["own_image_caption", "sea"]
    np.testing.assert_allclose(batch.media[i, 0, 0, 8, 8], (0, 0, 250), atol=12)
    assert "skipped all.jsonl:2" in caplog.text and f"{remote}/b.png" in caplog.text
    with pytest.raises(UserError, match=f"at {remote}/none.jsonl"):
        tasks.jsonl_task("own", f"{remote}/none.jsonl", vocabulary="scenes")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{not json", r"all.jsonl:7: "),
        ({"image": "a.jpg", "caption": "  "}, r"all.jsonl:7: 'caption' is empty"),
        ({"image": "a.jpg", "caption": []}, r"all.jsonl:7: 'caption' is empty"),
        ({"image": "a.jpg"}, r"all.jsonl:7: needs either 'caption' or 'question'"),
        ({"image": "a.jpg", "captions": "x"}, r"'captions', near 'caption'"),
        ({"image": "a.jpg", "conversations": [{"from": "human", "value": "x"}]}, r"a conversation, which chat_task"),
        ({"images": ["a.jpg"], "messages": [{"role": "user", "content": "x"}]}, r"a conversation, which chat_task"),
        ({"caption": "x"}, r"all.jsonl:7: needs one of 'image' and 'video'"),
        ({"image": "a.jpg", "question": "what?"}, r"no 'answers'"),
        ("[1]", r"not a JSON object"),
    ],
)
def test_bad_lines_are_named_by_file_and_line(folder, line, reason, caplog):
    lines = (folder / "all.jsonl").read_text(encoding="utf-8").splitlines()
    write(folder, *lines, line)
    with pytest.raises(UserError, match=reason):
        register(folder)
    register(folder, max_bad_share=0.5)
    assert "all.jsonl:7" in caplog.text


def test_unknown_fields_are_said_once(folder, caplog):
    write(folder, {"image": "a.jpg", "caption": "x", "licence": "mine"})
    with caplog.at_level(logging.WARNING):
        register(folder)
    assert "fields that are not used: licence" in caplog.text


def test_a_question_may_have_a_type(folder, caplog):
    """Found as: own questions had one accuracy, and the field was called unknown."""
    asks = {"image": "b.png", "question": "What colour?", "answers": ["green"]}
    types = ["colour", 7, None, ["colour"], {}]
    write(folder, *({**asks, "type": each} for each in types), {"image": "b.png", "caption": "x", "type": "y"})
    register(folder, max_bad_share=0.5)
    found = {row["id"]: row["question_type"] for _, _, row in rows("own_image_question")}
    assert found == {"all.jsonl:1": "colour", "all.jsonl:2": "7", "all.jsonl:3": ""}
    assert "all.jsonl:4: 'type' is not text" in caplog.text and "all.jsonl:5: 'type' is not text" in caplog.text
    assert "fields that are not used: type" in caplog.text  # of the caption


def test_bad_arguments(folder, tmp_path):
    from vadapter.data import tasks

    with pytest.raises(UserError, match="jsonl_task.train"):
        tasks.jsonl_task("own")
    with pytest.raises(UserError, match=r"none\.jsonl"):
        tasks.jsonl_task("own", str(tmp_path / "none.jsonl"), vocabulary="scenes")
    with pytest.raises(UserError, match="exactly one <media>"):
        register(folder, caption_prompt="no room here")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(UserError, match="found 0 such lines"):
        tasks.jsonl_task("own", str(tmp_path / "empty.jsonl"), vocabulary="scenes")


# What is said once


def test_a_file_is_read_and_complained_about_once_a_process(folder, caplog, monkeypatch):
    from vadapter.data import tasks
    from vadapter.data.reading import storage

    opened, read = [], storage.open_file
    monkeypatch.setattr(storage, "open_file", lambda path: opened.append(path) or read(path))
    lines = [{"image": "a.jpg", "caption": f"take {i}", "licence": "mine"} for i in range(300)]
    path = write(folder, *lines[:100], "{not json", *lines[100:], {"image": "a.jpg"})
    with caplog.at_level(logging.WARNING):
        for _ in range(2):  # gin calls a task for training and for each evaluation
            tasks.jsonl_task("own", path, path, vocabulary="scenes")
        tasks.jsonl_task("other", path, vocabulary="scenes")
    assert opened == [path]
    said = [record.getMessage().split("all.jsonl")[1][:5] for record in caplog.records]
    assert said == [":101:", ":302:", ": fie"]


def test_a_file_that_has_changed_is_read_again(folder):
    from vadapter.data.reading.jsonl import read_jsonl

    path = write(folder, {"image": "a.jpg", "caption": "one"})
    assert [line.record.captions for line in read_jsonl(path)] == [("one",)]
    write(folder, {"image": "a.jpg", "caption": "another"})
    assert [line.record.captions for line in read_jsonl(path)] == [("another",)]


# Values of other kinds


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ({"image": "a.jpg", "video": None, "caption": "x", "question": None, "id": None}, ("x",)),
        ({"image": "a.jpg", "caption": 7}, ("7",)),
        ({"image": "a.jpg", "caption": [1.5, "x"]}, ("1.5", "x")),
        ('{"image": "a.jpg", "caption": "a \\ud83d dog"}', ("a \ufffd dog",)),
        ('{"image": "a.jpg", "caption": "a \\ud83d\\ude42 dog"}', ("a 🙂 dog",)),
    ],
)
def test_values_that_tables_and_programs_write(folder, line, expected):
    from vadapter.data.reading.jsonl import read_jsonl

    (found,) = read_jsonl(write(folder, line))
    assert (found.record.captions, found.record.id) == (expected, "all.jsonl:1")


def test_answers_that_are_numbers_and_halves_of_letters_reach_the_rows(folder):
    write(
        folder,
        {"image": "a.jpg", "question": "how many?", "answers": [2, 2.5]},
        '{"image": "a.jpg", "question": "which \\ud83d ?", "answers": "\\ude00"}',
    )
    register(folder)
    first, second = (row for _, _, row in rows("own_image_question"))
    assert first["valid"] and first["answers"] == ["2", "2.5"]
    assert second["valid"] and second["answers"] == ["\ufffd"] and "which \ufffd" in second["prompt"]


def test_truth_values_are_no_text(folder):
    write(folder, {"image": "a.jpg", "question": "is it?", "answers": [True]})
    with pytest.raises(UserError, match="'answers' is empty or not text"):
        register(folder)


@pytest.mark.parametrize("vocabulary", ["", "nowhere"])
def test_real_data_need_a_vocabulary(folder, vocabulary):
    with pytest.raises(UserError, match="jsonl_task.vocabulary; found none.*'scenes'|nowhere; found no such file"):
        register(folder, vocabulary=vocabulary)
