"""Scores of questions with options: letters found in texts, circular evaluation, MMStar's categories, ScienceQA."""

import pytest

from vadapter.benchmarks import table
from vadapter.evaluation import choices, mmmu

OPTIONS = ("a red dog", "a green cat", "a blue cow")


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("(B) a green cat", "B"),
        ("B: because", "B"),
        ("The answer is B.", "B"),
        ("b", ""),  # small letters are words
        ("A green cat", "A"),  # as VLMEvalKit: the word A is taken for a letter
        ("B, so it has green fur all over it", ""),  # its letter is not among the last five words, nor an option
        ("B or C", ""),
        ("it is A Green Cat", "A"),
        ("it is the Blue one, a blue COW", "C"),
        ("a red dog and a blue cow", ""),
        ("D", ""),
        ("Z", "Z"),
        ("Cannot determine the answer", "Z"),
        ("", ""),
        ("a green cat " + "very " * 30, ""),  # longer than twice all options
    ],
)
def test_the_letter_that_a_text_means(text, letter):
    assert choices.chosen_letter(text, OPTIONS) == letter


@pytest.mark.parametrize(
    ("text", "right"),
    [("b", 1), ("B. a cat", 1), ("(B) it", 1), ("Option B", 1), ("The answer is B", 1), ("Bees", 1)]
    + [("It is B", 0), ("", 0), ("(", 0), ("A", 0)],
)
def test_mmstar_takes_what_a_text_begins_with(text, right):
    assert choices.begins_with_letter(text, OPTIONS, "B") == right


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("(A) or rather (C)", "C"),
        ("A or rather B", "B"),
        ("(A), not B", "A"),
        ("B. a green cat", "B"),
        ("'C.'", "C"),
        ("well I think that it is a green cat", "B"),
        ("first a blue cow and then I see a red dog", "A"),
    ],
)
def test_mmmu_takes_the_last_letter_or_option(text, letter):
    assert mmmu.chosen_letter(text, OPTIONS, "x") == letter


def test_mmmu_takes_any_option_where_a_text_names_none():
    found = [mmmu.chosen_letter("no idea", OPTIONS, f"question {i}") for i in range(60)]
    assert set(found) == {"A", "B", "C"}
    assert found == [mmmu.chosen_letter("no idea", OPTIONS, f"question {i}") for i in range(60)]


@pytest.mark.parametrize(
    ("text", "answers", "right"),
    [
        ("6,000", ["$6,000", "6000"], True),
        ("The answer is 6000.004", ["6000"], True),
        ("So it is 1.5e3", ["1500"], True),
        ("x = 12", ["12"], True),
        ("It costs $6,000 a year.", ["$6,000"], True),
        ("6001", ["6000"], False),
        ("an ellipsis", ["ellipsis"], True),
        ("bat", ["a"], False),  # one letter stands alone or not at all
        ("answer is a", ["a"], True),
        ("", ["12"], False),
        ("-12", ["12"], False),
    ],
)
def test_mmmu_open_questions(text, answers, right):
    assert mmmu.open_is_right(text, answers) == right


def record(name, said, answers, options=OPTIONS, **more):
    question = {"id": str(name), "question": "what", "prediction": said, "references": answers, **more}
    return {**question, "options": list(options)} if options else question


def scalars(name, records):
    return table.benchmark(name).protocol.score(records).scalars


def test_mmmu_is_scored_by_subject_and_over_all_questions():
    art = {"question_type": "Art", "domain": "Art_and_Design"}
    maths = {"question_type": "Math", "domain": "Science"}
    records = [
        record("validation_Art_1", "(B)", ["B"], **art),
        record("validation_Art_2", "A", ["B"], **art),
        record("validation_Art_3", "C", ["B"], **art),
        record("validation_Math_1", "so x = 12.0", ["12"], options=(), **maths),
    ]
    found = scalars("mmmu", records)
    assert found["accuracy"] == 50.0  # of questions, not of subjects
    assert found["accuracy/Art"] == found["accuracy/Art_and_Design"] == pytest.approx(100 / 3)
    assert found["accuracy/Math"] == 100.0
    protocol = table.benchmark("mmmu").protocol
    _, rows = protocol.submission([*records, record("test_Art_9", "It is (C)", [])], "test")
    assert rows["validation_Math_1"] == "so x = 12.0" and rows["test_Art_9"] == "C"


def test_mmstar_is_the_mean_of_its_categories():
    records = [record(i, "A", ["A"], question_type="math") for i in range(3)]
    records += [record(9, "B", ["A"], question_type="coarse perception")]
    found = scalars("mmstar", records)
    assert found["accuracy"] == 50.0
    assert found["accuracy/math"] == 100.0 and found["accuracy/coarse_perception"] == 0.0


def test_a_question_of_mmbench_is_right_where_all_its_rotations_are():
    turned = ("a green cat", "a blue cow", "a red dog")
    kinds = {"question_type": "attribute_reasoning", "answer_type": "function"}
    records = [
        record(7, "A", ["A"], **kinds),
        record(1_000_007, "a red dog", ["C"], turned, **kinds),
        record(8, "B", ["B"], **kinds),
        record(1_000_008, "B", ["A"], turned, **kinds),
        record(2_000_008, "A", ["A"], turned, **kinds),
    ]
    found = scalars("mmbench", records)
    assert found["circular_accuracy"] == found["circular_accuracy/attribute_reasoning"] == 50.0
    assert found["accuracy_of_rotations"] == 80.0
    name, rows = table.benchmark("mmbench").protocol.submission(records[:1], "test")
    assert (name, rows) == ("mmbench_test_results.json", [{"index": 7, "prediction": "A"}])
    protocol = table.benchmark("mmbench").protocol
    assert protocol.texts is not None
    assert protocol.texts(records[:1], protocol.clean) == {
        "mmbench_results.tsv": "index\tquestion\tA\tB\tC\tprediction\n7\twhat\ta red dog\ta green cat\ta blue cow\tA\n"
    }


def test_scienceqa_by_subject_context_and_grade():
    lower, upper = ({"domain": f"grades {grades}"} for grades in ("1-6", "7-12"))
    records = [
        record(1, "A.", ["A"], answer_type="text image", question_type="natural science", **lower),
        record(2, "B", ["A"], answer_type="image", question_type="natural science", **upper),
        record(3, "I do not know", ["A"], answer_type="text", question_type="social science", **upper),
        record(4, "C", ["C"], answer_type="neither", question_type="social science", **upper),
    ]
    found = scalars("scienceqa", records)
    assert found["accuracy"] == found["image_accuracy"] == found["text_accuracy"] == 50.0
    assert found["no_context_accuracy"] == 100.0
    assert found["accuracy/natural_science"] == 50.0 and found["accuracy/grades_1-6"] == 100.0
    _, content = table.benchmark("scienceqa").protocol.submission(records, "test")
    assert content == {"results": {"1": 0, "2": 1, "3": -1, "4": 2}}


def test_a_score_of_records_that_are_not_there_is_left_out_and_said():
    records = [record(1, "A", ["A"], answer_type="text", question_type="natural science")]
    found = table.benchmark("scienceqa").protocol.score(records)
    assert "image_accuracy" not in found.scalars
    assert "no record is of this kind" in found.details["image_accuracy_left_out"]
