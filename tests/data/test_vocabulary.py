"""The scenes vocabulary and the prompts."""

import pytest

from vadapter.base import resources
from vadapter.base.errors import UserError
from vadapter.data.rows import prompts, vocabulary
from vadapter.data.scenes import build_vocabulary
from vadapter.data.seqio_tasks import SeqioVocabulary


@pytest.fixture(scope="module")
def words():
    return vocabulary.load_vocabulary("scenes")


def test_the_committed_model_is_what_the_code_builds():
    assert (resources.folder("data") / "scenes" / "vocabulary.model").read_bytes() == build_vocabulary.build()


def test_special_ids(words):
    assert (words.vocab_size, words.pad_id, words.eos_id, words.unk_id, words.bos_id) == (512, 0, 1, 2, 3)


def test_a_word_of_the_scenes_is_one_piece(words):
    assert len(words.encode(" a big red square top left and a small blue 7 centre")) == 12


@pytest.mark.parametrize(
    "text", [" a big red square", "Déjà vu — 日本語 🙂", "  two  spaces\n\ttab ", "Describe the following:", "a" * 50]
)
def test_any_text_survives_a_round_trip(words, text):
    assert words.decode(words.encode(text)) == text
    assert SeqioVocabulary(words).encode_tf(text).numpy().tolist() == words.encode(text)


@pytest.mark.parametrize("half", ["\ud83d", "\udc80", "a\udfff b"])
def test_half_a_surrogate_pair_in_a_prompt_is_a_replacement_character(words, half):
    """A byte of a command line that is no UTF-8, or half an emoji in a request's JSON."""
    ids, _ = prompts.write(f"{half} {prompts.MEDIA} {prompts.QUESTION}", words, f"what is {half}?")
    sound = half.replace(half.strip("a b"), "\ufffd")
    expected, _ = prompts.write(f"{sound} {prompts.MEDIA} {prompts.QUESTION}", words, f"what is {sound}?")
    assert ids.tolist() == expected.tolist()


def test_a_prompt_in_parts_has_the_ids_of_the_same_prompt_in_a_document(words):
    template = prompts.load("image_question").replace(prompts.QUESTION, "where is the 7")
    before, after = prompts.split(template)
    document = prompts.fill(prompts.load("image_question"), "big red 7 top ;", "where is the 7 ?") + " top"
    parts = [before, " big red 7 top ;", after, " top"]
    assert [i for part in parts for i in words.encode(part)] == list(words.encode(document))


def test_prompts_are_the_papers():
    assert prompts.load("caption") == "Describe the following: <media> :"
    assert prompts.resolve("image_question", question=True).endswith("Question : <question> ? Answer:")


@pytest.mark.parametrize(
    ("prompt", "question", "message"),
    [
        ("nothing", False, "one of caption, image_question"),
        ("Describe this.", False, "exactly one <media>"),
        ("<media> and <media>", False, "found 2"),
        ("See <media>.", True, "<question> once"),
    ],
)
def test_bad_prompts(prompt, question, message):
    with pytest.raises(UserError, match=message):
        prompts.resolve(prompt, question)


def test_a_missing_vocabulary_is_named(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        vocabulary.load_vocabulary(str(tmp_path / "none.model"))
    (tmp_path / "bad.model").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="cannot be read"):
        vocabulary.load_vocabulary(str(tmp_path / "bad.model"))


def test_a_word_for_people_is_never_empty_and_can_be_printed(words):
    said = [words.word(i) for i in range(words.vocab_size)]
    assert all(text and text.isprintable() for text in said)
    assert "small" in said and said[words.encode("\x13")[-1]] == "<0x13>"
    assert words.word(words.vocab_size) == f"#{words.vocab_size}"
