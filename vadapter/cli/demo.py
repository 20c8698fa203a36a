"""Runs the whole method in miniature: data, pretraining, stage 1, stage 2 of six arms, evaluation, report.

vadapter demo                                   about 15 minutes on two CPU cores, into demo/
vadapter demo --parts=queries,report --fresh    one arm once more, and the report

Every part is an ordinary run of gin/experiments/scenes_<part>.gin. What is finished is not done again; a part that was
stopped goes on where it was.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import os
import shutil
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import vadapter
from vadapter.base import resources, terminal
from vadapter.base.errors import UserError

if TYPE_CHECKING:
    from vadapter.reports.data import Comparison

PRETRAINING = ("vit", "tiny", "large")
ARMS = {
    "perceiver": "the baseline: a perceiver resampler",
    "paper": "the paper's shape: a new 1-layer resampler, then the aligned tiny LM",
    "queries_random": "all visual tokens, then learned queries, through a tiny LM at random",
    "queries": "the same with the aligned tiny LM, and the hand-off",
    "queries_frozen": "the same with the aligned tiny LM frozen",
    "words": "as queries, and the aligned tiny LM writes words of its own",
}
VIDEO = "video"  # the arm `queries` goes on to clips; outside of the comparison
PARTS = (*PRETRAINING, "stage1", *ARMS, VIDEO, "report")
BASELINE = "perceiver"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("--output", default="demo", metavar="DIR", help="where everything goes (default: %(default)s)")
    parser.add_argument(
        "--parts",
        default=",".join(PARTS),
        metavar="A,B",
        help="only these, of: %(default)s (parts need those before them)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of data order and parameters (default: 0)")
    parser.add_argument(
        "--fresh", action="store_true", help="delete what the chosen parts wrote before, and do them again"
    )
    parser.add_argument(
        "--gin.NAME",  # only for the help: vadapter.cli.main rewrites --gin.NAME=VALUE
        "--gin_bindings",
        dest="gin_bindings",
        action="append",
        default=[],
        metavar="VALUE",
        help="a setting over those of every part's gin file, such as --gin.TRAIN_STEPS=60 for a rehearsal",
    )


def run(args: argparse.Namespace) -> None:
    """Does the chosen parts in their order."""
    chosen = [part for part in args.parts.split(",") if part]
    if unknown := set(chosen) - set(PARTS):
        raise UserError(f"--parts names {', '.join(sorted(unknown))}; expected some of {', '.join(PARTS)}.")
    _check_alone()
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")  # TensorFlow reads data here and must not take a GPU's memory.
    start, output = time.perf_counter(), Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    for part in (p for p in PARTS if p in chosen):
        print(f"\n[{_clock(start)}] {part}", flush=True)
        if part == "report":
            write_report(output, args.seed, args.gin_bindings)
        else:
            train_part(part, output, args.seed, args.fresh, args.gin_bindings)
    print(f"\n[{_clock(start)}] done")


def _check_alone() -> None:
    from vadapter.partitioning import hosts

    number = hosts.settings(hosts.HostsConfig()).get("num_processes", 1)
    if number > 1:
        raise UserError(
            f"JAX_NUM_PROCESSES says that this is one of {number} processes; the demo is a run of one. Start it on one "
            "host only, with JAX_NUM_PROCESSES=1."
        )


def train_part(part: str, output: Path, seed: int, fresh: bool, overrides: list[str]) -> None:
    """Trains one part, unless it is finished.

    Raises:
        UserError: the part was begun with other settings.
    """
    from vadapter.base import files
    from vadapter.recipes import experiments
    from vadapter.recipes.gin_front import config_text, parse_gin, save_config
    from vadapter.runs import train

    folder = output / part
    if fresh and folder.exists():
        shutil.rmtree(folder)
    experiments.register()
    parse_gin([f"experiments/scenes_{part}.gin"], [*bindings(part, output, seed), *overrides])
    saved = folder / "config.gin"
    if saved.exists() and saved.read_text() != config_text():
        raise UserError(
            f"{folder} was begun with other settings than those of now (its config.gin has them). Give another "
            f"--output, or do it again: vadapter demo --output={output} --fresh --parts={part}."
        )
    if files.read_record(folder / "done.json"):  # one that was cut counts as none
        print(terminal.line(f"{folder} is finished."))
        return
    ended = train.run(experiments.made(), accepted=save_config)
    if ended.interrupted:
        raise SystemExit(128 + (ended.signal or signal.SIGTERM))  # as of `vadapter train`


def bindings(part: str, output: Path, seed: int) -> list[str]:
    """Returns the macros that an experiment of the demo leaves open."""
    macros = {"MODEL_DIR": output / part, "DATA_DIR": output / "data"}
    if part not in PRETRAINING:
        macros["ENCODER_WEIGHTS"] = output / "vit"
    if part == "stage1":
        macros["TINY_WEIGHTS"] = output / "tiny"
    if part in (*ARMS, VIDEO):
        macros["LARGE_WEIGHTS"] = output / "large"
        if part not in ("perceiver", "queries_random"):
            macros["STAGE1_RUN"] = output / "stage1"
        if part == VIDEO:
            macros["STAGE1_RUN"] = output / "queries"
    return [f"SEED={seed}", *(f"{name}={str(path)!r}" for name, path in macros.items())]


def write_report(output: Path, seed: int, overrides: list[str]) -> None:
    """Writes `results.json`, `report.html` and `picture.svg` of the arms that are there, and prints a table."""
    from vadapter.reports import comparison, data, picture
    from vadapter.reports.files import load_run

    done = [name for name in ARMS if (output / name / "done.json").exists()]
    if BASELINE not in done:
        raise UserError(
            f"The report compares with the arm {BASELINE!r}, which {output} does not have. Run that part first."
        )
    known = over_seeds()
    arms = data.compare([load_run(output / name, name, _described(name, known)) for name in done], BASELINE)
    packages = ("jax", "flax", "optax", "seqio", "tensorflow")
    versions = {name: importlib.metadata.version(name) for name in packages}
    content = data.Comparison(
        "Progressive alignment in miniature",
        arms,
        BASELINE,
        config_text="\n".join(["# over the shipped gin/experiments/scenes_*.gin:", f"SEED = {seed}", *overrides]),
        seed=seed,
        environment={"vadapter": vadapter.__version__, **versions},
    )
    results = json.dumps(comparison.results_json(content), indent=2)
    (output / "results.json").write_text(results + "\n")
    comparison.write(with_clips(content, output), output / "report.html")
    picture.write_picture(content, output / "picture.svg")
    print_table(arms, {name: _test_loss(output / name) for name in done}, known)
    place = terminal.line(output)
    print(f"\nFigures: {place}/results.json\nReport, open it in a browser: {place}/report.html")
    print(f"Curves in TensorBoard: tensorboard --logdir={place}")


def over_seeds() -> dict[str, str]:
    """What examples/miniature found of the arms over its seeds: the loss on the test split with a 95% interval."""
    path = resources.folder("data") / "scenes" / "miniature.json"
    return json.loads(path.read_text())["test_loss"]


def _described(name: str, known: Mapping[str, str]) -> str:
    return f"{ARMS[name]}; test loss over five seeds {known[name]}" if name in known else ARMS[name]


def _test_loss(folder: Path) -> str:
    from vadapter.base import files

    found = files.read_record(folder / "done.json").get("evals", {}).get("test")
    return f"{found['loss']:.3f}" if found else "-"


def with_clips(content: "Comparison", output: Path) -> "Comparison":
    """Returns the report with what the part `video` says of clips, if that part is done."""
    from vadapter.reports.files import load_run

    if not (output / VIDEO / "done.json").exists():
        return content
    clips = load_run(output / VIDEO, VIDEO, "the arm `queries`, trained on with clips: other examples, no curve")
    clips = dataclasses.replace(clips, curve=[], train_curve=[])
    return dataclasses.replace(content, runs=[*content.runs, clips])


def print_table(arms: list, test: Mapping[str, str], known: Mapping[str, str]) -> None:
    """Prints the arms side by side: those of this run, and the test loss over several seeds beside this one's."""
    from rich.console import Console
    from rich.table import Table

    columns = ("arm", "trained", "seconds", "val loss", "CIDEr", "exact", "VQA", "steps to baseline")
    columns = (*columns, "test loss", "over 5 seeds")
    table = Table(*columns)
    for arm in arms:
        figures = (arm.val_loss, *(arm.scores.get(name) for name in ("cider", "exact_match", "vqa_accuracy")))
        cells = [
            "-" if x is None else form % x for x, form in zip(figures, ("%.3f", "%.1f", "%.2f", "%.2f"), strict=True)
        ]
        reached = "never" if arm.steps_to_baseline is None else str(arm.steps_to_baseline)
        tested = (test[arm.name], known.get(arm.name, "-"))
        table.add_row(arm.name, f"{arm.trainable_params:,}", f"{arm.seconds:.0f}", *cells, reached, *tested)
    Console(width=max(120, Console().width)).print(table)


def _clock(start: float) -> str:
    minutes, seconds = divmod(int(time.perf_counter() - start), 60)
    return f"{minutes:2d}:{seconds:02d}"
