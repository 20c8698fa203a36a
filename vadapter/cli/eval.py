r"""Runs the evaluators on a trained run, with the settings it was trained with, and writes their results beside it.

vadapter eval --model_dir=runs/queries
vadapter eval --model_dir=runs/queries --gin.val/LoaderConfig.split='"test"' --gin.val/LoaderConfig.eval_limit=0

Or on a bundle: the gin files then say on which data, and with which evaluators.

vadapter eval --bundle=owl --output=results --gin_file=runs/eval.gin --gin_file=data/jsonl.gin \
  --gin.TRAIN_JSONL='"photos/train.jsonl"' --gin.VALIDATION_JSONL='"photos/test.jsonl"'
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    from vadapter.cli.arguments import add_model_arguments
    from vadapter.cli.config import add_gin_arguments

    add_model_arguments(parser)
    parser.add_argument("--output", metavar="DIR", help="where to write the results (default: the run's folder)")
    add_gin_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Evaluates; writes `evaluation.json`, `predictions.jsonl`, and of a benchmark its submission and a side file."""
    import dataclasses

    import jax

    from vadapter.cli import bundled, restored
    from vadapter.errors import UserError
    from vadapter.evaluation import report_files, submissions
    from vadapter.evaluation.evaluators import GenerationEvaluator

    if args.bundle and not args.output:
        raise UserError("A bundle is left as it is. Say with --output where to write the results of its evaluation.")
    opened = bundled.of_arguments(args)
    trained = restored.load_bundle(opened, args) if opened else restored.load(args)
    output = args.output or trained.parts.experiment.model_dir
    scalars, records = {}, []
    for evaluation, evaluator in zip(trained.parts.experiment.evaluations, trained.parts.evaluators(), strict=True):
        result = evaluator(trained.params)
        scalars |= {k if "/" in k else f"{evaluator.name}/{k}": v for k, v in result.scalars.items()}
        records += result.records
        figures = "  ".join(f"{k} {v:.4g}" for k, v in result.scalars.items())
        print(f"step {trained.step}  {evaluator.name}: {figures}", flush=True)
        if isinstance(evaluator, GenerationEvaluator) and evaluator.protocol and jax.process_index() == 0:
            settings = {
                "checkpoint": f"{args.bundle or args.model_dir} at step {trained.step}",
                "decoding": dataclasses.asdict(evaluation.decoding),
                **evaluator.details,
            }
            split = evaluation.data.split
            paths = submissions.save(output, evaluator.protocol, result.records, split=split, settings=settings)
            print(f"Wrote {' and '.join(map(str, paths))}.")
    if jax.process_index() == 0:
        report_files.save_scalars(output, scalars)
        if records:
            report_files.save_predictions(output, records)
        print(f"Wrote {output}/evaluation.json.")
