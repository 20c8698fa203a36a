"""Captioned images and videos in files of many records."""

import itertools
import tarfile
from typing import Any

import numpy as np
import pytest

from tests.data import pair_files
from tests.data.files import copy_to_ram
from tests.data.media_files import movie
from tests.data.pair_files import add, caption, colour, example, loader, png, read, register, rows, write
from vadapter.base.errors import UserError
from vadapter.data.order.config import LoaderConfig
from vadapter.data.reading import shard_index, shards, storage

pytestmark = pytest.mark.slow

FORMATS = tuple(pair_files.ENDINGS)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vadapter" / "shards"


def colours(batches):
    return np.concatenate([batch.media[:, 0, 0, 8, 8] for batch in batches])


# Formats


@pytest.mark.parametrize("format_", FORMATS)
def test_each_format_gives_images_with_their_captions(tmp_path, format_):
    register(write(tmp_path, format_))
    found = rows()
    valid = [row for row in found if row["valid"]]
    assert [row["references"] for row in valid] == [[caption(i)] for i in range(20)]
    for i, row in enumerate(valid):
        np.testing.assert_array_equal(row["thumbnail"][0, 8, 8], colour(i))
    assert valid[0]["prompt"] == "Describe the following: <media> :"


@pytest.mark.parametrize("format_", FORMATS)
def test_order_is_a_function_of_seed_and_step_for_any_number_of_hosts(tmp_path, format_):
    register(write(tmp_path, format_))
    whole = colours(itertools.islice(loader().batches(), 5))
    assert sorted(map(tuple, whole)) == sorted(colour(i) for i in range(20))  # an epoch
    assert [tuple(c) for c in whole] != [colour(i) for i in range(20)]
    resumed = colours(itertools.islice(loader().batches(3), 2))
    np.testing.assert_array_equal(resumed, whole[12:])
    halves = [list(itertools.islice(loader(index=h, count=2).batches(), 5)) for h in range(2)]
    shared = np.concatenate([colours([part[step]]) for step in range(5) for part in halves])
    np.testing.assert_array_equal(shared, whole)
    assert (colours(itertools.islice(loader(seed=1).batches(), 5)) != whole).any()


def test_records_of_all_over_the_files_are_held_out(tmp_path):
    register(write(tmp_path, "parquet"), holdout=0.1)
    assert loader().num_examples() == 18
    held = [row["references"] for row in rows(split="validation") if row["valid"]]
    assert held == [["picture 5"], ["picture 17"]]  # one of each half
    trained = colours(itertools.islice(loader(batch_size=6).batches(), 3))
    others = [colour(i) for i in range(20) if i not in (5, 17)]
    np.testing.assert_array_equal(sorted(map(tuple, trained)), sorted(others))


def test_validation_files(tmp_path):
    train = write(tmp_path, "tar")
    (tmp_path / "val").mkdir()
    register(train, validation=write(tmp_path / "val", "tar", 3, 1))
    assert len([row for row in rows(split="validation") if row["valid"]]) == 3
    assert loader().num_examples() == 20


def test_captions_in_json_members(tmp_path):
    pair_files.write_tar(tmp_path / "a.tar", range(3), "json")
    assert read(f"{tmp_path}/a.tar") == [caption(i) for i in range(3)]
    assert read(f"{tmp_path}/a.tar", caption_field="url") == ["http://x"] * 3
    pair_files.write_tar(tmp_path / "b.tar", range(3))
    with pytest.raises(UserError, match=r"at most 1.0%.*found 3 of 3|no record that has both \(3 without\)"):
        register(f"{tmp_path}/b.tar", caption_field="better")


