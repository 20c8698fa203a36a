"""Writes what the adapter makes of pictures and videos: embeddings, for programs that take them in place of text.

vadapter embed --bundle=owl --media photos --out=embeds
vadapter embed --bundle=owl --jsonl=records.jsonl --format=parquet --out=embeds
vadapter embed --bundle=owl --media photo.jpg --question='what is this ?' --prompt_embeds --out=embeds

The folder has a line a record in records.jsonl, with the file and the shape of its embeddings, or with an error. The
same command goes on where it stopped.
"""

import argparse
import sys
from typing import Any

from vadapter.base import terminal
from vadapter.base.errors import UserError
from vadapter.cli import infer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    from vadapter.cli.arguments import add_media_argument, add_model_arguments

    add_model_arguments(parser)
    add_media_argument(parser)
    parser.add_argument("--jsonl", metavar="FILE", help="records instead of --media, as of vadapter infer; - is stdin")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write, or to go on with")
    parser.add_argument(
        "--format",
        choices=("safetensors", "parquet"),
        default="safetensors",
        help="a safetensors file a record, or Parquet files of many records (default: %(default)s)",
    )
    parser.add_argument(
        "--prompt_embeds",
        action="store_true",
        help="embeddings of the whole prompt, text and picture, as vLLM's prompt_embeds takes them (default: the soft "
        "tokens of the picture alone)",
    )
    parser.add_argument("--question", metavar="TEXT", help="with --prompt_embeds: asks this")
    parser.add_argument("--prompt", metavar="TEXT", help="with --prompt_embeds: a prompt, as of vadapter infer")


def run(args: argparse.Namespace) -> None:
    """Writes the embeddings of each record.

    Raises:
        UserError: records that cannot be read, after all others were written; a folder that holds other embeddings; or
            as `vadapter.load`.
    """
    for name in ("question", "prompt"):
        if getattr(args, name) and not args.prompt_embeds:
            raise UserError(
                f"--{name} changes nothing of the soft tokens of a picture. Add --prompt_embeds for the embeddings of "
                "the whole prompt, or leave it out."
            )
    records = infer.read_records(args)  # before the seconds that jax and the model take
    from vadapter.cli.embed_files import Folder

    names = [name for name, _ in records]
    with Folder(args.out, names, args.format, whole=args.prompt_embeds, prompt=args.prompt) as folder:
        if folder.done:
            print(f"{args.out} has {folder.done} of {len(records)} records already.", file=sys.stderr, flush=True)
        if folder.done < len(records):
            _embed(args, folder, records[folder.done :], len(records))
    # The last lines were written by now.
    failed = [item.media or f"line {name.get('line')}" for name, item in (records[i] for i in folder.failed)]
    if failed:
        raise UserError(
            f"Expected pictures and videos; {len(failed)} of {len(records)} records cannot be read, "
            f"{args.out}/records.jsonl says why: {terminal.line(', '.join(failed[:5]))}"
            f"{', ...' if len(failed) > 5 else ''}. Replace them or leave them out."
        )


def _embed(args: argparse.Namespace, folder: Any, records: list[Any], total: int) -> None:
    from vadapter.cli import arguments, record_files
    from vadapter.runs.embed import embed

    trained = arguments.trained(args)
    folder.describe(trained)
    found = embed(trained, (item for _, item in records), whole=args.prompt_embeds)
    for result in record_files.shown(found, total, folder.done):
        if result.error is not None:
            print(terminal.line(result.error), file=sys.stderr, flush=True)
        folder.write(result.values, result.error)
