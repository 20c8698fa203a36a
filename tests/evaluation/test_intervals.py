"""Bootstrap intervals of scores: of means, of BLEU's counts, of groups, and how they shrink."""

import math

import numpy as np
import pytest

from vadapter.benchmarks import table
from vadapter.evaluation import bootstrap, captions, tokens
from vadapter.evaluation.metrics import Texts
from vadapter.evaluation.scoring import PLAIN

WORDS = ["a", "red", "blue", "dog", "cat", "runs", "sits", "on", "the", "grass", "street"]


@pytest.fixture(autouse=True)
def python_tokens(monkeypatch):
    """Java is tried elsewhere."""
    monkeypatch.setattr(tokens, "java_version", lambda: "")


def captioned(count, seed=0):
    """Records whose predictions are references with some words changed."""
    rng = np.random.default_rng(seed)
    records = []
    for i in range(count):
        references = [" ".join(rng.choice(WORDS, rng.integers(5, 9))) for _ in range(3)]
        words = references[0].split()
        words[: rng.integers(0, len(words))] = ["street"]
        domain = ["in-domain", "out-domain"][i % 2]
        records.append({"id": str(i), "prediction": " ".join(words), "references": references, "domain": domain})
    return records


def scored(name, records):
    return table.benchmark(name).protocol.score(records)


def test_counts_of_bleu_add_up_to_the_official_score():
    records = captioned(20)
    texts = Texts([r["prediction"] for r in records], [r["references"] for r in records])
    found = captions.bleu(captions.bleu_statistics(texts).sum(axis=0, keepdims=True))
    assert found[0] == pytest.approx([metric.score_set(texts)[0] for metric in captions.BLEU], rel=1e-9)
    assert captions.bleu(captions.bleu_statistics(Texts([""], [["a dog"]]))) == pytest.approx(0.0)


def test_each_score_of_captions_has_an_interval_around_it():
    records = captioned(60)
    found = scored("nocaps", records)
    bounds = found.intervals()
    assert set(bounds) == {
        "cider", "rouge_l", *(f"bleu{n}" for n in range(1, 5)), "cider/in-domain", "cider/out-domain"
    }  # fmt: skip
    for name, (low, high) in bounds.items():
        assert low < found.scalars[name] < high, name
    assert bounds["cider"] == pytest.approx(bootstrap.bootstrap([r["cider"] for r in found.records]))


def test_each_score_of_answers_has_an_interval_in_percent():
    answers = ["red"] * 9 + ["blue"]
    kinds = ["number", "other"]
    row = {"question": "?", "answers": answers}
    said = ["red", "red", "dog"]
    records = [row | {"id": i, "prediction": said[i % 3], "answer_type": kinds[i % 2]} for i in range(40)]
    records.append({"id": 40, "question": "?", "prediction": "red"})  # nobody answered: it is not drawn
    found = scored("vqav2", records)
    bounds = found.intervals()
    assert set(bounds) == {"vqa_accuracy", "vqa_accuracy/number", "vqa_accuracy/other"}
    for name, (low, high) in bounds.items():
        assert low < found.scalars[name] < high
    assert set(scored("okvqa", records).intervals()) >= {"vqa_accuracy", "vqa_accuracy_unstemmed"}
    assert scored("vqav2", records[40:]).intervals() == {}


def test_an_interval_shrinks_with_the_root_of_the_number_of_records():
    widths = []
    for count in (50, 800):
        bounds = scored("coco_karpathy", captioned(count)).intervals()
        widths.append({name: high - low for name, (low, high) in bounds.items()})
    for name in ("cider", "bleu4", "rouge_l"):
        assert widths[1][name] == pytest.approx(widths[0][name] / 4, rel=0.45), name


def test_scores_without_a_benchmark_have_intervals_too():
    row = {"question": "?", "question_type": "colour", "prediction": "red"}
    records = captioned(30) + [row | {"id": f"q{i}", "references": [["red", "blue"][i % 2]]} for i in range(30)]
    found = PLAIN.score(records)
    scalars, bounds = found.scalars, found.intervals()
    assert set(bounds) == {"cider", "exact_match", "vqa_accuracy", "vqa_accuracy/colour"}
    for name, (low, high) in bounds.items():
        assert low <= scalars[name] <= high
    assert PLAIN.score([]).intervals() == {}


def test_sums_are_drawn_record_by_record():
    """Two records: of all draws a quarter has twice the first, a quarter twice the second."""
    statistics = np.array([[0.0, 1.0], [3.0, 1.0]])
    low, high = bootstrap.bootstrap_sums(statistics, lambda sums: sums[:, :1] / sums[:, 1:])[:, 0]
    assert (low, high) == (0.0, 3.0)
    means = []
    bootstrap.bootstrap_sums(statistics, lambda sums: means.append(sums[:, 0] / 2) or sums)
    values, counts = np.unique(means[0], return_counts=True)
    assert values.tolist() == [0.0, 1.5, 3.0] and counts / 1000 == pytest.approx([0.25, 0.5, 0.25], abs=0.05)
    assert all(math.isnan(x) for x in bootstrap.bootstrap([]))
