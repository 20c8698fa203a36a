"""Arguments that several commands share. Light: help answers at once."""

import argparse
from typing import TYPE_CHECKING

from vadapter.base.errors import UserError

if TYPE_CHECKING:
    from vadapter.partitioning import Partitioner
    from vadapter.runs.load import TrainedModel


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares which trained model: `--model_dir` with `--step`, or `--bundle`, and where its backbones are."""
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--model_dir", metavar="DIR", help="folder of a trained run")
    which.add_argument("--bundle", metavar="DIR", help="folder that vadapter export wrote")
    parser.add_argument("--step", type=int, metavar="N", help="which checkpoint of the run (default: the latest)")
    for part in ("encoder", "decoder"):
        parser.add_argument(
            f"--{part}",
            metavar="DIR",
            help=f"an imported or trained folder with the {part} (default: where the run or the bundle says)",
        )


def trained(args: argparse.Namespace, partitioner: "Partitioner | None" = None) -> "TrainedModel":
    """Reads the model that a command was given.

    Raises:
        UserError: as `vadapter.runs.load.load`; or --step was given with a bundle.
    """
    from vadapter.runs import bundle
    from vadapter.runs.load import load

    if args.bundle:
        if args.step is not None:
            raise UserError("--step goes with --model_dir, which was not given. Leave it out.")
        bundle.read(args.bundle)  # says what is wrong with it
    path = args.bundle or args.model_dir
    return load(path, encoder=args.encoder, decoder=args.decoder, step=args.step, partitioner=partitioner)
