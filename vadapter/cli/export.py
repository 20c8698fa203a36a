"""Writes what a run trained as one folder, which is used, sent and published without the run.

vadapter export --checkpoint=runs/queries --out=owl
vadapter infer --bundle=owl --media=photo.jpg
vadapter export --bundle=owl --format=transformers --out=owl-transformers

vadapter export --checkpoint=runs/queries --out=owl --push=hf:owner/owl --license=apache-2.0
vadapter export --bundle=owl --push=hf:owner/owl

A bundle has what was trained. The vision encoder and the language model that were frozen are not in it; it knows them
by their hash. A folder for transformers has all of the model, and needs no vadapter. Both have a card, README.md, made
of what the run knows. --push puts what was written on Hugging Face's hub (pip install 'vadapter[hub]').
"""

import argparse
import re
from typing import TYPE_CHECKING, Any

from vadapter.base import terminal
from vadapter.base.errors import UserError

if TYPE_CHECKING:
    from vadapter.weights.hub_push import Target

_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,60}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    from vadapter.cli.arguments import add_ema_argument, add_step_argument

    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--checkpoint", metavar="DIR", help="folder of a trained run")
    which.add_argument("--bundle", metavar="DIR", help="a bundle, for --format=transformers or --push")
    add_step_argument(parser)
    add_ema_argument(parser)
    parser.add_argument("--out", metavar="DIR", help="folder to write; must not be there yet")
    parser.add_argument(
        "--format",
        choices=("bundle", "transformers", "llava"),
        default="bundle",
        help="what to write: what was trained alone, or the whole model for transformers, with a modelling file of its "
        "own or, if it fits, as LlavaForConditionalGeneration reads it (default: %(default)s)",
    )
    parser.add_argument("--merge", action="store_true", help="add LoRA to the kernels beside it; the bundle holds them")
    parser.add_argument("--license", metavar="ID", help="of what was trained, for the card, such as apache-2.0")
    parser.add_argument("--push", metavar="hf:OWNER/NAME", help="put it on Hugging Face's hub; needs its login")
    parser.add_argument("--private", action="store_true", help="with --push: a new repository is yours alone")
    for part in ("encoder", "decoder"):
        parser.add_argument(
            f"--{part}",
            metavar="DIR",
            help=f"with --format=transformers: an imported or trained folder with the {part} (default: where the run "
            "or the bundle says)",
        )


def run(args: argparse.Namespace) -> None:
    """Writes the folder and prints what is in it; or pushes it.

    Raises:
        UserError: arguments that do not go together, or as `export`, `export_transformers` and `hub_push`.
    """
    if args.private and not args.push:
        raise UserError("--private goes with --push, which was not given. Leave it out.")
    if args.license is not None and not _LICENSE.fullmatch(args.license):
        raise UserError(f"The licence {args.license!r} is no name of one. Give such as apache-2.0, mit or cc-by-4.0.")
    as_it_is = args.bundle and args.push and args.format == "bundle"
    if as_it_is and (args.out or args.license or args.bundle.startswith("hf:")):
        raise UserError(
            "A bundle is pushed as it is, from its folder on this machine: leave --out and --license out. What its "
            "README.md should say is written there."
        )
    if not args.out and not as_it_is:
        raise UserError("Say with --out which folder to write.")
    target = None
    if args.push:
        from vadapter.weights import hub_push

        target = hub_push.check(args.push, args.private)
    if args.format != "bundle":
        _transformers(args, target)
    else:
        _bundle(args, target)


def _bundle(args: argparse.Namespace, target: "Target | None") -> None:
    if args.bundle and target is None:
        raise UserError(
            f"{args.bundle} is given as a bundle, and a bundle is what would be written. Add --format=transformers, or "
            "give the run with --checkpoint."
        )
    for part in ("encoder", "decoder"):
        if getattr(args, part):
            raise UserError(f"--{part} goes with --format=transformers: a bundle has no {part}. Leave it out.")
    from vadapter.runs import hub_bundle
    from vadapter.runs.export import export

    if not args.bundle:
        given = {"merge": args.merge, "ema": args.ema, "license": args.license}
        made = export(args.checkpoint, args.out, args.step, repository=target and target.repository, **given)
        count = sum(x.size for x in made.arrays().values())
        print(terminal.line(f"Wrote {args.out}: {count:,} parameters of step {made.step}."))
        for backbone in made.backbones:
            parts = " and ".join(backbone.parts)
            place = terminal.line(backbone.path)
            print(f"It goes with the {parts} in {place} (relative to the bundle), sha256 {backbone.sha256}.")
    if target:
        print(f"Pushed: {hub_bundle.push(args.bundle or args.out, target)}")


def _transformers(args: argparse.Namespace, target: "Target | None") -> None:
    if args.merge:
        raise UserError("--merge goes with a bundle; for transformers LoRA is always merged. Leave it out.")
    if args.bundle and args.step is not None:
        raise UserError("--step goes with --checkpoint; a bundle has one checkpoint only. Leave it out.")
    if args.bundle and args.ema is not None:
        raise UserError("--ema goes with --checkpoint; a bundle has one set of weights. Leave it out.")
    from vadapter.cli import arguments
    from vadapter.runs import bundle
    from vadapter.runs.export_transformers import export_transformers
    from vadapter.weights import hub_push

    if args.bundle:
        arguments.fetch_bundle(args)
        bundle.read(args.bundle)  # says what is wrong with it
    backbones = {"encoder": args.encoder, "decoder": args.decoder}
    which: dict[str, Any] = {"step": args.step, "ema": args.ema, "license": args.license}
    which["layout"] = "llava" if args.format == "llava" else "vadapter"
    path, repository = args.bundle or args.checkpoint, target and target.repository
    made = export_transformers(path, args.out, repository=repository, **backbones, **which)
    print(f"Wrote {terminal.line(made.folder)}: {made.parameters:,} parameters.\n{made.how}")
    if target:
        print(f"Pushed: {hub_push.upload(target, made.folder, made.files, 'Folder for transformers, by vadapter')}")
