"""Qwen 2.5, which has Qwen 2's model type, and Qwen 3."""

from vadapter.weights.family import register
from vadapter.weights.llama_like import LLAMA, llama_like

_QWEN = LLAMA | {
    "vocab_size": 151_936,
    "intermediate_size": 22_016,
    "num_key_value_heads": 32,
    "use_sliding_window": False,
    "max_window_layers": 28,
    "max_position_embeddings": 32_768,
}

register(llama_like("qwen2", _QWEN, {"qkv_bias": True}, prompt_format="qwen2.5"))
register(llama_like("qwen3", _QWEN | {"head_dim": 128}, {"qk_norm": True}, prompt_format="qwen3"))
