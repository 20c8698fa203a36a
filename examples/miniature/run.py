"""The miniature that decides: arms of the demo's world over learning rates and seeds, to one table.

python examples/miniature/run.py                       all parts, into runs/miniature: hours on two cores
python examples/miniature/run.py pretrain arms         some of them, in this order
python examples/miniature/run.py arms --only words     one arm of a sweep

A seed has its own encoder, language models and stage 1, each trained from other random numbers on data in another
order; the pictures are the same for all seeds. The learning rate of each arm is swept with the first seed, and chosen
by validation loss; the figures are those of the test split, which chooses nothing. What is finished is not done again.
"""

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
PARTS = ("pretrain", "arms", "scarce", "recipes")
RATES = "1e-3,3e-3,1e-2"
GIN = "examples/miniature/gin"

_HANDED = ("experiments/scenes_queries.gin", "runs/handoff.gin")
# name: gin files, own bindings
ARMS: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "perceiver": (("experiments/scenes_perceiver.gin",), {}),
    "perceiver_wide": (("experiments/scenes_perceiver.gin", f"{GIN}/perceiver_wide.gin"), {}),
    "mlp": ((f"{GIN}/mlp.gin",), {}),
    "paper": (("experiments/scenes_paper.gin",), {}),
    "queries_random": (("experiments/scenes_queries_random.gin",), {}),
    "queries_text": (
        ("experiments/scenes_queries.gin", f"{GIN}/text_only.gin"),
        {"STAGE1_RUN": "tiny"},
    ),
    "queries": (("experiments/scenes_queries.gin",), {}),
    "handoff": (_HANDED, {}),
    "handoff_frozen": ((*_HANDED, f"{GIN}/frozen.gin"), {}),
    "words": ((f"{GIN}/words.gin",), {}),
    "words_frozen": ((f"{GIN}/words.gin", f"{GIN}/frozen.gin"), {}),
    "queries_random_32": (("experiments/scenes_queries_random.gin",), {"NUM_QUERIES": "32"}),
}
FROM_STAGE1 = {
    name
    for name, (files, _) in ARMS.items()
    if "random" not in name and any(key in file for file in files for key in ("paper", "queries", "words"))
}


def main() -> None:
    """Runs the chosen parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"some of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--out", default="runs/miniature", help="folder of everything (default: %(default)s)")
    parser.add_argument("--seeds", default="0,1,2,3,4", help="the first chooses (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="trainings at a time, one core each (default: 2)")
    parser.add_argument("--only", default="", metavar="ARM,ARM", help="arms of the sweep; default all")
    args = parser.parse_args()
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"unknown parts {', '.join(sorted(unknown))}; expected some of {', '.join(PARTS)}")
    for part in (p for p in PARTS if p in (args.parts or PARTS)):
        {"pretrain": pretrain, "arms": arms}[part](args)


def world(args: argparse.Namespace, seed: str) -> Path:
    """The pretrained models and stage 1 of a seed."""
    return Path(args.out).resolve() / "world" / f"seed{seed}"


def pretrain(args: argparse.Namespace) -> None:
    """Trains encoder, language models and stage 1 of each seed, as the demo does."""
    for seed in args.seeds.split(","):
        command = ["demo", f"--output={world(args, seed)}", f"--seed={seed}", "--parts=vit,tiny,large,stage1"]
        vadapter([*command, f"--gin.DATA_DIR={str(data(args))!r}"])


def data(args: argparse.Namespace) -> Path:
    return Path(args.out).resolve() / "world" / "data"


def arms(args: argparse.Namespace) -> None:
    """Sweeps the arms."""
    names = args.only.split(",") if args.only else list(ARMS)
    sweep(args, "arms", {name: ARMS[name] for name in names}, [f"OptimizerConfig.learning_rate={RATES}"])


def sweep(args: argparse.Namespace, name: str, chosen: dict, over: list[str], bindings: tuple[str, ...] = ()) -> None:
    """Calls `vadapter sweep` on some arms."""
    there = world(args, "{seed}")
    command = [
        "sweep",
        f"--out={Path(args.out).resolve() / name}",
        f"--seeds={args.seeds}",
        f"--workers={args.workers}",
    ]
    command += ["--worker_env=NPROC=1", "--test=test/loss"]
    for arm, (files, own) in chosen.items():
        command.append(f"--arm={arm}={','.join(files)}")
        own = {"STAGE1_RUN": "stage1", **own} if arm in FROM_STAGE1 else own
        for macro, value in own.items():
            value = value if value.isdecimal() else repr(str(there / value))
            command.append(f"--arm_gin={arm}:{macro}={value}")
    command += [f"--over={values}" for values in over]
    command += [f"--gin_file={GIN}/measure.gin", f"--gin.DATA_DIR={str(data(args))!r}"]
    command += [
        f"--gin.{macro}={str(there / part)!r}"
        for macro, part in (("ENCODER_WEIGHTS", "vit"), ("LARGE_WEIGHTS", "large"))
    ]
    vadapter([*command, *(f"--gin.{binding}" for binding in bindings)])


def vadapter(command: list[str]) -> None:
    """Runs a command of vadapter; ends where it fails."""
    if status := subprocess.call([sys.executable, "-m", "vadapter", *command]):
        sys.exit(status)


if __name__ == "__main__":
    main()
