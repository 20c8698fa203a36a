"""Batches: their order, hosts, resuming, evaluation, and bad data."""

import dataclasses
import gc
import itertools

import numpy as np
import pytest

from tests.data.loaders import make_loader
from vadapter.base.errors import UserError

pytestmark = pytest.mark.usefixtures("scenes_dir")


def loader(index=0, count=1, **changes):
    settings = {"mixture": "scenes_images", "batch_size": 8, "num_visual_tokens": 3, "image_size": 32}
    return make_loader(index=index, count=count, **(settings | changes))


def take(n, index=0, count=1, start=0, **changes):
    return list(itertools.islice(loader(index, count, **changes).batches(start), n))


def fields(batch):
    return {f.name: x for f in dataclasses.fields(batch) if (x := getattr(batch, f.name)) is not None}


def assert_same(a, b):
    for name, values in fields(a).items():
        np.testing.assert_array_equal(values, getattr(b, name), err_msg=name)


def test_shapes_and_types():
    batch = take(1)[0]
    assert batch.tokens.shape == (8, 32 + 3 + 32) and batch.tokens.dtype == np.int32
    assert batch.media.shape == (8, 1, 1, 32, 32, 3) and batch.media.dtype == np.uint8
    assert batch.target_ids.shape == (8, 32) and batch.target_weights.dtype == np.float32
    assert ((batch.media_index >= 0).sum(1) == 3).all()
    assert batch.media.std() > 0


def test_a_row_is_bos_prompt_image_and_target():
    made = loader(mixture="scenes_caption")
    batch = next(made.batches())
    words = made.vocabulary
    row = batch.tokens[0]
    image = np.flatnonzero(batch.media_index[0] >= 0)
    assert row[0] == words.bos_id
    assert words.decode(row[1 : image[0]].tolist()) == "Describe the following:"
    target = batch.target_positions[0, 0]
    assert words.decode(row[image[-1] + 1 : target + 1].tolist()) == " :"
    n = int(batch.target_weights[0].sum())
    assert batch.target_ids[0, n - 1] == words.eos_id
    np.testing.assert_array_equal(row[target + 1 : target + 1 + n], batch.target_ids[0, :n])


@pytest.mark.parametrize("mixture", ["scenes_images", "scenes_all"])
def test_starting_at_a_step_equals_skipping_to_it(mixture):
    whole = take(7, mixture=mixture)
    for a, b in zip(whole[4:], take(3, start=4, mixture=mixture), strict=True):
        assert_same(a, b)


@pytest.mark.parametrize("count", [2, 4])
def test_the_global_batch_does_not_depend_on_the_number_of_hosts(count):
    one = take(3)
    hosts = [take(3, index=h, count=count) for h in range(count)]
    for step, batch in enumerate(one):
        for name, values in fields(batch).items():
            np.testing.assert_array_equal(np.concatenate([getattr(h[step], name) for h in hosts]), values)


def test_the_records_of_a_batch_are_named_without_reading_it(monkeypatch):
    from vadapter.data.order.loader import Loader

    read, finish = [], Loader._finish

    def remember(self, group, found, real=None):
        read.append([example["id"] for example in found.examples])
        return finish(self, group, found, real)

    monkeypatch.setattr(Loader, "_finish", remember)
    take(4, mixture="scenes_images")
    assert [loader(mixture="scenes_images").record_ids(step) for step in range(4)] == read
    second_of_two = loader(1, 2, mixture="scenes_images")  # names the rows of both
    assert second_of_two.batches().record_ids(3) == read[3]


def test_seeds_differ_and_epochs_differ():
    a, b = take(1)[0], take(1, seed=1)[0]
    assert (a.media != b.media).any()


def test_an_epoch_shows_each_record_once():
    batches = take(19, mixture="scenes_caption")  # 152 rows of 150 records
    rows = np.concatenate([b.media for b in batches]).reshape(152, -1)
    assert len(np.unique(rows[:150], axis=0)) == 150


def test_references_vary_between_epochs():
    words = loader().vocabulary
    texts = [words.decode(r.tolist()).split()[0] for b in take(19, mixture="scenes_caption") for r in b.target_ids]
    assert set(texts) == {"a", "there", "at", "the"}


def test_batches_are_homogeneous_in_a_mixture_of_images_and_videos():
    frames = [b.media.shape[2] for b in take(12, mixture="scenes_all", num_visual_tokens={1: 3, 4: 5})]
    assert set(frames) == {1, 4}


def test_visual_tokens_may_depend_on_the_number_of_frames():
    for batch in take(12, mixture="scenes_all", num_visual_tokens={1: 3, 4: 5}):
        assert ((batch.media_index >= 0).sum(1) == {1: 3, 4: 5}[batch.media.shape[2]]).all()


