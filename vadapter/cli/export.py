"""Writes what a run trained as one folder, which is used, sent and published without the run.

vadapter export --checkpoint=runs/queries --out=owl
vadapter infer --bundle=owl --media=photo.jpg
vadapter export --bundle=owl --format=transformers --out=owl-transformers

A bundle has what was trained. The vision encoder and the language model that were frozen are not in it; it knows them
by their hash. A folder for transformers has all of the model, and needs no vadapter.
"""

import argparse

from vadapter.base.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    from vadapter.cli.arguments import add_ema_argument, add_step_argument

    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--checkpoint", metavar="DIR", help="folder of a trained run")
    which.add_argument("--bundle", metavar="DIR", help="a bundle, for --format=transformers")
    add_step_argument(parser)
    add_ema_argument(parser)
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write; must not be there yet")
    parser.add_argument(
        "--format",
        choices=("bundle", "transformers"),
        default="bundle",
        help="what to write: what was trained alone, or the whole model for transformers (default: %(default)s)",
    )
    parser.add_argument("--merge", action="store_true", help="add LoRA to the kernels beside it; the bundle holds them")
    for part in ("encoder", "decoder"):
        parser.add_argument(
            f"--{part}",
            metavar="DIR",
            help=f"with --format=transformers: an imported or trained folder with the {part} (default: where the run "
            "or the bundle says)",
        )


def run(args: argparse.Namespace) -> None:
    """Writes the folder and prints what is in it.

    Raises:
        UserError: arguments that do not go together, or as `export` and `export_transformers`.
    """
    if args.format == "transformers":
        return _transformers(args)
    if args.bundle:
        raise UserError(
            f"{args.bundle} is given as a bundle, and a bundle is what would be written. Add --format=transformers, or "
            "give the run with --checkpoint."
        )
    for part in ("encoder", "decoder"):
        if getattr(args, part):
            raise UserError(f"--{part} goes with --format=transformers: a bundle has no {part}. Leave it out.")
    from vadapter.runs.export import export

    made = export(args.checkpoint, args.out, args.step, merge=args.merge, ema=args.ema)
    arrays = made.arrays()
    print(f"Wrote {args.out}: {sum(x.size for x in arrays.values()):,} parameters of step {made.step}.")
    for backbone in made.backbones:
        parts = " and ".join(backbone.parts)
        print(f"It goes with the {parts} in {backbone.path} (relative to the bundle), sha256 {backbone.sha256}.")


def _transformers(args: argparse.Namespace) -> None:
    if args.merge:
        raise UserError("--merge goes with a bundle; for transformers LoRA is always merged. Leave it out.")
    if args.bundle and args.step is not None:
        raise UserError("--step goes with --checkpoint; a bundle has one checkpoint only. Leave it out.")
    if args.bundle and args.ema is not None:
        raise UserError("--ema goes with --checkpoint; a bundle has one set of weights. Leave it out.")
    from vadapter.cli import arguments
    from vadapter.runs import bundle
    from vadapter.runs.export_transformers import export_transformers

    if args.bundle:
        arguments.fetch_bundle(args)
        bundle.read(args.bundle)  # says what is wrong with it
    path = args.bundle or args.checkpoint
    made = export_transformers(path, args.out, encoder=args.encoder, decoder=args.decoder, step=args.step, ema=args.ema)
    print(f"Wrote {made.folder}: {made.parameters:,} parameters.\n{made.how}")
