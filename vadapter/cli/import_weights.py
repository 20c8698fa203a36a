"""Takes open weights into a folder that runs can use, with gin files that describe the model.

vadapter import --source=hf:google/siglip-so400m-patch14-384 --out=weights/siglip
vadapter import --source=downloads/gemma-3-4b-it --part=decoder --out=weights/gemma3_4b
vadapter train --gin_file=experiments/open_stage1.gin --gin_file=weights/siglip/encoder.gin ...

The source is a Hugging Face folder with safetensors, a .gguf file of llama.cpp (pip install 'vadapter[gguf]'), a .npz
file of big_vision, a checkpoint of t5x, or an Orbax checkpoint of Gemma. It is read piece by piece and is not changed.
hf:owner/name[/file.gguf][@revision] names a model of Hugging Face's hub, which is fetched first: its cache, its login
and its offline mode hold (HF_HOME, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE).
"""

import argparse
import contextlib
import shlex
import time
from collections.abc import Callable, Iterator

from vadapter.base import terminal

_NAMES = ("source", "out", "part", "dtype", "variant", "tokenizer")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("--source", required=True, metavar="PATH", help="a folder or a file, or hf:owner/name")
    parser.add_argument("--out", required=True, metavar="DIR", help="a new folder for what is imported")
    parser.add_argument("--part", choices=("encoder", "decoder"), help="the one to take of a source with two models")
    parser.add_argument(
        "--dtype", choices=("bf16", "f32"), default="bf16", help="of the imported weights (default: %(default)s)"
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

    from vadapter.recipes import gin_text
    from vadapter.weights.importer import Imported, import_weights

    given = {name: getattr(args, name) for name in _NAMES}
    command = shlex.join(["vadapter", "import", *(f"--{name}={value}" for name, value in given.items() if value)])

    def gin_files(imported: Imported) -> dict[str, str]:
        header = f"{command}\n\n{imported.family} ({imported.part}), {imported.parameters:,} parameters."
        if imported.prompt_format:
            header += f"\nInstruction-tuned models of this family read chats of the format {imported.prompt_format}."
        return gin_text.gin_files(imported.config, imported.folder, header)

    with _bar() as progress:
        done = import_weights(**given, progress=progress, more_files=gin_files)
    print(
        f"Imported {done.family} ({done.part}) into {terminal.line(args.out)}: {done.parameters:,} parameters, "
        f"{done.bytes / 1e9:.2f} GB in {args.dtype}, {time.perf_counter() - start:.1f} s."
    )
    for note in done.notes:
        print(terminal.line(note))
    if done.part == "decoder" and not done.tokenizer:
        print("No tokenizer lies beside the source; a run needs VOCABULARY, or import again with --tokenizer.")


@contextlib.contextmanager
def _bar() -> Iterator[Callable[[int, int], None]]:
    from rich import progress
    from rich.console import Console

    console = Console(stderr=True)
    columns = (progress.TextColumn("import"), progress.BarColumn(), progress.DownloadColumn())
    with progress.Progress(
        *columns, progress.TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("import", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
