"""The pack's weights as vadapter's parameters: quantised tensors are read one by one, and vadapter's rules map them.

A pack (`prepare.py`) has one file of bytes for each model, and `index.json`, which says where each tensor lies in it,
in which of GGUF's types. GGUF stores Gemma's norms with 1 already added, and the rows of Llama's query and key permuted
for its own rotary layout; both are undone here.
"""

import re
from collections.abc import Mapping
from concurrent import futures
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from vadapter.weights import mapping
from vadapter.weights.checkpoint import HUGGING_FACE, Checkpoint
from vadapter.weights.recognise import parameter_shapes, recognise
from vadapter.weights.tensors import TensorInfo

BF16 = np.dtype(ml_dtypes.bfloat16)
_NORMS = {
    "llama": {"ffn_norm": "post_attention_layernorm"},
    "gemma3_text": {
        "ffn_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
        "post_attention_norm": "post_attention_layernorm",
        "attn_q_norm": "self_attn.q_norm",
        "attn_k_norm": "self_attn.k_norm",
    },
}
_MAPS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def published_name(name: str, kind: str) -> str:
    """Returns the Hugging Face name of a GGUF tensor.

    Args:
        name: for example `blk.3.attn_q.weight`.
        kind: the model_type, `llama` or `gemma3_text`.
    """
    if match := re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name):
        return f"model.layers.{match[1]}.{(_MAPS | _NORMS[kind])[match[2]]}.weight"
    return {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}[name]


class PackedTensors:
    """`vadapter.weights.tensors.Tensors` of one model of a pack.

    Args:
        folder: the pack.
        model: its entry of `index.json`: `file`, `config` and `tensors`, `{name: [type, shape, start, stop]}`.
    """

    def __init__(self, folder: Path, model: Mapping[str, Any]):
        self.where = str(folder / model["file"])
        self._bytes = np.memmap(self.where, np.uint8, "r")
        self._config = model["config"]
        kind = self._config["model_type"]
        gguf = kind in _NORMS
        self._tensors = {published_name(n, kind) if gguf else n: t for n, t in model["tensors"].items()}
        dtype = np.dtype(np.float32) if gguf else BF16
        self.infos = {name: TensorInfo(tuple(t[1]), dtype) for name, t in self._tensors.items()}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Returns rows start..stop of a tensor as floating-point numbers."""
        kind, shape, first, last = self._tensors[name]
        raw = self._bytes[first:last]
        if kind == "BF16":
            return raw.view(BF16).reshape(shape)[start:stop]
        raw = raw.reshape(shape[0], -1)[start:stop]
        x = _dequantised(raw, kind).reshape(-1, *shape[1:])
        if self._config["model_type"] == "gemma3_text" and name.endswith("norm.weight"):
            return x - 1
        heads = {"q": "num_attention_heads", "k": "num_key_value_heads"}
        if self._config["model_type"] == "llama" and (found := re.search(r"\.([qk])_proj\.", name)):
            assert start == 0 and stop is None  # whole heads only; the mapping engine reads a layer's tensor at once
            # GGUF has the rows of a head as pairs (i, i + H/2) beside each other.
            count = self._config[heads[found[1]]]
            return x.reshape(count, -1, 2, x.shape[-1]).swapaxes(1, 2).reshape(x.shape)
        return x


def _dequantised(raw: np.ndarray, kind: str) -> np.ndarray:
    import gguf

    if kind == "F32":
        return raw.reshape(-1).view(np.float32)
    return gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind])


def load(folder: Path, model: Mapping[str, Any]) -> tuple[Any, dict[str, np.ndarray]]:
    """Reads a model of a pack.

    Args:
        folder: the pack.
        model: its entry of `index.json`.

    Returns:
        vadapter's configuration of it, and `{slash path: bf16 array}`, as `vadapter import` would write them.
    """
    tensors = PackedTensors(folder, model)
    found = recognise(Checkpoint(HUGGING_FACE, tensors, model["config"], None, model.get("extra", {})))
    parameters = mapping.map_tensors(tensors, found.rules, parameter_shapes(found.config), found.ignored)

    def read(parameter: mapping.Parameter) -> np.ndarray:
        made = np.empty(parameter.shape, BF16)
        for piece in parameter.pieces:
            made[piece.start : piece.stop] = piece.read()
        return made

    with futures.ThreadPoolExecutor() as pool:
        return found.config, dict(zip((p.path for p in parameters), pool.map(read, parameters), strict=True))
