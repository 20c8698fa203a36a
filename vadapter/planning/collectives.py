"""Communication of a compiled program: who exchanges how much along which mesh axes, and how long that takes.

The compiler writes no cycles for collectives. Their time is modelled: bytes that a device must receive over the
bandwidth of the links along which its group lies, plus a microsecond for each hop between the farthest two. Rings are
used in both directions; a dimension that does not close to a ring has half of its bandwidth.
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from vadapter.planning import hlo
from vadapter.planning.topologies import Topology, TpuType

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute", "collective-broadcast")
HOP_SECONDS = 1e-6


@dataclasses.dataclass(frozen=True)
class Exchange:
    """One collective instruction.

    Attributes:
        kind: one of `KINDS`.
        axes: mesh axes that its groups lie along.
        bytes: that a device sends.
        seconds: that one execution takes.
    """

    kind: str
    axes: tuple[str, ...]
    bytes: float
    seconds: float


@dataclasses.dataclass(frozen=True)
class Network:
    """The devices that a program is compiled for.

    Attributes:
        axes: names of the mesh axes.
        sizes: of these.
        devices: in the order of the mesh.
        type: of TPU.
        rings: whether the chips along each dimension of a slice are joined to a ring.
    """

    axes: tuple[str, ...]
    sizes: tuple[int, ...]
    devices: tuple[Any, ...]
    type: TpuType
    rings: tuple[bool, ...] = (False, False, False)

    @classmethod
    def of(cls, topology: Topology, mesh: Mesh) -> "Network":
        """Returns the network of a mesh over the devices of a topology."""
        return cls(
            tuple(map(str, mesh.axis_names)),
            mesh.devices.shape,
            tuple(mesh.devices.flat),
            topology.type,
            topology.rings,
        )

    def along(self, group: Sequence[int]) -> tuple[str, ...]:
        """Returns the axes along which devices of a group differ."""
        places = np.array(np.unravel_index(np.asarray(group), self.sizes))
        return tuple(axis for axis, row in zip(self.axes, places, strict=True) if len(set(row.tolist())) > 1)

    def slices(self, group: Sequence[int]) -> int:
        """Returns the number of slices that a group lies in."""
        return len({getattr(self.devices[i], "slice_index", 0) or 0 for i in group})

    def bandwidth(self, group: Sequence[int], dimensions: int | None = None) -> tuple[float, int]:
        """Returns what a device receives from its group, bytes a second, and the hops between the farthest two.

        Args:
            group: numbers of devices, in the order of the mesh.
            dimensions: of the network that the algorithm uses at most; default all that the group lies along.
        """
        kind = self.type
        if self.slices(group) > 1:
            return kind.dcn_bytes_per_s / (kind.chips_per_host * kind.devices_per_chip), 1
        places = np.array([getattr(self.devices[i], "coords", (i,)) for i in group])
        whole = np.array([getattr(d, "coords", (i,)) for i, d in enumerate(self.devices)])
        sizes = [len(set(row)) for row in whole.T.tolist()]
        spans = [(len(set(row)), n) for n, row in enumerate(places.T.tolist())]
        spans = sorted((s for s in spans if s[0] > 1), reverse=True)[:dimensions] or [(2, 0)]
        rings = [count == sizes[n] and n < len(self.rings) and self.rings[n] for count, n in spans]
        links = sum(2 if ring else 1 for ring in rings)
        hops = sum(count // 2 if ring else count - 1 for (count, _), ring in zip(spans, rings, strict=True))
        return links * kind.ici_bytes_per_s / kind.devices_per_chip, hops


def find(module: hlo.Module, instruction: hlo.Instruction) -> hlo.Instruction | None:
    """Returns the collective that an instruction is or has in the computations it calls, None if there is none."""
    if base(instruction.opcode) in KINDS:
        return instruction
    return next((i for _, i in module.inside(instruction) if base(i.opcode) in KINDS), None)


def base(opcode: str) -> str:
    """Returns the kind of a collective's opcode, without `-start`."""
    return opcode.removesuffix("-start")


def exchange(module: hlo.Module, outer: hlo.Instruction, inner: hlo.Instruction, network: Network) -> Exchange:
    """Returns what a collective exchanges, and its time.

    Args:
        module: that both are in.
        outer: the instruction of the schedule.
        inner: the collective itself: the same, or within a fusion.
        network: devices.
    """
    kind = base(inner.opcode)
    sliced = outer is not inner and any(i.root and i.opcode == "dynamic-slice" for _, i in module.inside(outer))
    if kind == "all-reduce" and sliced:
        kind = "reduce-scatter"  # the compiler writes it as an all-reduce of which each device keeps its part
    group = first_group(inner.attributes, math.prod(network.sizes))
    size = len(group)
    result = _bytes(inner)
    if inner.opcode.endswith("-start") and kind != "all-reduce":  # its tuple has operands, results and flags
        result = max((float(a.bytes) for a in inner.arrays), default=0.0)
    if base(inner.opcode) == "reduce-scatter":
        result *= size
    share = (size - 1) / size
    received = {
        "all-reduce": 2 * share * result,
        "collective-permute": result,
        "collective-broadcast": result,
    }.get(kind, share * result)
    # Each part of an all-to-all travels a quarter of a ring on average, and each link carries the parts of others.
    travelled = result * max(share, size / 8) if kind == "all-to-all" else received
    flat = re.search(r'"emitter":"1D', inner.attributes)
    bandwidth, hops = network.bandwidth(group, 1 if flat or kind == "collective-permute" else None)
    return Exchange(kind, network.along(group), received, travelled / bandwidth + hops * HOP_SECONDS)


