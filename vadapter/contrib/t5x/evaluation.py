"""The experiment's evaluations as an evaluator of t5x: what `vadapter eval` measures, by t5x's own functions."""

import concurrent.futures
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import seqio
import tensorflow as tf
from etils import epath

from vadapter.base.batch import Batch
from vadapter.base.errors import UserError
from vadapter.base.evaluator import Evaluator as OurEvaluator
from vadapter.contrib.t5x.model import FIELDS
from vadapter.data.order.loader import Loader
from vadapter.evaluation.text_evaluator import GenerationEvaluator
from vadapter.models.losses import LossSums
from vadapter.recipes import experiments
from vadapter.runs.evaluate import evaluate
from vadapter.runs.experiment import Evaluation, Parts

ByT5X = Callable[[tf.data.Dataset], Sequence[tuple[int, Any]]]  # {index: ids or score} of enumerated rows


class Evaluator:
    """An `inference_evaluator_cls` of t5x: the experiment's evaluations of generated texts and of image reliance.

    t5x generates and scores; prompts, metrics, benchmarks and reports are vadapter's. Those of the kind `loss` are left
    to t5x's trainer (`get_training_eval_datasets`).

    Writes `<evaluation>-metrics.jsonl` and TensorBoard's files into `log_dir`, as seqio does, and the report of
    `vadapter eval` into `log_dir/checkpoint_<step>`.

    Args:
        log_dir: where results are written; None writes nothing.
        **rest: what t5x tells an evaluator of seqio. Not used: the experiment says it.

    Attributes:
        eval_tasks: the evaluations.
        model_feature_shapes: of a row.

    Raises:
        UserError: as `vadapter eval`; the experiment evaluates nothing; or its evaluations decode in different ways, of
            which a model of t5x has one.
    """

    def __init__(self, *, log_dir: str | None = None, **rest: Any):
        del rest
        parts = Parts(experiments.made())
        experiment = parts.experiment
        self.eval_tasks: Sequence[Evaluation] = experiment.evaluations
        if not self.eval_tasks:
            raise UserError("The experiment evaluates nothing: EVALUATIONS is empty. Name at least one evaluation.")
        if len({e.decoding for e in self.eval_tasks if e.kind == "generation"}) > 1:
            raise UserError(
                "The experiment's evaluations generate with different DecodingConfigs, and a model of t5x has one. "
                "Leave the same ones in EVALUATIONS, and evaluate the others in another launch."
            )
        example = experiment.model.example_batch(1, experiment.data.lengths)
        self.model_feature_shapes = {name: tuple(getattr(example, name).shape[1:]) for name in FIELDS}
        sizes = parts.eval_sizes
        # t5x gives each process its share of the rows, so all processes read all.
        self._pairs = [
            (e, parts.evaluator(e), Loader(e.data, sizes, 0, 1)) for e in self.eval_tasks if e.kind != "loss"
        ]
        self._log_dir = epath.Path(log_dir) if log_dir else None
        self._loggers: list[seqio.Logger] = []
        if log_dir and jax.process_index() == 0:
            self._loggers = [seqio.JSONLogger(log_dir, write_n_results=0), seqio.TensorBoardLogger(log_dir)]

    def evaluate(
        self, *, step: int, predict_fn: ByT5X, score_fn: ByT5X, **rest: Any
    ) -> tuple[concurrent.futures.Future, dict[str, Any]]:
        """Evaluates a checkpoint. All processes call it together.

        Args:
            step: of the checkpoint.
            predict_fn: gives the generated ids of each row of an enumerated data set.
            score_fn: likewise the log-likelihood of its targets, in nats.
            **rest: not used.

        Returns:
            The scores by evaluation, as a future that is there already; and nothing more.
        """
        del rest
        pairs = [(e, _by_t5x(ours, loader, predict_fn, score_fn)) for e, ours, loader in self._pairs]
        folder = self._log_dir and self._log_dir / f"checkpoint_{step}"
        report = evaluate(pairs, None, checkpoint=f"step {step} of t5x", folder=folder)
        if folder and jax.process_index() == 0:
            report.write(folder)
        scores = {each.name: each.own_scores() for each in report.evaluations}
        for logger in self._loggers:
            for name, values in scores.items():
                metrics = {k: seqio.metrics.Scalar(v) for k, v in values.items()}
                logger(task_name=name, step=step, metrics=metrics, dataset=None, inferences={}, targets=None)
        done = concurrent.futures.Future()
        done.set_result(scores)
        return done, {}

    def close(self) -> None:
        """Does nothing: everything is written."""


def _by_t5x(ours: OurEvaluator, loader: Loader, predict_fn: ByT5X, score_fn: ByT5X) -> OurEvaluator:
    """An evaluator of vadapter on all rows of all processes, whose model is t5x's functions."""
    given: Any = ours
    if isinstance(ours, GenerationEvaluator):
        prompts: Any = functools.partial(loader.eval_batches, for_decoding=True)
        stream: Any = functools.partial(_generated, predict_fn)
        return dataclasses.replace(given, batches=prompts, stream=stream, words=None)
    loss_sums = functools.partial(_scored, score_fn)
    return dataclasses.replace(given, batches=loader.eval_batches, loss_sums=loss_sums, put=lambda batch: batch)


def _generated(
    predict_fn: ByT5X, params: None, batches: Iterable[tuple[Batch, Any]]
) -> Iterator[tuple[np.ndarray, Any]]:
    """Generated ids of each batch, in the first process alone, which has those of all."""
    del params
    for batch, kept in batches:
        ids = np.asarray([ids for _, ids in predict_fn(_rows(batch))])
        if jax.process_index() == 0:
            yield ids, kept


def _scored(score_fn: ByT5X, params: None, batch: Batch) -> LossSums:
    del params
    scores = np.asarray([score for _, score in score_fn(_rows(batch))], np.float64)
    none: Any = np.zeros(())  # which next tokens are right, t5x's scores do not say
    return LossSums(loss_sum=-scores.sum(), weight_sum=batch.target_weights.sum(), correct_sum=none, z_sum=none)


def _rows(batch: Batch) -> tf.data.Dataset:
    arrays: Any = {name: np.asarray(getattr(batch, name)) for name in FIELDS}
    return tf.data.Dataset.from_tensor_slices(arrays).enumerate()
