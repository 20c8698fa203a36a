"""What the table of a sweep says: each arm at its chosen setting, with intervals over seeds and paired differences."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vadapter.base import files, json_text
from vadapter.base.errors import UserError
from vadapter.evaluation.seeds import Estimate, differences, estimate
from vadapter.reports.data import finite

SWEEP = "sweep.json"
TABLE = "results.jsonl"
Line = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class ArmSummary:
    """An arm at its chosen setting.

    Attributes:
        name: of the arm.
        setting: name of the chosen setting; "" where no run finished.
        seeds: those that finished at it.
        trained_parameters: their number; None where it is not known.
        seconds: mean time of a run.
        validation_by_seed, test_by_seed: final figures.
        validation, test: their means with intervals; None without a value.
        curves: (step, validation loss) of each seed.
        edge: says that the chosen value is the outermost that was tried.
        failed: number of runs of the arm that failed, at any setting.
    """

    name: str
    setting: str
    seeds: tuple[int, ...]
    trained_parameters: int | None
    seconds: float | None
    validation_by_seed: Mapping[int, float]
    test_by_seed: Mapping[int, float]
    curves: Sequence[Sequence[tuple[int, float]]]
    edge: str
    failed: int

    @property
    def validation(self) -> Estimate | None:
        return _estimate(self.validation_by_seed)

    @property
    def test(self) -> Estimate | None:
        return _estimate(self.test_by_seed)

    @property
    def mark(self) -> str:
        """What has to be said loudly, in few words; "" where there is nothing."""
        failed = f"{self.failed} {'run' if self.failed == 1 else 'runs'} FAILED." if self.failed else ""
        edge = "AT THE EDGE of its grid." if self.edge else ""
        return " ".join(part for part in (edge, failed, "" if self.setting else "No setting is chosen yet.") if part)

    @property
    def warning(self) -> str:
        """The same with the value that is at the edge."""
        return " ".join(part for part in (self.mark, self.edge) if part)

    @staticmethod
    def text(value: Estimate | None) -> str:
        """A mean with its interval: `4.812 ± 0.031`, or `4.812 (4.801 to 4.829)` of a bootstrap."""
        return estimate_text(value)


def _estimate(by_seed: Mapping[int, float]) -> Estimate | None:
    return estimate(list(by_seed.values())) if by_seed else None


def estimate_text(value: Estimate | None, sign: str = "") -> str:
    """A mean with its interval as text; `sign="+"` writes the mean's sign always."""
    if value is None:
        return "–"
    mean = f"{value.mean:{sign}.3f}"
    if value.low is None or value.high is None:
        return mean
    if value.method == "Student":
        return f"{mean} ± {value.high - value.mean:.3f}"
    return f"{mean} ({value.low:{sign}.3f} to {value.high:{sign}.3f})"


def summaries(lines: Sequence[Line], test: str = "") -> list[ArmSummary]:
    """Returns the arms in the table's order.

    Args:
        lines: of `results.jsonl`.
        test: name of the test figure; "" is none.
    """
    found = []
    for name in dict.fromkeys(line["arm"] for line in lines):
        mine = [line for line in lines if line["arm"] == name]
        chosen = sorted(
            (line for line in mine if line["chosen"] and line["status"] == "done"), key=lambda line: line["seed"]
        )
        seconds = [line["seconds"] for line in chosen if line["seconds"] is not None]
        found.append(
            ArmSummary(
                name=name,
                setting=chosen[0]["name"] if chosen else "",
                seeds=tuple(line["seed"] for line in chosen),
                trained_parameters=chosen[0]["trained_parameters"] if chosen else None,
                seconds=sum(seconds) / len(seconds) if seconds else None,
                validation_by_seed=_by_seed(chosen, lambda line: line["validation"]["last"]),
                test_by_seed=_by_seed(chosen, lambda line: line["test"] if test else None),
                curves=[[(step, loss) for step, loss in line["curve"]] for line in chosen],
                edge=chosen[0]["edge"] if chosen else "",
                failed=sum(line["status"] == "failed" for line in mine),
            )
        )
    return found


