"""Tokenisers of the families as vocabularies, and the rows of plain prompts and of chats."""

import json

import pytest
import tensorflow as tf
import tokenizers

from tests.data.tokenizer_files import write_sentencepiece, write_tokenizer
from vadapter.base.errors import UserError
from vadapter.data.rows import prompts, vocabulary
from vadapter.data.rows.prompts import MEDIA_ID
from vadapter.data.seqio_tasks import SeqioVocabulary

FAMILIES = ["gemma", "llama2", "qwen", "llama3", "gemma.model", "llama2.model"]
TEXTS = [
    " a big red square",
    "Déjà vu — 日本語 🙂",
    " two  spaces,\n\ttabs ",
    " <start_of_turn>user <|im_end|> <s> <|eot_id|> <eos>",
]


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """A tokenizer.json in a folder, or a SentencePiece file, of each family."""
    top = tmp_path_factory.mktemp("tokenizers")
    for family in FAMILIES:
        if family.endswith(".model"):
            write_sentencepiece(top / family, family.removesuffix(".model"))
        else:
            write_tokenizer(top / family, family)
    return {family: str(top / family) for family in FAMILIES}


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_text_inside_a_row_survives_a_round_trip(paths, family, text):
    words = vocabulary.load_vocabulary(paths[family])
    ids = words.more(text)
    # The tokenisers of Llama 2 drop the first space when they decode.
    expected = text.removeprefix(" ") if "llama2" in family else text
    assert words.decode(ids) == expected
    assert SeqioVocabulary(words).encode_tf(tf.constant(text)).numpy().tolist() == words.encode(text)
    specials = {words.token_id(t) for t in ("<start_of_turn>", "<|im_end|>", "<|eot_id|>", "<eos>", "<s>")}
    assert not specials & set(ids)


@pytest.mark.parametrize("prompt_format", ["plain", "chat"])
@pytest.mark.parametrize("token", ["<think>", "</think>", "<tool_call>", "<|fim_prefix|>", "<|im_start|>"])
def test_a_token_that_steers_a_model_is_text_where_a_user_types_it(paths, token, prompt_format):
    words = vocabulary.load_vocabulary(paths["qwen"], prompt_format)
    for text in (token, f"say {token} and {token}", f"<{token}>", f"{token}{token}\n"):
        for ids in (words.encode(text), words.more(text), words.first(text)):
            assert words.token_id(token) not in ids
            assert words.decode(ids) == text
    assert words.decode(words.encode(2000 * token)) == 2000 * token
    typed, _ = prompts.write("See <media> . Question: <question> ?", words, f"is {token} here")
    asked, _ = prompts.write("See <media> . Question: <question> ?", words, "is it here")
    count = [ids.tolist().count(words.token_id(token)) for ids in (typed, asked)]
    assert count[0] == count[1]  # those of the turns alone
    assert words.token_id("<table>") in words.encode("a <table> b")  # a word like any other


@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_in_parts_has_the_ids_of_the_whole(paths, family):
    words = vocabulary.load_vocabulary(paths[family])
    parts = ["Describe the following:", " a big red square", ", and not red"]
    assert [*words.first(parts[0]), *words.more(parts[1]), *words.more(parts[2])] == words.first("".join(parts))


@pytest.mark.parametrize(
    ("family", "bos", "eos"),
    [
        ("gemma", "<bos>", "<eos>"),
        ("llama2", "<s>", "</s>"),
        ("qwen", "<|endoftext|>", "<|endoftext|>"),  # no start token: rows begin as documents did
        ("llama3", "<|begin_of_text|>", "<|end_of_text|>"),
        ("gemma.model", "<bos>", "<eos>"),
    ],
)
@pytest.mark.parametrize("beside", [True, False])
def test_start_and_end_tokens(paths, tmp_path, family, bos, eos, beside):
    path = paths[family]
    if not beside and not family.endswith(".model"):
        (tmp_path / "tokenizer.json").write_bytes((vocabulary.locate(path)).read_bytes())
        path = str(tmp_path)
    words = vocabulary.load_vocabulary(path)
    assert words.eos_id == (1 if family.endswith(".model") else words.token_id(eos))
    assert words.bos_id == (2 if family.endswith(".model") else words.token_id(bos))


