"""Trains an experiment: the parts are made, the parameters are found, the loop runs."""

from collections.abc import Callable
from typing import Any

import jax
from etils import epath

from vadapter.base import buckets
from vadapter.base.host_memory import keep_freed_memory
from vadapter.runs import bundle, description, warm_start
from vadapter.runs.experiment import Experiment, Parts, data_info
from vadapter.training import initialize, loop
from vadapter.training.sources import Reference


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

    def fresh() -> tuple[Any, list[Reference]]:
        params, references = initialize.initial_params(
            parts.program,
            jax.random.key(experiment.seed),
            sources=experiment.sources,
            model_dir=experiment.model_dir,
        )
        if experiment.bundle:
            started_from = bundle.read(experiment.bundle)
            params, record = warm_start.warm_start(
                params, references, started_from, parts.program, experiment.model, experiment.model_dir
            )
            references.append(record)
        return params, references

    start = initialize.begin(
        parts.program,
        experiment.model_dir,
        fresh,
        sources=experiment.sources,
        others=[_bundle(experiment.bundle, experiment.model_dir)] if experiment.bundle else [],
        data_info=data_info(experiment),
    )
    if jax.process_index() == 0:
        if accepted is not None:
            accepted(experiment.model_dir)
        description.save(experiment.model_dir, description.describe(experiment))
    return loop.train(
        experiment.train,
        program=parts.program,
        start=start,
        batches=loader.batches,
        model_dir=experiment.model_dir,
        evaluators=evaluators,
        flops=parts.flops(),
    )


def _bundle(path: str, model_dir: str) -> Reference | None:
    return warm_start.reference(bundle.read(path), model_dir) if epath.Path(path).exists() else None