def test_text_has_no_media():
    batch = take(1, mixture="scenes_text", lengths={"inputs": 1, "targets": 48})[0]
    assert batch.media.shape == (8, 0, 1, 32, 32, 3) and batch.tokens.shape == (8, 49)
    assert (batch.media_index == -1).all() and (batch.target_positions[:, 0] == 0).all()


def test_labelled_images():
    batch = take(1, mixture="scenes_labels")[0]
    assert batch.media.shape == (8, 32, 32, 3) and batch.labels.shape == (8, 27)
    assert (batch.weights == 1).all() and ((batch.labels > 0).sum(1) >= 3).all()


def test_evaluation_is_one_pass_with_the_rest_padded():
    batches = list(loader(mixture="scenes_caption", split="validation").eval_batches())  # 20 records
    rows = [row for _, found in batches for row in found]
    assert [r["valid"] for r in rows] == [True] * 20 + [False] * 4
    assert len({r["id"] for r in rows if r["valid"]}) == 20
    assert (batches[-1][0].target_weights[4:] == 0).all() and (batches[-1][0].target_weights[:4, 0] == 1).all()
    assert rows[0]["prompt"] == "Describe the following: <media> :" and len(rows[0]["references"]) == 4
    np.testing.assert_array_equal(rows[0]["thumbnail"], batches[0][0].media[0, 0])


def test_evaluation_over_hosts_sees_each_record_once():
    both = [list(loader(h, 2, mixture="scenes_caption", split="validation").eval_batches()) for h in range(2)]
    assert len(both[0]) == len(both[1]) == 3
    ids = [r["id"] for batches in both for _, rows in batches for r in rows if r["valid"]]
    assert sorted(ids) == sorted(f"images/validation/{i}" for i in range(20))


def test_evaluation_of_questions_for_decoding():
    batch, rows = next(iter(loader(mixture="scenes_question", split="validation").eval_batches(for_decoding=True)))
    assert batch.tokens.shape == (8, 35) and (batch.target_weights == 0).all()
    assert rows[0]["question"] in rows[0]["prompt"] and len(rows[0]["answers"]) == 1
    assert len({r["question_type"] for r in rows}) > 1


def test_eval_limit_is_a_task():
    rows = [
        r
        for _, found in loader(mixture="scenes_images", split="validation", eval_limit=5).eval_batches()
        for r in found
    ]
    assert sum(r["valid"] for r in rows) == 10


def test_tasks_are_ordinary_seqio_tasks():
    import seqio

    ds = seqio.get_mixture_or_task("scenes_caption").get_dataset(None, "validation", shuffle=False)
    example = next(ds.as_numpy_iterator())
    assert -1 in example["inputs"] and example["targets"][-1] == 1 and example["media"].shape == (1, 1, 224, 224, 3)


@pytest.mark.parametrize("name", ["scenes_caption", "scenes_images"])
def test_seqio_gives_pictures_of_the_size_that_it_is_asked_for(name):
    import seqio

    shape = (1, 1, 32, 32, 3)
    lengths = {"inputs": 24, "targets": 16, "media": shape}
    ds = seqio.get_mixture_or_task(name).get_dataset(lengths, "validation", shuffle=False, num_epochs=1)
    found = {example["media"].tobytes() for example in ds.as_numpy_iterator()}
    batches = loader(mixture=name, split="validation").eval_batches()
    expected = {m.tobytes() for batch, rows in batches for r, m in zip(rows, batch.media, strict=True) if r["valid"]}
    assert len(expected) == 20
    assert found == expected


@pytest.mark.parametrize("rows", [lambda ds: ds.skip(1), lambda ds: ds.filter(lambda ex: ex["choice"] % 3 > 0)])
def test_text_and_media_of_other_records_never_meet(rows):
    import seqio

    from vadapter.data import tasks

    whole = seqio.TaskRegistry.get("scenes_caption")
    name = tasks.add_task("fewer", whole.records, [rows, *whole.preprocessors], rows=whole.rows)
    with pytest.raises(UserError, match="one example of each record, in their order; those of fewer do not"):
        list(itertools.islice(loader(mixture=name).batches(), 3))


def test_long_text_is_counted_or_refused():
    made = loader(mixture="scenes_caption", lengths={"inputs": 8, "targets": 4})
    batch = next(made.batches())
    assert made.counters()["truncated"] == 8 and ((batch.media_index >= 0).sum(1) == 3).all()
    strict = loader(mixture="scenes_caption", lengths={"inputs": 8, "targets": 4}, long_text="error")
    with pytest.raises(UserError, match="tokens more"):
        next(strict.batches())


def _target_lengths():
    batch = take(1, mixture="scenes_caption")[0]
    return batch.target_weights.sum(axis=1)


