"""A benchmark and metrics that are defined outside the package, from files to scores by the commands."""

import json

import pytest

from tests.benchmarks import own_benchmark
from tests.evaluation import own_metric
from tests.tiny_bundle import write_bundle
from vadapter.base import resources
from vadapter.base.errors import UserError
from vadapter.benchmarks import catalogue, table
from vadapter.benchmarks.tasks import benchmark_task
from vadapter.cli.main import main
from vadapter.evaluation import captions


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zoo")
    write_bundle(folder)
    own_benchmark.write_files(folder / "official")
    return folder


def evaluate(folder, output, *more):
    given = {"BENCHMARK": "zoo", "DATA_DIR": str(folder / "built"), "MANUAL_DIR": str(folder / "official")}
    given |= {"BATCH_SIZE": 8, "MAX_NEW_TOKENS": 2, "SHOTS": 0}
    settings = [f"--gin.{name}={value!r}" for name, value in given.items()]
    files = [f"--bundle={folder / 'bundle'}", "--gin_file=runs/benchmark.gin"]
    assert main(["eval", f"--output={output}", *files, *settings, *more]) == 0
    return json.loads((output / "metrics.json").read_text())


def test_an_own_benchmark_is_built_evaluated_and_submitted(folder, tmp_path, capsys):
    arguments = ["build", "--dataset=zoo", f"--manual_dir={folder / 'official'}", f"--data_dir={folder / 'built'}"]
    assert main(arguments) == 0
    assert "zoo test: 4 rows" in capsys.readouterr().out
    content = evaluate(folder, tmp_path)
    assert 0 <= content["scores"]["zoo/letter"] <= 100
    assert content["scores"]["zoo/letter/colour"] == content["scores"]["zoo/letter"]
    assert content["scores"]["zoo/records"] == 4 and content["evaluations"]["zoo"]["benchmark"] == "zoo"
    rows = json.loads((tmp_path / "zoo-test.json").read_text())
    assert [row["photo"] for row in rows] == list(own_benchmark.ANSWERS)
    side = json.loads((tmp_path / "zoo-test.meta.json").read_text())
    assert side["prompts"] == [" <media> what colour ?"] and side["skipped"] == 0
    assert "answers with the right first letter" in (tmp_path / "evaluation.html").read_text()


def test_a_photo_that_cannot_be_read_has_an_empty_answer_and_is_named(folder, tmp_path, capsys):
    """Found as: the submission had a row less, and its side file said `"skipped": 0`."""
    own_benchmark.write_files(tmp_path / "official")
    (tmp_path / "official" / "photos" / "p2.png").write_bytes(b"no picture")
    (tmp_path / "bundle").symlink_to(folder / "bundle")
    content = evaluate(tmp_path, tmp_path / "out", "--gin.LoaderConfig.max_bad_share=1.0")
    assert "cannot be read (p2)" in capsys.readouterr().out
    rows = json.loads((tmp_path / "out" / "zoo-test.json").read_text())
    assert {row["photo"]: row["answer"] for row in rows}["p2"] == "" and len(rows) == 4
    side = json.loads((tmp_path / "out" / "zoo-test.meta.json").read_text())
    assert (side["skipped"], side["skipped_ids"]) == (1, ["p2"])
    assert content["scores"]["zoo/records"] == 4


def test_predictions_are_written_before_they_are_scored(folder, tmp_path, monkeypatch):
    """Found as: a scorer failed after hours of generation, and nothing was left of it."""

    def out_of_memory(*_):
        raise MemoryError

    monkeypatch.setattr("vadapter.evaluation.scoring.Scoring.score", out_of_memory)
    with pytest.raises(AssertionError, match="assert 2 == 0"):  # which ends in a paragraph
        evaluate(folder, tmp_path)
    lines = (tmp_path / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == list(own_benchmark.ANSWERS)
    assert len(json.loads((tmp_path / "zoo-test.json").read_text())) == 4


def test_own_metrics_score_any_data(folder, tmp_path):
    sample = str(resources.folder("data") / "samples" / "captions.jsonl")
    files = ["--gin_file=runs/eval.gin", "--gin_file=data/jsonl.gin", "--gin.EVALUATIONS=[@generation/Evaluation()]"]
    names = [own_metric.WORDS.name, own_metric.DISTINCT.name, captions.ROUGE_L.name]
    settings = [f"--gin.{name}={sample!r}" for name in ("TRAIN_JSONL", "VALIDATION_JSONL")]
    settings += [f"--gin.generation/Evaluation.metrics={names!r}", "--gin.BATCH_SIZE=8"]
    settings += ["--gin.DecodingConfig.max_new_tokens=4"]
    assert main(["eval", f"--bundle={folder / 'bundle'}", f"--output={tmp_path}", *files, *settings]) == 0
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert {f"generation/{name}" for name in (*names, "cider", "exact_match")} <= content["scores"].keys()
    assert "generation/own_words" in content["intervals"] and "generation/own_distinct" not in content["intervals"]
    assert "words of a caption" in (tmp_path / "evaluation.html").read_text()


def test_a_benchmark_is_registered_once_and_asks_for_what_it_lacks(folder):
    assert table.register(own_benchmark.ZOO) is own_benchmark.ZOO
    with pytest.raises(UserError, match="a benchmark 'zoo' already"):
        table.register(own_benchmark.Benchmark(**{**vars(own_benchmark.ZOO), "media": "video"}))
    with pytest.raises(UserError, match="Expected zoo to have a split train.*Set shots to 0"):
        benchmark_task("zoo", str(folder / "built"), shots=2)
    assert "zoo" not in catalogue.markdown()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "my/zoo"}, "letters, digits and _"),
        ({"media": "sound"}, "'image' or 'video'; found 'sound'"),
        ({"evaluated": "val"}, "one of test; found 'val'"),
    ],
)
def test_a_record_with_a_mistake_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        own_benchmark.Benchmark(**{**vars(own_benchmark.ZOO), **change})
