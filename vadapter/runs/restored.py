"""A trained model and an experiment, for evaluation: those of a run, or a bundle and what gin files say."""

import dataclasses
from typing import Any

from vadapter.base.errors import UserError
from vadapter.data import mixture_description
from vadapter.runs import bundled, inference
from vadapter.runs.experiment import Experiment, Parts
from vadapter.training import initialize


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained model.

    Attributes:
        parts: made from the experiment.
        params: all parameters, on the device.
        step: of the checkpoint.
    """

    parts: Parts
    params: Any
    step: int


def of_run(experiment: Experiment, model_dir: str, step: int | None = None) -> Run:
    """Reads the parameters of a run.

    Args:
        experiment: of the run.
        model_dir: its folder.
        step: which checkpoint; default the latest.

    Raises:
        UserError: as `initialize.restore`.
    """
    parts = Parts(experiment)
    restored = initialize.restore(model_dir, parts.abstract, parts.partitioner, step)
    return Run(parts, restored.params, restored.step)


def of_bundle(opened: bundled.Opened, experiment: Experiment) -> Run:
    """Reads a bundle as the model of an experiment.

    Raises:
        UserError: the experiment's data have another vocabulary than the bundle, or as `bundled.Opened.params`.
    """
    bundle = opened.bundle
    text, found = bundle.description.text, mixture_description.describe(experiment.data.mixture)
    if text and found.get("sha256") != text.sha256:
        raise UserError(
            f"The bundle {bundle.folder} was trained with a vocabulary whose sha256 is {text.sha256}; the data that "
            f"the gin files describe have {found.get('sha256', 'no text')}. Give them the bundle's vocabulary "
            f"({text.vocabulary or 'the shipped one'}, relative to the bundle)."
        )
    model = inference.runnable(bundle.description.model)
    parts = Parts(dataclasses.replace(experiment, model=model))
    return Run(parts, opened.params(parts.abstract, parts.partitioner), bundle.step)