def test_parquet_as_hugging_face_writes_it(tmp_path):
    images = [{"bytes": png(i), "path": None} for i in range(3)]
    pair_files.write_parquet(tmp_path / "a.parquet", [], columns={"image": images, "text": [["a", "b"]] * 3})
    register(f"{tmp_path}/a.parquet", caption_field="text")
    found = rows()
    assert [row["references"] for row in found if row["valid"]] == [["a", "b"]] * 3
    np.testing.assert_array_equal(found[2]["thumbnail"][0, 0, 0], colour(2))


def test_parquet_with_paths_and_addresses(tmp_path, caplog):
    (tmp_path / "x.png").write_bytes(png(5))
    columns = {"image": ["x.png", "https://example.org/y.png"], "caption": ["here", "there"]}
    pair_files.write_parquet(tmp_path / "a.parquet", [], columns=columns)
    assert read(f"{tmp_path}/a.parquet") == ["here"]
    assert "download it first" in caplog.text


@pytest.mark.parametrize("format_", ["tfrecord", "array_record", "parquet"])
def test_a_field_that_is_not_there_is_named(tmp_path, format_, caplog):
    files = write(tmp_path, format_, 4, 1)
    if format_ == "parquet":
        with pytest.raises(UserError, match="Expected a column 'captions'; the nearest are caption"):
            register(files, caption_field="captions")
    else:
        register(files, caption_field="captions")
        assert not [row for row in rows(max_bad_share=1.0) if row["valid"]]
        assert "has no feature 'captions'; its features are caption, image" in caplog.text


def test_videos_in_tar_and_as_frames(tmp_path):
    data = movie(tmp_path / "a.mp4", [20, 100, 180, 240]).read_bytes()
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        add(archive, "k.mp4", data)
        add(archive, "k.txt", b"lighter")
    register(f"{tmp_path}/a.tar", media="video")
    np.testing.assert_allclose(rows()[0]["thumbnail"].mean((1, 2, 3)), [20, 100, 180, 240], atol=8)
    import tensorflow as tf

    with tf.io.TFRecordWriter(f"{tmp_path}/b.tfrecord") as file:
        file.write(example(frames=[png(i) for i in range(8)], text=b"frames"))
    register(f"{tmp_path}/b.tfrecord", media="video", media_field="frames", caption_field="text")
    np.testing.assert_array_equal(rows()[0]["thumbnail"][:, 0, 0], [colour(i) for i in (1, 3, 5, 7)])


def test_random_frames_differ_between_epochs_and_come_back(tmp_path):
    (tmp_path / "m.mp4").write_bytes(movie(tmp_path / "b.mp4", range(0, 250, 5), keys_every=5).read_bytes())
    (tmp_path / "a.jsonl").write_text('{"video": "m.mp4", "caption": "x"}\n')
    register(f"{tmp_path}/a.jsonl", media="video", frame_sampling="random")
    first, again = (list(itertools.islice(loader(batch_size=1).batches(), 3)) for _ in range(2))
    means = [[b.media.mean((0, 1, 3, 4, 5)) for b in batches] for batches in (first, again)]
    np.testing.assert_array_equal(means[0], means[1])
    assert np.abs(means[0][0] - means[0][1]).max() > 4
    with pytest.raises(UserError, match="uniform, centre, random; found 'middle'"):
        register(f"{tmp_path}/a.jsonl", media="video", frame_sampling="middle")


