"""What words of a tiny LM cost a step, and what a feature cache saves of it, at the sizes of docs/open.md."""

import argparse

import feature_cache

from gpu_stages.record import Record, repeats_for
from gpu_stages.training import describe_device


def words(record: Record, directory: str) -> None:
    """Steps of the perceiver, and of a frozen tiny LM with words: from pixels, from features, and with words kept."""
    del directory
    describe_device(record)
    real = {"encoder": "dinov2_s", "decoder": "gemma3_270m", "rows": 64, "dtype": "bfloat16"}
    small = {"encoder": "miniature", "decoder": "miniature", "rows": 4, "dtype": "float32"}
    for adapter in ("perceiver", "words"):
        args = argparse.Namespace(adapter=adapter, frames=1, **(small if record.small else real))
        steps, _ = feature_cache.arms(feature_cache.model(args), args)
        for name, update in steps.items():
            with record.figure(f"{adapter} {name}", **vars(args)) as entry:
                entry |= repeats_for(update)
                entry["examples_per_s"] = round(args.rows / entry["median_ms"] * 1e3, 1)
