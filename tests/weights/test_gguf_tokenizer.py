"""Tokenizers from the metadata of GGUF files: they cut text as the tokenizers that the files were made from."""

import io
import json
import random
import unicodedata

import numpy as np
import pytest
import sentencepiece
from tokenizers import Tokenizer

from tests.data.tokenizer_files import write_tokenizer
from tests.weights import gguf_files
from vadapter.base.errors import UserError
from vadapter.data.rows.vocabulary import load_vocabulary
from vadapter.weights.importer import import_weights

WORDS = (
    "a",
    "big",
    "red",
    "square",
    "at",
    "the",
    "top",
    "left",
    "ring,",
    "isn't",
    "it?",
    "Wide",
    "naïve",
    "café",
    "x_y",
)
SCRIPTS = [(0x20, 0x7E), (0xA1, 0x17F), (0x3B1, 0x3C9), (0x410, 0x44F), (0x5D0, 0x5EA), (0x621, 0x64A), (0x905, 0x94D)]
SCRIPTS += [(0xE01, 0xE3A), (0xAC00, 0xAD00), (0x3041, 0x3090), (0x4E00, 0x4F00), (0x1F300, 0x1F5FF), (0x2010, 0x2030)]
SPACES = [" ", "  ", "    ", "\t", "\n", "\n\n", "\r\n", " \n", "\u3000"]
CODE = [
    "def f(x):\n    return x**2\n",
    'print("%d" % 5)',
    "for (int i = 0; i < n; ++i) {\n\ts += a[i];\n}",
    "<p>Hi</p>",
]
SPECIAL_TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0, "padding_token_id": 0}


def lines(count):
    """Lines of words, code, digits, punctuation and many scripts, the same each time."""
    rng = random.Random(0)

    def script():
        first, last = rng.choice(SCRIPTS)
        return "".join(chr(rng.randint(first, last)) for _ in range(rng.randint(1, 12)))

    def digits():
        return "".join(rng.choices("0123456789", k=rng.randint(1, 8)))

    def punctuation():
        return "".join(rng.choices("!?.,;:-_()[]{}<>/\\|@#$%^&*~`'\"+=", k=rng.randint(1, 5)))

    parts = [script, digits, punctuation, lambda: rng.choice(WORDS), lambda: rng.choice(CODE)]
    parts += 2 * [lambda: rng.choice(SPACES)]
    return ["".join(rng.choice(parts)() for _ in range(rng.randint(1, 12))) for _ in range(count)]


@pytest.fixture(scope="module")
def sentence_piece():
    """A SentencePiece model as Llama's: bytes for what it does not know, spaces kept, one more put before a text."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(text for text in lines(4000) if all(ord(letter) < 0x500 for letter in text)),
        model_writer=model,
        model_type="bpe",
        vocab_size=1200,
        byte_fallback=True,
        character_coverage=0.99,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        user_defined_symbols=["<fn>"],
        control_symbols=["<turn>"],
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def of_sentence_piece(model, **more):
    """Metadata, as llama.cpp's converter makes them."""
    ids = range(model.get_piece_size())
    tests = ((6, model.is_byte), (2, model.is_unknown), (3, model.is_control))
    types = [next((kind for kind, test in tests if test(i)), 1) for i in ids]
    types[model.piece_to_id("<fn>")] = 4
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [model.id_to_piece(i) for i in ids],
        "tokenizer.ggml.scores": [model.get_score(i) for i in ids],
        "tokenizer.ggml.token_type": types,
        **{f"tokenizer.ggml.{key}": i for key, i in SPECIAL_TOKENS.items()},
        **more,
    }


def of_byte_level(folder, pre, **more):
    """Metadata of the small byte-level tokenizer in a folder."""
    made = json.loads((folder / "tokenizer.json").read_text())
    vocab = made["model"]["vocab"] | {token["content"]: token["id"] for token in made["added_tokens"]}
    tokens = sorted(vocab, key=vocab.__getitem__)
    special = {token["content"]: 3 if token["special"] else 4 for token in made["added_tokens"]}
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [special.get(token, 1) for token in tokens],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in made["model"]["merges"]],
        **more,
    }


def imported(tmp_path, values, **options):
    """Imports a model with a tokenizer; its table grows with it."""

    def grown(arrays):
        rows = len(values.get("tokenizer.ggml.tokens") or range(96))
        arrays["token_embd.weight"] = np.ones((rows, 32), np.float32)
        arrays["output.weight"] = np.ones((rows, 32), np.float32)

    source = gguf_files.write(tmp_path / "model.gguf", "llama2", values=values, change=grown)
    return import_weights(source, tmp_path / "out", **options)


