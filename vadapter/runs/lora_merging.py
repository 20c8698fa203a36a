"""LoRA added to the kernels beside it, for whatever leaves vadapter."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from vadapter.base import trees
from vadapter.models import lora
from vadapter.models.stacks import layer_stacks, with_stack
from vadapter.models.vlm import VLMConfig


def beside(paths: Collection[str]) -> frozenset[str]:
    """Returns the kernels that LoRA stands beside."""
    return frozenset(path.removesuffix("lora_a") + "kernel" for path in paths if path.endswith("/lora_a"))


def merged(model: VLMConfig, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns parameters of a model, by slash path, with LoRA added to its kernels, which become f32."""

    def scale(path: str) -> float:
        part = model.encoder if path.startswith("encoder/") else model.decoder
        if path.startswith("adapter/"):
            part = getattr(model.adapter, "lm", None)
        return getattr(part, "lora").scale  # noqa: B009

    # In f32: rounded to bf16, what LoRA learned would be lost where it is small beside the kernel.
    kernels = beside(params)
    wide = {p: np.asarray(x, np.float32) if p in kernels else x for p, x in params.items()}
    return {path: np.asarray(x) for path, x in trees.flatten(lora.merge(trees.unflatten(wide), scale)).items()}


def without_lora(config: Any) -> Any:
    """Returns a model's configuration without LoRA."""
    for place, stack in layer_stacks(config).items():
        if getattr(stack, "lora", None) is not None:
            config = with_stack(config, place, lora=None)
    return config
