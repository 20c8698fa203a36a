"""The check of a task before a run: each kind of trouble is found and named."""

import json
import re
import shutil

import numpy as np
import pytest
import tensorflow as tf

from tests.data.conftest import SMALL
from tests.data.files import clip, picture
from vadapter.base.errors import UserError
from vadapter.data import seqio_tasks, tasks
from vadapter.data.check import check_page, scan
from vadapter.data.check.findings import Lengths
from vadapter.data.check.scan import Part
from vadapter.data.order.config import LoaderConfig
from vadapter.data.reading.sources import RandomAccessSource
from vadapter.data.rows import vocabulary as vocabularies
from vadapter.data.rows.preprocessors import Caption
from vadapter.data.rows.sizes import Sizes
from vadapter.data.scenes.scenes_tasks import register_scenes

COLOURS = {"red": (250, 0, 0), "green": (0, 250, 0), "blue": (0, 0, 250), "grey": (90, 90, 90)}


@pytest.fixture
def folder(tmp_path):
    for name, colour in COLOURS.items():
        picture(tmp_path / f"{name}.png", colour)
    return tmp_path


def lines(folder, *records, file="train.jsonl"):
    (folder / file).write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(folder / file)


def captions(*names, text="a field"):
    return [{"image": f"{name}.png", "caption": text} for name in names]


def parts(splits=("train", "validation"), mixture="own", rows=None, **changes):
    sizes = Sizes(16, changes.pop("num_frames", 4), changes.pop("num_visual_tokens", 4))
    settings = {"lengths": {"inputs": 24, "targets": 16}} | changes
    return [
        Part(LoaderConfig(mixture=mixture, split=split, **settings), sizes, training=split == "train", rows=rows)
        for split in splits
    ]


def checked(folder, train, validation=(), settings=None, **changes):
    """The report of a task of the given records."""
    files = {"train": lines(folder, *train)}
    if validation:
        files["validation"] = lines(folder, *validation, file="validation.jsonl")
    tasks.jsonl_task("own", **files, holdout=0.0, vocabulary="scenes", **(settings or {}))
    return scan.check(parts(("train", "validation") if validation else ("train",), **changes))


def problem(report, kind):
    (found,) = [p for p in report.problems if p.kind == kind]
    return found


def test_good_data_have_no_problems(folder):
    report = checked(folder, captions("red", "green"), captions("blue"))
    assert not report.problems and not report.spoils
    train, validation = report.tasks
    assert (train.split, train.training, train.checked, train.distinct_media) == ("train", True, 2, 2)
    assert (validation.split, validation.training, validation.checked) == ("validation", False, 1)
    assert train.visual_tokens == 4 and sum(train.targets.counts.values()) == 2
    json.dumps(report.to_json())


def test_lengths_are_those_of_the_texts_with_start_and_end(folder):
    report = checked(folder, [{"image": "red.png", "caption": "a red field"}], settings={"caption_prompt": "<media>"})
    vocabulary = vocabularies.load_vocabulary("scenes")
    assert dict(report.tasks[0].prompts.counts) == {1: 1}
    assert dict(report.tasks[0].targets.counts) == {len(vocabulary.encode(" a red field")) + 1: 1}


@pytest.mark.parametrize(("share", "spoils"), [(0.25, True), (0.5, False)])
def test_unreadable_media_are_named_and_spoil_above_the_share(folder, share, spoils):
    (folder / "green.png").write_bytes(b"no picture at all")
    (folder / "blue.png").unlink()
    report = checked(folder, captions(*COLOURS), max_bad_share=share)
    found = problem(report, "corrupt")
    assert found.spoils is spoils and (found.count, found.total) == (2, 4)
    assert all(said in found.names[0] for said in ("green.png", "train.jsonl:2", "look like text"))
    assert "blue.png" in found.names[1] and "No such file" in found.names[1]
    assert report.tasks[0].distinct_media == 2


def test_long_texts_are_named_and_spoil_only_if_none_is_whole_or_the_run_stops(folder):
    long = {"image": "green.png", "caption": "a small yellow ring at the top left and so on " * 3, "id": "long one"}
    report = checked(folder, [*captions("red"), long])
    found = problem(report, "cut_target")
    assert found.count == 1 and found.names[0].startswith("long one") and not report.spoils
    assert re.search(r"(\d+) tokens too many", found.names[0])
    assert report.tasks[0].targets.quantile(1.0) > report.tasks[0].targets.room
    assert checked(folder, [long]).spoils
    assert checked(folder, [*captions("red"), long], long_text="error").spoils
    dropped = checked(folder, [*captions("red"), long], long_text="drop")
    assert not dropped.spoils and "leaves these records out" in problem(dropped, "cut_target").text