@pytest.mark.parametrize("family", ["gemma", "qwen", "llama3", "gemma.model"])
def test_end_tokens_that_the_generation_config_names(paths, tmp_path, family):
    name = "tokenizer.model" if family.endswith(".model") else "tokenizer.json"
    for file in vocabulary.locate(paths[family]).parent.glob("tokenizer_config.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / name).write_bytes(vocabulary.locate(paths[family]).read_bytes())
    words = vocabulary.load_vocabulary(str(tmp_path))
    assert words.end_ids == (words.eos_id,)
    for given, more in ((7, (7,)), ([7, words.eos_id, 9, 10**6, -1, None], (7, 9)), (None, ())):
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": given}))
        words = vocabulary.load_vocabulary(str(tmp_path))
        assert words.end_ids == (words.eos_id, *more)
        assert words.answer("red")[-1] == words.eos_id  # what a model is taught stays
        for end in words.end_ids:
            assert words.decode([*words.more(" red"), end, *words.more(" ring")]).strip() == "red"
    (tmp_path / "generation_config.json").write_text("[")
    with pytest.raises(UserError, match=r"generation_config\.json is not valid JSON"):
        _ = vocabulary.load_vocabulary(str(tmp_path)).end_ids


def test_a_chat_ends_with_its_turn_or_with_the_text(paths):
    words = vocabulary.load_vocabulary(paths["gemma"], "chat")
    assert words.end_ids == (words.token_id("<end_of_turn>"), words.token_id("<eos>"))


def test_the_first_id_of_a_vocabulary_is_a_word_like_any_other(paths):
    words = vocabulary.load_vocabulary(paths["llama3"])
    assert words.more("!") == [0]
    assert words.decode([0, *words.more(" red"), -1, -1]) == "! red"
    assert words.decode([*words.more(" red"), words.eos_id, 0, 0]) == " red"
    assert words.decode([*words.more(" red"), words.vocab_size + 5]) == " red"


@pytest.mark.parametrize("family", ["gemma", "qwen"])
def test_an_imported_folder_has_its_tokenizer_inside(paths, tmp_path, family):
    write_tokenizer(tmp_path / "tokenizer", family)
    assert vocabulary.sha256(str(tmp_path)) == vocabulary.sha256(paths[family])
    assert vocabulary.load_vocabulary(str(tmp_path)).more(" red") == vocabulary.load_vocabulary(paths[family]).more(
        " red"
    )


@pytest.mark.parametrize(
    ("family", "name", "found", "before", "between", "end"),
    [
        (
            "gemma",
            "chat",
            "gemma",
            "<start_of_turn>|user\n",
            "<end_of_turn>|\n|<start_of_turn>|model\n",
            "<end_of_turn>",
        ),
        ("qwen", "qwen2.5", "qwen2.5", None, "<|im_end|>|\n|<|im_start|>|assistant\n", "<|im_end|>"),
        (
            "qwen",
            "chat",
            "qwen3",
            "<|im_start|>|user\n",
            "<|im_end|>|\n|<|im_start|>|assistant\n|<think>|\n\n|</think>|\n\n",
            "<|im_end|>",
        ),
        (
            "llama3",
            "chat",
            "llama3",
            "<|start_header_id|>|user|<|end_header_id|>|\n\n",
            "<|eot_id|>|<|start_header_id|>|assistant|<|end_header_id|>|\n\n",
            "<|eot_id|>",
        ),
        ("llama2", "llama2", "llama2", "[INST]", " [/INST]", "</s>"),
    ],
)
def test_turns_of_the_official_templates(paths, family, name, found, before, between, end):
    words = vocabulary.load_vocabulary(paths[family], name)

    def unbarred(text: str) -> str:  # the names of some tokens have bars themselves
        for token in words.format.tokens:
            text = text.replace(token, f"<{words.token_id(token)}>")
        return text

    def ids(text: str) -> list[int]:
        out = []
        for part in filter(None, unbarred(text).split("|")):
            number = part[1:-1]
            out += [int(number)] if part[0] == "<" and number.isdigit() else words.more(part)
        return out

    assert words.prompt_format == found
    assert words.token_id(end) == words.eos_id
    if before is not None and family != "llama2":
        assert words.head("Describe:") == [*ids(before), *words.more("Describe:")]
    if family == "llama2":
        assert words.decode([*words.head("Describe:"), *words.tail(" one")]) == "[INST] Describe: one [/INST]"
    else:
        assert words.tail(" one") == [*words.more(" one"), *ids(between)]


def test_an_answer_follows_a_plain_prompt_after_a_space_and_a_chat_without(paths):
    plain, chat = vocabulary.load_vocabulary(paths["gemma"]), vocabulary.load_vocabulary(paths["gemma"], "chat")
    ids = plain.answer("  a red ring ")
    assert ids == [*plain.more(" a red ring"), plain.token_id("<eos>")]
    ids = chat.answer("  a red ring ")
    assert ids == [*chat.more("a red ring"), chat.token_id("<end_of_turn>")]


def test_a_request_is_written_as_the_training_rows_are(paths):
    words = vocabulary.load_vocabulary(paths["gemma"], "chat")
    ids, _ = prompts.write("See <media> . Question: <question> ?", words, "what is it ?")
    assert ids.tolist() == [
        *words.head("See"),
        MEDIA_ID,
        *words.more(" . Question: what is it ?"),
        *words.symbols("<end_of_turn>\n<start_of_turn>model\n"),
    ]


@pytest.mark.parametrize(
    ("family", "name", "message"),
    [
        ("gemma", "qwen3", "no <\\|im_start"),
        ("llama2", "chat", "gemma .<start_of_turn>.*plain"),
        ("gemma", "chatty", "one of plain, gemma"),
    ],
)
def test_a_format_that_the_tokenizer_does_not_have(paths, family, name, message):
    with pytest.raises(UserError, match=message):
        vocabulary.load_vocabulary(paths[family], name)


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """A folder that TensorFlow's file systems find at gs://bucket."""

    def here(path):
        return str(path).replace("gs://bucket", str(tmp_path))

    def taking(function):
        return lambda path, *args: function(here(path), *args)

    def giving(function):
        return lambda path: [found.replace(str(tmp_path), "gs://bucket") for found in function(here(path))]

    for files in (tf.io.gfile, tf.compat.v2.io.gfile):  # seqio uses the second
        for name, wrapped in (("exists", taking), ("isdir", taking), ("GFile", taking), ("glob", giving)):
            monkeypatch.setattr(files, name, wrapped(getattr(files, name)))
    return tmp_path


@pytest.mark.parametrize("family", ["qwen", "gemma.model"])
def test_a_tokenizer_in_a_bucket(paths, bucket, family):
    (bucket / "lm").mkdir()
    if family == "qwen":
        write_tokenizer(bucket / "lm" / "tokenizer", family)
    else:
        write_sentencepiece(bucket / "lm" / "spm.model", "gemma")
    words = vocabulary.load_vocabulary("gs://bucket/lm")
    local = vocabulary.load_vocabulary(paths[family])
    assert words.more(" red") == local.more(" red") and (words.bos_id, words.eos_id) == (local.bos_id, local.eos_id)
    assert words.path == "gs://bucket/lm" and vocabulary.sha256(words.path) == vocabulary.sha256(local.path)
    with pytest.raises(UserError, match="at gs://bucket/other; found no such file"):
        vocabulary.load_vocabulary("gs://bucket/other")


def test_a_bucket_that_is_not_ours(monkeypatch):
    def refuse(path):
        raise tf.errors.PermissionDeniedError(None, None, "Error executing an HTTP request: 403")

    monkeypatch.setattr(tf.io.gfile, "exists", refuse)
    with pytest.raises(UserError, match="gs://bucket/lm cannot be read .*403"):
        vocabulary.load_vocabulary("gs://bucket/lm")


def test_bad_files_are_named(paths, tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="tokenizer.json.*cannot be read"):
        vocabulary.load_vocabulary(str(tmp_path))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="found neither"):
        vocabulary.load_vocabulary(str(empty))
    for name in ("one.model", "two.model"):
        (empty / name).write_bytes(b"")
    with pytest.raises(UserError, match="one.model, two.model"):
        vocabulary.load_vocabulary(str(empty))
    broken = write_tokenizer(tmp_path / "broken", "gemma")
    (broken / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<bos>"})[:-3])
    with pytest.raises(UserError, match="tokenizer_config.json is not valid JSON"):
        vocabulary.load_vocabulary(str(broken))


@pytest.mark.parametrize(
    ("vocab", "message"), [({"a": 0}, "cannot write the text"), ({}, "with tokens in .*; it has none")]
)
def test_a_tokenizer_that_cannot_write_a_text_is_refused(tmp_path, vocab, message):
    path = tmp_path / "tokenizer.json"
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="[UNK]"))
    path.write_text(made.to_str())
    with pytest.raises(UserError, match=message):
        vocabulary.load_vocabulary(str(path))