def test_rows_of_long_text_can_be_dropped():
    lengths = _target_lengths()
    room = int(np.sort(lengths)[4])  # so that some fit and some do not
    made = loader(mixture="scenes_caption", lengths={"inputs": 8, "targets": room}, long_text="drop")
    batch = next(made.batches())
    np.testing.assert_array_equal(batch.target_weights.sum(axis=1), np.where(lengths <= room, lengths, 0))
    ends = batch.target_ids[np.arange(8), np.maximum(batch.target_weights.sum(axis=1).astype(int) - 1, 0)]
    assert (ends[lengths <= room] == made.vocabulary.eos_id).all()
    assert made.counters()["dropped"] == (lengths > room).sum() and made.counters()["truncated"] == 0


def test_a_cut_target_is_not_trained_to_end():
    made = loader(mixture="scenes_caption", lengths={"inputs": 8, "targets": 2})
    assert made.vocabulary.eos_id not in next(made.batches()).target_ids


def test_many_cut_targets_are_said_once(caplog):
    many = {"mixture": "scenes_caption", "batch_size": 128}
    for _ in zip(range(5), loader(**many, lengths={"inputs": 8, "targets": 4}).batches(), strict=False):
        pass
    said = [record.getMessage() for record in caplog.records if "does not learn to end them" in record.getMessage()]
    assert len(said) == 1 and "long_text = 'drop'" in said[0]
    caplog.clear()
    for _ in zip(range(5), loader(**many).batches(), strict=False):
        pass
    assert "does not learn to end them" not in caplog.text


def test_dropping_every_row_is_refused():
    made = loader(mixture="scenes_caption", lengths={"inputs": 8, "targets": 2}, long_text="drop", batch_size=128)
    with pytest.raises(UserError, match="Expected rows to train on"):
        list(itertools.islice(made.batches(), 3))


def test_passes_over_a_split_leave_nothing_behind():
    made = loader(split="validation", eval_limit=24)

    def left():
        for _ in made.eval_batches():
            pass
        gc.collect()
        return len(gc.get_objects())

    first = [left() for _ in range(2)][-1]
    assert [left() for _ in range(4)][-1] - first < 20  # less than the 4 * 3 batches, each of some arrays and rows


def test_references_need_no_room_where_texts_are_generated():
    made = loader(mixture="scenes_caption", split="validation", lengths={"inputs": 8, "targets": 2}, long_text="error")
    _, rows = next(made.eval_batches(for_decoding=True))
    assert len(rows) == 8 and all(row["references"] for row in rows if row["valid"])
    with pytest.raises(UserError, match="tokens more"):
        next(made.eval_batches())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixture": "scenes_image"}, "nearest.*scenes_images"),
        ({"split": "val"}, "one of test, train, validation; found 'val'"),
        ({"lengths": {"inputs": 32}}, "targets"),
        ({"long_text": "cut"}, "found 'cut'"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(UserError, match=message):
        loader(**changes)


def test_a_batch_must_divide_over_the_hosts():
    with pytest.raises(UserError, match="3 processes.*found 8"):
        loader(0, 3)


def test_a_corrupt_record_is_a_row_without_weight(monkeypatch, caplog):
    from vadapter.data.reading import images

    good, fourth = images.decode, next(loader(mixture="scenes_caption").batches()).media[3, 0, 0]

    def decode(*args):
        pixels = good(*args)
        if np.array_equal(pixels, fourth):
            raise images.MediaError("not a readable image")
        return pixels

    monkeypatch.setattr(images, "decode", decode)
    made = loader(mixture="scenes_caption", max_bad_share=0.5)
    batch = next(made.batches())
    np.testing.assert_array_equal(batch.target_weights[:, 0], [1, 1, 1, 0, 1, 1, 1, 1])
    assert (batch.media[3] == 0).all() and ((batch.media_index >= 0).sum(1) == 3).all()
    assert made.counters()["skipped"] == 1 and "images/train/" in caplog.text


def test_too_many_corrupt_records_stop_the_run(monkeypatch):
    from vadapter.data.reading import images

    def decode(*args):
        raise images.MediaError("not a readable image")

    monkeypatch.setattr(images, "decode", decode)
    with pytest.raises(UserError, match=r"at most 1.0%.*images/train/\d+: not a readable image"):
        next(loader(mixture="scenes_caption").batches())


def test_an_unreadable_file_of_records_is_named(monkeypatch):
    import seqio

    source = seqio.TaskRegistry.get("scenes_caption").records
    read = type(source).read

    def broken(self, split, indices):
        if 3 in indices:
            raise ValueError("checksum")
        return read(self, split, indices)

    monkeypatch.setattr(type(source), "read", broken)
    made = loader(mixture="scenes_caption", split="validation", max_bad_share=1.0)
    rows = [r for _, found in made.eval_batches() for r in found]
    assert [i for i, r in enumerate(rows[:20]) if not r["valid"]] == [3]
