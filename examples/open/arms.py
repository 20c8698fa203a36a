"""Which adapter learns fastest between real models? All arms of `models.py`, rates swept, seeds repeated, one process.

python examples/open/arms.py --data examples/open/data/pack --out runs/open_arms --budget 330

Writes a line of JSON to OUT/results.jsonl when a run ends, the runs that matter most first, and stops when the budget
(seconds from the start of the process) would not last for one more. `--small` runs every arm for two steps.
`benchmarks/open_tables.py` makes a table and a figure of the lines.
"""

import argparse
import dataclasses
import json
import os
import platform
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

START = time.perf_counter()
sys.path.insert(0, str(Path(__file__).parent))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import models  # noqa: E402
import numpy as np  # noqa: E402
import programs  # noqa: E402
import rows as rows_lib  # noqa: E402

from vadapter.base import trees  # noqa: E402
from vadapter.generation.config import EMPTY  # noqa: E402
from vadapter.partitioning import MeshConfig, Partitioner, make_mesh  # noqa: E402
from vadapter.training.state import TrainState  # noqa: E402

ARMS = ("random", "aligned", "ridge", "perceiver", "repaired", "text", "text_ridge", "repaired_frozen", "mlp")
LADDER = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
# Arms that train a whole language model take lower rates than those that train new parameters only.
FIRST_RATES = {"repaired_frozen": (1e-3, 3e-4, 3e-3), "mlp": (1e-3, 3e-4, 3e-3)}
STAGE1_RATE = 3e-4
SEEDS = (0, 1, 2)
RUNS_AN_ARM = 5.4  # three rates, the other seeds, and for some arms a fourth rate
SECONDS_A_RUN = 1.1  # that are not steps: initial values, evaluations, captions
POINTS = 5  # evaluations of a run, but for the early ones


def say(text: str) -> None:
    """Prints a line with the seconds since the start."""
    print(f"[{time.perf_counter() - START:6.1f} s] {text}", flush=True)


@dataclasses.dataclass
class Bench:
    """What all runs share.

    Attributes:
        backbones, pictures, pixels, index, texts, sizes: the pack and the experiment's shapes.
        built: the programs, by name.
        hidden: compiled `models.hidden_states`.
        sets: name and pictures of each evaluation set, as many chunks as `whole` has.
        whole: pictures of an evaluation, [chunks, chunk].
        tiny: the pretrained tiny LM, f32.
        table: scaled embeddings of the pieces that the regression wants, f32 [positions, E].
        held_out: positions of the regression that measure it.
        out: where results go.
        facts: of machine and experiment, for each line.
    """

    backbones: models.Backbones
    pictures: rows_lib.Pictures
    pixels: jax.Array
    index: Mapping[str, Any]
    texts: Mapping[str, np.ndarray]
    sizes: programs.Sizes
    partitioner: Partitioner
    out: Path
    facts: dict[str, Any]
    sets: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    built: dict[str, programs.Program] = dataclasses.field(default_factory=dict)
    tiny: dict[str, jax.Array] = dataclasses.field(default_factory=dict)
    hidden: Any = None
    table: Any = None
    held_out: Any = None
    whole: Any = None

    def write(self, line: Mapping[str, Any]) -> None:
        with (self.out / "results.jsonl").open("a") as file:
            file.write(json.dumps({**line, **self.facts}) + "\n")


def set_up(args: argparse.Namespace) -> Bench:
    """Reads the pack, puts it on the device and compiles everything."""
    index = json.loads((args.data / "index.json").read_text())
    backbones = models.load_backbones(args.data, index)
    say("weights read")
    pictures = rows_lib.load_pictures(args.data)
    sizes = programs.Sizes(1, 1, 2) if args.small else programs.Sizes(args.batch, 100)
    partitioner = Partitioner(make_mesh(MeshConfig(), jax.devices()[:1]))
    device = jax.devices()[0]
    facts = {
        "batch": sizes.batch,
        "image_size": models.IMAGE_SIZE,
        "device": device.device_kind,
        "platform": device.platform,
        "jax": jax.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "small": args.small,
    }
    texts = {name: x for name, x in np.load(args.data / "texts.npz").items()}
    if args.small:
        texts = _few(texts, 20)
    texts["tokens"] = np.pad(texts["tokens"], ((0, -len(texts["tokens"]) % 20), (0, 0)))
    put = partitioner.replicated
    bench = Bench(
        backbones, pictures, jax.device_put(pictures.pixels, put), index, texts, sizes, partitioner, args.out, facts
    )
    for name in rows_lib.SETS:
        bench.sets[name] = pictures.sets[name][: sizes.chunk] if args.small else pictures.sets[name]
    bench.whole = np.concatenate(list(bench.sets.values())).reshape(-1, sizes.chunk)
    compile_all(bench)
    say(f"compiled {len(bench.built)} programs")
    return bench


