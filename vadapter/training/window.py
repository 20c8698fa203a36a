"""Metrics of the steps between two logs."""

import math
import time
from collections.abc import Mapping
from typing import Any

import jax

from vadapter.base.errors import UserError
from vadapter.models import flops as flops_lib

_IN_FLIGHT = 2  # steps that may wait for the device; more would only hold batches in its memory


class Window:
    """Metrics of the steps since the last log: on the device until `close`.

    Args:
        shares: parts of the global batch, of which `add` counts this process's (`Partitioner.host_share`).
    """

    def __init__(self, shares: int = 1) -> None:
        self.shares = shares
        self.metrics: list[dict[str, jax.Array]] = []
        self.examples = self.tokens = 0
        self.flops = 0.0
        self.started = time.perf_counter()

    def add(self, metrics: dict[str, jax.Array], counts: flops_lib.Counts, flops: float) -> None:
        self.metrics.append(metrics)
        self.examples += counts.examples * self.shares
        self.tokens += counts.tokens * self.shares
        self.flops += flops * self.shares
        if len(self.metrics) > _IN_FLIGHT:
            self.metrics[-1 - _IN_FLIGHT]["loss"].block_until_ready()

    def close(self, last_step: int) -> dict[str, float]:
        """Waits for the device; returns means over the targets, the last step's norms, and speeds."""
        per_step = ("loss", "accuracy", "z_loss", "weights", "grad_norm")
        columns = jax.device_get([{k: m[k] for k in per_step} for m in self.metrics])
        for i, row in enumerate(columns):
            _check_finite(row, last_step - len(columns) + 1 + i)
        seconds = time.perf_counter() - self.started
        values = {k: float(v) for k, v in jax.device_get(self.metrics[-1]).items()}
        weights = sum(float(row["weights"]) for row in columns)
        for name in ("loss", "accuracy", "z_loss"):
            values[name] = sum(float(row[name] * row["weights"]) for row in columns) / max(weights, 1e-6)
        values["weights"] = weights / len(columns)
        speeds = {"steps_per_s": len(columns), "examples_per_s": self.examples, "tokens_per_s": self.tokens}
        values |= {name: amount / seconds for name, amount in speeds.items()}
        if self.flops:
            values["tflops_per_s"] = self.flops / seconds / 1e12
            if peak := flops_lib.peak_flops(jax.devices()[0].device_kind):
                values["mfu"] = self.flops / seconds / (peak * jax.device_count())
        return values


def _check_finite(row: Mapping[str, Any], step: int) -> None:
    for name in ("loss", "grad_norm"):
        if not math.isfinite(row[name]):
            raise UserError(
                f"The {name} of step {step} is {float(row[name])}, expected a finite number. Nothing was saved after "
                "it: the latest checkpoint is from before. Lower the learning rate, set OptimizerConfig.clip_norm, or "
                "look at the data of that step."
            )
