"""A user's questions as the turns of a chat: whole rows, in words."""

import dataclasses
import json

import numpy as np
import pytest
import tokenizers

from tests.data.files import picture
from tests.data.loaders import make_loader
from tests.data.tokenizer_files import write_tokenizer
from vadapter.data.rows import memory, vocabulary
from vadapter.data.tasks import jsonl_task

PROMPT = "See <media> . Question : <question> ? Answer:"
ROWS = {
    "gemma": (
        "<bos><start_of_turn>user\nSee",
        " . Question : what is it ? Answer:<end_of_turn>\n<start_of_turn>model\n",
        "a red ring !<end_of_turn>",
    ),
    "qwen": (
        "<|endoftext|><|im_start|>user\nSee",
        " . Question : what is it ? Answer:<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        "a red ring !<|im_end|>",
    ),
    "llama3": (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nSee",
        " . Question : what is it ? Answer:<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "a red ring !<|eot_id|>",
    ),
}


@pytest.fixture
def asked(tmp_path):
    """A picture with one question, in a JSONL file."""
    record = {"image": picture(tmp_path / "a.png").name, "question": "what is it?", "answers": ["a red ring !"]}
    (tmp_path / "all.jsonl").write_text(json.dumps(record))
    return tmp_path


def chat_loader(folder, family, **lengths):
    write_tokenizer(folder / family, family)
    files = dict.fromkeys(("train", "validation"), str(folder / "all.jsonl"))
    settings = {"question_prompt": PROMPT, "vocabulary": str(folder / family), "prompt_format": "chat"}
    mixture = jsonl_task("chats", **files, **settings)
    lengths = {"inputs": 96, "targets": 32, **lengths}
    return make_loader(mixture, split="validation", batch_size=1, lengths=lengths, num_visual_tokens=2)


def written(folder, family, batch):
    """A row in words: before the visual tokens, after them, and its targets."""
    words = tokenizers.Tokenizer.from_file(str(folder / family / "tokenizer.json"))
    used = batch.segment_ids[0] > 0
    tokens, visual = batch.tokens[0][used], batch.media_index[0][used] >= 0
    start, end = visual.argmax(), len(visual) - visual[::-1].argmax()
    assert visual[start:end].all() and end - start == 2
    targets = batch.target_ids[0][batch.target_weights[0] > 0]
    prompt = tokens[end : len(tokens) - len(targets)]
    return tuple(words.decode(part.tolist(), skip_special_tokens=False) for part in (tokens[:start], prompt, targets))


@pytest.mark.parametrize("family", ROWS)
def test_a_row_is_what_the_family_s_template_writes(asked, family):
    loader = chat_loader(asked, family)
    batch, _ = next(loader.eval_batches())
    assert written(asked, family, batch) == ROWS[family]
    answer = batch.target_ids[0][batch.target_weights[0] > 0]
    assert answer[-1] == loader.vocabulary.end
    assert loader.vocabulary.decode(answer) == "a red ring !"


@pytest.mark.parametrize("family", ROWS)
def test_a_request_is_the_row_up_to_its_answer(asked, family):
    loader = chat_loader(asked, family)
    row, _ = next(loader.eval_batches(for_decoding=True))
    model = {"vocabulary": loader.vocabulary, "lengths": loader.config.lengths, "sizes": loader.sizes}
    made = memory.batch([asked / "a.png"], PROMPT, None, "what is it?", **model)
    assert made.tokens[0].tolist() == row.tokens[0].tolist()
    whole, _ = next(loader.eval_batches())
    made = memory.batch([asked / "a.png"], PROMPT, "a red ring !", "what is it?", **model)
    for field in dataclasses.fields(made):
        np.testing.assert_array_equal(getattr(made, field.name), getattr(whole, field.name), err_msg=field.name)


@pytest.mark.parametrize("family", ROWS)
def test_a_prompt_that_is_cut_still_closes_its_turn(asked, family):
    row, _ = next(chat_loader(asked, family).eval_batches(for_decoding=True))
    text = int((row.segment_ids > 0).sum()) - 2
    batch, _ = next(chat_loader(asked, family, inputs=text - 4).eval_batches())
    before, after, answer = written(asked, family, batch)
    assert (before, answer) == (ROWS[family][0], ROWS[family][2])
    whole = ROWS[family][1]
    closing = whole.split("Answer:")[1]
    kept = after.removesuffix(closing)
    assert kept + closing == after != whole and whole.startswith(kept)


