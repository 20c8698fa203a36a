"""The families that come with the package; importing it registers them."""

from vadapter.weights.families import (
    aimv2,
    clip,
    dinov2,
    dinov3,
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
    "aimv2",
    "clip",
    "dinov2",
    "dinov3",
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
