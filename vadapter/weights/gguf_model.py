"""A GGUF file as the Hugging Face checkpoint that it was made from: names, layouts and config.json of that.

llama.cpp's converter renames tensors, permutes the rows of Llama's queries and keys for its own rotary layout, adds 1
to Gemma's norms and drops what its code knows of a family. All of that is undone here, so that the families of
`weights/families` read both formats by one table.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from vadapter.base.errors import UserError
from vadapter.models.positions import RopeScaling, rope_frequencies
from vadapter.weights.files_gguf import GgufFiles
from vadapter.weights.tensors import TensorInfo

# Names of tensors without the ending .weight or .bias.
_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_PLAIN_NORMS = {"ffn_norm": "post_attention_layernorm"}
_POST_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_ROPE_FACTORS = "rope_freqs.weight"  # by how much Llama 3 divides each frequency

# Keys of the metadata behind the architecture's name, and those of config.json.
_KEYS = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
}
_WINDOW = {"attention.sliding_window": "sliding_window"}
_CAPS = {"attn_logit_softcapping": "attn_logit_softcapping", "final_logit_softcapping": "final_logit_softcapping"}
_NEEDED = ("embedding_length", "block_count", "feed_forward_length", "attention.head_count")
_WHOLE = (*_NEEDED, "attention.head_count_kv", "attention.key_length")
# Read in their own ways, further down.
_READ = (
    *("attention.key_length", "attention.value_length", "rope.dimension_count"),
    *("rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length", "rope.scale_linear"),
    *("rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow"),
)
_PATTERN = "attention.sliding_window_pattern"  # read where an architecture has layers with a window and without
# Change nothing, or nothing while they have this value.
_HARMLESS = ("vocab_size", "rope.scaling.finetuned", "pooling_type", "mm.tokens_per_image")
_MUST_BE = {
    "expert_count": (0,),
    "expert_used_count": (0,),
    "attention.causal": (True,),
    "attention.max_alibi_bias": (0,),
    "attention.clamp_kqv": (0,),
    "use_parallel_residual": (False,),
    "tensor_data_layout": ("reference", "Meta AI original pth"),
    # llama.cpp multiplies YaRN's magnitude by it; `attention_factor` of config.json stands in place of the magnitude.
    "rope.scaling.attn_factor": (1,),
}
_YARN = {
    "rope.scaling.yarn_beta_fast": "beta_fast",
    "rope.scaling.yarn_beta_slow": "beta_slow",
}
# Fully stretched below 1 turn in 8192 tokens and kept above 4: Llama 3.1 to 3.3, the only ones so far.
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


@dataclasses.dataclass(frozen=True)
class _Architecture:
    """What a GGUF architecture is in Hugging Face's terms.

    Attributes:
        model_type: of config.json.
        norms: names of the norms of a block that differ among architectures.
        keys: of the metadata, beside `_KEYS`.
        permuted: rows of queries and keys are permuted.
        plus_one: 1 was added to the norms.
        large: number of layers of the size whose queries are scaled by width / heads, not by the size of a head.
        period: every how many layers one has no sliding window; None where there is no window.
    """

    model_type: str
    norms: Mapping[str, str]
    keys: Mapping[str, str] = dataclasses.field(default_factory=dict)
    permuted: bool = False
    plus_one: bool = False
    large: int | None = None
    period: int | None = None


_ARCHITECTURES = {
    "llama": _Architecture("llama", _PLAIN_NORMS, _WINDOW, permuted=True),
    "qwen2": _Architecture("qwen2", _PLAIN_NORMS),
    "qwen3": _Architecture("qwen3", _PLAIN_NORMS),
    "gemma": _Architecture("gemma", _PLAIN_NORMS, plus_one=True),
    "gemma2": _Architecture("gemma2", _POST_NORMS, _WINDOW | _CAPS, plus_one=True, large=46, period=2),
    "gemma3": _Architecture(
        "gemma3_text",
        _POST_NORMS,
        _WINDOW | {k: k for k in _CAPS if k.startswith("final")} | {"rope.freq_base_swa": "rope_local_base_freq"},
        plus_one=True,
        large=62,
        period=6,
    ),
}
_VISION = ("clip", "mmproj")


class GgufModel:
    """A GGUF model with Hugging Face's names and layouts; `config` is its config.json.

    Args:
        files: the opened files.

    Attributes:
        where: the file, for messages.
        infos: as of `Tensors`. What Hugging Face has no name for keeps its own, so that nobody takes it for read.
        config: parsed config.json.

    Raises:
        UserError: the architecture, or a setting that changes what is computed, is not read; or the metadata
            contradict the tensors.
    """

    def __init__(self, files: GgufFiles):
        self.where = files.where
        self._files = files
        kind = _architecture(files)
        self.config = _Settings(files, kind).config()
        self._names: dict[str, str] = {}
        self._rows: dict[str, np.ndarray] = {}
        self._less_one: set[str] = set()
        for name in files.infos:
            if name == _ROPE_FACTORS and "rope_scaling" in self.config:
                continue  # has become a setting
            ours = _hugging_face_name(name, kind)
            self._names[ours] = name
            if kind.permuted and (heads := self._heads(ours)) is not None:
                self._rows[ours] = _unpermuted(files, name, heads)
            if kind.plus_one and ours.endswith("norm.weight"):
                self._less_one.add(ours)
        self.infos = {ours: self._info(ours) for ours in self._names}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Returns entries start..stop of the first axis. See `Tensors.read`."""
        if name in self._rows:  # of one layer, so that all of it may be read for a part
            return self._files.read(self._names[name])[self._rows[name][start:stop]]
        found = self._files.read(self._names[name], start, stop)
        return found.astype(np.float32) - np.float32(1) if name in self._less_one else found

    def _info(self, name: str) -> TensorInfo:
        info = self._files.infos[self._names[name]]
        return dataclasses.replace(info, dtype=np.dtype(np.float32)) if name in self._less_one else info

    def _heads(self, name: str) -> int | None:
        if ".self_attn.q_proj." in name:
            return self.config["num_attention_heads"]
        return self.config["num_key_value_heads"] if ".self_attn.k_proj." in name else None


