"""How does the cost of a training step grow with the batch, the text, the frames, the decoder and the chips?

    python benchmarks/scaling.py                         # on this machine
    python benchmarks/scaling.py --sweeps chips          # TPU v5e, compiled ahead of time; needs libtpu, no TPU
    python benchmarks/scaling.py --sweeps                # only draws the figure anew

Stage 2's shape: a frozen ViT, a trained linear map, a frozen language model of 8M parameters, AdamW, logits at the
targets only; random weights and inputs, no padding. One size changes at a time. Points of a sweep are timed in turn,
one of each a round; seconds are of the CPUs, which say more where others use the machine. Beside them are the FLOPs
that the step needs (`vadapter.models.flops`), which depend on no clock.

`chips` plans stage 2 of ViT-B and the 1B decoder with 8 rows a chip. Each plan takes some minutes. What is not asked
for keeps its figures. It writes the JSON and the figure after every sweep and plan.
"""

import argparse
import dataclasses
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import train_step

import paired
from gpu_stages import record
from vadapter.base.host_memory import keep_freed_memory

ROOT = Path(__file__).parents[1]
ROWS_A_CHIP = 8


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of a step: rows, tokens of target text, frames a video, and the decoder's width."""

    rows: int = 8
    text: int = 32
    frames: int = 1
    width: int = 256


# Name: (of the axis, field that changes, its values).
SWEEPS: dict[str, tuple[str, str, Sequence[int]]] = {
    "batch": ("rows", "rows", (1, 2, 4, 8, 16, 32)),
    "text": ("target tokens a row", "text", (16, 64, 256, 512, 1024)),
    "frames": ("frames, 64 soft tokens each", "frames", (1, 2, 4, 8, 16)),
    "decoder": ("width of the decoder, depth 6", "width", (64, 128, 256, 512, 1024)),
}
CHIPS = "chips, TPU v5e, 8 rows each"
TOPOLOGIES = {4: ("v5e:2x2", 1), 16: ("v5e:4x4", 1), 64: ("v5e:8x8", 1), 256: ("v5e:16x16", 1), 1024: ("v5e:16x16", 4)}


def step(sizes: Sizes) -> tuple[Callable[[], None], dict[str, Any]]:
    """Returns a function that makes one update, and facts of it."""
    from vadapter.models.adapters import MlpConfig
    from vadapter.models.decoder import DecoderConfig
    from vadapter.models.vit import ViTConfig
    from vadapter.models.vlm import VLMConfig

    heads, block = sizes.width // 64, {"norm": "rms", "activation": "silu", "parallel_block": False}
    common: dict[str, Any] = {"dtype": "float32", "remat": "dots"}
    decoder = DecoderConfig(4096, sizes.width, 6, heads, heads, 64, 4 * sizes.width, **block, **common)  # type: ignore[arg-type]
    encoder = ViTConfig(112, 14, 192, 6, 3, 768, dtype="float32")
    model = VLMConfig(decoder, encoder, MlpConfig(depth=1, dtype="float32"), sizes.frames, repeat_stills=False)
    batch = train_step.inputs(model, sizes.rows, sizes.text, sizes.frames)
    return train_step.ours(model, sizes.rows, batch, trainable=("adapter/.*",))


def sweep(name: str, rounds: int) -> dict[str, Any]:
    """Times the points of a sweep."""
    axis, field, values = SWEEPS[name]
    made = {str(value): step(dataclasses.replace(Sizes(), **{field: value})) for value in values}
    seconds = paired.rounds({value: update for value, (update, _) in made.items()}, rounds, time.process_time)
    points = []
    for value, (_, facts) in made.items():
        median = float(np.median(seconds[value]))
        per = [round(float(x), 4) for x in np.percentile(seconds[value], [25, 75])]
        points.append({"at": int(value), "seconds": round(median, 4), "quartiles": per, "tflop": facts["useful_tflop"]})
    return {"axis": axis, "points": points}


def chips(number: int) -> dict[str, Any]:
    """Plans a step of as many chips."""
    from vadapter.planning.topologies import Topology
    from vadapter.recipes import experiments
    from vadapter.runs import planner

    name, slices = TOPOLOGIES[number]
    # In a slice of 4 x 4 no ring joins 16 chips: over all of them gathers would be waited for, 0.28 s a step, not 0.15.
    fsdp = 4 if number <= 16 else 16
    bindings = [
        "ENCODER_VARIANT='vit_b'",
        "LARGE_VARIANT='palm_1b'",
        f"BATCH_SIZE={ROWS_A_CHIP * number}",
        "MeshConfig.slices=-1",
        f"MeshConfig.data={number // slices // fsdp}",
        f"MeshConfig.fsdp={fsdp}",
    ]
    experiment = experiments.unopened(["experiments/paper_stage2.gin"], bindings)
    made = planner.Planner("scaling", experiment, Topology.parse(name, slices)).plan().to_json()
    return {
        "at": number,
        "seconds": round(made["estimate"]["step_seconds"], 4),
        "mfu": round(made["estimate"]["mfu"], 4),
        "topology": name,
        "slices": slices,
        "versions": made["compiled"]["versions"],
    }


