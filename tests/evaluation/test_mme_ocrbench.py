"""Scores of MME and OCRBench."""

import pytest

from vadapter.benchmarks import table
from vadapter.evaluation import mme, ocrbench


@pytest.mark.parametrize(
    ("text", "said"),
    [("Yes", "yes"), ("yes, it is", "yes"), ("No.", "no"), ("Not", "no"), ("know", "no"), ("It is: yes", "other")]
    + [("", "other"), ("NO", "no")],
)
def test_what_mme_takes_a_text_for(text, said):
    assert mme.said(text) == said


def asked(category, image, first, second):
    common = {"question": "Is it?", "question_type": category, "image": f"{category}/{image}"}
    pairs = [(1, first, "Yes"), (2, second, "No")]
    return [
        {**common, "id": f"{category}/{image}#{i}", "prediction": said, "references": [right]}
        for i, said, right in pairs
    ]


def test_mme_adds_accuracy_and_accuracy_plus_over_categories():
    records = [
        *asked("OCR", "1.jpg", "yes", "no"),
        *asked("OCR", "2.jpg", "yes", "yes"),
        *asked("count", "1.jpg", "no", "maybe"),
        *asked("code_reasoning", "1.png", "Yes it is", "No"),
    ]
    found = table.benchmark("mme").protocol.score(records).scalars
    assert found["score/OCR"] == 75 + 50 and found["score/count"] == 0 and found["score/code_reasoning"] == 200
    assert found["perception"] == 125 and found["cognition"] == 200 and found["score"] == 325
    assert found["accuracy"] == 62.5 and found["accuracy_plus"] == 50.0


def test_mme_writes_what_its_own_program_reads():
    protocol = table.benchmark("mme").protocol
    assert protocol.texts is not None
    found = protocol.texts(asked("OCR", "1.jpg", "yes\tindeed", "no\nQuestion: next"), protocol.clean)
    assert found == {"mme_results/OCR.txt": "1.jpg\tIs it?\tYes\tyes indeed\n1.jpg\tIs it?\tNo\tno\n"}


@pytest.mark.parametrize(
    ("text", "answers", "formula", "right"),
    [
        ("It says CENTRE.", ["centre"], False, 1),
        ("cen tre", ["centre"], False, 0),
        ("two\nlines", ["two lines"], False, 1),
        ("so x^{2}", ["x ^ { 2 }"], True, 1),
        ("so X^{2}", ["x ^ { 2 }"], True, 0),
        ("no", ["yes", "no"], False, 1),
        ("", ["a"], False, 0),
    ],
)
def test_ocrbench_looks_for_the_answer_in_the_text(text, answers, formula, right):
    assert ocrbench.contains(text, answers, formula) == right


def test_ocrbench_counts():
    kinds = ("Regular Text Recognition", "Digit String Recognition", "Doc-oriented VQA", ocrbench.FORMULAS)
    said = ("stop", "12", "no", "x ^{2}")
    right = (["STOP"], ["13"], ["No"], ["x^{2}"])
    records = [
        {"id": str(i), "question": "?", "question_type": kind, "prediction": text, "references": answers, "domain": "x"}
        for i, (kind, text, answers) in enumerate(zip(kinds, said, right, strict=True))
    ]
    protocol = table.benchmark("ocrbench").protocol
    found = protocol.score(records).scalars
    assert found["score"] == 3 and found["text_recognition"] == 1 and found["accuracy"] == 75.0
    assert found["score/Doc-oriented_VQA"] == 1
    assert protocol.submission(records)[1][0] == {
        **{"id": "0", "dataset_name": "x", "type": kinds[0], "question": "?", "answers": ["STOP"], "predict": "stop"}
    }
