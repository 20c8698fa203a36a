"""Scoring of records by metrics of one's own: what is scored, how it is named, and what happens when one fails."""

import dataclasses

import pytest

from tests.evaluation.own_metric import DISTINCT, WORDS
from vadapter.base.errors import UserError
from vadapter.evaluation import answers, captions, metrics
from vadapter.evaluation.metrics import Metric
from vadapter.evaluation.scoring import PLAIN, Scoring, cleaning_in_words, first_line, groups


def caption(i, text, *references):
    return {"id": i, "prediction": text, "references": list(references) or ["a dog"]}


TEXTS = ["a dog", "a dog", "a cat on a mat"]
RECORDS = [caption(i, text) for i, text in enumerate(TEXTS)]


def test_a_metric_of_ones_own_is_known_by_its_name_and_scored():
    scoring = PLAIN.having([metrics.metric("own_words"), metrics.metric("own_distinct"), captions.CIDER])
    assert [m.name for m in scoring.metrics].count("cider") == 1
    found = scoring.score(RECORDS)
    assert found.scalars["own_words"] == pytest.approx(9 / 3) and found.scalars["own_distinct"] == 2.0
    assert [r["own_words"] for r in found.records] == [2.0, 2.0, 5.0]
    assert [r["own_distinct"] for r in found.records] == [2.0, 2.0, 1.0]
    bounds = found.intervals()
    assert bounds["own_words"][0] < 3.0 < bounds["own_words"][1] and "own_distinct" not in bounds


def test_the_first_metric_ranks_and_less_may_be_better():
    scoring = Scoring(metrics=(WORDS,))
    records = [r | s for r, s in zip(RECORDS, scoring.score(RECORDS).records, strict=True)]
    assert [scoring.rank(r) for r in records] == [-2.0, -2.0, -5.0]
    assert records[2]["score"] == 5.0 and scoring.rank({"id": 1, "prediction": ""}) is None


def test_a_group_of_a_metric_of_all_records_is_counted_within_the_group():
    records = [r | {"domain": d} for r, d in zip(RECORDS, ("near", "near", "far away"), strict=True)]
    scalars = Scoring(metrics=(DISTINCT,), name="own", by="domain").score(records).scalars
    assert scalars == {"own_distinct": 2.0, "own_distinct/near": 1.0, "own_distinct/far_away": 1.0, "records": 3.0,
                       "unscored": 0.0}  # fmt: skip


def test_a_metric_that_fails_is_left_out_with_its_last_words():
    def broken(texts):
        raise RuntimeError("started\nthe model of words is missing\n")

    found = Scoring(metrics=(WORDS, Metric("broken", "b", "fails", score_set=broken))).score(RECORDS)
    assert found.details["broken_left_out"] == "it failed: the model of words is missing"
    assert "broken" not in found.scalars and found.scalars["own_words"] == 3.0


def test_a_record_that_cannot_be_scored_is_named():
    def picky(text, references):
        raise ValueError("no verb")

    with pytest.raises(UserError, match="picky: record 0 cannot be scored: no verb"):
        Scoring(metrics=(Metric("picky", "p", "fails", score=picky),)).score(RECORDS)


def test_a_score_of_too_few_records_says_so():
    """CIDEr of one picture is 0, whatever is said of it."""
    found = PLAIN.score(RECORDS[:1])
    assert found.scalars["cider"] == 0.0
    assert found.notes == ["CIDEr of 1 record says nothing: it needs at least 2."]
    assert PLAIN.score(RECORDS).notes == []


def test_names_of_metrics_are_taken_once_and_mistakes_are_messages():
    assert metrics.register(WORDS) is WORDS  # the module may be read again
    with pytest.raises(UserError, match="a metric 'cider' already"):
        metrics.register(dataclasses.replace(WORDS, name="cider"))
    with pytest.raises(UserError, match="found 'own_word'. Did you mean 'own_words'"):
        metrics.metric("own_word")
    with pytest.raises(UserError, match="found neither"):
        Metric("m", "m", "m")
    with pytest.raises(UserError, match="without '/'"):
        Metric("a/b", "m", "m", score=lambda p, r: 0.0)
    with pytest.raises(UserError, match="captions or answers"):
        Metric("m", "m", "m", "texts", score=lambda p, r: 0.0)


def test_questions_without_a_benchmark_are_scored_by_type():
    row = {"question": "?", "prediction": "2", "answers": ["2"]}
    records = [
        row | {"id": 0, "question_type": "count"},
        row | {"id": 1, "question_type": "yes/no", "answers": ["yes"]},
    ]
    scalars = PLAIN.score(records).scalars
    assert scalars["vqa_accuracy"] == 0.5
    assert scalars["vqa_accuracy/count"] == 1.0 and scalars["vqa_accuracy/yes-no"] == 0.0
    assert answers.ANSWERS in PLAIN.of_kind("answers")


def test_questions_without_types_are_told_apart_by_their_answers():
    given = {"yes": ["yes", "Yes.", "maybe"], "3": ["three", "3"], "40%": ["40%"], "dog": ["dog", "a dog", "2"]}
    given["no"] = ["no"]
    records = [
        {"id": i, "question": "?", "prediction": i if i != "no" else "yes", "answers": a} for i, a in given.items()
    ]
    scalars = PLAIN.score(records).scalars
    assert scalars["vqa_accuracy/yes-no"] == 0.5
    assert scalars["vqa_accuracy/number"] == scalars["vqa_accuracy/other"] == 1.0
    alike = PLAIN.score(records[1:3]).scalars
    assert "vqa_accuracy" in alike and not [name for name in alike if "/" in name]
    assert [answers.kind_of(a) for a in ([], ["nan"], ["inf"], ["no way"])] == ["other"] * 4


def test_what_is_taken_of_a_text_is_said_in_words():
    def last_word(text):
        """The last word.

        More of it.
        """
        return text.split()[-1]

    assert cleaning_in_words(first_line) == "the first line with text"
    assert cleaning_in_words(last_word) == "The last word."
    assert cleaning_in_words(str.lower)


def test_groups_are_by_the_value_of_a_field():
    records = [{"k": "yes/no"}, {"k": "how many"}, {}, {"k": "yes/no"}]
    assert groups(records, "k") == {"how_many": [1], "yes-no": [0, 3]} and groups(records, "") == {}
