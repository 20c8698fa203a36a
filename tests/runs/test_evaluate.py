"""Evaluation as a library: what the report has, and which files it writes, and when."""

import json

import numpy as np
import pytest

from vadapter.base.evaluator import EvalResult
from vadapter.benchmarks import table
from vadapter.data.order.config import LoaderConfig
from vadapter.evaluation.text_evaluator import GenerationEvaluator
from vadapter.runs.evaluate import evaluate
from vadapter.runs.experiment import Evaluation


class Numbers:
    def decode(self, ids):
        return " ".join(map(str, ids))


ROW = {"question": "how many?", "answers": ["2"] * 10, "valid": True, "prompt": "Q"}
ROWS = [ROW | {"id": 1}, ROW | {"id": 2}, ROW | {"id": 3, "valid": False, "error": "no picture"}]


def generation(benchmark=""):
    evaluation = Evaluation(LoaderConfig("data", "test"), "generation", "texts", benchmark=benchmark)
    ids = np.array([[2, -1], [7, -1], [2, -1]])
    evaluator = GenerationEvaluator(
        lambda params, batch: ids, lambda: iter([(None, ROWS)]), lambda b: b, Numbers(), evaluation.scoring(), "texts"
    )  # fmt: skip
    return evaluation, evaluator


class Own:
    """An evaluator of one's own, which gives a number and nothing else."""

    name, every_steps = "own", 0

    def __call__(self, params):
        return EvalResult({"speed": params})


def own():
    return Evaluation(LoaderConfig("data", "test"), "loss", "own"), Own()


def test_a_report_has_all_scores_and_writes_them(tmp_path):
    told = []
    report = evaluate([own(), generation()], 3.0, checkpoint="run at step 5", told=lambda e: told.append(e.name))
    assert not list(tmp_path.iterdir()) and told == ["own", "texts"]
    assert report.scores["own/speed"] == 3.0 and report.scores["texts/vqa_accuracy"] == 0.5
    written = report.write(tmp_path / "new")
    assert [path.name for path in written] == ["metrics.json", "evaluation.html", "predictions.jsonl"]
    content = json.loads((tmp_path / "new" / "metrics.json").read_text())
    assert content["checkpoint"] == "run at step 5" and content["scores"]["own/speed"] == 3.0
    texts = content["evaluations"]["texts"]
    assert texts["data"] == "data" and texts["skipped_ids"] == ["3"] and texts["decoding"]["method"] == "greedy"
    lines = [json.loads(line) for line in (tmp_path / "new" / "predictions.jsonl").read_text().splitlines()]
    assert [(line["id"], line["prediction"], line["score"]) for line in lines] == [("1", "2", 1.0), ("2", "7", 0.0)]


def test_a_submission_has_a_row_for_each_id(tmp_path):
    report = evaluate([generation("vqav2")], None)
    *_, submission, side = report.write(tmp_path)
    rows = json.loads(submission.read_text())
    assert rows == [{"question_id": i, "answer": text} for i, text in ((1, "2"), (2, "7"), (3, ""))]
    facts = json.loads(side.read_text())
    assert (facts["benchmark"], facts["skipped"], facts["skipped_ids"]) == ("vqav2", 1, ["3"])
    assert facts["scorers"]["vadapter"] and report.scores["vqav2/vqa_accuracy"] == pytest.approx(100 / 3)


def test_what_was_generated_is_written_before_it_is_scored(tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(table.benchmark("vqav2").protocol), "score", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluate([own(), generation("vqav2")], 1.0, folder=tmp_path)
    assert len((tmp_path / "predictions.jsonl").read_text().splitlines()) == 3
    assert len(json.loads((tmp_path / "vqa_test_vadapter_results.json").read_text())) == 3
    assert not (tmp_path / "metrics.json").exists()
