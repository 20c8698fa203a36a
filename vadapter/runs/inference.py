"""A trained model that is asked for text: that of a run or of a bundle, without gin and without its training data."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
from etils import epath

from vadapter.base.errors import UserError
from vadapter.base.paths import resolve
from vadapter.data.rows import vocabulary as vocabularies
from vadapter.data.rows.sizes import Sizes
from vadapter.models.attention import PLATFORMS
from vadapter.models.vlm import VLM, VLMConfig
from vadapter.partitioning import Partitioner, abstract_params
from vadapter.runs import bundled
from vadapter.runs import description as descriptions
from vadapter.runs.description import Description, Text
from vadapter.runs.shapes import example, for_model
from vadapter.training import checkpoints, initialize

_DEFAULTS = {False: ("caption",), True: ("image_question", "video_question")}


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained model on its devices.

    Attributes:
        model: the module.
        params: all parameters.
        partitioner: places batches.
        text: what it reads and writes.
        vocabulary: of the text.
        sizes: of what it sees.
        resize: how pictures became square in training.
    """

    model: VLM
    params: Any
    partitioner: Partitioner
    text: Text
    vocabulary: vocabularies.TextVocabulary
    sizes: Sizes
    resize: str

    def prompt(self, question: bool, video: bool) -> str:
        """Returns the template that the model was trained on, or else the name of the shipped one."""
        names = _DEFAULTS[question][:: -1 if video else 1]
        return next((self.text.prompts[name] for name in names if name in self.text.prompts), _DEFAULTS[question][0])


def of_run(model_dir: str, step: int | None, partitioner: Partitioner) -> Trained:
    """Reads the model of a run.

    Raises:
        UserError: it is no run of a model that reads images and writes text, or as `initialize.restore`.
    """
    model_dir, step = checkpoints.locate(model_dir, step)
    description = descriptions.load(model_dir)
    model, text = _speaker(description, model_dir)
    vocabulary = find_vocabulary(text, model_dir)
    restored = initialize.restore(model_dir, abstract_params(model, example(model.config)), partitioner, step)
    return _trained(model, restored.params, partitioner, description, vocabulary)


def of_bundle(opened: bundled.Opened, partitioner: Partitioner) -> Trained:
    """Reads the model of a bundle.

    Raises:
        UserError: as `bundled.Opened.params`, or its vocabulary is missing or another one.
    """
    folder = opened.bundle.folder
    model, text = _speaker(opened.bundle.description, folder)
    vocabulary = find_vocabulary(text, folder, opened.folders)
    params = opened.params(abstract_params(model, example(model.config)), partitioner)
    return _trained(model, params, partitioner, opened.bundle.description, vocabulary)


def _speaker(description: Description, where: str) -> tuple[VLM, Text]:
    model, text = description.model, description.text
    if not isinstance(model, VLMConfig) or model.encoder is None or text is None:
        raise UserError(f"{where} holds a model that does not read images and write text. Give a run of stage 1 or 2.")
    return VLM(runnable(model)), text


def _trained(
    model: VLM, params: Any, partitioner: Partitioner, description: Description, vocabulary: vocabularies.TextVocabulary
) -> Trained:
    assert description.text is not None
    sizes = for_model(model.config)
    return Trained(model, params, partitioner, description.text, vocabulary, sizes, description.resize)


def runnable(config: Any) -> Any:
    """Returns a model's configuration, all parts with an implementation of attention that this machine has."""
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        return config
    fields: dict[str, Any] = {field.name: runnable(getattr(config, field.name)) for field in dataclasses.fields(config)}
    if "attention_impl" in fields and PLATFORMS.get(fields["attention_impl"]) != jax.default_backend():
        fields["attention_impl"] = "xla"
    return dataclasses.replace(config, **fields)


def find_vocabulary(text: Text, folder: str, others: Iterable[str] = ()) -> vocabularies.TextVocabulary:
    """Opens the vocabulary that a model was trained with.

    Args:
        text: of the model.
        folder: that the path of the vocabulary is relative to.
        others: folders that may have it as well: those of the backbones.

    Raises:
        UserError: there is none, or only others.
    """
    recorded = resolve(text.vocabulary, folder) if text.vocabulary else ""
    places = [recorded, *(place for place in others if text.vocabulary and (epath.Path(place) / "tokenizer").is_dir())]
    found = {place: vocabularies.sha256(place) for place in places if not place or epath.Path(place).exists()}
    same = [place for place, sha256 in found.items() if sha256 == text.sha256]
    if not same:
        there = ", ".join(f"{place or 'the shipped one'} with {sha256}" for place, sha256 in found.items())
        raise UserError(
            f"{folder} was trained with a vocabulary whose sha256 is {text.sha256}, expected at "
            f"{recorded or 'its place'}; found {there or 'nothing there'}. Put it back, or give with --decoder an "
            "imported folder that has it."
        )
    return vocabularies.load(same[0], text.prompt_format)


def eos_id(vocabulary: vocabularies.TextVocabulary) -> int:
    """Returns the id that ends a text. Raises `UserError` where there is none: then nothing would end."""
    if vocabulary.eos_id is None:
        raise UserError(f"Expected a vocabulary with an end token; {vocabulary} has none. Train with another one.")
    return vocabulary.eos_id
