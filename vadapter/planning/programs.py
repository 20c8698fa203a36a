"""Compiles a program for a topology and says what the TPU compiler knows of it."""

import dataclasses
import importlib.metadata
import os
import re
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from vadapter.planning import buffers, cache, hlo, schedule
from vadapter.planning.collectives import Network
from vadapter.planning.topologies import Topology, libtpu_version


@dataclasses.dataclass(frozen=True)
class Program:
    """Something to compile.

    Attributes:
        name: for people (`train step`).
        lower: returns the program lowered for devices of the topology.
        options: of the TPU compiler.
    """

    name: str
    lower: Callable[[], jax.stages.Lowered]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one device's HBM.

    Attributes:
        arguments: inputs; parameters and optimizer states among them.
        outputs: results, those that take over an argument's memory too.
        aliased: of the outputs that do.
        temporaries: held at the same time at most, while it runs.
        code: of the program itself.
        peak: needed, all in all.
        limit: that the compiler leaves to programs.
        fits: whether the compiler accepted the program.
    """

    arguments: int = 0
    outputs: int = 0
    aliased: int = 0
    temporaries: int = 0
    code: int = 0
    peak: int = 0
    limit: int = 0
    fits: bool = True


@dataclasses.dataclass(frozen=True)
class Cycles:
    """Cycles of one device's tensor core by the compiler's estimate, scan bodies times their trip counts.

    Attributes:
        matmul: fusions around a matrix product or convolution.
        other: other fusions and operations.
        kernels: custom calls.
        copies: copies within HBM, or to it, that nothing hides.
        collectives: waiting for other devices, where no computation hides it.
    """

    matmul: float = 0.0
    other: float = 0.0
    kernels: float = 0.0
    copies: float = 0.0
    collectives: float = 0.0

    @property
    def total(self) -> float:
        """All of them."""
        return self.matmul + self.other + self.kernels + self.copies + self.collectives


@dataclasses.dataclass(frozen=True)
class Collective:
    """All communication of one kind along the same mesh axes.

    Attributes:
        kind: `all-gather`, `reduce-scatter`, `all-reduce`, `all-to-all` or `collective-permute`.
        axes: of the mesh, along which devices exchange (`("fsdp",)`); empty where the groups are no axes.
        count: executions, scan bodies times their trip counts.
        bytes: that a device sends, of all executions.
        cycles: that it takes, hidden behind computation or not.
        exposed_cycles: of these, that no computation hides.
        in_loop: whether it is in the body of a scan.
    """

    kind: str
    axes: tuple[str, ...]
    count: int
    bytes: float
    cycles: float
    exposed_cycles: float
    in_loop: bool


@dataclasses.dataclass(frozen=True)
class Temporary:
    """A large array that the program holds for a time; results are among them, arguments are not.

    Attributes:
        shape: with type, as the compiler writes it (`bf16[8,256,4096]`).
        bytes: of each, with padding.
        op: name of the jax operation that makes it.
        source: file and line of that operation, "" if unknown.
        count: of such arrays, each with its own place.
    """

    shape: str
    bytes: int
    op: str
    source: str
    count: int = 1


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler says of a program. All figures are of one device; nothing but `memory` and `largest` is known
    of a program that does not fit.

    Attributes:
        name: of the program.
        topology: its name.
        slices: of it.
        memory: bytes of HBM.
        flops: as compiled (recomputation included), scan bodies times their trip counts.
        cycles: estimated by the compiler.
        hbm_bytes: read and written, scan bodies times their trip counts.
        collectives: by kind and mesh axes, the longest first.
        largest: the largest temporaries, the largest first.
        compile_seconds: of the compilation, also where the result came from the cache.
        versions: of jax, jaxlib and libtpu.
        unknown_loops: loops whose length is not known before they run; they are counted once.
        unknown_kernels: kernels whose FLOPs are not known; the time of their bytes is counted.
    """

    name: str
    topology: str
    slices: int
    memory: Memory
    flops: float
    cycles: Cycles
    hbm_bytes: float
    collectives: tuple[Collective, ...]
    largest: tuple[Temporary, ...]
    compile_seconds: float
    versions: dict[str, str]
    unknown_loops: int = 0
    unknown_kernels: int = 0

    @property
    def fits(self) -> bool:
        """Whether a device holds the program."""
        return self.memory.fits

    def to_json(self) -> dict[str, Any]:
        """Returns it as plain data for `json.dumps`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Compiled":
        """Returns what `to_json` was made of.

        Raises:
            KeyError, TypeError: data is not such.
        """
        return cls(
            **{
                **data,
                "memory": Memory(**data["memory"]),
                "cycles": Cycles(**data["cycles"]),
                "collectives": tuple(Collective(**{**c, "axes": tuple(c["axes"])}) for c in data["collectives"]),
                "largest": tuple(Temporary(**t) for t in data["largest"]),
            }
        )


def compile_program(program: Program, topology: Topology, mesh: Mesh, cache_dir: str | Path | None = None) -> Compiled:
    """Compiles a program for a topology, or finds the result of an earlier time.

    Args:
        program: to compile; it is lowered here.
        topology: that its devices are of.
        mesh: of these devices, to name the axes of collectives.
        cache_dir: of results; the default is `vadapter/plan` in XDG_CACHE_HOME or ~/.cache.

    Raises:
        UserError: libtpu is missing, or cannot be used now.
    """
    topology.devices()  # the errors of libtpu, before minutes of lowering
    lowered = program.lower()
    folder = cache.default_folder() if cache_dir is None else Path(cache_dir).expanduser()
    found = versions()
    order = ",".join(str(getattr(d, "id", d)) for d in mesh.devices.flat)
    environment = [os.environ.get(name, "") for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")]
    options = str(sorted(program.options.items()))
    slices = f"{topology.slices} x {dict(mesh.shape)}"
    name = cache.key([lowered.as_text(), topology.name, slices, order, options, str(found), *environment])
    if kept := cache.load(folder, name):
        try:
            return dataclasses.replace(Compiled.from_json(kept), name=program.name)
        except (KeyError, TypeError):
            pass  # damaged, or of another version: made again
    result = _compile(program, lowered, topology, Network.of(topology, mesh))
    cache.save(folder, name, result.to_json())
    return result


def versions() -> dict[str, str]:
    """Returns the versions of jax, jaxlib and libtpu."""
    return {
        "jax": importlib.metadata.version("jax"),
        "jaxlib": importlib.metadata.version("jaxlib"),
        "libtpu": libtpu_version() or "",
    }


def _compile(program: Program, lowered: jax.stages.Lowered, topology: Topology, network: Network) -> Compiled:
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="vadapter-plan-") as folder:
        options = {**program.options, "xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        try:
            compiled = lowered.compile(compiler_options=options)
        except jax.errors.JaxRuntimeError as error:
            needed = needed_memory(str(error))
            if needed is None:
                raise
            memory = Memory(peak=needed[0], limit=needed[1], fits=False)
            text, assignment = _dumped(folder, "after_optimizations")
        else:
            memory = _memory(compiled.memory_analysis(), topology.type.usable_hbm_bytes)
            text, assignment = _dumped(folder, "after_codegen")
            text = text or compiled.as_text() or ""  # of new TPUs jaxlib may not be able to give the text
        seconds = time.perf_counter() - start
    module = hlo.Module(text) if text else None
    held, totals = buffers.read(assignment)
    if not memory.fits:
        memory = dataclasses.replace(
            memory, arguments=totals["argument"], outputs=totals["output"], temporaries=totals["temporary"]
        )
    spent = schedule.cost(module, network) if module and memory.fits else schedule.Cost()
    return Compiled(
        name=program.name,
        topology=topology.name,
        slices=topology.slices,
        memory=memory,
        flops=spent.flops,
        cycles=Cycles(spent.matmul, spent.other, spent.kernels, spent.copies, spent.exposed),
        hbm_bytes=spent.hbm_bytes,
        collectives=_collectives(spent, topology.type.clock_hz),
        largest=_largest(held, module) if module else (),
        compile_seconds=seconds,
        versions=versions(),
        unknown_loops=spent.unknown_loops,
        unknown_kernels=spent.unknown_kernels,
    )


def _dumped(folder: str, stage: str) -> tuple[str, str]:
    """Texts of the program and of its buffer assignment that the compiler wrote, "" if it wrote none.

    The program is the largest there, as parts of it are compiled on their own too.
    """
    found = sorted(Path(folder).glob(f"*.{stage}.txt"), key=lambda path: path.stat().st_size)
    if not found:
        return "", ""
    name = found[-1].name.removesuffix(f"{stage}.txt")
    assignment = Path(folder) / f"{name}after_optimizations-buffer-assignment.txt"
    program, held = (path.read_text("utf-8", "replace") if path.exists() else "" for path in (found[-1], assignment))
    return program, held


def _memory(analysis: Any, limit: int) -> Memory:
    arguments, outputs = analysis.argument_size_in_bytes, analysis.output_size_in_bytes
    aliased, temporaries = analysis.alias_size_in_bytes, analysis.temp_size_in_bytes
    code = analysis.generated_code_size_in_bytes
    peak = arguments + outputs - aliased + temporaries + code
    return Memory(arguments, outputs, aliased, temporaries, code, peak, limit, fits=True)


def needed_memory(message: str) -> tuple[int, int] | None:
    """Returns the bytes of HBM that a program needs and those that a device has, from the compiler's refusal.

    None if the message is another: of other memories too, as a kernel that needs too much VMEM is not too large a
    program.
    """
    number = r"([\d.]+)([KMGT]?)"
    found = re.search(rf"on HBM, .*?\({number}\) exceeds available HBM \({number}\)", message)
    found = found or re.search(rf"memory space hbm\. Used {number} of {number} hbm", message)
    if found is None:
        return None
    units = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    values = found.groups()
    return int(float(values[0]) * units[values[1]]), int(float(values[2]) * units[values[3]])


def _collectives(spent: schedule.Cost, clock: float) -> tuple[Collective, ...]:
    """Sums executions of one kind, along the same axes, in loops or outside."""
    sums: dict[tuple[str, tuple[str, ...], bool], list[float]] = {}
    for found, times, waited, in_loop in spent.exchanges:
        row = sums.setdefault((found.kind, found.axes, in_loop), [0, 0.0, 0.0, 0.0])
        for n, value in enumerate((times, times * found.bytes, times * found.seconds * clock, waited)):
            row[n] += value
    rows = [Collective(k, axes, int(n), b, c, w, loop) for (k, axes, loop), (n, b, c, w) in sums.items()]
    return tuple(sorted(rows, key=lambda c: -c.cycles))


def _largest(held: list[buffers.Buffer], module: hlo.Module, most: int = 12) -> tuple[Temporary, ...]:
    """The largest temporaries; those of the same shape and source are one row."""
    rows: dict[tuple[str, int, str, str], int] = {}
    for buffer in held:
        if buffer.use not in ("temporary", "output") or buffer.bytes < 1024:
            continue
        shape, op, source = buffers.describe(buffer, module)
        if shape:
            key = (shape, buffer.bytes, op, source)
            rows[key] = rows.get(key, 0) + 1
        if len(rows) > most:
            break
    return tuple(Temporary(*key, count=count) for key, count in list(rows.items())[:most])
