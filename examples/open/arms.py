"""Which adapter learns fastest between real models? All arms of `models.py`, rates swept, seeds repeated, one process.

python examples/open/arms.py --data examples/open/data/pack --out runs/open_arms --budget 330

Writes a line of JSON to OUT/results.jsonl when a run ends, the runs that matter most first, and stops when the budget
(seconds from the start of the process) would not last for one more. `--small` runs every arm for two steps, and
`--arms` some arms only. `--rates` and `--seeds` repeat arms at rates that an earlier run chose, such as
`--arms perceiver --rates 3e-4 --seeds 2 --steps 100 --dtype float32 --accumulate 4` on a CPU, without a budget.
`benchmarks/open_tables.py` makes a table and a figure of the lines.
"""

import argparse
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import clock  # first: it counts the seconds of the other imports too
import jax
import models
import numpy as np
from bench import CHUNK, Bench, initial_state, regression, set_up
from clock import say
from trial import run

from vadapter.base.host_memory import keep_freed_memory

ARMS = (
    *("random", "words", "words_frozen", "perceiver", "random_32", "repaired", "aligned", "ridge", "text_repaired"),
    *("text", "text_ridge", "repaired_frozen", "mlp", "pixel_shuffle", "words_supervised", "words_slow_lm"),
    "text_words",
)
LADDER = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
# Arms that train a whole language model take lower rates than those that train new parameters only.
NEW_ONLY = (1e-3, 3e-4, 3e-3)
FIRST_RATES = dict.fromkeys(("words_frozen", "words_slow_lm", "repaired_frozen", "mlp", "pixel_shuffle"), NEW_ONLY)
STAGE1_RATE = 3e-4
SEEDS = (0, 1, 2)
RUNS_AN_ARM = 5.4  # three rates, the other seeds, and for some arms a fourth rate
SECONDS_A_RUN = 1.1  # that are not steps: initial values, evaluations, captions


