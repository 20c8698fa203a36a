"""Small models of each family, as Hugging Face folders made without torch.

`golden/<family>/` has `config.json`, written by hand as the published ones are; `tensors.json`, names and shapes as
transformers saves them; and `outputs.npz`, what transformers computes. The weights are made from their names.
"""

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.weights.arrays import Arrays, imported
from vadapter.base import trees
from vadapter.models.decoder import Decoder, DecoderConfig
from vadapter.models.vit import ViT, ViTConfig
from vadapter.weights.checkpoint import Checkpoint
from vadapter.weights.family import Architecture, ModelPart
from vadapter.weights.recognise import recognise

GOLDEN = Path(__file__).parent / "golden"
FAMILIES = sorted(path.name for path in GOLDEN.iterdir())
_TEXT = ("gemma", "granite", "llama", "mistral", "olmo", "phi", "qwen", "smollm")
TEXT = [name for name in FAMILIES if name.startswith(_TEXT)]
ENCODERS = [name for name in FAMILIES if name not in TEXT] + ["gemma3"]

# transformers reads images of one size only.
ONE_SIZE = ("aimv2", "gemma3")

Named = dict[str, np.ndarray]


def make_tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns a tensor that depends on its name and shape alone, in f32.

    Nothing is at the value that training starts from: norms and layer scales are spread around 0.75, biases around 0,
    and matrices are normal with a variance of 1 / inputs.
    """
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")
    # numpy promises that this generator's stream will never change.
    normal = np.random.RandomState(seed).standard_normal(shape)
    *_, module, _ = f".{name}".split(".")
    if "norm" in module or name.endswith("lambda1"):
        x = 0.2 * normal if name.endswith("bias") else 0.75 + 0.2 * normal
    elif len(shape) < 2:
        x = 0.2 * normal
    else:
        x = normal / math.sqrt(math.prod(shape[1:]))
    return np.asarray(x, np.float32)


def config(family: str) -> dict[str, Any]:
    """Returns config.json."""
    return json.loads((GOLDEN / family / "config.json").read_text())


def tensors(family: str) -> Named:
    """Returns all tensors by name."""
    shapes = json.loads((GOLDEN / family / "tensors.json").read_text())
    return {name: make_tensor(name, tuple(shape)) for name, shape in shapes.items()}


def outputs(family: str) -> Named:
    """Returns inputs and what transformers makes of them.

    Text: tokens and mask [B, T], logits [B, T, V] (0 at padding), generated [B, N]. Vision: frames, patches [B, P, D],
    and of families that read images of other sizes `frames_<n>`, `patches_<n>` with n patches along each side.
    """
    with np.load(GOLDEN / family / "outputs.npz") as file:
        return dict(file)


def write_folder(family: str, folder: Path | str) -> Path:
    """Writes a family's model as a Hugging Face folder: config.json and model.safetensors. Needs no torch.

    Args:
        family: a name of `FAMILIES`.
        folder: made if it is not there.

    Returns:
        The folder.
    """
    from safetensors.numpy import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text((GOLDEN / family / "config.json").read_text())
    save_file(tensors(family), folder / "model.safetensors", {"format": "pt"})
    return folder


def opened(settings: Mapping[str, Any], arrays: Mapping[str, np.ndarray], **extra: Mapping[str, Any]) -> Checkpoint:
    """Makes a source of settings and tensors; `extra` are other JSON files, without their ending."""
    return Checkpoint(
        "huggingface", Arrays(arrays), settings, None, {f"{name}.json": value for name, value in extra.items()}
    )


def load(source: Checkpoint, part: ModelPart | None = None) -> tuple[Any, dict[str, Any], Architecture]:
    """Imports a source in f32.

    Returns:
        Our configuration, the parameter tree, and the architecture that was recognised.
    """
    architecture = recognise(source, part)
    params = trees.unflatten(imported(architecture, source.tensors))
    return dataclasses.replace(architecture.config, dtype="float32"), params, architecture


@functools.partial(jax.jit, static_argnums=0)
def _patches(config: ViTConfig, params: Any, frames: jax.Array) -> jax.Array:
    return ViT(config).apply({"params": params}, frames)


def patches(config: ViTConfig, params: Any, frames: np.ndarray) -> np.ndarray:
    """Encodes frames of any size."""
    config = dataclasses.replace(config, image_size=frames.shape[1])
    return np.asarray(_patches(config, params, frames))


def frames_of(golden: Named) -> Named:
    """Returns the frames of each size, by the name of what they are encoded as."""
    return {name.replace("frames", "patches"): x for name, x in golden.items() if name.startswith("frames")}


def _read(model: Decoder, tokens: jax.Array, mask: jax.Array, positions: jax.Array, cache: Any) -> tuple:
    hidden, cache = model(model.embed(tokens), mask, positions, cache)
    return model.logits(hidden), cache


@functools.partial(jax.jit, static_argnums=0)
def traced_logits(config: DecoderConfig, params: Any, tokens: jax.Array, mask: jax.Array) -> jax.Array:
    """As `logits`, for gradients; at padding they are anything."""
    positions = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
    return Decoder(config).apply({"params": params}, tokens, mask, positions, None, method=_read)[0]


def logits(config: DecoderConfig, params: Any, tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Returns the logits of rows padded anywhere, 0 at padding."""
    return np.asarray(traced_logits(config, params, tokens, mask)) * mask[..., None]


@functools.partial(jax.jit, static_argnums=(0, 4))
def _generate(config: DecoderConfig, params: Any, tokens: jax.Array, mask: jax.Array, new: int) -> jax.Array:
    model, rows, length = Decoder(config), jnp.arange(tokens.shape[0]), tokens.shape[1]

    def read(*args: Any) -> tuple:
        return model.apply({"params": params}, *args, method=_read)

    cache = model.apply({"params": params}, tokens.shape[0], length + new, method="empty_cache")
    logits, cache = read(tokens, mask, jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0), cache)
    last = length - 1 - jnp.argmax(mask[:, ::-1], axis=1)

    def step(state: tuple, at: jax.Array) -> tuple:
        logits, cache = state
        token = jnp.argmax(logits, axis=-1)
        logits, cache = read(token[:, None], jnp.ones_like(token)[:, None], (mask.sum(1) + at)[:, None], cache)
        return (logits[:, 0], cache), token

    return jax.lax.scan(step, (logits[rows, last], cache), jnp.arange(new))[1].T


def generate(config: DecoderConfig, params: Any, tokens: np.ndarray, mask: np.ndarray, new: int) -> np.ndarray:
    """Continues rows greedily, one token at a time, with the cache."""
    return np.asarray(_generate(config, params, tokens, mask, new))
