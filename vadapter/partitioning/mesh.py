"""The device mesh (data, fsdp, tensor)."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from vadapter.errors import UserError


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis. One axis may be -1: it takes the devices that the others leave.

    Attributes:
        data: copies of the model, each with its own rows of the batch.
        fsdp: devices that share each parameter and also split the batch.
        tensor: devices that split heads, mlp and vocabulary.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1


def make_mesh(config: MeshConfig | None = None, devices: Sequence[Any] | None = None) -> Mesh:
    """Lays devices out as a mesh with the axes data, fsdp, tensor.

    Args:
        config: sizes of the axes; the default puts all devices on data.
        devices: default all devices of all processes; given ones keep their order.

    Raises:
        UserError: the sizes do not multiply to the number of devices.
    """
    config = config or MeshConfig()
    count = len(jax.devices() if devices is None else devices)
    sizes = [config.data, config.fsdp, config.tensor]
    known = math.prod(s for s in sizes if s != -1)
    if sizes.count(-1) == 1 and known > 0 and count % known == 0:
        sizes[sizes.index(-1)] = count // known
    if math.prod(sizes) != count or min(sizes) < 1:
        raise UserError(
            f"The mesh data={config.data}, fsdp={config.fsdp}, tensor={config.tensor} does not fit {count} devices: "
            f"the sizes must multiply to {count}, and at most one may be -1. Change MeshConfig."
        )
    axes = ("data", "fsdp", "tensor")
    types = (AxisType.Auto,) * 3
    if devices is None:
        grid = mesh_utils.create_device_mesh(sizes, allow_split_physical_axes=True)
    else:
        grid = np.asarray(devices, dtype=object).reshape(sizes)
    return Mesh(grid, axes, axis_types=types)
