"""Trains one stage, as gin files describe it. The same command resumes a run that was stopped.

vadapter train --gin_file=experiments/scenes_stage1.gin --gin.MODEL_DIR='"runs/stage1"'

With a bundle, what is trained starts from it instead of at random:

vadapter train --bundle=owl --gin_file=experiments/own_stage2.gin --gin.MODEL_DIR='"runs/more"'
"""

import argparse

from vadapter.base import exit_codes, signals
from vadapter.cli.arguments import add_gin_arguments, parse_gin_arguments
from vadapter.recipes.gin_front import macro, save_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("--bundle", metavar="DIR", help="start from what this bundle has (sets Experiment.bundle)")
    parser.add_argument(
        "--step", type=int, metavar="N", help="go back to this kept checkpoint (sets Experiment.resume_step)"
    )
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
    from vadapter.base import compile_cache
    from vadapter.cli import processes
    from vadapter.recipes import experiments
    from vadapter.runs import folder, train

    experiments.register()
    if args.bundle:
        args.gin_bindings.append(f"Experiment.bundle={args.bundle!r}")
    if args.step is not None:
        args.gin_bindings.append(f"Experiment.resume_step={args.step}")
    parse_gin_arguments(args)
    folder.check(macro("MODEL_DIR", "runs/train"))  # before data are made or read
    processes.join()
    compile_cache.start()
    result = train.run(processes.first_process_first(experiments.made), accepted=save_config)
    if not result.interrupted:
        return exit_codes.DONE
    return 128 + result.signal if result.signal else exit_codes.STOPPED
