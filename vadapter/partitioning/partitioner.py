"""Shardings of state and batch on one mesh."""

import dataclasses
from contextlib import AbstractContextManager
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vadapter.array_types import PyTree
from vadapter.errors import UserError
from vadapter.partitioning import rules as rules_lib
from vadapter.partitioning.mesh import MeshConfig, make_mesh


@dataclasses.dataclass(frozen=True)
class Partitioner:
    """A mesh and the rules that place arrays on it.

    Attributes:
        mesh: default all devices on the data axis.
        rules: logical axis name to mesh axes; see `DEFAULT_RULES`.
    """

    mesh: Mesh = dataclasses.field(default_factory=lambda: make_mesh(MeshConfig()))
    rules: rules_lib.Rules = rules_lib.DEFAULT_RULES

    @property
    def replicated(self) -> NamedSharding:
        """The whole array on each device."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def batch_sharding(self) -> NamedSharding:
        """The first axis over the data and fsdp axes."""
        table = dict(reversed(list(self.rules)))
        return NamedSharding(self.mesh, PartitionSpec(table.get("batch")))

    @property
    def batch_ways(self) -> int:
        """Parts that the batch is split into."""
        axes = self.batch_sharding.spec[0]
        axes = (axes,) if isinstance(axes, str) else axes or ()
        return int(np.prod([self.mesh.shape[a] for a in axes], initial=1))

    def activate(self) -> AbstractContextManager[None]:
        """Context under which functions are traced so that `constrain` acts."""
        return rules_lib.active(self.mesh, self.rules)

    def param_shardings(self, boxed: PyTree) -> PyTree:
        """Shardings of a parameter tree.

        Args:
            boxed: tree of arrays or shape structs, boxed with logical names (`abstract_params`). An unboxed leaf is
                replicated.

        Returns:
            The tree without boxes, a `NamedSharding` a leaf.

        Raises:
            UserError: as `partition_spec`, naming the parameter.
        """

        def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
            if not isinstance(leaf, nn.LogicallyPartitioned):
                return self.replicated
            names = "/".join(str(getattr(k, "key", k)) for k in path)
            spec = rules_lib.partition_spec(leaf.names, leaf.value.shape, self.mesh, self.rules, f"Parameter {names}")
            return NamedSharding(self.mesh, spec)

        is_box = lambda x: isinstance(x, nn.LogicallyPartitioned)  # noqa: E731
        return jax.tree_util.tree_map_with_path(sharding, boxed, is_leaf=is_box)

    def check_rows(self, rows: int) -> None:
        """Raises `UserError` unless a global batch of `rows` divides over the data and fsdp axes."""
        if rows % self.batch_ways:
            raise UserError(
                f"A batch of {rows} rows does not divide over {self.batch_ways} devices of the mesh axes data and "
                f"fsdp. Make the batch size a multiple of {self.batch_ways}, or change the mesh."
            )

    def put_batch(self, batch: PyTree) -> PyTree:
        """Puts this process's rows on its devices; the global batch is the processes' rows in order.

        Raises:
            UserError: as `check_rows`.
        """
        self.check_rows(jax.tree.leaves(batch)[0].shape[0] * jax.process_count())
        put = lambda x: jax.make_array_from_process_local_data(self.batch_sharding, np.asarray(x))  # noqa: E731
        return jax.tree.map(put, batch)
