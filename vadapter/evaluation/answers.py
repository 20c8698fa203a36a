"""Scores of answers to questions: VQA accuracy with its normalisation, stemmed for OKVQA, exact match, iVQA's, ANLS,
and ChartQA's relaxed accuracy.

All of them are 0..1 for one question; the metrics of benchmarks are in percent. The rules are the published ones, with
the quirks of the benchmarks' programs.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence

from vadapter.evaluation.metrics import Metric, register
from vadapter.evaluation.stemmer import stem

_NUMBER_WORDS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7",
    "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
_ARTICLES = frozenset(["a", "an", "the"])
_ANSWER_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_MAX_PERIODS = 32

# Forms that get their apostrophe back when exactly one is missing: dont -> don't, couldnt've -> couldn't've.
_CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def _contractions() -> dict[str, str]:
    table = {}
    for word in _CONTRACTED.split():
        for at, letter in enumerate(word):
            if letter == "'":
                table[word[:at] + word[at + 1 :]] = word
    # The published table has this one entry the wrong way round.
    table["somebody'd"] = "somebodyd"
    return table


_CONTRACTIONS = _contractions()


def strip_answer_punctuation(answer: str) -> str:
    """The punctuation step of the VQA evaluation, with its quirks.

    A mark next to a space is deleted, any other becomes a space, but if the answer has a comma between two digits
    *all* marks are deleted: `1,000/day` -> `1000day`. Periods go unless a digit follows (`.5` stays), at most 32 of
    them. Apostrophes and colons stay.
    """
    text = answer
    delete_all = _COMMA_IN_NUMBER.search(answer) is not None
    for mark in _ANSWER_PUNCTUATION:
        delete = delete_all or f"{mark} " in answer or f" {mark}" in answer
        text = text.replace(mark, "" if delete else " ")
    return _PERIOD.sub("", text, count=_MAX_PERIODS)


def _strip_answer(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()


def normalize_answer(answer: str) -> str:
    """An answer as the VQA evaluation compares it (visualqa.org/evaluation): see `strip_answer_punctuation`, then lower
    case, number words up to ten as digits (`none` is 0), no articles, missing apostrophes of contractions restored."""
    words = [_NUMBER_WORDS.get(w, w) for w in strip_answer_punctuation(_strip_answer(answer)).lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Official VQA accuracy of one question, in 0..1.

    The mean over the leave-one-out sets of human answers of min(matches / 3, 1). A set leaves out one *person*, so
    equal answers of two people are two answers. One quirk of the official program is kept: where all answers are the
    same string, nothing is normalised, so `Yes` does not match ten times `yes`.

    Args:
        prediction: the model's answer.
        answers: one answer a person; 10 in VQAv2, OKVQA, TextVQA and VizWiz.

    Raises:
        ValueError: fewer than two answers, which leave nothing to compare with.
    """
    if len(answers) < 2:
        raise ValueError(f"leave-one-out accuracy needs at least 2 answers, found {len(answers)}")
    given, answers = _strip_answer(prediction), [_strip_answer(a) for a in answers]
    if len(set(answers)) > 1:
        given, answers = normalize_answer(given), [normalize_answer(a) for a in answers]
    matches = sum(a == given for a in answers)
    return sum(min((matches - (a == given)) / 3, 1.0) for a in answers) / len(answers)


def answer_score(prediction: str, answers: Sequence[str]) -> float:
    """Score of an answer in 0..1: `vqa_accuracy` for ten answers or more, else whether it equals one of them.

    Fewer than ten are taken as alternatives that are all right, each compared after `normalize_answer`.
    """
    if len(answers) >= 10:
        return vqa_accuracy(prediction, answers)
    given = normalize_answer(prediction)
    return float(any(normalize_answer(a) == given for a in answers))


def okvqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """VQA accuracy on stems, as OKVQA's authors score (`riding` is `ride`).

    Their annotations bring answers that are stemmed already ("answer" beside "raw_answer"), by rules that were not
    published. Here the words of the prediction and of every answer are normalised as for VQA and then stemmed by
    Porter's rules, so that raw and stemmed answers meet whatever the annotations' stemmer did.

    Args and errors as in `vqa_accuracy`.
    """
    return vqa_accuracy(_stemmed(prediction), [_stemmed(answer) for answer in answers])


