"""Each benchmark from official files to batches and rows; and what is said of files that are wrong."""

import json
import logging
from typing import Any

import numpy as np
import pytest

from tests.benchmarks import official_files
from tests.data.loaders import make_loader
from vadapter.base import resources
from vadapter.base.errors import UserError

VIDEO = ("msrvtt_caption", "vatex_caption", "msvd_caption", "msrvtt_qa", "msvd_qa", "ivqa")


def register(name, folder, **settings):
    from vadapter.benchmarks.tasks import benchmark_task

    return benchmark_task(name, str(folder / "built"), str(folder / "official"), **settings)


def shots(name) -> dict[str, Any]:
    return {"shots": 0} if name in official_files.WITHOUT_EXAMPLES else {}


def rows(name, split, **changes):
    settings: dict[str, Any] = {"batch_size": 2, "lengths": {"inputs": 400, "targets": 40}}
    made = make_loader(name, split=split, **(settings | changes))
    found = [(batch, i, row) for batch, found in made.eval_batches() for i, row in enumerate(found) if row["valid"]]
    return found, made


@pytest.mark.parametrize("name", official_files.WRITERS)
def test_official_files_become_rows(name, tmp_path, caplog):
    from vadapter.benchmarks import table

    expected = official_files.write(name, tmp_path / "official")
    with caplog.at_level(logging.WARNING):
        register(name, tmp_path, **shots(name))
    assert "not used" not in caplog.text  # all fields of the format are known
    found, loader = rows(name, table.benchmark_split(name))
    assert [row["id"] for _, _, row in found] == [row.id for row in expected]
    for (batch, i, row), wanted in zip(found, expected, strict=True):
        assert row["references"] == wanted.references and row["task"] == name
        assert row["question"] == wanted.question
        assert row["answers"] == (wanted.references if wanted.question else [])
        assert {key: row[key] for key in wanted.extra} == wanted.extra
        frames = 4 if name in VIDEO else 1
        shown = len(wanted.extra["image"].split()) if "image" in wanted.extra else 1
        assert batch.media.shape[1:] == (2 if name == "mmmu" else 1, frames, 16, 16, 3)
        assert [bool(x.max() > 60) for x in batch.media[i]][:shown] == [True] * shown
        assert (batch.media_index[i] >= 0).sum() == 3 * shown
        text = loader.vocabulary.decode([int(t) for t in batch.target_ids[i] if t])
        assert text.strip() in [reference.strip() for reference in wanted.references]
    assert loader.counters()["truncated"] == 0


@pytest.mark.parametrize("name", official_files.WRITERS)
def test_a_built_data_set_needs_no_official_files(name, tmp_path):
    from vadapter.benchmarks import table
    from vadapter.benchmarks.tasks import benchmark_task

    expected = official_files.write(name, tmp_path / "official")
    register(name, tmp_path, **shots(name))
    (tmp_path / "official").rename(tmp_path / "elsewhere")
    benchmark_task(name, str(tmp_path / "built"), **shots(name))
    assert len(rows(name, table.benchmark_split(name))[0]) == len(expected)


def test_files_that_several_questions_show_are_kept_once(tmp_path):
    official_files.write("vqav2", tmp_path / "official")
    register("vqav2", tmp_path)
    found, _ = rows("vqav2", "validation")
    colours = [batch.media[i, 0, 0, 8, 8].argmax() for batch, i, _ in found]
    assert colours == [0, 0, 1]
    from vadapter.benchmarks import builder

    made = builder.builder(str(tmp_path / "built"), "vqav2", "validation")
    kept = [bool(record["file"]) for record in made.as_data_source("validation")]
    assert kept == [True, False, True]


def test_training_and_several_splits(tmp_path):
    official_files.write("vqav2", tmp_path / "official")
    register("vqav2", tmp_path, splits=("train", "validation", "test_dev"), shots=0)
    batches = make_loader("vqav2", batch_size=4).batches()
    assert next(batches).media.shape == (4, 1, 1, 16, 16, 3)
    found, _ = rows("vqav2", "test_dev")
    assert [(row["references"], row["answers"]) for _, _, row in found] == [([], [])] * 2