def _by_seed(lines: Sequence[Line], value) -> dict[int, float]:
    values = {line["seed"]: finite(value(line)) for line in lines}
    return {seed: x for seed, x in values.items() if x is not None}


@dataclasses.dataclass(frozen=True)
class Difference:
    """How an arm differs from another: by seed, and on average."""

    arm: str
    other: str
    by_seed: Mapping[int, float]

    @property
    def mean(self) -> Estimate | None:
        return _estimate(self.by_seed)

    @property
    def verdict(self) -> str:
        """What the interval lets one say."""
        mean = self.mean
        if mean is None:
            return "no common seed"
        if mean.low is None or mean.high is None:
            return "one seed: no interval"
        return "the interval has 0 in it" if mean.low <= 0 <= mean.high else "the interval is on one side of 0"


def paired(arms: Sequence[ArmSummary], baseline: str, test: str = "") -> list[Difference]:
    """Returns each other arm less the baseline, paired by seed: of the test figure, or else of the validation loss."""
    by_name = {arm.name: arm.test_by_seed if test else arm.validation_by_seed for arm in arms}
    return [
        Difference(name, baseline, differences(values, by_name[baseline]))
        for name, values in by_name.items()
        if name != baseline
    ]


def mean_curve(curves: Sequence[Sequence[tuple[int, float]]]) -> list[tuple[int, float, float, float]]:
    """Returns (step, mean, lowest, highest) at each step that all curves have."""
    by_step = [dict(curve) for curve in curves]
    steps = sorted(set.intersection(*(set(values) for values in by_step))) if by_step else []
    found = []
    for step in steps:
        values = [curve[step] for curve in by_step]
        found.append((step, sum(values) / len(values), min(values), max(values)))
    return found


def swept_curves(lines: Sequence[Line], seeds: Sequence[int]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Returns, for each swept positive number, the (value, final validation loss) points of each arm.

    The loss is the mean over the seeds that choose, and the least over whatever else was swept. Runs that did not
    finish are left out.
    """
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for name in dict.fromkeys(name for line in lines for name in line["setting"]):
        for arm in dict.fromkeys(line["arm"] for line in lines):
            best: dict[float, float] = {}
            mine = [x for x in lines if x["arm"] == arm and x["seed"] in seeds and x["status"] == "done"]
            for setting in dict.fromkeys(line["name"] for line in mine if name in line["setting"]):
                runs = [line for line in mine if line["name"] == setting]
                losses = [x for line in runs if (x := finite(line["validation"]["last"])) is not None]
                at = _positive(runs[0]["setting"][name])
                if at is not None and len(losses) == len(seeds):
                    best[at] = min(best.get(at, math.inf), sum(losses) / len(losses))
            if best:
                found.setdefault(name, {})[arm] = sorted(best.items())
    return {name: arms for name, arms in found.items() if any(len(points) > 1 for points in arms.values())}


def _positive(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if value > 0 and math.isfinite(value) else None


def is_sweep(folder: str | Path) -> bool:
    """Whether a folder is that of a sweep."""
    return (Path(folder) / SWEEP).is_file()


def load(folder: str | Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Returns what a sweep is (`sweep.json`), and the lines of its table.

    Raises:
        UserError: a file cannot be read, or no run has ended yet.
    """
    folder = Path(folder)
    try:
        sweep = json_text.read(folder / SWEEP)
        path = folder / TABLE
        lines = files.split_lines(path.read_text())[0] if path.is_file() else []
    except (OSError, ValueError) as error:
        raise UserError(f"The sweep in {folder} cannot be read: {error}. Start vadapter sweep there again.") from error
    if not lines:
        raise UserError(f"{folder}/{TABLE} has no runs yet. Wait until a first run of the sweep has ended.")
    return sweep, lines