def test_prompts_that_are_cut_are_named(folder):
    ask = {"image": "red.png", "question": "what " * 60, "answers": ["a field"], "id": "chatty"}
    found = problem(checked(folder, [ask]), "cut_prompt")
    assert found.names[0].startswith("chatty") and not found.spoils


def test_overlap_of_training_and_validation_is_found_by_the_bytes(folder):
    shutil.copy(folder / "red.png", folder / "holiday.png")
    report = checked(folder, captions("red", "green"), captions("holiday", "blue"))
    found = problem(report, "overlap")
    assert found.spoils and found.where == "own/validation" and (found.count, found.total) == (1, 2)
    assert "holiday.png" in found.names[0] and "red.png" in found.names[0]


def test_overlap_is_found_between_tasks_of_other_kinds(folder):
    ask = {"image": "red.png", "question": "what is it", "answers": ["a field"]}
    report = checked(folder, [*captions("red"), ask], [{**ask, "id": "asked"}, *captions("blue")])
    assert problem(report, "overlap").names[0].startswith("asked")


def test_copies_and_repetitions_are_warnings(folder):
    shutil.copy(folder / "red.png", folder / "again.png")
    train = [*captions("red"), *captions("red", text="another text"), *captions("again"), *captions("green", "green")]
    report = checked(folder, train)
    assert not report.spoils
    assert [("again.png" in n, "red.png" in n) for n in problem(report, "copies").names] == [(True, True)]
    assert [n.split(" ")[0] for n in problem(report, "repeated").names] == ["train.jsonl:3", "train.jsonl:5"]
    assert report.tasks[0].distinct_media == 2


def test_videos_are_read_and_hashed(folder):
    clip(folder / "a.mp4", [20, 100, 180, 240])
    shutil.copy(folder / "a.mp4", folder / "b.mp4")
    video = [{"video": f"{name}.mp4", "caption": "it gets light"} for name in "ab"]
    report = checked(folder, video, num_frames=2, num_visual_tokens={1: 4, 2: 6})
    assert report.tasks[0].visual_tokens == 6 and report.tasks[0].media == "video"
    assert "b.mp4" in problem(report, "copies").names[0]
    assert report.examples[0].pixels == "16 x 16 pixels, 2 frames"


def test_a_split_without_records_spoils(folder):
    tasks.jsonl_task("own", lines(folder, *captions("red")), holdout=0.0, vocabulary="scenes")
    report = scan.check(parts())
    found = problem(report, "empty_split")
    assert report.spoils and found.where == "own/validation" and "train" in found.text


def test_an_adapter_without_tokens_for_the_frames_spoils(folder):
    report = checked(folder, captions("red"), num_visual_tokens={2: 4})
    assert problem(report, "misfit").spoils


def test_ids_outside_the_decoders_table_spoil(folder):
    highest = max(vocabularies.load_vocabulary("scenes").encode(" a field"))
    assert not checked(folder, captions("red"), rows=512).problems
    found = problem(checked(folder, captions("red"), rows=highest), "outside_table")
    assert found.spoils and f"table of {highest} rows" in found.names[0]


class Texts(RandomAccessSource):
    """Grey images with the given captions; None cannot be read."""

    media = "image"
    splits = ("train",)

    def __init__(self, *texts):
        self.texts = texts

    def num_examples(self, split):
        return len(self.texts)

    def read(self, split, indices):
        if any(self.texts[i] is None for i in indices):
            raise ValueError("a torn page")
        return [self.texts[i] for i in indices]

    def read_media(self, record, shape, choice=0):
        return np.full(shape, 128, np.uint8)

    def features(self, record):
        return {"id": f"the {record}", "captions": [record]}


def add_texts(*texts, then=()):
    tasks.add_task("texts", Texts(*texts), [Caption(), *then], vocabulary=vocabularies.load_vocabulary("scenes"))


def test_empty_targets_are_named_and_spoil_if_there_are_no_others():
    add_texts("a field", "", "a field")
    report = scan.check(parts(("train",), "texts"))
    found = problem(report, "empty_target")
    assert found.names == ("the ",) and not report.spoils
    add_texts("", "")
    assert scan.check(parts(("train",), "texts")).spoils


def test_records_that_cannot_be_read_are_named_by_their_place():
    add_texts("a field", None, "a field")
    (name,) = problem(scan.check(parts(("train",), "texts")), "corrupt").names
    assert "record 1" in name and "a torn page" in name


def test_a_prompt_without_room_for_the_medium_spoils():
    def no_medium(dataset):
        return dataset.map(lambda ex: {**ex, "inputs": tf.constant([5, 6], tf.int32)})

    add_texts("a field", then=[no_medium])
    found = problem(scan.check(parts(("train",), "texts")), "misfit")
    assert found.spoils and "0 slots for 4" in found.names[0]


