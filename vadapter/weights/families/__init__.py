"""The families that come with the package; importing it registers them."""

from vadapter.weights.families import (
    clip,
    dinov2,
    gemma,
    granite,
    llama,
    mistral,
    olmo,
    phi,
    qwen,
    siglip,
    smollm,
    t5x,
    vit,
)

__all__ = [
    "clip",
    "dinov2",
    "gemma",
    "granite",
    "llama",
    "mistral",
    "olmo",
    "phi",
    "qwen",
    "siglip",
    "smollm",
    "t5x",
    "vit",
]
