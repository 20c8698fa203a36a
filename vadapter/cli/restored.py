"""A trained model and an experiment, for evaluation: those of a run, or a bundle and what gin files say."""

import argparse
import dataclasses
from typing import Any

from etils import epath

from vadapter.cli import bundled, experiment, inference, processes
from vadapter.cli import config as gin_front
from vadapter.data import description as data
from vadapter.errors import UserError
from vadapter.training import checkpoints, initialize


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained model.

    Attributes:
        parts: made from the experiment.
        params: all parameters, on the device.
        step: of the checkpoint.
    """

    parts: experiment.Parts
    params: Any
    step: int


def load(args: argparse.Namespace) -> Run:
    """Reads a run: its `config.gin`, then the files and bindings of the command line, then its parameters.

    In a run of many processes it connects them.

    Raises:
        UserError: the folder is not a run's, or as `initialize.restore` and `processes.join`.
    """
    model_dir, step = checkpoints.locate(args.model_dir, args.step)
    saved = epath.Path(model_dir) / "config.gin"
    if not saved.is_file():
        raise UserError(f"{model_dir} has a checkpoint but no config.gin, which vadapter train writes. Put it back.")
    paths = [path for path in args.gin_search_paths.split(",") if path]
    experiment.register()
    gin_front.parse_gin([str(saved), *args.gin_file], [f"MODEL_DIR={model_dir!r}", *args.gin_bindings], paths)
    processes.join()
    parts = experiment.Parts(processes.first_process_first(experiment.configured))
    restored = initialize.restore(model_dir, parts.abstract, parts.partitioner, step)
    return Run(parts, restored.params, step)


def load_bundle(opened: bundled.Opened, args: argparse.Namespace) -> Run:
    """Reads a bundle as the model of the experiment that the command line gives.

    In a run of many processes it connects them.

    Raises:
        UserError: the experiment's data have another vocabulary than the bundle, or as `bundled.Opened.params` and
            `processes.join`.
    """
    experiment.register()
    gin_front.parse_gin_arguments(args)
    processes.join()
    configured = processes.first_process_first(experiment.configured)
    bundle = opened.bundle
    text, found = bundle.description.text, data.describe(configured.data.mixture)
    if text and found.get("sha256") != text.sha256:
        raise UserError(
            f"The bundle {bundle.folder} was trained with a vocabulary whose sha256 is {text.sha256}; the data that "
            f"the gin files describe have {found.get('sha256', 'no text')}. Give them the bundle's vocabulary "
            f"({text.vocabulary or 'the shipped one'}, relative to the bundle)."
        )
    model = inference.runnable(bundle.description.model)
    parts = experiment.Parts(dataclasses.replace(configured, model=model))
    return Run(parts, opened.params(parts.abstract, parts.partitioner), bundle.step)
