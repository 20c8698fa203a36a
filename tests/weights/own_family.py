"""Two families of a user, outside the package: a decoder with a model type, and an encoder without config.json."""

import re

from tests.models import small
from vadapter.models.decoder import DecoderConfig
from vadapter.weights.family import Family, ModelType, Place, TensorNames, register
from vadapter.weights.mapping import Rule, linear, part


def decoder_config(place: Place) -> DecoderConfig:
    settings = place.settings.with_defaults({"activation": "relu"})
    settings.refuse({"dropout": (0,)})
    width, heads = settings.whole("n_embd"), settings.whole("n_head")
    return DecoderConfig(
        vocab_size=settings.whole("n_vocab"),
        width=width,
        depth=settings.whole("n_layer"),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=width // heads,
        mlp_dim=4 * width,
        activation=settings.activation("activation"),
        gated=False,
    )


def decoder_rules(place: Place, config: DecoderConfig) -> list[Rule]:
    layer = place.prefix + "h.{i}."
    attention = [
        Rule(f"layers/attention/{name}/kernel", f"{layer}attn.qkv.weight", part(i, 3, linear()))
        for i, name in enumerate(("query", "key", "value"))
    ]
    return [
        *attention,
        Rule("embedder/embedding", f"{place.prefix}wte.weight"),
        Rule("final_norm/scale", f"{place.prefix}ln_f.weight"),
        Rule("layers/attention/out/kernel", f"{layer}attn.proj.weight", linear(2)),
        Rule("layers/pre_attention_norm/scale", f"{layer}ln_1.weight"),
        Rule("layers/pre_mlp_norm/scale", f"{layer}ln_2.weight"),
        Rule("layers/mlp/up/kernel", f"{layer}mlp.up.weight", linear()),
        Rule("layers/mlp/down/kernel", f"{layer}mlp.down.weight", linear()),
    ]


DECODER = register(
    Family(
        name="nano",
        part="decoder",
        by=ModelType(("nano",), anchors=("wte.weight",)),
        config=decoder_config,
        rules=decoder_rules,
        ignored=lambda place, config: [r".*\.attn\.mask"],
        prompt_format="gemma",
    )
)
ENCODER = register(
    Family(
        name="nano_vit",
        part="encoder",
        by=TensorNames({"huggingface": re.compile(r"(nano_vit\.)embedding\.kernel")}, "a nano ViT"),
        config=lambda place: small.vit(),
        rules=lambda place, config: [
            Rule(name.removeprefix(place.prefix).replace(".", "/"), name)
            for name in place.tensors.infos
            if name.startswith(place.prefix)
        ],
    )
)
