"""`python -m vadapter.contrib`: checkpoints to and from t5x and big_vision. See `checkpoints.py`."""

import argparse
import sys

from vadapter.base.errors import UserError


def main() -> int:
    """Runs a command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m vadapter.contrib", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("to_run", help="a checkpoint that t5x or big_vision trained as a run of vadapter")
    run.add_argument("checkpoint", help="checkpoint_<step> of t5x, checkpoint.bv-<step> of big_vision, or an .npz file")
    run.add_argument("out", help="folder of the run; it is made")
    run.add_argument(
        "--like", metavar="MODEL", help="a run or a bundle of the same model, where no launch made the folder"
    )
    t5x = commands.add_parser("to_t5x", help="a run or a bundle as a checkpoint of t5x")
    t5x.add_argument("model", help="a run or a bundle")
    t5x.add_argument("out", help="folder to write checkpoint_<step> into")
    npz = commands.add_parser("to_big_vision", help="a run or a bundle as an .npz file of big_vision")
    npz.add_argument("model", help="a run or a bundle")
    npz.add_argument("out", help="the file to write, which ends in .npz")
    npz.add_argument("--part", help="encoder, adapter or decoder alone (default: all, under these names)")
    args = parser.parse_args()

    from vadapter.contrib import checkpoints

    try:
        if args.command == "to_run":
            checkpoints.to_run(args.checkpoint, args.out, args.like)
        elif args.command == "to_t5x":
            checkpoints.to_t5x(args.model, args.out)
        else:
            checkpoints.to_big_vision(args.model, args.out, args.part)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
