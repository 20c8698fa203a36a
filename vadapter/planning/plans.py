"""A plan: everything that is known of a run before it starts."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from vadapter.planning.estimate import Estimate, Work
from vadapter.planning.programs import Compiled
from vadapter.planning.search import Setting
from vadapter.planning.topologies import Topology


@dataclasses.dataclass(frozen=True)
class Part:
    """Parameters of one part of the model, trained or frozen. Sizes are of the whole arrays, wherever they lie.

    Attributes:
        name: `encoder`, `adapter/lm`, ...
        trained: whether it is.
        dtype: of most of its bytes.
        parameters: number.
        weight_bytes: of the parameters.
        optimizer_bytes: of their optimizer's state.
    """

    name: str
    trained: bool
    dtype: str
    parameters: int
    weight_bytes: int
    optimizer_bytes: int


@dataclasses.dataclass(frozen=True)
class Decode:
    """The generation of texts for one batch of prompts.

    Attributes:
        rows: prompts.
        new_tokens: of each, at most.
        method: `greedy`, `sample` or `beam`.
        compiled: the program.
    """

    rows: int
    new_tokens: int
    method: str
    compiled: Compiled


@dataclasses.dataclass(frozen=True)
class Plan:
    """A recipe on a topology.

    Attributes:
        recipe: its name.
        topology: its name, such as `v5e:8x8`.
        slices: of it.
        media: `images` or `videos`, what the batch holds.
        mesh: devices along each axis.
        setting: what a search may change.
        parts: parameters.
        work: what a step does.
        compiled: the training step.
        estimate: None if it does not fit.
        decode: None if it was not asked for.
        price: of a chip, in USD an hour.
    """

    recipe: str
    topology: str
    slices: int
    media: str
    mesh: Mapping[str, int]
    setting: Setting
    parts: tuple[Part, ...]
    work: Work
    compiled: Compiled
    estimate: Estimate | None
    decode: Decode | None = None
    price: float | None = None

    @property
    def fits(self) -> bool:
        """Whether a device holds all that was compiled."""
        return self.compiled.fits and (self.decode is None or self.decode.compiled.fits)

    @property
    def excess_bytes(self) -> int:
        """Memory that a device lacks for the training step; negative where some is left."""
        return self.compiled.memory.peak - self.compiled.memory.limit

    def to_json(self) -> dict[str, Any]:
        """Returns it as plain data for `json.dumps`: bytes, seconds, FLOPs and USD, as the attributes say."""
        return dataclasses.asdict(self) | {"chips": Topology(self.topology, self.slices).num_chips, "fits": self.fits}


def advice(plan: Plan) -> list[str]:
    """Returns what would help a training step that does not fit, what changes least first.

    Args:
        plan: that does not fit.
    """
    memory, setting = plan.compiled.memory, plan.setting
    devices = plan.mesh["fsdp"] * plan.mesh["tensor"]
    spread = plan.mesh["data"]
    found = []
    if recomputed := [part for part, policy in setting.remat if policy != "full"]:
        found.append(f"recompute more in the backward pass: remat = 'full' for {', '.join(recomputed)}")
    ways = plan.mesh.get("dcn", 1) * spread * plan.mesh["fsdp"]
    rows = plan.work.rows // (ways * setting.accumulate)
    if rows > 1:
        now = f"a device holds {rows} rows at a time now"
        found.append(f"more micro-batches: OptimizerConfig.accumulate above {setting.accumulate}; {now}")
    if spread > 1:
        weights = sum(p.weight_bytes + p.optimizer_bytes for p in plan.parts)
        saved = weights / devices - weights / (devices * spread)
        fsdp = plan.mesh["fsdp"] * spread
        found.append(f"share parameters over more devices: MeshConfig.fsdp = {fsdp} saves {gib(saved)} a device")
    frozen = sum(p.weight_bytes for p in plan.parts if not p.trained and p.dtype == "bfloat16")
    if frozen:
        found.append(f"TrainConfig.frozen_dtype = 'int8' saves up to {gib(frozen / 2 / devices)} a device")
    if memory.arguments < memory.limit:
        found.append("a smaller BATCH_SIZE, or shorter texts (TASK_FEATURE_LENGTHS)")
    found.append("a slice of more chips, or a type of TPU with more memory a chip (v5p, tpu7x)")
    return found


def gib(size: float) -> str:
    """Returns bytes as GiB (2^30 bytes) for people."""
    return f"{size / 2**30:.2f} GiB"
