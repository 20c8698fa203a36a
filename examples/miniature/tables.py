"""What the miniature found: the tables and the figure of docs/experiments.md.

python examples/miniature/tables.py                        from the results that ship, and a figure
python examples/miniature/tables.py --from runs/miniature  copies results there to examples/miniature/results before

Intervals are 95% Student intervals over seeds. A seed has its own encoder, language models, stage 1 and order of data.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import variants
from variants import Line, markdown

from vadapter.evaluation.seeds import Estimate, differences, estimate
from vadapter.reports import chart
from vadapter.reports.sweep_data import ArmSummary, estimate_text, mean_curve, summaries

HERE = Path(__file__).parent
RESULTS, FIGURE = HERE / "results", HERE.parents[1] / "docs" / "experiments.svg"
SCALES = FIGURE.with_name("experiments_scales.svg")
SECOND = RESULTS / "h200"  # repeated on a second machine, or with fewer scenes
VARIANTS = RESULTS / "variants"  # parts of run.py that compare other models
VARIANT_PARTS = ("table1", "encoders", "depths", "scales")
PAGE, BEGIN, END = HERE.parents[1] / "docs" / "experiments.md", "<!-- tables.py -->", "<!-- end -->"
DEMO = HERE.parents[1] / "data" / "scenes" / "miniature.json"
TEST, BASELINE, LONG = "test/loss", "perceiver", "perceiver_long"
STAGE1_STEPS = 1000
KEPT = (
    *(
        "arm",
        "setting",
        "name",
        "seed",
        "status",
        "chosen",
        "edge",
        "steps",
        "seconds",
        "trained_parameters",
        "validation",
    ),
    *("test", "evals", "curve", "gin_files", "gin_bindings", "environment"),
)
# An arm, the arm that it is compared with, and what sets them apart.
PAIRS = (
    ("queries", "queries_random", "text, stage 1 and hand-off, or nothing"),
    ("aligned", "queries_random", "text and stage 1, or nothing"),
    ("queries", "aligned", "the hand-off"),
    ("words", "queries", "16 words of its own"),
    ("words", "queries_random", "text, stage 1, hand-off and words, or nothing"),
    ("words", "queries_random_32", "text, stage 1, hand-off and words, or as many soft tokens"),
    ("words", "text_words", "stage 1, with words"),
    ("text_words", "queries_random_32", "text and words, or as many soft tokens"),
    ("queries_frozen", "perceiver", "the adapter"),
    ("words_frozen", "perceiver", "the adapter"),
    ("words_frozen", "words", "the tiny LM frozen"),
    ("words_frozen", "queries_random", "text, stage 1, hand-off and words, or nothing; the tiny LM frozen"),
    (
        "words_frozen",
        "queries_random_32",
        "text, stage 1, hand-off and words, or as many soft tokens; the tiny LM frozen",
    ),
    ("queries", "perceiver", "the adapter"),
    ("words", "perceiver", "the adapter"),
    ("words", "perceiver_long", "the adapter; the perceiver has twice the steps of stages 1 and 2"),
    ("queries", "perceiver_long", "the adapter; the perceiver has twice the steps of stages 1 and 2"),
    ("text", "queries_random", "text, or nothing"),
    ("text_handoff", "queries_random", "text and hand-off, or nothing"),
    ("queries", "text_handoff", "stage 1, with the hand-off"),
    ("map_only", "aligned", "the map by regression"),
    ("prompt_only", "aligned", "the prompt's vectors"),
    ("scale", "aligned", "the map's scale, and the prompt's vectors"),
    ("answer", "queries", "queries that start at the answer's place"),
    ("slow_lm", "queries", "a tenth of the learning rate for the tiny LM"),
    ("slow_lm", "slow_lm_random", "text, stage 1 and hand-off, or nothing; the tiny LM at a tenth of the rate"),
    ("words_supervised", "words", "the tiny LM keeps its captioning loss"),
    ("words_supervised", "words_frozen", "the tiny LM trained, with its captioning loss; or frozen"),
    (
        "words_supervised",
        "queries_random_32",
        "text, stage 1, hand-off, words and captioning loss, or as many soft tokens",
    ),
    ("words_supervised", "perceiver", "the adapter"),
    ("words_cached", "words_frozen", "words written once, or in every step"),
    ("words_cached", "perceiver", "the adapter"),
    ("paper_handoff", "paper", "the hand-off, in the paper's shape"),
    ("paper_handoff", "perceiver", "the adapter"),
)


def main() -> None:
    """Writes the tables, the figure and what the demo shows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--from", dest="source", type=Path, metavar="DIR", help="folder of run.py whose results to keep"
    )
    args = parser.parse_args()
    if args.source:
        copy(args.source)
    lines = results()
    arms = {arm.name: arm for arm in summaries(lines, TEST) if arm.test}
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{tables(lines)}\n{END}{rest.partition(END)[2]}")
    FIGURE.write_text(figure(arms))
    SCALES.write_text(scale_figure(lines))
    losses = {name: estimate_text(arm.test) for name, arm in arms.items() if len(arm.seeds) == 5}
    DEMO.write_text(json.dumps({"test_loss": losses}, indent=1) + "\n")
    print(
        f"Wrote the tables into {PAGE}, the figures {FIGURE} and {SCALES}, and {DEMO}, which the demo shows beside its "
        "own figures."
    )


