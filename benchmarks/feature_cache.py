"""When does a feature cache pay? The step from pixels beside the step from features, and what reading either costs.

    python benchmarks/feature_cache.py                                    # the miniature's sizes
    python benchmarks/feature_cache.py --encoder=siglip_b_16_224 --decoder=smollm2_135m --adapter=perceiver --rows=2

Steps of one model with random parameters, in paired rounds: from pixels, from bf16 features, from int8 features; and
where the adapter's frozen LM writes words (`--adapter=words`), from features with the words. Then a record's reading:
a JPEG photograph decoded and resized, beside a record of the cache, from the page cache and so without the disk. Disk
bytes a record, and how many passes over the data earn back the writing, follow from these: writing takes a forward
pass of the encoder and a JPEG a record. `most` is what the FLOPs of a step allow, without a clock. `--clock=cpu` counts
the seconds of the CPUs, for a machine that others use. It prints one JSON object.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import paired
from vadapter.base.batch import Batch, Features
from vadapter.base.host_memory import keep_freed_memory
from vadapter.data.reading import features, images
from vadapter.models import variants
from vadapter.models.adapters import LMAdapterConfig, MlpConfig
from vadapter.models.decoder import DecoderConfig
from vadapter.models.resampler import PerceiverConfig
from vadapter.models.vit import ViTConfig
from vadapter.models.vlm import VLM, VLMConfig
from vadapter.partitioning import abstract_params
from vadapter.training.program import Program
from vadapter.training.storage import trained_paths

WORDS, QUERIES = 16, 16
TRAINED = {
    "words": ("adapter/(prefix|suffix|queries)", "adapter/front/.*", "adapter/projection/.*"),
    "perceiver": ("adapter/.*",),
    "mlp": ("adapter/.*",),
}


def model(args: argparse.Namespace) -> VLMConfig:
    """A model of published shapes, or of the miniature's."""
    dtype = args.dtype
    if args.encoder == "miniature":
        encoder = ViTConfig(48, 8, 96, 3, 4, 384, dtype=dtype)
    else:
        encoder = variants.encoder(args.encoder, dtype=dtype)
    if args.decoder == "miniature":
        decoder: Any = DecoderConfig(512, 128, 4, 4, 1, 32, 384, dtype=dtype)
        tiny: Any = DecoderConfig(512, 64, 4, 4, 1, 16, 192, dtype=dtype)
    else:
        decoder = variants.decoder(args.decoder, dtype=dtype)
        tiny = variants.decoder("smollm2_135m", dtype=dtype)
    adapters: dict[str, Any] = {
        "mlp": MlpConfig(depth=2, dtype=dtype),
        "perceiver": PerceiverConfig(num_queries=32, dtype=dtype),
        "words": LMAdapterConfig(
            tiny, MlpConfig(dtype=dtype), "appended", QUERIES, num_prefix=5, num_suffix=2, num_words=WORDS
        ),
    }
    return VLMConfig(decoder, encoder, adapters[args.adapter], num_frames=args.frames)


def pixels(config: VLMConfig, args: argparse.Namespace) -> Batch:
    """Rows of one picture or clip and a text."""
    rng = np.random.default_rng(0)
    struct = config.example_batch(args.rows, {"inputs": 8, "targets": 32}, args.frames)
    visual = config.num_visual_tokens(args.frames)
    slots = np.tile(np.arange(struct.tokens.shape[1], dtype=np.int32), (args.rows, 1))
    fields: dict[str, Any] = {
        "tokens": rng.integers(1, 500, slots.shape, np.int32),
        "segment_ids": np.ones_like(slots),
        "positions": slots,
        "media_index": np.where(slots < visual, slots, -1),
        "media": rng.integers(0, 256, struct.media.shape, np.uint8),
        "target_positions": slots[:, -33:-1],
        "target_ids": rng.integers(1, 500, (args.rows, 32), np.int32),
        "target_weights": np.ones((args.rows, 32), np.float32),
    }
    return Batch(**fields)


def arms(config: VLMConfig, args: argparse.Namespace) -> tuple[dict[str, Any], Any]:
    """Returns the steps by name, and the function that makes features."""
    batch, network = pixels(config, args), VLM(config)
    params = nn.unbox(jax.jit(network.init)(jax.random.key(0), batch)["params"])
    encode = jax.jit(lambda params, media: network.apply({"params": params}, media, method="patch_tokens"))
    tokens = encode(params, batch.media)
    wide: Any = np.asarray(tokens, np.float32)
    scale = np.abs(wide).max(axis=-1, keepdims=True) / 127
    made: dict[str, Any] = {
        "pixels": batch.media,
        "features": Features(tokens),
        "features_int8": Features(np.round(wide / scale).astype(np.int8), scale),
    }
    if args.adapter == "words":
        write = jax.jit(lambda params, media: network.apply({"params": params}, media, method="written"))
        made["features_and_words"] = Features(made["features"].tokens, words=write(params, batch.media))
    boxed = jax.eval_shape(network.init, jax.random.key(0), batch)["params"]
    steps = {}
    for name, media in made.items():
        steps[name] = step(network, batch.replace(media=media), params, boxed, TRAINED[args.adapter], args.dtype)
    return steps, lambda: jax.block_until_ready(encode(params, batch.media))


