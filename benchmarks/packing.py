"""Targets a second of packed against unpacked rows: one model, the same captions, one process.

    python benchmarks/packing.py --rounds 7

Captions have lengths of a lognormal distribution, as those of people have (median 10 tokens, few above 40). Both arms
train the adapter on the same samples a step. A round times one step of each, in turns; the ratio is of the rounds.
Prints JSON: medians, and an interval of 95% of the median of the ratios (bootstrap).
"""

import argparse
import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import linen as nn

import paired
from vadapter.base.batch import Batch
from vadapter.base.host_memory import keep_freed_memory
from vadapter.data.order import packing
from vadapter.data.order.config import PackingConfig
from vadapter.data.rows.converters import lay_out, stacked
from vadapter.data.rows.prompts import MEDIA_ID
from vadapter.data.rows.sizes import Layout
from vadapter.models.adapters import MlpConfig
from vadapter.models.decoder import DecoderConfig
from vadapter.models.vit import ViTConfig
from vadapter.models.vlm import VLMConfig
from vadapter.training.program import Program

TARGETS = 48  # slots, for the longest captions


def model(width: int, depth: int) -> VLMConfig:
    """A small ViT, an MLP, and a decoder of the given size."""
    decoder = DecoderConfig(
        vocab_size=8192, width=width, depth=depth, num_heads=8, num_kv_heads=8, head_dim=width // 8, mlp_dim=4 * width
    )
    encoder = ViTConfig(image_size=64, patch_size=16, width=128, depth=4, num_heads=4, mlp_dim=512)
    return VLMConfig(decoder, encoder, MlpConfig())


def layout(config: VLMConfig) -> Layout:
    """The layout of a caption."""
    return Layout({"inputs": 4, "targets": TARGETS}, 1, config.num_visual_tokens(1))


def captions(config: VLMConfig, count: int, rng: np.random.Generator) -> Batch:
    """Rows of one caption each."""
    lengths = np.clip(rng.lognormal(np.log(10), 0.5, count).round(), 3, TARGETS).astype(int)
    rows = [lay_out([5, MEDIA_ID, 6], rng.integers(7, 8192, n), layout(config), 1) for n in lengths]
    size = config.data_sizes()["image_size"]
    arrays: dict[str, Any] = {name: values for name, values in stacked(rows).items() if name != "truncated"}
    arrays["media"] = rng.integers(0, 256, (count, 1, 1, size, size, 3), np.uint8)
    return Batch(**arrays)


def _update(config: VLMConfig, batch: Batch) -> Callable[[], None]:
    """One update after the other, of parameters of its own."""
    program = Program(config.make(), example=batch, trainable=("adapter/.*",), steps=10000)
    params = nn.unbox(jax.jit(program.model.init)(jax.random.key(0), batch)["params"])
    state, frozen = program.start(params)
    given = program.put(batch)

    def run() -> None:
        nonlocal state
        state, metrics = program.step(state, frozen, given)
        jax.block_until_ready(metrics)

    return run


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Times both arms; `args` are those of `main`."""
    rng = np.random.default_rng(0)
    config = model(args.width, args.depth)
    plain = captions(config, args.rows * args.samples, rng)
    mean = float((plain.segment_ids > 0).sum(axis=1).mean())
    settings = PackingConfig(args.samples, int(1.1 * args.samples * mean) + 8, window=args.rows)
    budgets = packing.budgets(settings, layout(config), args.rows)
    packed, left_over = packing.pack(budgets, plain, config.num_visual_tokens(1))
    if left_over:
        raise ValueError(f"{left_over} samples found no room: the arms would not do the same work.")
    seconds = paired.rounds({"unpacked": _update(config, plain), "packed": _update(config, packed)}, args.rounds)
    targets = float(plain.target_weights.sum())
    return {
        "device": jax.devices()[0].device_kind,
        "samples": args.rows * args.samples,
        "slots": {"unpacked": plain.tokens.size, "packed": packed.tokens.size},
        "efficiency": {
            name: round(float((x.segment_ids > 0).mean()), 3) for name, x in (("unpacked", plain), ("packed", packed))
        },
        "targets_per_s": {name: round(targets / float(np.median(values)), 1) for name, values in seconds.items()},
        "times_unpacked": paired.ratio(seconds["unpacked"], seconds["packed"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rows", type=int, default=4, help="packed rows a step")
    parser.add_argument("--samples", type=int, default=4, help="samples a row")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--depth", type=int, default=6)
    args = parser.parse_args()
    keep_freed_memory()  # as training on a CPU does
    print(json.dumps(measure(args), indent=2))


if __name__ == "__main__":
    main()
