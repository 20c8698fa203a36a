"""Scores of MMMU: options by their letters, open questions by numbers and texts, as its own program takes them.

The rules are those of github.com/MMMU-Benchmark/MMMU, with their quirks, but one: a text that names no option is taken
by chance there, by one sequence of random numbers for all records. Here the record's id seeds the choice, so that a
record's score does not depend on the others.
"""

import random
import re
from collections.abc import Sequence

from vadapter.evaluation import choices
from vadapter.evaluation.metrics import Metric, Texts

MULTIPLE_CHOICE = "multiple-choice"
_MARKS = (",", ".", "!", "?", ";", ":", "'")
_FEW_WORDS = 5
_BEFORE_ANSWERS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)


def chosen_letter(response: str, options: Sequence[str], seed: str) -> str:
    """The letter of the option that a text means.

    It is the last letter in brackets, `(B)`; else the last one that stands alone, ` B `, or with a period, `B.`; else,
    in a text of more than five words, the option whose text comes last; else any one.

    Args:
        response: the model's text.
        options: of the question.
        seed: of the choice where nothing is found, such as the record's id.
    """
    for mark in _MARKS:
        response = response.strip(mark)
    text, names = f" {response} ", choices.letters(options)
    for form in ("({})", " {} ", "{}."):
        places = {letter: text.rfind(form.format(letter)) for letter in names}
        if max(places.values(), default=-1) >= 0:
            return max(places, key=lambda letter: places[letter])
    if len(text.split()) > _FEW_WORDS:
        pairs = zip(names, options, strict=True)
        places = {letter: text.lower().rfind(option.lower()) for letter, option in pairs}
        if max(places.values(), default=-1) >= 0:
            return max(places, key=lambda letter: places[letter])
    return random.Random(f"mmmu {seed}").choice(names)


def normalized(text: str) -> list[str | float]:
    """A text as it is compared: a number rounded to two digits, or small letters; of one letter, with a space."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
        return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def _key_parts(response: str) -> list[str]:
    """The parts of a text that may have the answer: of each line what follows `is`, `so`, `answer` and the like."""
    response = response.strip().strip(".").lower()
    lines, found = response.split("\n"), []
    for i, line in enumerate(lines):
        marks = (*_BEFORE_ANSWERS, "=") if i == len(lines) - 1 else _BEFORE_ANSWERS
        tails = [line.split(mark)[-1].strip() for mark in marks if mark in line]
        # As the program does: an empty tail is replaced by whatever comes next.
        shortest = ""
        for tail in tails:
            if not shortest or len(tail) < len(shortest):
                shortest = tail
        if shortest and shortest not in _MARKS:
            found.append(shortest)
    return found or [response]


def open_answers(response: str) -> list[str | float]:
    """All that a text may say: its key parts, and the numbers in them, `normalized`."""
    parts = _key_parts(response)
    numbers = [number for part in parts for form in _NUMBERS for number in form.findall(part)]
    return [value for text in (*parts, *numbers) for value in normalized(text)]


def open_is_right(response: str, answers: Sequence[str]) -> bool:
    """Whether one of the numbers is an answer, or an answer is in one of the texts."""
    right = [value for answer in answers for value in normalized(answer)]
    texts = [value for value in right if isinstance(value, str)]
    return any(
        any(text in said for text in texts) if isinstance(said, str) else said in right
        for said in open_answers(response)
    )


def _score_set(texts: Texts) -> tuple[float, list[float]]:
    each = []
    for said, right, record in zip(texts.predictions, texts.references, texts.records, strict=True):
        options = record.get("options")
        if options:
            each.append(float(chosen_letter(said, options, str(record["id"])) in right))
        else:
            each.append(float(open_is_right(said, right)))
    return 100 * sum(each) / len(each), each


ACCURACY = Metric(
    *("accuracy", "accuracy", "right answers, by option or by text, in percent", "answers"),
    score_set=_score_set,
    scale=100.0,
    form="{:.1f}",
)
