"""The record of what a run trains: `model.json` of its folder."""

import dataclasses
from typing import TYPE_CHECKING, Any

from vadapter.base.paths import absolute, relative
from vadapter.runs.description import Description, Text
from vadapter.runs.experiment import Experiment

if TYPE_CHECKING:
    from vadapter.training.optimizers import OptimizerConfig


def describe(experiment: Experiment) -> Description:
    """Returns all that has to be known to use the model of an experiment. Its tasks are registered by now."""
    from vadapter.data import mixture_description

    found = mixture_description.describe(experiment.data.mixture)
    resize, steps = found.pop("resize"), found.pop("preprocessors")
    text = None
    if found:
        path = found.pop("vocabulary")
        path = relative(absolute(path), experiment.model_dir) if path else ""
        text = Text(vocabulary=path, lengths=dict(experiment.data.lengths), **found)
    return Description(
        model=experiment.model,
        text=text,
        resize=resize,
        frozen_dtype=experiment.train.frozen_dtype,
        training={**_training(experiment), "preprocessors": steps},
    )


def _training(experiment: Experiment) -> dict[str, Any]:
    data, train = experiment.data, experiment.train
    return {
        "steps": train.steps,
        "mixture": data.mixture,
        "split": data.split,
        "batch_size": data.batch_size,
        "seed": experiment.seed,
        "trainable": list(train.trainable),
        "optimizer": _plain(train.optimizer),
        "objective": dataclasses.asdict(experiment.objective),
    }


def _plain(config: "OptimizerConfig") -> dict[str, Any]:
    """The settings that are set: tuples become lists in JSON."""
    return {name: value for name, value in dataclasses.asdict(config).items() if value not in (None, ())}
