"""Evaluates a model: runs evaluators, and makes the report of what they found."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
from etils import epath

from vadapter.base.array_types import PyTree
from vadapter.base.evaluator import EvalResult, Evaluator, whole_names
from vadapter.base.pictures import Pictures
from vadapter.benchmarks.protocols import Protocol
from vadapter.evaluation.text_evaluator import GenerationEvaluator
from vadapter.reports import files
from vadapter.reports.evaluation import Evaluated, EvaluationReport, of_checkpoint, write_submission
from vadapter.runs.experiment import Evaluation


def evaluate(
    evaluations: Iterable[tuple[Evaluation, Evaluator]],
    params: PyTree,
    *,
    checkpoint: str = "",
    num_examples: int = 8,
    folder: epath.PathLike | None = None,
    told: Callable[[Evaluated], None] | None = None,
) -> EvaluationReport:
    """Evaluates a model. All processes call it together, and each gets the report.

    Args:
        evaluations: what is measured, each with its evaluator, as `Parts.evaluators` makes them.
        params: all parameters, on the device.
        checkpoint: names the model in the report.
        num_examples: the report shows so many of the best, the worst and random examples of generated texts.
        folder: where the first process writes predictions and submissions as soon as they are generated, before they
            are scored; None writes nothing. `EvaluationReport.write` writes everything at the end.
        told: called with the result of each evaluation as soon as it is there.

    Returns:
        The report: `scores` by name, and `write(folder)`.

    Raises:
        UserError: a record cannot be scored, or ids of a benchmark come twice.
    """
    here = folder if jax.process_index() == 0 else None
    found: list[Evaluated] = []
    for evaluation, evaluator in evaluations:
        if isinstance(evaluator, GenerationEvaluator):
            before = [record for e in found for record in e.records]
            evaluated = _of_texts(evaluation, evaluator, params, checkpoint, num_examples, here, before)
        else:
            evaluated = _evaluated(evaluation, evaluator, evaluator(params))
        found.append(evaluated)
        if told is not None:
            told(evaluated)
    return of_checkpoint(checkpoint, found)


def _of_texts(
    evaluation: Evaluation,
    evaluator: GenerationEvaluator,
    params: PyTree,
    checkpoint: str,
    num_examples: int,
    folder: epath.PathLike | None,
    before: Sequence[Mapping[str, Any]],
) -> Evaluated:
    """Generates, writes what was generated below the records from `before`, scores it and chooses examples."""
    predictions = evaluator.predict(params, Pictures() if num_examples else None)
    protocol, split = evaluator.scoring, evaluation.data.split
    submission: dict[str, Any] = {}
    if folder is not None:
        files.save_predictions(folder, [*before, *predictions.records])
    if isinstance(protocol, Protocol):
        file, content = protocol.submission(predictions.records, split)
        submission[file] = content
        submission |= protocol.texts(predictions.records, protocol.clean) if protocol.texts else {}
    if folder is not None:
        write_submission(submission, folder)
    result = evaluator.score(predictions)
    facts = {"decoding": dataclasses.asdict(evaluation.decoding), **result.facts()}
    if isinstance(protocol, Protocol):
        known = {"checkpoint": checkpoint, **facts} if checkpoint else facts
        side, facts = protocol.side_file(next(iter(submission)), split, known)
        submission[side] = facts
    found = _evaluated(evaluation, evaluator, result, facts)
    return dataclasses.replace(
        found,
        examples=evaluator.examples(predictions, num_examples),  # all processes together
        records=result.records,
        submission=submission,
    )


def _evaluated(
    evaluation: Evaluation, evaluator: Evaluator, result: EvalResult, facts: Mapping[str, Any] | None = None
) -> Evaluated:
    return Evaluated(
        name=evaluator.name,
        kind=evaluation.kind,
        scores=whole_names(evaluator.name, result.scalars),
        intervals=whole_names(evaluator.name, result.intervals()),
        facts={"data": evaluation.data.mixture, "split": evaluation.data.split, **(facts or result.facts())},
        explanations=result.explanations,
        notes=result.notes,
    )
