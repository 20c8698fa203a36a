"""Granite 3: a Llama with four multipliers."""

from typing import Any

from vadapter.weights.family import register
from vadapter.weights.llama_like import LLAMA, llama_like
from vadapter.weights.settings import Settings

_ONES = dict.fromkeys(("embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling"), 1.0)


def _multipliers(settings: Settings) -> dict[str, Any]:
    return {
        "embedding_multiplier": settings.real("embedding_multiplier"),
        "query_scale": settings.real("attention_multiplier"),
        "residual_multiplier": settings.real("residual_multiplier"),
        "logits_multiplier": 1 / settings.real("logits_scaling"),
    }


register(llama_like("granite", LLAMA | _ONES, more=_multipliers))
