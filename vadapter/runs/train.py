"""Trains an experiment: the parts are made, the parameters are found, the loop runs."""

from collections.abc import Callable

import jax

from vadapter.base import buckets
from vadapter.base.host_memory import keep_freed_memory
from vadapter.runs import described, description
from vadapter.runs.experiment import Experiment, Parts, data_info
from vadapter.runs.warm_start import warm_start
from vadapter.training import initialize, loop


def train(experiment: Experiment, *, accepted: Callable[[str], None] | None = None) -> loop.TrainResult:
    """Trains an experiment. A run that was stopped goes on where it was.

    Writes into `model_dir` what `training.loop.train` writes, and `model.json`.

    Args:
        experiment: what to train.
        accepted: is called with `model_dir`, in the first process only, when everything is made and nothing was
            refused: the moment to keep one's own record of the run.
    """
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
        if accepted is not None:
            accepted(experiment.model_dir)
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
