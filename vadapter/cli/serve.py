"""Serves trained models after OpenAI's interface of chat completions.

vadapter serve --bundle=owl
vadapter serve --bundle small=bundles/a large=runs/b --page --port=8080
VADAPTER_API_KEY=... vadapter serve --bundle=owl --host=0.0.0.0

A client takes http://127.0.0.1:8000/v1 as its base address, and the name of the bundle's folder as the model. An image
or a video is a part of a message, as a data: URL. The server is for this machine alone unless --host says otherwise; a
key that clients have to give is read from VADAPTER_API_KEY. Needs pip install 'vadapter[serve]'.
"""

import argparse
import importlib.util
import os
import sys
from typing import TYPE_CHECKING

from vadapter.base import terminal
from vadapter.base.errors import UserError

if TYPE_CHECKING:
    from vadapter.runs.model import TrainedModel
    from vadapter.serving.limits import Limits

KEY = "VADAPTER_API_KEY"
_LIBRARIES = ("starlette", "uvicorn", "prometheus_client")
_HUB = "hf:"  # as vadapter.weights.hub has it, which takes long to import
_LOOPBACK = ("localhost", "::1")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    from vadapter.cli.arguments import add_draft_arguments

    parser.add_argument(
        "--bundle",
        nargs="+",
        action="extend",
        required=True,
        metavar="[NAME=]DIR",
        help="folder that vadapter export wrote, or of a run, or hf:owner/name[@revision]; several are several models "
        "(default name: the folder's)",
    )
    for part in ("encoder", "decoder"):
        parser.add_argument(
            f"--{part}",
            metavar="DIR",
            help=f"an imported or trained folder with the {part} of all bundles (default: where each bundle says)",
        )
    parser.add_argument("--host", default="127.0.0.1", help="address that is served (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="0 takes a free one (default: %(default)s)")
    parser.add_argument("--page", action="store_true", help="serve a page for people at / too")
    parser.add_argument(
        "--rows", type=int, default=8, metavar="N", help="requests of a model decoded together (default: %(default)s)"
    )
    parser.add_argument(
        "--max_new_tokens",
        type=int,
        default=256,
        metavar="N",
        help="longest answer that may be asked for (default: %(default)s); a request that asks for none gets up to 32",
    )
    add_draft_arguments(parser)
    parser.add_argument(
        "--max_media",
        type=int,
        metavar="N",
        help="images and videos of a request (default: 4 for a model trained on conversations, else 1)",
    )
    parser.add_argument(
        "--max_requests", type=int, default=128, metavar="N", help="held at the same time (default: %(default)s)"
    )
    parser.add_argument(
        "--max_body_mb", type=int, default=32, metavar="MB", help="largest body of a request (default: %(default)s)"
    )
    parser.add_argument(
        "--max_megapixels", type=int, default=40, metavar="MP", help="largest picture (default: %(default)s)"
    )
    parser.add_argument(
        "--max_seconds", type=float, default=120, metavar="S", help="longest time of a request (default: %(default)s)"
    )
    parser.add_argument(
        "--allow_media_host",
        action="append",
        default=[],
        metavar="HOST",
        help="fetch pictures and videos from this host of the web (may be repeated; default: from none)",
    )
    parser.add_argument("--access_log", action="store_true", help="write a line of every request")


def run(args: argparse.Namespace) -> None:
    """Serves until it is told to stop.

    Raises:
        UserError: the extra is missing, the port is taken, a name is given twice, the key is empty, a number is not
            above 0, or as `vadapter.load`.
    """
    missing = [name for name in _LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"vadapter serve needs {' and '.join(missing)}, which is not installed. Install the extra: "
            "pip install 'vadapter[serve]'."
        )
    from vadapter.cli import arguments
    from vadapter.generation.config import DecodingConfig
    from vadapter.serving import app, fetch, server
    from vadapter.serving.engine import Engine

    limits, key, folders = _limits(args), _key(), _folders(args)
    decoding = DecodingConfig(**arguments.drafts(args))
    fetcher = fetch.Fetcher(limits) if limits.media_hosts else None
    found = server.bind(args.host, args.port)  # before the seconds that the models take
    engine = Engine({name: _load(args, folder) for name, folder in folders.items()}, limits, decoding)
    engine.warm_up()
    made = app.make(engine, limits, key=key, page=args.page, fetch=fetcher)

    def say(address: str) -> None:
        print(terminal.line(f"vadapter serves {', '.join(folders)} at {address}/v1"), flush=True)
        if args.page:
            print(f"The page is {address}/", flush=True)
        if not key and not (args.host in _LOOPBACK or args.host.startswith("127.")):
            print(
                f"vadapter: anybody who reaches {args.host} can use it: {KEY} is not set.", file=sys.stderr, flush=True
            )

    server.run(made, found, say, access_log=args.access_log, grace_seconds=limits.seconds)


def _limits(args: argparse.Namespace) -> "Limits":
    from vadapter.serving.limits import Limits

    counted = ("rows", "max_new_tokens", "max_media", "max_requests", "max_body_mb", "max_megapixels", "max_seconds")
    for name in counted:
        value = getattr(args, name)
        if value is not None and not 0 < value < 2**31:
            raise UserError(f"--{name} is {value}; expected a number above 0. Change it.")
    return Limits(
        requests=args.max_requests,
        rows=args.rows,
        new_tokens=args.max_new_tokens,
        media=args.max_media,
        body_bytes=args.max_body_mb << 20,
        held_bytes=max(512, 2 * args.max_body_mb) << 20,
        pixels=args.max_megapixels * 1_000_000,
        seconds=args.max_seconds,
        media_hosts=tuple(args.allow_media_host),
    )


def _key() -> str:
    key = os.environ.get(KEY)
    if key is not None and not (key.strip() and key.isascii() and key.strip().isprintable()):
        raise UserError(
            f"The variable {KEY} is set, and is empty or no line of ASCII: whoever set it meant to ask for a key. Give "
            "it one, or unset it to ask for none."
        )
    return (key or "").strip()


def _folders(args: argparse.Namespace) -> dict[str, str]:
    found: dict[str, str] = {}
    for given in args.bundle:
        name, equals, folder = given.partition("=")
        if not equals or "/" in name:
            place = given.partition("@")[0] if given.startswith(_HUB) else given
            name, folder = os.path.basename(os.path.normpath(place)), given
        if not name or not folder:
            raise UserError(f"Expected --bundle DIR or NAME=DIR; found {given!r}. Correct it.")
        if name in found:
            raise UserError(
                f"Two bundles have the name {name}: {found[name]} and {folder}. Name them: --bundle a={found[name]} "
                f"b={folder}."
            )
        found[name] = folder
    return found


def _load(args: argparse.Namespace, folder: str) -> "TrainedModel":
    import jax

    from vadapter.base import compile_cache
    from vadapter.partitioning import Partitioner, make_mesh
    from vadapter.runs import hub_bundle
    from vadapter.runs.load import load

    compile_cache.start()
    if folder.startswith(_HUB):
        folder = hub_bundle.fetch(folder)
    one = Partitioner(make_mesh(devices=jax.devices()[:1]))  # rows that come and go are on one device
    return load(folder, encoder=args.encoder, decoder=args.decoder, partitioner=one)
