"""What does a training step of each adapter of the demo cost, beside the perceiver's?

python benchmarks/adapter_steps.py --data_dir=demo/data --steps=20

Steps of the adapters are timed in turn (one of each, round after round), so that the machine's mood falls on all alike.
The figure is the ratio of medians to the perceiver's; parameters are random, which costs the same.
"""

import argparse
import json
import platform
import statistics
import time

ADAPTERS = ("perceiver", "paper", "queries", "queries_frozen")


def prepare(name: str, data_dir: str):
    """Returns a function that makes one update and waits for it."""
    import jax

    from vadapter.partitioning import init_params
    from vadapter.recipes import experiments
    from vadapter.recipes.gin_front import parse_gin
    from vadapter.runs import experiment

    experiments.register()
    runs = [f"{run}='unused'" for run in ("MODEL_DIR", "ENCODER_WEIGHTS", "LARGE_WEIGHTS", "STAGE1_RUN")]
    text = [b for b in runs if not (b.startswith("STAGE1") and name == "perceiver")]
    parse_gin([f"experiments/scenes_{name}.gin"], [*text, f"DATA_DIR={data_dir!r}", "SCENES_TASK='scenes_images'"])
    config = experiments.made()
    parts = experiment.Parts(config)
    params = init_params(parts.model, parts.example, jax.random.key(0), parts.partitioner)
    current, frozen = parts.program.start(params)
    batch = parts.program.put(next(parts.loader.batches(0)))

    def update() -> None:
        nonlocal current
        current, _ = parts.program.step(current, frozen, batch)
        jax.block_until_ready(current)

    update()  # compiles
    return update


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", default="demo/data", help="where the scenes are or will be written")
    parser.add_argument("--steps", type=int, default=20, help="rounds")
    args = parser.parse_args()
    import jax

    updates = {name: prepare(name, args.data_dir) for name in ADAPTERS}
    seconds: dict[str, list[float]] = {name: [] for name in ADAPTERS}
    for _ in range(args.steps):
        for name, update in updates.items():
            start = time.perf_counter()
            update()
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    ratios = {name: round(x / medians["perceiver"], 3) for name, x in medians.items()}
    device = f"{jax.devices()[0].device_kind} x {jax.device_count()}, {platform.machine()}"
    print(
        json.dumps(
            {"question": "step time over the perceiver's", "ratios": ratios, "device": device, "jax": jax.__version__}
        )
    )


if __name__ == "__main__":
    main()
