"""Takes open weights into a folder that runs can use, with gin files that describe the model.

vadapter import --source=siglip-so400m-patch14-384 --out=weights/siglip
vadapter import --source=gemma-3-4b-it --part=decoder --out=weights/gemma3_4b
vadapter train --gin_file=experiments/open_stage1.gin --gin_file=weights/siglip/encoder.gin ...

The source is a Hugging Face folder with safetensors, a .npz file of big_vision, a checkpoint of t5x, or an Orbax
checkpoint of Gemma. It is read piece by piece and is not changed.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import shlex
import shutil
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from vadapter.base import buckets
from vadapter.base.errors import UserError
from vadapter.base.paths import absolute, is_remote

if TYPE_CHECKING:
    from vadapter.weights.architecture import Architecture, Opened
    from vadapter.weights.mapping import Parameter

RECORD = "import.json"
DTYPES = {"bf16": "bfloat16", "f32": "float32"}
_PREFIX = {"vision": "encoder", "decoder": "decoder"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("--source", required=True, metavar="PATH", help="the weights: a folder or a file")
    parser.add_argument("--out", required=True, metavar="DIR", help="a new folder for what is imported")
    parser.add_argument("--part", choices=tuple(_PREFIX), help="the one to take of a source that has two models")
    parser.add_argument(
        "--dtype", choices=tuple(DTYPES), default="bf16", help="of the imported weights (default: %(default)s)"
    )
    parser.add_argument("--variant", metavar="NAME", help="the published size, where a source does not say it itself")
    parser.add_argument(
        "--tokenizer",
        metavar="PATH",
        help="tokenizer.json, a SentencePiece model or a folder with one (default: the source's)",
    )


def run(args: argparse.Namespace) -> None:
    """Imports the weights."""
    start = time.perf_counter()
    out = absolute(args.out)
    buckets.check(out)
    _check_free(out)

    from vadapter.weights import architecture, mapping
    from vadapter.weights.open import open_source

    opened = open_source(args.source)
    found = architecture.recognise(opened, args.part, args.variant)
    tokenizer = _tokenizer(args.tokenizer, found.part, opened.folder)
    parameters = [
        dataclasses.replace(p, path=f"{_PREFIX[found.part]}/{p.path}")
        for p in mapping.map_tensors(opened.tensors, found.rules, architecture.expected(found), found.ignored)
    ]
    with _staged(out) as folder:
        record = _write(args, folder, out, opened, found, parameters, tokenizer)
    print(
        f"Imported {found.family} ({found.part}) into {args.out}: {record['parameters']:,} parameters, "
        f"{record['bytes'] / 1e9:.2f} GB in {args.dtype}, {time.perf_counter() - start:.1f} s."
    )
    if found.part == "decoder" and not tokenizer:
        print("No tokenizer lies beside the source; a run needs VOCABULARY, or import again with --tokenizer.")


def _write(
    args: argparse.Namespace,
    folder: str,
    out: str,
    opened: "Opened",
    found: "Architecture",
    parameters: "list[Parameter]",
    tokenizer: dict[str, str],
) -> dict[str, Any]:
    """Writes everything into `folder`, which becomes `out`; returns what import.json says."""
    from etils import epath

    from vadapter.weights import gin_text, store, tokenizer_files

    dtype: Any = DTYPES[args.dtype]
    summary = {"kind": opened.kind, "family": found.family, "part": found.part}
    with _progress(f"{found.family} ({found.part})", store.size(parameters, dtype)) as advance:
        store.write(folder, parameters, dtype, {"imported": summary}, advance)
    record = {
        **summary,
        "source": {"name": os.path.basename(os.path.abspath(args.source)), "files": _file_names(args.source)},
        "dtype": dtype,
        "config": dataclasses.asdict(found.config),
        "parameters": sum(p.size for p in parameters),
        "bytes": store.size(parameters, dtype),
        "tokenizer": tokenizer_files.copy(tokenizer, folder) if tokenizer else {},
    }
    header = f"{_command(args)}\n\n{found.family} ({found.part}), {record['parameters']:,} parameters."
    for name, text in gin_text.gin_files(found.config, out, header).items():
        (epath.Path(folder) / name).write_text(text)
    (epath.Path(folder) / RECORD).write_text(json.dumps(record, indent=1) + "\n")
    return record


def _tokenizer(given: str | None, part: str, folder: str | None) -> dict[str, str]:
    from vadapter.weights import tokenizer_files

    if part != "decoder":
        if given:
            raise UserError("--tokenizer was given, and a vision encoder reads no text. Leave it out.")
        return {}
    place = given or folder
    found = tokenizer_files.find(place) if place else {}
    if given and not found:
        raise UserError(f"--tokenizer: {given} has neither tokenizer.json nor a SentencePiece .model file.")
    return found


def _check_free(out: str) -> None:
    from etils import epath

    folder = epath.Path(out)
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"--out: {out} is a file; expected the name of a new folder.")
    if names := sorted(path.name for path in folder.iterdir()):
        what = "weights that were imported before" if RECORD in names else f"other files ({', '.join(names[:3])})"
        raise UserError(f"--out: {out} holds {what}. Give a new folder, or remove this one first.")


@contextlib.contextmanager
def _staged(out: str) -> Iterator[str]:
    """A folder beside `out` that becomes `out` when everything is in it, and is removed if it does not come to that.

    In a bucket, where folders cannot be renamed, it is `out` itself: there the checkpoint alone is atomic.
    """
    if is_remote(out):
        yield out
        return
    parent, name = os.path.split(out)
    stage = os.path.join(parent, f".{name}.importing")
    if os.path.exists(stage):  # of an import that was killed
        shutil.rmtree(stage)
    try:
        yield stage
        os.replace(stage, out)
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        raise


@contextlib.contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    from rich import progress
    from rich.console import Console

    console = Console(stderr=True)
    columns = (progress.TextColumn("{task.description}"), progress.BarColumn(), progress.DownloadColumn())
    disable = not console.is_terminal
    with progress.Progress(
        *columns, progress.TimeRemainingColumn(), console=console, transient=True, disable=disable
    ) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)


def _file_names(source: str) -> list[str]:
    source = os.path.expanduser(source)
    if not os.path.isdir(source):
        return [os.path.basename(source)]
    return sorted(name for name in os.listdir(source) if os.path.isfile(os.path.join(source, name)))


def _command(args: argparse.Namespace) -> str:
    given = {name: getattr(args, name) for name in ("source", "out", "part", "dtype", "variant", "tokenizer")}
    return shlex.join(["vadapter", "import", *(f"--{name}={value}" for name, value in given.items() if value)])
