"""Runs the evaluators on a trained run, with the settings it was trained with, and writes their results beside it.

vadapter eval --model_dir=runs/queries
vadapter eval --model_dir=runs/queries --gin.val/LoaderConfig.split='"test"' --gin.val/LoaderConfig.eval_limit=0
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("--model_dir", required=True, metavar="DIR", help="folder of a trained run")
    parser.add_argument("--step", type=int, metavar="N", help="which checkpoint (default: the latest)")
    parser.add_argument("--output", metavar="DIR", help="where to write the results (default: the run's folder)")
    from vadapter.cli.config import add_gin_arguments

    add_gin_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Evaluates; writes `evaluation.json` and `predictions.jsonl`."""
    import jax

    from vadapter.cli import restored
    from vadapter.evaluation import report_files

    trained = restored.load(args)
    output = args.output or trained.parts.experiment.model_dir
    scalars, records = {}, []
    for evaluator in trained.parts.evaluators():
        result = evaluator(trained.params)
        scalars |= {k if "/" in k else f"{evaluator.name}/{k}": v for k, v in result.scalars.items()}
        records += result.records
        figures = "  ".join(f"{k} {v:.4g}" for k, v in result.scalars.items())
        print(f"step {trained.step}  {evaluator.name}: {figures}", flush=True)
    if jax.process_index() == 0:
        report_files.save_scalars(output, scalars)
        if records:
            report_files.save_predictions(output, records)
        print(f"Wrote {output}/evaluation.json.")
