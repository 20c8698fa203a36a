"""The page and the figures of an evaluation: the right examples with the right pictures, and nothing from elsewhere."""

import base64
import io
import json
import math

import numpy as np
import pytest
from PIL import Image

from tests.reports.test_report import EVIL, Page
from vadapter.base import pictures
from vadapter.base.evaluator import whole_names
from vadapter.evaluation import examples
from vadapter.evaluation.scoring import PLAIN
from vadapter.evaluation.text_evaluator import GenerationEvaluator
from vadapter.reports import evaluation as reports
from vadapter.reports.evaluation import Evaluated, EvaluationReport


class Numbers:
    eos_id = 1

    def decode(self, ids):
        return " ".join(str(i) for i in ids)


def shade_of(number, frames=1):
    """A medium that tells its number; a video is darker from frame to frame."""
    dark = np.arange(frames, dtype=np.uint8) * 40
    return np.broadcast_to((20 * number - dark)[:, None, None, None].astype(np.uint8), (frames, 24, 32, 3)).copy()


def generated(rows, ids, **options):
    def batches():
        for start in range(0, len(rows), 2):
            yield start, rows[start : start + 2]

    evaluator = GenerationEvaluator(
        lambda params, start: np.array(ids[start : start + 2]), batches, lambda b: b, Numbers(), **options
    )  # fmt: skip
    predictions = evaluator.predict(None, pictures.Pictures())
    return evaluator, predictions, evaluator.score(predictions)


def question(i, answer, **fields):
    return {"id": i, "question": f"what is {i}?", "answers": [answer] * 10, "valid": True, **fields}


def pixels(uri):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


def test_best_and_worst_have_their_own_pictures():
    rows = [question(i, "7" if i in (2, 5) else "8", thumbnail=shade_of(i)) for i in range(12)]
    rows[5]["answers"] = ["7"] * 2 + ["8"] * 8  # partly right
    evaluator, predictions, _ = generated(rows, [[7, 1]] * 12)
    chosen = evaluator.examples(predictions, 3)
    by_kind = {kind: [e for e in chosen if e.kind == kind] for kind in examples.KINDS}
    assert [e.record["id"] for e in by_kind["best"]][:2] == ["2", "5"]
    assert all(e.scores == [("VQA", 0.0)] for e in by_kind["worst"]) and len(by_kind["random"]) == 3
    for example in chosen:
        assert pixels(example.picture).mean() == pytest.approx(20 * int(example.record["id"]), abs=2)
    assert [e.record["id"] for e in evaluator.examples(predictions, 3)] == [e.record["id"] for e in chosen]
    assert [e.record["id"] for e in evaluator.examples(predictions, 3, seed=1)] != [e.record["id"] for e in chosen]


