"""The models and arms of the open-weights experiment, and how each arm starts.

All arms stand between the same frozen ViT and the same frozen Gemma 3 270M:

    perceiver        perceiver resampler, 6 layers of width 768
    mlp              a map of each patch token, two layers
    pixel_shuffle    a linear map of squares of 2 x 2 patch tokens
    random           queries wiring with SmolLM2's shape at random
    text             the same with SmolLM2 as it was pretrained on text
    aligned          the same after stage 1, with stage 1's projection, without the hand-off
    ridge            aligned, and the map after it starts by ridge regression between the two language models
    repaired         ridge, and stage 1's prompt stands before the visual tokens as learned vectors
    repaired_frozen  repaired, the tiny LM frozen
    text_ridge       text, and the map after it starts by ridge regression: ridge without stage 1
    text_repaired    text_ridge, and the prompt stands before the visual tokens: repaired without stage 1
    words            repaired, and the tiny LM writes words of its own, which are soft tokens beside the queries
    words_frozen     words, the tiny LM frozen
    words_supervised words, and the tiny LM keeps its captioning loss of stage 1, in its own tokens
    words_slow_lm    words, the tiny LM at a tenth of the learning rate
    text_words       text_repaired, and the tiny LM writes words of its own: words without stage 1
    random_32        random, with as many soft tokens as words has

Queries start at positions in every arm with queries (`query_init = "positions"`, as open_stage2 has it).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import weights

from vadapter.models.adapters import LMAdapterConfig, MlpConfig
from vadapter.models.configuration import AdapterConfig
from vadapter.models.decoder import Decoder, DecoderConfig
from vadapter.models.position_embeddings import resample
from vadapter.models.resampler import PerceiverConfig
from vadapter.models.vit import ViTConfig
from vadapter.models.vlm import VLM, VLMConfig
from vadapter.runs.ridge import RidgeFit

IMAGE_SIZE = 84
NUM_QUERIES = 16
NUM_WORDS = 16
PENALTY = 10.0  # of the ridge regression; 1 to 1,000 gave the same

# Arm to its kind: arms of a kind share their compiled programs, and differ in their initial values alone.
KIND_OF = {
    "stage1": "stage1",
    "perceiver": "perceiver",
    "mlp": "mlp",
    "pixel_shuffle": "pixel_shuffle",
    "random": "queries",
    "text": "queries",
    "aligned": "queries",
    "ridge": "queries",
    "text_ridge": "queries",
    "text_repaired": "prefixed",
    "repaired": "prefixed",
    "repaired_frozen": "frozen",
    "words": "words",
    "words_frozen": "words_frozen",
    "words_supervised": "words_supervised",
    "words_slow_lm": "words_slow_lm",
    "text_words": "words",
    "random_32": "queries_32",
}
TEXT_REGRESSION = ("text_ridge", "text_repaired", "text_words")
AFTER_STAGE1 = (
    *("aligned", "ridge", "repaired", "repaired_frozen"),
    *("words", "words_frozen", "words_supervised", "words_slow_lm"),
)
QUERIES = "adapter/queries"  # starts from other parameters
# Kinds with the same adapter.
STARTS_AS = {"frozen": "prefixed"} | dict.fromkeys(("words_frozen", "words_supervised", "words_slow_lm"), "words")
_WORDS = (r"adapter/(?!lm/(embedder|head)/).*",)  # the table of words stays as stage 1 left it
TRAINABLE = {
    "stage1": (r"adapter/.*", r"decoder/.*"),
    "frozen": (r"adapter/(prefix|queries)", r"adapter/(front|projection)/.*"),
    "words": _WORDS,
    "words_slow_lm": _WORDS,
    "words_frozen": (r"adapter/(prefix|suffix|queries)", r"adapter/(front|projection)/.*"),
}
LR_MULTIPLIERS = {"words_slow_lm": ((r"adapter/lm/.*", 0.1),)}


def kinds_of(arms: Sequence[str]) -> list[str]:
    """Returns the kinds of adapters that some arms need: their own, and those that give them initial values."""
    kinds = [*(["stage1"] if set(arms) & set(AFTER_STAGE1) else []), *(KIND_OF[arm] for arm in arms)]
    return list(dict.fromkeys(needed for kind in kinds for needed in (STARTS_AS.get(kind, kind), kind)))


@dataclasses.dataclass(frozen=True)
class Backbones:
    """The three published models.

    Attributes:
        encoder, tiny, large: their configurations.
        params: `{slash path: bf16 array}` of each, on the host.
    """

    encoder: ViTConfig
    tiny: DecoderConfig
    large: DecoderConfig
    params: Mapping[str, Mapping[str, np.ndarray]]


def load_backbones(pack: Path, index: Mapping[str, Any], dtype: str) -> Backbones:
    """Reads the weights of a pack, to compute in `dtype`; the ViT's positions are resampled to `IMAGE_SIZE`."""
    loaded = {name: weights.load(pack / source) for name, source in index["models"].items()}
    vit, tiny, large = (dataclasses.replace(loaded[n][0], dtype=dtype) for n in ("vit", "smollm2", "gemma3"))
    encoder = dataclasses.replace(vit, image_size=IMAGE_SIZE, position_grid=None)
    table = loaded["vit"][1]["pos_embedding"].astype(np.float32)
    loaded["vit"][1]["pos_embedding"] = resample(table, encoder.num_patches + 1, 1).astype(weights.BF16)
    params = {"encoder": loaded["vit"][1], "tiny": loaded["smollm2"][1], "large": loaded["gemma3"][1]}
    return Backbones(encoder, tiny, large, params)


