"""Phi-3, Phi-3.5, Phi-4 and Phi-4 mini, which have one model type: a Llama with fused tensors."""

from vadapter.weights.family import register
from vadapter.weights.llama_like import LLAMA, llama_like

register(
    llama_like(
        "phi3",
        LLAMA
        | {
            "vocab_size": 32_064,
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "rms_norm_eps": 1e-5,
            "sliding_window": None,
            "max_position_embeddings": 4096,
            "original_max_position_embeddings": 4096,
        },
        global_every=0,
        partial_rope=True,
        fused=True,
        allowed={"lm_head_bias": (False, None)},
    )
)
