"""POPE's scores, worked by hand."""

import pytest

from vadapter.benchmarks import table
from vadapter.evaluation import yes_no


@pytest.mark.parametrize(
    ("said", "yes"),
    [
        ("Yes", True),
        ("no", False),
        ("No, there is not.", False),
        ("Yes, there is. There is no dog.", True),  # the first sentence alone
        ("There is not one", False),
        ("nothing of it", True),  # the program knows three words
        ("NO", True),
        ("", True),
    ],
)
def test_what_a_text_says(said, yes):
    assert yes_no.says_yes(said) is yes


def record(i, said, right, kind):
    answers = {"answers": [right], "question_type": kind}
    return {"id": str(i), "question": "Is there a dog ?", "prediction": said, **answers}


def test_the_scores_of_pope():
    told = [
        *(("Yes", "yes", "random"), ("yes, it is", "no", "random"), ("No.", "yes", "random")),
        *(("no", "no", "popular"), ("Yes.", "yes", "popular"), ("Yes", "no", "popular"), ("Yes", "yes", "popular")),
    ]
    scores = table.benchmark("pope").protocol.score([record(i, *row) for i, row in enumerate(told)])
    # Right yes 3, false yes 2, missed yes 1, right no 1.
    expected = {"precision": 60.0, "recall": 75.0, "f1": 100 * 6 / 9, "accuracy": 100 * 4 / 7, "yes_ratio": 100 * 5 / 7}
    expected |= {"f1/random": 50.0, "f1/popular": 80.0, "records": 7.0, "unscored": 0.0}
    assert scores.scalars == pytest.approx(expected)
    assert [r["score"] for r in scores.records] == [1, 0, 0, 1, 1, 0, 1]
    for name, (low, high) in scores.intervals().items():
        assert 0 <= low <= scores.scalars[name] <= high <= 100 and low < high


def test_a_model_that_never_says_yes():
    scores = table.benchmark("pope").protocol.score([record(1, "no", "yes", ""), record(2, "no", "no", "")]).scalars
    assert (scores["f1"], scores["precision"], scores["accuracy"], scores["yes_ratio"]) == (0, 0, 50, 0)