def test_tasks_of_ordinary_sources_are_refused():
    import seqio

    seqio_tasks.remove("strange")
    source = seqio.FunctionDataSource(lambda split, shuffle_files, seed=None: tf.data.Dataset.range(1), ("train",))
    seqio.TaskRegistry.add("strange", source=source, output_features={}, preprocessors=[])
    with pytest.raises(UserError, match="strange"):
        scan.check(parts(("train",), "strange"))


def test_limit_reads_some_of_the_whole_split_and_reports_progress(folder):
    tasks.jsonl_task("own", lines(folder, *captions("red", "green", "blue", "grey")), holdout=0.0, vocabulary="scenes")
    calls = []
    report = scan.check(parts(("train",)), limit=2, progress=lambda *call: calls.append(call))
    assert report.tasks[0].records == 4 and report.tasks[0].checked == 2
    assert [e.name.split(" ")[0] for e in report.examples] == ["train.jsonl:1", "train.jsonl:4"]
    assert calls[-1] == ("own/train", 2, 2)


def test_scenes_with_labels_and_with_text_only(scenes_dir):
    register_scenes(scenes_dir, SMALL)  # another test of this process may have registered others
    labels, text = (scan.check(parts(("train",), name)) for name in ("scenes_labels", "scenes_text"))
    assert labels.tasks[0].checked == 150 and not labels.spoils and labels.examples[0].picture
    assert text.tasks[0].checked == 60 and text.tasks[0].visual_tokens == 0 and text.examples[0].picture is None


def test_the_sheet_shows_the_row_of_the_model(folder):
    report = checked(folder, [{"image": "red.png", "caption": "a red field"}])
    (example,) = report.examples
    assert [t.text for t in example.prompt if t.kind == "visual"] == ["4 visual tokens"]
    assert "".join(t.text for t in example.target if t.kind == "text") == " a red field"
    assert example.target[-1].kind == "special" and all(t.weight == 1 for t in example.target)


def test_the_page_has_the_pictures_escaped_text_and_the_names(folder):
    (folder / "blue.png").write_bytes(b"")
    evil = {"image": "red.png", "caption": "<script>alert(1)</script>"}
    report = checked(folder, [evil, *captions("green", "blue")], lengths={"inputs": 24, "targets": 64})
    check_page.write(report, folder / "check.html", "A <title>")
    page = (folder / "check.html").read_text()
    assert page.count('<img src="data:image/png;base64,') == 2
    assert "<script" not in page and "&lt;" in page
    assert "A &lt;title&gt;" in page and "blue.png" in page and "an empty file" in page
    assert not re.search(r"(src|href)=[\"'](?!data:)|url\(|@import", page)
    assert "<rect" in page and "loss weight 1" in page


def test_lengths_bins_cover_all_texts():
    lengths = Lengths(room=10)
    lengths.counts.update([3, 3, 8, 50])
    bins = lengths.bins(5)
    assert sum(count for *_, count in bins) == 4 and bins[0][0] == 0 and bins[-1][1] >= 50 and len(bins) <= 5
    assert (lengths.quantile(0.5), lengths.quantile(1.0)) == (3, 50)
    assert Lengths(room=1).bins() == [] and Lengths(room=1).quantile(0.5) == 0


def test_a_histogram_marks_what_is_cut_and_the_room():
    lengths = Lengths(room=10)
    lengths.counts.update([10, 10, 11])
    drawn = check_page.bars(lengths)
    assert [(round(height), cut) for _, _, _, height, cut, _ in drawn["rectangles"]] == [(90, False), (45, True)]
    assert drawn["rectangles"][0][0] < drawn["limit"] <= drawn["rectangles"][1][0]


def test_media_inside_of_archives_are_hashed(tmp_path):
    from tests.data.pair_files import write_tar

    write_tar(tmp_path / "train.tar", [1, 2, 3])
    write_tar(tmp_path / "validation.tar", [3, 4])
    tasks.pairs_task("pairs", str(tmp_path / "train.tar"), str(tmp_path / "validation.tar"), vocabulary="scenes")
    report = scan.check(parts(mixture="pairs"))
    found = problem(report, "overlap")
    assert found.count == 1 and found.names[0].count("00003") == 2
    assert [task.distinct_media for task in report.tasks] == [3, 2]


def test_a_benchmark_built_of_official_files(tmp_path):
    from tests.benchmarks import official_files
    from vadapter.benchmarks.tasks import benchmark_task

    (tmp_path / "official").mkdir()
    rows = official_files.vqav2(tmp_path / "official")
    benchmark_task("vqav2", str(tmp_path / "built"), str(tmp_path / "official"), shots=0)
    (split,) = scan.splits_of("vqav2")
    (found,) = scan.check(parts((split,), "vqav2", lengths={"inputs": 64, "targets": 32})).tasks
    assert found.checked == found.whole_targets == len(rows) and 1 <= found.distinct_media <= len(rows)