def _architecture(files: GgufFiles) -> _Architecture:
    name = str(files.metadata.get("general.architecture"))
    if name in _VISION:
        raise UserError(
            f"{files.where} is a vision tower for llama.cpp (mmproj, general.architecture {name!r}), which is not "
            "read. Import the encoder from its Hugging Face folder, and give the GGUF file of the language model here."
        )
    if name not in _ARCHITECTURES:
        raise UserError(
            f"{files.where} has the general.architecture {name!r}, which is not read from GGUF; these are: "
            f"{', '.join(_ARCHITECTURES)}. Take the model's Hugging Face folder if it is of a family that is known."
        )
    return _ARCHITECTURES[name]


def _hugging_face_name(name: str, kind: _Architecture) -> str:
    stem, _, ending = name.rpartition(".")
    if stem in _TOP:
        return f"{_TOP[stem]}.{ending}"
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
    module = {**_BLOCK, **kind.norms}.get(match[2]) if match else None
    return f"model.layers.{match[1]}.{module}.{ending}" if match and module else name


def _unpermuted(files: GgufFiles, name: str, heads: int) -> np.ndarray:
    """Which row of the file each row of Hugging Face's is: pairs (2i, 2i + 1) go back to (i, i + half)."""
    rows = files.infos[name].shape[0]
    if rows % (2 * heads):
        raise UserError(
            f"{files.where}: {name} has {rows} rows, no multiple of twice the {heads} heads that the metadata say. The "
            "file is damaged, or was made with other software than llama.cpp's; take another file of the model."
        )
    return np.arange(rows).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)


