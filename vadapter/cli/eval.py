r"""Runs the evaluators on a trained run, with the settings it was trained with, and writes their results beside it:
figures with 95% intervals (metrics.json), a page with the best, worst and random examples (evaluation.html), all
predictions (predictions.jsonl), and of a benchmark its submission.

vadapter eval --model_dir=runs/queries
vadapter eval --model_dir=runs/queries --gin.val/LoaderConfig.split='"test"' --gin.val/LoaderConfig.eval_limit=0

Or on a bundle: the gin files then say on which data, and with which evaluators.

vadapter eval --bundle=owl --output=results --gin_file=runs/eval.gin --gin_file=data/jsonl.gin \
  --gin.TRAIN_JSONL='"photos/train.jsonl"' --gin.VALIDATION_JSONL='"photos/test.jsonl"'
"""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vadapter.reports.evaluation import Evaluated
    from vadapter.runs.description import Description


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    from vadapter.cli.arguments import add_gin_arguments, add_model_arguments

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

    from vadapter.base.errors import UserError
    from vadapter.cli import arguments, processes
    from vadapter.cli.arguments import parse_gin_arguments
    from vadapter.recipes import experiments
    from vadapter.runs import bundle, folder
    from vadapter.runs.evaluate import evaluate
    from vadapter.runs.experiment import Parts

    if args.bundle and not args.output:
        raise UserError("A bundle is left as it is. Say with --output where to write the results of its evaluation.")
    if args.num_examples < 0:
        raise UserError(f"--num_examples is {args.num_examples}; expected 0, for none, or more.")
    if args.output is not None:
        folder.check(args.output, "--output")
    experiments.register()
    arguments.fetch_bundle(args)
    if args.bundle:
        description = bundle.read(args.bundle).description
        parse_gin_arguments(args, of_model=macros_of(description, args.bundle))
    else:
        parse_run(args)
    processes.join()
    experiment = processes.first_process_first(experiments.made)
    trained = arguments.trained(args, Parts(experiment).partitioner)
    trained.check_data(experiment.data.mixture)
    described = trained.description
    # The gin files of a bundle's evaluation are not those of its training, so they may not say how pictures were seen.
    resize = described.resize if args.bundle else None
    parts = Parts(dataclasses.replace(experiment, model=described.model), resize=resize)
    output = args.output or trained.folder
    first = jax.process_index() == 0

    def told(evaluated: "Evaluated") -> None:
        if first:
            print(f"step {trained.step}  {evaluated.name}: {evaluated.line()}", flush=True)

    report = evaluate(
        zip(experiment.evaluations, parts.evaluators(), strict=True),
        trained.params,
        checkpoint=f"{args.bundle or args.model_dir} at step {trained.step}",
        num_examples=args.num_examples,
        folder=output,
        told=told,
    )
    if first:
        print(f"Wrote {', '.join(map(str, report.write(output)))}.")


def parse_run(args: argparse.Namespace) -> None:
    """Parses a run's `config.gin`, then the files and bindings of the command line.

    Raises:
        UserError: the folder is not a run's, or as `config.parse_gin`.
    """
    from etils import epath

    from vadapter.base.errors import UserError
    from vadapter.cli.arguments import parse_gin_arguments
    from vadapter.runs import description
    from vadapter.training import checkpoints

    model_dir, _ = checkpoints.locate(args.model_dir, args.step)
    saved = epath.Path(model_dir) / "config.gin"
    if not saved.is_file():
        raise UserError(f"{model_dir} has a checkpoint but no config.gin, which vadapter train writes. Put it back.")
    macros = macros_of(description.load(model_dir), model_dir)
    parse_gin_arguments(args, [str(saved)], [f"MODEL_DIR={model_dir!r}"], macros)


def macros_of(description: "Description", folder: str) -> dict[str, str]:
    """Returns the macros that a trained model brings along: its vocabulary, wherever the command runs, and its format.

    Args:
        description: of the model.
        folder: that its paths are relative to.
    """
    from etils import epath

    from vadapter.base.paths import resolve

    text = description.text
    if text is None:
        return {}
    place = resolve(text.vocabulary, folder) if text.vocabulary else "scenes"
    found = {"VOCABULARY": place} if not text.vocabulary or epath.Path(place).exists() else {}
    return {**found, "PROMPT_FORMAT": text.prompt_format}
