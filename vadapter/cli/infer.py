"""Captions images and videos, or answers questions about them.

vadapter infer --model_dir=runs/queries --media=photo.jpg
vadapter infer --bundle=owl --media=clip.mp4 --question='what moves ?'
vadapter infer --bundle=owl --media photos more/dog.jpg --decoding=sample --temperature=0.7
vadapter infer --bundle=owl --jsonl=questions.jsonl --out=answers.jsonl
vadapter infer --bundle=owl --chat --media a.png b.png --question='what differs ?' --question='and the colours ?'
vadapter infer --bundle=owl --encoder=weights/siglip --decoder=weights/gemma --media=photo.jpg

Needs neither the gin files nor the data that the model was trained with.
"""

import argparse
import contextlib
import dataclasses
import glob
import os
import sys
from collections.abc import Sequence
from typing import Any

from vadapter.base import json_text, local_files, terminal
from vadapter.base.errors import UserError
from vadapter.base.paths import is_remote
from vadapter.cli import record_files
from vadapter.runs.many import Item

# What a folder is searched for. A file that is named may have any ending.
_PICTURES = "jpg jpeg jpe jfif png webp gif bmp tif tiff avif jp2 ppm pgm"
_VIDEOS = "mp4 mov m4v mkv webm avi mpg mpeg ogv ts"
_ENDINGS = tuple(f".{ending}" for ending in f"{_PICTURES} {_VIDEOS}".split())
_VIDEO_ENDINGS = tuple(f".{ending}" for ending in _VIDEOS.split())
_OF_METHOD = {"temperature": "sample", "top_p": "sample", "seed": "sample", "beams": "beam"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    from vadapter.cli.arguments import add_draft_arguments, add_media_argument, add_model_arguments

    add_model_arguments(parser)
    add_media_argument(parser)
    parser.add_argument(
        "--jsonl",
        metavar="FILE",
        help='records instead of --media: one JSON object a line with "image" or "video", and if wanted "question", '
        '"prompt" and "id", or with the "messages" of a conversation; - is stdin',
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        help='JSONL to write, one object a record with "text" or "error"; the same command goes on where it stopped',
    )
    parser.add_argument(
        "--question",
        action="append",
        metavar="TEXT",
        help="asks this; without it the file is captioned. With --chat there may be several: each is a turn",
    )
    parser.add_argument(
        "--chat", action="store_true", help="all of --media, if any, are of one conversation, which --question begins"
    )
    parser.add_argument("--system", metavar="TEXT", help="of --chat: what the conversation is told before")
    parser.add_argument(
        "--prompt",
        metavar="TEXT",
        help="a prompt of data/prompts by name, or a template with <media> and, with --question, <question> "
        "(default: the one that the model was trained on)",
    )
    parser.add_argument(
        "--max_new_tokens", type=int, default=32, metavar="N", help="longest answer in tokens (default: %(default)s)"
    )
    parser.add_argument(
        "--decoding",
        dest="method",
        choices=("greedy", "sample", "beam"),
        default="greedy",
        help="how the text is chosen (default: %(default)s)",
    )
    parser.add_argument("--beams", type=int, metavar="N", help="of beam (default: 4)")
    parser.add_argument("--temperature", type=float, metavar="T", help="of sample (default: 1.0)")
    parser.add_argument("--top_p", type=float, metavar="P", help="of sample (default: 1.0)")
    parser.add_argument("--seed", type=int, metavar="N", help="of sample (default: 0)")
    add_draft_arguments(parser)
    parser.add_argument(
        "--mesh",
        type=_sizes,
        default=(-1, 1, 1),
        metavar="D,F,T",
        help="devices along data, fsdp and tensor; one may be -1, the rest (default: -1,1,1)",
    )


def _sizes(text: str) -> tuple[int, ...]:
    data, fsdp, tensor = (int(word) for word in text.split(","))
    return data, fsdp, tensor


def run(args: argparse.Namespace) -> None:
    """Prints what the model says of each file.

    Raises:
        UserError: a file cannot be read, after all others were; a setting belongs to another way of decoding; or as
            `vadapter.load`.
    """
    chosen = _chosen(args)
    if args.chat:
        return _chat(args, chosen)
    if args.system:
        raise UserError("--system is of a conversation. Add --chat, or leave it out.")
    if args.question and len(args.question) > 1:
        raise UserError(
            f"Expected one --question for each file; found {len(args.question)}. Leave one, or add --chat, so that "
            "they are the turns of one conversation."
        )
    args.question = args.question[0] if args.question else None
    records = read_records(args)  # before the seconds that jax and the model take
    output = record_files.Output(args.out, [names for names, _ in records]) if args.out else None
    if output and output.done:
        print(f"{args.out} has {output.done} of {len(records)} records already.", file=sys.stderr, flush=True)
        if output.done == len(records):
            output.close()
            return _tell_failed(args, [_name(*records[i]) for i in output.failed], len(records))

    from vadapter.cli import arguments
    from vadapter.generation.config import DecodingConfig
    from vadapter.partitioning import MeshConfig, Partitioner, hosts, make_mesh

    decoding = DecodingConfig(method=args.method, max_new_tokens=args.max_new_tokens, **chosen)
    hosts.start()
    trained = arguments.trained(args, Partitioner(make_mesh(MeshConfig(*args.mesh))))
    with contextlib.closing(output) if output else contextlib.nullcontext():
        _say(args, trained, records, decoding, output)


def _chosen(args: argparse.Namespace) -> dict[str, Any]:
    """The settings of decoding that were given, but for those that always are."""
    from vadapter.cli import arguments

    chosen = {name: value for name in _OF_METHOD if (value := getattr(args, name)) is not None}
    for name, value in chosen.items():
        if args.method != _OF_METHOD[name]:
            raise UserError(
                f"--{name} {value} does nothing with --decoding={args.method}. Add --decoding={_OF_METHOD[name]}, or "
                f"leave --{name} out."
            )
    return chosen | arguments.drafts(args)


def read_records(args: argparse.Namespace) -> list[tuple[dict[str, Any], Item]]:
    """Returns of each record what names it in the output, and what is asked of it.

    Args:
        args: `media`, `jsonl`, `question` and `prompt`.

    Raises:
        UserError: neither media nor records are given, or both; or they cannot be read.
    """
    if args.jsonl:
        if args.media or args.question:
            raise UserError(
                f"--{'media' if args.media else 'question'} was given with --jsonl, whose records have their own. "
                "Leave one of them out."
            )
        found = record_files.read(args.jsonl)
        return [(names, dataclasses.replace(item, prompt=item.prompt or args.prompt)) for names, item in found]
    if not args.media:
        raise UserError("Expected pictures or videos; found neither --media nor --jsonl. Give one of them.")
    asked = {"question": args.question} if args.question else {}
    paths = files_of(args.media)
    return [({"media": path, **asked}, Item(path, args.question, args.prompt)) for path in paths]


def _chat(args: argparse.Namespace, chosen: dict[str, Any]) -> None:
    """Holds a conversation: each question is asked after the answer to the one before, which is printed."""
    if wrong := [name for name in ("jsonl", "out", "prompt") if getattr(args, name)]:
        raise UserError(f"--{wrong[0]} does not go with --chat, which prints one conversation. Leave one of them out.")
    if not args.question or not all(text.strip() for text in args.question):
        raise UserError("Expected what is asked first in --question; found nothing. --chat needs one question or more.")
    paths = files_of(args.media) if args.media else []
    kinds = ["video" if path.lower().endswith(_VIDEO_ENDINGS) else "image" for path in paths]
    media = [{"type": kind, kind: path} for kind, path in zip(kinds, paths, strict=True)]

    import jax

    from vadapter.cli import arguments
    from vadapter.generation.config import DecodingConfig
    from vadapter.partitioning import MeshConfig, Partitioner, hosts, make_mesh

    decoding = DecodingConfig(method=args.method, max_new_tokens=args.max_new_tokens, **chosen)
    hosts.start()
    trained = arguments.trained(args, Partitioner(make_mesh(MeshConfig(*args.mesh))))
    turns: list[dict[str, Any]] = [{"role": "system", "content": args.system}] if args.system else []
    for question in args.question:
        turns.append({"role": "user", "content": [*media, {"type": "text", "text": question}]})
        media = []
        answer = trained.chat(turns, decoding=decoding)
        if jax.process_index() == 0:
            print(answer, flush=True)
        turns.append({"role": "assistant", "content": answer or "."})  # an empty one would be no turn


def _say(args: argparse.Namespace, trained: Any, records: list, decoding: Any, output: Any) -> None:
    import jax

    from vadapter.runs.many import say

    first, done = jax.process_index() == 0, output.done if output else 0
    failed = [_name(*records[i]) for i in output.failed] if output else []
    said = say(trained, [item for _, item in records[done:]], decoding)
    for (names, item), found in zip(records[done:], record_files.shown(said, len(records), done), strict=True):
        name = _name(names, item)
        if found.error is not None:
            if len(records) == 1 and not args.jsonl and not output:
                raise UserError(found.error)
            failed.append(name)
            print(terminal.line(found.error), file=sys.stderr, flush=True)
        result = names | ({"text": found.text} if found.error is None else {"error": found.error})
        if output and first:
            output.write(result)
        elif first and args.jsonl and not output:
            print(json_text.line(result), end="", flush=True)
        elif first and found.error is None and not output:
            print(terminal.line(f"{name}: {found.text}") if len(records) > 1 else found.text, flush=True)
    _tell_failed(args, failed, len(records))


def _name(names: dict[str, Any], item: Item) -> str:
    """A record's name for people."""
    return item.media or f"line {names.get('line')}"


def _tell_failed(args: argparse.Namespace, failed: Sequence[str], total: int) -> None:
    if failed:
        what = "records cannot be answered" if args.jsonl else "files cannot be read"
        place = f"{args.out} says why" if args.out else "as was said above"
        raise UserError(
            f"Expected pictures and videos; {len(failed)} of {total} {what}, {place}: "
            f"{terminal.line(', '.join(failed[:5]))}{', ...' if len(failed) > 5 else ''}. Replace them or leave them "
            "out."
        )


def files_of(media: Sequence[str]) -> list[str]:
    """Returns the files that `--media` names: of a folder, those that end like a picture or a video, in order.

    Raises:
        UserError: there is no such file, it is no regular one, or a folder has none.
    """
    found: list[str] = []
    for path in media:
        if is_remote(path):
            found.append(path)
        elif os.path.isdir(path):
            found += _in_folder(path)
        elif not os.path.lexists(path) and glob.has_magic(path) and (matched := sorted(glob.glob(path))):
            found += [name for name in matched if not os.path.isdir(name)]
        else:
            try:
                local_files.check(path)
            except OSError as e:
                raise UserError(f"Expected a picture, a video or a folder of them in --media; {e}. Correct it.") from e
            found.append(path)
    return found


def _in_folder(folder: str) -> list[str]:
    try:
        names = sorted(os.listdir(folder))
    except OSError as e:
        raise UserError(f"The folder {folder} of --media cannot be read ({e}). Correct it.") from e
    # One that is no regular file is kept, so that reading says what is wrong with it.
    paths = [os.path.join(folder, name) for name in names if name.lower().endswith(_ENDINGS) and name[0] != "."]
    if not paths:
        raise UserError(
            f"The folder {folder} of --media has no file that ends like a picture or a video ({', '.join(_ENDINGS)}); "
            "folders in it are not searched. Name the files or the folder that has them."
        )
    return paths
