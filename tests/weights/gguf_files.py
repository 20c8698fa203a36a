"""The golden text models as GGUF files, made as llama.cpp's converter makes them, and a tokenizer to put in."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tests.weights import families

# Golden families, their GGUF architecture, and the settings that such a file can say where the golden ones are others.
ARCHITECTURES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "llama2": ("llama", {}),
    "llama3": (
        "llama",
        {
            "rope_theta": 500_000.0,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
        },
    ),
    "mistral": ("llama", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", {"query_pre_attn_scalar": 16}),
    "gemma3_text": ("gemma3", {"query_pre_attn_scalar": 16}),
}
_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_KEYS = {
    "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "sliding_window": "attention.sliding_window",
    "sliding_window_pattern": "attention.sliding_window_pattern",
}
_NUMBERS = {
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
HAS_WINDOW = ("mistral", "gemma2", "gemma3_text")


def config(family: str) -> dict[str, Any]:
    """Returns config.json of the model that `write` writes."""
    return families.config(family) | ARCHITECTURES[family][1]


def tensors(family: str) -> dict[str, np.ndarray]:
    """Returns the tensors of that model; Gemma's norms as they are after 1 was added and taken away again."""
    found = families.tensors(family)
    return {n: (x + 1) - 1 if family.startswith("gemma") and "norm" in n else x for n, x in found.items()}


def permuted(x: np.ndarray, heads: int) -> np.ndarray:
    """Rows of Llama's queries or keys as llama.cpp orders them: (i, i + half) of a head side by side."""
    return np.stack(np.split(x.reshape(heads, -1, *x.shape[1:]), 2, axis=1), axis=2).reshape(x.shape)


def stored(family: str) -> dict[str, np.ndarray]:
    """Returns the tensors by llama.cpp's names and in its layouts."""
    settings, arch = config(family), ARCHITECTURES[family][0]
    heads = settings["num_attention_heads"]
    kv_heads = settings.get("num_key_value_heads", heads)
    made = {}
    for name, x in families.tensors(family).items():
        module, _, ending = name.rpartition(".")
        layer = ""
        if module.startswith("model.layers."):
            _, _, index, module = module.split(".", 3)
            layer = f"blk.{index}."
        if module == "post_attention_layernorm":
            ours = "post_attention_norm" if arch in ("gemma2", "gemma3") else "ffn_norm"
        else:
            ours = _NAMES[module]
        if arch == "llama" and ours in ("attn_q", "attn_k"):
            x = permuted(x, heads if ours == "attn_q" else kv_heads)
        made[f"{layer}{ours}.{ending}"] = x + 1 if arch.startswith("gemma") and "norm" in ours else x
    if settings.get("rope_scaling") and arch == "llama":
        made["rope_freqs.weight"] = llama3_divisors(settings)
    return made


def llama3_divisors(settings: Mapping[str, Any]) -> np.ndarray:
    """By how much each frequency is divided, as llama.cpp's converter computes it."""
    scaling, divisors = settings["rope_scaling"], []
    for i in range(0, settings["head_dim"], 2):
        length = 2 * np.pi * settings["rope_theta"] ** (i / settings["head_dim"])
        turns = scaling["original_max_position_embeddings"] / length
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        smooth = min(1.0, max(0.0, (turns - low) / (high - low)))
        divisors.append(1 / ((1 - smooth) / scaling["factor"] + smooth))
    return np.array(divisors, np.float32)


def write(
    path: Path,
    family: str,
    *,
    kinds: Mapping[str, gguf.GGMLQuantizationType] | None = None,
    values: Mapping[str, Any] | None = None,
    arch: str | None = None,
    change: Callable[[dict[str, np.ndarray]], None] | None = None,
    **options: Any,
) -> Path:
    """Writes a golden model as a GGUF file.

    Args:
        path: of the file.
        family: key of `ARCHITECTURES`.
        kinds: types to quantise tensors to, by their names in the file; f32 without.
        values: metadata beside those of the model; None takes one away. `{arch}` is the architecture.
        arch: another architecture to name.
        change: changes the tensors.
        options: of `gguf.GGUFWriter`, for example `split_max_tensors`.
    """
    settings, name = config(family), arch or ARCHITECTURES[family][0]
    writer = gguf.GGUFWriter(path, name, **options)
    metadata: dict[str, Any] = {}
    for theirs, key in _KEYS.items():
        if settings.get(theirs) is not None and (family in HAS_WINDOW or not theirs.startswith("sliding")):
            metadata[f"{name}.{key}"] = int(settings[theirs])
    metadata |= {f"{name}.{k}": float(settings[s]) for s, k in _NUMBERS.items() if settings.get(s) is not None}
    metadata.setdefault(f"{name}.attention.layer_norm_rms_epsilon", 1e-6)
    if family == "gemma3_text":
        metadata |= {f"{name}.rope.scaling.type": "linear", f"{name}.rope.scaling.factor": 8.0}
    metadata |= {key.format(arch=name): value for key, value in (values or {}).items()}
    for key, value in metadata.items():
        if value is not None:
            _add(writer, key, value)
    arrays = stored(family)
    if change:
        change(arrays)
    for tensor, x in arrays.items():
        kind = (kinds or {}).get(tensor)
        if kind is None:
            writer.add_tensor(tensor, x)
        else:
            writer.add_tensor(tensor, gguf.quants.quantize(x, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
