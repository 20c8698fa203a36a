"""LoRA: a frozen linear map gets two small trained ones beside it (Hu et al., arXiv 2106.09685).

`y = x W + s (x A) B`, with A of [inputs, rank] and B of [rank, outputs]. A and B are parameters of their own, named
`lora_a` and `lora_b` beside `kernel`, so W stays frozen, and is kept in bf16 or int8 like any frozen kernel. B starts
at zero: before the first update the model is the frozen one.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from vadapter.base import patterns, trees
from vadapter.base.array_types import Array
from vadapter.base.errors import UserError
from vadapter.models.configuration import configuration

PATHS = r".*/lora_[ab]"
"""A pattern of the parameters of LoRA, for `TrainConfig.trainable`."""


DROPOUT = "dropout"
"""Name of the random numbers that a training step gives a model with dropout, as flax's own layers have it."""


@configuration("field")
@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Which linear maps of a decoder's or an encoder's layers get a low-rank map beside them, and of what rank.

    Attributes:
        rank: of the small maps, r; 1 or more, and no more than the smaller side of each kernel.
        alpha: the product is multiplied by alpha / rank; more than 0.
        rank_stabilized: alpha / sqrt(rank) instead (rsLoRA, arXiv 2312.03732).
        targets: regexes of the maps, by their paths in a layer, such as `attention/(query|value)` or `mlp/.*` in a
            decoder and `MultiHeadDotProductAttention_0/.*` in a ViT. The default is every map.
        dropout: share of the inputs of A that a training step sets to zero, as peft's `lora_dropout`; 0 is none. Which
            ones follows from `seed`, the step and the batch, so that a resumed run draws what it would have drawn.
            Evaluation and decoding drop nothing.
        seed: of the dropout.
    """

    rank: int = 16
    alpha: float = 32.0
    rank_stabilized: bool = False
    targets: tuple[str, ...] = (".*",)
    dropout: float = 0.0
    seed: int = 0

    def __post_init__(self):
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise UserError(f"LoraConfig: rank is {self.rank!r}; expected a whole number of 1 or more.")
        if not 0 < self.alpha < math.inf:
            raise UserError(f"LoraConfig: alpha is {self.alpha}; expected a finite number above 0.")
        if not 0 <= self.dropout < 1:
            raise UserError(
                f"LoraConfig: dropout is {self.dropout}; expected a share of 0 up to, but not including, 1."
            )
        if isinstance(self.targets, str) or not self.targets:
            raise UserError(
                f"LoraConfig: targets is {self.targets!r}; expected a list of regexes, such as "
                "['attention/(query|value)'], or ['.*'] for every map."
            )
        patterns.check(self.targets, "LoraConfig.targets")  # a bundle may bring them along

    @property
    def scale(self) -> float:
        """What the product of the small maps is multiplied by, s."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)

    def matches(self, name: str) -> bool:
        """Returns whether a map gets one, by its path in a layer, such as `attention/query`."""
        return any(re.fullmatch(target, name) for target in self.targets)

    def check(self, maps: Mapping[str, tuple[int, int]], what: str) -> None:
        """Refuses what does not fit the layers of a part.

        Args:
            maps: (inputs, outputs) of each map, by its path in a layer.
            what: whose layers, for errors.

        Raises:
            UserError: a target matches no map, or the rank is larger than a kernel.
        """
        for target in self.targets:
            if not any(re.fullmatch(target, name) for name in maps):
                raise UserError(
                    f"LoraConfig: the target {target!r} matches no map of {what}. A target matches the whole path in a "
                    f"layer; the maps are {', '.join(maps)}."
                )
        for name, sizes in maps.items():
            if self.matches(name) and self.rank > min(sizes):
                raise UserError(
                    f"LoraConfig: rank {self.rank} is more than the smaller side of {name} of {what}, which has "
                    f"{sizes[0]} inputs and {sizes[1]} outputs. Lower the rank, or leave the map out of the targets."
                )


def add(
    module: nn.Module, config: LoraConfig, x: Array, axes: Sequence[int], outputs: Sequence[int], names: Any
) -> Array:
    """Returns what LoRA adds to a linear map, and makes its parameters. To be called in a compact method.

    Args:
        module: the map, in which `lora_a` and `lora_b` are made.
        config: rank and scale.
        x: its input in the compute dtype, the summed axes last.
        axes: the axes of `x` that are summed over.
        outputs: sizes of the result's last axes.
        names: logical axis names of its kernel.
    """
    inputs = [x.shape[a] for a in axes]
    n = len(inputs)
    # Uniform within +-1 / sqrt(inputs), as peft and torch's Linear start.
    start = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform", in_axis=tuple(range(n)), out_axis=-1)
    init_a = nn.with_logical_partitioning(start, (*names[:n], None))
    init_b = nn.with_logical_partitioning(nn.initializers.zeros, (None, *names[n:]))
    a = jnp.asarray(module.param("lora_a", init_a, (*inputs, config.rank)), x.dtype)
    b = jnp.asarray(module.param("lora_b", init_b, (config.rank, *outputs)), x.dtype)
    if config.dropout and module.has_rng(DROPOUT):
        kept = jax.random.bernoulli(
            jax.random.fold_in(module.make_rng(DROPOUT), config.seed), 1 - config.dropout, x.shape
        )
        x = jnp.where(kept, x / (1 - config.dropout), 0).astype(x.dtype)
    low = jnp.tensordot(x, a, axes=(tuple(axes), tuple(range(n))))
    return jnp.tensordot(low, b, axes=1) * jnp.asarray(config.scale, x.dtype)


def merge(params: trees.Tree, scale: Any) -> dict[str, Any]:
    """Adds the small maps to the kernels beside them, in f32, and drops them.

    Args:
        params: nested dict with the kernels of the maps, floating; layers may be stacked on the first axis.
        scale: a number, or a function of a kernel's path that returns one (`LoraConfig.scale`).

    Returns:
        Nested dict without `lora_a` and `lora_b`; the dtype of each kernel stays.

    Raises:
        UserError: a kernel that LoRA stands beside is not there.
    """
    flat = dict(trees.flatten(params))
    for path in [p for p in flat if p.endswith("/lora_a")]:
        place = path.removesuffix("lora_a")
        if f"{place}kernel" not in flat:
            raise UserError(f"{path} has no {place}kernel beside it to be merged into. Give all parameters.")
        kernel, a, b = flat[f"{place}kernel"], flat.pop(path), flat.pop(f"{place}lora_b")
        stacked = a.ndim + b.ndim - 2 > kernel.ndim  # the layer is counted in both
        first = a.shape[:1] if stacked else (1,)
        rank = a.shape[-1]
        product = jnp.asarray(a, jnp.float32).reshape(*first, -1, rank) @ jnp.asarray(b, jnp.float32).reshape(
            *first, rank, -1
        )
        factor: Any = scale(f"{place}kernel") if callable(scale) else scale
        merged = jnp.asarray(kernel, jnp.float32) + product.reshape(kernel.shape) * factor
        flat[f"{place}kernel"] = merged.astype(kernel.dtype)
    return trees.unflatten(flat)
