"""The VLM of an experiment as a model of t5x."""

import dataclasses
import functools
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import clu.metrics
import flax
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.linen.partitioning import AxisMetadata
from t5x import models
from t5x.metrics import AveragePerStep, Sum

from vadapter.base import trees
from vadapter.base.array_types import Array, PyTree
from vadapter.base.batch import Batch
from vadapter.base.errors import UserError
from vadapter.contrib import launch
from vadapter.contrib.t5x.initializer import refuse_renaming
from vadapter.contrib.t5x.optimizer import TrainedOnly
from vadapter.data.seqio_tasks import SeqioVocabulary, VLMFeatureConverter
from vadapter.generation.config import DecodingConfig
from vadapter.generation.decoding import decode
from vadapter.recipes import experiments
from vadapter.runs.experiment import Experiment, Parts

FIELDS = tuple(field.name for field in dataclasses.fields(Batch) if field.name != "tiny")
_DTYPES = {"media": np.uint8, "target_weights": np.float32}  # others are int32
_SMALLEST_WEIGHT = 1e-6  # as in vadapter's own step: a batch of skipped rows has loss 0


class VLMModel(models.BaseTransformerModel):
    """t5x's model of an experiment: loss, scores and texts are those of vadapter.

    The loss is the mean over the targets of a batch, so t5x must not cut batches: leave `num_microbatches` at None.

    Args:
        experiment: default the one that the gin files describe. Its first evaluation of generated texts says how they
            are decoded; without one, greedily, with as many tokens as `lengths["targets"]`.

    Raises:
        UserError: as `launch.check` and `refuse_renaming`.
    """

    def __init__(self, experiment: Experiment | None = None):
        refuse_renaming()
        experiment = experiment or experiments.made()
        self.config = launch.check(experiment, "t5x")
        self.parts = Parts(experiment)
        self.decoding = _decoding(experiment)
        words = self.parts.loader.vocabulary
        self._end_ids = words.ends
        # t5x asks for a class and calls it with what is of its own models.
        self.FEATURE_CONVERTER_CLS = functools.partial(
            _converter, self.config.num_visual_tokens, words.bos_id, words.num_closing
        )
        super().__init__(
            module=self.parts.model,
            input_vocabulary=SeqioVocabulary(words),
            output_vocabulary=SeqioVocabulary(words),
            optimizer_def=TrainedOnly(self.parts),
            z_loss=experiment.objective.z_loss,
        )

    def get_initial_variables(
        self, rng: Array, input_shapes: Mapping[str, Any], input_types: Mapping[str, Any] | None = None
    ) -> PyTree:
        """Returns random parameters, and the logical names of their axes; `Initializer` gives them their values."""
        del input_types
        example: dict[str, Any] = {name: jnp.zeros(input_shapes[name], _DTYPES.get(name, np.int32)) for name in FIELDS}
        with _plain():
            boxed = self.module.init(rng, Batch(**example))["params"]
        is_box = lambda x: isinstance(x, nn.LogicallyPartitioned)  # noqa: E731
        leaves = trees.flatten(jax.tree.map(_axes, boxed, is_leaf=is_box))
        axes = trees.unflatten({f"{path}_axes": names for path, names in leaves.items()})
        return flax.core.freeze({"params": nn.unbox(boxed), "params_axes": axes})

    def loss_fn(
        self, params: PyTree, batch: Mapping[str, Array], dropout_rng: Array | None
    ) -> tuple[Array, dict[str, clu.metrics.Metric]]:
        """Returns the mean loss of the targets, in nats, and the metrics. Frozen parameters have no gradient."""
        del dropout_rng
        with _plain():
            sums = self.parts.objective(self._frozen_stopped(params), _batch(batch))
        weight = jnp.maximum(sums.weight_sum, _SMALLEST_WEIGHT)
        average = functools.partial(_average, weight)
        metrics = {
            "loss": average(sums.loss_sum),
            "accuracy": average(sums.correct_sum),
            "z_loss": average(sums.z_sum),
            "weights": Sum(total=sums.weight_sum),
            "weights_per_step": AveragePerStep(total=sums.weight_sum),
        }
        return (sums.loss_sum + sums.z_sum) / weight, metrics

    def _frozen_stopped(self, params: PyTree) -> PyTree:
        trained = self.parts.program.storage.trained
        flat = trees.flatten(flax.core.unfreeze(params))
        stopped = {path: x if path in trained else jax.lax.stop_gradient(x) for path, x in flat.items()}
        return trees.unflatten(stopped)

    def predict_batch_with_aux(
        self, params: PyTree, batch: Mapping[str, Array], rng: Array | None = None
    ) -> tuple[Array, dict[str, Array]]:
        """Returns generated ids, the end token from the end of a text on, and nothing beside them.

        Rows may have their targets, as in training: only what stands before the first one is read. `rng` is not used:
        the seed is the decoding's.
        """
        del rng
        rows = _batch(batch)
        slots = jnp.arange(rows.tokens.shape[1])
        prompt = jnp.where(slots <= rows.target_positions[:, :1], rows.segment_ids, 0)
        rows, params = dataclasses.replace(rows, segment_ids=prompt), flax.core.unfreeze(params)
        with _plain():
            ids = decode(self.module, params, rows, self.decoding, self._end_ids).ids
        return jnp.where(ids < 0, self._end_ids[0], ids), {}

    def score_batch(
        self, params: PyTree, batch: Mapping[str, Array], return_intermediates: bool = False
    ) -> Array | tuple[Array, dict[str, Array]]:
        """Returns the log-likelihood of each row's targets, in nats."""
        logits = self._compute_logits(params, batch)
        rows = _batch(batch)
        chosen = jnp.take_along_axis(logits, rows.target_ids[..., None], axis=-1)[..., 0]
        scores = ((chosen - jax.nn.logsumexp(logits, axis=-1)) * rows.target_weights).sum(axis=1)
        return (scores, {}) if return_intermediates else scores

    def _compute_logits(self, params: PyTree, batch: Mapping[str, Array], dropout_rng: Array | None = None) -> Array:
        del dropout_rng
        with _plain():
            return self.module.apply({"params": flax.core.unfreeze(params)}, _batch(batch), method="logits")