def adapter_of(kind: str, backbones: Backbones, prompt: Mapping[str, Sequence[int]]) -> AdapterConfig:
    """Returns the adapter of a kind. `prompt` has the ids `before` and `after` the visual tokens in stage 1."""
    dtype = backbones.tiny.dtype
    if kind == "perceiver":
        return PerceiverConfig(num_layers=6, num_queries=NUM_QUERIES, num_frames=1, dtype=dtype)
    if kind in ("mlp", "pixel_shuffle", "stage1"):
        shuffle = 2 if kind == "pixel_shuffle" else 1
        return MlpConfig(depth=2 if kind == "mlp" else 1, pixel_shuffle=shuffle, dtype=dtype)
    bare, speaks = kind.startswith("queries"), kind.startswith("words")
    return LMAdapterConfig(
        lm=backbones.tiny,
        front=MlpConfig(depth=1, dtype=dtype),
        readout="appended",
        num_queries=NUM_QUERIES + (NUM_WORDS if kind == "queries_32" else 0),
        query_init="positions",
        num_prefix=0 if bare else len(prompt["before"]),
        num_suffix=len(prompt["after"]) if speaks else 0,
        num_words=NUM_WORDS if speaks else 0,
    )


def model_of(kind: str, backbones: Backbones, prompt: Mapping[str, Sequence[int]]) -> VLM:
    """Returns the model of a kind."""
    decoder = backbones.tiny if kind == "stage1" else backbones.large
    return VLMConfig(decoder, backbones.encoder, adapter_of(kind, backbones, prompt), repeat_stills=False).make()


def hidden_states(tiny: DecoderConfig, params: Mapping[str, Any], texts: Any, chunk: int) -> jax.Array:
    """Returns the tiny LM's final hidden states, f32 [positions, D], at the positions of the regression.

    Args:
        tiny: its configuration.
        params: its whole parameters.
        texts: fields of `vadapter.runs.text_pairs.Pairs`.
        chunk: texts computed at a time; must divide their number.
    """
    model = Decoder(tiny)

    def read(tokens: jax.Array) -> jax.Array:
        def call(module: Decoder, tokens: jax.Array) -> jax.Array:
            slots = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
            return module(module.embed(tokens), jnp.ones_like(tokens), slots)[0]

        return model.apply({"params": params}, tokens, method=call)

    tokens = texts["tokens"]
    states = jax.lax.map(read, tokens.reshape(-1, chunk, tokens.shape[1])).reshape(*tokens.shape, -1)
    return states[texts["text"], texts["slot"]].astype(jnp.float32)


def ridge(
    states: np.ndarray, wanted: np.ndarray, held_out: np.ndarray
) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """Fits `wanted = states @ kernel + bias`.

    Args:
        states: of the tiny LM, [positions, D].
        wanted: scaled embeddings of the large LM's next pieces, [positions, E].
        held_out: positions that only measure the fit.

    Returns:
        Kernel, bias and facts: R2 on the held-out positions, and the share of the states' energy in their mean.
    """
    fit = RidgeFit(states.shape[1], wanted.shape[1], PENALTY)
    fit.add(states, wanted, held_out)
    kernel, bias, facts = fit.solve()
    return kernel, bias, {"ridge_r2": facts.pop("r2"), **facts}


def start(
    arm: str, made: Mapping[str, Any], given: Mapping[str, Any], stage1: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Returns the initial values of an arm's adapter, `{slash path: f32 array}`, but for position queries.

    Args:
        arm: its name.
        made: all of the adapter at random.
        given: `tiny` (the pretrained tiny LM), `ridge` and `text_ridge` (kernel and bias), `prompt` (ids `before`
            and `after` the visual tokens in stage 1).
        stage1: what stage 1 trained.
    """
    params = dict(made)
    if KIND_OF[arm] in ("perceiver", "mlp", "pixel_shuffle") or arm.startswith("random"):
        return params
    lm = given["tiny"] if arm.startswith("text") else {p.removeprefix("decoder/"): x for p, x in stage1.items()}
    for path in params:
        if path.startswith("adapter/lm/"):
            params[path] = lm[path.removeprefix("adapter/lm/")]
        elif path.startswith("adapter/front/") and not arm.startswith("text"):
            params[path] = stage1["adapter/" + path.removeprefix("adapter/front/")]
    if arm not in ("text", "aligned"):
        kernel, bias = given["text_ridge" if arm in TEXT_REGRESSION else "ridge"]
        params["adapter/projection/kernel"], params["adapter/projection/bias"] = jnp.asarray(kernel), jnp.asarray(bias)
    for part, side in (("adapter/prefix", "before"), ("adapter/suffix", "after")):
        if part in params:
            params[part] = lm["embedder/embedding"][np.array(given["prompt"][side])]
    return params
