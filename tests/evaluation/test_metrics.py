"""Scores, case by case. Expected answers follow visualqa.org's rules and the official program's known quirks."""

import math
import subprocess

import pytest
from pycocoevalcap.cider.cider import Cider

from vadapter.evaluation import metrics


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Yes", "yes"),
        (" a red\tbus\n", "red bus"),
        ("the man's hat", "man's hat"),
        ("two", "2"),
        ("none", "0"),
        ("eleven", "eleven"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("somebody'd", "somebodyd"),  # the published table has it the wrong way round
        ("shes", "shes"),  # and does not have this one
        ("half/half", "half half"),  # a mark between letters becomes a space
        ("yes, sir", "yes sir"),  # next to a space it is deleted
        ("left-hand - side", "lefthand side"),  # ... everywhere, if anywhere next to a space
        ("1,000/day", "1000day"),  # a comma between digits deletes all marks
        ("100,978", "100978"),
        ("2:50 p.m.", "2:50 pm"),
        ("3.5", "3.5"),
        ("5.", "5"),
        (".5", ".5"),
        ("v.2", "v.2"),  # a period before a digit stays, whatever is in front
        ("a", ""),
        ("", ""),
        ("." * 40, "." * 8),  # no more than 32 periods are removed
    ],
)
def test_normalize_answer(answer, expected):
    assert metrics.normalize_answer(answer) == expected


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("red", ["red"] * 10, 1.0),
        ("red", ["red"] * 1 + ["blue"] * 9, (9 * 1 / 3 + 1 * 0) / 10),
        ("red", ["red"] * 2 + ["blue"] * 8, (8 * 2 / 3 + 2 * 1 / 3) / 10),
        ("red", ["red"] * 3 + ["blue"] * 7, (7 * 1 + 3 * 2 / 3) / 10),
        ("red", ["red"] * 4 + ["blue"] * 6, 1.0),
        ("green", ["red"] * 5 + ["blue"] * 5, 0.0),
        ("Two.", ["2"] * 5 + ["the two"] * 4 + ["3"], 1.0),
        ("Yes", ["yes"] * 10, 0.0),  # nothing is normalised where all answers are one string
        ("Yes", ["yes"] * 9 + ["no"], 1.0),
        (" yes\n", ["yes"] * 10, 1.0),
    ],
)
def test_vqa_accuracy(prediction, answers, expected):
    assert metrics.vqa_accuracy(prediction, answers) == pytest.approx(expected)


def test_vqa_accuracy_needs_someone_to_leave_out():
    with pytest.raises(ValueError, match="at least 2"):
        metrics.vqa_accuracy("red", ["red"])


def test_answer_score_of_few_answers_takes_any_of_them():
    assert metrics.answer_score("Two", ["2"]) == 1.0
    assert metrics.answer_score("a cat", ["dog", "cat"]) == 1.0
    assert metrics.answer_score("cow", ["dog", "cat"]) == 0.0


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A Man, riding (fast)!", "a man riding fast"),
        ("A man's dog doesn't run; it can't.", "a man 's dog does n't run it ca n't"),
        ("a man\u2019s 3.5 ft black-and-white dog at 10:30", "a man 's 3.5 ft black-and-white dog at 10:30"),
        ('"hi" -- `x` ...', "hi x"),
        ("they cannot", "they can not"),
        ("salt & pepper", "salt & pepper"),
    ],
)
def test_caption_tokens(caption, expected):
    assert " ".join(metrics.caption_tokens(caption)) == expected


def test_cider_is_the_official_scorers():
    predictions = ["a red square", "a cat on a mat", "two dogs run"]
    references = [["a big red square", "a red square"], ["a cat on the mat"], ["dogs are running", "two dogs run fast"]]
    mean, each = metrics.cider(["A red square.", "a cat, on a mat", "Two dogs run!"], references)
    hypotheses = {i: [p] for i, p in enumerate(predictions)}
    expected, expected_each = Cider().compute_score(dict(enumerate(references)), hypotheses)
    assert mean == pytest.approx(100 * expected) and mean > 0
    assert each == pytest.approx([100 * e for e in expected_each])


def test_cider_starts_no_program(monkeypatch):
    def started(*_, **__):
        raise AssertionError("a program was started")

    monkeypatch.setattr(subprocess, "Popen", started)
    assert metrics.cider(["a b", "c d"], [["a b"], ["c e"]])[0] > 0


def test_cider_of_nothing_and_of_empty_text():
    assert metrics.cider([], []) == (0.0, [])
    assert metrics.cider(["", "a dog"], [["."], [""]]) == (0.0, [0.0, 0.0])
    assert metrics.cider(["", "a dog runs"], [["a cat sits"], ["a dog runs"]])[1][0] == 0.0


def test_cider_rejects_lists_that_do_not_fit():
    with pytest.raises(ValueError, match="1 predictions for 2"):
        metrics.cider(["a"], [["a"], ["b"]])
    with pytest.raises(ValueError, match="no reference"):
        metrics.cider(["a"], [[]])


def test_caption_match():
    assert metrics.caption_match("A red square.", ["a blue square", "a red square"])
    assert not metrics.caption_match("a red", ["a red square"])


def test_perplexity():
    assert metrics.perplexity(2 * math.log(8), 2) == pytest.approx(8)
    assert metrics.perplexity(1e6, 1) == math.inf
    assert math.isnan(metrics.perplexity(0, 0))