def test_a_card_shows_the_words_of_its_soft_tokens(tmp_path):
    record = {"id": 1, "prediction": "p", "references": ["r"], "words": [[["crimson", 0.5], ["<b>", 0.25]]]}
    evaluated = Evaluated("texts", "generation", {}, examples=[examples.Example("random", record)])
    reports.write_page(EvaluationReport("One", {}, [evaluated]), tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text()
    assert "nearest words of each soft token" in html and "crimson 0.50" in html and "&lt;b&gt;" in html


def test_captions_are_ranked_by_cider_and_kept_apart_from_questions():
    records = [{"id": i, "prediction": "p", "references": ["r"], "score": 0.0, "cider": float(i)} for i in range(9)]
    records += [{"id": 10 + i, "question": "?", "prediction": "p", "vqa_accuracy": i / 9} for i in range(9)]
    chosen = examples.choose(records, 2, PLAIN.rank)
    assert [(e.kind, e.record["id"]) for e in chosen if e.kind != "random"] == [
        ("best", 8), ("best", 7), ("worst", 0), ("worst", 1), ("best", 18), ("best", 17), ("worst", 10), ("worst", 11)
    ]  # fmt: skip


def test_no_record_is_both_best_and_worst_and_unscored_ones_are_random_only():
    equal = [{"id": i, "prediction": "p", "cider": 1.0} for i in range(5)]
    chosen = [e.record["id"] for e in examples.choose(equal, 4, PLAIN.rank) if e.kind != "random"]
    assert sorted(chosen) == [0, 1, 2, 3, 4]
    chosen = examples.choose([{"id": 0, "prediction": "p"}, {"id": 1, "prediction": "p", "cider": 2.0}], 8, PLAIN.rank)
    assert [(e.kind, e.record["id"]) for e in chosen] == [("best", 1), ("random", 0), ("random", 1)]
    assert examples.choose(equal, 0, PLAIN.rank) == examples.choose([], 3, PLAIN.rank) == []


def test_pictures_are_shared_and_bounded():
    kept = pictures.Pictures()
    assert kept.add(shade_of(3)) == kept.add(shade_of(3)) != kept.add(shade_of(4))
    assert len(kept) == 2
    assert kept.uri("another") is None
    full = pictures.Pictures(limit=1)
    first = full.add(shade_of(3))
    assert full.add(shade_of(4)) is None and full.add(shade_of(3)) == first and len(full) == 1
    equal = [{"id": i, "prediction": "p", "cider": 1.0} | ({"picture": "x"} if i == 7 else {}) for i in range(9)]
    assert examples.choose(equal, 1, PLAIN.rank)[0].record["id"] == 7  # of equal scores, one that can be seen


def test_a_video_is_a_strip_of_its_frames():
    uri = f"data:image/jpeg;base64,{base64.b64encode(pictures.jpeg_strip(shade_of(9, frames=4))).decode()}"
    strip = pixels(uri)
    height, width = strip.shape[:2]
    assert (height, width) == (24 * 6, 4 * (32 * 6) + 3 * 3) and pictures.is_strip(uri)
    shades = [strip[:, k * 195 + 20 : k * 195 + 170].mean() for k in range(4)]
    assert shades == pytest.approx([180, 140, 100, 60], abs=2)
    large = np.asarray(Image.open(io.BytesIO(pictures.jpeg_strip(np.zeros((16, 400, 300, 3), np.uint8)))))
    assert large.shape == (192, 4 * 144 + 3 * 3, 3)


def whole_report(text="plain"):
    rows = [
        question(i, text, thumbnail=shade_of(i, frames=3 if i % 2 else 1), prompt=text, answer_type=text)
        for i in range(6)
    ]
    rows += [{"id": text, "references": [text, "another"], "valid": True, "thumbnail": shade_of(7)} for _ in range(2)]
    evaluator, predictions, result = generated(rows, [[7, 1]] * 8, name="generation")
    generation = Evaluated(
        "generation", "generation", whole_names("generation", result.scalars),
        whole_names("generation", result.intervals()),
        {"split": text, "decoding": {"method": text}, "prompts": [text]}, evaluator.examples(predictions, 2),
        result.explanations, [text],
    )  # fmt: skip
    scores = {f"reliance/{k}": v for k, v in zip(("right", "shuffled", "shuffled_gap"), (2.0, 2.75, 0.75), strict=True)}
    reliance = Evaluated("reliance", "reliance", scores, {"reliance/shuffled_gap": (0.5, 1.0)}, {"split": text})
    loss = Evaluated("val", "loss", {"val/loss": math.nan, "val/perplexity": math.inf})
    return EvaluationReport(f"Evaluation of {text[:99]}", {"checkpoint": text}, [generation, reliance, loss])


def test_the_page_shows_scores_intervals_reliance_and_examples(tmp_path):
    reports.write_page(whole_report("xyz"), tmp_path / "new" / "evaluation.html")
    page = Page(tmp_path / "new" / "evaluation.html")
    for expected in ("exact_match", "vqa_accuracy", "0.000 to 0.000", "0.500 to 1.000", "+0.750 nats", "xyz ×10",
                     "Best questions", "Worst questions", "Random questions", "Best captions", "what is 3?",
                     "method xyz", "6 questions"):  # fmt: skip
        assert expected in page.text, expected
    assert page.tags.count("article") == page.tags.count("img") == 6 + 4
    assert all(load.startswith("data:image/jpeg;base64,") for load in page.loads)


def test_hostile_text_is_escaped_and_long_text_is_cut(tmp_path):
    reports.write_page(whole_report(EVIL), tmp_path / "evil.html")
    page = Page(tmp_path / "evil.html")
    assert (
        "<script" not in (tmp_path / "evil.html").read_text() and "&lt;script" in (tmp_path / "evil.html").read_text()
    )
    assert all(load.startswith("data:") for load in page.loads) and "script" not in page.tags
    reports.write_page(whole_report("x" * 100_000), tmp_path / "long.html")
    assert (tmp_path / "long.html").stat().st_size < 200_000


def test_metrics_json_has_scores_intervals_and_what_they_are_of():
    content = reports.metrics_json(whole_report("xyz"))
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert content["scores"]["reliance/shuffled_gap"] == 0.75 and content["scores"]["val/loss"] is None
    assert content["intervals"]["reliance/shuffled_gap"] == [0.5, 1.0]
    low, high = content["intervals"]["generation/vqa_accuracy"]
    assert low <= content["scores"]["generation/vqa_accuracy"] <= high
    assert content["bootstrap"]["resamples"] == 1000 and content["bootstrap"]["unit"]["generation"] == "record"
    assert content["evaluations"]["generation"]["decoding"] == {"method": "xyz"}
    assert content["checkpoint"] == "xyz"