class Starts:
    """Initial values of the arms of a seed; stage 1 and the regressions are made when first needed."""

    def __init__(self, bench: Bench, steps: int):
        self._bench, self._steps = bench, steps
        self._stage1: dict[int, Any] = {}
        self._text: Any = None

    def stage1(self, seed: int) -> dict[str, Any]:
        """Returns what stage 1 of a seed trained, from OUT where it was trained before: on a CPU that takes an hour."""
        facts = self._bench.facts
        name = f"stage1_seed{seed}_{self._steps}x{facts['batch']}_{facts['dtype']}.npz"
        kept = self._bench.out / name
        if kept.exists():
            return dict(np.load(kept))
        own = dict(self._made("stage1", seed))
        own |= {f"decoder/{p}": x for p, x in self._bench.tiny.items()}
        _, trained = run(self._bench, "stage1", seed, STAGE1_RATE, self._steps, own, {})
        np.savez(kept, **jax.device_get(trained))
        return trained

    def after_stage1(self, seed: int) -> tuple[dict[str, Any], Any]:
        """Returns what stage 1 of a seed trained, and the regression of its LM."""
        if seed not in self._stage1:
            trained = self.stage1(seed)
            tiny = {p.removeprefix("decoder/"): x for p, x in trained.items() if p.startswith("decoder/")}
            begin = time.perf_counter()
            fitted = regression(self._bench, tiny)
            say(f"regression of seed {seed}: {fitted[2]}, {time.perf_counter() - begin:.1f} s")
            self._stage1[seed] = trained, fitted
        return self._stage1[seed]

    def _made(self, kind: str, seed: int) -> dict[str, Any]:
        return self._bench.built[models.STARTS_AS.get(kind, kind)].make(jax.random.key(seed))

    def of(self, arm: str, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns the initial values of an arm, and facts for its line."""
        bench, name = self._bench, models.KIND_OF[arm]
        kind, maker = bench.built[name], bench.built[models.STARTS_AS.get(name, name)]
        needs_stage1 = arm in models.AFTER_STAGE1
        stage1, fitted = self.after_stage1(seed) if needs_stage1 else (None, None)
        if arm in models.TEXT_REGRESSION and self._text is None:
            self._text = regression(bench, bench.tiny)
            say(f"regression of the pretrained tiny LM: {self._text[2]}")
        given = {
            "tiny": bench.tiny,
            "ridge": fitted and fitted[:2],
            "text_ridge": self._text and self._text[:2],
            "prompt": bench.index["prompts"]["smollm2"],
        }
        own = models.start(arm, self._made(name, seed), given, stage1)
        if maker.places is not None:
            encoder = {p: x for p, x in kind.frozen.items() if p.startswith("encoder/")}
            put = bench.partitioner.replicated
            own[models.QUERIES] = maker.places({p: jax.device_put(x, put) for p, x in own.items()}, encoder)
        fact = self._text if arm in models.TEXT_REGRESSION else fitted if arm != "aligned" else None
        facts = {"stage1_steps": self._steps} if needs_stage1 else {}
        return own, {**facts, **fact[2]} if fact else facts


def seconds_a_step(bench: Bench, starts: Starts) -> dict[str, float]:
    """Times a few steps of each kind of adapter, with anything for values."""
    times = {}
    # A rehearsal times one kind only.
    for name, kind in list(bench.built.items())[: 1 if bench.facts["small"] else None]:
        own = dict(starts._made(name, 0))
        if name == "stage1":
            own |= {f"decoder/{p}": x for p, x in bench.tiny.items()}
        state, frozen = initial_state(bench, kind, own, 0.0, 10)
        index = jax.device_put(np.zeros(bench.sizes.batch, np.int32), bench.partitioner.replicated)
        batch = kind.take(kind.rows, bench.pixels, index, index)
        for warm in (True, False):
            begin, count = time.perf_counter(), 1 if bench.facts["small"] else 2 if warm else 10
            for _ in range(count):
                state, metrics = kind.train(state, frozen, batch)
            jax.block_until_ready(metrics)
            times[name] = (time.perf_counter() - begin) / count
    return times


def plan_steps(times: Mapping[str, float], left: float, most: int, arms: Sequence[str] = ARMS) -> int:
    """Returns how many steps a run can have so that all runs fit in the seconds that are left: 100 at least."""
    a_step = sum(RUNS_AN_ARM * times.get(models.KIND_OF[arm], 0.0) for arm in arms)
    a_step += len(SEEDS) * times.get("stage1", 0.0)
    runs = RUNS_AN_ARM * len(arms) + len(SEEDS)
    steps = int((0.92 * left - SECONDS_A_RUN * runs) / a_step) // 20 * 20
    return max(100, min(most, steps))


def further(found: Mapping[float, float]) -> float | None:
    """Returns the next rate of the ladder where the best of what was tried, `{rate: loss}`, is at its edge."""
    if not found:
        return None
    best = min(found, key=found.__getitem__)
    step = -1 if best == min(found) else 1 if best == max(found) else 0
    at = LADDER.index(best) + step
    return LADDER[at] if step and 0 <= at < len(LADDER) else None


def experiment(bench: Bench, args: argparse.Namespace) -> None:
    """All runs, those that matter most first."""
    timed = seconds_a_step(bench, Starts(bench, 0))
    left = args.budget - clock.seconds()
    steps = 2 if args.small else plan_steps(timed, left, args.steps, args.arms)
    bench.facts |= {"seconds_a_step": {n: round(t, 5) for n, t in timed.items()}, "planned_steps": steps}
    say(f"seconds a step {bench.facts['seconds_a_step']}; {steps} steps a run, {left:.0f} s left")
    starts = Starts(bench, steps)
    done: dict[str, dict[float, float]] = {arm: {} for arm in args.arms}

    def affordable(arm: str) -> bool:
        need = steps * timed.get(models.KIND_OF[arm], 0.0) * 1.1 + 2
        return args.small or clock.seconds() + need < args.budget

    def one(arm: str, seed: int, rate: float) -> None:
        if not affordable(arm):
            say(f"no time left for {arm} seed {seed} rate {rate:g}")
            return
        try:
            own, facts = starts.of(arm, seed)
            line, _ = run(bench, arm, seed, rate, steps, own, facts)
        except Exception as e:  # one arm that fails must not cost the others
            say(f"{arm} seed {seed} rate {rate:g} failed: {type(e).__name__}: {e}")
            if args.small:
                raise
            return
        if seed == args.seeds[0]:
            done[arm][rate] = line["final"]["validation"]

    first, *others = args.seeds
    for turn in range(1 if args.small else 3):
        for arm in args.arms:
            one(arm, first, FIRST_RATES.get(arm, (3e-4, 1e-4, 1e-3))[turn])
    if not args.small:
        for arm in args.arms:
            if rate := further(done[arm]):
                one(arm, first, rate)
    best = {arm: min(found, key=found.__getitem__) for arm, found in done.items() if found}
    for seed in others[:1] if args.small else others:
        for arm in [arm for arm in best if arm == "ridge"] if args.small else best:
            one(arm, seed, best[arm])


def repeat(bench: Bench, args: argparse.Namespace) -> None:
    """Each arm at its given rate, from each seed, whatever time that takes."""
    steps = 2 if args.small else args.steps
    starts = Starts(bench, steps if args.small else args.stage1_steps or steps)
    for seed in args.seeds:
        for arm, rate in zip(args.arms, args.rates, strict=True):
            own, facts = starts.of(arm, seed)
            run(bench, arm, seed, rate, steps, own, facts)


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="a pack, as prepare.py makes it")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--budget", type=float, default=330.0, help="seconds (default: %(default)s)")
    parser.add_argument(
        "--steps", type=int, default=400, help="of a run, at most where rates are swept (default: %(default)s)"
    )
    parser.add_argument("--stage1-steps", type=int, help="of stage 1, with --rates (default: --steps)")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--small", action="store_true", help="two steps of each arm")
    parser.add_argument(
        "--pictures", type=int, help="of the training set, drawn by seed, for stage 2; stage 1 has all (default: all)"
    )
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS, help="to run (default: all)")
    parser.add_argument("--rates", nargs="+", type=float, help="one for each of --arms: no sweep, no budget")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS, help="the first is swept (default: 0 1 2)")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the computation")
    parser.add_argument(
        "--accumulate", type=int, default=1, help="parts of a batch and of an evaluation, where memory is small"
    )
    parser.add_argument(
        "--evaluate", nargs="+", type=int, help="steps of a run to evaluate after, beside the last (default: a few)"
    )
    args = parser.parse_args(given)
    if args.batch % args.accumulate or CHUNK % args.accumulate:
        parser.error(f"--accumulate is {args.accumulate}: it must divide --batch ({args.batch}) and {CHUNK}")
    if args.rates and len(args.rates) != len(args.arms):
        parser.error(f"--rates has {len(args.rates)} rates for {len(args.arms)} arms: give one for each of --arms")
    if args.stage1_steps is not None and (args.stage1_steps < 1 or not args.rates):
        parser.error(f"--stage1-steps is {args.stage1_steps}: give 1 or more, with --rates: a sweep has --steps")
    if args.pictures is not None and args.pictures < 1:
        parser.error(f"--pictures is {args.pictures}: give at least 1")
    if args.evaluate and (wrong := [step for step in args.evaluate if not 0 <= step <= args.steps]):
        parser.error(f"--evaluate has {wrong[0]}: steps are 0 to --steps ({args.steps})")
    return args


def main() -> None:
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    say(f"{jax.devices()}, {os.cpu_count()} CPUs")
    if jax.default_backend() == "cpu":
        keep_freed_memory()
    bench = set_up(args)
    (repeat if args.rates else experiment)(bench, args)
    say("done")


if __name__ == "__main__":
    main()
