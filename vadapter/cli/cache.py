"""Writes what the frozen parts of a run make of its pictures and videos, so that training does not make it again.

vadapter cache --gin_file=experiments/own_stage2.gin --out=cache/own --gin.TRAIN_JSONL='"photos/photos.jsonl"' \\
  --gin.ENCODER_WEIGHTS='"demo/vit"' --gin.LARGE_WEIGHTS='"demo/large"' --gin.STAGE1_RUN='"runs/own1"'

It takes the gin files of `vadapter train`, which then reads the folder: --gin.Experiment.feature_cache='"cache/own"'.
The same command goes on where it was stopped; with --part=1/4 to 4/4, four machines write one folder together.
"""

import argparse

from vadapter.base import terminal
from vadapter.base.errors import UserError
from vadapter.cli.arguments import add_gin_arguments, parse_gin_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write, or to go on with")
    parser.add_argument(
        "--dtype",
        choices=("bfloat16", "float32", "int8"),
        help="of the encoder's tokens; int8 has a scale a token (default: that in which the encoder computes)",
    )
    parser.add_argument(
        "--words", action="store_true", help="also the words that a frozen tiny LM in the adapter writes (num_words)"
    )
    parser.add_argument("--part", default="1/1", metavar="I/N", help="write the I-th of N shares (default: all)")
    add_gin_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Writes the features.

    Raises:
        UserError: as `vadapter.runs.feature_cache.write`.
    """
    index, _, count = args.part.partition("/")
    if not (index.isascii() and index.isdigit() and count.isascii() and count.isdigit()):
        raise UserError(f"--part is {args.part!r}; expected two numbers, such as 1/4 for the first of four shares.")
    from vadapter.base import compile_cache, progress
    from vadapter.recipes import experiments

    experiments.register()
    parse_gin_arguments(args, bindings=["MODEL_DIR=''"])  # required by gin; nothing is trained
    compile_cache.start()
    experiment = experiments.made()
    from vadapter.runs import feature_cache

    with progress.bars() as show:
        store = feature_cache.write(
            experiment,
            args.out,
            dtype=args.dtype,
            words=args.words,
            part=(int(index), int(count)),
            progress=show,
        )
    left = len(store.missing())
    state = "whole" if not left else f"not whole yet: {left} files are left to other parts"
    print(terminal.line(f"{args.out} is {state}."))
