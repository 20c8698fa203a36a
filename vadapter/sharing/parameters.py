"""Our parameters as PyTorch keeps them: a tensor a layer, and maps as [out, in]."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from vadapter.models import position_embeddings
from vadapter.models.decoder import DecoderConfig
from vadapter.models.positions import rope_frequencies
from vadapter.models.stacks import is_stacked
from vadapter.models.vit import ViTConfig
from vadapter.models.vlm import VLMConfig

# A map of that name sums over heads and their channels; every other sums over one axis.
_TWO_INPUTS = ("out",)
_STACKS = (f"{ViTConfig.stack}/", f"{DecoderConfig.stack}/")  # that of a decoder is a resampler's too


def torch_tensors(model: VLMConfig, params: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the parameters by their names in `modeling_vadapter.py`.

    Args:
        model: of the parameters, without LoRA.
        params: `{slash path: floating array on the host}`. The learned positions of patches are those of any grid;
            they are resampled to that of the encoder.
    """
    encoder = model.encoder
    assert isinstance(encoder, ViTConfig)
    first = int(encoder.class_token)
    for path, x in params.items():
        if path == "encoder/pos_embedding":
            method = encoder.position_resampling
            x = position_embeddings.resample(np.asarray(x), first + encoder.num_patches, first, method)
        if is_stacked(path):
            stack, rest = _split(path)
            for i, layer in enumerate(x):
                yield _named(f"{stack}/{i}/{rest}", layer)
        else:
            yield _named(path, x)
    if encoder.positions == "sines":
        sines = position_embeddings.sines(encoder.grid, encoder.width)
        yield "encoder.pos_embedding", np.concatenate([np.zeros((1, first, encoder.width), np.float32), sines], 1)


def _split(path: str) -> tuple[str, str]:
    """The path of a stack, and the path in a layer."""
    for stack in _STACKS:
        before, found, rest = path.partition(stack)
        if found:
            return before + found.rstrip("/"), rest
    raise AssertionError(path)


def _named(path: str, x: np.ndarray) -> tuple[str, np.ndarray]:
    *parts, last = path.split("/")
    if last == "kernel" and x.ndim == 4 and parts[-1] == "embedding":
        x = x.transpose(3, 2, 0, 1)
    elif last == "kernel":
        inputs = 2 if parts[-1] in _TWO_INPUTS and x.ndim == 3 else 1
        size = int(np.prod(x.shape[:inputs]))
        x = x.reshape(size, -1).T
    elif last == "bias":
        x = x.reshape(-1)
    names = {"kernel": "weight", "scale": "weight", "embedding": "weight"}
    return ".".join([*parts, names.get(last, last)]), np.ascontiguousarray(x)


def rotary(decoder: DecoderConfig) -> dict[str, Any]:
    """Returns what `modeling_vadapter.py` reads of a decoder's rotary positions: its frequencies, as numbers."""
    scaling = decoder.rope_scaling
    global_ = rope_frequencies(decoder.rotated, decoder.rope_base, scaling)
    local = rope_frequencies(decoder.rotated, decoder.rope_local_base or decoder.rope_base)
    return {
        "global": [float(x) for x in global_],
        "local": [float(x) for x in local],
        "magnitude": scaling.magnitude if scaling else 1.0,
        "longest": scaling.original_length if scaling and scaling.kind == "longrope" else None,
    }
