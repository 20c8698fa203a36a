"""Scores of answers, case by case. Expectations follow visualqa.org's rules and the official program's known quirks."""

import pytest

from vadapter.evaluation import answers
from vadapter.evaluation.stemmer import stem


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
        ("man,woman", "man woman"),  # a comma between letters is a space
        ("1, 2", "1 2"),  # and next to a space it is deleted, here too
        ("1,b", "1 b"),
        ("$5.00!", "$5.00"),  # ! is a mark, $ is none
        ("50%", "50%"),
        ("@home", "home"),
        ("a_b", "b"),  # the mark becomes a space, which leaves an article
        ("u.s.a.", "usa"),
        ("e.g. this", "eg this"),
        ("10:30", "10:30"),
        ("girl's", "girl's"),
        ("An apple The end", "apple end"),
        ("ten Ten 10", "10 10 10"),
        ("zero", "0"),
        ("none of them", "0 of them"),
        ("yall", "y'all"),
        ("y'alld've", "y'all'd've"),
        ("wont", "won't"),
        ("Dont", "don't"),
        ("im", "im"),  # the table has Im and Ive with a capital, which lower case never meets
        ("ive", "ive"),
        ("cant.", "can't"),
        ("first\nsecond\tthird", "first second third"),
        ("  two   spaces ", "2 spaces"),
        ("a", ""),
        ("", ""),
        ("." * 40, "." * 8),  # no more than 32 periods are removed
    ],
)
def test_normalize_answer(answer, expected):
    assert answers.normalize_answer(answer) == expected


@pytest.mark.parametrize(
    ("prediction", "given", "expected"),
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
def test_vqa_accuracy(prediction, given, expected):
    assert answers.vqa_accuracy(prediction, given) == pytest.approx(expected)


def test_vqa_accuracy_needs_someone_to_leave_out():
    with pytest.raises(ValueError, match="at least 2"):
        answers.vqa_accuracy("red", ["red"])


def test_answer_score_of_few_answers_takes_any_of_them():
    assert answers.answer_score("Two", ["2"]) == 1.0
    assert answers.answer_score("a cat", ["dog", "cat"]) == 1.0
    assert answers.answer_score("cow", ["dog", "cat"]) == 0.0


@pytest.mark.parametrize(
    ("prediction", "given", "expected"),
    [
        ("unanswerable", ["unanswerable"] * 7 + ["dog"] * 3, 1.0),  # an answer like others
        ("dog", ["unanswerable"] * 7 + ["dog"] * 3, (3 * 2 / 3 + 7 * 1) / 10),
        ("dog", ["unanswerable"] * 8 + ["dog", "dog"], (2 * 1 / 3 + 8 * 2 / 3) / 10),  # equal answers are two people's
    ],
)
def test_vizwiz_counts_people_not_answers(prediction, given, expected):
    assert answers.vqa_accuracy(prediction, given) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("caresses", "caress"), ("ponies", "poni"), ("cats", "cat"), ("feed", "feed"), ("agreed", "agre"),
        ("sing", "sing"), ("motoring", "motor"), ("conflated", "conflat"), ("sized", "size"), ("hopping", "hop"),
        ("falling", "fall"),
        ("filing", "file"), ("happy", "happi"), ("sky", "sky"), ("relational", "relat"), ("digitizer", "digit"),
        ("vietnamization", "vietnam"), ("sensibiliti", "sensibl"), ("electricity", "electr"), ("goodness", "good"),
        ("replacement", "replac"), ("adoption", "adopt"), ("effective", "effect"), ("probate", "probat"),
        ("rate", "rate"), ("cease", "ceas"), ("controll", "control"), ("roll", "roll"), ("riding", "ride"),
        ("is", "is"), ("3.5", "3.5"),
    ],
)  # fmt: skip
def test_stem_is_porters(word, expected):
    assert stem(word) == expected


def test_okvqa_compares_stems():
    stemmed = ["race"] * 6 + ["motocross"] * 4
    assert answers.vqa_accuracy("racing", stemmed) == 0.0
    assert answers.okvqa_accuracy("racing", stemmed) == 1.0
    assert answers.okvqa_accuracy("The Races!", ["racing"] * 10) == 1.0
    assert answers.okvqa_accuracy("boats", ["boat house"] * 10) == 0.0


def test_ivqa_wants_two_people():
    five = ["red car", "red car", "car", "van", "red"]
    assert [answers.ivqa_accuracy(p, five) for p in ("red car", "van", "bus")] == [1.0, 0.5, 0.0]


def test_exact_answers_are_compared_to_the_letter():
    assert answers.exact_accuracy("dog", ["dog"]) == 1.0
    assert answers.exact_accuracy("dogs", ["dog"]) == 0.0
    assert answers.exact_accuracy("dog", []) == 0.0


@pytest.mark.parametrize(
    ("said", "right", "score"),
    [
        ("0.28", ["0.28"], 1.0),
        ("UNIVERSITY  of\tCalifornia", ["university of california"], 1.0),
        ("kitten", ["sitting"], 1 - 3 / 7),
        ("abcd", ["abxy"], 0.5),  # just 0.5 counts, as in the official program
        ("abcd", ["axyz"], 0.0),
        ("kitten", ["x", "mitten", "sitting"], 1 - 1 / 6),  # the nearest
        ("", ["word"], 0.0),
    ],
)
def test_anls(said, right, score):
    assert answers.anls(said, right) == pytest.approx(score)


def test_anls_needs_an_answer():
    with pytest.raises(ValueError, match="at least 1 answer"):
        answers.anls("a", [])


@pytest.mark.parametrize(
    ("said", "right", "score"),
    [
        ("105", "100", 1),
        ("105.1", "100", 0),
        ("95", "100", 1),
        ("-95", "100", 0),
        ("-104", "-100", 1),
        ("12%", "0.12", 1),
        ("12", "12%", 0),
        ("0", "0", 1),
        ("0.0", "0", 0),  # nothing is within 5% of 0: compared as a text
        ("Yes", "yes", 1),
        ("yes.", "yes", 0),
        ("100 people", "100", 0),
        ("nan", "100", 0),
        ("", "100", 0),
    ],
)
def test_relaxed_accuracy(said, right, score):
    assert answers.relaxed_accuracy(said, [right]) == score