def test_pieces_are_those_of_sentencepiece(sentence_piece, tmp_path):
    done = imported(tmp_path, of_sentence_piece(sentence_piece))
    vocabulary = load_vocabulary(done.folder)
    wrong = [text for text in lines(3000) if vocabulary.encode(text) != sentence_piece.encode(text)]
    assert not wrong
    assert (vocabulary.bos_id, vocabulary.eos_id, vocabulary.vocab_size) == (1, 2, 1200)
    for text in ("a big red  square\n", "  <fn>", "日本"):
        assert vocabulary.decode(vocabulary.encode(text)) == text
    # What looks like a control token is text.
    assert sentence_piece.piece_to_id("<turn>") not in vocabulary.encode("a <turn> b")
    assert sentence_piece.piece_to_id("<fn>") in vocabulary.encode("a<fn>b")


def test_no_space_is_put_before_where_the_file_says_so(sentence_piece, tmp_path):
    values = of_sentence_piece(sentence_piece, **{"tokenizer.ggml.add_space_prefix": False})
    vocabulary = load_vocabulary(imported(tmp_path, values).folder)
    # The same pieces as with the space, behind a line break that ends the piece of it.
    start = vocabulary.encode("\n")
    for text in ("square", " square", "x", "  "):
        assert vocabulary.decode(vocabulary.encode(text)) == text
        assert vocabulary.encode("\n" + text) == [*start, *vocabulary.encode(text)]


@pytest.mark.parametrize("pre", ["qwen2", "llama-bpe", "smollm", "gpt-2", "default"])
def test_byte_level_pieces(pre, tmp_path):
    folder = write_tokenizer(tmp_path / "hf", "qwen")
    vocabulary = load_vocabulary(imported(tmp_path, of_byte_level(folder, pre)).folder)
    theirs = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in lines(500):
        ids = vocabulary.encode(text)
        assert vocabulary.decode(ids) == text or pre == "qwen2"
        if text.isascii() and text.isalpha():
            assert ids == theirs.encode(text).ids
    assert vocabulary.encode("<|im_end|>") != [vocabulary.token_id("<|im_end|>")]


@pytest.mark.parametrize(
    ("pre", "text", "words"),
    [
        ("gpt-2", "it's  1234 ok", ["it", "'s", " ", " 1234", " ok"]),
        ("smollm", "it's  1234 ok", ["it", "'s", "  ", "1", "2", "3", "4", " ok"]),
        ("llama-bpe", "IT'S  1234 ok", ["IT", "'S", " ", " ", "123", "4", " ok"]),
        ("qwen2", "IT'S  12 ok", ["IT", "'S", " ", " ", "1", "2", " ok"]),
        ("tekken", "camelCase  12/\n", ["camel", "Case", " ", " ", "1", "2", "/\n"]),
    ],
)
def test_text_is_cut_into_words_as_its_family_does(pre, text, words, tmp_path):
    values = of_byte_level(write_tokenizer(tmp_path / "hf", "qwen"), pre)
    folder = imported(tmp_path, values).folder
    made = Tokenizer.from_file(f"{folder}/tokenizer/tokenizer.json")
    cut = made.pre_tokenizer.pre_tokenize_str(text)
    assert [text[start:stop] for _, (start, stop) in cut] == words


def test_qwen_composes_letters_first(tmp_path):
    values = of_byte_level(write_tokenizer(tmp_path / "hf", "qwen"), "qwen2")
    vocabulary = load_vocabulary(imported(tmp_path, values).folder)
    assert vocabulary.encode("cafe\u0301") == vocabulary.encode("café")


def test_named_tokens_template_and_ends_lie_beside(tmp_path):
    values = of_byte_level(write_tokenizer(tmp_path / "hf", "qwen"), "qwen2")
    at = values["tokenizer.ggml.tokens"].index
    end, turn = at("<|endoftext|>"), at("<|im_end|>")
    values |= {
        "tokenizer.ggml.bos_token_id": at("<|im_start|>"),
        "tokenizer.ggml.eos_token_id": turn,
        "tokenizer.ggml.eot_token_id": end,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": "{{ messages }}",
    }
    done = imported(tmp_path, values)
    folder = tmp_path / "out" / "tokenizer"
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [turn, end]
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert config["chat_template"] == "{{ messages }}"
    assert (config["bos_token"], config["eos_token"]) == ("<|im_start|>", "<|im_end|>")
    assert config["add_bos_token"] is False
    assert set(done.tokenizer) == {"tokenizer.json", "tokenizer_config.json", "generation_config.json"}
    vocabulary = load_vocabulary(done.folder, "chat")
    assert vocabulary.prompt_format == "qwen3"
    assert (vocabulary.bos_id, vocabulary.eos_id) == (at("<|im_start|>"), turn)


