"""Optimizers and learning-rate schedules."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vadapter.base import trees
from vadapter.base.array_types import Array
from vadapter.base.errors import UserError

Schedule = Callable[[Any], Array]


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """How parameters are updated. The defaults are the paper's (arXiv 2402.10896, section 4.1).

    Attributes:
        name: `adamw` or `adafactor` (factored second moments, updates scaled by the parameter's own size).
        learning_rate: the highest; for `adafactor` it is relative to the parameter's root mean square.
        b1: decay of the first moment. Adafactor keeps one only if it is above 0.
        b2: decay of AdamW's second moment.
        eps: added to AdamW's denominator.
        weight_decay: times the learning rate, taken off each decayed parameter.
        no_decay: regexes of paths that do not decay. None: those called `bias` or `scale`, and one-dimensional ones.
        schedule: `linear`, `cosine` or `constant` after the warm-up.
        warmup_steps: steps in which the learning rate rises from 1 / warmup_steps of the highest to the highest.
        end_factor: the last learning rate, as a share of the highest.
        clip_norm: gradients of a higher global norm are scaled down to it; None is off.
        accumulate: parts that each batch is computed in, one after the other.
        lr_multipliers: (regex of paths, factor above 0); the first match counts, others have factor 1.
    """

    name: str = "adamw"
    learning_rate: float = 5e-4
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 1e-4
    no_decay: tuple[str, ...] | None = None
    schedule: str = "linear"
    warmup_steps: int = 1000
    end_factor: float = 0.0
    clip_norm: float | None = None
    accumulate: int = 1
    lr_multipliers: tuple[tuple[str, float], ...] = ()


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """An optax transformation and the schedule that is in it."""

    transform: optax.GradientTransformation
    schedule: Schedule


def make_schedule(config: OptimizerConfig, steps: int) -> Schedule:
    """Returns the learning rate of the update made at step 0, 1, ... of `steps`.

    Raises:
        UserError: the schedule is unknown, or the warm-up is not shorter than the run.
    """
    if config.schedule not in ("linear", "cosine", "constant"):
        raise UserError(
            f"OptimizerConfig.schedule is {config.schedule!r}; expected linear, cosine or constant. Change it."
        )
    if not 0 <= config.warmup_steps < steps:
        raise UserError(
            f"The warm-up of {config.warmup_steps} steps must be shorter than the run of {steps} steps. Change "
            "OptimizerConfig.warmup_steps or the number of steps."
        )

    def schedule(step: Any) -> Array:
        step = jnp.asarray(step, jnp.float32)
        warmup = jnp.minimum(1.0, (step + 1) / max(1, config.warmup_steps))
        done = jnp.clip((step - config.warmup_steps) / (steps - config.warmup_steps), 0.0, 1.0)
        shapes = {"linear": 1 - done, "cosine": 0.5 * (1 + jnp.cos(jnp.pi * done)), "constant": jnp.ones(())}
        left = shapes[config.schedule]
        return config.learning_rate * warmup * (config.end_factor + (1 - config.end_factor) * left)

    return schedule


def decay_mask(config: OptimizerConfig, params: trees.Tree) -> dict[str, Any]:
    """Returns a tree of bools: whether the parameter decays.

    Raises:
        UserError: a `no_decay` pattern matches nothing.
    """
    flat = trees.flatten(params)
    if config.no_decay is None:
        # Names as well as dimensions: the scales of scanned layers are [layers, D].
        kept = {p for p, x in flat.items() if x.ndim <= 1 or re.search(r"(^|/)(bias|scale)$", p)}
    else:
        kept = set(trees.match(config.no_decay, flat, "OptimizerConfig.no_decay pattern"))
    return trees.unflatten({p: p not in kept for p in flat})


def _multiplied(factors: Mapping[str, float]) -> optax.GradientTransformation:
    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        return trees.unflatten({p: u * factors[p] for p, u in trees.flatten(updates).items()}), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def lr_factors(config: OptimizerConfig, params: trees.Tree) -> dict[str, float]:
    """Returns the learning-rate multiplier of each path.

    Raises:
        UserError: a pattern matches nothing, or a factor is not above 0.
    """
    flat = trees.flatten(params)
    if bad := [(p, f) for p, f in config.lr_multipliers if f <= 0]:
        raise UserError(
            f"The learning-rate multiplier of {bad[0][0]!r} is {bad[0][1]}; it must be above 0. To keep parameters as "
            "they are, leave them out of the trainable patterns."
        )
    patterns = [pattern for pattern, _ in config.lr_multipliers]
    matched = trees.match(patterns, flat, "OptimizerConfig.lr_multipliers pattern")
    return {p: config.lr_multipliers[matched[p]][1] if p in matched else 1.0 for p in flat}


def make_optimizer(config: OptimizerConfig, params: trees.Tree, steps: int) -> Optimizer:
    """Builds the optimizer of a run.

    Args:
        config: see there.
        params: the trainable tree (arrays or shape structs), f32.
        steps: length of the run, which the schedule needs.

    Raises:
        UserError: a setting is unknown or does not fit the parameters.
    """
    schedule = make_schedule(config, steps)
    parts: list[optax.GradientTransformation] = []
    if config.clip_norm is not None:
        parts.append(optax.clip_by_global_norm(config.clip_norm))
    if config.name == "adamw":
        parts.append(optax.scale_by_adam(config.b1, config.b2, config.eps, mu_dtype=jnp.float32))
    elif config.name == "adafactor":
        parts += [optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0), optax.scale_by_param_block_rms()]
        if config.b1 > 0:
            parts.append(optax.ema(config.b1, debias=False, accumulator_dtype=jnp.float32))
    else:
        raise UserError(f"OptimizerConfig.name is {config.name!r}; expected adamw or adafactor. Change it.")
    if config.weight_decay:
        parts.append(optax.add_decayed_weights(config.weight_decay, mask=decay_mask(config, params)))
    if config.lr_multipliers:
        parts.append(_multiplied(lr_factors(config, params)))
    parts.append(optax.scale_by_learning_rate(schedule))
    return Optimizer(optax.chain(*parts), schedule)


def norm_by_part(tree: trees.Tree) -> dict[str, Array]:
    """Returns the Euclidean norm of each part: the first two levels of the paths, such as `adapter/lm`."""
    parts: dict[str, list[Array]] = {}
    for path, leaf in trees.flatten(tree).items():
        parts.setdefault("/".join(path.split("/")[:2]), []).append(leaf)
    return {part: optax.tree.norm(leaves) for part, leaves in parts.items()}


def total_norm(by_part: Mapping[str, Array]) -> Array:
    """Returns the norm of a whole tree from those of its parts."""
    return jnp.sqrt(sum((jnp.square(n) for n in jax.tree.leaves(by_part)), start=jnp.zeros(())))
