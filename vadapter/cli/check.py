"""Reads the data of a run and says what would spoil it, before any accelerator is used.

vadapter check --gin_file=experiments/own_stage1.gin --gin.TRAIN_JSONL='"photos/photos.jsonl"' \\
  --gin.ENCODER_WEIGHTS='"demo/vit"' --gin.TINY_WEIGHTS='"demo/tiny"'

It takes the gin files of `vadapter train`, so that it checks the very task, vocabulary, lengths and model of the run.
The exit status is 3 where something would spoil the run. MODEL_DIR is not needed and nothing is written there.
"""

import argparse
import dataclasses
import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vadapter.base import exit_codes, terminal
from vadapter.base.errors import UserError
from vadapter.cli.arguments import add_gin_arguments, parse_gin_arguments

if TYPE_CHECKING:
    from vadapter.data.check.findings import Problem, Report
    from vadapter.data.check.scan import Part
    from vadapter.runs.experiment import Experiment

_NAMES_SHOWN = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("--split", metavar="NAME", help="check this split only (default: all, so that overlaps show)")
    parser.add_argument(
        "--limit", type=int, default=0, metavar="N", help="most records of a split, evenly spread (default: all)"
    )
    parser.add_argument(
        "--output", default="check", metavar="DIR", help="where check.html and check.json go (default: %(default)s)"
    )
    parser.add_argument(
        "--examples", type=int, default=24, metavar="N", help="rows of the contact sheet (default: %(default)s)"
    )
    add_gin_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Checks, writes the two files, prints a summary; returns `exit_codes.NO` where something would spoil a run."""
    os.environ["JAX_PLATFORMS"] = "cpu"  # before jax is imported
    for option in ("limit", "examples"):
        if getattr(args, option) < 0:
            raise UserError(f"--{option} is {getattr(args, option)}; expected a number of at least 0.")
    from vadapter.base import progress
    from vadapter.data.check import check_page, scan
    from vadapter.recipes import experiments
    from vadapter.training.optimizers import make_schedule

    experiments.register()
    with _warnings() as warnings:
        parse_gin_arguments(args, bindings=["MODEL_DIR=''"])  # required by gin, used by nothing here
        experiment = experiments.made()
        parts = parts_of(experiment, args.split)
        if experiment.train.steps > 1:  # runs/eval.gin, which trains nothing, has one
            make_schedule(experiment.train.optimizer, experiment.train.steps)  # raises where they do not fit
    with progress.bars() as show:
        report = scan.check(parts, limit=args.limit, examples=args.examples, warnings=warnings, progress=show)
    folder = Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "check.json").write_text(json.dumps(report.to_json(), indent=2) + "\n", encoding="utf-8")
    check_page.write(report, folder / "check.html", f"Data check of {parts[0].config.mixture}")
    _print(report)
    print(terminal.line(f"Wrote {folder / 'check.html'} and {folder / 'check.json'}."))
    return exit_codes.NO if report.spoils else exit_codes.DONE


def parts_of(experiment: "Experiment", split: str | None = None) -> list["Part"]:
    """Returns what an experiment reads: its training data, its evaluations, and other splits of the same mixtures.

    Args:
        experiment: as gin describes it.
        split: only this one.

    Raises:
        UserError: it describes no model, or has no such split.
    """
    from vadapter.data.check.scan import Part, splits_of
    from vadapter.runs.experiment import Parts

    model: Any = experiment.model
    if model is None:
        raise UserError(
            "Expected an experiment with a model, whose sizes the data must fit; found MODEL = None. Give the gin "
            "files of `vadapter train`."
        )
    made, trained, rows = Parts(experiment), experiment.data.mixture, model.vocab_size
    parts: dict[tuple[str, str], Part] = {}
    for data in (experiment.data, *(evaluation.data for evaluation in experiment.evaluations)):
        key = data.mixture, data.split
        sizes = made.sizes if data.mixture == trained else made.eval_sizes
        parts.setdefault(key, Part(data, sizes, training=not parts, rows=rows))
    for part in list(parts.values()):
        for other in splits_of(part.config.mixture):
            config = dataclasses.replace(part.config, split=other)
            parts.setdefault((config.mixture, other), Part(config, part.sizes, required=False, rows=rows))
    if split is None:
        return list(parts.values())
    chosen = [part for part in parts.values() if part.config.split == split]
    if not chosen:
        known = sorted({part.config.split for part in parts.values()})
        raise UserError(f"--split is {split!r}; expected one of {', '.join(known)}.")
    return chosen


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """Collects what is logged as a warning meanwhile: sources name there what they leave out."""
    found: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: found.append(terminal.line(record.getMessage()))  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    try:
        yield found
    finally:
        logging.getLogger().removeHandler(handler)


def _print(report: "Report") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("split, task", overflow="fold")
    for name in ("read", "media", "unreadable", "cut", "visual", "prompt", "target"):
        table.add_column(name, justify="right")
    for task in report.tasks:
        bad = {kind: len(names) for kind, names in task.found.items()}
        lengths = [f"{x.quantile(1.0)}/{x.room}" if x.counts else "" for x in (task.prompts, task.targets)]
        cut = sum(bad.get(kind, 0) for kind in ("cut_target", "cut_prompt", "cut_turns"))
        figures = (task.checked, task.distinct_media, bad.get("corrupt", 0), cut, task.visual_tokens)
        table.add_row(f"{task.split}, {task.task}", *map(str, figures), *lengths)
    Console().print(table)
    for task in report.tasks:
        if task.description:
            squares = f"; pictures: {task.resize}" if task.resize else ""
            print(f"{task.split}, {task.task}: taken for {task.description}{squares}")
    for problem in report.problems:
        _print_problem(problem)
    print("Something would spoil a run." if report.spoils else "Nothing would spoil a run.")


def _print_problem(problem: "Problem") -> None:
    count = f"{problem.count} of {problem.total} " if problem.total else f"{problem.count} " if problem.count else ""
    print(f"\n{'SPOILS A RUN' if problem.spoils else 'warning'}  {problem.where}: {count}{problem.text}.")
    _print_names(problem.names, problem.count)
    print(f"  {problem.advice}")


def _print_names(names: Sequence[str], count: int) -> None:
    for name in names[:_NAMES_SHOWN]:
        print(f"  - {name}")
    if count > _NAMES_SHOWN:
        print(f"  - and {count - _NAMES_SHOWN} more, in check.json")
