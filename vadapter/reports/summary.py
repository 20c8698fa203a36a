"""A comparison in words: numbers as people read them, and a summary computed from the figures."""

import dataclasses
import math

from vadapter.reports.data import Comparison, Run, final_loss


def thousands(value: float) -> str:
    """12345 -> `12,345`."""
    return f"{round(value):,}"


def count(value: float) -> str:
    """Three significant digits with a unit: 15600 -> `15.6k`, 1.08e8 -> `108M`."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= 0.9995 * size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}"


def figure(number: float, score: float) -> str:
    """A number with the digits that suit a score of that size: three decimals under 10, one from there."""
    return f"{number:.3f}" if abs(score) < 10 else f"{number:.1f}"


def duration(seconds: float) -> str:
    """75 -> `1 min 15 s`, 8000 -> `2 h 13 min`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def shuffled_gap(run: Run) -> float | None:
    """Loss that a shuffled image adds to the loss with the right one; None where it was not measured."""
    if not run.reliance or "shuffled" not in run.reliance or "right" not in run.reliance:
        return None
    return run.reliance["shuffled"] - run.reliance["right"]


def resolution(comparison: Comparison) -> int | None:
    """Largest number of steps between two points of the curves: how exactly a crossing is known. None: no curves."""
    gaps = [b[0] - a[0] for run in comparison.runs for a, b in zip(run.curve, list(run.curve)[1:], strict=False)]
    return max(gaps, default=None)


def paragraph(comparison: Comparison) -> str:
    """One paragraph that says what the figures show, and what they do not. Runs without a curve are not compared."""
    comparison = dataclasses.replace(comparison, runs=[a for a in comparison.runs if a.curve] or comparison.runs)
    comparison, stages = _without_stages(comparison)
    losses = {a.name: final_loss(a) for a in comparison.runs}
    known = [a for a in comparison.runs if losses[a.name] is not None]
    if not known:
        return "No validation loss was measured in these runs."
    if len(comparison.runs) == 1:
        sentences = [_single(known[0])]
    else:
        sentences = [_best(comparison, known), *_against_baseline(comparison, known)]
    sentences = [*stages, *sentences, *_reliance(comparison)]
    if len(comparison.runs) > 1:
        seed = f"seed {comparison.seed}" if comparison.seed is not None else "one seed"
        sentences.append(f"Each is one run ({seed}): small differences may be chance.")
        sentences.append("Steps count each run's own training only, not the training of the parts it starts from.")
    return " ".join(sentences)


def _without_stages(comparison: Comparison) -> tuple[Comparison, list[str]]:
    """The runs that are rivals, and a sentence on those that others of them begin with: another model's losses."""
    begun = {name for run in comparison.runs for name in run.begins_with if name != comparison.baseline}
    stages = [run.name for run in comparison.runs if run.name in begun]
    rest = [run for run in comparison.runs if run.name not in begun]
    later = [run.name for run in rest if begun & set(run.begins_with)]
    if not later:
        return comparison, []
    what = "is an earlier stage" if len(stages) == 1 else "are earlier stages"
    said = f"{_join(stages)} {what} of {_join(later)}: losses of different stages are not compared."
    return dataclasses.replace(comparison, runs=rest), [said]


def _single(run: Run) -> str:
    trained = f" with {count(run.trainable_params)} trained parameters" if run.trainable_params else ""
    after = f" after {thousands(run.steps)} steps" if run.steps else ""
    start = f", from {run.curve[0][1]:.3f} at step {run.curve[0][0]}" if len(run.curve) > 1 else ""
    return f"{run.name}{trained} has a validation loss of {final_loss(run):.3f}{after}{start}."


def _best(comparison: Comparison, known: list[Run]) -> str:
    best = min(known, key=lambda a: final_loss(a) or 0.0)
    trained = f", with {count(best.trainable_params)} trained parameters" if best.trainable_params else ""
    steps = {a.steps for a in comparison.runs}
    each = steps.pop() if len(steps) == 1 else None
    after = f", each trained for {thousands(each)} steps" if each else ""
    missing = len(comparison.runs) - len(known)
    without = f" ({missing} of them without a measured loss)" if missing else ""
    return (
        f"Of {len(comparison.runs)} runs{without}{after}, {best.name} ends with the lowest validation loss, "
        f"{final_loss(best):.3f}{trained}."
    )


def _against_baseline(comparison: Comparison, known: list[Run]) -> list[str]:
    baseline = comparison.baseline_run
    if baseline is None or final_loss(baseline) is None:
        return []
    others = [a for a in known if a is not baseline]
    reached = sorted((a for a in others if a.steps_to_baseline is not None), key=lambda a: a.steps_to_baseline or 0)
    sentences = [f"The baseline, {baseline.name}, ends at {final_loss(baseline):.3f}."]
    if reached:
        first = reached[0]
        steps = first.steps_to_baseline or 0
        factor = (baseline.steps or 0) / steps if steps else 0.0
        against = f", {_times(factor)} the baseline's {thousands(baseline.steps)}" if factor and baseline.steps else ""
        sentences.append(f"{first.name} is at or below that loss after {thousands(steps)} steps{against}.")
        if rest := [f"{a.name} needs {thousands(a.steps_to_baseline or 0)}" for a in reached[1:]]:
            sentences.append(f"{_join(rest)}.")
    if never := [a.name for a in others if a.steps_to_baseline is None]:
        verb = "does" if len(never) == 1 else "do"
        sentences.append(f"{_join(never)} {verb} not reach it.")
    return sentences


def _times(factor: float) -> str:
    if factor >= 1.05:
        return f"{factor:.1f} times fewer than"
    return "about as many as" if factor > 0.95 else "more than"


def _reliance(comparison: Comparison) -> list[str]:
    gaps = {a.name: gap for a in comparison.runs if (gap := shuffled_gap(a)) is not None and math.isfinite(gap)}
    if not gaps:
        return []
    high, low = max(gaps, key=lambda n: gaps[n]), min(gaps, key=lambda n: gaps[n])
    if len(gaps) == 1:
        sentence = f"Another image in place of the right one changes its loss by {gaps[high]:+.2f}."
    else:
        sentence = (
            f"Another image in place of the right one changes the loss by {gaps[high]:+.2f} for {high} and "
            f"{gaps[low]:+.2f} for {low}: the larger, the more a run's text rests on what it sees."
        )
    blind = [name for name, gap in gaps.items() if gap < 0.02]
    return (
        [sentence]
        + ([f"{_join(blind)} hardly uses the image."] if len(blind) == 1 else [])
        + ([f"{_join(blind)} hardly use the image."] if len(blind) > 1 else [])
    )


def _join(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
