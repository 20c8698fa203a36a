"""How long until `vadapter infer` says its first word, beside reading the weights from the disk?

    python benchmarks/startup.py                         # a bundle of real sizes with random weights
    python benchmarks/startup.py --bundle=runs/open/bundle --media=photo.jpg
    python benchmarks/startup.py --bundle=... --media=... --train="--gin_file=... --gin.ENCODER_WEIGHTS=..."

Each round starts a process of each arm: `read`, which reads all the weights' files and does nothing else, the limit;
`load`, which loads the model (`vadapter.load`); and `infer`, the whole command with one new token. `import` stops after
importing what `infer` imports. With `--train`, arguments of `vadapter train` without its MODEL_DIR and TRAIN_STEPS, an
arm `train` makes a new run of one step, its last checkpoint included. Files are in the page cache and programs in the
compile cache after a first round that does not count. `--clock=cpu` counts seconds of the CPUs, for a machine that
others use. It prints one JSON object. Without `--bundle` the models are those of startup_bundle.py, which needs torch
and transformers.
"""

import argparse
import functools
import json
import os
import platform
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import startup_bundle

import paired

_READ = """
import sys
for path in sys.argv[1:]:
    with open(path, 'rb', buffering=0) as file:
        while file.read(1 << 24):
            pass
"""
_IMPORT = "import vadapter.cli.infer, vadapter.runs.load, vadapter.runs.many, vadapter.partitioning.hosts"
_LOAD = """
import sys
from vadapter.base import compile_cache
from vadapter.runs.load import load
compile_cache.start()
load(sys.argv[1])
assert 'tensorflow' not in sys.modules
"""


def files(bundle: str) -> list[str]:
    """Returns the files that a bundle reads: its own and those of its backbones."""
    from vadapter.base.paths import resolve
    from vadapter.runs import bundle as bundles

    folders = [Path(bundle), *(Path(resolve(b.path, bundle)) for b in bundles.read(bundle).backbones)]
    return [str(p) for folder in folders for p in sorted(folder.rglob("*")) if p.is_file()]


def children(clock: str) -> Callable[[], float]:
    """Returns a clock for processes that were waited for."""
    if clock == "wall":
        return time.perf_counter

    def seconds() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    return seconds


def arms(bundle: str, media: str, train: Sequence[str] = ()) -> dict[str, Callable[[], Any]]:
    """Returns functions that start a process and wait for it, and raise if it fails.

    Args:
        bundle: to start.
        media: a picture.
        train: arguments of `vadapter train` without its MODEL_DIR and TRAIN_STEPS; without them there is no such arm.
    """
    infer = ["-m", "vadapter", "infer", f"--bundle={bundle}", f"--media={media}", "--max_new_tokens=1"]
    commands: dict[str, list[str]] = {
        "read": ["-c", _READ, *files(bundle)],
        "import": ["-c", _IMPORT],
        "load": ["-c", _LOAD, bundle],
        "infer": infer,
    }

    def start(*command: str) -> None:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.run([sys.executable, *command], check=True, **quiet)  # type: ignore[call-overload]

    def train_one_step() -> None:
        with tempfile.TemporaryDirectory() as folder:
            start("-m", "vadapter", "train", *train, f"--gin.MODEL_DIR={folder + '/run'!r}", "--gin.TRAIN_STEPS=1")

    made: dict[str, Callable[[], Any]] = {name: functools.partial(start, *given) for name, given in commands.items()}
    return made | ({"train": train_one_step} if train else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", help="default: one is made, with random weights")
    parser.add_argument("--media", default=str(startup_bundle.PICTURE), help="a picture (default: one of the samples)")
    parser.add_argument("--train", metavar="ARGUMENTS", help="of vadapter train, in one string")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clock", default="wall", choices=["wall", "cpu"])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle, train = args.bundle, shlex.split(args.train or "")
        if not bundle:
            bundle, made = startup_bundle.make(Path(folder))
            train = train or made
        seconds = paired.rounds(arms(bundle, args.media, train), args.rounds, children(args.clock))
        size = sum(os.path.getsize(file) for file in files(bundle))
    print(
        json.dumps(
            {
                "question": "seconds until the first word, beside reading the files of the weights",
                "seconds": paired.medians(seconds),
                "times_read": {name: paired.ratio(x, seconds["read"]) for name, x in seconds.items() if name != "read"},
                "times_load": paired.ratio(seconds["infer"], seconds["load"]),
                "gigabytes": round(size / 1e9, 3),
                "clock": args.clock,
                "bundle": "given" if args.bundle else "random weights",
                "train": args.train,
                "device": f"{platform.machine()}, {os.cpu_count()} CPUs",
                "date": time.strftime("%Y-%m-%d"),
            }
        )
    )


if __name__ == "__main__":
    main()
