"""The device mesh (dcn, data, fsdp, tensor)."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from vadapter.base.errors import UserError

AXES = ("dcn", "data", "fsdp", "tensor")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis. One of data, fsdp and tensor may be -1: it takes the devices that the others leave.

    Attributes:
        data: copies of the model in a slice, each with its own rows of the batch.
        fsdp: devices that share each parameter and also split the batch.
        tensor: devices that split heads, mlp and vocabulary.
        slices: groups of devices that only the data-centre network joins, such as the slices of a multi-slice TPU; the
            mesh axis `dcn`. Each has whole copies of the model and its own rows of the batch. -1: as many as there are.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    slices: int = 1

    def __str__(self) -> str:
        return f"slices={self.slices}, data={self.data}, fsdp={self.fsdp}, tensor={self.tensor}"


def make_mesh(config: MeshConfig | None = None, devices: Sequence[Any] | None = None) -> Mesh:
    """Lays devices out as a mesh with the axes dcn, data, fsdp, tensor.

    TPU devices are ordered so that neighbours on the axes are neighbours on the chip's links, the last axes first
    (`jax.experimental.mesh_utils`); others keep their order.

    Args:
        config: sizes of the axes; the default puts all devices of one slice on data.
        devices: default all devices of all processes. Those of an ahead-of-time topology will do.

    Raises:
        UserError: the sizes do not multiply to the number of devices, or the devices lie in another number of slices.
    """
    config = config or MeshConfig()
    devices = list(jax.devices() if devices is None else devices)
    slices = _slices(config, devices)
    sizes = [config.data, config.fsdp, config.tensor]
    count = len(devices) // slices
    known = math.prod(s for s in sizes if s != -1)
    if sizes.count(-1) == 1 and known > 0 and count % known == 0:
        sizes[sizes.index(-1)] = count // known
    if min(sizes) < 1 or slices * math.prod(sizes) != len(devices):
        each = f" ({count} in each of {slices} slices)" if slices > 1 and len(devices) % slices == 0 else ""
        raise UserError(
            f"The mesh {config} does not fit {len(devices)} devices{each}: the sizes must multiply to their number, "
            "and at most one of data, fsdp and tensor may be -1. Change MeshConfig."
        )
    return Mesh(_grid(slices, sizes, devices, config), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _slices_of(devices: Sequence[Any]) -> int:
    return len({getattr(device, "slice_index", 0) for device in devices})


def _slices(config: MeshConfig, devices: Sequence[Any]) -> int:
    """The number of slices. Only those of TPUs are facts; other devices can be grouped at will, in their order."""
    found = _slices_of(devices)
    if config.slices == -1:
        return found
    if config.slices < 1 or (config.slices != found and devices[0].platform == "tpu"):
        raise UserError(
            f"The mesh {config} does not fit the devices: these lie in {found} slice{'s' * (found != 1)}. "
            f"Set MeshConfig.slices to {found}, or to -1 for as many as there are."
        )
    return config.slices


def _grid(slices: int, sizes: Sequence[int], devices: Sequence[Any], config: MeshConfig) -> np.ndarray:
    try:
        if slices > 1 and _slices_of(devices) == slices:
            return mesh_utils.create_hybrid_device_mesh(
                (1, *sizes), (slices, *(1 for _ in sizes)), devices, allow_split_physical_axes=True
            )
        return mesh_utils.create_device_mesh((slices, *sizes), devices, allow_split_physical_axes=True)
    except (AssertionError, NotImplementedError, ValueError) as error:
        raise UserError(
            f"The mesh {config} cannot be laid on these {len(devices)} devices ({devices[0].device_kind}): {error}. "
            "Give whole slices, and sizes that divide the sides of their topology."
        ) from error
