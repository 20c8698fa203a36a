"""Preprocessors: what a task does with a record's text, as frozen dataclasses.

A preprocessor turns a record, a dict of plain Python values, into an example with `inputs` (ids of the prompt, with
`prompts.MEDIA_ID` in the place of a medium) and `targets` (ids to predict). Its fields are its settings, so gin binds
them and the record of a trained model says them. To add one, write such a class in a module of your own:

    @preprocessor
    @dataclasses.dataclass(frozen=True)
    class Headline(Preprocessor):
        prompt: str = "A headline for <media> :"

        def example(self, record, vocabulary):
            inputs, prompt = prompts.write(self.prompt, vocabulary)
            targets = np.asarray(vocabulary.answer(record["captions"][0].upper()), np.int32)
            return {**record, "prompt": prompt, "inputs": inputs, "targets": targets, "references": record["captions"]}

        def templates(self, media):
            return {"caption": self.prompt}

and give it to a task: `jsonl_task(..., captions=Headline())`.
"""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast

import numpy as np

from vadapter.base.errors import UserError
from vadapter.base.registry import Registry
from vadapter.data.rows import prompts
from vadapter.data.rows.converters import Example
from vadapter.data.rows.few_shot import Examples
from vadapter.data.rows.text_vocabulary import TextVocabulary


class Preprocessor(abc.ABC):
    """What is asked of a preprocessor. It keeps one example a record, so that the order of data is known from a step.

    A record has what its source gives (`captions`, `question`, `answers`, ...) and

        id      text that names the record in logs and results
        choice  a random number to choose by, say, one reference of several: a function of (seed, place in the order of
                data) in training, in evaluation the record's index
        error   text that says why the record cannot be used, or empty. A preprocessor may set it; it must not raise
    """

    @abc.abstractmethod
    def example(self, record: Mapping[str, Any], vocabulary: TextVocabulary) -> Example:
        """Returns the record with `inputs` and `targets`, int32 arrays.

        For evaluation it also has `prompt`, the prompt as text, `references`, all right texts, and for questions
        `question` and `answers`.
        """

    def templates(self, media: str) -> Mapping[str, str]:
        """Returns what a trained model is asked by: templates by `caption`, `image_question` or `video_question`.

        Args:
            media: what the task's records show: none, image or video.
        """
        return {}

    def describe(self) -> dict[str, Any]:
        """Returns its name and settings, JSON-serialisable, for the record of a trained model."""
        return {"name": type(self).__name__, **_plain(self)}


def _plain(settings: Any) -> dict[str, Any]:
    found = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            found[field.name] = _plain(value)
        elif field.repr:
            found[field.name] = value if isinstance(value, str | int | float | bool | None) else repr(value)
    return found


REGISTRY = Registry("preprocessor")
CHAT = "<media> <question>?"
"""What stands for a turn of a conversation among the templates of a trained model, for readers."""
_Class = TypeVar("_Class", bound=type[Any])


def preprocessor(cls: _Class) -> _Class:
    """Registers a preprocessor under its class name, so that gin files can name it.

    Raises:
        UserError: it is no frozen dataclass, no `Preprocessor`, lacks `example`, or one of another module has its name.
    """
    where, found = f"{cls.__module__}.{cls.__qualname__}", cast(Any, cls)
    if not issubclass(found, Preprocessor) or found.__abstractmethods__:
        raise UserError(
            f"Expected a preprocessor to be a subclass of Preprocessor with the method `example`; {where} is not. "
            "Write `class Mine(Preprocessor)` and `def example(self, record, vocabulary)`."
        )
    if not getattr(getattr(cls, "__dataclass_params__", None), "frozen", False):
        raise UserError(
            f"Expected a preprocessor to be a frozen dataclass, whose fields are its settings; {where} is not. Write "
            "@dataclasses.dataclass(frozen=True) below @preprocessor."
        )
    REGISTRY.register(found)
    return cls


def _pick(values: Sequence[str], choice: int) -> str:
    """Chooses one of the values by the record's `choice`; the empty text of none."""
    return values[choice % len(values)] if values else ""


def _ids(ids: Sequence[int]) -> np.ndarray:
    return np.asarray(ids, np.int32)


@preprocessor
@dataclasses.dataclass(frozen=True)
class Caption(Preprocessor):
    """Prompt and one of the record's `captions`; all of them stay as `references`. `num_media` as of `Question`.

    Attributes:
        prompt: a name in data/prompts, or a template with `<media>`.
        first: chooses among the first so many captions only; None is all.

    Raises:
        UserError: the prompt is not a template.
    """

    prompt: str = "caption"
    first: int | None = None

    def __post_init__(self) -> None:
        prompts.resolve(self.prompt, question=False)

    def example(self, record: Mapping[str, Any], vocabulary: TextVocabulary) -> Example:
        references = record["captions"]
        template = prompts.resolve(self.prompt, question=False)
        inputs, prompt = prompts.write(template, vocabulary, num_media=record.get("num_media", 1))
        targets = _ids(vocabulary.answer(_pick(references[: self.first], record["choice"])))
        rest = {key: value for key, value in record.items() if key != "captions"}
        asked = {"question": "", "answers": [], "references": references}
        return {**rest, **asked, "prompt": prompt, "inputs": inputs, "targets": targets}

    def templates(self, media: str) -> Mapping[str, str]:
        return {"caption": prompts.resolve(self.prompt, question=False)}


