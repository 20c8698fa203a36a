"""What does saving cost a training: time of the loop, and memory that stays?

python benchmarks/checkpointing.py
python benchmarks/checkpointing.py --megabytes=1000 --rounds=9

A loop of updates of a state of the asked size runs in pairs of rounds, one with a save at its beginning and one
without, in turns. The difference is what a save costs, whichever thread pays for it; over a minute it is the share that
a save a minute takes. Then a small state is saved many times, and the resident memory is read on the way.
"""

import argparse
import json
import statistics
import tempfile
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vadapter.base import versions
from vadapter.training.checkpoints import Checkpointer
from vadapter.training.state import TrainState

LEAVES = 40
MINUTE = 60.0


def make_state(megabytes: float) -> TrainState:
    """Parameters and two moments, f32 of random numbers: they compress as badly as trained ones."""
    width = 256
    rows = max(1, int(megabytes * 1e6 / 3 / 4 / LEAVES / width))
    rng = np.random.default_rng(0)

    def tree() -> dict[str, Any]:
        return {f"layer{i}": jnp.asarray(rng.normal(size=(rows, width)).astype(np.float32)) for i in range(LEAVES)}

    return TrainState(jnp.zeros((), jnp.int32), {"adapter": tree()}, ({"mu": tree(), "nu": tree()},))


@jax.jit
def compute(x: jax.Array) -> jax.Array:
    """The work of a step beside its update."""
    return jax.lax.fori_loop(0, 20, lambda _, y: jnp.tanh(y @ y), x)


def update(state: TrainState) -> TrainState:
    """Writes every number of the state anew, in place as the real step does."""
    state = jax.tree.map(lambda x: x * 0.999 if jnp.issubdtype(x.dtype, jnp.floating) else x + 1, state)
    return state


step = jax.jit(update, donate_argnums=0)


class Times(NamedTuple):
    """Of a round: seconds that passed, and those of all processors, which other programs do not change much."""

    wall: float
    cpu: float


def run_round(state: TrainState, steps: int, checkpointer: Checkpointer | None) -> tuple[TrainState, Times, float]:
    """Returns the state, what the round took, and the seconds in which `save` held up the loop."""
    x, held_up = jnp.ones((512, 512)) / 512, 0.0
    started, cpu = time.perf_counter(), time.process_time()
    for i in range(steps):
        state = step(state)
        jax.block_until_ready((state, compute(x)))
        if i == 0 and checkpointer is not None:
            before = time.perf_counter()
            checkpointer.save(state, {})
            held_up = time.perf_counter() - before
    if checkpointer is not None:
        checkpointer.wait()
    return state, Times(time.perf_counter() - started, time.process_time() - cpu), held_up


def measure_time(megabytes: float, rounds: int, seconds: float) -> dict[str, Any]:
    """Pairs of rounds with and without a save."""
    state = make_state(megabytes)
    state, _, _ = run_round(state, 3, None)  # compiles
    state, took, _ = run_round(state, 5, None)
    steps = max(5, round(seconds / (took.wall / 5)))
    pairs, held = [], []
    with tempfile.TemporaryDirectory() as folder, Checkpointer(folder) as checkpointer:
        state, _, _ = run_round(state, 3, checkpointer)  # the first save compiles its check
        for i in range(rounds):
            times: dict[bool, Times] = {}
            for saves in (True, False) if i % 2 else (False, True):
                state, times[saves], held_up = run_round(state, steps, checkpointer if saves else None)
                held += [held_up] if saves else []
            pairs.append(times)
    costs = [times[True].wall - times[False].wall for times in pairs]
    work = [times[True].cpu - times[False].cpu for times in pairs]
    return {
        "megabytes": sum(x.nbytes for x in jax.tree.leaves(state)) / 1e6,
        "rounds": rounds,
        "seconds_of_a_round": statistics.median(times[False].wall for times in pairs),
        "ratio_of_a_round": statistics.median(times[True].wall / times[False].wall for times in pairs),
        "seconds_per_save": statistics.median(costs),
        "seconds_per_save_all": [round(cost, 3) for cost in costs],
        "cpu_seconds_per_save": statistics.median(work),
        "seconds_held_up": statistics.median(held),
        "share_at_a_save_a_minute": statistics.median(costs) / MINUTE,
    }


def resident() -> int:
    """Resident memory of this process, bytes."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmRSS"))


def measure_memory(saves: int) -> dict[str, Any]:
    """Resident memory after the first fifth of some saves, and after the last."""
    state = make_state(1.4)
    with tempfile.TemporaryDirectory() as folder, Checkpointer(folder) as checkpointer:
        found = []
        for _ in range(saves):
            state = step(state)
            checkpointer.save(state, {})
            checkpointer.wait()
            found.append(resident())
    first = found[max(0, saves // 5 - 1)]
    growth = (found[-1] - first) / max(1, saves - saves // 5)
    return {"saves": saves, "megabytes_at_first": first / 1e6, "megabytes_per_save": growth / 1e6}


def main() -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=100, help="of the state (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="pairs of rounds (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=6, help="length of a round, about (default: %(default)s)")
    parser.add_argument("--saves", type=int, default=100, help="of the measurement of memory (default: %(default)s)")
    args = parser.parse_args()
    found = {
        "question": "What does saving cost a training?",
        "time": measure_time(args.megabytes, args.rounds, args.seconds),
        "memory": measure_memory(args.saves),
        **versions.machine(),
    }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
