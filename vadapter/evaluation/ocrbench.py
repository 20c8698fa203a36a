"""Scores of OCRBench: a question is right where one of its answers is in the text; the score counts them, of 1,000.

The rules are those of its own program (github.com/Yuliang-Liu/MultimodalOCR, OCRBench).
"""

import functools
from collections.abc import Sequence

from vadapter.evaluation.metrics import Metric, Texts

RECOGNITION = (
    "Regular Text Recognition",
    "Irregular Text Recognition",
    "Artistic Text Recognition",
    "Handwriting Recognition",
    "Digit String Recognition",
    "Non-Semantic Text Recognition",
)
FORMULAS = "Handwritten Mathematical Expression Recognition"


def contains(prediction: str, answers: Sequence[str], formula: bool = False) -> float:
    """1 where a text has one of the answers in it: of formulas without spaces, of all others in any case."""

    def plain(text: str) -> str:
        text = text.strip().replace("\n", " ")
        return text.replace(" ", "") if formula else text.lower()

    text = plain(prediction)
    return float(any(plain(answer) in text for answer in answers))


def _each(texts: Texts) -> list[float]:
    rows = zip(texts.predictions, texts.references, texts.records, strict=True)
    return [contains(text, answers, record.get("question_type") == FORMULAS) for text, answers, record in rows]


def _count(texts: Texts, types: Sequence[str]) -> tuple[float, list[float]]:
    each = _each(texts)
    kept = [v for v, r in zip(each, texts.records, strict=True) if not types or r.get("question_type") in types]
    if not kept:
        raise ValueError("no record is of these types")
    return sum(kept), each


def _accuracy(texts: Texts) -> tuple[float, list[float]]:
    each = _each(texts)
    return 100 * sum(each) / len(each), each


METRICS = (
    Metric(
        *("score", "score", "right answers; of the whole set at most 1,000", "answers"),
        score_set=functools.partial(_count, types=()),
        form="{:.0f}",
        interval=None,
    ),
    Metric(
        *("text_recognition", "recognition", "right answers of the six types of text recognition", "answers"),
        score_set=functools.partial(_count, types=RECOGNITION),
        form="{:.0f}",
        interval=None,
        on_cards=False,
    ),
    Metric(
        *("accuracy", "accuracy", "right answers, in percent", "answers"),
        score_set=_accuracy,
        scale=100.0,
        form="{:.1f}",
    ),
)
