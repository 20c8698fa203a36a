r"""Runs the evaluators on a trained run, with the settings it was trained with, and writes their results beside it:
figures with 95% intervals (metrics.json), a page with the best, worst and random examples (evaluation.html), all
predictions (predictions.jsonl), and of a benchmark its submission.

vadapter eval --model_dir=runs/queries
vadapter eval --model_dir=runs/queries --gin.val/LoaderConfig.split='"test"' --gin.val/LoaderConfig.eval_limit=0

Or on a bundle: the gin files then say on which data, and with which evaluators.

vadapter eval --bundle=owl --output=results --gin_file=runs/eval.gin --gin_file=data/jsonl.gin \
  --gin.TRAIN_JSONL='"photos/train.jsonl"' --gin.VALIDATION_JSONL='"photos/test.jsonl"' \
  --gin.VOCABULARY='"weights/large"'
"""

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vadapter.base.evaluator import Evaluator
    from vadapter.runs.experiment import Evaluation


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    from vadapter.cli.arguments import add_model_arguments
    from vadapter.cli.config import add_gin_arguments

    add_model_arguments(parser)
    parser.add_argument(
        "--output", metavar="DIR", help="where to write the results, over older ones (default: the run's folder)"
    )
    parser.add_argument(
        "--num_examples",
        type=int,
        default=8,
        metavar="N",
        help="the page shows the N best, the N worst and N random examples (default: %(default)s)",
    )
    add_gin_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Evaluates; writes `metrics.json`, `evaluation.html` and `predictions.jsonl`, and of a benchmark its submission
    and a side file."""
    import dataclasses

    import jax

    from vadapter.base import buckets, pictures
    from vadapter.base.errors import UserError
    from vadapter.cli import arguments, experiments, processes
    from vadapter.cli.config import parse_gin_arguments
    from vadapter.evaluation.evaluators import GenerationEvaluator
    from vadapter.reports import evaluation as report_evaluation
    from vadapter.reports import files as report_files
    from vadapter.runs.experiment import Parts

    if args.bundle and not args.output:
        raise UserError("A bundle is left as it is. Say with --output where to write the results of its evaluation.")
    if args.num_examples < 0:
        raise UserError(f"--num_examples is {args.num_examples}; expected 0, for none, or more.")
    buckets.check(args.output or "")
    experiments.register()
    if args.bundle:
        parse_gin_arguments(args)
    else:
        parse_run(args)
    processes.join()
    experiment = processes.first_process_first(experiments.made)
    trained = arguments.trained(args, Parts(experiment).partitioner)
    trained.check_data(experiment.data.mixture)
    parts = Parts(dataclasses.replace(experiment, model=trained.description.model))
    output = args.output or trained.folder
    checkpoint = f"{args.bundle or args.model_dir} at step {trained.step}"
    found, records = [], []
    for evaluation, evaluator in zip(parts.experiment.evaluations, parts.evaluators(), strict=True):
        generates = isinstance(evaluator, GenerationEvaluator)
        if generates and args.num_examples > 0:
            evaluator.pictures = pictures.Pictures()
        result = evaluator(trained.params)
        examples = []
        if generates:
            examples = evaluator.examples(args.num_examples)  # all processes together
            evaluator.pictures = None  # frees its memory for the next
        if jax.process_index() != 0:
            continue
        intervals = getattr(evaluator, "intervals", dict)()  # an evaluator of one's own may have none
        evaluated = report_evaluation.Evaluated(
            evaluator.name,
            evaluation.kind,
            report_evaluation.whole_names(evaluator.name, result.scalars),
            report_evaluation.whole_names(evaluator.name, intervals),
            _facts(evaluation, evaluator, result.records, output, checkpoint),
            examples,
        )
        print(f"step {trained.step}  {evaluated.name}: {report_evaluation.line(evaluated)}", flush=True)
        found.append(evaluated)
        records += result.records
    if jax.process_index() == 0:
        report = report_evaluation.of_checkpoint(checkpoint, found)
        report_files.save_metrics(output, report_evaluation.metrics_json(report))
        report_evaluation.write_evaluation(report, f"{output}/evaluation.html")
        report_files.save_predictions(output, records)
        print(f"Wrote {output}/metrics.json and {output}/evaluation.html.")


def parse_run(args: argparse.Namespace) -> None:
    """Parses a run's `config.gin`, then the files and bindings of the command line.

    Raises:
        UserError: the folder is not a run's, or as `config.parse_gin`.
    """
    from etils import epath

    from vadapter.base.errors import UserError
    from vadapter.cli.config import parse_gin_arguments
    from vadapter.training import checkpoints

    model_dir, _ = checkpoints.locate(args.model_dir, args.step)
    saved = epath.Path(model_dir) / "config.gin"
    if not saved.is_file():
        raise UserError(f"{model_dir} has a checkpoint but no config.gin, which vadapter train writes. Put it back.")
    parse_gin_arguments(args, [str(saved)], [f"MODEL_DIR={model_dir!r}"])


def _facts(
    evaluation: "Evaluation", evaluator: "Evaluator", records: list[dict[str, Any]], output: str, checkpoint: str
) -> dict[str, Any]:
    """What an evaluation was made on and with. Writes a benchmark's submission, whose side file says it."""
    import dataclasses
    import json

    from vadapter.evaluation import submissions
    from vadapter.evaluation.evaluators import GenerationEvaluator
    from vadapter.reports import evaluation as report_evaluation

    facts = {"data": evaluation.data.mixture, "split": evaluation.data.split}
    if not isinstance(evaluator, GenerationEvaluator):
        return facts
    decoding = dataclasses.asdict(evaluation.decoding)
    if evaluator.protocol is None:
        return facts | report_evaluation.facts_of_texts(records) | {"decoding": decoding}
    settings = {"checkpoint": checkpoint, "decoding": decoding, **evaluator.details}
    split = evaluation.data.split
    submission, side = submissions.save(output, evaluator.protocol, records, split=split, settings=settings)
    print(f"Wrote {submission} and {side}.")
    return facts | json.loads(side.read_text())
