"""Captions an image or a video, or answers a question about it.

vadapter infer --model_dir=runs/queries --media=photo.jpg
vadapter infer --bundle=owl --media=clip.mp4 --question='what moves ?'
vadapter infer --bundle=owl --encoder=weights/siglip --decoder=weights/gemma --media=photo.jpg

Needs neither the gin files nor the data that the model was trained with.
"""

import argparse
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    from vadapter.cli.arguments import add_model_arguments

    add_model_arguments(parser)
    parser.add_argument(
        "--media", required=True, action="append", metavar="FILE", help="JPEG, PNG, WebP or video; may be repeated"
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
    parser.add_argument("--beams", type=int, default=4, metavar="N", help="of beam (default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=1.0, metavar="T", help="of sample (default: %(default)s)")
    parser.add_argument("--top_p", type=float, default=1.0, metavar="P", help="of sample (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of sample (default: %(default)s)")
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
    """Prints what the model says of each file."""
    import dataclasses

    import jax

    from vadapter.cli import arguments
    from vadapter.generation.config import DecodingConfig
    from vadapter.partitioning import MeshConfig, Partitioner, hosts, make_mesh

    given = {f.name: getattr(args, f.name) for f in dataclasses.fields(DecodingConfig) if hasattr(args, f.name)}
    decoding = DecodingConfig(**given)
    hosts.start()
    trained = arguments.trained(args, Partitioner(make_mesh(MeshConfig(*args.mesh))))
    for path in args.media:
        settings: Any = {"prompt": args.prompt, "decoding": decoding}
        text = trained.answer(path, args.question, **settings) if args.question else trained.caption(path, **settings)
        if jax.process_index() == 0:
            print(f"{path}: {text}" if len(args.media) > 1 else text)
