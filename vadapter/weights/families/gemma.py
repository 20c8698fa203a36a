"""Gemma 1, 2 and 3, as transformers saves them and in Google's own checkpoints; the decoder of PaliGemma is one too."""

from collections.abc import Callable

from vadapter.weights import google_gemma
from vadapter.weights.checkpoint import GEMMA
from vadapter.weights.family import Family, Place, Refusal, TensorNames, refuse, register
from vadapter.weights.llama_like import LLAMA, llama_like

_FIELDS = {"norm": "rms_plus_one", "scale_embedding": True}
_GEMMA1 = LLAMA | {
    "vocab_size": 256_000,
    "hidden_size": 3072,
    "intermediate_size": 24_576,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
_GEMMA2 = _GEMMA1 | {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "query_pre_attn_scalar": 256,
}

register(
    llama_like(
        "gemma",
        _GEMMA1,
        {**_FIELDS, "activation": "gelu_tanh"},
        activation=None,
        # The first files say "gelu" and mean the tanh form; so transformers reads them.
        allowed={"hidden_act": ("gelu", "gelu_pytorch_tanh", None), "hidden_activation": ("gelu_pytorch_tanh", None)},
        prompt_format="gemma",
    )
)
register(
    llama_like(
        "gemma2",
        _GEMMA2 | {"final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0},
        {**_FIELDS, "post_norms": True},
        activation="hidden_activation",
        global_every=2,
        prompt_format="gemma",
    )
)
register(
    llama_like(
        "gemma3",
        _GEMMA2
        | {
            "vocab_size": 262_208,
            "max_position_embeddings": 131_072,
            "rope_theta": 1_000_000.0,
            "rope_local_base_freq": 10_000.0,
        },
        {**_FIELDS, "post_norms": True, "qk_norm": True},
        model_type="gemma3_text",
        within={"gemma3": "text_config"},
        activation="hidden_activation",
        global_every=6,
        local_rope=True,
        allowed={"attn_logit_softcapping": (None,)},  # transformers has the setting and does not use it
        prompt_format="gemma",
    )
)


def _google(name: str, variant: str | None, only: Callable[[Place], bool]) -> Family:
    """A Gemma in Google's own checkpoints. `variant` has the settings of every size; None where sizes differ."""
    return Family(
        name,
        "decoder",
        TensorNames(
            google_gemma.PATTERNS,
            "Gemma (`embedder/input_embedding` at the top, in `transformer/` or in `llm/`)",
            only,
        ),
        lambda place: google_gemma.config(place, variant),
        google_gemma.rules,
        google_gemma.ignored,
        prompt_format="gemma",
    )


register(_google("gemma", "gemma_2b", lambda place: not google_gemma.has_post_norms(place)))
# The settings of Gemma 2 do not depend on the size (but for the 27B's), those of Gemma 3 do.
register(
    _google(
        "gemma2",
        "gemma2_2b",
        lambda place: google_gemma.has_post_norms(place) and not google_gemma.has_qk_norm(place),
    )
)
register(_google("gemma3", None, lambda place: google_gemma.has_post_norms(place) and google_gemma.has_qk_norm(place)))
refuse(
    Refusal(
        TensorNames({GEMMA: google_gemma.STACKED}, "Gemma"),
        "its layers are stacked by kind of attention (`stacked_layers`), a layout that Google uses internally; use a "
        "published checkpoint, or save it again with gemma's `gm.ckpts.save_params`",
    )
)