def test_other_splits_of_the_same_files(tmp_path):
    for name in ("coco_caption", "coco_karpathy", "nocaps", "msvd_caption"):
        official_files.write(name, tmp_path / name / "official")
    register("coco_caption", tmp_path / "coco_caption", splits=("train", "validation_2017"))
    assert [row["id"] for _, _, row in rows("coco_caption", "validation_2017")[0]] == ["42"]
    register("coco_karpathy", tmp_path / "coco_karpathy", splits=("train", "validation"))
    assert [row["id"] for _, _, row in rows("coco_karpathy", "train")[0]] == ["184613", "9"]
    register("nocaps", tmp_path / "nocaps", splits=("test",))
    assert [row["id"] for _, _, row in rows("nocaps", "test")[0]] == ["3"]
    register("msvd_caption", tmp_path / "msvd_caption", splits=("train",))
    clips = [official_files.CLIPS[n] for n in (1, 1200)]
    assert [row["id"] for _, _, row in rows("msvd_caption", "train")[0]] == clips


def test_captions_of_msvd_from_the_original_table(tmp_path):
    official_files.write("msvd_caption", tmp_path / "official")
    (tmp_path / "official" / "AllVideoDescriptions.txt").unlink()
    (tmp_path / "official" / "MSR Video Description Corpus.csv").write_text(
        "VideoID,Start,End,WorkerID,Source,AnnotationTime,Language,Description\n"
        '-8y1Q0rA3n8,108,115,33,clean,28,English,"a girl, dancing"\n'
        "-8y1Q0rA3n8,108,115,34,clean,20,German,ein Mädchen tanzt\n",
        encoding="utf-8",
    )
    register("msvd_caption", tmp_path)
    assert rows("msvd_caption", "test")[0][0][2]["references"] == ["a girl, dancing"]


def test_the_catalogue_is_made_of_the_table():
    from vadapter.benchmarks import catalogue

    readme = (resources.folder("data") / "README.md").read_text(encoding="utf-8")
    assert catalogue.markdown() in readme, "run python -m vadapter.benchmarks.catalogue and put its lines there"


# Bad input


