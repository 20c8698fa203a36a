"""Conversations in the layouts that people publish: the first thousand rows of each, and what is wrong with others."""

import json

import numpy as np
import pytest

from tests.data import chat_files
from tests.data.chat_files import answers, cauldron, factory, finevision, llava, openai
from tests.data.files import clip, picture
from tests.data.loaders import make_loader
from tests.data.pair_files import colour, png
from vadapter.base.errors import UserError
from vadapter.data.reading import conversations, tiles
from vadapter.data.tasks import add_mixture, chat_task

ROWS = 1000
R = 3


def register(files, **settings):
    usual = {"vocabulary": "scenes", "prompt_format": "plain", "holdout": 0.0, "max_bad_share": 0.9}
    return chat_task("chats", files, **(usual | settings))


def loader(files="", name="", *, lengths=None, size=8, **settings):
    name = name or register(files, **settings)
    lengths = lengths or {"inputs": 64, "targets": 64}
    sizes = {"image_size": size, "num_visual_tokens": R}
    return make_loader(name, batch_size=2, lengths=lengths, max_bad_share=0.9, **sizes)


def rows(*files, **settings):
    """(batch arrays of one row, what is known of it) of each record."""
    found = []
    for batch, known in loader(*files, **settings).eval_batches():
        found += [
            ({k: np.asarray(getattr(batch, k))[i] for k in vars(batch) if k != "tiny"}, row)
            for i, row in enumerate(known)
        ]
    return [(arrays, row) for arrays, row in found if row["valid"] or row["error"]]


def text(words, arrays):
    """A row in words, with a # for each medium."""
    ids, media = arrays["tokens"][arrays["segment_ids"] > 0], arrays["media_index"][arrays["segment_ids"] > 0]
    parts, at = [], 0
    while at < len(ids):
        stop = at + 1
        if media[at] >= 0:
            parts.append(" # ")
            at += R
            continue
        while stop < len(ids) and media[stop] < 0:
            stop += 1
        parts.append("".join(words.written(int(i))[0] for i in ids[at:stop]))
        at = stop
    return "".join(parts)


def published(folder, layout):
    if layout == "the_cauldron":
        return chat_files.write_parquet(folder / "a.parquet", map(cauldron, range(ROWS)))
    if layout == "FineVision":
        return chat_files.write_parquet(folder / "a.parquet", map(finevision, range(ROWS)))
    (folder / "coco/train2017").mkdir(parents=True)
    for i in range(10):
        (folder / f"coco/train2017/{i}.png").write_bytes(png(i, 8))
    records = (llava(i, f"coco/train2017/{i % 10}.png") for i in range(ROWS))
    return chat_files.write_array(folder / "llava_v1_5_mix665k.json", records, indent=2)


@pytest.mark.parametrize("layout", ["the_cauldron", "FineVision", "LLaVA"])
def test_the_first_thousand_rows_are_read_as_they_were_published(tmp_path, layout):
    found = loader(published(tmp_path, layout), cache_dir=str(tmp_path / "cache"), max_bad_share=0.0)
    seen = 0
    for batch, known in found.eval_batches():
        for k, row in enumerate(known):
            assert row["valid"], row["error"]
            first, second = answers(seen)
            one_turn = layout == "the_cauldron" and not seen % 2
            assert row["references"] == [first if one_turn else second]
            shown = np.unique(batch.media_index[k])
            pictureless = layout != "the_cauldron" and not seen % 10
            assert shown.tolist() == ([-1] if pictureless else [-1, 0, 1, 2])
            if not pictureless:
                assert tuple(batch.media[k, 0, 0, 4, 4]) == colour(seen % 10 if layout == "LLaVA" else seen)
            seen += 1
    assert seen == ROWS and found.counters()["truncated"] == 0
    assert layout in found._tasks[0].records.description


