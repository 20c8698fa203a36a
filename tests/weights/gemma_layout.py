"""Gemma's own layout, made of our parameters, and one forward pass in numpy straight from its tensors."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from tests.models import small
from vadapter.models.decoder import Decoder

NORMS = {
    "pre_attention_norm": "pre_attention_norm",
    "post_attention_norm": "post_attention_norm",
    "pre_mlp_norm": "pre_ffw_norm",
    "post_mlp_norm": "post_ffw_norm",
    "attention/query_norm": "attn/_query_norm",
    "attention/key_norm": "attn/_key_norm",
}


def config(**changes):
    """A small Gemma 1."""
    fields = dict(norm="rms_plus_one", scale_embedding=True, num_kv_heads=1, dtype="bfloat16")
    return small.decoder(**{**fields, **changes})


def layer(params, i, width_last=False):
    """Tensors of layer i by Gemma's names."""
    of = {path.removeprefix("layers/"): x[i] for path, x in params.items() if path.startswith("layers/")}
    query, key, value = (of[f"attention/{name}/kernel"].transpose(1, 0, 2) for name in ("query", "key", "value"))
    if len(query) == len(key):
        attention = {"qkv_einsum/w": np.stack([query, key, value])}
    else:
        attention = {"q_einsum/w": query, "kv_einsum/w": np.stack([key, value])}
    attention["attn_vec_einsum/w"] = of["attention/out/kernel"]
    gating = np.stack([of["mlp/gate/kernel"], of["mlp/up/kernel"]])
    return {
        **{f"attn/{name}": x for name, x in attention.items()},
        "mlp/gating_einsum": gating.transpose(0, 2, 1) if width_last else gating,
        "mlp/linear": of["mlp/down/kernel"],
        **{f"{theirs}/scale": of[f"{ours}/scale"] for ours, theirs in NORMS.items() if f"{ours}/scale" in of},
    }


def depth(params):
    return len(params["layers/mlp/down/kernel"])


def ends(params):
    return {"embedder/input_embedding": params["embedder/embedding"], "final_norm/scale": params["final_norm/scale"]}


def big_vision(params, scanned=True):
    """The `llm/` tree of PaliGemma, without that prefix."""
    each = [layer(params, i) for i in range(depth(params))]
    if not scanned:
        return ends(params) | {f"layers/{i}/{name}": x for i, of in enumerate(each) for name, x in of.items()}
    return ends(params) | {f"layers/{name}": np.stack([of[name] for of in each]) for name in each[0]}


def orbax(params, width_last=False, module="", root="transformer/"):
    """The flat tree of Google's checkpoints. `module` is what follows the names of the MLP's tensors."""
    arrays = {root + name: x for name, x in ends(params).items()}
    for i in range(depth(params)):
        for name, x in layer(params, i, width_last).items():
            arrays[f"{root}layer_{i}/{name}{module if name.startswith('mlp/') else ''}"] = x
    return arrays


def nested(flat):
    return traverse_util.unflatten_dict(flat, sep="/")


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def rms(x, scale):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * (1 + scale)


def rope(x, base=10_000):
    half = x.shape[-1] // 2
    angle = np.arange(len(x))[:, None, None] / base ** (np.arange(half) / half)
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], -1)


def check_forward(config, params, tensor, arrays):
    """Runs five tokens through our decoder, and through einsums over the tensors of a Gemma 1 with few kv heads.

    Args:
        config: of our decoder.
        params: ours, by path.
        tensor: (layer, name) to a tensor of Gemma's layout.
        arrays: has the embedding table and the final norm.
    """
    tokens = np.array([[3, 1, 4, 1, 5]])
    decoder = Decoder(dataclasses.replace(config, dtype="float32"))

    def run(params, tokens):
        ones = jnp.ones_like(tokens)
        hidden, _ = decoder.apply(params, decoder.apply(params, tokens, method="embed"), ones, ones.cumsum(-1) - 1)
        return decoder.apply(params, hidden, method="logits")

    got = np.asarray(jax.jit(run)({"params": nested(params)}, tokens))[0]
    table = arrays["embedder/input_embedding"]
    x = table[tokens[0]] * np.sqrt(table.shape[1])
    visible = np.tri(len(x), dtype=bool)
    for i in range(config.depth):
        y = rms(x, tensor(i, "pre_attention_norm/scale"))
        query = rope(np.einsum("td,ndh->tnh", y, tensor(i, "attn/q_einsum/w")))
        key, value = np.einsum("sd,ckdh->cskh", y, tensor(i, "attn/kv_einsum/w"))
        key = rope(key)
        groups = query.shape[1] // key.shape[1]
        key, value = np.repeat(key, groups, 1), np.repeat(value, groups, 1)
        logits = np.einsum("tnh,snh->nts", query, key) * config.head_dim**-0.5
        weights = np.exp(np.where(visible, logits - logits.max(-1, keepdims=True), -np.inf))
        weights /= weights.sum(-1, keepdims=True)
        out = np.einsum("nts,snh->tnh", weights, value)
        x = x + np.einsum("tnh,nhd->td", out, tensor(i, "attn/attn_vec_einsum/w"))
        y = rms(x, tensor(i, "pre_ffw_norm/scale"))
        gating = tensor(i, "mlp/gating_einsum")
        gating = gating if gating.shape[1] == y.shape[1] else gating.transpose(0, 2, 1)
        x = x + (gelu(y @ gating[0]) * (y @ gating[1])) @ tensor(i, "mlp/linear")
    want = rms(x, arrays["final_norm/scale"]) @ table.T
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())
