"""A sweep as one self-contained HTML page: arms, paired differences, curves with bands, loss against what was swept."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from vadapter.base import pages
from vadapter.base.errors import UserError
from vadapter.evaluation.seeds import FEW
from vadapter.reports import chart as charts
from vadapter.reports import summary as words
from vadapter.reports.sweep_data import (
    ArmSummary,
    estimate_text,
    load,
    mean_curve,
    paired,
    summaries,
    swept_curves,
)

_SIZES = (("wide", 920, 430), ("narrow", 360, 330))


def write(
    folder: str | Path,
    path: str | Path,
    *,
    baseline: str | None = None,
    title: str | None = None,
    results: str | Path | None = None,
) -> None:
    """Writes the page of a sweep, finished or not.

    Args:
        folder: the sweep's.
        path: the HTML file; its folder is made if missing.
        baseline: the arm that others are compared with; default the first.
        title: heading; made of the folder's name by default.
        results: also write the summary as JSON here.

    Raises:
        UserError: the folder is not that of a sweep with a run, or the baseline is no arm of it.
    """
    sweep, lines = load(folder)
    test = sweep["test"]
    arms = summaries(lines, test)
    names = [arm.name for arm in arms]
    baseline = baseline or names[0]
    if baseline not in names:
        raise UserError(f"The baseline must be one of the arms ({', '.join(names)}); found {baseline!r}.")
    choosing = sweep["seeds"] if sweep["all_seeds"] else sweep["seeds"][:1]
    pairs = paired(arms, baseline, test)
    slots = {name: charts.slot(index + 1) for index, name in enumerate(names)}
    content = {
        "title": title or f"Sweep {Path(folder).resolve().name}",
        "style": Markup(charts.style()),
        "less_is_better": not test or test.endswith("loss"),
        "figure_name": test or "validation loss",
        "arms": [(arm, _cells(arm, test)) for arm in arms],
        "columns": _columns(test),
        "slots": slots,
        "baseline": baseline,
        "pairs": [(p, _by_seed(p.by_seed), estimate_text(p.mean, "+")) for p in pairs],
        "curves": _charts(_curves(arms), "Validation loss against training step"),
        "swept": [(name, _swept(points, names, name)) for name, points in swept_curves(lines, choosing).items()],
        "how": _how(sweep, choosing),
        "runs": [(name, [_run_cells(line) for line in lines if line["arm"] == name]) for name in names],
        "unfinished": sum(line["status"] == "paused" for line in lines),
        "facts": _facts(lines),
        "configurations": [_configuration(arm.name, lines) for arm in arms],
    }
    page = pages.render(Path(__file__).parent / "templates" / "sweep.html.j2", content)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    if results:
        Path(results).parent.mkdir(parents=True, exist_ok=True)
        Path(results).write_text(json.dumps(_results(arms, pairs, baseline, test), indent=2) + "\n")


def _results(arms: Sequence[ArmSummary], pairs: Sequence[Any], baseline: str, test: str) -> dict[str, Any]:
    def numbers(value: Any) -> dict[str, Any] | None:
        return None if value is None else value._asdict()

    return {
        "arms": {
            arm.name: {
                "setting": arm.setting,
                "seeds": list(arm.seeds),
                "trained_parameters": arm.trained_parameters,
                "seconds": arm.seconds,
                "validation": numbers(arm.validation),
                "test": numbers(arm.test),
                "edge": arm.edge,
                "failed": arm.failed,
            }
            for arm in arms
        },
        "baseline": baseline,
        "figure": test or "validation loss",
        "differences": {p.arm: {"by_seed": p.by_seed, "mean": numbers(p.mean)} for p in pairs},
    }


def _columns(test: str) -> list[str]:
    return ["setting", "seeds", "trained", "time a run", "validation loss", *([test] if test else [])]


def _cells(arm: ArmSummary, test: str) -> list[str]:
    return [
        arm.setting.replace(",", ", ") or "–",
        ", ".join(map(str, arm.seeds)) or "–",
        words.count(arm.trained_parameters) if arm.trained_parameters else "–",
        words.duration(arm.seconds) if arm.seconds is not None else "–",
        estimate_text(arm.validation),
        *([estimate_text(arm.test)] if test else []),
    ]


def _by_seed(values: Mapping[int, float]) -> str:
    return ", ".join(f"{value:+.3f}" for value in values.values()) or "–"


def _curves(arms: Sequence[ArmSummary]) -> list[charts.Series]:
    found = []
    for index, arm in enumerate(arms):
        points = mean_curve(arm.curves)
        band = [(step, low, high) for step, _, low, high in points if low > 0] if len(arm.curves) > 1 else []
        found.append(charts.Series(arm.name, [(step, mean) for step, mean, _, _ in points], index + 1, band))
    return found


def _swept(points: Mapping[str, Sequence[tuple[float, float]]], names: Sequence[str], name: str) -> list[Any]:
    series = [charts.Series(arm, found, names.index(arm) + 1) for arm, found in points.items()]
    return _charts(series, f"Validation loss against {name}", name.split("/")[-1].split(".")[-1])


def _charts(series: Sequence[charts.Series], label: str, log_x: str = "") -> list[tuple[str, Markup]]:
    """The same chart for wide and narrow pages; none without points."""
    found = []
    for css, width, height in _SIZES:
        content = charts.line_chart(series, width, height, log_x=log_x)
        box = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>')
        found.append((css, box.format(width, height, label, Markup(content))))
    return found if any(s.points for s in series) else []


def _run_cells(line: Mapping[str, Any]) -> dict[str, Any]:
    last = line["validation"]["last"]
    return {
        "name": line["name"].replace(",", ", "),
        "seed": line["seed"],
        "status": "chosen" if line["chosen"] and line["status"] == "done" else line["status"],
        "steps": "–" if line["steps"] is None else words.thousands(line["steps"]),
        "loss": "–" if last is None else f"{last:.4f}",
        "note": line["note"],
    }


def _how(sweep: Mapping[str, Any], choosing: Sequence[int]) -> list[str]:
    """Sentences that say how settings were chosen and what the intervals mean."""
    who = f"seed {choosing[0]}" if len(choosing) == 1 else f"all {len(choosing)} seeds"
    said = [
        f"The setting of each arm has the lowest final validation loss (evaluation {sweep['validation']!r}) of {who}; "
        "so the validation loss of what was chosen is a little too good. "
        + (f"{sweep['test']} chose nothing." if sweep["test"] else "No test figure was named (--test).")
    ]
    for step, keep in sweep["rungs"]:
        said.append(f"After a validation at step {step:,} the best {keep} settings of each arm went on.")
    said.append(
        "Intervals are 95% intervals of the mean over seeds: Student's for fewer than "
        f"{FEW} seeds, since a bootstrap of so few values is too narrow; from {FEW} on percentiles of a bootstrap. "
        "They say how much a repetition with other seeds would differ, and nothing about other data."
    )
    return said


def _facts(lines: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    names = dict.fromkeys(name for line in lines for name in line["environment"])
    return [
        (name, list(dict.fromkeys(str(line["environment"].get(name, "")) or "–" for line in lines))) for name in names
    ]


def _configuration(name: str, lines: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """The gin files and bindings of an arm's chosen run, or else of its first."""
    mine = sorted((line for line in lines if line["arm"] == name), key=lambda line: not line["chosen"])
    return name, "\n".join([*(f"# {file}" for file in mine[0]["gin_files"]), *mine[0]["gin_bindings"]])