def test_a_mixture_of_three_sources_in_gin(tmp_path):
    import seqio

    from vadapter.data import tasks
    from vadapter.recipes import gin_front

    gin_front.register([tasks.pairs_task, tasks.add_mixture, LoaderConfig])
    (tmp_path / "v").mkdir()
    movie(tmp_path / "v" / "m.webm", [10, 200])
    (tmp_path / "v" / "a.jsonl").write_text('{"video": "m.webm", "caption": "video"}\n' * 3)
    clips = f'["{tmp_path}/v/a.jsonl"]'
    bindings = [
        "VOCABULARY='scenes'",
        "PROMPT_FORMAT='plain'",
        f"IMAGE_FILES='{write(tmp_path, 'tar')}'",
        f"VIDEO_FILES={clips}",
        f"CLIP_FILES={clips}",
    ]
    gin_front.parse_gin(["data/mixture.gin"], [*bindings, "LoaderConfig.mixture=%MIXTURE_OR_TASK_NAME"])
    import gin

    name = gin.get_configurable("LoaderConfig")().mixture
    mixture: Any = seqio.get_mixture_or_task(name)
    rates = {t.name: mixture.get_rate(t) for t in mixture.tasks}
    assert rates == {"captioned_images": 2.0, "captioned_videos": 1.0, "captioned_clips": 1.0}
    shapes = [b.media.shape[2] for b in itertools.islice(loader(name, num_frames=2).batches(), 200)]
    assert 80 < shapes.count(1) < 120  # half of the batches are images


# Remote files


@pytest.mark.parametrize("format_", ["tar", "tfrecord", "parquet", "jsonl"])
def test_remote_files(tmp_path, format_):
    """`ram://` is read as `gs://` is, through TensorFlow's file systems."""
    write(tmp_path, format_)
    remote = f"ram://{tmp_path.name}/{format_}"
    copy_to_ram(tmp_path, remote)
    assert read(f"{remote}/web-*.{pair_files.ENDINGS[format_]}") == [caption(i) for i in range(20)]
    np.testing.assert_array_equal(
        sorted(map(tuple, colours(itertools.islice(loader().batches(), 5)))), sorted(map(colour, range(20)))
    )


def test_remote_array_records_are_refused():
    with pytest.raises(UserError, match="Expected local ArrayRecord files; found gs://"):
        register("gs://bucket/a.array_record")


# Names


def test_patterns(tmp_path):
    for name in ("a-08.tar", "a-09.tar", "a-10.tar", "b.tar"):
        (tmp_path / name).touch()
    names = [p.rsplit("/", 1)[-1] for p in shards.expand([f"{tmp_path}/a-{{08..10}}.tar", f"{tmp_path}/{{b,c}}.tar"])]
    assert names == ["a-08.tar", "a-09.tar", "a-10.tar", "b.tar", "c.tar"]
    assert [p[-8:] for p in shards.expand(f"{tmp_path}/a*.tar")] == ["a-08.tar", "a-09.tar", "a-10.tar"]
    assert shards.expand("gs://x/{9..11}") == ["gs://x/9", "gs://x/10", "gs://x/11"]
    with pytest.raises(UserError, match=r"files named .*z\*\.tar; found none"):
        shards.expand(f"{tmp_path}/z*.tar")
    with pytest.raises(UserError, match="found none"):
        shards.expand([])


def test_missing_files_are_counted_and_named(tmp_path):
    pattern = write(tmp_path, "tar").replace("002", "004")
    with pytest.raises(UserError, match=r"Expected 5 files; 2 are missing: .*web-003.tar, .*web-004.tar"):
        register(pattern)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"files": ""}, "pairs_task.files"),
        ({"files": "a.tar", "media": "sound"}, "found 'sound'"),
        ({"files": "a.zip"}, "one of tar, tfrecord"),
        ({"files": "a.tar", "format": "webdataset"}, "found 'webdataset'"),
        ({"files": "a.tar", "name": "a/b"}, "pairs_task.name"),
        ({"files": "a.tar", "prompt": "nothing"}, "<media>"),
    ],
)
def test_bad_settings(settings, message):
    from vadapter.data import tasks

    with pytest.raises(UserError, match=message):
        tasks.pairs_task(**{"vocabulary": "scenes", **settings})


# Indexes


