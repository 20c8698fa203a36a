"""The table of a sweep's results: a line a run, made of what the runs left in their folders."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vadapter.base import files
from vadapter.reports.files import load_curve
from vadapter.runs.sweep import Run, Sweep

JSONL = "results.jsonl"
PARQUET = "results.parquet"
LOG = "log.txt"
Line = dict[str, Any]


def read(out: Path) -> list[Line]:
    """Returns the lines that a former call left; none where there is no table."""
    path = out / JSONL
    return files.split_lines(path.read_bytes().decode("utf-8", "replace"))[0] if path.is_file() else []


def line(sweep: Sweep, run: Run, out: Path) -> Line:
    """Returns what a run's folder says. Its status is `done`, `paused` (it has begun), `waiting`, or `failed`: it
    finished without the loss that chooses."""
    folder = out / run.folder
    done, made_with = (files.read_record(folder / name) for name in ("done.json", "environment.json"))
    curve = load_curve(folder, sweep.validation)
    evals = done.get("evals", {})
    best = min(curve, key=lambda point: point[1], default=(None, None))
    last = curve[-1] if curve else (None, None)
    status, note = "done" if done else "paused" if (folder / LOG).is_file() else "waiting", ""
    if done and last[0] != done["step"]:
        names = ", ".join(evals) or "none"
        status, note = "failed", f"no finite loss of an evaluation {sweep.validation!r} at its end; it has {names}"
    elif done and sweep.test and _scalar(evals, sweep.test) is None:
        names = ", ".join(f"{name}/{scalar}" for name, scalars in evals.items() for scalar in scalars)
        note = f"it has no figure {sweep.test}; it has {names}"
    return {
        "arm": run.arm.name,
        "setting": dict(run.setting.values),
        "name": run.setting.name,
        "seed": run.seed,
        "status": status,
        "chosen": False,
        "edge": "",
        "note": note,
        "steps": done.get("step", last[0]),
        "seconds": done.get("seconds"),
        "trained_parameters": done.get("trainable_params"),
        "validation": {"last": last[1], "best": best[1], "best_step": best[0]},
        "test": _scalar(evals, sweep.test),
        "evals": evals,
        "curve": [list(point) for point in curve],
        "gin_files": sweep.files_of(run.arm, run.seed),
        "gin_bindings": sweep.bindings_of(run, str(folder)),
        "environment": made_with,
        "model_dir": run.folder,
    }


def loss_at(found: Mapping[str, Any], step: int | None) -> float | None:
    """Returns the validation loss of a line at a step: of the latest measurement up to there; None: at its end.

    A run that failed, or has no such measurement, has none.
    """
    if found["status"] == "failed" or (step is None and found["status"] != "done"):
        return None
    if step is None:
        return next((loss for at, loss in found["curve"] if at == found["steps"]), None)
    return next((loss for at, loss in reversed(found["curve"]) if at <= step), None)


def _scalar(evals: Mapping[str, Mapping[str, float]], name: str) -> float | None:
    evaluation, _, scalar = name.partition("/")
    return evals.get(evaluation, {}).get(scalar)


def write(out: Path, lines: Sequence[Line]) -> None:
    """Writes `results.jsonl` and `results.parquet`, each in place of the former one at once."""
    text = "".join(json.dumps(_finite(found), allow_nan=False) + "\n" for found in lines)
    files.write_text(out / JSONL, text)
    _write_parquet(out / PARQUET, lines)


def _write_parquet(path: Path, lines: Sequence[Line]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    rows = [_flat(_finite({k: v for k, v in found.items() if k != "curve"})) for found in lines]
    names = list(dict.fromkeys(name for row in rows for name in row))
    partial = path.with_name(path.name + ".partial")
    parquet.write_table(pa.table({name: [row.get(name) for row in rows] for name in names}), partial)
    partial.replace(path)


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested names joined by slashes, such as `evals/val/loss`."""
    found: dict[str, Any] = {}
    for name, item in value.items():
        found |= _flat(item, f"{prefix}{name}/") if isinstance(item, Mapping) else {prefix + name: item}
    return found


def _finite(value: Any) -> Any:
    """The same with None for numbers that are not finite, which JSON does not have."""
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
