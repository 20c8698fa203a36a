"""Scores of questions with options to choose from: AI2D, MMBench, MMStar, ScienceQA.

Records have `options` in the order of their letters; the one reference is the letter of the right one. Which option a
text means is found by rules alone. Where a benchmark's own program asks a language model about texts that the rules do
not understand (MMBench's does), such a text is wrong here, as in the `exact_matching` of VLMEvalKit.
"""

import functools
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vadapter.evaluation.metrics import Metric, Texts

NONE = "Z"  # a text that says that it has no answer
_MARKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_LAST_WORDS = 5
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
Rule = Callable[[str, Sequence[str], str], float]  # (prediction, options, right letter) -> 0 or 1


def letters(options: Sequence[Any]) -> str:
    """The letters of the options: A, B, ..."""
    return string.ascii_uppercase[: len(options)]


def chosen_letter(prediction: str, options: Sequence[str]) -> str:
    """The letter of the option that a text means, by the rules of VLMEvalKit; "" where they find none.

    It is the only letter of an option that stands alone in the text (`B`, `(B) a dog`, `The answer is B.`), among the
    last five words. Where no letter does, it is the only option whose text is in the text, whatever its case, unless
    the text is longer than twice all options. `Z`, or a refusal, is `Z`.
    """
    if any(refusal in prediction for refusal in _REFUSALS):
        return NONE
    words = prediction.translate(_MARKS).split()
    found = [letter for letter in letters(options) if letter in words]
    if len(found) == 1 and words.index(found[0]) > len(words) - _LAST_WORDS:
        return found[0]
    if not found and NONE in words:
        return NONE
    text = prediction.lower()
    if len(text) > 2 * sum(map(len, options)):
        return ""
    named = [letter for letter, option in zip(letters(options), options, strict=True) if option.lower() in text]
    return named[0] if len(named) == 1 else ""


def chooses(prediction: str, options: Sequence[str], right: str) -> float:
    """1 where a text means the right option, by `chosen_letter`."""
    return float(chosen_letter(prediction, options) == right)


def begins_with_letter(prediction: str, options: Sequence[str], right: str) -> float:
    """1 where a text begins with the right letter, as MMStar's program takes it (github.com/MMStar-Benchmark/MMStar).

    `B`, `(B`, `option B` and `the answer is B`, in any case, whatever follows: so `Bees` is B.
    """
    del options
    text, letter = prediction.lower().strip().replace("\n", " "), right.lower().strip()
    return float(any(text.startswith(f"{opening}{letter}") for opening in ("", "(", "option ", "the answer is ")))


# --- metrics ----------------------------------------------------------------------------------------------------------


def each_right(texts: Texts, rule: Rule) -> list[float]:
    """1 or 0 for each record.

    Raises:
        ValueError: a record has no options, or its answer is not the letter of one.
    """
    found = []
    for said, right, record in zip(texts.predictions, texts.references, texts.records, strict=True):
        options = record.get("options") or ()
        if right[0] not in letters(options):
            raise ValueError(f"the answer {right[0]!r} of {record.get('id')} is none of its {len(options)} options")
        found.append(rule(said, options, right[0]))
    return found


def _accuracy(texts: Texts, rule: Rule, keep: Callable[[Mapping[str, Any]], bool]) -> tuple[float, list[float]]:
    each = each_right(texts, rule)
    kept = [value for value, record in zip(each, texts.records, strict=True) if keep(record)]
    if not kept:
        raise ValueError("no record is of this kind")
    return 100 * sum(kept) / len(kept), each


def _every(record: Mapping[str, Any]) -> bool:
    del record
    return True


def accuracy(
    rule: Rule = chooses,
    name: str = "accuracy",
    explanation: str = "questions whose right option is chosen, in percent",
    keep: Callable[[Mapping[str, Any]], bool] = _every,
) -> Metric:
    """Returns the share of the records, in percent, whose right option is chosen by a rule.

    Args:
        rule: see `Rule`.
        name, explanation: see `Metric`.
        keep: of which records; all of them where it is not given.
    """
    whole = keep is _every
    return Metric(
        *(name, "accuracy", explanation, "answers"),
        score_set=functools.partial(_accuracy, rule=rule, keep=keep),
        scale=100.0,
        form="{:.1f}",
        **({} if whole else {"interval": None, "on_cards": False}),
    )


def _mean_of_categories(texts: Texts, rule: Rule) -> tuple[float, list[float]]:
    each = each_right(texts, rule)
    categories: dict[str, list[float]] = {}
    for value, record in zip(each, texts.records, strict=True):
        categories.setdefault(str(record.get("question_type", "")), []).append(value)
    means = [sum(values) / len(values) for values in categories.values()]
    return 100 * sum(means) / len(means), each


def circular_group(record: Mapping[str, Any]) -> int:
    """Number of the question that a record of MMBench asks: its index, without the millions that count rotations.

    Raises:
        ValueError: the id is no number.
    """
    return int(record["id"]) % 1_000_000


def _circular(texts: Texts) -> tuple[float, list[float]]:
    each = each_right(texts, chooses)
    asked = [circular_group(record) for record in texts.records]
    wrong = {group for group, value in zip(asked, each, strict=True) if not value}
    total = len(set(asked))
    return 100 * (total - len(wrong)) / total, each


ACCURACY = accuracy()
MMSTAR = Metric(
    *("accuracy", "accuracy", "mean of the accuracies of the categories, in percent", "answers"),
    score_set=functools.partial(_mean_of_categories, rule=begins_with_letter),
    scale=100.0,
    form="{:.1f}",
    interval=None,
)
CIRCULAR = Metric(
    *("circular_accuracy", "circular", "questions that are right in every rotation of their options, in percent"),
    of="answers",
    score_set=_circular,
    scale=100.0,
    form="{:.1f}",
    interval=None,
)
VANILLA = accuracy(name="accuracy_of_rotations", explanation="rotations whose right option is chosen, in percent")


def _has(context: str) -> Callable[[Mapping[str, Any]], bool]:
    return functools.partial(_says, context=context)


def _says(record: Mapping[str, Any], context: str) -> bool:
    return context in str(record.get("answer_type", "")).split()


SCIENCEQA = (
    ACCURACY,
    accuracy(name="image_accuracy", explanation="the same of questions with an image", keep=_has("image")),
    accuracy(name="text_accuracy", explanation="the same of questions with a text as context", keep=_has("text")),
    accuracy(name="no_context_accuracy", explanation="the same of questions without either", keep=_has("neither")),
)
