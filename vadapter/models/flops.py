"""Floating-point operations of a training step, counted as they are needed: frozen parts cost less.

For N weights that multiply each of n tokens: 2Nn forwards; 2Nn more if a gradient goes on to the tokens, because
something before them is trained; 2Nn more if the weights themselves are trained. A frozen encoder costs 2N a token, a
frozen decoder behind a trained adapter 4N, what is trained 6N. Padding is not counted.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax

from vadapter.base import trees
from vadapter.base.batch import Counts

_MAPS = ("/kernel", "/lora_a", "/lora_b")

FlopsOf = Callable[[Any], dict[str, float]]

# Dense bf16 FLOP/s of one jax device, by the start of its device_kind; the longest that fits counts. Vendors' figures.
# TPU v2 and v3 chips have two devices, and so has TPU7x.
_PEAKS = {
    "TPU v2": 22.5e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v6": 918e12,
    "TPU7x": 1153.5e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}


def peak_flops(device_kind: str) -> float | None:
    """Returns the peak of one jax device in bf16 FLOP/s, or None if it is not known (CPUs)."""
    known = [name for name in _PEAKS if device_kind.startswith(name)]
    return _PEAKS[max(known, key=len)] if known else None


@dataclasses.dataclass(frozen=True)
class FlopCounter:
    """Counts on the parameters of one part of a model.

    Attributes:
        name: of the part: the beginning of its parameters' paths, such as `adapter` or `adapter/front`.
        sizes: numbers of weights by slash path, of the whole model.
        trainable: slash paths of the trained parameters, of the whole model.
        before: whether something before the part is trained, so that a gradient goes on to its input.
    """

    name: str
    sizes: Mapping[str, int]
    trainable: Collection[str]
    before: bool = False

    @property
    def flows(self) -> bool:
        """Whether gradients go through the part: it, or something before it, is trained."""
        return self.before or any(path.startswith(f"{self.name}/") for path in self.trainable)

    def part(self, name: str, before: bool | None = None) -> "FlopCounter":
        """Returns the counter of a part of this part.

        Args:
            name: of the submodule.
            before: see the attribute; default this part's, as for what comes first in it.
        """
        before = self.before if before is None else before
        return dataclasses.replace(self, name=f"{self.name}/{name}", before=before)

    def matmul(self, parameter: str, tokens: float, flows: bool | None = None) -> float:
        """FLOPs of one parameter that multiplies `tokens` tokens.

        Args:
            parameter: its path below the part.
            tokens: how many.
            flows: whether a gradient goes on to the tokens; default the part's.
        """
        path = f"{self.name}/{parameter}"
        flows = self.flows if flows is None else flows
        return 2.0 * self.sizes[path] * tokens * (1 + (path in self.trainable) + flows)

    def kernels(self, tokens: float | Callable[[str], float], flows: bool | None = None) -> float:
        """FLOPs of all kernels of the part (parameters named `kernel`, as linear maps have them, and those of LoRA).

        Args:
            tokens: how many tokens the kernels multiply, or a function that says so of a kernel's path below the part.
            flows: see `matmul`.
        """
        start = len(self.name) + 1
        mine = (p[start:] for p in self.sizes if p.startswith(f"{self.name}/") and p.endswith(_MAPS))
        return sum(self.matmul(p, tokens(p) if callable(tokens) else tokens, flows) for p in mine)

    def attention(self, queries: float, keys: float, width: int, layers: int, causal: bool = False) -> float:
        """FLOPs of scores and weighted sums: 4 a (query, key, channel) forwards, twice that backwards.

        Args:
            queries: number of queries.
            keys: keys that each sees, before the causal mask.
            width: heads times head dimension.
            layers: number of layers.
            causal: half of the keys are seen.
        """
        return 4.0 * queries * keys * width * layers * (3 if self.flows else 1) * (0.5 if causal else 1)


def counters(parts: Sequence[str], abstract: trees.Tree, trainable: Collection[str]) -> dict[str, FlopCounter]:
    """Returns a counter for each part of a model.

    Args:
        parts: in the order in which data go through them; see `configuration.ModelConfig.parts`.
        abstract: the model's parameters or their shapes, unboxed.
        trainable: slash paths of the trained parameters.
    """
    sizes = {path: int(x.size) for path, x in trees.flatten(abstract).items()}
    found: dict[str, FlopCounter] = {}
    before = False
    for name in parts:
        found[name] = FlopCounter(name, sizes, frozenset(trainable), before)
        before = found[name].flows
    return found


def count(batch: Any) -> Counts:
    """Counts what this process's part of a batch holds; a batch that does not say so has as many examples as rows."""
    return batch.counts() if hasattr(batch, "counts") else Counts(int(jax.tree.leaves(batch)[0].shape[0]), 0)
