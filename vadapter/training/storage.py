"""How a run keeps each parameter: trained or frozen, in which dtype, quantised or not, on which devices.

Training, planning, resuming, evaluation and bundles all ask here, so that they keep a parameter alike.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from vadapter.base import quantization, trees
from vadapter.base.array_types import PyTree
from vadapter.base.errors import UserError
from vadapter.models import stacks
from vadapter.partitioning import Partitioner
from vadapter.training import freezing

FROZEN_DTYPE = "bfloat16"
_FROZEN_DTYPES = (FROZEN_DTYPE, "float32", "int8")


@dataclasses.dataclass(frozen=True)
class Storage:
    """The policy of one run.

    Attributes:
        trained: paths of the parameters that the run trains, or trained. They are kept in f32.
        frozen_dtype: how the others are kept: `bfloat16`, `float32`, or `int8`, which quantises the kernels of stacked
            layers (`vadapter.base.quantization`) and keeps the rest in bf16.
        shardings: where each parameter lies; one that is not named stays where it is.

    Raises:
        UserError: `frozen_dtype` is not known.
    """

    trained: Collection[str]
    frozen_dtype: str = FROZEN_DTYPE
    shardings: Mapping[str, Sharding] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if self.frozen_dtype not in _FROZEN_DTYPES:
            raise UserError(
                f"frozen_dtype is {self.frozen_dtype!r}; expected one of {', '.join(_FROZEN_DTYPES)}. Change "
                "frozen_dtype."
            )

    @classmethod
    def of(
        cls, boxed: PyTree, partitioner: Partitioner, trained: Collection[str], frozen_dtype: str = FROZEN_DTYPE
    ) -> "Storage":
        """Returns the policy of a model on a mesh.

        Args:
            boxed: the model's abstract parameters (`partitioning.abstract_params`).
            partitioner: places the parameters.
            trained: paths.
            frozen_dtype: of the others.
        """
        return cls(frozenset(trained), frozen_dtype, trees.flatten(partitioner.param_shardings(boxed)))

    def dtype(self, path: str, dtype: Any) -> np.dtype:
        """Returns the dtype in which a parameter of a given dtype is kept, but for what `quantizes`.

        Raises:
            UserError: it is trained, and integers have no gradient.
        """
        if not jnp.issubdtype(dtype, jnp.floating):
            if path in self.trained:
                raise UserError(f"{path} is trainable but holds {dtype}, which has no gradient. Freeze it.")
            return np.dtype(dtype)
        wide = path in self.trained or self.frozen_dtype == "float32"
        return np.dtype(jnp.float32) if wide else np.dtype(jnp.bfloat16)

    def quantizes(self, path: str) -> bool:
        """Returns whether a parameter is kept as a quantised array."""
        return self.frozen_dtype == "int8" and path not in self.trained and stacks.quantizes(path)

    def read_as(self, path: str, stored: Any) -> jax.ShapeDtypeStruct:
        """Returns what to read a parameter as. What is quantised afterwards keeps its dtype, and so its precision."""
        dtype = stored.dtype if self.quantizes(path) else self.dtype(path, stored.dtype)
        return jax.ShapeDtypeStruct(stored.shape, dtype, sharding=self.shardings.get(path))

    def struct(self, path: str, shape: Any) -> Any:
        """Returns shape, dtype and sharding of a parameter as it is kept; of a quantised one, of both its arrays."""
        read = self.read_as(path, shape)
        if not self.quantizes(path):
            return read
        made = jax.eval_shape(lambda x: stacks.quantize(path, x), jax.ShapeDtypeStruct(shape.shape, read.dtype))
        if not isinstance(read.sharding, NamedSharding):
            return made
        mesh, spec = read.sharding.mesh, [*read.sharding.spec, *[None] * (len(shape.shape) - len(read.sharding.spec))]

        def placed(leaf: Any) -> Any:  # a scale has size 1 in the axes that are summed over
            axes = (a if n == m else None for a, n, m in zip(spec, leaf.shape, shape.shape, strict=True))
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, PartitionSpec(*axes)))

        return jax.tree.map(placed, made)

    def keep(self, path: str, x: Any) -> Any:
        """Returns an array of the host or of devices as it is kept: cast, where it belongs, quantised.

        Of a host's array each process gives its own shards. An array that lies on a mesh stays there.
        """
        if quantization.is_quantized(x):
            return x
        struct = self.read_as(path, x)
        if isinstance(x, np.ndarray) and struct.sharding is not None:
            x = x.astype(struct.dtype)
            x = jax.make_array_from_callback(x.shape, struct.sharding, lambda index: x[index])
        else:
            x = x if x.dtype == struct.dtype else x.astype(struct.dtype)
            if struct.sharding is not None and not isinstance(x.sharding, NamedSharding):
                x = jax.device_put(x, struct.sharding)
        return stacks.quantize(path, x) if self.quantizes(path) else x

    def keep_all(self, params: trees.Tree) -> dict[str, Any]:
        """Returns a tree of parameters, each as it is kept."""
        return trees.unflatten({path: self.keep(path, x) for path, x in trees.flatten(params).items()})

    def split(self, params: trees.Tree) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns the (trained, frozen) trees of all parameters. Changes no leaf."""
        flat = trees.flatten(params)
        trained = {path: x for path, x in flat.items() if path in self.trained}
        return trees.unflatten(trained), trees.unflatten({p: x for p, x in flat.items() if p not in self.trained})


def trained_paths(boxed: PyTree, trainable: Sequence[str]) -> frozenset[str]:
    """Returns the paths that the patterns of a run choose; see `freezing.partition`, also for what is refused."""
    return frozenset(trees.flatten(freezing.partition(nn.unbox(boxed), trainable)[0]))