class _Settings:
    """Makes config.json of the metadata.

    Args:
        files: the opened files.
        kind: their architecture.
    """

    def __init__(self, files: GgufFiles, kind: _Architecture):
        self._files, self._kind = files, kind
        self._prefix = f"{files.metadata['general.architecture']}."
        given = {k.removeprefix(self._prefix): v for k, v in files.metadata.items() if k.startswith(self._prefix)}
        self._given = {name: self._of_all_layers(name, value) for name, value in given.items()}

    def config(self) -> dict[str, Any]:
        """Returns config.json."""
        self._check_known()
        kind, names = self._kind, {**_KEYS, **self._kind.keys}
        for name in _WHOLE:
            value = self._given.get(name, None if name in _NEEDED else 1)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise self._error(name, "a whole number above 0")
        self._check_layers()
        config: dict[str, Any] = {"model_type": kind.model_type}
        config |= {theirs: _shortest(self._given[name]) for name, theirs in names.items() if name in self._given}
        config.setdefault("num_key_value_heads", config["num_attention_heads"])
        if not config.get("sliding_window", True):  # 0 is none
            del config["sliding_window"]
        config["head_dim"] = self._head_dim(config)
        config["vocab_size"] = self._vocab_size()
        config["tie_word_embeddings"] = "output.weight" not in self._files.infos
        config |= self._rope(config)
        if kind.large:
            by_width = config["num_hidden_layers"] == kind.large
            wide = config["hidden_size"] // config["num_attention_heads"]
            config["query_pre_attn_scalar"] = wide if by_width else config["head_dim"]
        if kind.period:
            config["layer_types"] = self._layer_types(config["num_hidden_layers"], kind.period)
        if kind.model_type == "llama" and "sliding_window" in config:
            config["model_type"] = "mistral"  # a Llama with a window
        return config

    def _check_known(self) -> None:
        known = {*_KEYS, *self._kind.keys, *_READ, *_HARMLESS, *_MUST_BE}
        known |= {_PATTERN} if self._kind.period else set()
        for name, value in self._given.items():
            if name not in known or value not in _MUST_BE.get(name, (value,)):
                allowed = " or ".join(map(str, _MUST_BE.get(name, ("no such key",))))
                raise UserError(
                    f"{self._files.where} sets {self._prefix}{name} to {str(value)[:200]}, which may change the "
                    f"model's results in a way that is not supported here; expected {allowed}. Take another file of "
                    "this family, or the model's Hugging Face folder."
                )

    def _check_layers(self) -> None:
        found = {int(match[1]) for name in self._files.infos if (match := re.match(r"blk\.(\d+)\.", name))}
        if len(found) != self._given["block_count"]:
            raise self._error("block_count", f"{len(found)}, as the file has tensors of so many layers,")

    def _of_all_layers(self, name: str, value: Any) -> Any:
        """One value for a list that has the same for every layer."""
        if not isinstance(value, np.ndarray | list) or name == _PATTERN:
            return value
        values = [x.item() if isinstance(x, np.generic) else x for x in value]
        if not values or any(x != values[0] for x in values):
            raise self._error(name, "the same value for all layers", values)
        return values[0]

    def _head_dim(self, config: Mapping[str, Any]) -> int:
        found = self._given.get("attention.key_length") or config["hidden_size"] // config["num_attention_heads"]
        for name in ("attention.value_length", "rope.dimension_count"):
            if self._given.get(name, found) != found:
                raise self._error(name, f"{found}, the size of a head's keys,")
        return found

    def _vocab_size(self) -> int:
        table = self._files.infos.get("token_embd.weight")
        if table is None or len(table.shape) != 2:
            raise UserError(
                f"{self._files.where} has no embedding table (token_embd.weight), so it holds no whole model. Give the "
                "file of a model, not of an adapter or of a part."
            )
        tokens = len(self._files.metadata.get("tokenizer.ggml.tokens", ()))
        if tokens > table.shape[0]:
            raise UserError(
                f"{self._files.where} has {tokens} tokens in its metadata and {table.shape[0]} rows in "
                "token_embd.weight; expected a row for each. Take another file of this model."
            )
        return table.shape[0]

    def _rope(self, config: Mapping[str, Any]) -> dict[str, Any]:
        get = self._given.get
        kind, factor = get("rope.scaling.type"), get("rope.scaling.factor", get("rope.scale_linear"))
        kind = kind or ("linear" if factor not in (None, 0, 1) else "none")
        if _ROPE_FACTORS in self._files.infos and self._kind.permuted:
            if kind != "none":
                raise self._error("rope.scaling.type", f"none, as {_ROPE_FACTORS} stretches the frequencies,", kind)
            return {"rope_scaling": self._llama3(config)}
        if kind == "none":
            return {}
        if kind not in ("linear", "yarn"):
            raise self._error("rope.scaling.type", "none, linear or yarn")
        if not factor:
            raise self._error("rope.scaling.factor", "a number above 0")
        scaling = {"rope_type": kind, "factor": _shortest(factor)}
        if kind == "yarn":
            if length := get("rope.scaling.original_context_length"):
                scaling["original_max_position_embeddings"] = length
            scaling |= {theirs: _shortest(get(name)) for name, theirs in _YARN.items() if get(name) is not None}
        return {"rope_scaling": scaling}

    def _llama3(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of Llama 3's stretching, of which a file keeps the outcome: a divisor of each frequency."""
        divisors = self._files.read(_ROPE_FACTORS).astype(np.float64).reshape(-1)
        head_dim, base = config["head_dim"], config.get("rope_theta", 10_000.0)
        if not isinstance(base, int | float):
            raise self._error("rope.freq_base", "a number above 0")
        factor = round(float(divisors.max()), 4) if divisors.size else 1.0
        if factor == 1:
            return {}
        low, high, length = _LLAMA3.values()
        scaling = RopeScaling("llama3", factor, low, high, length)
        same = divisors.size == head_dim // 2
        if same:
            wanted = rope_frequencies(head_dim, base) / rope_frequencies(head_dim, base, scaling).astype(np.float64)
            same = np.allclose(divisors, wanted, rtol=1e-4)
        if not same:
            raise UserError(
                f"{self._files.where}: {_ROPE_FACTORS} stretches the rotary frequencies in another way than Llama 3.1 "
                "to 3.3 do, which is not read. Take the model's Hugging Face folder."
            )
        return {"rope_type": "llama3", "factor": factor, **_LLAMA3}

    def _layer_types(self, depth: int, period: int) -> list[str]:
        pattern = self._given.get(_PATTERN, period)
        if not self._given.get("attention.sliding_window", self._kind.model_type == "gemma2"):
            local = [False] * depth
        elif isinstance(pattern, int) and pattern > 0:
            local = [(i + 1) % pattern != 0 for i in range(depth)]
        else:
            local = [bool(x) for x in pattern] if isinstance(pattern, np.ndarray) else []
        if len(local) != depth:
            raise self._error(_PATTERN, f"a number, or {depth} flags,")
        return ["sliding_attention" if x else "full_attention" for x in local]

    def _error(self, name: str, expected: str, value: Any = None) -> UserError:
        value = self._given.get(name, "nothing") if value is None else value
        return UserError(
            f"{self._files.where}: expected {expected} for {self._prefix}{name} and found {str(value)[:200]}. Take "
            "another file of this model, or its Hugging Face folder."
        )


def _shortest(value: Any) -> Any:
    """A number of f32 as the shortest decimal that means it: 1e-06, not 9.999999974752427e-07."""
    return float(str(np.float32(value))) if isinstance(value, float) else value