def test_missing_and_empty_media_are_named_and_limited(tmp_path, caplog):
    official_files.write("coco_caption", tmp_path / "official")
    (tmp_path / "official" / "val2014" / "COCO_val2014_000000000042.jpg").unlink()
    (tmp_path / "official" / "val2014" / "COCO_val2014_000000000073.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"2 rows cannot be used, first 42 \(COCO_val2014_000000000042\): no file"):
        register("coco_caption", tmp_path)
    assert not list((tmp_path / "built").rglob("*.array_record*"))
    register("coco_caption", tmp_path, max_bad_share=0.7)
    assert "left out 73 (COCO_val2014_000000000073)" in caplog.text
    assert [row["id"] for _, _, row in rows("coco_caption", "validation")[0]] == ["74"]
    caplog.clear()
    register("coco_caption", tmp_path)
    assert "coco_caption validation was built without 2 rows" in caplog.text


def test_a_damaged_picture_is_skipped_by_the_loader(tmp_path):
    official_files.write("coco_caption", tmp_path / "official")
    (tmp_path / "official" / "val2014" / "COCO_val2014_000000000042.jpg").write_bytes(b"\xff\xd8\xff broken")
    register("coco_caption", tmp_path)
    found, loader = rows("coco_caption", "validation", max_bad_share=1.0)
    assert [row["id"] for _, _, row in found] == ["73", "74"] and loader.counters()["skipped"] == 1


def test_a_split_of_another_size_than_the_official_one_is_said(tmp_path, caplog):
    official_files.write("vqav2", tmp_path / "official")
    register("vqav2", tmp_path, shots=0)
    assert "vqav2 validation has 3 rows; the official split has 214354" in caplog.text


def changed(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def twice(key):
    return lambda value: (value[key] if key else value).append((value[key] if key else value)[0])


DUPLICATES = {
    "coco_caption": ("annotations/captions_val2014.json", twice("images"), "image id once.*42"),
    "coco_karpathy": ("dataset_coco.json", twice("images"), "cocoid once.*391895"),
    "msrvtt_caption": ("test_videodatainfo.json", twice("videos"), "video_id once.*video7010"),
    "vatex_caption": ("vatex_public_test_english_v1.1.json", twice(""), "videoID once.*-GBUb8Rwz6A"),
    "vqav2": ("v2_OpenEnded_mscoco_val2014_questions.json", twice("questions"), "question_id once.*262148000"),
    "okvqa": ("mscoco_val2014_annotations.json", twice("annotations"), "question_id once"),
    "textvqa": ("TextVQA_0.5.1_val.json", twice("data"), "question_id once.*34602"),
    "vizwiz_vqa": ("val.json", twice(""), "image once.*VizWiz_val_00000000"),
    "msrvtt_qa": ("test_qa.json", twice(""), "id once.*2000"),
}


@pytest.mark.parametrize("name", DUPLICATES)
def test_duplicate_ids(name, tmp_path):
    from vadapter.benchmarks import media, table

    official_files.write(name, tmp_path)
    file, change, message = DUPLICATES[name]
    changed(tmp_path / file, change)
    with pytest.raises(UserError, match=message):
        media.read_items(name, table.benchmark_split(name), str(tmp_path))


def test_duplicate_keys_of_gqa_and_numbers_of_msvd(tmp_path):
    from vadapter.benchmarks import media

    official_files.write("gqa", tmp_path)
    path = tmp_path / "testdev_balanced_questions.json"
    path.write_text(path.read_text()[:-1] + ", " + path.read_text()[1:])
    with pytest.raises(UserError, match="id once in .*220000, 220001"):
        media.read_items("gqa", "testdev", str(tmp_path))
    official_files.write("msvd_caption", tmp_path)
    path = tmp_path / "youtube_mapping.txt"
    path.write_text(path.read_text() + "another_1_2 vid1301\n")
    with pytest.raises(UserError, match="number once in .*1301"):
        media.read_items("msvd_caption", "test", str(tmp_path))


def remove(*path):
    def change(value):
        for key in path[:-1]:
            value = value[key]
        del value[path[-1]]

    return change


MISSING = {
    "coco_caption": ("annotations/captions_val2014.json", remove("annotations", 0, "caption"), "record 0 has no cap"),
    "coco_karpathy": ("dataset_coco.json", remove("images"), "Expected 'images'"),
    "nocaps": ("nocaps_val_4500_captions.json", remove("images", 1, "file_name"), "record 1 has no file_name"),
    "msrvtt_caption": ("test_videodatainfo.json", remove("sentences"), "Expected 'sentences'"),
    "vatex_caption": ("vatex_public_test_english_v1.1.json", remove(1, "enCap"), "record 1 has no enCap"),
    "vqav2": ("v2_mscoco_val2014_annotations.json", remove("annotations", 0), "ids of .* that are not"),
    "textvqa": ("TextVQA_0.5.1_val.json", remove("data", 0, "question"), "record 0 has no question"),
    "vizwiz_vqa": ("val.json", remove(0, "answers", 3, "answer"), "record 3 has no answer"),
    "gqa": ("testdev_balanced_questions.json", remove("220000", "imageId"), "record 0 has no imageId"),
    "msvd_qa": ("test_qa.json", remove(0, "video_id"), "record 0 has no video_id"),
}


@pytest.mark.parametrize("name", MISSING)
def test_missing_fields(name, tmp_path):
    from vadapter.benchmarks import media, table

    official_files.write(name, tmp_path)
    file, change, message = MISSING[name]
    if name == "vqav2":
        message = r"Expected ids of .*questions.json that are in .*annotations.json too; 1 are not, such as 262149002"
    changed(tmp_path / file, change)
    with pytest.raises(UserError, match=message):
        media.read_items(name, table.benchmark_split(name), str(tmp_path))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[: len(data) // 2], r"breaks at line 1.*download it again"),
        (lambda data: b"", "found an empty one"),
        (lambda data: b" \n", "found an empty one"),
        (lambda data: data.replace(b"Thing", b"Caf\xe9"), r"UTF-8.*byte \d+ is not.*iconv -f LATIN1"),
        (lambda data: data.decode().encode("utf-16"), r"UTF-16.*iconv -f UTF-16"),
        (lambda data: b"[1, 2]", "Expected an object"),
        (lambda data: b"<html>404 Not Found</html>", r"breaks at line 1, column 1"),
        (lambda data: data.replace(b'"Thing 0 seen 0"', b"17"), "another type"),
        (lambda data: data.replace(b'"image_id": 2', b'"image_id": 77'), r"not, such as 77"),
    ],
)
def test_damaged_annotation_files(damage, message, tmp_path):
    from vadapter.benchmarks import media

    official_files.write("nocaps", tmp_path)
    path = tmp_path / "nocaps_val_4500_captions.json"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=message):
        media.read_items("nocaps", "validation", str(tmp_path))


