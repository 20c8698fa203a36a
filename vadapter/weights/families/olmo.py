"""OLMo 2 and 3: norms after attention and MLP instead of before, and on all heads of query and key together."""

from vadapter.weights.family import register
from vadapter.weights.llama_like import LLAMA, llama_like

_OLMO = LLAMA | {"vocab_size": 50_304, "rms_norm_eps": 1e-5}
_FIELDS = {"pre_norms": False, "post_norms": True, "qk_norm": True, "qk_norm_over": "all_heads"}

register(llama_like("olmo2", _OLMO, _FIELDS))
# Layers with a window are not stretched.
register(
    llama_like(
        "olmo3",
        _OLMO | {"rope_theta": 500_000.0, "rope_local_base_freq": 500_000.0},
        _FIELDS,
        global_every=4,
        local_rope=True,
    )
)
