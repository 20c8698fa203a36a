"""One run: an arm trained at one rate from one seed, evaluated on the way, and its line of results."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import models
import numpy as np
import programs
import rows as rows_lib
from bench import Bench, initial_state
from clock import say

from vadapter.base import trees
from vadapter.generation.config import EMPTY

POINTS = 5  # evaluations of a run, but for the early ones


def points(steps: int, chosen: Sequence[int] | None) -> list[int]:
    """Returns the steps after which a run is evaluated: the chosen ones, or a few early ones and then evenly."""
    if chosen is not None:
        return sorted({*(s for s in chosen if s < steps), steps})
    if steps < POINTS:
        return [0, steps]
    early = [s for s in (20, 40) if s < steps]
    return sorted({0, *early, *(round(steps * (i + 1) / POINTS) for i in range(POINTS))})


def losses_of(bench: Bench, sums: Any) -> dict[str, float]:
    """Returns the mean loss (nats a target) of each evaluation set, and the accuracy on the test set."""
    loss, weight, correct = (np.asarray(x, np.float64) for x in sums)
    at, found = 0, {}
    for name, members in bench.sets.items():
        part = slice(at, at := at + len(members) // bench.sizes.chunk)
        found[name] = float(loss[part].sum() / weight[part].sum())
        if name == "test":
            found["test_accuracy"] = float(correct[part].sum() / weight[part].sum())
    return found


def run(
    bench: Bench, arm: str, seed: int, rate: float, steps: int, own: Mapping[str, Any], facts: Mapping[str, Any]
) -> Any:
    """Trains one arm and writes its line. Nothing waits for the device before the last step.

    Returns:
        The line, and what was trained (`{slash path: array}`).
    """
    begin = time.perf_counter()
    kind = bench.built[models.KIND_OF[arm]]
    state, frozen = initial_state(bench, kind, own, rate, steps)
    put = bench.partitioner.replicated
    whole = jax.device_put(bench.whole, put)
    train = bench.pictures.sets["train"]
    if arm != "stage1":
        train = rows_lib.some(train, seed, bench.facts["stage2_pictures"])
    drawn = rows_lib.order(train, seed, steps, bench.sizes.batch)
    at, evaluated, logged = points(steps, bench.evaluate), {}, []
    for step in range(steps + 1):
        if step in at:
            evaluated[step] = kind.evaluate(state.params, frozen, kind.rows, bench.pixels, whole, whole)
        if step < steps:
            index = jax.device_put(drawn[step], put)
            state, metrics = kind.train(state, frozen, kind.take(kind.rows, bench.pixels, index, index))
            logged.append((metrics["loss"], metrics["grad_norm"]))
    # Other pictures of the same set: each set is turned by half.
    other = np.concatenate([np.roll(x, len(x) // 2) for x in bench.sets.values()]).reshape(bench.whole.shape)
    shuffled = kind.evaluate(state.params, frozen, kind.rows, bench.pixels, whole, jax.device_put(other, put))
    ids = kind.generate and kind.generate(state.params, frozen, kind.prompts, bench.pixels, whole)
    curve = {step: losses_of(bench, sums) for step, sums in evaluated.items()}
    logged = np.asarray(jax.device_get(logged), np.float64)
    final = curve[steps]
    line = {
        "kind": "stage1" if arm == "stage1" else "stage2",
        "arm": arm,
        "seed": seed,
        "rate": rate,
        "steps": steps,
        "trained_parameters": kind.parameters,
        "seconds": time.perf_counter() - begin,
        "first_loss": logged[0, 0],
        "first_grad_norm": logged[0, 1],
        "train_loss": [round(float(x), 4) for x in logged[:, 0]],
        "curve": {str(step): {n: round(x, 5) for n, x in found.items()} for step, found in curve.items()},
        "final": final,
        "reliance": {n: x - final[n] for n, x in losses_of(bench, shuffled).items() if n in bench.sets},
        **({} if ids is None else captions(bench, kind, np.asarray(ids).reshape(-1, bench.sizes.new_ids))),
        **facts,
    }
    bench.write(line)
    say(
        f"{arm} seed {seed} rate {rate:g}: validation {final['validation']:.3f}, test {final['test']:.3f}, "
        f"reliance {line['reliance']['test']:.3f}, {line['seconds']:.1f} s"
    )
    return line, trees.flatten(state.params)


def captions(bench: Bench, kind: programs.Kind, ids: np.ndarray) -> dict[str, Any]:
    """Returns the share of exact captions in each set, and the ids of those of the test set."""
    at, exact, kept = 0, {}, {}
    for name, members in bench.sets.items():
        rows = [[int(i) for i in row if i != EMPTY] for row in ids[at : at + len(members)]]
        wanted = [bench.pictures.records[i]["ids"][kind.text][:-1] for i in members]
        exact[name] = sum(a == b for a, b in zip(rows, wanted, strict=True)) / len(members)
        if name == "test":
            kept[name] = rows
        at += len(members)
    return {"exact": exact, "captions": kept}