def _stemmed(answer: str) -> str:
    return " ".join(stem(word) for word in normalize_answer(_strip_answer(answer)).split())


def exact_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """1 where the prediction is the (first) answer, to the letter: GQA, MSRVTT-QA, MSVD-QA. 0 without an answer."""
    return float(bool(answers) and prediction == answers[0])


def ivqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """iVQA: min(people who gave this very answer / 2, 1) over five people; answers are compared to the letter."""
    return min(sum(answer == prediction for answer in answers) / 2, 1.0)


def _edits(one: str, other: str) -> int:
    """Levenshtein's distance: the fewest characters to insert, delete or replace."""
    previous = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        row = [i]
        for j, b in enumerate(other, 1):
            row.append(min(previous[j] + 1, row[-1] + 1, previous[j - 1] + (a != b)))
        previous = row
    return previous[-1]


def anls(prediction: str, answers: Sequence[str]) -> float:
    """Normalised Levenshtein similarity to the nearest answer, 0 below 0.5: DocVQA's; its mean over questions is ANLS.

    Case and runs of spaces do not count, as in the program of the Robust Reading Competition (rrc.cvc.uab.es). A
    similarity of just 0.5 counts, as there.

    Raises:
        ValueError: no answers.
    """
    if not answers:
        raise ValueError("the nearest answer needs at least 1 answer, found none")
    return max(_similarity(prediction, answer) for answer in answers)


def _similarity(prediction: str, answer: str) -> float:
    longest = max(len(prediction), len(answer))
    one, other = (" ".join(text.lower().split()) for text in (prediction, answer))
    similarity = 1.0 - _edits(one, other) / longest if longest else 1.0
    return similarity if similarity >= 0.5 else 0.0


def relaxed_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """1 where a number is within 5% of the (first) answer, or a text is equal to it but for case: ChartQA.

    As in the program that papers use (google-research/pix2struct), `12%` is 0.12, and an answer of 0 is compared as a
    text. 0 without an answer.
    """
    if not answers:
        return 0.0
    given, right = _number(prediction), _number(answers[0])
    if given is not None and right:
        return float(abs(given - right) / abs(right) <= 0.05)
    return float(prediction.lower() == answers[0].lower())


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100.0 if text.endswith("%") else float(text)
    except ValueError:
        return None


def kind_of(answers: Sequence[str]) -> str:
    """`yes/no`, `number` or `other`: the kind of a question, as VQA tells them apart, by its commonest answer."""
    found = Counter(map(normalize_answer, answers)).most_common(1)
    answer = found[0][0] if found else ""
    if answer in ("yes", "no"):
        return "yes/no"
    number = _number(answer)
    return "number" if number is not None and math.isfinite(number) else "other"


# Of any questions, 0..1. Those of benchmarks have the same name, and belong to their protocols alone.
ANSWERS = register(Metric("vqa_accuracy", "VQA", "accuracy of answers", "answers", answer_score, form="{:.1%}"))


def official(name: str, score: Callable[[str, Sequence[str]], float], explanation: str) -> Metric:
    """Returns a metric of a benchmark's questions, in percent."""
    return Metric(name, "accuracy", explanation, "answers", score, scale=100.0, form="{:.1f}")


VQA_ACCURACY = official("vqa_accuracy", vqa_accuracy, "accuracy against several people's answers, in percent")
OKVQA_ACCURACY = official(
    "vqa_accuracy", okvqa_accuracy, "accuracy against several people's answers, stemmed, in percent"
)
UNSTEMMED_ACCURACY = official("vqa_accuracy_unstemmed", vqa_accuracy, "the same without stemming")
EXACT_ACCURACY = official("accuracy", exact_accuracy, "answers equal to the right one, in percent")
IVQA_ACCURACY = official("accuracy", ivqa_accuracy, "accuracy against five people's answers, in percent")
ANLS = official("anls", anls, "similarity to the nearest answer, by letters, in percent")
RELAXED_ACCURACY = official("relaxed_accuracy", relaxed_accuracy, "answers that are right within 5%, in percent")