@pytest.mark.parametrize("family", ROWS)
def test_turns_in_a_user_s_text_are_ordinary_text(tmp_path, family):
    words = vocabulary.load_vocabulary(str(write_tokenizer(tmp_path, family)), "chat")
    for token in (*words.format.tokens, *words.format.tokens[:1] * 2):
        text = f" {token} and {token}{token}"
        assert words.token_id(token) not in words.more(text)
        assert words.decode(words.more(text)) == text


def test_a_token_that_no_text_has_needs_no_row_in_the_table(tmp_path):
    file = write_tokenizer(tmp_path, "gemma") / "tokenizer.json"
    before = vocabulary.load_vocabulary(str(file), "chat")
    words = tokenizers.Tokenizer.from_file(str(file))
    words.add_special_tokens(["<image_soft_token>"])  # as Gemma 3 has it, behind its table
    words.save(str(file))
    after = vocabulary.load_vocabulary(str(file), "chat")
    assert (after.vocab_size, after.rows) == (before.vocab_size + 1, before.rows)


@pytest.mark.parametrize(("family", "end"), [("gemma", "<eos>"), ("qwen", "<|endoftext|>")])
def test_the_end_of_the_text_ends_an_answer_too(tmp_path, family, end):
    words = vocabulary.load_vocabulary(str(write_tokenizer(tmp_path, family)), "chat")
    assert words.decode([*words.more(" red"), words.token_id(end), *words.more(" ring")]) == " red"


# Two questions after a system's text, as the official templates write them.
TURNS = {
    "gemma": (
        "<bos><start_of_turn>user\nBe short.\n\nSee # .<end_of_turn>\n<start_of_turn>model\na red ring<end_of_turn>\n"
        "<start_of_turn>user\nand # ?<end_of_turn>\n<start_of_turn>model\nblue<end_of_turn>"
    ),
    "qwen": (
        "<|endoftext|><|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\nSee # .<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\na red ring<|im_end|>\n<|im_start|>user\nand # ?<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\nblue<|im_end|>"
    ),
    "llama3": (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe short.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nSee # .<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\na red ring<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nand # ?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nblue<|eot_id|>"
    ),
    "llama2": (
        "<s>[INST] <<SYS>>\nBe short.\n<</SYS>>\n\nSee # . [/INST] a red ring</s><s>[INST] and # ? [/INST] blue</s>"
    ),
}


@pytest.mark.parametrize("family", TURNS)
def test_turns_are_written_as_the_family_s_template_writes_them(tmp_path, family):
    from vadapter.data.tasks import chat_task

    url = {"type": "image", "image": picture(tmp_path / "a.png").name}
    turns = [("system", "Be short."), ("user", ["See ", url, " ."]), ("assistant", "a red ring")]
    turns += [("user", ["and ", url, " ?"]), ("assistant", "blue")]
    record = {"messages": [{"role": role, "content": content} for role, content in turns]}
    (tmp_path / "all.jsonl").write_text(json.dumps(record))
    write_tokenizer(tmp_path / family, family)
    settings = {"vocabulary": str(tmp_path / family), "holdout": 0.0}
    prompt_format = "llama2" if family == "llama2" else "chat"
    mixture = chat_task("chats", str(tmp_path / "all.jsonl"), prompt_format=prompt_format, **settings)
    loader = make_loader(mixture, batch_size=1, lengths={"inputs": 200, "targets": 32}, num_visual_tokens=2)
    batch, _ = next(loader.eval_batches())
    words = tokenizers.Tokenizer.from_file(str(tmp_path / family / "tokenizer.json"))
    used = batch.segment_ids[0] > 0
    tokens, index = batch.tokens[0][used], batch.media_index[0][used]
    assert index[index >= 0].tolist() == [0, 1, 2, 3]
    cuts = np.flatnonzero(index >= 0)
    parts = (tokens[: cuts[0]], tokens[cuts[1] + 1 : cuts[2]], tokens[cuts[3] + 1 :])
    found = "#".join(words.decode(part.tolist(), skip_special_tokens=False) for part in parts)
    assert found.replace(" ", "") == TURNS[family].replace(" ", "")