def test_a_byte_order_mark_and_unknown_fields_are_taken(tmp_path, caplog):
    from vadapter.benchmarks import media

    official_files.write("vatex_caption", tmp_path)
    path = tmp_path / "vatex_validation_v1.0.json"
    changed(path, lambda rows: rows[0].update(enCap=["Grüße"], topic="sport", mood="good"))
    path.write_text(json.dumps(json.loads(path.read_text()), ensure_ascii=False), encoding="utf-8-sig")
    items = media.read_items("vatex_caption", "validation", str(tmp_path))
    assert items[0].captions == ("Grüße",)
    assert [r.getMessage() for r in caplog.records if "not used" in r.getMessage()] == [
        f"{path}: fields that are not used: mood, topic"
    ]


def test_bad_tables_and_lists(tmp_path):
    from vadapter.benchmarks import media

    official_files.write("ivqa", tmp_path)
    (tmp_path / "test.csv").write_text("video_id,question,answer1\nx,what?,y\n")
    with pytest.raises(UserError, match="record 0 has no answer2, answer3"):
        media.read_items("ivqa", "test", str(tmp_path))
    official_files.write("msvd_caption", tmp_path)
    (tmp_path / "AllVideoDescriptions.txt").write_text("-4wsuPCjDBc_5_15\n")
    with pytest.raises(UserError, match="line 1 is '-4wsuPCjDBc_5_15'"):
        media.read_items("msvd_caption", "test", str(tmp_path))
    (tmp_path / "youtube_mapping.txt").write_text("only one\n")
    with pytest.raises(UserError, match="line 1 is 'only one'"):
        media.read_items("msvd_caption", "test", str(tmp_path))


def test_what_is_not_there_is_said(tmp_path):
    from vadapter.benchmarks import media, table

    with pytest.raises(UserError, match=r"v2_OpenEnded_mscoco_val2014_questions.json.*found nothing"):
        media.read_items("vqav2", "validation", "")
    with pytest.raises(UserError, match=r"official file v2_OpenEnded_mscoco_val2014_questions.json.*data/README.md"):
        media.read_items("vqav2", "validation", str(tmp_path))
    with pytest.raises(UserError, match="Did you mean 'textvqa'"):
        table.benchmark("textqa")
    with pytest.raises(UserError, match="one of train, validation, test_dev, test; found 'val'"):
        table.split("vqav2", "val")


def test_an_interrupted_build_leaves_nothing(tmp_path, monkeypatch):
    from vadapter.benchmarks import builder

    official_files.write("coco_caption", tmp_path / "official")
    whole = builder._example

    def stop(i, entry, plain):
        if i == 1:
            raise KeyboardInterrupt
        return whole(i, entry, plain)

    monkeypatch.setattr(builder, "_example", stop)
    with pytest.raises(KeyboardInterrupt):
        register("coco_caption", tmp_path)
    monkeypatch.setattr(builder, "_example", whole)
    register("coco_caption", tmp_path)
    assert len(rows("coco_caption", "validation")[0]) == 3


def test_shards_for_a_bucket_are_written_here_and_copied(tmp_path, monkeypatch):
    from vadapter.benchmarks import builder

    official_files.write("coco_caption", tmp_path / "official")
    monkeypatch.setattr(builder, "is_remote", lambda path: str(path).startswith(str(tmp_path)))
    copied = []
    copy = builder.epath.Path(tmp_path).__class__.copy
    monkeypatch.setattr(
        builder.epath.Path(tmp_path).__class__,
        "copy",
        lambda path, to, overwrite=False: copied.append(path) or copy(path, to, overwrite=overwrite),
    )
    register("coco_caption", tmp_path)
    assert len(copied) == 1 and not copied[0].exists() and tmp_path not in copied[0].parents
    assert [row["id"] for _, _, row in rows("coco_caption", "validation")[0]] == ["42", "73", "74"]


