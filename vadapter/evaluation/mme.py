"""Scores of MME: two questions about each image, answered by yes or no.

Of a category the score is accuracy (of questions) plus accuracy+ (of images with both questions right), each in
percent, so at most 200. Perception is the sum over ten categories, at most 2,000; cognition over four, at most 800. The
rules are those of MME's own program (github.com/BradyFU/Awesome-Multimodal-Large-Language-Models, eval_tool).
"""

import functools
from collections.abc import Sequence

from vadapter.evaluation.metrics import Metric, Texts

PERCEPTION = (
    *("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR"),
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")


def said(prediction: str) -> str:
    """`yes`, `no` or `other`: what is within the first four letters of a text, whatever their case."""
    start = prediction.lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def _each(texts: Texts) -> list[float]:
    pairs = zip(texts.predictions, texts.references, strict=True)
    return [float(said(text.strip()) == right[0].lower()) for text, right in pairs]


def _by_category(texts: Texts, each: Sequence[float]) -> dict[str, tuple[float, float]]:
    """Accuracy and accuracy+ of each category, 0..1."""
    images: dict[str, dict[str, list[float]]] = {}
    for value, record in zip(each, texts.records, strict=True):
        images.setdefault(str(record["question_type"]), {}).setdefault(str(record["image"]), []).append(value)
    found = {}
    for category, asked in images.items():
        values = [value for pair in asked.values() for value in pair]
        found[category] = sum(values) / len(values), sum(map(all, asked.values())) / len(asked)
    return found


def _sum(texts: Texts, categories: Sequence[str]) -> tuple[float, list[float]]:
    each = _each(texts)
    found = {name: pair for name, pair in _by_category(texts, each).items() if not categories or name in categories}
    if not found:
        raise ValueError("no record is of these categories")
    return 100 * sum(map(sum, found.values())), each


def _accuracy(texts: Texts, plus: bool) -> tuple[float, list[float]]:
    each = _each(texts)
    if not plus:
        return 100 * sum(each) / len(each), each
    images: dict[str, list[float]] = {}
    for value, record in zip(each, texts.records, strict=True):
        images.setdefault(str(record["image"]), []).append(value)
    return 100 * sum(map(all, images.values())) / len(images), each


def _metric(name: str, explanation: str, categories: Sequence[str]) -> Metric:
    score_set = functools.partial(_sum, categories=categories)
    return Metric(*(name, name, explanation, "answers"), score_set=score_set, form="{:.1f}", interval=None)


SCORE = _metric("score", "sum of accuracy and accuracy+ over the categories, at most 200 each", ())
METRICS = (
    SCORE,
    _metric("perception", "the same of the ten categories of perception, at most 2,000", PERCEPTION),
    _metric("cognition", "the same of the four categories of cognition, at most 800", COGNITION),
    Metric(
        *("accuracy", "accuracy", "questions answered right, in percent", "answers"),
        score_set=functools.partial(_accuracy, plus=False),
        scale=100.0,
        form="{:.1f}",
        interval=None,
    ),
    Metric(
        *("accuracy_plus", "accuracy+", "images with both questions answered right, in percent", "answers"),
        score_set=functools.partial(_accuracy, plus=True),
        scale=100.0,
        form="{:.1f}",
        interval=None,
    ),
)