def step(network: VLM, batch: Batch, params: Any, boxed: Any, trainable: tuple[str, ...], dtype: str) -> Any:
    """Returns a function that makes one update, the batch's way to the device included, and waits for it."""
    program = Program(network, batch, trainable=trainable, frozen_dtype=dtype, steps=10_000, boxed=boxed)
    state, frozen = program.start(jax.tree.map(jnp.copy, params))
    kept = [state]

    def update() -> None:
        kept[0], metrics = program.step(kept[0], frozen, program.put(batch))
        jax.block_until_ready(metrics)

    return update


def reading(config: VLMConfig, args: argparse.Namespace) -> dict[str, Any]:
    """Returns seconds and bytes of a record: a JPEG of a usual size, and the cache's."""
    from PIL import Image

    encoder: Any = config.encoder
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        noise = rng.integers(0, 256, (30, 40, 3), np.uint8)
        photo = Path(folder) / "photo.jpg"
        Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC).save(photo, quality=90)
        size = encoder.image_size
        arms: dict[str, Any] = {"jpeg": lambda: images.decode(photo.read_bytes(), size, "stretch")}
        found: dict[str, Any] = {"bytes": {"jpeg_640x480": photo.stat().st_size}}
        for dtype in ("bfloat16", "int8"):
            words = WORDS if args.adapter == "words" else 0
            layout = features.Layout(encoder.num_patches, encoder.width, dtype, words)
            store = features.Store(f"{folder}/{dtype}", layout, {"task": features.Part(8, 1, args.frames, 8)})
            store.write("task", 0, np.zeros((8, 1), store.dtype("task")))
            arms[dtype] = lambda store=store: store.read("task", 3)
            found["bytes"][dtype] = store.dtype("task").itemsize
        seconds = paired.rounds(arms, 50)
    return found | {"milliseconds": {name: round(1000 * x, 3) for name, x in paired.medians(seconds).items()}}


def most(config: VLMConfig, args: argparse.Namespace) -> dict[str, float]:
    """Returns how much faster a step may be, by its useful FLOPs (`vadapter.models.flops`)."""
    batch = pixels(config, args)
    boxed = abstract_params(VLM(config), config.example_batch())
    count = config.flops(nn.unbox(boxed), trained_paths(boxed, TRAINED[args.adapter]))
    encoder: Any = config.encoder
    shape = (*batch.media.shape[:3], encoder.num_patches, encoder.width)
    kept: Any = Features(np.zeros(shape, np.int8))  # type: ignore[arg-type]
    arms = {"features": kept}
    if args.adapter == "words":
        arms["features_and_words"] = kept.replace(words=np.zeros((args.rows, 1, WORDS), np.int32))
    whole = sum(count(batch).values())
    return {name: round(whole / sum(count(batch.replace(media=x)).values()), 2) for name, x in arms.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="miniature", help="a name of models/variants.py")
    parser.add_argument("--decoder", default="miniature", help="likewise")
    parser.add_argument("--adapter", default="words", choices=sorted(TRAINED))
    parser.add_argument("--frames", type=int, default=1)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--clock", default="wall", choices=["wall", "cpu"])
    args = parser.parse_args()
    keep_freed_memory()  # as training on a CPU does
    config = model(args)
    steps, encode = arms(config, args)
    clock = time.process_time if args.clock == "cpu" else time.perf_counter
    seconds = paired.rounds({**steps, "encode": encode}, args.rounds, clock)
    times, read = paired.medians(seconds), reading(config, args)
    best = "features_and_words" if "features_and_words" in steps else "features"
    a_row = {name: 1000 * x / args.rows for name, x in times.items()}
    writing = a_row["encode"] + read["milliseconds"]["jpeg"] * args.frames
    if best != "features":  # the words are written once too
        writing += a_row["features"] - a_row[best]
    saved = a_row["pixels"] - a_row[best] + read["milliseconds"]["jpeg"] * args.frames
    saved -= read["milliseconds"]["bfloat16"]
    print(
        json.dumps(
            {
                "question": "times the speed of a step from pixels, of paired rounds",
                "times_pixels": {n: paired.ratio(seconds["pixels"], seconds[n]) for n in steps if n != "pixels"},
                "step_seconds": times,
                "a_record": read,
                "most": most(config, args),
                "passes_until_it_pays": round(writing / saved, 2) if saved > 0 else None,
                "disk_MB_per_s_to_keep_up": round(read["bytes"]["bfloat16"] / 1e6 / (a_row[best] / 1000), 1),
                "sizes": vars(args),
                "device": f"{jax.devices()[0].device_kind}, {platform.machine()}, {os.cpu_count()} CPUs",
                "date": time.strftime("%Y-%m-%d"),
                "jax": jax.__version__,
            }
        )
    )


if __name__ == "__main__":
    main()
