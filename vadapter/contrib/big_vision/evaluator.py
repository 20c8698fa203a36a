"""An evaluation of an experiment as an evaluator of big_vision, so that its metrics have vadapter's scores.

    evals = {"val": dict(type="vadapter", experiment=..., pred="logits", prefix="", log_steps=100)}

The name of the evaluation is `evaluation`, by default the first one of the experiment.
"""

import functools
from collections.abc import Iterator
from typing import Any

import flax
import jax
from flax import linen as nn

from vadapter.base.errors import UserError
from vadapter.base.evaluator import whole_names
from vadapter.contrib import launch
from vadapter.contrib.big_vision.weights import workdir
from vadapter.runs.experiment import Parts

API = "jit"  # of the two ways in which big_vision calls evaluators


class Evaluator:
    """Measures a train state by vadapter's own evaluator: losses, texts with their official scores, image reliance.

    Args:
        predict_fn: what big_vision would predict with. Not used, as vadapter's evaluators know the model.
        experiment: as `launch.experiment_of` takes it.
        evaluation: name of one of its evaluations; None is the first one.
        **rest: batch size and devices. Not used: the experiment says it.

    Raises:
        UserError: the experiment has no such evaluation, or as `vadapter eval`.
    """

    def __init__(self, predict_fn: Any, *, experiment: str, evaluation: str | None = None, **rest: Any):
        del predict_fn, rest
        parts = _parts(experiment, workdir())
        known = {each.name: each for each in parts.experiment.evaluations}
        name = evaluation or next(iter(known), None)
        if name not in known:
            raise UserError(
                f"The experiment has no evaluation {name!r}; its evaluations are {', '.join(known) or '(none)'}. Name "
                "one of them, or add it to EVALUATIONS."
            )
        with jax.transfer_guard("allow"):
            self._evaluator = parts.evaluator(known[name])

    def run(self, train_state: Any) -> Iterator[tuple[str, float]]:
        """Yields scores by their whole names, such as `val/loss` and `generation/cider`.

        Args:
            train_state: with all parameters of a model `vadapter` as `params`.
        """
        params = flax.core.unfreeze(train_state["params"])
        # big_vision has switched off transfers that nobody wrote down, and on rules that do not know our axes.
        with jax.transfer_guard("allow"), nn.logical_axis_rules(()):
            scalars = self._evaluator(params).scalars
        yield from whole_names(self._evaluator.name, scalars).items()


@functools.lru_cache(maxsize=1)
def _parts(experiment: str, model_dir: str) -> Parts:
    """All evaluations of an experiment share its programs."""
    return Parts(launch.experiment_of(experiment, model_dir))
