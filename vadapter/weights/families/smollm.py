"""SmolLM3: a Llama in which some layers, mostly every fourth, do not rotate. SmolLM2 has Llama's model type."""

from typing import Any

from vadapter.weights.family import register
from vadapter.weights.llama_like import LLAMA, llama_like, period
from vadapter.weights.settings import Settings

_SMOLLM3 = LLAMA | {
    "vocab_size": 128_256,
    "hidden_size": 2048,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "rope_theta": 2_000_000.0,
    "no_rope_layer_interval": 4,
    "max_position_embeddings": 32_768,
    "tie_word_embeddings": True,
}


def _rotating(settings: Settings) -> dict[str, Any]:
    depth, flags = settings.layers(), settings.get("no_rope_layers")
    if flags is None:
        interval = settings.whole("no_rope_layer_interval")
        flags = [int((i + 1) % interval != 0) for i in range(depth)]
    if not isinstance(flags, list) or len(flags) < depth or not all(flag in (0, 1) for flag in flags):
        raise settings.error("no_rope_layers", flags, f"{depth} numbers, 1 for a layer that rotates and 0 for another")
    return {"rope_pattern": period([bool(flag) for flag in flags[:depth]])}


# Without `use_sliding_window` no layer has a window, whatever `sliding_window` says.
register(llama_like("smollm3", _SMOLLM3, more=_rotating, allowed={"use_sliding_window": (False, None)}))