def results(folder: Path = RESULTS) -> list[Line]:
    """The lines of all sweeps in a folder."""
    return [line for path in sorted(folder.glob("*.jsonl")) for line in map(json.loads, path.read_text().splitlines())]


def tables(lines: Sequence[Line]) -> str:
    """All tables, as they stand in docs/experiments.md."""
    arms = {arm.name: arm for arm in summaries(lines, TEST) if arm.test}
    parts = {
        "Arms": arm_table(arms, lines),
        "Against a perceiver with twice the steps of both stages": long_table(arms),
        "Differences, paired by seed": pair_table(arms),
        "Validation loss by examples seen in stage 2": example_table(arms),
        "Validation loss of seed 0 by learning rate": rate_table(lines),
        "The same runs on a second machine": second_table(lines, results(SECOND)),
        "Fewer scenes": size_table(lines, results(SECOND)),
        **variants.tables(lines, results(VARIANTS)),
    }
    return "\n".join(f"\n### {title}\n\n" + "\n".join(rows) for title, rows in parts.items() if rows) + "\n"


def copy(source: Path) -> None:
    """Keeps the tables of the sweeps in a folder of run.py, without its paths."""
    VARIANTS.mkdir(parents=True, exist_ok=True)
    for table in sorted(source.glob("*/results.jsonl")):
        said = table.read_text().replace(f"{source.resolve()}/", "runs/miniature/")
        kept = [{key: line[key] for key in KEPT} for line in map(json.loads, said.splitlines())]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        part = table.parent.name
        ((VARIANTS if part in VARIANT_PARTS else RESULTS) / f"{part}.jsonl").write_text(text)


def arm_table(arms: Mapping[str, ArmSummary], lines: Sequence[Line]) -> list[str]:
    """Each arm at its chosen rate: loss and scores on the test split, and how soon it is as good as the baseline."""
    rows = []
    for arm in arms.values():
        scores = [_score(lines, arm, name) for name in ("cider", "exact_match", "vqa_accuracy")]
        gpu = " (GPU)" if any(x["arm"] == arm.name and x["environment"]["platform"] == "gpu" for x in lines) else ""
        name = f"`{arm.name}`{gpu}"
        row = [name, f"{arm.trained_parameters:,}", estimate_text(arm.test), *scores, *_reached(arms, arm)]
        rows.append([*row, f"{arm.setting.split('=')[-1]}{' (edge)' if arm.edge else ''}", str(len(arm.seeds))])
    head = ["arm", "trained", "test loss", "CIDEr", "exact", "VQA", "steps to the perceiver's loss", "times fewer"]
    return markdown([*head, "with stage 1", "rate", "seeds"], rows)


def _score(lines: Sequence[Line], arm: ArmSummary, name: str) -> str:
    mine = [x for x in lines if x["arm"] == arm.name and x["name"] == arm.setting and x["seed"] in arm.seeds]
    return short(estimate([x["evals"]["generation"][name] for x in mine]), 0 if name == "cider" else 3)


def short(value: Estimate, digits: int) -> str:
    """A mean with half its interval, with so many digits."""
    half = "" if value.high is None else f" ± {value.high - value.mean:.{digits}f}"
    return f"{value.mean:.{digits}f}{half}"


