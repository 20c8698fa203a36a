"""A family of models as one record: how a checkpoint shows it, its configuration, and the table of its tensors.

The families that come with the package are in `weights/families/`. Any other module can add one: see `Family`.
"""

import dataclasses
import importlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, get_args

from vadapter.base.errors import UserError
from vadapter.models.decoder import DecoderConfig
from vadapter.models.vit import ViTConfig
from vadapter.weights.checkpoint import GGUF, HUGGING_FACE, Checkpoint
from vadapter.weights.mapping import Rule
from vadapter.weights.settings import Settings, find_prefix
from vadapter.weights.tensors import Tensors

ModelPart = Literal["encoder", "decoder"]
Config = ViTConfig | DecoderConfig


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a model lies in a checkpoint.

    Attributes:
        checkpoint: the checkpoint.
        prefix: what stands before the names of the model's tensors.
        settings: the model's part of config.json; without any where the checkpoint has no config.json.
        variant: the published size that the user named, or None.
    """

    checkpoint: Checkpoint
    prefix: str
    settings: Settings
    variant: str | None

    @property
    def tensors(self) -> Tensors:
        """The tensors of the checkpoint."""
        return self.checkpoint.tensors


@dataclasses.dataclass(frozen=True)
class ModelType:
    """Recognises a model that transformers saved, by the `model_type` of its config.json, and a GGUF file made of one.

    Attributes:
        names: model types of the model by itself.
        anchors: endings of a tensor's name, tried in this order; what stands before it is `Place.prefix`. None are
            needed where the rules have whole names.
        within: key of config.json that holds the model's settings, by the model type of a larger model that has it.
    """

    names: tuple[str, ...]
    anchors: tuple[str, ...] = ()
    within: Mapping[str, str] = dataclasses.field(default_factory=dict)

    kinds = (HUGGING_FACE, GGUF)

    def places(self, checkpoint: Checkpoint, variant: str | None) -> Iterator[Place]:
        """Returns where such models are in a checkpoint: one place or none."""
        settings = Settings(checkpoint.config or {}, checkpoint.tensors.where)
        if not self.claims(settings):
            return
        if (kind := settings.given["model_type"]) in self.within:
            settings = self._inner(settings, self.within[kind])
        prefix = find_prefix(checkpoint.tensors, *self.anchors) if self.anchors else ""
        yield Place(checkpoint, prefix, settings, variant)

    def claims(self, settings: Settings) -> bool:
        """Whether a config.json, all of it, is of such a model. Raises `UserError` if the model is quantised."""
        if settings.given.get("model_type") not in (*self.names, *self.within):
            return False
        settings.refuse({"quantization_config": (None,)}, "Take the checkpoint that is not quantised")
        return True

    def _inner(self, settings: Settings, key: str) -> Settings:
        inner = settings.nested(key, self.names[0])
        tied = "tie_word_embeddings"  # which is of the whole model and stands at the top
        return inner.with_default(tied, settings.given[tied]) if tied in settings.given else inner


@dataclasses.dataclass(frozen=True)
class TensorNames:
    """Recognises a model by the name of one of its tensors.

    Attributes:
        patterns: by the kind of the checkpoint, a regex of the whole name; its first group is `Place.prefix`.
        description: the model and the tensor in words, for the error where nothing is recognised.
        only: says of a place that has such a tensor whether it is this family.
    """

    patterns: Mapping[str, re.Pattern[str]]
    description: str
    only: Callable[[Place], bool] = lambda place: True

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of checkpoints that have such models."""
        return tuple(self.patterns)

    def places(self, checkpoint: Checkpoint, variant: str | None) -> Iterator[Place]:
        """Returns where such models are in a checkpoint."""
        settings = Settings({}, checkpoint.tensors.where)
        for name in checkpoint.tensors.infos:
            if match := self.patterns[checkpoint.kind].fullmatch(name):
                place = Place(checkpoint, match.group(1), settings, variant)
                if self.only(place):
                    yield place


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What a family makes of a place in a checkpoint.

    Attributes:
        part: whether it is an encoder or a decoder.
        family: name of the family.
        config: our configuration of the model.
        rules: from the checkpoint's tensors to the parameters of `config`.
        ignored: regexes of whole names of tensors that are known and not wanted.
        notes: sentences that the user should read.
        prompt_format: see `Family`.
    """

    part: ModelPart
    family: str
    config: Config
    rules: tuple[Rule, ...]
    ignored: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    prompt_format: str | None = None


def _none(place: Place, config: Any) -> Iterable[str]:
    return ()


@dataclasses.dataclass(frozen=True)
class Family:
    """A family of encoders or decoders in one kind of checkpoint.

    To add a family, write one module with one record, in `vadapter/weights/families/` or in a package of your own:

        register(
            Family(
                name="mine",
                part="decoder",
                by=ModelType(("mine",), anchors=("wte.weight",)),
                config=lambda place: DecoderConfig(vocab_size=place.settings.whole("vocab_size"), ...),
                rules=lambda place, config: [
                    Rule("embedder/embedding", f"{place.prefix}wte.weight"),
                    Rule("layers/attention/query/kernel", place.prefix + "h.{i}.q.weight", linear()),
                    ...
                ],
            )
        )

    1. `by` recognises the checkpoint: `ModelType` by `model_type` in config.json, `TensorNames` by a tensor's name.
    2. `config` reads the settings. `place.settings` has methods that check what they return (`whole`, `real`, `flag`,
       `activation`). Call `refuse` for each setting that changes the results in a way that our model does not have.
    3. `rules` has a line for each parameter: our path, their name (`{i}` is the number of the layer), and the change
       of layout (`weights/mapping.py` has them). A rule for a parameter that the model does not have counts for
       nothing, so one table serves all settings. All tensors must be used, or named in `ignored`.
    4. Import a checkpoint of the family: `vadapter.import_weights("folder", "out")`. What is missing, mis-shaped or
       left over is listed by name. Then compare the outputs with the reference implementation;
       `tests/weights/golden/<name>/` keeps a small model's outputs for the families here.

    A decoder that differs little from Llama needs no table: `llama_like.llama_like` makes the record of its differences
    (`families/mistral.py`).

    Attributes:
        name: of the family. Two families of one part and one kind of checkpoint must have different names.
        part: `encoder` or `decoder`.
        by: recognises checkpoints of the family.
        config: makes our configuration of the model at a place. Raises `UserError` for what we cannot compute.
        rules: the table, for the model at a place with that configuration.
        ignored: regexes of whole names of tensors that are known and not wanted; default none.
        notes: sentences about this checkpoint that the user should read; default none.
        prompt_format: name in `data/rows/formats.py` of the chat format of the family's instruction-tuned models; None
            if it has none, or different ones. It is recorded beside the weights, for the user's PROMPT_FORMAT.

    Raises:
        UserError: the record lacks a name, a part, or a function that it needs.
    """

    name: str
    part: ModelPart
    by: ModelType | TensorNames
    config: Callable[[Place], Config]
    rules: Callable[[Place, Any], Iterable[Rule]]
    ignored: Callable[[Place, Any], Iterable[str]] = _none
    notes: Callable[[Place, Any], Iterable[str]] = _none
    prompt_format: str | None = None

    def __post_init__(self):
        if not isinstance(self.name, str) or not self.name:
            raise UserError(f"A family needs a name, for example 'llama'; found {self.name!r}.")
        if self.part not in get_args(ModelPart):
            raise UserError(f"Family {self.name!r}: expected part 'encoder' or 'decoder'; found {self.part!r}.")
        if not isinstance(self.by, ModelType | TensorNames):
            raise UserError(
                f"Family {self.name!r}: expected `by` to be a ModelType or TensorNames, which recognises its "
                f"checkpoints; found {self.by!r}."
            )
        for function in ("config", "rules", "ignored", "notes"):
            if not callable(getattr(self, function)):
                raise UserError(
                    f"Family {self.name!r}: expected `{function}` to be a function; found "
                    f"{getattr(self, function)!r}. See the docstring of Family."
                )

    def read(self, place: Place) -> Architecture:
        """Returns what the model at a place is.

        Raises:
            UserError: the model has a setting that we do not have, or the family's functions return something else
                than a configuration and rules.
        """
        config = self.config(place)
        wanted = ViTConfig if self.part == "encoder" else DecoderConfig
        if not isinstance(config, wanted):
            raise UserError(
                f"Family {self.name!r}: `config` returned {type(config).__name__}; expected a "
                f"{wanted.__name__}, the configuration of our {self.part}s. Change the family's config function."
            )
        rules = tuple(self.rules(place, config))
        if wrong := [rule for rule in rules if not isinstance(rule, Rule)]:
            raise UserError(
                f"Family {self.name!r}: `rules` returned {wrong[0]!r}; expected objects of mapping.Rule. Change the "
                "family's rules function."
            )
        ignored, notes = tuple(self.ignored(place, config)), tuple(self.notes(place, config))
        return Architecture(self.part, self.name, config, rules, ignored, notes, self.prompt_format)


@dataclasses.dataclass(frozen=True)
class Refusal:
    """Models that look like a family of ours and cannot be imported.

    Attributes:
        by: recognises their checkpoints.
        why: completes the sentence "<checkpoint> cannot be imported: ...", and says what to take instead.
    """

    by: ModelType | TensorNames
    why: str


_FAMILIES: list[tuple[Family, str]] = []
_REFUSALS: list[Refusal] = []


def register(family: Family) -> Family:
    """Adds a family to those that `import_weights` and `vadapter import` recognise.

    Args:
        family: the record.

    Returns:
        The family.

    Raises:
        UserError: it is no `Family`, or another module has registered its name or its model type.
    """
    _load_built_in()
    if not isinstance(family, Family):
        raise UserError(f"register: expected a Family; found {family!r}. Its docstring shows how to make one.")
    module = str(sys._getframe(1).f_globals.get("__name__"))
    for other, where in list(_FAMILIES):
        shared = [claim for claim in _claims(family) if claim in _claims(other)]
        if shared and module == where == "__main__":  # a cell of a notebook that is run again
            _FAMILIES.remove((other, where))
        elif shared:
            raise UserError(
                f"Two families claim {shared[0]}: {other.name!r} in {where} and {family.name!r} in {module}. Give the "
                "second another name and model type, or import one of the two modules only."
            )
    _FAMILIES.append((family, module))
    return family


def refuse(refusal: Refusal) -> None:
    """Adds models that are refused with a reason."""
    _REFUSALS.append(refusal)


def families() -> tuple[Family, ...]:
    """Returns all families: those of the package, then those that other modules have registered."""
    _load_built_in()
    return tuple(family for family, _ in _FAMILIES)


def refusals() -> tuple[Refusal, ...]:
    """Returns all models that are refused with a reason."""
    _load_built_in()
    return tuple(_REFUSALS)


def _load_built_in() -> None:
    # First, so that who takes the name of a family of ours is told, and not our module. Their own calls find it begun.
    importlib.import_module("vadapter.weights.families")


def _claims(family: Family) -> list[str]:
    """What one family alone may have, in words."""
    claims = [f"the name {family.name!r} for a {family.part} in {kind} checkpoints" for kind in family.by.kinds]
    if isinstance(family.by, ModelType):
        claims += [f"the {family.part} of the model_type {t!r}" for t in (*family.by.names, *family.by.within)]
    return claims
