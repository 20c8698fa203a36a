"""TPU types and the slices that the compiler can be asked about.

The compiler is libtpu's: it compiles for any slice on a machine without TPU. libtpu expects to be the only one on its
machine and to find a TPU there; `prepare` tells it otherwise.
"""

import dataclasses
import functools
import importlib.metadata
import importlib.util
import math
import os
from typing import Any

from vadapter.base.errors import UserError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class TpuType:
    """One generation of TPU. A device is what jax calls one.

    Attributes:
        name: as in topology names (`v5e`).
        label: for people (`TPU v5e`).
        hbm_bytes: of a device, as specified.
        usable_hbm_bytes: of a device, the limit that the compiler (libtpu 0.0.51) names to a program that needs more.
        peak_bf16_flops: of a device, a second.
        hbm_bytes_per_s: of a device.
        ici_bytes_per_s: of one link between chips, one way.
        ici_links: of a chip.
        clock_hz: of the tensor core: peak over the FLOPs that its matrix units do in a cycle.
        chips_per_host: of a slice with more than one host.
        devices_per_chip: 2 where each tensor core is a device of its own.
        dimensions: of the network between chips, 2 or 3.
        ring: chips along a dimension that close to a ring: a whole pod in 2-D, blocks of 4 along all of 3-D.
        dcn_bytes_per_s: of a host, one way, to other slices.
        chip_config: the compiler's name for how cores make a device.
        shapes: examples of slices.
    """

    name: str
    label: str
    hbm_bytes: int
    usable_hbm_bytes: int
    peak_bf16_flops: float
    hbm_bytes_per_s: float
    ici_bytes_per_s: float
    ici_links: int
    clock_hz: float
    chips_per_host: int
    devices_per_chip: int
    dimensions: int
    ring: int
    dcn_bytes_per_s: float
    chip_config: str = "default"
    shapes: tuple[str, ...] = ()


_FLAT = ("2x2", "4x4", "8x8", "16x16")
_CUBES = ("2x2x1", "2x2x4", "4x4x4", "8x8x8")

