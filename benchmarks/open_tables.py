"""A table and a figure of what `examples/open/arms.py` measured.

python benchmarks/open_tables.py runs/open_arms/results.jsonl --out runs/open_arms

Writes OUT/results.md and OUT/curves.svg. Each arm is shown at the learning rate with the lowest validation loss of
seed 0; losses are of the test set, which chose nothing. Intervals are 95% Student intervals over seeds: they say how
much a repetition would differ, stage 1 and data order included, and nothing about other pictures. With `--pack` a
gallery of captions follows, by number: every tenth picture of the test set, or every n-th with `--every`. With
`--short` come runs of fewer steps, beside the perceiver of the same seed.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vadapter.evaluation.seeds import estimate

_COLOURS = (
    "#4477aa",
    "#ee6677",
    "#228833",
    "#ccbb44",
    "#66ccee",
    "#aa3377",
    "#bbbbbb",
    "#222222",
    "#ee8866",
    "#997700",
    "#004488",
    "#cc3311",
    "#009988",
    "#882255",
)
_ORDER = (
    *("perceiver", "mlp", "pixel_shuffle", "random", "text", "aligned", "ridge", "text_ridge", "text_repaired"),
    *("repaired", "repaired_frozen", "words", "words_frozen", "words_supervised", "words_slow_lm", "text_words"),
    "random_32",
)

# An arm, the arm that it is compared with, and what sets them apart.
_PAIRS = (
    ("aligned", "random", "stage 1, or nothing"),
    ("text", "random", "pretraining on text, or nothing"),
    ("aligned", "text", "stage 1"),
    ("ridge", "aligned", "the regression"),
    ("text_ridge", "text", "the regression, without stage 1"),
    ("ridge", "text_ridge", "stage 1, with the regression"),
    ("repaired", "ridge", "the prompt's five vectors"),
    ("repaired", "aligned", "the regression and the prompt's vectors"),
    ("repaired", "random", "text, stage 1, the regression and the prompt's vectors, or nothing"),
    ("repaired", "text_repaired", "stage 1, with the regression and the prompt's vectors"),
    ("repaired_frozen", "repaired", "the tiny LM frozen"),
    ("words", "repaired", "words of its own"),
    ("words", "text_words", "stage 1, with words"),
    ("words", "random", "text, stage 1, the repairs and words, or nothing"),
    ("words", "random_32", "text, stage 1, the repairs and words, or as many soft tokens"),
    ("words_frozen", "words", "the tiny LM frozen"),
    ("words_supervised", "words", "the tiny LM keeps its captioning loss"),
    ("words_slow_lm", "words", "the tiny LM at a tenth of the learning rate"),
    ("words", "perceiver", "the adapter"),
    ("words_frozen", "perceiver", "the adapter"),
    ("repaired", "perceiver", "the adapter"),
    ("repaired_frozen", "perceiver", "the adapter"),
    ("mlp", "perceiver", "the adapter"),
    ("pixel_shuffle", "perceiver", "the adapter"),
)

Line = Mapping[str, Any]


def mean_of(values: Sequence[float], digits: int = 3) -> str:
    """Returns a mean with its 95% interval, such as `4.812 ± 0.031`; one value alone has none."""
    found = estimate(values)
    half = "" if found.high is None else f" ± {found.high - found.mean:.{digits}f}"
    return f"{found.mean:.{digits}f}{half}"


def best_runs(lines: Sequence[Line]) -> dict[str, list[Line]]:
    """Returns the runs of each arm at the rate that was best on the validation set for the first seed."""
    found = {}
    for arm in sorted({x["arm"] for x in lines if x["kind"] == "stage2"}, key=_place):
        mine = [x for x in lines if x["arm"] == arm and x["kind"] == "stage2"]
        first = min(x["seed"] for x in mine)
        rate = min((x for x in mine if x["seed"] == first), key=lambda x: x["final"]["validation"])["rate"]
        found[arm] = sorted((x for x in mine if x["rate"] == rate), key=lambda x: x["seed"])
    return found


def _place(arm: str) -> tuple[int, str]:
    return (_ORDER.index(arm) if arm in _ORDER else len(_ORDER)), arm


def main_table(best: Mapping[str, list[Line]]) -> list[str]:
    """Returns the lines of the table of arms."""
    rows = [
        "| arm | trained parameters | rate | seeds | test loss | unseen hand's loss | image reliance | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for arm, runs in best.items():
        cells = [
            f"`{arm}`",
            f"{runs[0]['trained_parameters']:,}",
            f"{runs[0]['rate']:g}",
            str(len(runs)),
            mean_of([x["final"]["test"] for x in runs]),
            mean_of([x["final"]["new_hand"] for x in runs]),
            mean_of([x["reliance"]["test"] for x in runs]),
            f"{estimate([x['seconds'] for x in runs if x['device'] == runs[0]['device']]).mean:.1f}",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def seed_table(best: Mapping[str, list[Line]]) -> list[str]:
    """Returns the test loss of each seed."""
    seeds = sorted({x["seed"] for runs in best.values() for x in runs})
    rows = [f"| arm | {' | '.join(f'seed {s}' for s in seeds)} |", "| --- |" + " --- |" * len(seeds)]
    for arm, runs in best.items():
        found = {x["seed"]: f"{x['final']['test']:.3f}" for x in runs}
        rows.append(f"| `{arm}` | {' | '.join(found.get(s, '') for s in seeds)} |")
    return rows


def paired_table(best: Mapping[str, list[Line]]) -> list[str]:
    """Returns how losses of pairs of arms differ, seed by seed: below 0 the first arm is better."""
    rows = [
        "| arm less arm | what differs | test loss, by seed | mean | unseen hand's loss, mean |",
        "| --- | --- | --- | --- | --- |",
    ]
    for arm, other, what in _PAIRS:
        theirs = {x["seed"]: x["final"] for x in best.get(other, ())}
        pairs = [(x["final"], theirs[x["seed"]]) for x in best.get(arm, ()) if x["seed"] in theirs]
        if pairs:
            test, hand = ([mine[s] - its[s] for mine, its in pairs] for s in ("test", "new_hand"))
            by_seed = ", ".join(f"{x:+.3f}" for x in test)
            rows.append(f"| `{arm}` - `{other}` | {what} | {by_seed} | {mean_of(test)} | {mean_of(hand)} |")
    return rows


def rate_table(lines: Sequence[Line]) -> list[str]:
    """Returns the validation loss of the first seed at each rate."""
    runs = [x for x in lines if x["kind"] == "stage2"]
    first = min(x["seed"] for x in runs)
    rates = sorted({x["rate"] for x in runs})
    rows = [f"| arm | {' | '.join(f'{r:g}' for r in rates)} |", "| --- |" + " --- |" * len(rates)]
    for arm in sorted({x["arm"] for x in runs}, key=_place):
        at = {x["rate"]: x["final"]["validation"] for x in runs if x["arm"] == arm and x["seed"] == first}
        rows.append(f"| `{arm}` | {' | '.join(f'{at[r]:.3f}' if r in at else '' for r in rates)} |")
    return rows


def curve_table(best: Mapping[str, list[Line]]) -> list[str]:
    """Returns the mean test loss at each evaluated step."""
    steps = sorted({int(s) for runs in best.values() for run in runs for s in run["curve"]})
    rows = [f"| arm | {' | '.join(map(str, steps))} |", "| --- |" + " --- |" * len(steps)]
    for arm, runs in best.items():
        cells = []
        for step in steps:
            values = [run["curve"][str(step)]["test"] for run in runs if str(step) in run["curve"]]
            cells.append(f"{estimate(values).mean:.2f}" if values else "")
        rows.append(f"| `{arm}` | {' | '.join(cells)} |")
    return rows


def short_table(lines: Sequence[Line], longer: Sequence[Line]) -> list[str]:
    """Returns short runs by steps and rate, and their test loss less that of a longer run of the same seed."""
    rows = [
        "| arm | steps of stage 1 | steps of stage 2 | rate | seeds | validation loss, by seed | test loss "
        "| less the longer run's, by seed | mean |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    reached = {x["seed"]: x["final"]["test"] for x in longer}
    groups: dict[tuple[Any, ...], list[Line]] = {}
    for x in sorted(lines, key=lambda x: x["seed"]):
        if x["kind"] == "stage2":
            groups.setdefault((_place(x["arm"]), x["steps"], x.get("stage1_steps", 0), x["rate"]), []).append(x)
    for ((_, arm), steps, stage1, rate), runs in sorted(groups.items()):
        less = [x["final"]["test"] - reached[x["seed"]] for x in runs if x["seed"] in reached]
        cells = [
            f"`{arm}`",
            str(stage1 or "none"),
            str(steps),
            f"{rate:g}",
            ", ".join(str(x["seed"]) for x in runs),
            ", ".join(f"{x['final']['validation']:.3f}" for x in runs),
            mean_of([x["final"]["test"] for x in runs]),
            ", ".join(f"{x:+.3f}" for x in less),
            mean_of(less) if less else "",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def figure(best: Mapping[str, list[Line]]) -> str:
    """Returns an SVG of the mean test loss against steps, with the range over seeds as a band."""
    width, height, left, top, right, bottom = 860, 460, 60, 30, 190, 50
    curves = {}
    for arm, runs in best.items():
        steps = sorted(set.intersection(*(set(map(int, run["curve"])) for run in runs)))
        curves[arm] = [(s, [run["curve"][str(s)]["test"] for run in runs]) for s in steps if s > 0]
    last = max(s for points in curves.values() for s, _ in points)
    values = [v for points in curves.values() for _, all_of in points for v in all_of]
    low, high = min(values), min(max(values), min(values) + 4)

    def at(step: float, loss: float) -> tuple[float, float]:
        x = left + (width - left - right) * step / last
        return x, top + (height - top - bottom) * (high - min(loss, high)) / max(high - low, 1e-9)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{left}" y="18">Loss on held-out concepts (nats a target), mean and range over seeds</text>',
    ]
    for i in range(6):
        loss, step = low + (high - low) * i / 5, last * i / 5
        y, x = at(0, loss)[1], at(step, low)[0]
        parts.append(f'<line x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{loss:.2f}</text>')
        parts.append(f'<text x="{x:.1f}" y="{height - bottom + 18}" text-anchor="middle">{step:.0f}</text>')
    parts.append(
        f'<text x="{(left + width - right) / 2}" y="{height - 12}" text-anchor="middle">steps of stage 2</text>'
    )
    for i, (arm, points) in enumerate(curves.items()):
        colour = _COLOURS[i % len(_COLOURS)]
        around = [at(s, max(v)) for s, v in points] + [at(s, min(v)) for s, v in reversed(points)]
        line = [at(s, sum(v) / len(v)) for s, v in points]
        parts.append(f'<polygon points="{_points(around)}" fill="{colour}" opacity="0.15"/>')
        parts.append(f'<polyline points="{_points(line)}" fill="none" stroke="{colour}" stroke-width="2"/>')
        y = top + 16 + 20 * i
        x = width - right + 16
        parts.append(f'<line x1="{x}" x2="{x + 24}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="3"/>')
        parts.append(f'<text x="{width - right + 46}" y="{y + 4}">{arm}</text>')
    return "\n".join([*parts, "</svg>\n"])


def _points(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def gallery(best: Mapping[str, list[Line]], pack: Path, every: int) -> list[str]:
    """Returns what the first seed of each arm says of every n-th test picture, and how often words are right."""
    pieces = json.loads((pack / "pieces.json").read_text())
    records = [json.loads(line) for line in (pack / "rows.json").read_text().splitlines()]
    pictures = [r for r in records if r["split"] == "test"]

    def text(ids: Sequence[int]) -> str:
        return "".join(pieces[i] for i in ids).strip()

    said = {arm: [text(ids) for ids in runs[0]["captions"]["test"]] for arm, runs in best.items()}
    rows = ["| arm | F1 of words, test, first seed |", "| --- | --- |"]
    for arm, texts in said.items():
        scores = [_word_f1(t, r["caption"]) for t, r in zip(texts, pictures, strict=False)]
        rows.append(f"| `{arm}` | {sum(scores) / len(scores):.3f} |")
    rows += [
        "",
        f"| hand | caption | {' | '.join(f'`{arm}`' for arm in said)} |",
        "| --- |" + " --- |" * (1 + len(said)),
    ]
    for i in range(0, min(map(len, said.values())), every):
        cells = [pictures[i]["hand"], pictures[i]["caption"], *(texts[i] for texts in said.values())]
        rows.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return rows


def _word_f1(said: str, wanted: str) -> float:
    a, b = said.split(), wanted.split()
    common = sum(min(a.count(w), b.count(w)) for w in set(a))
    return 2 * common / (len(a) + len(b)) if a or b else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="results.jsonl")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pack", type=Path, help="the pack of the runs, for a gallery")
    parser.add_argument("--every", type=int, default=10, help="pictures of the gallery (default: %(default)s)")
    parser.add_argument("--short", type=Path, help="lines of runs of fewer steps, to compare with the perceiver's")
    args = parser.parse_args()
    lines = [json.loads(line) for line in args.results.read_text().splitlines()]
    best = best_runs(lines)
    facts = {k: lines[0].get(k) for k in ("device", "batch", "image_size", "planned_steps", "jax", "python")}
    stage1 = [x for x in lines if x["kind"] == "stage1"]
    text = ["# Adapters between real models", "", f"{facts}", "", "## Arms", "", *main_table(best)]
    text += ["", "## Seeds", "", *seed_table(best)]
    text += ["", "## Differences", "", *paired_table(best)]
    text += ["", "## Learning rates: validation loss, first seed", "", *rate_table(lines)]
    text += ["", "## Test loss by step", "", *curve_table(best)]
    text += ["", "## Stage 1", ""]
    for x in stage1:
        text.append(f"- seed {x['seed']}: {x['steps']} steps, test loss {x['final']['test']:.3f}, {x['seconds']:.1f} s")
    if args.short:
        short = [json.loads(line) for line in args.short.read_text().splitlines()]
        text += ["", "## Fewer steps", "", *short_table(short, best.get("perceiver", ()))]
    if args.pack:
        text += ["", "## Captions", "", *gallery(best, args.pack, args.every)]
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "results.md").write_text("\n".join(text) + "\n")
    (args.out / "curves.svg").write_text(figure(best))
    print(f"{len(lines)} runs: {args.out / 'results.md'}, {args.out / 'curves.svg'}")


if __name__ == "__main__":
    main()
