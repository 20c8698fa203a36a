"""Shardings of state and batch on one mesh."""

import dataclasses
import functools
import math
from contextlib import AbstractContextManager
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vadapter.base.array_types import PyTree
from vadapter.base.errors import UserError
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
        """The first axis over the fsdp, dcn and data axes."""
        table = dict(reversed(list(self.rules)))
        return NamedSharding(self.mesh, PartitionSpec(table.get("batch")))

    @property
    def _batch_axes(self) -> tuple[str, ...]:
        axes = self.batch_sharding.spec[0]
        return (axes,) if isinstance(axes, str) else tuple(axes or ())

    @property
    def batch_ways(self) -> int:
        """Parts that the batch is split into."""
        return math.prod(self.mesh.shape[axis] for axis in self._batch_axes)

    @functools.cached_property
    def host_share(self) -> tuple[int, int]:
        """(h, n): this process reads the h-th of the n parts of each batch.

        Mostly its index and the number of processes. Processes whose devices hold the same rows, because the tensor
        axis joins them, have the same share.

        Raises:
            UserError: the rows of two processes overlap in part.
        """
        return self._share_of(jax.process_index())

    def _share_of(self, process: int) -> tuple[int, int]:
        rows: dict[int, set[int]] = {}
        for device, (index,) in self.batch_sharding.devices_indices_map((self.batch_ways,)).items():
            rows.setdefault(device.process_index, set()).update(range(self.batch_ways)[index])
        shares = sorted({tuple(sorted(x)) for x in rows.values()})
        if sum(map(len, shares)) != self.batch_ways or len({len(x) for x in shares}) > 1:
            raise UserError(
                f"The mesh {dict(self.mesh.shape)} gives the {len(rows)} processes rows of the batch that overlap in "
                "part. Make the size of the tensor axis divide, or be a multiple of, the number of devices a process."
            )
        return shares.index(tuple(sorted(rows[process]))), len(shares)

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
        """Raises `UserError` unless a global batch of `rows` divides over the fsdp, dcn and data axes."""
        if rows % self.batch_ways:
            raise UserError(
                f"A batch of {rows} rows does not divide over {self.batch_ways} devices of the mesh axes "
                f"{', '.join(self._batch_axes)}. Make the batch size a multiple of {self.batch_ways}, or change the "
                "mesh."
            )

    def put_batch(self, batch: PyTree) -> PyTree:
        """Puts this process's rows (its `host_share`) on its devices.

        The global batch is made of the rows of all shares. Which of its rows are whose follows from the mesh: a host of
        a TPU slice holds a square of it, and so not always rows that follow one another.

        Raises:
            UserError: as `check_rows`.
        """
        shares = self.host_share[1]
        self.check_rows(jax.tree.leaves(batch)[0].shape[0] * shares)

        def put(x: Any) -> jax.Array:
            x = np.asarray(x)
            shape = (x.shape[0] * shares, *x.shape[1:])
            return jax.make_array_from_process_local_data(self.batch_sharding, x, shape)

        return jax.tree.map(put, batch)
