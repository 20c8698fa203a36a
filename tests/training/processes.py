"""Runs of several processes on this machine: `run_processes` starts them, and as a program this file is one of them.

python -m tests.training.processes FOLDER runs the checks of two or of four processes, as many as there are, and writes
FOLDER/found-<process>.json.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
STEPS = 10
LIMIT = 400  # seconds; a process that takes longer hangs


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_processes(count: int, arguments: list[str], devices: int = 4, status: int = 0) -> list[str]:
    """Runs `python -m ARGUMENTS` in so many processes with `devices` among them; returns what each printed."""
    ours = f"--xla_force_host_platform_device_count={devices // count}"
    flags = [*(x for x in os.environ["XLA_FLAGS"].split() if x.split("=")[0] != ours.split("=")[0]), ours]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": " ".join(flags),
        "JAX_ENABLE_COMPILATION_CACHE": "false",  # a process's program is that of its own devices
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}",
        "JAX_NUM_PROCESSES": str(count),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    started = [
        subprocess.Popen(
            [sys.executable, "-m", *arguments],
            env=environment | {"JAX_PROCESS_ID": str(i)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
        )
        for i in range(count)
    ]
    try:
        printed = [process.communicate(timeout=LIMIT)[0] for process in started]
    except subprocess.TimeoutExpired:
        for process in started:
            process.kill()
        everything = "\n".join(f"--- process {i}\n{p.communicate()[0]}" for i, p in enumerate(started))
        raise AssertionError(f"{arguments} did not end within {LIMIT} s:\n{everything}") from None
    found = [process.returncode for process in started]
    assert found == [status] * count, "\n".join(
        f"--- process {i}: {x}\n{p}" for i, (x, p) in enumerate(zip(found, printed, strict=True))
    )
    return printed


def command(folder: Path, name: str) -> list[str]:
    """Trains a language model on the text of the scenes, with the real loader and evaluation, into FOLDER/NAME."""
    return [
        "train",
        "--gin_file=experiments/scenes_tiny.gin",
        f"--gin.MODEL_DIR={str(folder / name)!r}",
        f"--gin.DATA_DIR={str(folder / 'data')!r}",
        "--gin.TRAIN_STEPS=2",
        "--gin.BATCH_SIZE=8",
        "--gin.TrainConfig.log_every=1",
        "--gin.TrainConfig.tensorboard=False",
        "--gin.OptimizerConfig.warmup_steps=1",
        "--gin.val/LoaderConfig.eval_limit=12",
        *(f"--gin.ScenesConfig.{split}=16" for split in ("train", "validation", "test", "video_train", "video_eval")),
        *(f"--gin.ScenesConfig.{split}=32" for split in ("text_train", "text_eval")),
    ]


class Dies(Exception):
    pass


class Size:
    """An evaluator whose loss is the size of a kernel: runs with other weights have another one."""

    name, every_steps = "val", None

    def __init__(self, partitioner: Any):
        import jax
        import jax.numpy as jnp

        size = lambda params: jnp.sum(jnp.abs(params["head"]["kernel"]))  # noqa: E731
        self.size = jax.jit(size, out_shardings=partitioner.replicated)

    def __call__(self, params: Any) -> Any:
        from vadapter.base.evaluator import EvalResult

        return EvalResult({"loss": float(self.size(params))})


def batches_of(
    partitioner: Any, dies_at: int | None = None, told_at: int | None = None, number: int = signal.SIGTERM
) -> Any:
    """This process's rows of the small data."""
    from tests.training import small

    share, shares = partitioner.host_share

    def batches(start: int) -> Any:
        step = start
        while True:
            if step == dies_at:
                raise Dies
            if step == told_at:
                os.kill(os.getpid(), number)
            rows = small.batch(step)
            local = len(rows["y"]) // shares
            yield {name: x[share * local : (share + 1) * local] for name, x in rows.items()}
            step += 1

    return batches