def test_the_publishers_own_file_is_taken_as_it_is(tmp_path):
    folder = write_tokenizer(tmp_path / "hf", "qwen")
    own = (folder / "tokenizer.json").read_text()
    imported(tmp_path, of_byte_level(folder, "of-another-kind", **{"tokenizer.huggingface.json": own}))
    assert (tmp_path / "out" / "tokenizer" / "tokenizer.json").read_text() == own


def test_a_given_tokenizer_wins_over_one_that_is_not_read(tmp_path):
    values = {"tokenizer.ggml.model": "rwkv", "tokenizer.ggml.tokens": ["a"]}
    with pytest.raises(UserError, match="of the kind 'rwkv', which is not read"):
        imported(tmp_path, values)
    assert not (tmp_path / "out").exists()
    folder = write_tokenizer(tmp_path / "hf", "qwen")
    assert "tokenizer.json" in imported(tmp_path, values, tokenizer=folder).tokenizer


def test_a_model_without_a_tokenizer(tmp_path):
    assert imported(tmp_path, {"tokenizer.ggml.model": "none"}).tokenizer == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer.ggml.model": "bert"}, "'bert', which is not read"),
        ({"tokenizer.ggml.model": "t5"}, "'t5', which is not read"),
        ({"tokenizer.ggml.model": ["gpt2"]}, r"of the kind .*gpt2.*which is not read"),
        ({"tokenizer.ggml.pre": ["a", "b"]}, r"ggml\.pre.*one of"),
        ({"tokenizer.ggml.add_bos_token": [1, 2]}, r"true or false in tokenizer\.ggml\.add_bos_token"),
        ({"tokenizer.chat_template": [1, 2]}, r"a text in tokenizer\.chat_template"),
        ({"tokenizer.ggml.pre": "martian"}, r"ggml\.pre.*one of .*llama-bpe.*found 'martian'"),
        ({"tokenizer.ggml.merges": ["no such"]}, r"merges of two tokens to a third.*found 'no such'"),
        ({"tokenizer.ggml.merges": ["n"]}, r"merges of two tokens to a third.*found 'n'"),
        ({"tokenizer.ggml.merges": None}, r"a list of texts in tokenizer\.ggml\.merges"),
        ({"tokenizer.ggml.tokens": None}, r"a list of texts in tokenizer\.ggml\.tokens"),
        ({"tokenizer.ggml.token_type": [1, 1]}, r"numbers in tokenizer\.ggml\.token_type.*found 2"),
        ({"tokenizer.ggml.eos_token_id": 5000}, r"tokenizer\.ggml\.eos_token_id and found 5000"),
        ({"tokenizer.ggml.model": "llama"}, r"numbers in tokenizer\.ggml\.scores.*found nothing"),
    ],
)
def test_a_tokenizer_that_is_not_read_is_named(changes, message, tmp_path):
    values = of_byte_level(write_tokenizer(tmp_path / "hf", "qwen"), "qwen2") | changes
    with pytest.raises(UserError, match=message):
        imported(tmp_path, values)


# ---- transformers, live


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["llama", "gemma", "gpt-2", "qwen2", "llama-bpe"])
def test_transformers_makes_the_same_tokenizer_of_the_file(kind, sentence_piece, tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    if kind in ("llama", "gemma"):
        values = of_sentence_piece(sentence_piece, **{"tokenizer.ggml.add_space_prefix": kind == "llama"})
    else:
        values = of_byte_level(write_tokenizer(tmp_path / "hf", "qwen"), kind)
    source = {"gemma": "gemma2"}.get(kind, "llama2")  # it does not know the first Gemma's files

    def grown(arrays):
        for name in {"token_embd.weight", "output.weight"} & arrays.keys():
            arrays[name] = np.ones((len(values["tokenizer.ggml.tokens"]), 32), np.float32)

    path = gguf_files.write(tmp_path / "model.gguf", source, values=values, change=grown)
    import_weights(path, tmp_path / "out")
    ours = load_vocabulary(str(tmp_path / "out"))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    texts = lines(10_000)
    if kind == "llama":  # it puts no space before a text that has one; SentencePiece does
        texts = [text for text in texts if not text.startswith(" ")]
    if kind == "qwen2":  # the published tokenizers compose letters, and what it makes of a file does not
        texts = [unicodedata.normalize("NFC", text) for text in texts]
    wrong = [text for text in texts if ours.encode(text) != theirs.encode(text, add_special_tokens=False)]
    assert not wrong
