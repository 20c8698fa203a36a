"""Writes what a run trained as a bundle: one folder that is used, sent and published without the run.

vadapter export --checkpoint=runs/queries --out=owl
vadapter infer --bundle=owl --media=photo.jpg

The vision encoder and the language model that were frozen are not in it; the bundle knows them by their hash.
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("--checkpoint", required=True, metavar="DIR", help="folder of a trained run")
    parser.add_argument("--step", type=int, metavar="N", help="which checkpoint (default: the latest)")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write; must not be there yet")
    parser.add_argument("--merge", action="store_true", help="add LoRA to the kernels beside it; the bundle holds them")


def run(args: argparse.Namespace) -> None:
    """Writes the bundle and prints what is in it."""
    from vadapter.runs.export import export

    made = export(args.checkpoint, args.out, args.step, merge=args.merge)
    arrays = made.arrays()
    print(f"Wrote {args.out}: {sum(x.size for x in arrays.values()):,} parameters of step {made.step}.")
    for backbone in made.backbones:
        parts = " and ".join(backbone.parts)
        print(f"It goes with the {parts} in {backbone.path} (relative to the bundle), sha256 {backbone.sha256}.")