def test_an_index_is_kept_and_renewed_when_the_file_changes(tmp_path, cache, monkeypatch):
    scans = []
    scan = shard_index.index_tar
    monkeypatch.setattr(shard_index, "index_tar", lambda file, check: scans.append(1) or scan(file, check))
    files = write(tmp_path, "tar")
    assert len(read(files)) == len(read(files)) == 20 and len(scans) == 3
    pair_files.write_tar(tmp_path / "web-001.tar", range(2))
    assert len(read(files)) == 15 and len(scans) == 4
    for path in cache.iterdir():
        path.write_bytes(b"damaged")
    assert len(read(files)) == 15 and len(scans) == 7
    renewed = [path for path in cache.iterdir() if path.read_bytes() != b"damaged"]
    assert len(renewed) == 3
    with np.load(renewed[0], allow_pickle=False) as kept:  # nothing in it is pickled
        assert kept["offsets"].dtype == np.int64


def test_a_cache_folder_that_cannot_be_written_is_said(tmp_path, caplog):
    (tmp_path / "file").touch()
    assert len(read(write(tmp_path, "tar"), cache_dir=f"{tmp_path}/file")) == 20
    assert "the next run will scan again" in caplog.text


def test_checksums_are_those_of_the_format():
    assert shard_index.masked_crc32c(b"") == 0xA282EAD8
    crc = 0xE3069283  # of "123456789", the standard's check value
    assert shard_index.masked_crc32c(b"123456789") == (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def test_each_row_group_is_read_once_an_epoch(tmp_path, monkeypatch):
    register(write(tmp_path, "parquet"))
    opened = []
    real = storage.open_file
    monkeypatch.setattr(storage, "open_file", lambda path: opened.append(path) or real(path))
    list(itertools.islice(loader().batches(), 5))
    assert len(opened) == 6  # two row groups in each of three files


def test_pairs_are_described_for_the_record_of_a_model(tmp_path):
    from vadapter.data import mixture_description

    found = mixture_description.describe(register(write(tmp_path, "tar"), resize="crop", prompt="Say <media> :"))
    assert found["resize"] == "crop" and found["prompts"] == {"caption": "Say <media> :"}


def test_parquet_with_a_list_of_one_picture(tmp_path):
    images = [[{"bytes": png(i), "path": None}] for i in range(3)]
    pair_files.write_parquet(tmp_path / "a.parquet", [], columns={"images": images, "text": ["a", "b", "c"]})
    register(f"{tmp_path}/a.parquet", media_field="images", caption_field="text")
    found = rows()
    assert [row["references"] for row in found if row["valid"]] == [["a"], ["b"], ["c"]]
    np.testing.assert_array_equal(found[2]["thumbnail"][0, 0, 0], colour(2))


@pytest.mark.parametrize("kind", ["bytes", "path"])
def test_of_several_pictures_none_is_taken_for_all(tmp_path, kind, caplog):
    """Found as: the first of two pictures was trained on as if it were alone."""
    (tmp_path / "p.png").write_bytes(png(1))
    one = {"bytes": png(1), "path": None} if kind == "bytes" else {"bytes": None, "path": "p.png"}
    pair_files.write_parquet(
        tmp_path / "a.parquet", [], columns={"images": [[one], [one, one], [one]], "text": ["a", "b", "c"]}
    )
    register(f"{tmp_path}/a.parquet", media_field="images", caption_field="text", max_bad_share=0.9)
    assert [bool(row["valid"]) for row in rows()][:3] == [True, False, True]
    assert "a.parquet:0:1: has 2 images" in caplog.text and "chat_task" in caplog.text


def test_lines_with_nulls_numbers_and_halves_of_letters(tmp_path):
    pair_files.write_jsonl(tmp_path / "a.jsonl", [1])
    lines = ['{"image": "1.png", "video": null, "caption": 7}', '{"image": "1.png", "caption": "a \\ud83d dog"}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    assert read(f"{tmp_path}/a.jsonl") == ["7", "a \ufffd dog"]


def test_pairs_need_a_vocabulary(tmp_path):
    with pytest.raises(UserError, match="pairs_task.vocabulary; found none"):
        register(write(tmp_path, "tar", 3, 1), vocabulary="")