def _reached(arms: Mapping[str, ArmSummary], arm: ArmSummary) -> list[str]:
    """Steps to the baseline's final validation loss of the same seed; its own steps over these, without and with stage
    1. Where a seed never reaches it, how many do."""
    goals, curves = arms[BASELINE], dict(zip(arm.seeds, arm.curves, strict=True))
    common = [seed for seed in arm.seeds if seed in goals.validation_by_seed]
    steps = [crossing(curves[seed], goals.validation_by_seed[seed]) for seed in common]
    known = [step for step in steps if step is not None]
    if len(known) < len(steps) or not known:
        return [f"{len(known)} of {len(steps)} seeds", "", ""]
    total = goals.curves[0][-1][0]
    gains = [short(estimate([total / step for step in known]), 1)]
    charged = [short(estimate([total / (step + STAGE1_STEPS) for step in known]), 2)] if arm.name not in ALONE else [""]
    return [short(estimate(known), 0), *gains, *charged]


ALONE = (
    "perceiver",
    "perceiver_long",
    "perceiver_wide",
    "mlp",
    "queries_random",
    "queries_random_32",
    "slow_lm_random",
    "text",
    "text_handoff",
    "text_words",
)


def long_table(arms: Mapping[str, ArmSummary]) -> list[str]:
    """Steps of each arm to the last loss of the long perceiver, by seed, and how many times fewer these are than its
    own steps to that loss, without stage 1 and with it."""
    if LONG not in arms:
        return []
    long, rows = arms[LONG], []
    ends = {
        seed: crossing(curve, long.validation_by_seed[seed])
        for seed, curve in zip(long.seeds, long.curves, strict=True)
    }
    own = {seed: step for seed, step in ends.items() if step is not None}
    for arm in arms.values():
        common = {seed: curve for seed, curve in zip(arm.seeds, arm.curves, strict=True) if seed in own}
        steps = {seed: crossing(curve, long.validation_by_seed[seed]) for seed, curve in common.items()}
        known = {seed: step for seed, step in steps.items() if step is not None}
        if arm.name == LONG or not known:
            continue
        if len(known) < len(steps):
            rows.append([f"`{arm.name}`", f"{len(known)} of {len(steps)} seeds", "", ""])
            continue
        before = 0 if arm.name in ALONE else STAGE1_STEPS
        gains = [
            short(estimate([own[seed] / (step + more) for seed, step in known.items()]), 1) for more in (0, before)
        ]
        rows.append([f"`{arm.name}`", short(estimate(list(known.values())), 0), gains[0], gains[1] if before else ""])
    return markdown(["arm", "steps to its last loss", "times fewer", "with stage 1"], rows)


def crossing(curve: Sequence[tuple[float, float]], goal: float) -> float | None:
    """The step at which a curve first has a loss, on the line between its points; None where it never has."""
    before = None
    for step, loss in curve:
        if loss <= goal:
            return step if before is None else before[0] + (step - before[0]) * (before[1] - goal) / (before[1] - loss)
        before = (step, loss)
    return None


def pair_table(arms: Mapping[str, ArmSummary]) -> list[str]:
    """Paired differences of the test loss."""
    rows = []
    for one, other, what in PAIRS:
        if one in arms and other in arms:
            by_seed = differences(arms[one].test_by_seed, arms[other].test_by_seed)
            if by_seed:
                values = ", ".join(f"{x:+.3f}" for x in by_seed.values())
                rows.append(
                    [f"`{one}` less `{other}`", what, estimate_text(estimate(list(by_seed.values())), "+"), values]
                )
    return markdown(["arms", "what differs", "test loss", "by seed"], rows)


def example_table(arms: Mapping[str, ArmSummary], batch: int = 32) -> list[str]:
    """Mean validation loss by the examples seen in stage 2."""
    steps = (30, 60, 120, 240, 480)
    curves = {name: {x[0]: x[1] for x in mean_curve(arm.curves)} for name, arm in arms.items()}
    rows = [[f"`{name}`", *(f"{curve[s]:.3f}" if s in curve else "" for s in steps)] for name, curve in curves.items()]
    return markdown(["arm", *(f"{batch * step:,}" for step in steps)], rows)


def rate_table(lines: Sequence[Line]) -> list[str]:
    """Validation loss of the first seed at each learning rate."""
    swept = [line for line in lines if line["seed"] == 0 and line["status"] == "done"]
    rates = sorted({line["name"].split("=")[-1] for line in swept}, key=float)
    rows = []
    for name in dict.fromkeys(line["arm"] for line in swept):
        found = {x["name"].split("=")[-1]: x["validation"]["last"] for x in swept if x["arm"] == name}
        if len(found) > 1:
            rows.append([f"`{name}`", *(f"{found[rate]:.3f}" if rate in found else "" for rate in rates)])
    return markdown(["arm", *rates], rows)