def test_every_answer_is_learnt_and_nothing_else(tmp_path):
    file = chat_files.write_jsonl(tmp_path / "a.jsonl", [llava(1, data) for data in [chat_files.data_url(1)]])
    for loss, learnt in (("all", list(answers(1))), ("last", [answers(1)[1]])):
        arrays, _ = rows(file, loss=loss)[0]
        words = loader(file).vocabulary
        weighted = arrays["target_weights"] > 0
        ids = arrays["target_ids"][weighted]
        assert (arrays["tokens"][arrays["target_positions"][weighted] + 1] == ids).all()
        parts = np.split(ids, np.flatnonzero(ids == words.end)[:-1] + 1)
        assert [words.decode(part).strip() for part in parts] == learnt


def test_rows_for_decoding_have_the_turns_before_and_end_with_the_last_question(tmp_path):
    file = chat_files.write_jsonl(tmp_path / "a.jsonl", [llava(1, chat_files.data_url(1))] * 2)
    batch, _ = next(loader(file).eval_batches(for_decoding=True))
    whole, known = next(loader(file).eval_batches())
    length = int((batch.segment_ids[0] > 0).sum())
    answer = loader(file).vocabulary.answer(known[0]["references"][0])
    assert length + len(answer) == int((whole.segment_ids[0] > 0).sum())
    np.testing.assert_array_equal(batch.tokens[0, :length], whole.tokens[0, :length])
    np.testing.assert_array_equal(batch.media_index[0, :length], whole.media_index[0, :length])


def test_several_images_stand_where_their_marks_are(tmp_path):
    for i in (1, 2):
        (tmp_path / f"{i}.png").write_bytes(png(i, 8))
    file = chat_files.write_jsonl(
        tmp_path / "a.jsonl", [factory(0, ["2.png", "1.png"]), factory(1, ["1.png", "2.png"])]
    )
    (first, _), (second, _) = rows(file)
    for arrays, order in ((first, (2, 1)), (second, (1, 2))):
        assert [tuple(medium[0, 4, 4]) for medium in arrays["media"]] == [colour(i) for i in order]
        index = arrays["media_index"]
        assert index[index >= 0].tolist() == list(range(2 * R))
    assert " # " in text(loader(file).vocabulary, first).split("and")[1]


def test_a_tar_has_turns_and_pictures_together(tmp_path):
    record = {"conversations": [{"from": "human", "value": "<image> <image> which?"}, {"from": "gpt", "value": "both"}]}
    media = {"0.png": png(1, 8), "1.png": png(2, 8)}
    file = chat_files.write_tar(tmp_path / "a.tar", [(f"k{i}", record, media) for i in range(3)])
    found = rows(file)
    assert len(found) == 3
    assert all(tuple(arrays["media"][1, 0, 4, 4]) == colour(2) for arrays, _ in found)


def test_a_conversation_that_is_too_long_is_cut_behind_an_answer(tmp_path):
    file = chat_files.write_jsonl(tmp_path / "a.jsonl", [llava(1, chat_files.data_url(1))])
    (whole, _) = rows(file)[0]
    words = loader(file).vocabulary
    ends = np.flatnonzero(whole["target_ids"] == words.end)
    room = int(ends[1])  # one less than all targets
    made = loader(file, lengths={"inputs": 64, "targets": room})
    batch, known = next(made.eval_batches())
    ids = batch.target_ids[0][batch.target_weights[0] > 0]
    assert ids.tolist() == whole["target_ids"][: ends[0] + 1].tolist() and known[0]["valid"]
    assert (batch.media_index[0] >= 0).sum() == R
    assert made.counters()["truncated"] == 1


def test_media_beyond_the_bound_cut_the_turns_that_show_them(tmp_path):
    url = chat_files.data_url(1)
    part = {"type": "image_url", "image_url": {"url": url}}
    ask = {"role": "user", "content": [part, {"type": "text", "text": "what?"}]}
    record = {"messages": [ask, {"role": "assistant", "content": "one"}] * 3}
    twice = {"messages": [{"role": "user", "content": [part] * 3}, {"role": "assistant", "content": "one"}]}
    file = chat_files.write_jsonl(tmp_path / "a.jsonl", [record, twice])
    found = rows(file, max_media=2)
    assert found[0][0]["media"].shape[0] == 2 and (found[0][0]["media_index"] >= 0).sum() == 2 * R
    assert (found[0][0]["target_ids"] == loader(file).vocabulary.end).sum() == 2
    assert not found[1][1]["valid"] and "chat_task.max_media" in found[1][1]["error"]
    assert found[1][0]["media_index"].max() < 2 * R  # what looks up one that is not there finds NaN