# Google Cloud's pages on each type ("TPU v5e" and so on, system architecture): memory, bandwidth of HBM, peak, links
# and network of a chip; TPU v3 and v4 also from Jouppi et al. 2023 (arXiv 2304.01433, table 4). The pages give the
# links of a chip together. The network of a v4 host is taken to be that of v5p; that of v3 is an assumption.
TPU_TYPES: dict[str, TpuType] = {
    t.name: t
    for t in (
        TpuType(
            *("v3", "TPU v3", 16 * GIB, int(15.48 * GIB), 61.5e12, 450e9, 70e9, 4, 0.94e9, 4, 2, 2, 32, 12.5e9),
            shapes=("2x2", "4x4", "8x8", "16x16"),
        ),
        TpuType(
            *("v4", "TPU v4", 32 * GIB, int(30.75 * GIB), 275e12, 1228e9, 50e9, 6, 1.05e9, 4, 1, 3, 4, 25e9),
            chip_config="megacore",
            shapes=_CUBES,
        ),
        TpuType(
            *("v5e", "TPU v5e", 16 * GIB, int(15.75 * GIB), 197e12, 819e9, 50e9, 4, 1.5e9, 4, 1, 2, 16, 12.5e9),
            shapes=_FLAT,
        ),
        TpuType(
            *("v5p", "TPU v5p", 95 * GIB, int(95.73 * GIB), 459e12, 2765e9, 100e9, 6, 1.75e9, 4, 1, 3, 4, 25e9),
            shapes=_CUBES,
        ),
        TpuType(
            *("v6e", "TPU v6e", 32 * GIB, int(31.24 * GIB), 918e12, 1640e9, 100e9, 4, 1.75e9, 4, 1, 2, 16, 50e9),
            shapes=_FLAT,
        ),
        TpuType(
            *("tpu7x", "TPU7x", 96 * GIB, int(94.74 * GIB), 1153.5e12, 3690e9, 100e9, 6, 2.2e9, 4, 2, 3, 4, 50e9),
            shapes=_CUBES,
        ),
    )
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Slices of TPU chips. Make one with `Topology.parse`.

    Attributes:
        name: type and chips along each dimension of one slice (`v5e:16x16`).
        slices: that the data-centre network joins.
    """

    name: str
    slices: int = 1

    @classmethod
    def parse(cls, name: str, slices: int = 1) -> "Topology":
        """Checks a topology's name.

        Raises:
            UserError: an unknown type, a shape that this type does not have, or no slice.
        """
        kind, _, shape = name.strip().lower().partition(":")
        if slices < 1:
            raise UserError(f"Expected at least 1 slice, found {slices}. Change --slices.")
        if kind not in TPU_TYPES:
            known = ", ".join(f"{t.name}:{t.shapes[-1]}" for t in TPU_TYPES.values())
            raise UserError(
                f"Expected a topology such as {known}, found {name!r}: its TPU type is not known. Known types are "
                f"{', '.join(TPU_TYPES)}."
            )
        found = TPU_TYPES[kind]
        sizes = [int(n) for n in shape.split("x") if n.isdecimal()]
        pairs = [n == 1 or n % 2 == 0 for n in sizes[:2]]  # hosts hold 2 x 2 chips; less is a part of one host
        if len(sizes) != found.dimensions or len(shape.split("x")) != len(sizes) or min(sizes) < 1 or not all(pairs):
            raise UserError(
                f"Expected {found.name} with its chips along {found.dimensions} dimensions, such as "
                f"{', '.join(f'{found.name}:{s}' for s in found.shapes)} (even numbers, as hosts hold 2x2 chips), "
                f"found {name!r}."
            )
        return cls(f"{kind}:{'x'.join(map(str, sizes))}", slices)

    @property
    def type(self) -> TpuType:
        """The type of its chips."""
        return TPU_TYPES[self.name.partition(":")[0]]

    @property
    def shape(self) -> tuple[int, ...]:
        """Chips of one slice along each dimension."""
        return tuple(int(n) for n in self.name.partition(":")[2].split("x"))

    @property
    def num_chips(self) -> int:
        """Chips of all slices."""
        return math.prod(self.shape) * self.slices

    @property
    def num_devices(self) -> int:
        """What jax calls devices, of all slices."""
        return self.num_chips * self.type.devices_per_chip

    @property
    def rings(self) -> tuple[bool, ...]:
        """Whether the chips along each dimension are joined to a ring."""
        closed = [n % self.type.ring == 0 for n in self.shape]
        return tuple(closed) if self.type.dimensions == 2 else (all(closed),) * 3

    def devices(self) -> list[Any]:
        """Returns devices to make a mesh of and to compile for; nothing can run on them.

        Raises:
            UserError: libtpu is not installed, or it does not know this topology.
        """
        return list(_devices(self))


def prepare() -> None:
    """Makes libtpu usable as a compiler, on a machine with or without TPU; call it before jax uses any device.

    - jax itself runs on the CPU, unless JAX_PLATFORMS says otherwise, so that it looks for no TPU;
    - libtpu does not ask Google Cloud's metadata server what machine this is (elsewhere it waits minutes for it);
    - libtpu loads though another process on this machine has it loaded, such as a second plan or a training: it does
      not open the TPU, so they do not disturb one another.

    Settings that the user made are kept.
    """
    import jax

    _set("TPU_SKIP_MDS_QUERY", "1")
    _set("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    platforms = os.environ.get("JAX_PLATFORMS") or getattr(jax.config, "jax_platforms", None)
    if not platforms:
        jax.config.update("jax_platforms", "cpu")
    if platforms in (None, "", "cpu"):
        # What libtpu would ask about the machine it is on. It says so at length where it gets no answer; what is
        # compiled does not depend on it.
        _set("TPU_ACCELERATOR_TYPE", "v5litepod-4")
        _set("TPU_WORKER_HOSTNAMES", "localhost")


def _set(name: str, value: str) -> None:
    os.environ[name] = os.environ.get(name) or value


def libtpu_version() -> str | None:
    """Returns the installed version of libtpu, None if there is none."""
    for package in ("libtpu", "libtpu-nightly"):
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown" if importlib.util.find_spec("libtpu") else None


@functools.cache
def _devices(topology: Topology) -> tuple[Any, ...]:
    if libtpu_version() is None:
        raise UserError(
            "Planning needs the TPU compiler, and the package libtpu is not installed. It needs no TPU: install it "
            "with `pip install 'vadapter[tpu]'`."
        )
    prepare()
    import jax
    from jax.experimental import topologies

    options: dict[str, Any] = {"chip_config_name": topology.type.chip_config}
    options["wrap"] = (*topology.rings, False)[:3]
    if topology.slices > 1:
        options["num_slices"] = topology.slices
    if topology.num_chips == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology.name, **options)
    except jax.errors.JaxRuntimeError as error:
        if "lockfile" in str(error) or "already in use" in str(error):
            raise UserError(
                "Another process has libtpu loaded, and it refuses to be loaded twice: expected "
                f"ALLOW_MULTIPLE_LIBTPU_LOAD=1, found {os.environ.get('ALLOW_MULTIPLE_LIBTPU_LOAD')!r}. Unset that "
                "environment variable, or wait for the other process to end."
            ) from error
        raise UserError(f"libtpu {libtpu_version()} does not make devices of {topology.name}: {error}") from error
    return tuple(found.devices)
