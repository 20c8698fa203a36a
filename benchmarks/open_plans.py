"""Which open recipe fits which card, at which batch? Plans them by estimate, and writes the table of docs/planning.md.

    python benchmarks/open_plans.py
    python benchmarks/open_plans.py --recipes 'stage1_*' --cards 'RTX 4090' H200

The figures are those of `vadapter plan --device`, whose temporaries are the CPU compiler's, corrected. A recipe is
compiled at three batch sizes; the largest power of two that fits is read from the lines between them.
Recipes that are not asked for keep their rows. It takes no data, no weights and no network.
"""

import argparse
import fnmatch
import json
from pathlib import Path
from typing import Any

import numpy as np

DOCS = Path(__file__).parents[1] / "docs"
CARDS = ("RTX 4090", "A100 80G", "H100")
# Batches that are compiled. Memory grows faster with more rows, not slower, so between two of them the line is too high
# at worst; beyond the last none is looked for.
ROWS = (1, 32, 512)
BEGIN, END = "<!-- benchmarks/open_plans.py begins -->", "<!-- benchmarks/open_plans.py ends -->"


def _variants(encoder: str, tiny: str | None = None, large: str | None = None) -> list[str]:
    named = {"ENCODER_VARIANT": encoder, "TINY_VARIANT": tiny, "LARGE_VARIANT": large}
    return [f"{name}={value!r}" for name, value in named.items() if value]


# Name: (what it is, experiment, bindings).
RECIPES: dict[str, tuple[str, str, list[str]]] = {
    "stage1_dinov2_smollm2": (
        "stage 1: DINOv2 S/14 at 224, SmolLM2 135M trained",
        "open_stage1",
        [*_variants("dinov2_s", "smollm2_135m"), "encoder.image_size=224"],
    ),
    "stage1_siglip_gemma3": (
        "stage 1: SigLIP B/16 at 224, Gemma 3 270M trained",
        "open_stage1",
        _variants("siglip_b_16_224", "gemma3_270m"),
    ),
    "stage1_siglip_qwen": (
        "stage 1: SigLIP B/16 at 224, Qwen 2.5 0.5B trained",
        "open_stage1",
        _variants("siglip_b_16_224", "qwen2.5_0.5b"),
    ),
    "stage2_siglip_smollm2_gemma3": (
        "stage 2: SigLIP B/16 at 224, SmolLM2 135M writes, Gemma 3 270M",
        "open_stage2",
        _variants("siglip_b_16_224", "smollm2_135m", "gemma3_270m"),
    ),
    "stage2_siglip_gemma3_gemma": (
        "stage 2: SigLIP B/16 at 224, Gemma 3 270M writes, Gemma 2B",
        "open_stage2",
        _variants("siglip_b_16_224", "gemma3_270m", "gemma_2b"),
    ),
    "stage2_clip_smollm2_llama3": (
        "stage 2: CLIP L/14 at 336, SmolLM2 135M writes, Llama 3 8B",
        "open_stage2",
        _variants("clip_l_14_336", "smollm2_135m", "llama3_8b"),
    ),
    "perceiver_siglip_gemma": (
        "perceiver: SigLIP B/16 at 224, Gemma 2B",
        "open_perceiver",
        _variants("siglip_b_16_224", None, "gemma_2b"),
    ),
    "perceiver_clip_llama3": (
        "perceiver: CLIP L/14 at 336, Llama 3 8B",
        "open_perceiver",
        _variants("clip_l_14_336", None, "llama3_8b"),
    ),
}


def plan(name: str, cards: list[str]) -> dict[str, Any]:
    """Plans a recipe on cards."""
    from vadapter.planning import cards as known
    from vadapter.recipes import experiments
    from vadapter.runs import card_planner

    what, experiment, bindings = RECIPES[name]
    made = experiments.unopened([f"experiments/{experiment}.gin"], bindings)
    at = [card_planner.plan(name, made, known.card(cards[0]), rows) for rows in ROWS]
    found: dict[str, Any] = {"what": what, "experiment": experiment, "bindings": bindings, "cards": {}}
    for card in map(known.card, cards):

        def on(rows: int, field: str) -> float:
            return float(np.interp(rows, ROWS, [getattr(p, field) for p in at]))

        fits = [r for r in (2**i for i in range(ROWS[-1].bit_length())) if on(r, "peak_bytes") <= card.usable_bytes]
        row: dict[str, Any] = {"usable_gib": round(card.usable_bytes / 2**30, 1), "largest_rows": max(fits, default=0)}
        if fits:
            rows = fits[-1]
            seconds = known.step_seconds(card, on(rows, "useful_flops"), int(on(rows, "argument_bytes")))
            row |= {"gib": round(on(rows, "peak_bytes") / 2**30, 1)}
            if seconds is not None and at[0].step_seconds is not None:
                row |= {"step_seconds": round(seconds, 4), "examples_per_s": round(rows / seconds, 1)}
        found["cards"][card.name] = row
    return found


def table(plans: dict[str, Any]) -> str:
    """Returns the table, a row a recipe, a column a card."""
    names = list(dict.fromkeys(card for plan in plans.values() for card in plan["cards"]))
    lines = [f"| recipe | {' | '.join(names)} |", f"| --- |{' ---: |' * len(names)}"]

    def cell(found: dict[str, Any] | None) -> str:
        if found is None:
            return ""
        if not found["largest_rows"]:
            return "does not fit"
        rows = f"{found['largest_rows']}{' or more' if found['largest_rows'] == ROWS[-1] else ''}"
        return f"{rows}; {found['step_seconds']:.2g} s" if "step_seconds" in found else rows

    for plan in plans.values():
        lines.append(f"| {plan['what']} | {' | '.join(cell(plan['cards'].get(name)) for name in names)} |")
    return "\n".join(lines)


def write(plans: dict[str, Any], page: Path) -> None:
    """Puts the table into a page, between its marks."""
    text = page.read_text()
    before, rest = text.split(BEGIN)
    page.write_text(f"{before}{BEGIN}\n\n{table(plans)}\n\n{END}{rest.split(END)[1]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", default="*", metavar="PATTERN", help="of their names (default: all)")
    parser.add_argument("--cards", nargs="+", default=list(CARDS), metavar="GPU")
    parser.add_argument("--page", type=Path, default=DOCS / "planning.md", help="with the marks of the table")
    parser.add_argument("--json", type=Path, default=DOCS.parent / "benchmarks/results/open_plans.json")
    args = parser.parse_args()
    from vadapter.planning.topologies import prepare

    prepare()  # before anything uses a device
    plans = json.loads(args.json.read_text()) if args.json.is_file() else {}
    for name in fnmatch.filter(RECIPES, args.recipes):
        plans[name] = plan(name, args.cards)
        print(f"{name}: {json.dumps(plans[name]['cards'])}", flush=True)
        plans = {key: plans[key] for key in RECIPES if key in plans}
        args.json.write_text(json.dumps(plans, indent=1) + "\n")
        write(plans, args.page)


if __name__ == "__main__":
    main()
