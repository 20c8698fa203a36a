"""Stacks of layers: which parts have them, what their parameters are called, and which kernels may be kept in int8.

Layers of one kind are scanned, so their parameters have the layer as their first axis. A configuration of an encoder
or a decoder names the submodule that holds them: its class attribute `stack`.
"""

import dataclasses
import re
from typing import TYPE_CHECKING, Any

from vadapter.base import quantization
from vadapter.base.array_types import Array
from vadapter.models import decoder, vit  # noqa: F401  so that the shipped configurations are registered
from vadapter.models.configuration import registered

if TYPE_CHECKING:
    from qwix import QArray


def _alternatives(*kinds: str) -> str:
    """A regex of the stacks that configurations of these kinds name."""
    found = {stack for kind in kinds for cls in registered(kind) if (stack := getattr(cls, "stack", None))}
    return "|".join(map(re.escape, sorted(found))) or "(?!)"


def is_stacked(path: str) -> bool:
    """Returns whether the parameter of that path, in a model or in a part of one, has the layers as its first axis."""
    return re.fullmatch(rf"(.*/)?({_alternatives('encoder', 'decoder')})/.*", path) is not None


def _int8_kernel(path: str) -> re.Match[str] | None:
    # The kernels of the stacked layers are nearly all of a large model. Norms, biases, vocabulary tables and the small
    # maps around the layers stay as they are: little would be saved, and the tables are read by row.
    stacks = rf"encoder/({_alternatives('encoder')})|(decoder|adapter/lm)/({_alternatives('decoder')})"
    return re.fullmatch(rf"({stacks})/(.+/)?(?P<map>[^/]+)/kernel", path)


def quantizes(path: str) -> bool:
    """Returns whether the parameter of that path is one that int8 is for."""
    return _int8_kernel(path) is not None


def quantize(path: str, kernel: Array) -> "QArray":
    """Quantises a kernel of stacked layers; see `quantization.quantize`.

    Args:
        path: of the parameter, one that `quantizes`.
        kernel: floating. The layers come first, then the input axes: two for a map named `out`, which sums attention's
            results over heads and their channels, and one for every other map.
    """
    match = _int8_kernel(path)
    assert match is not None, path
    return quantization.quantize(kernel, inputs=2 if match["map"] == "out" else 1)


def layer_stacks(config: Any) -> dict[str, Any]:
    """Returns the configurations inside a model's that choose `remat` and `attention_impl`, by their place.

    A place is names of fields, joined by slashes: for example `encoder`, `adapter/lm` and `decoder`. They come in the
    order of the model's `parts`.
    """
    order = getattr(config, "parts", ())
    found: dict[str, Any] = {}
    names = [field.name for field in dataclasses.fields(config)]
    for name in sorted(names, key=lambda name: order.index(name) if name in order else len(order)):
        value = getattr(config, name)
        if not dataclasses.is_dataclass(value):
            continue
        if hasattr(value, "remat") and hasattr(value, "attention_impl"):
            found[name] = value
        else:
            found |= {f"{name}/{inner}": stack for inner, stack in layer_stacks(value).items()}
    return found


def with_stack(config: Any, place: str, **changes: Any) -> Any:
    """Returns the configuration with other fields at a place of `layer_stacks`."""
    if not place:
        return dataclasses.replace(config, **changes)
    name, _, rest = place.partition("/")
    return dataclasses.replace(config, **{name: with_stack(getattr(config, name), rest, **changes)})
