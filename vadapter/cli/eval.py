r"""Runs the evaluators on a trained run, with the settings it was trained with, and writes their results beside it:
figures with 95% intervals (metrics.json), a page with the best, worst and random examples (evaluation.html), all
predictions (predictions.jsonl), and of a benchmark its submission.

vadapter eval --model_dir=runs/queries
vadapter eval --model_dir=runs/queries --gin.val/LoaderConfig.split='"test"' --gin.val/LoaderConfig.eval_limit=0

Or on a bundle: the gin files then say on which data, and with which evaluators.

vadapter eval --bundle=owl --output=results --gin_file=runs/eval.gin --gin_file=data/jsonl.gin \
  --gin.TRAIN_JSONL='"photos/train.jsonl"' --gin.VALIDATION_JSONL='"photos/test.jsonl"'

Every kept checkpoint of a run, one after the other; evaluations/curve.jsonl has a line for each evaluation of each:

vadapter eval --model_dir=runs/queries --step=all
"""

import argparse
from typing import TYPE_CHECKING

from vadapter.base import terminal

if TYPE_CHECKING:
    from etils import epath

    from vadapter.reports.evaluation import Evaluated, EvaluationReport
    from vadapter.runs.description import Description
    from vadapter.runs.experiment import Experiment, Parts

EVERY = "all"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    from vadapter.cli.arguments import add_gin_arguments, add_model_arguments

    add_model_arguments(parser, steps="a number, best, or all that are kept")
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
    and a side file; of every checkpoint below `evaluations`, with a curve."""
    from etils import epath

    from vadapter.base.errors import UserError
    from vadapter.cli import arguments, processes
    from vadapter.cli.arguments import parse_gin_arguments
    from vadapter.recipes import experiments
    from vadapter.runs import bundle, folder
    from vadapter.training import checkpoints

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
    made = _Made(args, processes.first_process_first(experiments.made))
    output = epath.Path(args.output or checkpoints.split(args.model_dir)[0])
    if args.step == EVERY and not args.bundle:
        _every(made, output / "evaluations")
    else:
        made.evaluate(args.step, output)


def _every(made: "_Made", output: "epath.Path") -> None:
    """Evaluates every kept checkpoint. A line of `curve.jsonl` is like one of the run's own."""
    import json
    import sys

    import jax

    from vadapter.base import files
    from vadapter.training import checkpoints, integrity

    curve, first = [], jax.process_index() == 0
    for step in checkpoints.steps(made.args.model_dir):
        try:
            report = made.evaluate(step, output / f"checkpoint_{step}")
        except integrity.DamagedError as e:
            print(terminal.line(f"Left out: {e}" if first else ""), file=sys.stderr)
            continue
        curve += [{"step": step, "split": each.name, **each.own_scores()} for each in report.evaluations]
        if first:
            files.write_text(output / "curve.jsonl", "".join(json.dumps(line) + "\n" for line in curve))
    if first:
        print(terminal.line(f"Wrote {output / 'curve.jsonl'}."))


class _Made:
    """Evaluates checkpoints of one model, whose evaluators are made once."""

    def __init__(self, args: argparse.Namespace, experiment: "Experiment"):
        self.args, self.experiment = args, experiment
        self.parts: Parts | None = None

    def evaluate(self, step: int | str | None, output: "epath.Path") -> "EvaluationReport":
        """Evaluates a checkpoint, and writes what it found."""
        import dataclasses
        import functools

        import jax

        from vadapter.cli import arguments
        from vadapter.runs.evaluate import evaluate
        from vadapter.runs.experiment import Parts

        args = argparse.Namespace(**{**vars(self.args), "step": step})
        trained = arguments.trained(args, (self.parts or Parts(self.experiment)).partitioner)
        if self.parts is None:
            trained.check_data(self.experiment.data.mixture)
            described = trained.description
            # The gin files of a bundle's evaluation are not those of its training, so they may not say how pictures
            # were seen.
            seen = {"resize": described.resize, "views": described.views} if args.bundle else {}
            # The tiny LM's own loss needs the tokeniser of stage 1, which may be gone.
            objective = dataclasses.replace(self.experiment.objective, tiny_loss=0.0)
            changed = dataclasses.replace(self.experiment, model=described.model, objective=objective)
            self.parts = Parts(changed, **seen)
            self.evaluators = self.parts.evaluators()
        report = evaluate(
            zip(self.experiment.evaluations, self.evaluators, strict=True),
            trained.params,
            checkpoint=f"{args.bundle or args.model_dir} at step {trained.step}",
            num_examples=args.num_examples,
            folder=output,
            told=functools.partial(_tell, trained.step),
        )
        if jax.process_index() == 0:
            print(terminal.line(f"Wrote {', '.join(map(str, report.write(output)))}."))
        return report


def _tell(step: int, evaluated: "Evaluated") -> None:
    import jax

    if jax.process_index() == 0:
        print(f"step {step}  {evaluated.name}: {evaluated.line()}", flush=True)


def parse_run(args: argparse.Namespace) -> None:
    """Parses a run's `config.gin`, then the files and bindings of the command line.

    A run that another package has trained (docs/bridges.md) has no `config.gin`; the command line then says all.

    Raises:
        UserError: the folder is not a run's; it has no `config.gin` and no file is given; or as `config.parse_gin`.
    """
    from etils import epath

    from vadapter.base.errors import UserError
    from vadapter.cli.arguments import parse_gin_arguments
    from vadapter.runs import description
    from vadapter.training import checkpoints

    model_dir, _ = checkpoints.locate(args.model_dir, None if args.step == EVERY else args.step)
    if args.step == EVERY and model_dir != args.model_dir.rstrip("/"):
        raise UserError(f"--step={EVERY} is of a whole run; {args.model_dir} is one checkpoint. Give {model_dir}.")
    saved = epath.Path(model_dir) / "config.gin"
    files = [str(saved)] if saved.is_file() else []
    if not files and not args.gin_file:
        raise UserError(
            f"{model_dir} has a checkpoint but no config.gin, which vadapter train writes. Put it back, or give the "
            "gin files and settings of the training."
        )
    macros = macros_of(description.load(model_dir), model_dir)
    parse_gin_arguments(args, files, [f"MODEL_DIR={model_dir!r}"], macros)


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
