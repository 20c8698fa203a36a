"""Arguments that several commands share. Light: help answers at once."""

import argparse


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares which trained model: `--model_dir` with `--step`, or `--bundle` with `--encoder` and `--decoder`."""
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--model_dir", metavar="DIR", help="folder of a trained run")
    which.add_argument("--bundle", metavar="DIR", help="folder that vadapter export wrote")
    parser.add_argument("--step", type=int, metavar="N", help="which checkpoint of the run (default: the latest)")
    for part in ("encoder", "decoder"):
        parser.add_argument(
            f"--{part}",
            metavar="DIR",
            help=f"an imported or trained folder with the {part} of the bundle (default: where the bundle says)",
        )
