"""Ridge regression from sums, and the file that keeps its result."""

import json
import os
import zipfile
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np


class RidgeFit:
    """Fits `wanted = states @ kernel + bias` from sums, so that the positions need not be in memory together.

    Args:
        inputs: width of the states.
        outputs: width of what is wanted.
        penalty: on the squares of the kernel.
    """

    def __init__(self, inputs: int, outputs: int, penalty: float):
        self._penalty = penalty
        self._count, self._energy = 0, 0.0
        self._x, self._y = np.zeros(inputs), np.zeros(outputs)
        self._xx, self._xy = np.zeros((inputs, inputs)), np.zeros((inputs, outputs))
        self._held_out: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, states: np.ndarray, wanted: np.ndarray, held_out: np.ndarray) -> None:
        """Adds positions.

        Args:
            states: f32 [n, inputs].
            wanted: f32 [n, outputs].
            held_out: bool [n]; positions where it is true measure the fit only.
        """
        self._held_out.append((states[held_out], wanted[held_out]))
        x, y = states[~held_out].astype(np.float64), wanted[~held_out].astype(np.float64)
        self._count += len(x)
        self._energy += float(np.square(x).sum())
        self._x += x.sum(0)
        self._y += y.sum(0)
        self._xx += x.T @ x
        self._xy += x.T @ y

    def solve(self) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
        """Solves for the fit. Some positions must be held out, and some not.

        Returns:
            Kernel, f32 [inputs, outputs]; bias, f32 [outputs]; and figures: `positions` that were fitted, `r2` on those
            held out, and `constant_share`, the share of the states' energy (sum of squares) that is in their mean.
        """
        x, y = self._x / self._count, self._y / self._count
        xx = self._xx - self._count * np.outer(x, x)
        kernel = np.linalg.solve(xx + self._penalty * np.eye(len(x)), self._xy - self._count * np.outer(x, y))
        bias = y - x @ kernel
        states, wanted = (np.concatenate(parts) for parts in zip(*self._held_out, strict=True))
        around = np.square(wanted - wanted.mean(0)).sum()
        r2 = 1 - np.square(wanted - (states @ kernel + bias)).sum() / max(around, 1e-12)
        share = self._count * np.square(x).sum() / max(self._energy, 1e-12)
        facts = {"positions": self._count, "r2": round(float(r2), 4), "constant_share": round(float(share), 4)}
        return kernel.astype(np.float32), bias.astype(np.float32), facts


def of_first_process(kernel: np.ndarray, bias: np.ndarray, facts: dict[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    """Returns a fit as the first process has it, on all processes: sums may differ in the last bit between machines."""
    if jax.process_count() == 1:
        return kernel, bias, facts
    from jax.experimental import multihost_utils

    return (*map(np.asarray, multihost_utils.broadcast_one_to_all((kernel, bias))), facts)


def load(cache: str | None) -> tuple[np.ndarray, np.ndarray, dict[str, Any]] | None:
    """Returns kernel, bias and figures that `store` wrote; None where there are none, or no file is named."""
    # Processes that look at a file at different times would part; so the cache serves runs of one process.
    if cache is None or jax.process_count() > 1 or not os.path.exists(cache):
        return None
    try:
        with np.load(cache, allow_pickle=False) as found:
            return found["kernel"], found["bias"], {**json.loads(str(found["facts"])), "cached": True}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):  # cut off: it is made again
        return None


def store(cache: str | None, kernel: np.ndarray, bias: np.ndarray, facts: Mapping[str, Any]) -> None:
    """Writes a fit to a file, which is there when it is complete, or not at all."""
    if cache is None or jax.process_count() > 1:
        return
    try:
        os.makedirs(os.path.dirname(cache), exist_ok=True)
        part = f"{cache}.{os.getpid()}.part"
        with open(part, "wb") as file:
            np.savez(file, kernel=kernel, bias=bias, facts=np.asarray(json.dumps(facts)))
        os.replace(part, cache)
    except OSError:  # a folder that may not be written to: the next run computes it again
        return
