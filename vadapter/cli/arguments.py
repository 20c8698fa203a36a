"""Arguments that several commands share. Light: help answers at once."""

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vadapter.base.errors import UserError

if TYPE_CHECKING:
    from vadapter.partitioning import Partitioner
    from vadapter.runs.load import TrainedModel


def add_model_arguments(parser: argparse.ArgumentParser, steps: str = "a number, or best") -> None:
    """Declares which trained model: `--model_dir` with `--step`, or `--bundle`, and where its backbones are.

    Args:
        parser: of the command.
        steps: what `--step` may be.
    """
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--model_dir", metavar="DIR", help="folder of a trained run")
    which.add_argument("--bundle", metavar="DIR", help="folder that vadapter export wrote, or hf:owner/name[@revision]")
    add_step_argument(parser, steps)
    add_ema_argument(parser)
    for part in ("encoder", "decoder"):
        parser.add_argument(
            f"--{part}",
            metavar="DIR",
            help=f"an imported or trained folder with the {part} (default: where the run or the bundle says)",
        )


def add_media_argument(parser: argparse.ArgumentParser) -> None:
    """Declares `--media`: files, folders and patterns."""
    parser.add_argument(
        "--media",
        nargs="+",
        action="extend",
        metavar="FILE",
        help="JPEG, PNG, WebP or video, a folder of them, or a pattern such as 'photos/*.jpg'; may be several",
    )


def add_draft_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares `--draft` and `--num_draft_tokens`."""
    parser.add_argument(
        "--draft",
        choices=("prompt_lookup", "words"),
        help="of greedy and sample: guesses the next tokens, which the model checks at once; the text stays the same. "
        "prompt_lookup guesses what followed the last tokens before, words also what the adapter's tiny LM wrote",
    )
    parser.add_argument("--num_draft_tokens", type=int, metavar="N", help="of --draft: tokens of a guess (default: 4)")


def drafts(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the settings of `DecodingConfig` for drafts that were given.

    Raises:
        UserError: a number of tokens was given, and no draft.
    """
    if args.num_draft_tokens is not None and not args.draft:
        raise UserError(
            f"--num_draft_tokens {args.num_draft_tokens} does nothing without --draft. Add --draft, or leave it out."
        )
    return {name: value for name in ("draft", "num_draft_tokens") if (value := getattr(args, name)) is not None}


def fetch_bundle(args: argparse.Namespace) -> None:
    """Puts the folder of a bundle in the place of its name on the hub.

    Raises:
        UserError: as `vadapter.runs.hub_bundle.fetch`.
    """
    if args.bundle and args.bundle.startswith("hf:"):
        from vadapter.runs import hub_bundle

        args.bundle = hub_bundle.fetch(args.bundle)


def add_step_argument(parser: argparse.ArgumentParser, which: str = "a number, or best") -> None:
    """Declares `--step`: which checkpoint of a run."""
    parser.add_argument(
        "--step", type=_step, metavar="N", help=f"which checkpoint of the run: {which} (default: the latest)"
    )


def add_ema_argument(parser: argparse.ArgumentParser) -> None:
    """Declares `--ema` and `--no-ema`."""
    parser.add_argument(
        "--ema",
        action=argparse.BooleanOptionalAction,
        help="take the moving average of what the run trained, or not (default: as the run evaluated)",
    )


def _step(text: str) -> int | str:
    return int(text) if text.isascii() and text.isdigit() else text  # what is no step is told with those that there are


def trained(args: argparse.Namespace, partitioner: "Partitioner | None" = None) -> "TrainedModel":
    """Reads the model that a command was given.

    Raises:
        UserError: as `vadapter.runs.load.load`; or --step was given with a bundle.
    """
    from vadapter.base import compile_cache
    from vadapter.runs import bundle
    from vadapter.runs.load import load

    compile_cache.start()
    if args.bundle:
        if args.step is not None:
            raise UserError("--step goes with --model_dir, which was not given. Leave it out.")
        if args.ema is not None:
            raise UserError("--ema goes with --model_dir, which was not given. Leave it out.")
        fetch_bundle(args)
        bundle.read(args.bundle)  # says what is wrong with it
    path = args.bundle or args.model_dir
    return load(path, encoder=args.encoder, decoder=args.decoder, step=args.step, ema=args.ema, partitioner=partitioner)


def add_gin_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds `--gin_file`, `--gin.NAME=VALUE`, `--gin_search_paths` and `--print_config`."""
    group = parser.add_argument_group("configuration")
    group.add_argument(
        "--gin_file",
        action="append",
        default=[],
        metavar="FILE",
        help="a gin file; may be repeated, later files override earlier ones",
    )
    group.add_argument(
        "--gin.NAME",  # Only for the help: main rewrites --gin.NAME=VALUE to --gin_bindings=NAME=VALUE.
        "--gin_bindings",
        dest="gin_bindings",
        action="append",
        default=[],
        metavar="VALUE",
        help="set a macro or a parameter over the files; strings need quotes: --gin.MODEL_DIR='\"runs/a\"'",
    )
    group.add_argument(
        "--gin_search_paths",
        default="",
        metavar="DIR,DIR",
        help="folders to look for gin files in, after the working directory and before the shipped gin folder",
    )
    group.add_argument(
        "--print_config",
        action="store_true",
        help="print every setting of the run with its place and meaning, and do nothing else",
    )


def parse_gin_arguments(
    args: argparse.Namespace,
    files: Sequence[str] = (),
    bindings: Sequence[str] = (),
    of_model: Mapping[str, str] | None = None,
) -> None:
    """Parses what `add_gin_arguments` declared. With `--print_config` it prints and exits, as `--help` does.

    Args:
        args: the command line.
        files: to be read before those of the command line.
        bindings: `NAME=VALUE`, to be set before those of the command line.
        of_model: texts for macros, which a trained model brings along.

    Raises:
        UserError: as `parse_gin`.
    """
    paths = [path for path in args.gin_search_paths.split(",") if path]
    from vadapter.recipes.gin_front import parse_gin

    given = [*bindings, *args.gin_bindings]
    statements = parse_gin([*files, *args.gin_file], given, paths, not args.print_config, of_model)
    if args.print_config:
        from vadapter.recipes import settings

        print(settings.text(settings.of_run(statements)))
        raise SystemExit(0)
