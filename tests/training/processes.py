"""Runs of several processes on this machine: `run_processes` starts them, and as a program this file is one of them.

python -m tests.training.processes CHECKS FOLDER runs the checks of that name and writes FOLDER/CHECKS-<process>.json.
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
    flags = [f"--xla_force_host_platform_device_count={devices // count}", "--xla_backend_optimization_level=0"]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": " ".join([*flags, "--xla_llvm_disable_expensive_passes=true"]),
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


class Dies(Exception):
    pass


def batches_of(partitioner: Any, dies_at: int | None = None, terminated_at: int | None = None) -> Any:
    """This process's rows of the small data."""
    from tests.training import small

    share, shares = partitioner.host_share

    def batches(start: int) -> Any:
        step = start
        while True:
            if step == dies_at:
                raise Dies
            if step == terminated_at:
                os.kill(os.getpid(), signal.SIGTERM)
            rows = small.batch(step)
            local = len(rows["y"]) // shares
            yield {name: x[share * local : (share + 1) * local] for name, x in rows.items()}
            step += 1

    return batches


def train(
    folder: Path | str,
    dies_at: int | None = None,
    terminated_at: int | None = None,
    steps: int = STEPS,
    devices: int | None = None,
    **mesh: int,
) -> Any:
    """Trains the small model on so many devices (default all), or until it dies."""
    import jax

    from tests.training import small
    from vadapter.partitioning import MeshConfig, Partitioner, make_mesh
    from vadapter.training import loop

    partitioner = Partitioner(make_mesh(MeshConfig(**mesh), jax.devices()[:devices]))
    config = loop.TrainConfig(
        steps=steps,
        trainable=("adapter/.*", "head/.*"),
        optimizer=small.optimizer(),
        log_every=1 if steps == STEPS else steps,
        checkpoint_every=2 if steps == STEPS else 0,
        tensorboard=False,
    )
    try:
        return loop.train(
            config,
            objective=small.objective(small.Model()),
            params=small.params(placed=partitioner),
            partitioner=partitioner,
            batches=batches_of(partitioner, dies_at, terminated_at),
            model_dir=str(folder),
        )
    except Dies:
        return None


def two(folder: Path) -> dict[str, Any]:
    """Checks of two processes with two devices each."""
    import jax
    import numpy as np

    from vadapter.evaluation import evaluators
    from vadapter.partitioning import MeshConfig, Partitioner, make_mesh

    train(folder / "cut", dies_at=5, data=2, fsdp=2)
    train(folder / "tensor", dies_at=3, data=1, tensor=4)
    train(folder / "slices", dies_at=3, slices=2, fsdp=2)
    first = jax.process_index() == 0
    taken = train(folder / "taken", terminated_at=None if first else 2, steps=1_000_000, data=2, fsdp=2)

    partitioner = Partitioner(make_mesh(MeshConfig(data=2, fsdp=2)))
    rows = next(batches_of(partitioner)(0))
    out = jax.jit(lambda batch: batch["y"], out_shardings=partitioner.batch_sharding)(partitioner.put_batch(rows))
    mine = evaluators.local_rows(out)
    np.testing.assert_array_equal(mine, rows["y"])
    records = evaluators.gather_records([{"x": row.tolist()} for row in rows["x"]])
    return {
        "share": partitioner.host_share,
        "rows": rows["x"].tolist(),
        "gathered": [record["x"] for record in records],
        "taken": {"step": taken.step, "interrupted": taken.interrupted},
    }


def four(folder: Path) -> dict[str, Any]:
    """Goes on with a run that another number of processes began."""
    train(folder / "cut", data=2, fsdp=2)
    return {}


if __name__ == "__main__":
    from vadapter.partitioning import hosts

    hosts.start(hosts.HostsConfig(initialization_timeout=60))
    import jax

    name, place = sys.argv[1], Path(sys.argv[2])
    found = {"two": two, "four": four}[name](place)
    (place / f"{name}-{jax.process_index()}.json").write_text(json.dumps(found))
