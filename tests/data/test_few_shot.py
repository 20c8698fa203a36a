"""Text-only examples before a question, and the prompts that hold them."""

import pytest

from tests.benchmarks import official_files
from vadapter.base.errors import UserError
from vadapter.data.rows import prompts

PAIRS = [(f"{i}", f"image{i // 2}", f"What is {i}?", f"answer {i}") for i in range(6)]


def examples(pairs=PAIRS, **settings):
    from vadapter.data.rows.few_shot import Examples

    return Examples(pairs, **settings)


def test_examples_are_a_function_of_seed_and_question():
    made, again = examples(shots=2, seed=3), examples(shots=2, seed=3)
    names = [f"q{i}" for i in range(20)]
    assert [made.choose(n) for n in names] == [again.choose(n) for n in reversed(names)][::-1]
    assert len({tuple(made.choose(n)) for n in names}) > 5
    assert [examples(shots=2, seed=4).choose(n) for n in names] != [made.choose(n) for n in names]
    fixed = examples(shots=2, seed=3, fixed=True)
    assert len({tuple(fixed.choose(n)) for n in names}) == 1


def test_the_pairs_that_a_seed_draws():
    assert examples(shots=2, seed=0).text("262148000") == (
        "Given Question: What is 4 ? Answer: answer 4 Given Question: What is 0 ? Answer: answer 0"
    )


def test_examples_are_different_pairs_and_never_the_question_itself():
    for fixed in (False, True):
        made = examples(shots=5, fixed=fixed)
        for name, image, question, answer in PAIRS:
            found = made.choose(name, image, question)
            assert len(set(found)) == 5 and (question, answer) not in found
            # The same question about the same image, under another id.
            assert (question, answer) not in made.choose("other", image, question.rstrip("?"))
            if not fixed:
                found = [pair for n in "abcdefghij" for pair in made.choose(n, "another image", question)]
                assert (question, answer) in found


def test_a_question_with_the_words_of_a_template_stays_as_it_is():
    made = examples([("1", "", "What is <answer>?", "<question>"), ("2", "", "x", "y")], shots=1)
    assert made.text("2", "", "x") == "Given Question: What is <answer> ? Answer: <question>"


@pytest.mark.parametrize("shots", [0, 6, 7])
def test_more_examples_than_pairs(shots):
    with pytest.raises(UserError, match=r"1 to 5 examples.*found shots ="):
        examples(shots=shots)


@pytest.mark.parametrize(
    "template",
    ["Q: <question>", "Q: <question> <answer> <answer>", "<media> <question> <answer>", "<answer> <question>"],
)
def test_templates_of_examples_are_checked(template):
    with pytest.raises(UserError, match="<question> and then <answer>"):
        examples(template=template)


@pytest.mark.parametrize(
    ("template", "question"),
    [
        ("<media> <examples> <question>", True),
        ("<examples> <examples> <media> <question>", True),
        ("<examples> <media>", False),
    ],
)
def test_the_place_of_examples_is_checked(template, question):
    with pytest.raises(UserError, match="<examples> at most once, before <media>"):
        prompts.resolve(template, question)


def test_prompts_of_the_paper():
    assert prompts.load("image_question_examples") == (
        "Answer the question given the images. <examples> Given <media> Image question: <question> ? Answer:"
    )
    assert prompts.load("video_question_examples").endswith(
        "Given <media> Image question: <question> ? Answer in exactly one word:"
    )
    assert prompts.load("text_example") == "Given Question: <question> ? Answer: <answer>"
    assert prompts.fill("Say. <examples> Given <media>: <question> ?", "a cat", "why?") == "Say. Given a cat: why ?"


def registered(tmp_path, name="vqav2", **settings):
    from tests.data.loaders import make_loader
    from vadapter.benchmarks.tasks import benchmark_task

    official_files.write(name, tmp_path / "official")
    benchmark_task(name, str(tmp_path / "built"), str(tmp_path / "official"), **settings)
    lengths = {"inputs": 300, "targets": 8}
    made = make_loader(name, split="validation", lengths=lengths, batch_size=3, image_size=48)
    ((batch, rows),) = list(made.eval_batches(for_decoding=True))
    return batch, rows, made.vocabulary


def test_the_prompt_of_a_question_with_four_examples(tmp_path):
    batch, rows, vocabulary = registered(tmp_path)
    assert rows[0]["prompt"] == (
        "Answer the question given the images. "
        "Given Question: Is picture 1 of train2014 red ? Answer: yes "
        "Given Question: Is picture 2 of train2014 red ? Answer: yes "
        "Given Question: Is picture 3 of train2014 red ? Answer: yes "
        "Given Question: Is picture 6 of train2014 red ? Answer: yes "
        "Given <media> Image question: Is picture 0 of val2014 red ? Answer:"
    )
    assert rows[0]["prompt"] != rows[1]["prompt"].replace("picture 1 of val", "picture 0 of val")
    for i, row in enumerate(rows):
        before, after = row["prompt"].split("<media>")
        visual = batch.media_index[i] >= 0
        first = int(visual.argmax())
        assert vocabulary.decode(batch.tokens[i, 1:first].tolist()).strip() == before.strip()
        assert vocabulary.decode(batch.tokens[i, first + 3 :].tolist()).strip() == after.strip()


def test_answers_of_okvqa_examples_are_not_the_stemmed_ones(tmp_path):
    _, rows, _ = registered(tmp_path, "okvqa", shots=1)
    assert "Answer: yes! Given" in rows[0]["prompt"] and "yes!" not in rows[0]["answers"]


def test_without_examples_and_with_own_templates(tmp_path):
    _, rows, _ = registered(tmp_path, shots=0)
    assert rows[0]["prompt"] == (
        "Answer the question given the images. Given <media>. Question : Is picture 0 of val2014 red ? Answer:"
    )
    own = {"prompt": "<examples>\n<media>\nQ: <question>\nA:", "example_prompt": "Q: <question> A: <answer>"}
    _, rows, _ = registered(tmp_path, shots=1, shots_seed=1, shots_fixed=True, **own)
    assert rows[0]["prompt"].startswith("Q: Is picture ") and rows[0]["prompt"].endswith("red\nA:")
    assert len({row["prompt"].split("<media>")[0] for row in rows}) == 1
    with pytest.raises(UserError, match="Expected <examples> in the prompt of vqav2"):
        registered(tmp_path, prompt="<media> <question>")
    (tmp_path / "official" / "v2_OpenEnded_mscoco_train2014_questions.json").unlink()


def test_examples_need_the_training_annotations(tmp_path):
    from vadapter.benchmarks.tasks import benchmark_task

    official_files.write("vqav2", tmp_path)
    (tmp_path / "v2_OpenEnded_mscoco_train2014_questions.json").unlink()
    with pytest.raises(UserError, match="v2_OpenEnded_mscoco_train2014_questions.json"):
        benchmark_task("vqav2", str(tmp_path / "built"), str(tmp_path))
