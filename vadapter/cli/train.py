"""Trains one stage, as gin files describe it. The same command resumes a run that was stopped.

vadapter train --gin_file=experiments/scenes_stage1.gin --gin.MODEL_DIR='"runs/stage1"'

With a bundle, what is trained starts from it instead of at random:

vadapter train --bundle=owl --gin_file=experiments/own_stage2.gin --gin.MODEL_DIR='"runs/more"'
"""

import argparse
from typing import TYPE_CHECKING

from vadapter.cli.config import add_gin_arguments, parse_gin_arguments, save_config

if TYPE_CHECKING:
    from vadapter.cli.experiment import Experiment
    from vadapter.training.loop import TrainResult

_TOLD_TO_STOP = 143  # a shell's status of what SIGTERM ended: whoever watches starts it again


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("--bundle", metavar="DIR", help="start from what this bundle has (sets Experiment.bundle)")
    add_gin_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Trains, evaluates and writes MODEL_DIR. Returns the exit status: 0, or 143 when told to stop before the end."""
    from vadapter.cli import experiment, processes

    experiment.register()
    if args.bundle:
        args.gin_bindings.append(f"Experiment.bundle={args.bundle!r}")
    parse_gin_arguments(args)
    processes.join()
    result = train(processes.first_process_first(experiment.configured))
    return _TOLD_TO_STOP if result.interrupted else 0


def train(experiment: "Experiment") -> "TrainResult":
    """Runs an experiment whose gin configuration is the current one; used by `vadapter demo` too.

    Writes into `model_dir` what `training.loop.train` writes, `config.gin`, `model.json`, and the predictions of the
    last evaluation.
    """
    import jax

    from vadapter import buckets
    from vadapter.cli import described
    from vadapter.cli.experiment import Parts, data_info
    from vadapter.cli.host_memory import keep_freed_memory
    from vadapter.cli.warm_start import warm_start
    from vadapter.training import initialize, loop
    from vadapter.weights import description

    buckets.check(experiment.model_dir)
    if jax.default_backend() == "cpu":
        keep_freed_memory()
    parts = Parts(experiment)
    evaluators, loader = parts.evaluators(), parts.loader
    params, references = initialize.initial_params(
        parts.model,
        parts.example,
        jax.random.key(experiment.seed),
        parts.partitioner,
        trainable=experiment.train.trainable,
        sources=experiment.sources,
        model_dir=experiment.model_dir,
        frozen_dtype=experiment.train.frozen_dtype,
    )
    if experiment.bundle:
        params, start = warm_start(params, references, experiment)
        references.append(start)
    if jax.process_index() == 0:
        save_config(experiment.model_dir)
        description.save(experiment.model_dir, described.describe(experiment))
    return loop.train(
        experiment.train,
        objective=parts.objective,
        params=params,
        partitioner=parts.partitioner,
        batches=loader.batches,
        model_dir=experiment.model_dir,
        evaluators=evaluators,
        references=references,
        data_info=data_info(experiment),
        flops=parts.flops(),
    )
