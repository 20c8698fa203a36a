"""Captions an image or a video, or answers a question about it.

vadapter infer --model_dir=runs/queries --media=photo.jpg
vadapter infer --bundle=owl --media=clip.mp4 --question='what moves ?'
vadapter infer --bundle=owl --media photos more/dog.jpg --decoding=sample --temperature=0.7
vadapter infer --bundle=owl --encoder=weights/siglip --decoder=weights/gemma --media=photo.jpg

Needs neither the gin files nor the data that the model was trained with.
"""

import argparse
import functools
import os
import sys
from collections.abc import Sequence
from typing import Any

from vadapter.base import local_files
from vadapter.base.errors import UserError
from vadapter.base.paths import is_remote

# What a folder is searched for. A file that is named may have any ending.
_PICTURES = "jpg jpeg jpe jfif png webp gif bmp tif tiff avif jp2 ppm pgm"
_VIDEOS = "mp4 mov m4v mkv webm avi mpg mpeg ogv ts"
_ENDINGS = tuple(f".{ending}" for ending in f"{_PICTURES} {_VIDEOS}".split())
_OF_METHOD = {"temperature": "sample", "top_p": "sample", "seed": "sample", "beams": "beam"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    from vadapter.cli.arguments import add_model_arguments

    add_model_arguments(parser)
    parser.add_argument(
        "--media",
        required=True,
        nargs="+",
        action="extend",
        metavar="FILE",
        help="JPEG, PNG, WebP or video, or a folder of them; may be several, and repeated",
    )
    parser.add_argument("--question", metavar="TEXT", help="asks this; without it the file is captioned")
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
    chosen = {name: value for name in _OF_METHOD if (value := getattr(args, name)) is not None}
    for name, value in chosen.items():
        if args.method != _OF_METHOD[name]:
            raise UserError(
                f"--{name} {value} does nothing with --decoding={args.method}. Add --decoding={_OF_METHOD[name]}, or "
                f"leave --{name} out."
            )
    paths = files_of(args.media)  # before the seconds that jax and the model take

    import jax

    from vadapter.cli import arguments
    from vadapter.generation.config import DecodingConfig
    from vadapter.partitioning import MeshConfig, Partitioner, hosts, make_mesh

    decoding = DecodingConfig(method=args.method, max_new_tokens=args.max_new_tokens, **chosen)
    hosts.start()
    trained = arguments.trained(args, Partitioner(make_mesh(MeshConfig(*args.mesh))))
    settings: Any = {"prompt": args.prompt, "decoding": decoding}
    ask = functools.partial(trained.answer, question=args.question) if args.question else trained.caption
    unreadable = []
    for path in paths:
        try:
            text = ask(path, **settings)
        except UserError as e:
            if len(paths) == 1 or not _is_of_a_file(e):
                raise
            unreadable.append(path)
            print(e, file=sys.stderr, flush=True)
            continue
        if jax.process_index() == 0:
            print(f"{path}: {text}" if len(paths) > 1 else text, flush=True)
    if unreadable:
        raise UserError(
            f"Expected pictures and videos; {len(unreadable)} of {len(paths)} files cannot be read, as was said above: "
            f"{', '.join(unreadable[:5])}{', ...' if len(unreadable) > 5 else ''}. Replace them or leave them out."
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


def _is_of_a_file(error: BaseException) -> bool:
    """Whether an error is of the file that was read, so that others may be sound."""
    from vadapter.data.reading.images import MediaError

    found: BaseException | None = error
    while found is not None and not isinstance(found, MediaError | OSError):
        found = found.__cause__
    return found is not None
