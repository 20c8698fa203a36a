"""What differs bitwise between machines: the same training with other thread counts and instruction sets.

python examples/miniature/rounding.py --world runs/miniature/world     after run.py pretrain, x86 only

Trains the perceiver of seed 0 for 100 steps four times and prints the loss of some steps. One setting twice is equal
to the last bit. Two threads split sums otherwise than one, and AVX2 sums in other groups than AVX-512: the first loss
is equal, the second differs in the seventh digit, and training makes it grow.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

SETTINGS = {
    "one thread": {"NPROC": "1"},
    "one thread again": {"NPROC": "1"},
    "two threads": {"NPROC": "2"},
    "one thread, AVX2": {"NPROC": "1", "XLA_FLAGS": "--xla_cpu_max_isa=AVX2"},
}
STEPS = (1, 2, 10, 50, 100)


def main() -> None:
    """Trains and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", type=Path, default=Path("runs/miniature/world"), help="of run.py pretrain")
    world = parser.parse_args().world.resolve()
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, variables) in enumerate(SETTINGS.items()):
            out = Path(folder) / str(number)
            train(world, out, variables)
            curve = [json.loads(line) for line in (out / "curve.jsonl").read_text().splitlines()]
            loss = {line["step"]: line["loss"] for line in curve if line["split"] == "train"}
            print(f"{name:20}" + "  ".join(f"{loss[step]:.16f}" for step in STEPS), flush=True)


def train(world: Path, out: Path, variables: dict[str, str]) -> None:
    """Trains 100 of 480 steps; ends with the training's status where that is not the one of a pause."""
    macros = {"DATA_DIR": world / "data", "MODEL_DIR": out}
    macros |= {"ENCODER_WEIGHTS": world / "seed0" / "vit", "LARGE_WEIGHTS": world / "seed0" / "large"}
    given = [f"--gin.{name}={str(path)!r}" for name, path in macros.items()]
    given += [f"--gin.TrainConfig.pause_at={STEPS[-1]}", "--gin.TrainConfig.log_every=1", "--gin.EVALUATIONS=[]"]
    command = [sys.executable, "-m", "vadapter", "train", "--gin_file=experiments/scenes_perceiver.gin", *given]
    status = subprocess.run(command, env={**os.environ, **variables}, stdout=subprocess.DEVNULL).returncode
    if status not in (0, 143):
        sys.exit(status)


if __name__ == "__main__":
    main()
