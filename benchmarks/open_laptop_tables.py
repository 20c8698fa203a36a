"""The tables of docs/open.md that come from `make open`: one file of results, and Markdown of it.

python benchmarks/open_laptop_tables.py collect runs/open examples/open/results/laptop.json
python benchmarks/open_laptop_tables.py tables examples/open/results/laptop.json

`collect` takes from a folder of runs what the tables need; `tables` prints them.
"""

import argparse
import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ARMS = ("perceiver", "mlp", "pixel_shuffle", "queries", "queries_frozen")
SHOWN = 10  # pictures of the gallery, the first of the test
_TESTS = {"test": "test", "unseen hand": "unseen_hand"}
SCORES = ("reliance/right", "reliance/shuffled_gap", "generation/cider", "generation/exact_match")


def collect(runs: Path) -> dict[str, Any]:
    """Returns the results of the runs of each seed, and what they ran on."""
    found = []
    for seed in sorted(runs.glob("seed*")):
        for name in ("stage1", *ARMS):
            folder = seed / name
            if (folder / "done.json").is_file():
                found.append({"arm": name, "seed": int(seed.name.removeprefix("seed")), **_run(folder)})
    versions = {name: importlib.metadata.version(name) for name in ("jax", "flax", "numpy")}
    machine = {"processor": platform.machine(), "python": platform.python_version(), **versions}
    return {"command": "make open", "machine": machine, "runs": found}


def _run(folder: Path) -> dict[str, Any]:
    done = json.loads((folder / "done.json").read_text())
    curve = [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]
    run: dict[str, Any] = {
        "steps": done["step"],
        "seconds": round(done["seconds"], 1),
        "trained_parameters": done["trainable_params"],
        "validation": {str(line["step"]): round(line["loss"], 4) for line in curve if line["split"] == "val"},
    }
    for test, place in (("test", folder), ("unseen_hand", folder / "captions_unseen_hand")):
        if (place / "metrics.json").is_file():
            metrics = json.loads((place / "metrics.json").read_text())
            run[test] = {name: round(metrics["scores"][name], 4) for name in SCORES}
            run[test]["cider_interval"] = [round(x, 3) for x in metrics["intervals"]["generation/cider"]]
    if (folder / "predictions.jsonl").is_file():
        lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()[:SHOWN]]
        run["gallery"] = [[line["id"], line["references"][0], line["prediction"]] for line in lines]
    return run


def results(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the table of the arms."""
    measured = ("loss", "reliance", "CIDEr")
    head = ["arm", "trained parameters", "validation loss", *(f"{test} {name}" for test in _TESTS for name in measured)]
    rows = [f"| {' | '.join([*head, 'seconds'])} |", "| --- |" + " --- |" * len(head)]
    for run in runs:
        cells = [f"`{run['arm']}`", f"{run['trained_parameters']:,}", f"{list(run['validation'].values())[-1]:.3f}"]
        for test in _TESTS.values():
            low, high = run[test]["cider_interval"]
            cells += [f"{run[test][name]:.3f}" for name in SCORES[:2]]
            cells.append(f"{run[test]['generation/cider']:.1f} [{low:.1f}, {high:.1f}]")
        rows.append(f"| {' | '.join([*cells, str(round(run['seconds']))])} |")
    return rows


def gallery(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns what each arm says of the first pictures of the test."""
    arms = " | ".join(f"`{run['arm']}`" for run in runs)
    rows = [f"| picture | {arms} |", f"| --- |{' --- |' * len(runs)}"]
    for lines in zip(*(run["gallery"] for run in runs), strict=True):
        cells = [lines[0][0], *(said for _, _, said in lines)]
        rows.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return rows


def tables(record: Mapping[str, Any]) -> str:
    """Returns the Markdown of seed 0."""
    arms = [run for run in record["runs"] if run["arm"] != "stage1" and run["seed"] == 0]
    return "\n".join([*results(arms), "", *gallery(arms)]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    collecting = commands.add_parser("collect")
    collecting.add_argument("runs", type=Path)
    collecting.add_argument("out", type=Path)
    printing = commands.add_parser("tables")
    printing.add_argument("results", type=Path)
    args = parser.parse_args()
    if args.command == "collect":
        args.out.write_text(json.dumps(collect(args.runs), indent=1, ensure_ascii=False) + "\n")
    else:
        print(tables(json.loads(args.results.read_text())), end="")


if __name__ == "__main__":
    main()
