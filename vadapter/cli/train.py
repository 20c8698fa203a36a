"""Trains one stage, as gin files describe it. The same command resumes a run that was stopped.

vadapter train --gin_file=experiments/scenes_stage1.gin --gin.MODEL_DIR='"runs/stage1"'

With a bundle, what is trained starts from it instead of at random:

vadapter train --bundle=owl --gin_file=experiments/own_stage2.gin --gin.MODEL_DIR='"runs/more"'
"""

import argparse

from vadapter.base import signals
from vadapter.cli.arguments import add_gin_arguments, parse_gin_arguments
from vadapter.recipes.gin_front import save_config

_TOLD_TO_STOP = 143  # a shell's status of what SIGTERM ended: whoever watches starts it again


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("--bundle", metavar="DIR", help="start from what this bundle has (sets Experiment.bundle)")
    add_gin_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Trains, evaluates and writes MODEL_DIR.

    Returns the exit status: 0; when told to stop before the end, 130 after Ctrl-C and 143 otherwise.
    """
    with signals.Signals(own_process=True) as told:
        status = _train(args)
        told.leave(status)
        return status


def _train(args: argparse.Namespace) -> int:
    from vadapter.cli import processes
    from vadapter.recipes import experiments
    from vadapter.runs import train

    experiments.register()
    if args.bundle:
        args.gin_bindings.append(f"Experiment.bundle={args.bundle!r}")
    parse_gin_arguments(args)
    processes.join()
    result = train.run(processes.first_process_first(experiments.made), accepted=save_config)
    return (128 + result.signal if result.signal else _TOLD_TO_STOP) if result.interrupted else 0
