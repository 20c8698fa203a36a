"""Trains an experiment of vadapter by big_vision.

python -m big_vision.trainers.proj.paligemma.train --workdir runs/stage1 --config \
  "vadapter/contrib/big_vision/config.py:gin_file=experiments/scenes_stage1.gin; gin.DATA_DIR='scenes'; \
  gin.ENCODER_WEIGHTS='runs/vit'; gin.TINY_WEIGHTS='runs/tiny'"

Model, data, first values, evaluations, and what is trained are the experiment's, and its MODEL_DIR is the workdir. The
loop, the schedule and the loss are big_vision's: its loss is the mean over rows of each row's mean.
"""

import json
import re
from typing import Any

import jax
import ml_collections

from vadapter.base import trees
from vadapter.base.errors import UserError
from vadapter.contrib import big_vision, launch
from vadapter.models.serialization import to_json
from vadapter.runs.experiment import Evaluation, Parts
from vadapter.training.loop import TrainConfig
from vadapter.training.optimizers import OptimizerConfig, decay_mask


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Returns the configuration for big_vision.

    Args:
        arg: the experiment, as `launch.experiment_of` takes it.

    Raises:
        UserError: as there, or the experiment has an optimizer that big_vision does not have.
    """
    big_vision.register()
    experiment = launch.experiment_of(arg, "")
    model = launch.check(experiment, "big_vision")
    parts = Parts(experiment)
    steps = experiment.train.steps
    with jax.transfer_guard("allow"):  # big_vision disallows transfers that nobody wrote down
        updates = _updates(experiment.train.optimizer, parts)
    config: dict[str, Any] = {
        "seed": experiment.seed,
        "total_steps": steps,
        "log_training_steps": experiment.train.log_every,
        "ckpt_steps": experiment.train.checkpoint_every or steps,
        "input": {
            "batch_size": experiment.data.batch_size,
            "data": {"name": "bv:vadapter", "experiment": arg},
            "pp": "",
        },
        "pp_modules": [],
        "model_name": "vadapter",
        "model": {"config": json.dumps(to_json(model))},
        "model_init": {"experiment": arg},
        "mesh": [("data", -1)],
        "sharding_strategy": [(".*", "replicate")],
        "sharding_rules": [("act_batch", "data")],
        "evals": {each.name: _evaluated(each, arg, experiment.train) for each in experiment.evaluations},
        **updates,
    }
    return ml_collections.ConfigDict(config)


def _updates(config: OptimizerConfig, parts: Parts) -> dict[str, Any]:
    if config.name != "adamw":
        raise UserError(f"OptimizerConfig.name is {config.name!r}; under big_vision it is 'adamw'. Change it.")
    schedule: dict[str, Any] = {"decay_type": {"constant": "linear"}.get(config.schedule, config.schedule)}
    if config.schedule == "constant":
        schedule["linear_end"] = 1.0
    schedule["warmup_steps"] = config.warmup_steps
    decayed = trees.flatten(decay_mask(config, parts.program.abstract_params[0]))
    return {
        "optax_name": "scale_by_adam",
        "optax": {"b1": config.b1, "b2": config.b2, "eps": config.eps, "mu_dtype": "float32"},
        "lr": config.learning_rate,
        "lr_mults": [(pattern, factor) for pattern, factor in config.lr_multipliers] or None,
        # big_vision's decay is not multiplied by the learning rate, ours is.
        "wd": config.weight_decay * config.learning_rate or None,
        "wd_mults": [(_any(path for path, decays in decayed.items() if decays), 1.0), (".*", 0.0)],
        "grad_clip_norm": config.clip_norm,
        "schedule": [(_any(parts.program.storage.trained), schedule), (".*", None)],
    }


def _evaluated(evaluation: Evaluation, experiment: str, train: TrainConfig) -> dict[str, Any]:
    """When big_vision evaluates: at the end in any case, and not before the first step."""
    every = train.eval_every if evaluation.every_steps is None else evaluation.every_steps
    return {
        "type": "vadapter",
        "experiment": experiment,
        "evaluation": evaluation.name,
        "pred": "logits",  # big_vision wants one to be named
        "prefix": "",
        "log_steps": every or train.steps,
        "skip_first": True,
    }


def _any(paths: Any) -> str:
    return "|".join(map(re.escape, sorted(paths)))
