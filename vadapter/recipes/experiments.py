"""Experiments as gin files describe them: what gin may bind, and the objects that it makes."""

from collections.abc import Sequence

import gin

from vadapter.base import trees
from vadapter.base.errors import UserError
from vadapter.benchmarks.table import benchmark_split
from vadapter.benchmarks.tasks import benchmark_task
from vadapter.data import tasks
from vadapter.data.order.config import LoaderConfig, PackingConfig
from vadapter.data.reading.tfds import tfds_task
from vadapter.data.rows import preprocessors
from vadapter.data.scenes.config import ScenesConfig
from vadapter.data.scenes.scenes_tasks import scenes_task
from vadapter.generation.config import DecodingConfig
from vadapter.models import classifier, variants, vlm  # noqa: F401  so that the shipped configurations are registered
from vadapter.models.configuration import REGISTRY
from vadapter.models.losses import ObjectiveConfig
from vadapter.partitioning import MeshConfig, hosts
from vadapter.recipes import gin_front as config
from vadapter.recipes import settings
from vadapter.runs.experiment import Evaluation, Experiment
from vadapter.runs.handoff import Handoff
from vadapter.runs.tiny_lm import PLANNED, prompt_length, prompt_rest
from vadapter.training import best, loop, optimizers, wandb_writer
from vadapter.training.sources import Source

# What a plan needs no value of: folders and files of data and weights, which it never opens.
_UNOPENED = ("_DIR", "_RUN", "_WEIGHTS", "_JSONL", "_FILES", "MIXTURE_OR_TASK_NAME", "VOCABULARY")
_NO_EXPERIMENT = (
    "No experiment was given. Name one or more gin files, such as --gin_file=experiments/scenes_stage1.gin; "
    "the shipped ones are listed in docs/gin.md."
)


def register() -> None:
    """Makes everything that experiments bind known to gin: our own, and what modules of a user have registered."""
    config.register(
        [Experiment, Evaluation, LoaderConfig, PackingConfig, ScenesConfig],
        [MeshConfig, hosts.HostsConfig, DecodingConfig],
        REGISTRY,
        [
            loop.TrainConfig,
            best.BestConfig,
            wandb_writer.WandbConfig,
            ObjectiveConfig,
            optimizers.OptimizerConfig,
            Source,
            Handoff,
            prompt_length,
            prompt_rest,
        ],
        [variants.encoder, variants.decoder, scenes_task, tasks.jsonl_task, tasks.pairs_task, tasks.chat_task],
        [benchmark_task, benchmark_split, tasks.add_mixture, tfds_task],
        preprocessors.REGISTRY,
    )


def made() -> Experiment:
    """Makes the experiment that gin was given.

    Raises:
        UserError: no file was given that describes one.
    """
    if not gin.config_str().strip():
        raise UserError(_NO_EXPERIMENT)
    return config.make("Experiment")


def checked(
    gin_files: Sequence[str],
    bindings: Sequence[str] = (),
    search_paths: Sequence[str] = (),
    swept: Sequence[str] = (),
) -> str:
    """Checks what files and bindings say, as far as it can be known without opening data or weights.

    Args:
        gin_files: of an experiment.
        bindings: `NAME=VALUE` each, over the files.
        search_paths: more folders to look for gin files in.
        swept: names that the experiment must have.

    Returns:
        All that is configured, as gin.

    Raises:
        UserError: as `config.parse_gin`; no file was given; or the experiment does not use a name of `swept`.
    """
    if not gin_files:
        raise UserError(_NO_EXPERIMENT)
    register()
    statements = config.parse_gin(gin_files, bindings, search_paths)
    known = [setting.name for setting in settings.of_run(statements)] if swept else []
    for name in swept:
        if name not in known:
            raise UserError(
                f"The experiment of {', '.join(gin_files)} does not use {name}, so all its values would train the "
                f"same; the nearest are: {', '.join(trees.nearest(name, known))}. Correct the name, or sweep over it "
                "in other arms only: --over ARM:NAME=VALUES."
            )
    return config.config_text()


def unopened(gin_files: Sequence[str], bindings: Sequence[str] = (), search_paths: Sequence[str] = ()) -> Experiment:
    """Makes an experiment without opening data or weights; their places need no values.

    Args:
        gin_files: of the experiment.
        bindings: `NAME=VALUE` each, over the files.
        search_paths: more folders to look for gin files in.

    Raises:
        UserError: as `config.parse_gin`; or something else is left to the user.
    """
    if not gin_files:
        raise UserError(_NO_EXPERIMENT)
    register()
    # The task functions open their data when they are called, and evaluations read more: neither is part of a step.
    given = [*bindings, f"MIXTURE_OR_TASK_NAME = {PLANNED!r}", "EVALUATIONS = []"]
    try:
        config.parse_gin(gin_files, given, search_paths)
    except UserError:
        lines = (line.partition(" = ") for line in gin.config_str(max_line_length=10_000).splitlines())
        required = [name for name, _, value in lines if value == "%gin.REQUIRED"]
        if not required or not all(name.endswith(_UNOPENED) for name in required):
            raise
        config.parse_gin(gin_files, [*given, *(f"{name} = {PLANNED!r}" for name in required)], search_paths)
    return made()