@pytest.mark.parametrize("media", ["none", "image"])
def test_a_bad_conversation_in_parquet_is_named_and_costs_no_other(tmp_path, media):
    records = [{**finevision(10 if media == "none" else i), "images": []} for i in range(6)]
    if media == "image":
        records = [finevision(i) for i in range(1, 7)]
    records[2]["texts"] = [{"user": "what?", "assistant": ""}]
    records[4]["texts"][0]["assistant"] = "long " * 99
    file = chat_files.write_parquet(tmp_path / "a.parquet", records)
    made = loader(file, media=media)
    known = [row for _, batch in made.eval_batches() for row in batch if row["valid"] or row["error"]]
    assert [bool(row["error"]) for row in known] == [i == 2 for i in range(6)]
    assert "turn 2, the assistant's, is empty" in known[2]["error"]
    assert (made.counters()["skipped"], made.counters()["truncated"]) == (1, 1)
    assert next(made.batches()).target_weights.any()


def conversation(*turns, **fields):
    return {"messages": [{"role": role, "content": content} for role, content in turns], **fields}


URL = chat_files.data_url(1)
BAD = {
    "takes turns": (conversation(("user", "a"), ("user", "b"), ("assistant", "c")), "turn 2 is the user's"),
    "begins with a question": (conversation(("assistant", "a"), ("user", "b")), "turn 1 is the assistant's"),
    "ends with an answer": (conversation(("user", "a"), ("assistant", "b"), ("user", "c")), "no answer"),
    "empty answer": (conversation(("user", "a"), ("assistant", " ")), "turn 2, the assistant's, is empty"),
    "null answer": (conversation(("user", "a"), ("assistant", None)), "is empty"),
    "unknown role": (conversation(("user", "a"), ("tool", "b")), "'tool'"),
    "more marks": (conversation(("user", "<image><image>?"), ("assistant", "b"), images=[URL]), "2 places"),
    "fewer marks": (conversation(("user", "<image>?"), ("assistant", "b"), images=[URL, URL]), "1 places"),
    "marks alone": (conversation(("user", "<image>?"), ("assistant", "b")), "and 0 images"),
    "mark of a video": (conversation(("user", "<video>?"), ("assistant", "b"), images=[URL]), "places"),
    "address": (conversation(("user", "?"), ("assistant", "b"), images=["https://x.y/a.png"]), "download it first"),
    "odd data": (conversation(("user", "?"), ("assistant", "b"), images=["data:image/png;base64,@@"]), "base64"),
    "no list": ({"messages": "hello"}, "not a list of turns"),
    "no turns": ({"conversations": []}, "not a list of turns"),
    "nothing": ({"text": "hello"}, "none of messages"),
    "a number": (conversation(("user", 3), ("assistant", "b")), "not text"),
    "odd part": (conversation(("user", [{"type": "audio", "audio": "x"}]), ("assistant", "b")), "'audio'"),
    "type that is none": (conversation(("user", [{"type": ["text"], "text": "x"}]), ("assistant", "b")), "['text']"),
    "image in an answer": (
        conversation(("user", "draw"), ("assistant", [{"type": "image", "image": URL}])),
        "answers are text",
    ),
    "no object": ([1, 2], "not an object"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_record_is_left_out_and_says_why(tmp_path, caplog, what):
    record, why = BAD[what]
    good = openai(1)
    for name, write in (("a.jsonl", chat_files.write_jsonl), ("a.json", chat_files.write_array)):
        caplog.clear()
        found = loader(write(tmp_path / name, [good, record, good]), cache_dir=str(tmp_path / "cache"))
        assert (found.num_examples(), found.counters()["left_out"]) == (2, 1)
        assert why in caplog.text
    with pytest.raises(UserError, match="unusable"):
        register(chat_files.write_jsonl(tmp_path / "b.jsonl", [good, record]), max_bad_share=0.1)


def test_a_picture_of_several_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "1.png").write_bytes(png(1, 8))
    (tmp_path / "2.png").write_bytes(png(2, 8)[:40])
    records = [factory(0, ["1.png", "2.png"]), factory(1, ["1.png", "1.png"]), factory(2, ["1.png", "/etc/passwd"])]
    found = rows(chat_files.write_jsonl(tmp_path / "a.jsonl", records))
    assert [row["valid"] for _, row in found] == [False, True, False]
    assert "image 2 of 2" in found[0][1]["error"] and "outside" in found[2][1]["error"]
    assert found[0][0]["target_weights"].sum() == 0


@pytest.mark.parametrize("content", [b"", b"hello", b"\x1f\x8b\x08", b"[", b'[{"messages": 3', b"[\xff]", b"{}", b"[]"])
def test_a_file_that_is_none_of_the_formats_is_refused(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError):
        register(str(tmp_path / "a.json"), cache_dir=str(tmp_path / "cache"))


def test_an_array_is_read_whatever_its_spaces_and_letters(tmp_path, monkeypatch):
    from vadapter.data.reading import conversation_files

    monkeypatch.setattr(conversation_files, "_CHUNK", 7)
    records = [conversation(("user", f"größe 量 {i}?"), ("assistant", f"é {i}")) for i in range(20)]
    for style in ({"indent": 1}, {"ensure_ascii": False}, {"separators": (",", ":")}):
        content = json.dumps(records, **style)
        (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + content.encode())
        found = rows(str(tmp_path / "a.json"), cache_dir=str(tmp_path / str(style)))
        assert [row["references"] for _, row in found] == [[f"é {i}"] for i in range(20)]


def test_text_alone_has_no_media_and_mixes_with_pictures(tmp_path):
    chats = chat_files.write_jsonl(tmp_path / "a.jsonl", [conversation(("user", "a"), ("assistant", "b"))] * 4)
    arrays, row = rows(chats)[0]
    assert arrays["media"].shape[0] == 0 and row["thumbnail"] is None
    chat_task("words", chats, vocabulary="scenes", prompt_format="plain", holdout=0.0)
    pictures = chat_files.write_jsonl(tmp_path / "b.jsonl", [openai(i) for i in range(4)])
    chat_task("pictures", pictures, vocabulary="scenes", prompt_format="plain", holdout=0.0)
    batches = loader(name=add_mixture("both", [("words", 3.0), ("pictures", 1.0)])).batches()
    media = [next(batches).media.shape[1] for _ in range(40)]
    batches.close()
    assert set(media) == {0, 1} and 4 <= sum(media) <= 18


def test_a_row_may_have_a_video_and_a_picture(tmp_path):
    clip(tmp_path / "c.mp4", [10, 90, 170, 250])
    picture(tmp_path / "a.png", (200, 30, 30))
    ask = [{"type": "video", "video": "c.mp4"}, "and", {"type": "image", "image": "a.png"}, "?"]
    file = chat_files.write_jsonl(tmp_path / "a.jsonl", [conversation(("user", ask), ("assistant", "b"))] * 2)
    shown = rows(file)[0][0]["media"]
    assert shown.shape[:2] == (2, 4)
    assert (np.diff(shown[0].mean(axis=(1, 2, 3))) > 40).all()
    assert (shown[1] == shown[1, 0]).all() and tuple(shown[1, 0, 4, 4]) == (200, 30, 30)
    with pytest.raises(UserError, match="chat_task.media = 'video'"):
        rows(file, media="image")


def test_tiles_are_media_behind_their_image(tmp_path):
    from PIL import Image

    def coloured(columns, lines):
        """A picture of so many squares, and the colours of them, row by row."""
        image, colours = Image.new("RGB", (16 * columns, 16 * lines)), []
        for i in range(columns * lines):
            colours.append((40 * i + 10, 200 - 40 * i, 90))
            image.paste(Image.new("RGB", (16, 16), colours[-1]), (16 * (i % columns), 16 * (i // columns)))
        return image, colours

    records, expected = [], []
    for name, grid in (("square", (2, 2)), ("wide", (3, 1)), ("tall", (1, 2))):
        image, colours = coloured(*grid)
        image.save(tmp_path / f"{name}.png")
        records.append(conversation(("user", "<image>what?"), ("assistant", name), images=[f"{name}.png"]))
        expected.append(colours)
    file = chat_files.write_jsonl(tmp_path / "a.jsonl", records)
    for (arrays, _), colours in zip(rows(file, max_tiles=4), expected, strict=True):
        assert arrays["media"].shape[0] == 5  # the most of a record
        assert (arrays["media_index"] >= 0).sum() == (1 + len(colours)) * R
        shown = [tuple(tile[0, 4, 4]) for tile in arrays["media"][1:]]
        assert shown == [*colours, *[(0, 0, 0)] * (4 - len(colours))]
    assert "at most 4 tiles behind an image" in loader(file, max_tiles=4)._tasks[0].records.description


@pytest.mark.parametrize(
    ("size", "most", "grid"),
    [
        ((100, 100), 4, (2, 2)),
        ((100, 100), 1, (1, 1)),
        ((200, 100), 4, (2, 1)),
        ((130, 100), 4, (2, 2)),
        ((100, 260), 4, (1, 3)),
        ((400, 300), 12, (4, 3)),
        ((10_000, 1), 6, (6, 1)),
    ],
)
def test_a_grid_of_tiles_fits_the_shape(size, most, grid):
    assert tiles.grid_for(*size, most) == grid


def test_a_picture_whose_shape_cannot_be_read_is_named(tmp_path):
    (tmp_path / "0.png").write_bytes(b"no picture")
    (tmp_path / "1.png").write_bytes(png(1, 8))
    records = [conversation(("user", "<image>what?"), ("assistant", "b"), images=[f"{i}.png"]) for i in (0, 1)]
    (_, bad), (_, good) = rows(chat_files.write_jsonl(tmp_path / "a.jsonl", records), max_tiles=4)
    assert "image 1 of 1" in bad["error"] and not good["error"]


def test_augmentation_is_of_training_and_a_function_of_the_seed(tmp_path):
    file = chat_files.write_jsonl(tmp_path / "a.jsonl", [openai(i) for i in range(8)])
    held = chat_files.write_jsonl(tmp_path / "b.jsonl", [openai(1)])

    def noise(frames, generator):
        return generator.integers(0, 255, frames.shape, dtype=np.uint8)

    name = register(file, validation=held, augment=noise)
    first, again = (next(loader(name=name).batches()).media for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert len(np.unique(first)) > 50
    valid = make_loader(name, split="validation", batch_size=1, image_size=8, num_visual_tokens=R)
    assert tuple(next(valid.eval_batches())[0].media[0, 0, 0, 4, 4]) == colour(1)
    two = [{"type": "image_url", "image_url": {"url": chat_files.data_url(1)}}] * 2
    pair = chat_files.write_jsonl(tmp_path / "c.jsonl", [conversation(("user", two), ("assistant", "b"))])
    row = next(loader(name=register(pair, augment=noise), size=1).batches()).media[0]
    assert (row[0] != row[1]).any()  # each medium of a row has a draw of its own
    with pytest.raises(UserError, match="augment"):
        next(loader(name=register(file, augment=lambda frames, generator: frames[..., 0])).batches())


def test_layouts_are_told(tmp_path):
    for record, layout in ((cauldron(1), "the_cauldron"), (llava(1), "LLaVA"), (openai(1), "OpenAI")):
        assert layout in conversations.layout_of(record)
