"""What a compiled step means in time, FLOP/s and money."""

import dataclasses

from vadapter.planning.calibration import PALIGEMMA, Calibration
from vadapter.planning.programs import Compiled
from vadapter.planning.schedule import KERNEL_SHARE
from vadapter.planning.topologies import Topology

METHOD = (
    "The step time is the TPU compiler's own estimate: its cycles for every operation, bodies of scans times their "
    "trip counts, over the clock of the tensor core; waiting for other devices counts where no computation hides it. "
    f"Hand-written kernels, of which it says nothing, are taken to reach {KERNEL_SHARE:.0%} of the peak, and those of "
    "fused attention what the compiler's schedule of them says. "
    "It leaves out evaluations, checkpoints and waiting for data."
)


@dataclasses.dataclass(frozen=True)
class Work:
    """What one step, and the run, are for.

    Attributes:
        rows: examples of a global batch.
        tokens: text and visual tokens that the decoder reads in a step, no padding counted.
        useful_flops: of a step on all devices, by part: what is needed, counted frozen-aware (frozen parts cost less,
            recomputation does not count).
        steps: of the run.
    """

    rows: int
    tokens: int
    useful_flops: dict[str, float]
    steps: int

    @property
    def total_flops(self) -> float:
        """Useful FLOPs of a step, of all parts."""
        return sum(self.useful_flops.values())


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Times in seconds of one step; rates at the compiler's estimate. `calibrated_*` are divided by the factor.

    Attributes:
        step_seconds: by the compiler.
        calibrated_seconds: as a step of the calibration would take that the compiler estimates so.
        compute_seconds: the least that the compiled FLOPs take, at the chip's peak.
        memory_seconds: the least that reading and writing HBM takes, at its full bandwidth.
        communication_seconds: the least that the exchange between devices takes, at the full bandwidth of the links.
        by_kind: the compiler's estimate by kind of operation; they add up to `step_seconds`.
        mfu: useful FLOPs over what the chips could do in the step, 0..1.
        calibrated_mfu: likewise.
        tokens_per_s_per_chip: of the decoder's tokens.
        calibrated_tokens_per_s_per_chip: likewise.
        hours: of the whole run.
        calibrated_hours: likewise.
        cost_usd: of the whole run, None without a price.
        calibrated_cost_usd: likewise.
        factor: of the calibration.
    """

    step_seconds: float
    calibrated_seconds: float
    compute_seconds: float
    memory_seconds: float
    communication_seconds: float
    by_kind: dict[str, float]
    mfu: float
    calibrated_mfu: float
    tokens_per_s_per_chip: float
    calibrated_tokens_per_s_per_chip: float
    hours: float
    calibrated_hours: float
    cost_usd: float | None
    calibrated_cost_usd: float | None
    factor: float

    @property
    def communication_share(self) -> float:
        """Share of the step in which devices only communicate, 0..1."""
        return self.by_kind["collectives"] / self.step_seconds if self.step_seconds else 0.0


def estimate(
    compiled: Compiled,
    topology: Topology,
    work: Work,
    price: float | None = None,
    calibration: Calibration = PALIGEMMA,
) -> Estimate | None:
    """Returns what a compiled training step means, or None if it does not fit.

    Args:
        compiled: the step.
        topology: that it was compiled for.
        work: what the step and the run do.
        price: of a chip, in USD an hour.
        calibration: what the compiler's times are divided by.
    """
    if not compiled.fits:
        return None
    tpu, chips = topology.type, topology.num_chips
    seconds = compiled.cycles.total / tpu.clock_hz
    calibrated = seconds / calibration.factor
    peak = tpu.peak_bf16_flops * topology.num_devices

    def cost(seconds: float) -> float | None:
        return None if price is None else price * chips * work.steps * seconds / 3600

    return Estimate(
        step_seconds=seconds,
        calibrated_seconds=calibrated,
        compute_seconds=compiled.flops / tpu.peak_bf16_flops,
        memory_seconds=compiled.hbm_bytes / tpu.hbm_bytes_per_s,
        communication_seconds=communication_seconds(compiled, topology),
        by_kind={f.name: getattr(compiled.cycles, f.name) / tpu.clock_hz for f in dataclasses.fields(compiled.cycles)},
        mfu=_rate(work.total_flops / peak, seconds),
        calibrated_mfu=_rate(work.total_flops / peak, calibrated),
        tokens_per_s_per_chip=_rate(work.tokens / chips, seconds),
        calibrated_tokens_per_s_per_chip=_rate(work.tokens / chips, calibrated),
        hours=work.steps * seconds / 3600,
        calibrated_hours=work.steps * calibrated / 3600,
        cost_usd=cost(seconds),
        calibrated_cost_usd=cost(calibrated),
        factor=calibration.factor,
    )


def _rate(amount: float, seconds: float) -> float:
    return amount / seconds if seconds else 0.0


def communication_seconds(compiled: Compiled, topology: Topology) -> float:
    """The least time of the exchange: bytes that a device sends, at the full bandwidth of all links that it has.

    What crosses slices goes through the network card that the devices of a host share.
    """
    tpu = topology.type
    links = tpu.ici_bytes_per_s * tpu.ici_links / tpu.devices_per_chip
    across = tpu.dcn_bytes_per_s / (tpu.chips_per_host * tpu.devices_per_chip)
    return sum(c.bytes / (across if "dcn" in c.axes else links) for c in compiled.collectives)
