"""Metrics of the steps between two logs."""

import time

import jax

from vadapter.models import flops as flops_lib

_IN_FLIGHT = 2  # steps that may wait for the device; more would only hold batches in its memory


class Window:
    """Metrics of the steps since the last log: on the device until `close`.

    Args:
        shares: parts of the global batch, of which `add` counts this process's (`Partitioner.host_share`).
    """

    def __init__(self, shares: int = 1) -> None:
        self.shares = shares
        self.reset()

    def reset(self) -> None:
        """Begins anew."""
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

    def is_idle(self) -> bool:
        """Whether the device has done all steps that it was given, so that it waits too."""
        return not self.metrics or self.metrics[-1]["loss"].is_ready()

    def close(self, last_step: int) -> tuple[dict[str, float], list[tuple[int, dict[str, float]]]]:
        """Waits for the device.

        Returns:
            Means over the targets, the norms of the last step that was not skipped, and speeds; and each step's number
            and metrics. Steps that were skipped count in no mean; where all were, there is no loss.
        """
        means = ("loss", "accuracy", "z_loss", *(["tiny_loss"] if "tiny_loss" in self.metrics[0] else []))
        per_step = (*means, "weights", "grad_norm", "skipped")
        columns = jax.device_get([{k: m[k] for k in per_step} for m in self.metrics])
        seconds = time.perf_counter() - self.started
        made = [i for i, row in enumerate(columns) if not row["skipped"]]
        values = {k: float(v) for k, v in jax.device_get(self.metrics[made[-1] if made else -1]).items()}
        del values["skipped"]
        if not made:
            values = {k: values[k] for k in ("param_norm", "learning_rate")}
        weights = sum(float(columns[i]["weights"]) for i in made)
        for name in means if made else ():
            values[name] = sum(float(columns[i][name] * columns[i]["weights"]) for i in made) / max(weights, 1e-6)
        values["weights"] = weights / max(len(made), 1)
        speeds = {"steps_per_s": len(columns), "examples_per_s": self.examples, "tokens_per_s": self.tokens}
        values |= {name: amount / seconds for name, amount in speeds.items()}
        if self.flops:
            values["tflops_per_s"] = self.flops / seconds / 1e12
            if peak := flops_lib.peak_flops(jax.devices()[0].device_kind):
                values["mfu"] = self.flops / seconds / (peak * jax.device_count())
        first = last_step - len(columns) + 1
        return values, [(first + i, {k: float(v) for k, v in row.items()}) for i, row in enumerate(columns)]
