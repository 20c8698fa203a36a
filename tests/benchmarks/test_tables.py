"""Benchmarks with pictures inside their files or in folders of their own: other layouts, and files that are wrong."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from tests.benchmarks import official_tables
from vadapter.base.errors import UserError


def items(name, folder, split=""):
    from vadapter.benchmarks import media, table

    return media.read_items(name, table.benchmark_split(name, split), str(folder))


def shown(item):
    return [picture.read() for picture in item.pictures]


# Layouts


def test_scienceqa_of_a_hub(tmp_path):
    expected = official_tables.scienceqa(tmp_path, 4)
    official_tables.scienceqa_hub(tmp_path)
    found = items("scienceqa", tmp_path / "hub")
    assert [item.id for item in found] == ["0", "1", "2", "3"]
    assert [item.question for item in found] == [row.question for row in expected]
    assert [item.answers for item in found] == [tuple(row.references) for row in expected]
    assert [item.answer_type for item in found] == [row.extra["answer_type"] for row in expected]
    assert [len(shown(item)) for item in found] == [1, 0, 1, 0]
    assert shown(found[2])[0] == official_tables.png(tmp_path, 2)
    assert [item.id for item in items("scienceqa", tmp_path / "hub", "test_image")] == ["0", "2"]
    assert [item.id for item in items("scienceqa", tmp_path, "test_image")] == ["201", "203"]


def test_mme_of_a_hub(tmp_path):
    expected = official_tables.mme(tmp_path)
    official_tables.mme_hub(tmp_path, expected)
    found = items("mme", tmp_path / "hub")
    assert [(item.id, item.question, item.answers) for item in found] == [
        (row.id, row.question, tuple(row.references)) for row in expected
    ]
    assert [item.question_type for item in found] == [row.extra["question_type"] for row in expected]


@pytest.mark.parametrize("write", [official_tables.ocrbench_hub, official_tables.ocrbench_tsv])
def test_other_files_of_ocrbench(tmp_path, write):
    expected = official_tables.ocrbench(tmp_path / "official", 6)
    write(tmp_path, expected)
    found = items("ocrbench", tmp_path)
    assert [(item.id, item.answers, item.question_type) for item in found] == [
        (row.id, tuple(row.references), row.extra["question_type"]) for row in expected
    ]
    assert [shown(item) for item in found] == [[official_tables.png(tmp_path, i)] for i in range(6)]
    formulas = [item.domain for item in found if "Mathematical" in item.question_type]
    assert formulas == ["HME100k"] * 2


def test_all_subjects_of_mmmu_in_one_file(tmp_path):
    expected = official_tables.mmmu(tmp_path / "official", 4)
    parts = [parquet.read_table(path) for path in sorted((tmp_path / "official").rglob("validation-*.parquet"))]
    (tmp_path / "data").mkdir()
    parquet.write_table(pa.concat_tables(parts), tmp_path / "data" / "validation-00000-of-00001.parquet")
    assert [item.id for item in items("mmmu", tmp_path)] == [row.id for row in expected]
    test = items("mmmu", tmp_path / "official", "test")
    assert [(item.answers, len(item.options)) for item in test] == [((), 4)] * 2


def test_rotations_of_mmbench_show_the_picture_of_the_question(tmp_path):
    from vadapter.benchmarks import media

    official_tables.mmbench(tmp_path)
    made, _ = media.entries("mmbench", "validation", str(tmp_path))
    assert [(entry.item.id, entry.at, len(entry.pictures)) for entry in made] == [
        *[("241", 0, 1), ("1000241", 0, 0)],
        *[("242", 2, 1), ("1000242", 2, 0)],
    ]
    assert made[2].item.question.startswith('Context: Read "this".\nThen look.\nWhich is in 242?\nA. a red dog\n')


def test_a_missing_picture_of_mme_and_ocrbench_leaves_its_questions_out(tmp_path):
    from vadapter.benchmarks import media

    official_tables.mme(tmp_path / "mme")
    (tmp_path / "mme" / "posters" / "images" / "0004.jpg").unlink()
    with pytest.raises(UserError, match=r"2 rows cannot be used, first posters/0004#1"):
        media.entries("mme", "test", str(tmp_path / "mme"))
    assert len(media.entries("mme", "test", str(tmp_path / "mme"), 0.1)[0]) == 26
    official_tables.ocrbench(tmp_path / "ocr", 4)
    shutil.rmtree(tmp_path / "ocr" / "OCRBench_Images" / "docVQA")
    with pytest.raises(UserError, match=r"1 rows cannot be used, first 1 \(docVQA/1.jpg\): no file"):
        media.entries("ocrbench", "test", str(tmp_path / "ocr"))


@pytest.mark.parametrize(("name", "shown_by"), [("mmmu", [1, 2, 1]), ("scienceqa", [1, 0, 1, 0])])
def test_a_check_takes_questions_with_several_pictures_or_none(name, shown_by, tmp_path):
    from vadapter.benchmarks import table
    from vadapter.benchmarks.tasks import benchmark_task
    from vadapter.data.check import scan
    from vadapter.data.order.config import LoaderConfig
    from vadapter.data.rows.sizes import Sizes

    expected = official_tables.WRITERS[name](tmp_path / "official")
    assert sorted(len(row.extra["image"].split()) for row in expected) == sorted(shown_by)
    benchmark_task(name, str(tmp_path / "built"), str(tmp_path / "official"), shots=0)
    config = LoaderConfig(mixture=name, split=table.benchmark_split(name), lengths={"inputs": 400, "targets": 16})
    report = scan.check([scan.Part(config, Sizes(16, 4, 3))])
    assert not [problem.text for problem in report.problems if problem.spoils]
    assert report.tasks[0].checked == len(expected) and report.tasks[0].prompts.quantile(1.0) < 200


# Files that are wrong


def changed(path, change, **types):
    """Writes a Parquet file anew with other rows."""
    table = parquet.read_table(path)
    rows = table.to_pylist()
    change(rows)
    types = {name: kind for name, kind in types.items() if rows and name in rows[0]}
    official_tables.table(path, rows, **types)


def setting(row, **values):
    return lambda rows: rows[row].update(values)


def dropping(name):
    def change(rows):
        for row in rows:
            del row[name]

    return change


MMMU, MMSTAR = "Accounting/validation-00000-of-00001.parquet", "mmstar.parquet"
AI2D = "data/test-00000-of-00002.parquet"
IMAGES = {f"image_{i}": official_tables.HUB_IMAGE for i in range(1, 8)}


@pytest.mark.parametrize(
    ("name", "file", "change", "message"),
    [
        ("mmmu", MMMU, setting(0, options="['a', "), r"list of texts.*validation_Accounting_1 has \"\['a', \""),
        ("mmmu", MMMU, setting(0, options="__import__('os')"), "list of texts"),
        ("mmmu", MMMU, setting(0, answer="E"), "letter of an option; that of validation_Accounting_1 is 'E'"),
        ("mmmu", MMMU, setting(0, answer=None), "record 0 has no answer"),
        ("mmmu", MMMU, setting(0, image_1=None), "<image 1> is none of its images"),
        ("mmmu", MMMU, setting(0, id="validation_Accounting_3"), "id once.*validation_Accounting_3"),
        ("mmmu", MMMU, dropping("question_type"), "it has no question_type"),
        ("mmstar", MMSTAR, setting(1, answer="E"), "letter of an option; that of 1 is 'E'"),
        ("mmstar", MMSTAR, setting(1, image=None), "Expected an image with each question.*1 has none"),
        ("mmstar", MMSTAR, setting(1, index=0), "index once"),
        ("mmstar", MMSTAR, lambda rows: [row.update(image="images/1.jpg") for row in rows], "found string"),
        ("mmstar", MMSTAR, lambda rows: rows.clear(), "found none"),
        ("ai2d", AI2D, setting(0, answer="7"), "that of row 0 is '7', and it has 3 options"),
        ("ai2d", AI2D, setting(0, answer="a dog"), "that of row 0 is 'a dog'"),
        ("ai2d", AI2D, lambda rows: [row.update(options="abc") for row in rows], "another type"),
    ],
)
def test_parquet_files_that_are_wrong(name, file, change, message, tmp_path):
    official_tables.WRITERS[name](tmp_path)
    if message == "found none":  # a table of no rows has no types of their own
        parquet.write_table(parquet.read_table(tmp_path / file).slice(0, 0), tmp_path / file)
    else:
        changed(tmp_path / file, change, **(IMAGES if name == "mmmu" else {}))
    with pytest.raises(UserError, match=message):
        items(name, tmp_path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[: len(data) // 2], "Expected a Parquet file"),
        (lambda data: b"", "Expected a Parquet file"),
        (lambda data: b"version https://git-lfs.github.com/spec/v1\n", "Expected a Parquet file"),
    ],
)
def test_damaged_parquet_files(damage, message, tmp_path):
    official_tables.ai2d(tmp_path)
    path = tmp_path / AI2D
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=message):
        items("ai2d", tmp_path)


def test_missing_files_and_shards(tmp_path):
    with pytest.raises(UserError, match=r"official file test-\*.parquet.*data/README.md"):
        items("ai2d", tmp_path)
    with pytest.raises(UserError, match=r"official file test-\*.parquet"):
        items("scienceqa", tmp_path)
    official_tables.ai2d(tmp_path)
    (tmp_path / "data" / "test-00001-of-00002.parquet").unlink()
    with pytest.raises(UserError, match="2 shards.*number 00001 is missing"):
        items("ai2d", tmp_path)


def test_a_picture_without_bytes_stops_the_build(tmp_path):
    from vadapter.benchmarks import builder

    official_tables.ai2d(tmp_path)
    changed(tmp_path / AI2D, setting(0, image={"bytes": b"", "path": "0.png"}))
    with pytest.raises(UserError, match="image or video 0 of the record 0; found an empty one"):
        builder.prepare(str(tmp_path / "built"), "ai2d", "test", str(tmp_path))


def edited(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("\t241\t-\t", "\t999\t-\t", "row 1000241 has '999', and there is no such row|is neither"),
        ("\tiVBOR", "\tiV!OR", "base64 in the column image.*that of row 241 is neither"),
        ("index\t", "number\t", "record 0 has no index"),
        ("\n1000241\t", "\n241\t", "index once.*241"),
        ("\n1000241\t", "\n1000249\t", "1 are not, such as 1000249"),
        ("\n1000241\t", "\nx1\t", "whole numbers as index.*'x1'"),
        ("\tB\timage_style", "\tD\timage_style", "letter of an option"),
        ("\tB\timage_style", "\t\timage_style", "letter of an option; that of .* is None"),
        ("\ta green cat", "\t", "without a gap|record . has no (A|B)"),
    ],
)
def test_tab_separated_files_that_are_wrong(old, new, message, tmp_path):
    official_tables.mmbench(tmp_path)
    edited(tmp_path / "MMBench_DEV_EN.tsv", old, new)
    with pytest.raises(UserError, match=message):
        items("mmbench", tmp_path)


def test_mmbench_without_rotations(tmp_path):
    official_tables.mmbench(tmp_path)
    path = tmp_path / "MMBench_DEV_EN.tsv"
    path.write_text("".join(line for line in path.read_text().splitlines(True)[:2]))
    with pytest.raises(UserError, match="rotated.*found no rotation"):
        items("mmbench", tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Is it?\tYes\n", "found 1 lines, such as 'Is it"),
        ("Is it?\tYes\nIs it not?\tmaybe\n", "Yes or No"),
        ("Is it? Yes\nIs it not? No\n", "a tab"),
        ("", "found an empty one"),
    ],
)
def test_texts_of_mme_that_are_wrong(text, message, tmp_path):
    official_tables.mme(tmp_path)
    (tmp_path / "OCR" / "0009.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        items("mme", tmp_path)


def test_mme_without_a_category(tmp_path):
    official_tables.mme(tmp_path)
    shutil.rmtree(tmp_path / "OCR")
    with pytest.raises(UserError, match="there is no OCR.*sums over all"):
        items("mme", tmp_path)
    (tmp_path / "OCR").mkdir()
    with pytest.raises(UserError, match="found no .txt file"):
        items("mme", tmp_path)


def test_mme_of_a_hub_with_one_question_about_an_image(tmp_path):
    expected = official_tables.mme(tmp_path)
    official_tables.mme_hub(tmp_path, expected[:-1])
    with pytest.raises(UserError, match=r"two questions.*code_reasoning/0013.png has 1"):
        items("mme", tmp_path / "hub")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": 5}, "that of 201 is 5, and it has 2 options"),
        ({"answer": "B"}, "that of 201 is 'B'"),
        ({"choices": "abc"}, "another type"),
        ({"grade": "college"}, "grades such as grade7.*'college'"),
        ({"subject": None}, "record 7 has no subject"),
    ],
)
def test_problems_of_scienceqa_that_are_wrong(change, message, tmp_path):
    official_tables.scienceqa(tmp_path)
    path = Path(tmp_path / "problems.json")
    problems = json.loads(path.read_text())
    problems["201"].update(change)
    path.write_text(json.dumps(problems))
    with pytest.raises(UserError, match=message):
        items("scienceqa", tmp_path)


def test_an_empty_answer_of_ocrbench(tmp_path):
    official_tables.ocrbench(tmp_path)
    edited(tmp_path / "OCRBench.json", '"CENTRE"', '""')
    with pytest.raises(UserError, match="An empty answer would be in every text"):
        items("ocrbench", tmp_path)
