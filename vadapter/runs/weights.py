"""Which weights a run starts from, said by part of the model: for use from Python."""

import os
from collections.abc import Mapping

import jax

from vadapter.base import trees
from vadapter.base.errors import UserError
from vadapter.models.configuration import ModelConfig
from vadapter.training import initialize
from vadapter.training.program import Program
from vadapter.training.sources import Reference, Source

Weights = Mapping[str, str | os.PathLike[str]]


def sources(model: ModelConfig, weights: Weights, stage1: str | os.PathLike[str] | None = None) -> tuple[Source, ...]:
    """Returns the sources of a run.

    Args:
        model: configuration of the run's model.
        weights: of a part of the model, such as `encoder` or `decoder`, the folder that has it: imported weights, or
            the MODEL_DIR of a run.
        stage1: MODEL_DIR of a stage 1, whose decoder and map go into the adapter as its `stage1_rules` say.

    Raises:
        UserError: the model has no such part, or an adapter that takes nothing of stage 1.
    """
    if unknown := sorted(set(weights) - set(model.parts)):
        raise UserError(
            f"weights names the part {unknown[0]!r}; the model's parts are {', '.join(model.parts)}. Correct the name."
        )
    found = [Source(os.fspath(folder), ((f"({part}/.*)", r"\1"),)) for part, folder in weights.items()]
    if stage1 is not None:
        rules = getattr(getattr(model, "adapter", None), "stage1_rules", tuple)()
        if not rules:
            raise UserError(
                "stage1 was given, and the model's adapter takes nothing of it: it has no method stage1_rules, or that "
                "gives no rules. Use an LMAdapterConfig, or leave stage1 out."
            )
        found.append(Source(os.fspath(stage1), rules))
    return tuple(found)


def initial_params(
    program: Program,
    weights: Weights,
    model_dir: str | os.PathLike[str],
    *,
    stage1: str | os.PathLike[str] | None = None,
    seed: int = 0,
) -> tuple[trees.Tree, list[Reference]]:
    """Makes all parameters of a new run: from weights, and at random what they do not have.

    Args:
        program: of the step; it says what is trained and how each parameter is kept.
        weights: see `sources`.
        model_dir: folder of the run, which paths to the weights are recorded relative to.
        stage1: see `sources`.
        seed: of what is random.

    Returns:
        Nested dict of all parameters on the devices, and the record of what was taken, for `save`.

    Raises:
        UserError: a folder has no weights or those of another model, or a frozen parameter comes from none of them.
    """
    taken = sources(program.model.config, weights, stage1)  # pyright: ignore[reportAttributeAccessIssue]
    return initialize.initial_params(
        program, jax.random.key(seed), sources=taken, model_dir=os.fspath(model_dir), say=lambda line: None
    )