def _decoding(experiment: Experiment) -> DecodingConfig:
    found = [e.decoding for e in experiment.evaluations if e.kind == "generation"]
    return found[0] if found else DecodingConfig(max_new_tokens=experiment.data.lengths["targets"])


def _plain() -> AbstractContextManager[None]:
    """Without t5x's rules, to which flax would constrain kernels before they have their shape."""
    return nn.logical_axis_rules(())


def _average(weight: Array, total: Array) -> clu.metrics.Metric:
    metric: Any = clu.metrics.Average
    return metric(total=total, count=weight)


def _axes(leaf: Any) -> AxisMetadata:
    names = leaf.names if isinstance(leaf, nn.LogicallyPartitioned) else (None,) * leaf.ndim
    return AxisMetadata(names=tuple(names))


def _batch(features: Mapping[str, Any]) -> Batch:
    return Batch(**{name: features[name] for name in FIELDS})


class _Converter(VLMFeatureConverter):
    """Rows of any media, each with the visual tokens that the model makes of it."""

    def __init__(self, num_visual_tokens: Any, bos_id: int | None, closing: int):
        super().__init__(1, bos_id, closing=closing)
        self._tokens_of = num_visual_tokens

    def _layout(self, lengths: Mapping) -> Any:
        self._num_visual_tokens = self._tokens_of(lengths["media"][1])
        return super()._layout(lengths)


def _converter(
    num_visual_tokens: Any, bos_id: int | None, closing: int, pack: bool = False, use_custom_packing_ops: bool = False
) -> VLMFeatureConverter:
    """A seqio feature converter as t5x makes one."""
    del use_custom_packing_ops
    if pack:
        raise UserError(
            "Expected pack=False: t5x's packing does not know visual tokens. Set utils.DatasetConfig.pack to False; "
            "train/LoaderConfig.packing packs rows with vadapter's own data."
        )
    return _Converter(num_visual_tokens, bos_id, closing)
