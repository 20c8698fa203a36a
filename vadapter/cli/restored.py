"""A trained run and the configuration that it was trained with, for eval and infer."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from vadapter.cli import config as gin_front
from vadapter.cli import experiment
from vadapter.errors import UserError
from vadapter.training import checkpoints, initialize


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained run.

    Attributes:
        parts: made from its configuration.
        params: all parameters, on the device.
        step: of the checkpoint.
    """

    parts: experiment.Parts
    params: Any
    step: int


def load(args: argparse.Namespace) -> Run:
    """Reads a run: its `config.gin`, then the files and bindings of the command line, then its parameters.

    Raises:
        UserError: the folder is not a run's, or as `initialize.restore`.
    """
    model_dir, step = checkpoints.locate(args.model_dir, args.step)
    saved = Path(model_dir) / "config.gin"
    if not saved.is_file():
        raise UserError(f"{model_dir} has a checkpoint but no config.gin, which vadapter train writes. Put it back.")
    paths = [path for path in args.gin_search_paths.split(",") if path]
    experiment.register()
    gin_front.parse_gin([str(saved), *args.gin_file], [f"MODEL_DIR={model_dir!r}", *args.gin_bindings], paths)
    parts = experiment.Parts(experiment.configured())
    restored = initialize.restore(model_dir, parts.abstract, parts.partitioner, step)
    return Run(parts, restored.params, step)