def _limits(points: Sequence[dict[str, Any]]) -> list[float]:
    """Seconds of the points if all ran at the best point's rate; of chips, if none waited for another."""
    if "tflop" not in points[0]:
        return [min(p["seconds"] for p in points)] * len(points)
    rate = max(p["tflop"] / p["seconds"] for p in points)
    return [p["tflop"] / rate for p in points]


def figure(sweeps: dict[str, Any]) -> str:
    """Returns an SVG: a panel a sweep, both axes logarithmic, the dashed line at the best point's rate."""
    side, margin, across = 250, 56, 3
    across = min(across, len(sweeps))
    down = -(-len(sweeps) // across)
    width, height = across * (side + margin) + 20, down * (side + margin + 30)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        'font-size="12" role="img" aria-label="Seconds of a training step as work grows">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for i, found in enumerate(sweeps.values()):
        x, y = margin + i % across * (side + margin), 30 + i // across * (side + margin + 30)
        parts += [f'<g transform="translate({x} {y})">', *_panel(found, side), "</g>"]
    return "\n".join([*parts, "</svg>\n"])


def _panel(found: dict[str, Any], side: int) -> list[str]:
    points = found["points"]
    at, seconds, limits = [p["at"] for p in points], [p["seconds"] for p in points], _limits(points)
    low, high = min(*seconds, *limits) / 1.3, max(*seconds, *limits) * 1.3

    def place(a: float, s: float) -> str:
        along = np.log(a / at[0]) / np.log(at[-1] / at[0])
        return f"{along * side:.1f},{(1 - np.log(s / low) / np.log(high / low)) * side:.1f}"

    parts = [f'<rect width="{side}" height="{side}" fill="none" stroke="#ddd"/>']
    for a in at:
        x = place(a, low).split(",")[0]
        parts.append(f'<text x="{x}" y="{side + 18}" text-anchor="middle">{a}</text>')
    for s in (min(seconds), max(seconds)):
        y = place(at[0], s).split(",")[1]
        parts.append(f'<text x="-6" y="{y}" text-anchor="end">{s:.2g} s</text>')
    parts.append(f'<text x="{side / 2}" y="{side + 38}" text-anchor="middle">{found["axis"]}</text>')
    for values, look in ((limits, 'stroke="#999" stroke-dasharray="4 4"'), (seconds, 'stroke="#0072b2"')):
        line = " ".join(place(a, s) for a, s in zip(at, values, strict=True))
        parts.append(f'<polyline points="{line}" fill="none" stroke-width="2" {look}/>')
    dots = [place(a, s).split(",") for a, s in zip(at, seconds, strict=True)]
    return [*parts, *(f'<circle cx="{x}" cy="{y}" r="3.5" fill="#0072b2"/>' for x, y in dots)]


def table(sweeps: dict[str, Any]) -> str:
    """Returns a table of all points."""
    lines = ["| changes | at | seconds | times the best rate's |", "| --- | ---: | ---: | ---: |"]
    for found in sweeps.values():
        limits = _limits(found["points"])
        for point, limit in zip(found["points"], limits, strict=True):
            row = (found["axis"], point["at"], f"{point['seconds']:.3g}", f"{point['seconds'] / limit:.2f}")
            lines.append(f"| {' | '.join(map(str, row))} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", nargs="*", default=list(SWEEPS), choices=[*SWEEPS, "chips"], metavar="SWEEP")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks/results/cpu/scaling.json")
    parser.add_argument("--figure", type=Path, default=ROOT / "docs/scaling.svg")
    args = parser.parse_args()
    keep_freed_memory()  # as training on a CPU does
    found: dict[str, Any] = json.loads(args.json.read_text()) if args.json.is_file() else {"sweeps": {}}

    def keep(name: str, result: dict[str, Any]) -> None:
        device = f"{platform.machine()}, {len(os.sched_getaffinity(0))} of {os.cpu_count()} CPUs"
        made = {"device": device, "date": time.strftime("%Y-%m-%d"), "versions": record.versions()}
        found["sweeps"][name] = result | ({} if name == "chips" else made)
        found["sweeps"] = {key: found["sweeps"][key] for key in (*SWEEPS, "chips") if key in found["sweeps"]}
        args.json.write_text(json.dumps(found, indent=1) + "\n")

    if "chips" in args.sweeps:
        from vadapter.planning.topologies import prepare

        prepare()  # before anything uses a device
        known = {p["at"]: p for p in found["sweeps"].get("chips", {"points": []})["points"]}
        for number in TOPOLOGIES:
            known[number] = chips(number)
            print(json.dumps(known[number]), flush=True)
            keep("chips", {"axis": CHIPS, "points": [known[n] for n in sorted(known)]})
    for name in [name for name in args.sweeps if name != "chips"]:
        keep(name, sweep(name, args.rounds))
    if found["sweeps"]:
        args.figure.write_text(figure(found["sweeps"]))
        print(table(found["sweeps"]))


if __name__ == "__main__":
    main()