def across_slices(send: hlo.Instruction, network: Network) -> Exchange | None:
    """Returns what a send between slices exchanges, None if it is no such.

    Collectives between slices are sends and receives through the host; their name and their reduction are in the
    instruction's attributes.
    """
    named = re.search(r'_xla_host_transfer_rendezvous="([a-z\-]+?)[._\d]*"', send.attributes)
    if "megascale" not in send.attributes:
        return None
    everyone = range(math.prod(network.sizes))
    slices = network.slices(everyone)
    bytes_ = float(send.arrays[0].bytes) if send.arrays else 0.0
    kind = named.group(1) if named and named.group(1) in KINDS else "all-reduce"
    passes = {"all-reduce": 2 * (slices - 1) / slices, "all-gather": slices - 1}.get(kind, 1.0)
    bandwidth = network.bandwidth(everyone)[0]
    # The axes along which a step leads to another slice.
    grid = np.array([getattr(d, "slice_index", 0) or 0 for d in network.devices]).reshape(network.sizes)
    axes = tuple(a for n, a in enumerate(network.axes) if grid.shape[n] > 1 and np.ptp(grid, axis=n).any())
    return Exchange(kind, axes, passes * bytes_, passes * bytes_ / bandwidth + HOP_SECONDS)


def _bytes(instruction: hlo.Instruction) -> float:
    return float(sum(a.bytes for a in instruction.arrays if a.dtype != "u32" or len(a.dims) > 0))


def first_group(attributes: str, devices: int) -> list[int]:
    """Returns the first group of devices that communicate, by their numbers in the order of the mesh.

    Reads the four forms: lists `{{0,1},{2,3}}`, iota `[2,2]<=[2,2]T(1,0)`, mesh `mesh['a'=2,'b'=2] {'b'}`, and pairs
    of sources and targets. All devices where the form is another.
    """
    if found := re.search(r"source_target_pairs=\{(.*?)\}\}", attributes):
        return _nearest(found.group(1))
    if found := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):
        return [int(n) for n in found.group(1).split(",") if n] or list(range(devices))
    if found := re.search(r"replica_groups=\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", attributes):
        return _iota(found.group(2)).reshape([int(n) for n in found.group(1).split(",")])[0].tolist()
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\](.*?)\{([^{}]*)\}", attributes):
        return _mesh_group(*found.groups())
    return list(range(devices))


def _nearest(pairs: str) -> list[int]:
    """The source and target with the nearest numbers: a ring's last pair may differ along more axes than its others."""
    found = [(int(a), int(b)) for a, b in re.findall(r"(\d+),(\d+)", pairs)]
    return list(min(((a, b) for a, b in found if a != b), key=lambda p: abs(p[0] - p[1]), default=(0, 0)))


def _iota(text: str) -> np.ndarray:
    """Numbers of `[2,4]T(1,0)`, flat."""
    dims, _, order = text.partition("T")
    shape = [int(n) for n in re.findall(r"\d+", dims)]
    grid = np.arange(math.prod(shape)).reshape(shape)
    return grid.transpose([int(n) for n in re.findall(r"\d+", order)] or range(len(shape))).ravel()


def _mesh_group(sizes: str, order: str, chosen: str) -> list[int]:
    """The group of the first device: the chosen axes, or parts of them (`'a':(1)2`), of a mesh."""
    axes = {name: int(size) for name, size in re.findall(r"'([^']*)'=(\d+)", sizes)}
    numbers = np.arange(math.prod(axes.values()))
    if found := re.search(r"device_ids=\((?:\[[\d,]+\]<=)?(\[[\d,]+\](?:T\([\d,]+\))?)\)", order):
        numbers = _iota(found.group(1))
    grid = numbers.reshape(list(axes.values()))
    index: list[Any] = [0] * len(axes)
    for name, before, part in re.findall(r"'([^']*)'(?::\((\d+)\)(\d+))?", chosen):
        if name in axes:
            stride = axes[name] // (int(before) * int(part)) if part else 1
            index[list(axes).index(name)] = slice(0, int(part) * stride if part else None, stride)
    return np.atleast_1d(grid[tuple(index)]).ravel().tolist()