def train(
    folder: Path | str,
    dies_at: int | None = None,
    told_at: int | None = None,
    number: int = signal.SIGTERM,
    steps: int = STEPS,
    devices: int | None = None,
    accumulate: int = 1,
    best: bool = False,
    **mesh: int,
) -> Any:
    """Trains the small model on so many devices (default all), or until it dies.

    With `best` the checkpoint of the largest `Size` is kept, and there is a moving average, which is what is measured.
    Training makes it smaller, so the run ends early.
    """
    import jax

    from tests.training import small
    from vadapter.partitioning import MeshConfig, Partitioner, make_mesh
    from vadapter.training import initialize, loop
    from vadapter.training.best import BestConfig

    partitioner = Partitioner(make_mesh(MeshConfig(**mesh), jax.devices()[:devices]))
    config = loop.TrainConfig(
        steps=steps,
        trainable=("adapter/.*", "head/.*"),
        optimizer=small.optimizer(accumulate=accumulate),
        log_every=1 if steps == STEPS else steps,
        checkpoint_every=2 if steps == STEPS else 0,
        tensorboard=False,
        **({"best": BestConfig("val/loss", "max", patience=3), "ema_decay": 0.5, "eval_every": 2} if best else {}),  # type: ignore[arg-type]
    )
    try:
        model = small.Model()
        program = config.program(model, small.batch(0), small.objective(model), partitioner)
        start = initialize.begin(program, str(folder), lambda: (small.params(placed=partitioner), []))
        data = batches_of(partitioner, dies_at, told_at, number)
        evaluators = [Size(partitioner)] if best else []
        return loop.train(
            config, program=program, start=start, batches=data, model_dir=str(folder), evaluators=evaluators
        )
    except Dies:
        return None


def records(**mesh: int) -> dict[str, Any]:
    """What this process reads on such a mesh, and the records of all, of texts that are the rows' classes."""
    import jax

    from vadapter.evaluation.text_evaluator import GenerationEvaluator
    from vadapter.partitioning import MeshConfig, Partitioner, make_mesh

    class Numbers:
        def decode(self, ids: Any) -> str:
            return " ".join(map(str, ids))

    partitioner = Partitioner(make_mesh(MeshConfig(**mesh)))
    share = partitioner.host_share
    batch = next(batches_of(partitioner)(0))
    first = share[0] * len(batch["y"])
    rows = [{"id": first + i, "references": ["0"]} for i in range(len(batch["y"]))]
    generate = jax.jit(lambda params, batch: batch["y"], out_shardings=partitioner.batch_sharding)
    evaluator = GenerationEvaluator(generate, lambda: iter([(batch, rows)]), partitioner.put_batch, Numbers())  # type: ignore[arg-type]
    found = evaluator({}).records
    return {"share": share, "records": [[int(r["id"]), int(r["prediction"])] for r in found]}


def of_two(folder: Path) -> dict[str, Any]:
    """Checks of two processes with two devices each."""
    from vadapter.cli.main import main

    # The command connects the processes.
    settings = ["--gin.HostsConfig.initialization_timeout=120", "--gin.MeshConfig.fsdp=2"]
    assert main([*command(folder, "both"), *settings]) == 0
    assert main(["eval", f"--model_dir={folder / 'both'}", "--num_examples=0"]) == 0
    assert main([*saying(folder), "--mesh=2,2,1"]) == 0

    import jax

    train(folder / "cut", dies_at=5, data=1, tensor=4)
    train(folder / "slices", dies_at=3, accumulate=2, slices=2, fsdp=2)
    train(folder / "kept", best=True, data=2, fsdp=2)
    train(folder / "kept_cut", best=True, dies_at=5, data=2, fsdp=2)
    train(folder / "kept_cut", best=True, data=2, fsdp=2)
    told_at = 2 if jax.process_index() else None
    taken = train(folder / "taken", told_at=told_at, number=signal.SIGINT, steps=1_000_000, data=2, fsdp=2)
    return {
        "data": records(data=2, fsdp=2),
        "tensor": records(data=1, tensor=4),
        "taken": {"step": taken.step, "interrupted": taken.interrupted, "signal": taken.signal},
    }


def of_four(folder: Path) -> dict[str, Any]:
    """Checks of four processes with a device each: the run that two processes left is ended."""
    from vadapter.partitioning import hosts

    hosts.start()
    train(folder / "slices", accumulate=2, data=2, fsdp=2)
    return {"data": records(data=4), "tensor": records(data=2, tensor=2)}


def deaf(folder: Path) -> None:
    """Trains in processes that jax tells nothing of each other's signals."""
    from vadapter.partitioning import hosts
    from vadapter.training import preemption

    hosts.start()
    assert not preemption.can_agree()
    train(folder / "deaf", data=2)


def saying(folder: Path) -> list[str]:
    """Says what the bundle in the folder makes of the picture there."""
    files = [f"--bundle={folder / 'bundle'}", f"--media={folder / 'picture.png'}"]
    return ["infer", *files, "--prompt=<media> a", "--max_new_tokens=4"]


if __name__ == "__main__":
    place = Path(sys.argv[1])
    if sys.argv[2:] == ["deaf"]:
        sys.exit(deaf(place))
    checks = {"2": of_two, "4": of_four}[os.environ["JAX_NUM_PROCESSES"]]
    (place / f"found-{os.environ['JAX_PROCESS_ID']}.json").write_text(json.dumps(checks(place)))
