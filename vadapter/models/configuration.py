"""What a configuration of a model is, and how a new kind of adapter or vision encoder is added: by one class.

A configuration is a frozen dataclass that owns its answers: it makes its module, knows how many tokens it gives, and
counts its FLOPs. The decorator enters it in a registry that serves gin, JSON (`serialization`) and FLOPs alike, so a
class in a user's own module is as good as a shipped one:

    @adapter
    @dataclasses.dataclass(frozen=True)
    class AveragePoolConfig:
        num_queries: int = 16

        def make(self, output_dim, name=None):
            return AveragePool(self, output_dim, name=name)

        def num_tokens(self, frames, patches):
            return self.num_queries

        def flops(self, counter, media, frames, patches):
            return {counter.name: counter.kernels(media * self.num_queries)}

`AdapterConfig` and `EncoderConfig` say what such a class must have and what its module must do. The fields are
numbers, texts, tuples of these, or other registered configurations: then they can be written to `model.json`.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol, TypeVar

from flax import linen as nn

from vadapter.base.errors import UserError
from vadapter.base.registry import Registry
from vadapter.base.trees import Tree
from vadapter.models.flops import FlopCounter, FlopsOf

T = TypeVar("T")

# A collection of variables that a training step gives a model beside the parameters: "step", the update's number. Where
# it is missing, the model is evaluated, or decodes, and draws no noise.
TRAINING = "training"


class AdapterConfig(Protocol):
    """What stands between the vision encoder and the decoder.

    The module that `make` returns is called on patch tokens `[B, F, P, E]` (rows, frames, patches of a frame, the
    encoder's width; in the encoder's dtype) and returns soft tokens `[B, R, D]`, with R as `num_tokens` says and D the
    `output_dim` of `make`. Its parameters lie below `adapter/` and are made in float32; the computation is in a dtype
    of the configuration's choice. Make linear maps with `layers.dense`, which gives their kernels logical axes
    (`embed`, `mlp`, `heads`, `kv`), so that they are split over devices; `layers.named` does so for other parameters.

    Optional:

    - `starts(self)` returns `{path below adapter/: function}` for parameters that start from what other parameters
      compute, as the position queries of `LMAdapterConfig` do. The function is given the bound module and the patch
      tokens `[1, F, P, E]` of a grey image, and returns the parameter's first value.
    - `output_map`, an attribute or a property, is the path below adapter/ of the linear map that makes the soft tokens
      (its `kernel` and `bias`); a `Handoff` chooses its first values.
    - `summary(self)` returns a few words for people, for the card of a bundle.
    """

    def make(self, output_dim: int, name: str | None = None) -> nn.Module:
        """Returns the module.

        Args:
            output_dim: D, the width of the soft tokens.
            name: of the submodule, for modules that are `nn.compact`.
        """
        ...

    def num_tokens(self, frames: int, patches: int) -> int:
        """Returns R, the soft tokens of one image or video.

        Args:
            frames: F as the module sees it: a still image may be repeated, see `VLMConfig.repeat_stills`.
            patches: P, patch tokens of a frame.
        """
        ...

    def flops(self, counter: FlopCounter, media: float, frames: int, patches: int) -> dict[str, float]:
        """Returns the FLOPs of a training step by part; `counter.name` is the whole adapter, and is enough.

        Args:
            counter: counts on the adapter's parameters.
            media: images or videos of the step.
            frames: F of each.
            patches: P.
        """
        ...


class EncoderConfig(Protocol):
    """A vision encoder.

    The module that `make` returns is called on RGB pixels 0..255 `[B, h, w, 3]` (uint8, h = w = `image_size`; it
    normalises them itself) and returns patch tokens `[B, P, E]`, with P = `num_patches` and E = `width`. Its parameters
    lie below `encoder/`; see `AdapterConfig` for how to make them.

    Optional: `resize`, how pictures become square, such as "center_crop bicubic" (`base.resizing`; default "stretch").
    And `stack`, a class attribute that names the submodule whose layers are stacked on a leading axis, such as
    "Transformer/encoderblock". Its kernels may then be kept in int8 (`stacks`).
    """

    @property
    def image_size(self) -> int:
        """Pixels of each side of the square input."""
        ...

    @property
    def num_patches(self) -> int:
        """P, the tokens of a frame."""
        ...

    @property
    def width(self) -> int:
        """E, the width of a token."""
        ...

    def make(self, name: str | None = None) -> nn.Module:
        """Returns the module; `name` is that of the submodule, for modules that are `nn.compact`."""
        ...

    def flops(self, counter: FlopCounter, frames: float) -> dict[str, float]:
        """Returns the FLOPs of a training step on `frames` frames by part; `counter.name` is the whole encoder."""
        ...


class ModelConfig(Protocol):
    """A whole model: what a run trains.

    The module that `make` returns is called on a batch, and its method `loss_sums(batch, settings)` returns the
    `losses.LossSums` of it. In training it finds the step in the collection `TRAINING`.
    """

    @property
    def parts(self) -> tuple[str, ...]:
        """The first words of the parameters' paths, in the order in which data go through them."""
        ...

    @property
    def encoder(self) -> EncoderConfig | None:
        """The vision encoder; None for a language model."""
        ...

    @property
    def num_frames(self) -> int:
        """Frames of a video; 1 where the model reads still images only."""
        ...

    @property
    def vocab_size(self) -> int | None:
        """Ids that the model knows; None for a model that reads and writes no text."""
        ...

    def make(self) -> nn.Module:
        """Returns the module."""
        ...

    def data_sizes(self) -> dict[str, Any]:
        """Returns what the model dictates to its data, by the names of `vadapter.data.rows.sizes.Sizes`."""
        ...

    def example_batch(self, rows: int = 1, lengths: Mapping[str, int] | None = None, frames: int = 1) -> Any:
        """Returns shapes of a batch that uses every part of the model: what its parameters are made from.

        Args:
            rows: of the batch.
            lengths: `inputs` and `targets`, tokens of text; the parameters do not depend on them. Default 1 and 1.
            frames: of each image or video.
        """
        ...

    def flops(self, abstract: Tree, trainable: Collection[str]) -> FlopsOf:
        """Returns a function that counts the FLOPs of a training step on a batch, by part.

        Args:
            abstract: the model's parameters or their shapes, unboxed.
            trainable: slash paths of the trained parameters.
        """
        ...


