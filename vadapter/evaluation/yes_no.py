"""Scores of questions that are answered by yes or no: those of POPE, in percent, with yes as the positive class.

The rules are those of POPE's own program (github.com/AoiDragon/POPE).
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np

from vadapter.evaluation import bootstrap
from vadapter.evaluation.answers import official
from vadapter.evaluation.metrics import Metric, Texts

_NO = frozenset(["No", "no", "not"])


def says_yes(prediction: str) -> bool:
    """What POPE's program takes a text for: no where its first sentence has the word No, no or not; else yes.

    So an empty text is a yes, and so is NO.
    """
    sentence = prediction.split(".")[0].replace(",", "")
    return _NO.isdisjoint(sentence.split(" "))


def _is_yes(answers: Sequence[str]) -> bool:
    if answers[0] not in ("yes", "no"):
        raise ValueError(f"its answer is {answers[0]!r}, neither 'yes' nor 'no'")
    return answers[0] == "yes"


def yes_no_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """1 where the text says what the answer, `yes` or `no`, is. `ValueError` for another answer."""
    return float(says_yes(prediction) == _is_yes(answers))


def _yes(prediction: str, answers: Sequence[str]) -> float:
    del answers
    return float(says_yes(prediction))


def _counts(texts: Texts) -> np.ndarray:
    """[n, 3]: true, false and missed yes of each record, 0 or 1."""
    pairs = [(says_yes(said), _is_yes(right)) for said, right in zip(texts.predictions, texts.references, strict=True)]
    return np.array([(said and right, said and not right, right and not said) for said, right in pairs], np.float64)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def _precision(sums: np.ndarray) -> np.ndarray:
    return _ratio(sums[:, :1], sums[:, :1] + sums[:, 1:2])


def _recall(sums: np.ndarray) -> np.ndarray:
    return _ratio(sums[:, :1], sums[:, :1] + sums[:, 2:])


def _f1(sums: np.ndarray) -> np.ndarray:
    return _ratio(2 * sums[:, :1], 2 * sums[:, :1] + sums[:, 1:2] + sums[:, 2:])


Rule = Callable[[np.ndarray], np.ndarray]


def _score_set(texts: Texts, rule: Rule) -> tuple[float, list[float]]:
    value = 100 * float(rule(_counts(texts).sum(0, keepdims=True))[0, 0])
    return value, list(map(yes_no_accuracy, texts.predictions, texts.references))


def _interval(texts: Texts, values: Sequence[float], seed: int, rule: Rule) -> bootstrap.Interval:
    del values
    low, high = 100 * bootstrap.bootstrap_sums(_counts(texts), rule, seed)[:, 0]
    return float(low), float(high)


def _of_counts(name: str, label: str, explanation: str, rule: Rule) -> Metric:
    return Metric(
        *(name, label, explanation, "answers"),
        score_set=functools.partial(_score_set, rule=rule),
        interval=functools.partial(_interval, rule=rule),
        form="{:.1f}",
        on_cards=False,
    )


ACCURACY = official("accuracy", yes_no_accuracy, "answers with the right one of yes and no, in percent")
PRECISION = _of_counts(
    "precision", "precision", "of the answers yes those that are right, in percent; 0 for none", _precision
)
RECALL = _of_counts("recall", "recall", "of the questions with the answer yes those answered so, in percent", _recall)
F1 = _of_counts("f1", "F1", "harmonic mean of precision and recall of yes, in percent", _f1)
YES_RATIO = Metric(
    *("yes_ratio", "yes", "answers that say yes, in percent; half of them should", "answers", _yes),
    scale=100.0,
    form="{:.1f}",
    on_cards=False,
)
