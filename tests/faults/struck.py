"""The run that the harness strikes: a small one, in processes of their own, with all that the command `train` puts
around the loop and that needs no TensorFlow: signals, the folder's lock, exit statuses, processes that meet.
"""

import argparse
import contextlib
import hashlib
import json
import os
import sys
import time
import types
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tests.faults.run import Subject
from tests.training import processes, small
from vadapter.base import exit_codes, signals, storage_errors, trees
from vadapter.base.evaluator import EvalResult
from vadapter.cli import main
from vadapter.partitioning import hosts
from vadapter.runs import lock
from vadapter.training import checkpoints, freezing, initialize, loop

STEPS = 12
PAUSE = 0.01  # seconds before a batch, so that a run lasts long enough to be struck everywhere


class Evaluation:
    """A number of all parameters, so that it differs where one of them does."""

    name, every_steps = "val", 4

    def __call__(self, params: Any) -> EvalResult:
        return EvalResult(
            {"loss": float(sum(np.abs(np.asarray(x, np.float64)).sum() for x in jax.tree.leaves(params)))}
        )


def run(folder: str, report: str, every: int, keep: int) -> int:
    """Trains, and writes what came out of it. Returns the exit status, as `vadapter.cli.train` does."""

    def command(args: argparse.Namespace) -> int:
        del args
        with signals.Signals(own_process=True) as told:
            print("The process has begun.", flush=True)
            status = _train(folder, report, every, keep)
            told.leave(status)
            return status

    module: Any = types.ModuleType("struck_command", "Trains.")
    module.add_arguments, module.run = lambda parser: None, command
    sys.modules["struck_command"] = module
    main.COMMANDS = (main.Command("go", "goes", "struck_command"),)
    return main.main(["go"])


def _train(folder: str, report: str, every: int, keep: int) -> int:
    hosts.start(hosts.HostsConfig(initialization_timeout=int(os.environ.get("PATIENCE", 60))))
    if jax.process_count() > 1:  # a process's program is that of its own devices
        jax.config.update("jax_enable_compilation_cache", False)
    partitioner = small.partitioner(data=jax.device_count())
    settings = loop.TrainConfig(
        steps=STEPS,
        trainable=("adapter/.*", "head/.*"),
        optimizer=small.optimizer(),
        log_every=1,
        checkpoint_every=every,
        keep_checkpoints=keep,
        tensorboard=False,
    )
    with contextlib.ExitStack() as stack:
        stack.enter_context(storage_errors.told_once())
        if jax.process_index() == 0:
            stack.enter_context(lock.held(folder))
        model = small.Model()
        program = settings.program(model, small.batch(0), small.objective(model), partitioner)
        start = initialize.begin(program, folder, lambda: (small.params(placed=partitioner), []))
        rows = processes.batches_of(partitioner)

        def batches(step: int) -> Any:
            for batch in rows(step):
                time.sleep(PAUSE)
                yield batch

        parts: dict[str, Any] = {"program": program, "start": start, "evaluators": [Evaluation()]}
        result = loop.train(settings, batches=batches, model_dir=folder, **parts)
        if result.interrupted:
            return 128 + result.signal if result.signal else exit_codes.STOPPED
        _report(program, result, folder, report)
    return exit_codes.DONE


def _report(program: Any, result: loop.TrainResult, folder: str, report: str) -> None:
    """Writes hashes of the parameters in memory, and of all that the newest checkpoint gives to who reads it."""
    step = checkpoints.newest(folder)
    assert step is not None
    with checkpoints.Checkpointer(folder, read_only=True) as checkpointer:
        state = program.restore(checkpointer, step)
    found = {
        "memory": trees.flatten(result.params),
        "params": trees.flatten(state.params),
        "optimizer": freezing.named_leaves(state.opt_state),
        "step": {"step": state.step},
    }
    hashes = {f"{kind}/{path}": hash_of(x) for kind, tree in found.items() for path, x in tree.items()}
    if jax.process_index() == 0:
        Path(report).write_text(json.dumps(hashes))


def hash_of(x: Any) -> str:
    """Tells apart arrays that differ in a bit."""
    array = np.asarray(x)
    assert array.dtype != object, "it was not read"
    return f"{array.dtype} {array.shape} {hashlib.sha256(array.tobytes()).hexdigest()}"


SUBJECT = Subject("a small loop", STEPS, run, None, disk=1536 << 10)