# A decoder is `DecoderConfig`, one class for many families. A "field" is a value of another configuration.
_PROTOCOLS: Mapping[str, type | None] = {
    "model": ModelConfig,
    "encoder": EncoderConfig,
    "adapter": AdapterConfig,
    "decoder": None,
    "field": None,
}
REGISTRY = Registry("configuration of a model")
_kinds: dict[str, str] = {}


def picture_sizes(encoder: EncoderConfig) -> dict[str, Any]:
    """Returns what an encoder dictates to its data: `image_size`, and `resize` where it says how pictures get there."""
    resize = getattr(encoder, "resize", None)
    return {"image_size": encoder.image_size} | ({"resize": resize} if resize else {})


def configuration(kind: str) -> Callable[[type[T]], type[T]]:
    """Returns a decorator that registers a frozen dataclass as a configuration.

    Args:
        kind: `adapter` or `encoder` (for which there are the decorators of these names), `model`, `decoder`, or
            `field`, a value of another configuration.

    Raises:
        UserError: the class is no frozen dataclass, lacks something that its kind needs, or has the name of another.
    """
    protocol = _PROTOCOLS[kind]

    def register(cls: type[T]) -> type[T]:
        where = f"{cls.__module__}.{cls.__qualname__}"
        if not (dataclasses.is_dataclass(cls) and cls.__dataclass_params__.frozen):  # pyright: ignore
            raise UserError(
                f"{where} is registered as an {kind} and is no frozen dataclass, so it could not be compared, hashed "
                f"or written to a file. Put @dataclasses.dataclass(frozen=True) below @{kind}."
            )
        if missing := _missing(cls, protocol):
            raise UserError(
                f"{where} is registered as an {kind} and lacks {', '.join(missing)}. Add what "
                f"vadapter.models.configuration.{getattr(protocol, '__name__', '')} says of it."
            )
        REGISTRY.register(cls)
        _kinds[cls.__name__] = kind
        return cls

    return register


def _missing(cls: Any, protocol: type | None) -> list[str]:
    if protocol is None:
        return []
    fields = {field.name for field in dataclasses.fields(cls)}
    needed = [name for name in vars(protocol) if not name.startswith("_")]
    # A class may name the protocol as its base; what it inherits from there does nothing.
    return [
        name for name in needed if name not in fields and getattr(cls, name, None) in (None, getattr(protocol, name))
    ]


adapter = configuration("adapter")
encoder = configuration("encoder")


def registered(kind: str) -> list[type]:
    """Returns the registered classes of a kind."""
    return [cls for cls in REGISTRY if _kinds[cls.__name__] == kind]


def describe(config: Any) -> str:
    """Returns a configuration in a few words: its own `summary`, or its kind and the figures that most have."""
    if hasattr(config, "summary"):
        return config.summary()
    names = {"width": "wide", "depth": "deep", "num_layers": "deep", "num_queries": "queries"}
    figures = [f"{getattr(config, field)} {word}" for field, word in names.items() if hasattr(config, field)]
    kind = type(config).__name__.removesuffix("Config")
    return f"{kind} ({', '.join(figures)})" if figures else kind
