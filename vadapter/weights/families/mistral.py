"""Mistral: a Llama with grouped queries; the first version has a sliding window in all layers, later ones in none."""

from vadapter.weights.family import register
from vadapter.weights.llama_like import LLAMA, llama_like

register(
    llama_like(
        "mistral",
        LLAMA | {"intermediate_size": 14_336, "num_key_value_heads": 8, "max_position_embeddings": 131_072},
        global_every=0,
    )
)