def _few(texts: Mapping[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    keep = texts["text"] < count
    return {"tokens": texts["tokens"][:count], **{n: texts[n][keep] for n in ("text", "slot", "piece")}}


def compile_all(bench: Bench) -> None:
    """Puts the backbones on the device and compiles the programs."""
    put = bench.partitioner.replicated
    on_device = {
        part: {p: jax.device_put(x, put) for p, x in bench.backbones.params[part].items()}
        for part in ("encoder", "tiny", "large")
    }
    bench.tiny = {p: x.astype(jnp.float32) for p, x in on_device["tiny"].items()}
    large = on_device["large"]
    scale = jnp.asarray(bench.backbones.large.width**0.5, jnp.bfloat16)  # rounded, as the decoder does
    bench.table = np.asarray((large["embedder/embedding"][bench.texts["piece"]] * scale).astype(jnp.float32))
    bench.held_out = bench.texts["text"] % 10 == 0
    encoder = {f"encoder/{p}": x for p, x in on_device["encoder"].items()}
    decoder = {f"decoder/{p}": x for p, x in large.items()}
    compiler = programs.Compiler(bench.partitioner)
    prefix = len(bench.index["prompts"]["smollm2"]["before"])
    for name in dict.fromkeys(models.PROGRAM_OF.values()):
        model = models.model_of(name, bench.backbones, prefix)
        frozen = encoder if name == "stage1" else {**encoder, **decoder}
        bench.built[name] = programs.build(
            name,
            model,
            frozen,
            bench.pictures,
            bench.pixels,
            bench.index,
            bench.sizes,
            len(bench.whole),
            compiler,
            bench.partitioner,
        )
    picked = jax.ShapeDtypeStruct((bench.sizes.batch,), np.int32)
    for program in bench.built.values():
        compiler.add(program, "take", rows_lib.batch_of, program.rows, bench.pixels, picked, picked)

    def hidden(tiny: Any, texts: Any) -> Any:
        return models.hidden_states(bench.backbones.tiny, tiny, texts, 20)

    texts = {n: bench.texts[n] for n in ("tokens", "text", "slot")}
    compiler.add(bench, "hidden", hidden, trees.unflatten(bench.tiny), texts)
    say("lowered; compiling")
    failed = [p.name for p in compiler.finish() if p is not bench]
    bench.built = {name: program for name, program in bench.built.items() if name not in failed}
    if bench.facts["small"] and failed:
        raise RuntimeError(f"not compiled: {failed}")


def regression(bench: Bench, tiny: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """Fits the map from a tiny LM's hidden states to the large LM's embeddings."""
    texts = {n: jax.device_put(bench.texts[n], bench.partitioner.replicated) for n in ("tokens", "text", "slot")}
    states = np.asarray(bench.hidden(trees.unflatten(dict(tiny)), texts))
    return models.ridge(states, bench.table, bench.held_out)


def initial_state(bench: Bench, program: programs.Program, own: Mapping[str, Any], rate: float, steps: int) -> Any:
    """Returns the state of step 0 and the frozen tree."""
    put = bench.partitioner.replicated
    params, opt_state = program.begin(trees.unflatten({p: jax.device_put(own[p], put) for p in program.trained}))
    opt_state = {
        **opt_state,
        "peak": jax.device_put(jnp.float32(rate), put),
        "steps": jax.device_put(jnp.float32(steps), put),
    }
    rest = {p: x.astype(jnp.bfloat16) for p, x in own.items() if p not in program.trained}
    return TrainState(jax.device_put(jnp.int32(0), put), params, opt_state), trees.unflatten({**program.frozen, **rest})


def points(steps: int) -> list[int]:
    """Returns the steps after which a run is evaluated: a few early ones, then evenly."""
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
    program = bench.built[models.PROGRAM_OF[arm]]
    state, frozen = initial_state(bench, program, own, rate, steps)
    put = bench.partitioner.replicated
    whole = jax.device_put(bench.whole, put)
    drawn = rows_lib.order(bench.pictures.sets["train"], seed, steps, bench.sizes.batch)
    at, evaluated, logged = points(steps), {}, []
    for step in range(steps + 1):
        if step in at:
            evaluated[step] = program.evaluate(state.params, frozen, program.rows, bench.pixels, whole, whole)
        if step < steps:
            index = jax.device_put(drawn[step], put)
            state, metrics = program.train(state, frozen, program.take(program.rows, bench.pixels, index, index))
            logged.append((metrics["loss"], metrics["grad_norm"]))
    # Other pictures of the same set: each set is turned by half.
    other = np.concatenate([np.roll(x, len(x) // 2) for x in bench.sets.values()]).reshape(bench.whole.shape)
    shuffled = program.evaluate(state.params, frozen, program.rows, bench.pixels, whole, jax.device_put(other, put))
    ids = program.generate and program.generate(state.params, frozen, program.prompts, bench.pixels, whole)
    curve = {step: losses_of(bench, sums) for step, sums in evaluated.items()}
    logged = np.asarray(jax.device_get(logged), np.float64)
    final = curve[steps]
    line = {
        "kind": "stage1" if arm == "stage1" else "stage2",
        "arm": arm,
        "seed": seed,
        "rate": rate,
        "steps": steps,
        "trained_parameters": program.parameters,
        "seconds": time.perf_counter() - begin,
        "first_loss": logged[0, 0],
        "first_grad_norm": logged[0, 1],
        "train_loss": [round(float(x), 4) for x in logged[:, 0]],
        "curve": {str(step): {n: round(x, 5) for n, x in found.items()} for step, found in curve.items()},
        "final": final,
        "reliance": {n: x - final[n] for n, x in losses_of(bench, shuffled).items() if n in bench.sets},
        **({} if ids is None else captions(bench, program, np.asarray(ids).reshape(-1, bench.sizes.new_ids))),
        **facts,
    }
    bench.write(line)
    say(
        f"{arm} seed {seed} rate {rate:g}: validation {final['validation']:.3f}, test {final['test']:.3f}, "
        f"reliance {line['reliance']['test']:.3f}, {line['seconds']:.1f} s"
    )
    return line, trees.flatten(state.params)


def captions(bench: Bench, program: programs.Program, ids: np.ndarray) -> dict[str, Any]:
    """Returns the share of exact captions in each set, and the ids of those of the test set and of the new hand."""
    at, exact, kept = 0, {}, {}
    for name, members in bench.sets.items():
        rows = [[int(i) for i in row if i != EMPTY] for row in ids[at : at + len(members)]]
        wanted = [bench.pictures.records[i]["ids"][program.text][:-1] for i in members]
        exact[name] = sum(a == b for a, b in zip(rows, wanted, strict=True)) / len(members)
        if name != "validation":
            kept[name] = rows
        at += len(members)
    return {"exact": exact, "captions": kept}


class Starts:
    """Initial values of the arms of a seed; stage 1 and the regressions are made when first needed."""

    def __init__(self, bench: Bench, steps: int):
        self._bench, self._steps = bench, steps
        self._stage1: dict[int, Any] = {}
        self._text: Any = None

    def stage1(self, seed: int) -> tuple[dict[str, Any], Any]:
        """Returns what stage 1 of a seed trained, and the regression of its LM."""
        if seed not in self._stage1:
            own = dict(self._made("stage1", seed))
            own |= {f"decoder/{p}": x for p, x in self._bench.tiny.items()}
            _, trained = run(self._bench, "stage1", seed, STAGE1_RATE, self._steps, own, {})
            tiny = {p.removeprefix("decoder/"): x for p, x in trained.items() if p.startswith("decoder/")}
            begin = time.perf_counter()
            fitted = regression(self._bench, tiny)
            say(f"regression of seed {seed}: {fitted[2]}, {time.perf_counter() - begin:.1f} s")
            self._stage1[seed] = trained, fitted
        return self._stage1[seed]

    def _made(self, program: str, seed: int) -> dict[str, Any]:
        return self._bench.built[models.STARTS_AS.get(program, program)].make(jax.random.key(seed))

    def of(self, arm: str, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns the initial values of an arm, and facts for its line."""
        bench, name = self._bench, models.PROGRAM_OF[arm]
        program, maker = bench.built[name], bench.built[models.STARTS_AS.get(name, name)]
        needs_stage1 = arm in ("aligned", "ridge", "repaired", "repaired_frozen")
        stage1, fitted = self.stage1(seed) if needs_stage1 else (None, None)
        if arm == "text_ridge" and self._text is None:
            self._text = regression(bench, bench.tiny)
            say(f"regression of the pretrained tiny LM: {self._text[2]}")
        given = {
            "tiny": bench.tiny,
            "ridge": fitted and fitted[:2],
            "text_ridge": self._text and self._text[:2],
            "prompt": bench.index["prompts"]["smollm2"]["before"],
        }
        own = models.start(arm, self._made(name, seed), given, stage1)
        if maker.places is not None:
            encoder = {p: x for p, x in program.frozen.items() if p.startswith("encoder/")}
            put = bench.partitioner.replicated
            own["adapter/queries"] = maker.places({p: jax.device_put(x, put) for p, x in own.items()}, encoder)
        fact = {"text_ridge": self._text, "ridge": fitted, "repaired": fitted, "repaired_frozen": fitted}.get(arm)
        return own, dict(fact[2]) if fact else {}


def seconds_a_step(bench: Bench, starts: Starts) -> dict[str, float]:
    """Times a few steps of each program, with anything for values."""
    times = {}
    # A rehearsal times one program only.
    for name, program in list(bench.built.items())[: 1 if bench.facts["small"] else None]:
        own = dict(starts._made(name, 0))
        if name == "stage1":
            own |= {f"decoder/{p}": x for p, x in bench.tiny.items()}
        state, frozen = initial_state(bench, program, own, 0.0, 10)
        index = jax.device_put(np.zeros(bench.sizes.batch, np.int32), bench.partitioner.replicated)
        batch = program.take(program.rows, bench.pixels, index, index)
        for warm in (True, False):
            begin, count = time.perf_counter(), 1 if bench.facts["small"] else 2 if warm else 10
            for _ in range(count):
                state, metrics = program.train(state, frozen, batch)
            jax.block_until_ready(metrics)
            times[name] = (time.perf_counter() - begin) / count
    return times


def plan_steps(times: Mapping[str, float], left: float, most: int) -> int:
    """Returns how many steps a run can have so that all runs fit in the seconds that are left."""
    a_step = sum(RUNS_AN_ARM * times.get(models.PROGRAM_OF[arm], 0.0) for arm in ARMS)
    a_step += len(SEEDS) * times.get("stage1", 0.0)
    runs = RUNS_AN_ARM * len(ARMS) + len(SEEDS)
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
    left = args.budget - (time.perf_counter() - START)
    steps = 2 if args.small else plan_steps(timed, left, args.steps)
    bench.facts |= {"seconds_a_step": {n: round(t, 5) for n, t in timed.items()}, "planned_steps": steps}
    say(f"seconds a step {bench.facts['seconds_a_step']}; {steps} steps a run, {left:.0f} s left")
    starts = Starts(bench, steps)
    done: dict[str, dict[float, float]] = {arm: {} for arm in ARMS}

    def affordable(arm: str) -> bool:
        need = steps * timed.get(models.PROGRAM_OF[arm], 0.0) * 1.1 + 2
        return args.small or time.perf_counter() - START + need < args.budget

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
        if seed == SEEDS[0]:
            done[arm][rate] = line["final"]["validation"]

    for turn in range(1 if args.small else 3):
        for arm in ARMS:
            one(arm, SEEDS[0], FIRST_RATES.get(arm, (3e-4, 1e-4, 1e-3))[turn])
    if not args.small:
        for arm in ARMS:
            if rate := further(done[arm]):
                one(arm, SEEDS[0], rate)
    best = {arm: min(found, key=found.__getitem__) for arm, found in done.items() if found}
    for seed in SEEDS[1:2] if args.small else SEEDS[1:]:
        for arm in ("ridge",) if args.small else best:
            one(arm, seed, best[arm])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="a pack, as prepare.py makes it")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--budget", type=float, default=330.0, help="seconds (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=400, help="of a run at most (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--small", action="store_true", help="two steps of each arm")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    say(f"{jax.devices()}, {os.cpu_count()} CPUs")
    bench = set_up(args)
    experiment(bench, args)
    say("done")


if __name__ == "__main__":
    main()
