"""seqio's own pipeline gives the rows that vadapter's `Loader` gives."""

import numpy as np
import pytest

from tests.data import chat_files
from tests.data.files import clip
from tests.data.loaders import make_loader
from tests.data.pair_files import png
from tests.data.tokenizer_files import write_tokenizer
from vadapter.data import tasks

R, SIZE, FRAMES = 3, 8, 4
WORDS = {"vocabulary": "scenes", "prompt_format": "plain"}


def questions(folder, name="asked", **settings):
    records = [
        {"image": f"{i}.png", "question": f"what is {'red ' * i}?", "answers": [f"ring {'blue ' * i}"]}
        for i in range(6)
    ]
    for i in range(6):
        (folder / f"{i}.png").write_bytes(png(i + 1, 20))
    files = dict.fromkeys(("train", "validation"), chat_files.write_jsonl(folder / f"{name}.jsonl", records))
    return tasks.jsonl_task(name, **files, **{**WORDS, **settings})


def videos(folder):
    records = []
    for i in range(2):
        clip(folder / f"{i}.mp4", [10 + i, 90, 170, 250 - i])
        records.append({"video": f"{i}.mp4", "caption": f"clip {i}"})
    files = dict.fromkeys(("train", "validation"), chat_files.write_jsonl(folder / "clips.jsonl", records))
    return tasks.jsonl_task("clips", **files, **WORDS)


def chats(folder, name="chats", **settings):
    """Conversations of one to three turns with two pictures, of which some are long."""
    records = []
    for i in range(6):
        pictures = [{"type": "image", "image": path} for path in (chat_files.data_url(i), f"{i}_.png")]
        (folder / f"{i}_.png").write_bytes(chat_files.half("red", ("blue", "green", "white")[i % 3], 16 + 4 * i))
        turns = [
            {"role": "system", "content": "brief"},
            {"role": "user", "content": [pictures[0], "and", pictures[1], "?"]},
        ]
        turns += [{"role": "assistant", "content": f"ring {'red ' * i}"}, {"role": "user", "content": "why ?"}] * (
            i % 3
        )
        records.append({"messages": [*turns, {"role": "assistant", "content": "so"}]})
    file = chat_files.write_jsonl(folder / f"{name}.jsonl", records)
    return tasks.chat_task(name, file, file, **{**WORDS, **settings})


TASKS = {
    "a question": questions,
    "a chat format whose prompts close": lambda folder: questions(
        folder, vocabulary=str(write_tokenizer(folder, "qwen")), prompt_format="chat"
    ),
    "videos": videos,
    "two pictures": chats,
    "tiles": lambda folder: chats(folder, max_media=6, max_tiles=2),
    "still clips": lambda folder: chats(folder, media="video"),
    "the last answer": lambda folder: chats(folder, loss="last"),
}


def both(name, lengths, for_decoding=False):
    """The rows of the validation split by the Loader and by seqio, dicts of arrays."""
    import seqio

    from vadapter.data.seqio_tasks import VLMFeatureConverter, tasks_of

    made = make_loader(
        name,
        max_bad_share=0.9,
        split="validation",
        batch_size=1,
        lengths=lengths,
        image_size=SIZE,
        num_frames=FRAMES,
        num_visual_tokens=R,
    )
    loaded = [(batch, rows[0]) for batch, rows in made.eval_batches(for_decoding)]
    rows = tasks_of(name)[0].rows
    converter = VLMFeatureConverter(
        R, rows.vocabulary.bos_id, for_decoding, closing=rows.vocabulary.num_closing, last_only=rows.last_only
    )
    media = loaded[0][0].media.shape[1:]
    found = seqio.get_dataset(name, {**lengths, "media": media}, converter, "validation", shuffle=False, num_epochs=1)
    return loaded, list(found.as_numpy_iterator())


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize(
    "lengths", [{"inputs": 160, "targets": 96}, {"inputs": 14, "targets": 6}], ids=["whole", "cut"]
)
def test_seqio_gives_the_rows_of_the_loader(tmp_path, kind, lengths):
    loaded, found = both(TASKS[kind](tmp_path), lengths)
    assert len(loaded) == len(found) >= 2
    for (batch, _), row in zip(loaded, found, strict=True):
        for name in (k for k in vars(batch) if k != "tiny"):
            np.testing.assert_array_equal(row[name], getattr(batch, name)[0], err_msg=name)
        assert row["target_weights"].any() and row["media"].any()
    assert len({row["media"].tobytes() for row in found}) == len(found)  # no picture is taken for another
    assert any(row["truncated"] for row in found) == (lengths["inputs"] == 14)


@pytest.mark.parametrize("kind", ["a question", "two pictures"])
def test_rows_for_decoding_are_the_same_too(tmp_path, kind):
    loaded, found = both(TASKS[kind](tmp_path), {"inputs": 64, "targets": 32}, for_decoding=True)
    for (batch, _), row in zip(loaded, found, strict=True):
        np.testing.assert_array_equal(row["tokens"], batch.tokens[0])
        np.testing.assert_array_equal(row["media_index"], batch.media_index[0])


@pytest.mark.parametrize("register", [questions, chats])
def test_a_record_that_cannot_be_read_has_no_weight_in_a_mixture(tmp_path, register):
    name = register(tmp_path)
    damaged = "2.png" if register is questions else "2_.png"
    (tmp_path / damaged).write_bytes(b"no picture")
    mixture = tasks.add_mixture("mixed", [(name, 1.0)])
    _, found = both(mixture, {"inputs": 64, "targets": 32})
    assert [bool(row["target_weights"].any()) for row in found] == [i != 2 for i in range(6)]


def learnt(rows):
    return [row["target_ids"][row["target_weights"] > 0].tolist() for row in rows]


def test_conversations_mix_with_questions(tmp_path):
    import seqio

    from vadapter.data.seqio_tasks import VLMFeatureConverter, tasks_of

    lengths, names = {"inputs": 64, "targets": 32}, (questions(tmp_path), chats(tmp_path))
    apart = [learnt(both(name, lengths)[1]) for name in names]
    mixed = tasks.add_mixture("mixed", [(name, 1.0) for name in names])
    made = make_loader(mixed, batch_size=2, lengths=lengths, image_size=SIZE, num_visual_tokens=R)
    batches = made.batches()
    assert {next(batches).media.shape[1] for _ in range(12)} == {1, 2}
    batches.close()
    words = tasks_of(mixed)[0].rows.vocabulary
    shapes = {**lengths, "media": (2, 1, SIZE, SIZE, 3)}
    converter = VLMFeatureConverter(R, words.bos_id, closing=words.num_closing)
    found = seqio.get_dataset(mixed, shapes, converter, "validation", shuffle=False, num_epochs=1)
    rows = learnt(found.as_numpy_iterator())  # it ends with the first task that does
    assert all(row in (*apart[0], *apart[1]) for row in rows)
    assert all(any(row in some for row in rows) for some in apart)
