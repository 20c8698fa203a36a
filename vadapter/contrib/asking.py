"""Questions of other programs about any number of images and videos, put to a trained model.

A question about one image or video is asked in the prompt of the model's training, so its answer is that of
`vadapter infer`. All others are asked as a conversation of one turn, as `TrainedModel.chat` does.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import vadapter
from vadapter.base.errors import UserError
from vadapter.data.rows import memory
from vadapter.data.rows.memory import Media
from vadapter.data.rows.sizes import TooLong
from vadapter.generation.config import DecodingConfig
from vadapter.runs.model import TrainedModel

MARK = "<image>"
Part = tuple[str, Media | str]  # "text", "image" or "video", and the text or the medium


def interleaved(text: str, media: Sequence[Media]) -> list[Part]:
    """The parts of a question: media at the marks `<image>` of its text where it has one for each; else all of them
    first. A path with an ending of a video is one, and so is a list of frames."""
    parts = [("video" if memory.is_video(x) else "image", x) for x in media]
    texts = text.split(MARK)
    if len(media) and len(texts) == len(media) + 1:
        pairs = zip(texts, [*parts, None], strict=True)
        return [part for text, shown in pairs for part in (("text", text), shown) if part and part[1] != ""]
    return [*parts, ("text", text)]


class Asker:
    """A trained model that is asked.

    Attributes:
        model: see `vadapter.load`.
        prompt: of a question about one image or video; None is that of the training.
    """

    def __init__(
        self, path: str, encoder: str | None = None, decoder: str | None = None, prompt: str = "", inputs: int = 0
    ):
        """Args:
            path: a bundle, or a run.
            encoder, decoder: as of `vadapter.load`.
            prompt: a name in data/prompts, or a template with `<media>` and `<question>`.
            inputs: room for a question's tokens; 0 is that of the training, which is short for questions with options.

        Raises:
            UserError: as `vadapter.load`, or `inputs` is no number of at least 0.
        """
        if not path or not isinstance(path, str):
            raise UserError(f"Expected a bundle or a run, such as bundle=bundles/owl; found {path!r}. Name one.")
        if isinstance(inputs, bool) or not isinstance(inputs, int) or inputs < 0:
            raise UserError(f"Expected inputs to be a number of tokens, or 0 for the training's; found {inputs!r}.")
        self.model = _with_room(vadapter.load(path, encoder=encoder or None, decoder=decoder or None), inputs)
        self.prompt = prompt or None

    def ask(self, question: Sequence[Part], decoding: DecodingConfig) -> str:
        """Returns what the model says to one question. Raises as `ask_all`."""
        return self.ask_all([question], decoding)[0]

    def ask_all(self, questions: Sequence[Sequence[Part]], decoding: DecodingConfig) -> list[str]:
        """Returns what the model says to each question; those about one image each are one batch.

        Raises:
            UserError: a medium cannot be read, or a question is longer than the model's room for it.
        """
        said: dict[int, str] = {}
        single: list[tuple[int, Any, str]] = []
        try:
            for i, parts in enumerate(questions):
                media = [value for kind, value in parts if kind != "text"]
                text = "\n".join(str(value).strip() for kind, value in parts if kind == "text").strip()
                if len(media) == 1 and text:
                    single.append((i, media[0], text))
                elif len(media) == 1:
                    said[i] = self.model.caption(media[0], decoding=decoding)
                else:
                    said[i] = self.model.chat([{"role": "user", "content": _content(parts)}], decoding=decoding)
            if single:
                places, shown, texts = zip(*single, strict=True)
                found = self.model.answer(list(shown), list(texts), prompt=self.prompt, decoding=decoding)
                said.update(zip(places, found, strict=True))
        except TooLong as e:
            raise UserError(
                f"{e} The question has {e.tokens} tokens, and there is room for {e.room}: give inputs={2 * e.tokens}."
            ) from e
        return [said[i] for i in range(len(questions))]


def _with_room(model: TrainedModel, inputs: int) -> TrainedModel:
    text = model.description.text
    if not inputs or text is None:
        return model
    text = dataclasses.replace(text, lengths={**text.lengths, "inputs": inputs})
    return dataclasses.replace(model, description=dataclasses.replace(model.description, text=text))


def _content(parts: Sequence[Part]) -> list[Mapping[str, Any]]:
    return [{"type": kind, kind: value} for kind, value in parts if kind != "text" or str(value).strip()]


def decoding_of(settings: Mapping[str, Any], max_new_tokens: int) -> DecodingConfig:
    """Returns how texts are chosen, of settings with the names of transformers' `generate`.

    Args:
        settings: `do_sample`, `temperature`, `top_p`, `num_beams` and `max_new_tokens`; others do nothing. Without
            them greedy. Sampling needs a temperature above 0, and is not done where `do_sample` is False.
        max_new_tokens: instead of that of the settings; 0 takes theirs, or else 32.

    Raises:
        UserError: as `DecodingConfig`.
    """
    longest = max_new_tokens or int(settings.get("max_new_tokens") or 32)
    temperature = float(settings.get("temperature") or 0)
    if temperature > 0 and settings.get("do_sample", True):
        top_p = float(settings.get("top_p") or 1)
        return DecodingConfig(method="sample", max_new_tokens=longest, temperature=temperature, top_p=top_p)
    if int(settings.get("num_beams") or 1) > 1:
        return DecodingConfig(method="beam", max_new_tokens=longest, beams=int(settings["num_beams"]))
    return DecodingConfig(max_new_tokens=longest)