def test_beam_writes_the_same_data_set(tmp_path):
    pytest.importorskip("apache_beam")
    from vadapter.benchmarks import builder

    official_files.write("vqav2", tmp_path / "official")
    found = []
    for beam in (False, True):
        folder = str(tmp_path / f"beam_{beam}")
        made = builder.prepare(folder, "vqav2", "validation", str(tmp_path / "official"), beam=beam)
        records = made.as_data_source("validation")
        found.append([{k: np.asarray(v).tolist() for k, v in record.items()} for record in records])
    assert found[0] == found[1] and len(found[0]) == 3


def test_without_beam_it_is_said_how_to_get_it(tmp_path, monkeypatch):
    import sys

    from vadapter.benchmarks import builder

    official_files.write("vqav2", tmp_path / "official")
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    monkeypatch.setitem(sys.modules, "apache_beam.options.pipeline_options", None)
    with pytest.raises(UserError, match=r"pip install 'vadapter\[beam\]'"):
        builder.prepare(str(tmp_path), "vqav2", "validation", str(tmp_path / "official"), beam=True)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[:-20], "line 2 is none"),
        (lambda text: text.replace('"no"', '"maybe"'), "label yes or no.*'maybe' of question 2"),
        (lambda text: text.replace('"question_id": 2', '"question_id": 1'), "question_id once.*such as 1"),
        (lambda text: text.replace('"label"', '"answer"'), "record 0 has no label"),
        (lambda text: text.replace('"COCO_val2014_000000310196.jpg"', "3"), "another type"),
    ],
)
def test_damaged_files_of_pope(damage, message, tmp_path):
    from vadapter.benchmarks import media

    official_files.write("pope", tmp_path)
    path = tmp_path / "coco_pope_popular.json"
    path.write_text(damage(path.read_text()))
    with pytest.raises(UserError, match=message):
        media.read_items("pope", "test", str(tmp_path))
    assert [item.id for item in media.read_items("pope", "random", str(tmp_path))] == ["1", "2"]


def test_a_benchmark_without_training_questions_is_asked_without_examples(tmp_path):
    official_files.write("pope", tmp_path / "official")
    with pytest.raises(UserError, match="Expected pope to have a split train.*SHOTS=0"):
        register("pope", tmp_path)


@pytest.mark.parametrize(
    ("name", "file", "change", "message"),
    [
        ("docvqa", "val_v1.0_withQT.json", twice("data"), "questionId once.*49153"),
        ("docvqa", "val_v1.0_withQT.json", remove("data", 1, "image"), "record 1 has no image"),
        ("docvqa", "val_v1.0_withQT.json", remove("data", 0, "answers"), "1 have none, first question 49153"),
        (
            "docvqa",
            "val_v1.0_withQT.json",
            lambda value: value["data"][0].update(answers="0.28"),
            "'0.28' is not a list",
        ),
        ("textvqa", "TextVQA_0.5.1_val.json", lambda value: value["data"][0].update(answers="stop"), "not a list"),
        ("chartqa", "test/test_human.json", remove(0, "label"), "record 0 has no label"),
        ("chartqa", "test/test_augmented.json", lambda rows: rows[0].update(label=["14"]), "another type"),
    ],
)
def test_damaged_files_of_texts_documents_and_charts(name, file, change, message, tmp_path):
    from vadapter.benchmarks import media, table

    official_files.write(name, tmp_path)
    changed(tmp_path / file, change)
    with pytest.raises(UserError, match=message):
        media.read_items(name, table.benchmark_split(name), str(tmp_path))


def test_the_first_release_of_docvqa_and_its_test_split(tmp_path):
    from vadapter.benchmarks import media

    official_files.write("docvqa", tmp_path)
    newer = media.read_items("docvqa", "validation", str(tmp_path))
    (tmp_path / "val_v1.0_withQT.json").rename(tmp_path / "val_v1.0.json")
    assert media.read_items("docvqa", "validation", str(tmp_path)) == newer
    (tmp_path / "val_v1.0.json").unlink()
    with pytest.raises(UserError, match="official file val_v1.0_withQT.json"):
        media.read_items("docvqa", "validation", str(tmp_path))
    assert [item.answers for item in media.read_items("docvqa", "test", str(tmp_path))] == [()]
