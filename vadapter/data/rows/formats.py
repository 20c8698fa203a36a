"""How prompts and answers are written in a row: as plain text, or as the turns of a chat.

The turns are those of the official chat templates, without system prompts that hold a date. Special tokens are written
out; `text_vocabulary.TextVocabulary.symbols` turns each into its one id.
"""

import dataclasses
from collections.abc import Callable, Mapping

from vadapter.base.errors import UserError

PLAIN, CHAT = "plain", "chat"


@dataclasses.dataclass(frozen=True)
class Format:
    """What stands around a prompt and an answer.

    Attributes:
        name: key of `FORMATS`.
        before: before the prompt.
        between: between prompt and answer.
        end: token that ends an answer; None is the vocabulary's end token.
        known_by: tokens that only vocabularies of this family have; none for formats that must be named.
        space: what follows `before` and `between` is preceded by a space, as a word of the same text.
        tokens: special tokens in all of these.
        system: around a system's text, in the place of `before`.
        again: between the end of an answer and the next prompt.
        restarts: the token that begins a row comes before `again` (Llama 2).
    """

    name: str
    before: str = ""
    between: str = ""
    end: str | None = None
    known_by: tuple[str, ...] = ()
    space: bool = False
    tokens: tuple[str, ...] = ()
    system: tuple[str, str] = ("", " ")
    again: str = ""
    restarts: bool = False


_CHATML = ("<|im_start|>", "<|im_end|>")
_ASK, _ANSWER = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
_CHATML_SYSTEM, _CHATML_AGAIN = ("<|im_start|>system\n", f"<|im_end|>\n{_ASK}"), f"\n{_ASK}"
_HEADER = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")

# The first whose tokens a vocabulary has is that of `chat`.
FORMATS: Mapping[str, Format] = {
    f.name: f
    for f in (
        Format(PLAIN, space=True),
        Format(
            "gemma",
            "<start_of_turn>user\n",
            "<end_of_turn>\n<start_of_turn>model\n",
            "<end_of_turn>",
            ("<start_of_turn>",),
            system=("<start_of_turn>user\n", "\n\n"),  # Gemma has no turn of a system
            again="\n<start_of_turn>user\n",
            tokens=("<start_of_turn>", "<end_of_turn>"),
        ),
        # Qwen3 with thinking switched off. Its template leaves the empty thinking out of past turns; here every
        # answer follows it, as it does when it is generated, so that a row teaches all its answers.
        Format(
            "qwen3",
            _ASK,
            f"{_ANSWER}<think>\n\n</think>\n\n",
            "<|im_end|>",
            ("<|im_start|>", "<think>"),
            system=_CHATML_SYSTEM,
            again=_CHATML_AGAIN,
            tokens=(*_CHATML, "<think>", "</think>"),
        ),
        Format(
            "qwen2.5",
            "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
            + _ASK,
            _ANSWER,
            "<|im_end|>",
            ("<|im_start|>",),
            system=_CHATML_SYSTEM,
            again=_CHATML_AGAIN,
            tokens=_CHATML,
        ),
        Format(
            "llama3",
            "<|start_header_id|>user<|end_header_id|>\n\n",
            "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
            "<|eot_id|>",
            ("<|start_header_id|>",),
            system=(
                "<|start_header_id|>system<|end_header_id|>\n\n",
                "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n",
            ),
            again="<|start_header_id|>user<|end_header_id|>\n\n",
            tokens=_HEADER,
        ),
        # Its turns are ordinary text, so nothing in a vocabulary tells it from a plain one.
        Format(
            "llama2",
            "[INST]",
            " [/INST]",
            space=True,
            system=("[INST] <<SYS>>\n", "\n<</SYS>>\n\n"),
            again="[INST]",
            restarts=True,
        ),
    )
}


def choose(name: str, has: Callable[[str], bool], where: str) -> Format:
    """Finds a format.

    Args:
        name: `plain`, a family, or `chat`: the family that the vocabulary's special tokens tell.
        has: whether the vocabulary has a token.
        where: the vocabulary, for messages.

    Raises:
        UserError: the format is unknown, or the vocabulary has no tokens of it.
    """
    if name == CHAT:
        found = next((f for f in FORMATS.values() if f.known_by and all(map(has, f.known_by))), None)
        if found is None:
            known = ", ".join(f"{f.name} ({f.known_by[0]})" for f in FORMATS.values() if f.known_by)
            raise UserError(
                f"The prompt format is 'chat', and {where} has the special tokens of no known chat: {known}. Choose "
                "'plain', 'llama2', or the tokenizer of an instruction-tuned model."
            )
        return found
    if name not in FORMATS:
        raise UserError(f"The prompt format is {name!r}; expected '{CHAT}' or one of {', '.join(FORMATS)}. Change it.")
    if missing := [token for token in FORMATS[name].tokens if not has(token)]:
        raise UserError(
            f"The prompt format is {name!r}, and {where} has no {missing[0]}. Choose 'plain' or 'chat', or the "
            "tokenizer that belongs to the format."
        )
    return FORMATS[name]
