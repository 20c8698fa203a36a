"""OLMo 2: norms after attention and MLP instead of before, and on all heads of query and key together."""

from vadapter.weights.family import register
from vadapter.weights.llama_like import LLAMA, llama_like

register(
    llama_like(
        "olmo2",
        LLAMA | {"vocab_size": 50_304, "rms_norm_eps": 1e-5},
        {"pre_norms": False, "post_norms": True, "qk_norm": True, "qk_norm_over": "all_heads"},
    )
)