@preprocessor
@dataclasses.dataclass(frozen=True)
class Question(Preprocessor):
    """Prompt with a question, and one of its answers; all of them stay as `references` and `answers`.

    Records hold either one `question` with its `answers`, or `questions` with one answer each in `answers`, of which
    one is chosen. `num_media` says how many images or videos a record shows, where that is not one.

    Attributes:
        prompt: a name in data/prompts, or a template with `<media>` and `<question>`.
        examples: what goes to its `<examples>`; nothing where there are none.

    Raises:
        UserError: the prompt is not a template.
    """

    prompt: str = "image_question"
    examples: Examples | None = None

    def __post_init__(self) -> None:
        prompts.resolve(self.prompt, question=True)

    def example(self, record: Mapping[str, Any], vocabulary: TextVocabulary) -> Example:
        template, choice = prompts.resolve(self.prompt, question=True), record["choice"]
        question, answers = record.get("question", ""), record["answers"]
        found = {key: value for key, value in record.items() if key not in ("questions", "question_types")}
        if "questions" in record:
            question, answers = _pick(record["questions"], choice), [_pick(answers, choice)]
        if "question_types" in record:
            found["question_type"] = _pick(record["question_types"], choice)
        shown = None
        if self.examples is not None and prompts.EXAMPLES in template:
            shown = self.examples.text(record["id"], record.get("image", ""), question)
        inputs, prompt = prompts.write(template, vocabulary, question, shown, record.get("num_media", 1))
        targets = _ids(vocabulary.answer(_pick(answers, choice)))
        asked = {"question": prompts.bare_question(question), "answers": answers, "references": answers}
        return {**found, **asked, "prompt": prompt, "inputs": inputs, "targets": targets}

    def templates(self, media: str) -> Mapping[str, str]:
        return {f"{media}_question": prompts.resolve(self.prompt, question=True)}


@preprocessor
@dataclasses.dataclass(frozen=True)
class Document(Preprocessor):
    """A text document, all of it to be predicted: no prompt and no media.

    Attributes:
        key: feature of the record that has the text.
    """

    key: str = "text"

    def example(self, record: Mapping[str, Any], vocabulary: TextVocabulary) -> Example:
        text = record[self.key]
        rest = {key: value for key, value in record.items() if key != self.key}
        targets = _ids([*vocabulary.encode(text), vocabulary.end])
        asked = {"prompt": "", "references": [text], "question": "", "answers": []}
        return {**rest, **asked, "inputs": _ids([]), "targets": targets}


@preprocessor
@dataclasses.dataclass(frozen=True)
class Chat(Preprocessor):
    """The turns of a conversation (`roles`, `texts`) in the vocabulary's format, with a marker for each medium.

    The example's `inputs` and `targets` are those of all turns, and `sizes` says how many each turn has, see
    `converters.lay_out`.
    """

    def example(self, record: Mapping[str, Any], vocabulary: TextVocabulary) -> Example:
        turns = list(zip(record["roles"], record["texts"], strict=True))
        system = turns.pop(0)[1] if turns and turns[0][0] == "system" else ""
        asked, answered = [text for _, text in turns[::2]], [text for _, text in turns[1::2]]
        inputs = [chat_prompt(text, vocabulary, system, i > 0) for i, text in enumerate(asked)]
        targets = [vocabulary.answer(text) for text in answered]
        sizes = [len(part) for pair in zip(inputs, targets, strict=True) for part in pair]
        rest = {key: value for key, value in record.items() if key not in ("roles", "texts")}
        shown = "\n".join([*([system] if system else []), *(text for _, text in turns[:-1])])
        return {
            **rest,
            "question": asked[-1].replace(prompts.OBJECT, "<image>") if asked else "",
            "answers": answered[-1:],
            "references": answered[-1:],
            "prompt": shown.replace(prompts.OBJECT, prompts.MEDIA),
            "inputs": _ids([i for ids in inputs for i in ids]),
            "targets": _ids([i for ids in targets for i in ids]),
            "sizes": _ids(sizes),
        }

    def templates(self, media: str) -> Mapping[str, str]:
        return {f"{media}_question": CHAT} if media != "none" else {}


def chat_prompt(text: str, vocabulary: TextVocabulary, system: str = "", later: bool = False) -> list[int]:
    """Returns the ids of one question of a conversation, up to where its answer begins.

    Args:
        text: with `prompts.OBJECT` in the place of each medium, which becomes a `MEDIA_ID`.
        vocabulary: the model's.
        system: the system's text before the first question.
        later: whether it follows an answer.
    """
    first, *rest = text.split(prompts.OBJECT)
    ids = vocabulary.next_head(first) if later else vocabulary.head(first, system)
    for part in rest:
        ids += [prompts.MEDIA_ID, *vocabulary.more(part)]
    return [*ids, *vocabulary.tail("")]