def second_table(lines: Sequence[Line], others: Sequence[Line]) -> list[str]:
    """Test loss of the runs (arm, learning rate, seed) that two machines have, and how far apart these are."""
    first = {(x["arm"], x["name"], x["seed"]): x["test"] for x in lines if x["status"] == "done"}
    again = {(x["arm"], x["name"], x["seed"]): x["test"] for x in others if x["status"] == "done"}
    rows = []
    for arm in dict.fromkeys(arm for arm, _, _ in first):
        both = [key for key in first if key in again and key[0] == arm]
        by_rate = sorted({key[1] for key in both}, key=lambda name: float(name.split("=")[-1]))
        for name in by_rate:
            keys = sorted(key for key in both if key[1] == name)
            texts = (", ".join(f"{x[key]:.3f}" for key in keys) for x in (first, again))
            apart = ", ".join(f"{again[key] - first[key]:+.3f}" for key in keys)
            rows.append([f"`{arm}`", name.split("=")[-1], ", ".join(str(key[2]) for key in keys), *texts, apart])
    return markdown(["arm", "rate", "seeds", "CPU", "H200", "H200 less CPU"], rows)


def size_table(lines: Sequence[Line], others: Sequence[Line]) -> list[str]:
    """Test loss by the scenes of stage 2, and the best validation loss on the way, seed by seed."""
    chosen = [x for x in lines if x["chosen"] and x["status"] == "done"]
    rows = []
    for arm in dict.fromkeys(x["arm"].rpartition("_")[0] for x in others if x["arm"].endswith("_100")):
        for size in ("100", "1000", ""):
            found = [x for x in (others if size else chosen) if x["arm"] == (f"{arm}_{size}" if size else arm)]
            if not found:
                continue
            found = sorted((x for x in found if x["status"] == "done"), key=lambda x: x["seed"])[:2]
            test, best = (", ".join(f"{v:.3f}" for v in values) for values in _of_size(found))
            rows.append([f"`{arm}`", f"{int(size or 8000):,}", ", ".join(str(x["seed"]) for x in found), test, best])
    return markdown(["arm", "scenes", "seeds", "test loss at the end", "best validation loss"], rows)


def _of_size(found: Sequence[Line]) -> tuple[list[float], list[float]]:
    return [x["test"] for x in found], [x["validation"]["best"] for x in found]


def figure(arms: Mapping[str, ArmSummary]) -> str:
    """Mean validation curves, with the range over seeds."""
    shown = [
        name
        for name in ("perceiver", "queries_random", "aligned", "queries", "queries_frozen", "words")
        if name in arms
    ]
    series = []
    for index, name in enumerate(shown):
        curve = mean_curve(arms[name].curves)
        band = [(step, low, high) for step, _, low, high in curve]
        series.append(chart.Series(name, [(step, mean) for step, mean, _, _ in curve], index, band))
    goal = series[0].points[-1][1]
    found = {line.name: [step for step, loss in line.points if loss <= goal] for line in series[1:]}
    options = {
        "target": (f"perceiver's final loss {goal:.3f}", goal),
        "crossings": {name: round(steps[0]) for name, steps in found.items() if steps},
    }
    return drawing("Validation loss of adapters in the miniature, mean and range over seeds", series, **options)


def scale_figure(lines: Sequence[Line]) -> str:
    """Test loss over the size of the decoder."""
    series = variants.scale_series(lines, results(VARIANTS))
    named = {"log_x": "thousands of parameters of the large LM", "y": "test loss"}
    return drawing("Test loss by encoder, adapter and size of the decoder", series, **named)


def drawing(title: str, series: Sequence[chart.Series], **options: Any) -> str:
    """A chart as a file of its own, for light pages and dark ones; `options` are those of `chart.line_chart`."""
    width, height = 960, 440
    drawn = chart.line_chart(series, width - 48, height - 48, **options)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        f' role="img" aria-label="{title}"><style>{chart.style()}.back{{fill:var(--paper);stroke:var(--rule)}}</style>'
        f'<rect class="back" x=".5" y=".5" width="{width - 1}" height="{height - 1}" rx="14"/>'
        f'<g transform="translate(24 24)">{drawn}</g></svg>\n'
    )


if __name__ == "__main__":
    main()
