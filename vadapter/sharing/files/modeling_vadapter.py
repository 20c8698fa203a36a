"""A model that vadapter exported, in PyTorch: a vision encoder, an adapter and a language model.

    model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)

It needs torch and transformers, and no vadapter. The parameters have vadapter's names. `config.json` holds vadapter's
own configuration of each part, whose fields are explained on its settings page.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast


class VAdapterConfig(PretrainedConfig):
    """The parts as vadapter describes them, and the ids that stand for pictures and videos in a text."""

    model_type = "vadapter"

    def __init__(self, vision=None, adapter=None, language=None, quantization=None, **kwargs):
        # Not `encoder` and `decoder`: the library takes what is called so for configurations of its own.
        self.vision, self.adapter, self.language = vision or {}, adapter or {}, language or {}
        self.quantization = quantization
        self.num_frames = kwargs.pop("num_frames", 1)
        self.repeat_stills = kwargs.pop("repeat_stills", True)
        self.image_token_index = kwargs.pop("image_token_index", None)
        self.video_token_index = kwargs.pop("video_token_index", None)
        # What the library looks for in the configuration of a language model.
        self.vocab_size = self.language.get("vocab_size", 0)
        self.hidden_size = self.language.get("width", 0)
        self.num_hidden_layers = self.language.get("depth", 0)
        self.num_attention_heads = self.language.get("num_heads", 1)
        self.num_key_value_heads = self.language.get("num_kv_heads", 1)
        self.head_dim = self.language.get("head_dim", 1)
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"):
            kwargs.pop(name, None)
        kwargs.pop("head_dim", None)
        super().__init__(**kwargs)


def activation(name: str, x: Tensor) -> Tensor:
    """The activations by vadapter's names."""
    if name == "gelu_tanh":
        return F.gelu(x, approximate="tanh")
    if name == "quick_gelu":
        return x * torch.sigmoid(1.702 * x)
    return {"gelu": F.gelu, "silu": F.silu, "relu": F.relu}[name](x)


class Norm(nn.Module):
    """RMSNorm or LayerNorm, computed in f32."""

    def __init__(self, kind: str, size: int, eps: float = 1e-6):
        super().__init__()
        self.kind, self.eps = kind, eps
        self.weight = nn.Parameter(torch.ones(size))
        if kind == "layer":
            self.bias = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        if self.kind.startswith("layer"):
            y = y - y.mean(-1, keepdim=True)
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)
        weight = self.weight.float()
        y = y * (1 + weight if self.kind == "rms_plus_one" else weight)
        if self.kind == "layer":
            y = y + self.bias.float()
        return y.to(x.dtype)


class LayerScale(nn.Module):
    """A factor for each channel."""

    def __init__(self, size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


def rotate(x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
    """Rotates the pairs (i, i + R/2) of the first R channels of x [B, N, T, H], in f32; sin and cos [B, T, R/2]."""
    sin, cos = sin[:, None], cos[:, None]
    half = sin.shape[-1]
    a, b, rest = x[..., :half].float(), x[..., half : 2 * half].float(), x[..., 2 * half :]
    return torch.cat([(a * cos - b * sin).to(x.dtype), (b * cos + a * sin).to(x.dtype), rest], -1)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, softcap=None) -> Tensor:
    """Attention of [B, N, T, H] to [B, K, S, H]; True in `mask` [B, 1, T, S] is seen. Returns [B, T, N * H]."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    if softcap is None:
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    else:
        logits = softcap * torch.tanh((query @ key.transpose(-1, -2)).float() * scale / softcap)
        if mask is not None:
            logits = logits.masked_fill(~mask, torch.finfo(torch.float32).min)
        out = logits.softmax(-1).to(value.dtype) @ value
    return out.transpose(1, 2).flatten(2)


def heads(x: Tensor, count: int) -> Tensor:
    """[B, T, N * H] to [B, N, T, H]."""
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


# The vision encoder


class VisionAttention(nn.Module):
    """Full attention among the patches of a frame."""

    def __init__(self, c: dict):
        super().__init__()
        self.c, width = c, c["width"]
        for name in ("query", "key", "value", "out"):
            setattr(self, name, nn.Linear(width, width, bias=name in c["biases"]))

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor] | None) -> Tensor:
        count = self.c["num_heads"]
        query, key, value = (heads(each(x), count) for each in (self.query, self.key, self.value))
        if rotation is not None:
            query, key = rotate(query, *rotation), rotate(key, *rotation)
        return self.out(attend(query, key, value, None, query.shape[-1] ** -0.5))


class VisionMlp(nn.Module):
    """An MLP, with a gate or without."""

    def __init__(self, c: dict):
        super().__init__()
        self.c, bias = c, "mlp" in c["biases"]
        self.Dense_0 = nn.Linear(c["width"], c["mlp_dim"], bias)
        if c["gated"]:
            self.Gate = nn.Linear(c["width"], c["mlp_dim"], bias)
        self.Dense_1 = nn.Linear(c["mlp_dim"], c["width"], bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.c["gated"]:
            return self.Dense_1(activation(self.c["activation"], self.Gate(x)) * self.Dense_0(x))
        return self.Dense_1(activation(self.c["activation"], self.Dense_0(x)))


class VisionLayer(nn.Module):
    """A pre-norm block."""

    def __init__(self, c: dict):
        super().__init__()
        self.LayerNorm_0 = Norm(c["norm"], c["width"], c["norm_eps"])
        self.MultiHeadDotProductAttention_0 = VisionAttention(c)
        self.LayerNorm_1 = Norm(c["norm"], c["width"], c["norm_eps"])
        self.MlpBlock_0 = VisionMlp(c)
        scaled = c["layer_scale"]
        self.LayerScale_0 = LayerScale(c["width"]) if scaled else nn.Identity()
        self.LayerScale_1 = LayerScale(c["width"]) if scaled else nn.Identity()

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor] | None) -> Tensor:
        x = x + self.LayerScale_0(self.MultiHeadDotProductAttention_0(self.LayerNorm_0(x), rotation))
        return x + self.LayerScale_1(self.MlpBlock_0(self.LayerNorm_1(x)))


class VisionTransformer(nn.Module):
    """The blocks and the last norm."""

    def __init__(self, c: dict):
        super().__init__()
        self.encoderblock = nn.ModuleList(VisionLayer(c) for _ in range(c["depth"]))
        self.encoder_norm = Norm(c["norm"], c["width"], c["norm_eps"]) if c["final_norm"] else nn.Identity()

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor] | None) -> Tensor:
        for layer in self.encoderblock:
            x = layer(x, rotation)
        return self.encoder_norm(x)


class VisionEncoder(nn.Module):
    """Frames [B, 3, h, w] to patch tokens [B, P, E]. Embedding and positions are in f32."""

    def __init__(self, c: dict):
        super().__init__()
        self.c, size, width = c, c["patch_size"], c["width"]
        self.grid = c["image_size"] // size
        self.extra = int(c["class_token"]) + c["num_registers"]
        self.embedding = nn.Conv2d(3, width, size, size, bias=c["patch_bias"])
        if c["patch_norm"]:
            self.patch_norm = Norm(c["norm"], width, c["norm_eps"])
        if c["pre_norm"]:
            self.pre_norm = Norm(c["norm"], width, c["norm_eps"])
        if c["class_token"]:
            self.cls = nn.Parameter(torch.zeros(1, 1, width))
        if c["num_registers"]:
            self.registers = nn.Parameter(torch.zeros(1, c["num_registers"], width))
        if c["positions"] != "rotary":  # of the class token too, without the registers
            self.pos_embedding = nn.Parameter(torch.zeros(1, int(c["class_token"]) + self.grid**2, width))
        self.Transformer = VisionTransformer(c)

    def forward(self, pixels: Tensor) -> Tensor:
        c, weight = self.c, self.embedding.weight
        bias = None if self.embedding.bias is None else self.embedding.bias.float()
        x = F.conv2d(pixels.float(), weight.float(), bias, c["patch_size"]).flatten(2).transpose(1, 2)
        if c["patch_norm"]:
            x = self.patch_norm(x)
        if c["class_token"]:
            x = torch.cat([self.cls.float().expand(len(x), -1, -1), x], 1)
        if c["positions"] != "rotary":
            x = x + self.pos_embedding.float()
        if c["num_registers"]:
            first, registers = int(c["class_token"]), self.registers.float().expand(len(x), -1, -1)
            x = torch.cat([x[:, :first], registers, x[:, first:]], 1)
        x = x.to(weight.dtype)
        if c["pre_norm"]:
            x = self.pre_norm(x)
        return self.Transformer(x, self.rotation(x))[:, self.extra :]

    def rotation(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """Sines and cosines of row and column; tokens before the patches are not turned."""
        if self.c["positions"] != "rotary":
            return None
        count = self.c["width"] // self.c["num_heads"] // 4
        exponents = torch.arange(count, dtype=torch.float64, device=x.device) / count
        places = 2 * (torch.arange(self.grid, dtype=torch.float64, device=x.device) + 0.5) / self.grid - 1
        angles = places[:, None] * 2 * math.pi * self.c["rope_base"] ** -exponents
        patches = torch.cat([angles.repeat_interleave(self.grid, 0), angles.repeat(self.grid, 1)], 1)
        angles = F.pad(patches, (0, 0, self.extra, 0)).float()[None]
        return angles.sin(), angles.cos()


# The language model, which is an adapter as well


class Attention(nn.Module):
    """Self-attention of one layer."""

    def __init__(self, c: dict, layer: int):
        super().__init__()
        self.c, self.layer, width = c, layer, c["width"]
        wide, narrow = c["num_heads"] * c["head_dim"], c["num_kv_heads"] * c["head_dim"]
        self.query = nn.Linear(width, wide, c["qkv_bias"])
        self.key = nn.Linear(width, narrow, c["qkv_bias"])
        self.value = nn.Linear(width, narrow, c["qkv_bias"])
        self.out = nn.Linear(wide, width, False)
        self.over_all = c["qk_norm_over"] == "all_heads"
        if c["qk_norm"]:
            sizes = (wide, narrow) if self.over_all else (c["head_dim"],) * 2
            self.query_norm, self.key_norm = (Norm(c["norm"], size, c["norm_eps"]) for size in sizes)

    def forward(self, x: Tensor, mask: Tensor, rotation: tuple[Tensor, Tensor] | None, cache: Any) -> Tensor:
        c, query, key = self.c, self.query(x), self.key(x)
        if c["qk_norm"] and self.over_all:
            query, key = self.query_norm(query), self.key_norm(key)
        query, key = heads(query, c["num_heads"]), heads(key, c["num_kv_heads"])
        value = heads(self.value(x), c["num_kv_heads"])
        if c["qk_norm"] and not self.over_all:
            query, key = self.query_norm(query), self.key_norm(key)
        if rotation is not None:
            query, key = rotate(query, *rotation), rotate(key, *rotation)
        if cache is not None:
            key, value = cache.update(key, value, self.layer)
        scale = c["head_dim"] ** -0.5 if c["query_scale"] is None else c["query_scale"]
        return self.out(attend(query, key, value, mask, scale, c["attention_softcap"]))


class Mlp(nn.Module):
    """`down(act(gate(x)) * up(x))`, or without the gate."""

    def __init__(self, c: dict):
        super().__init__()
        self.c = c
        if c["gated"]:
            self.gate = nn.Linear(c["width"], c["mlp_dim"], False)
        self.up = nn.Linear(c["width"], c["mlp_dim"], False)
        self.down = nn.Linear(c["mlp_dim"], c["width"], False)

    def forward(self, x: Tensor) -> Tensor:
        if self.c["gated"]:
            return self.down(activation(self.c["activation"], self.gate(x)) * self.up(x))
        return self.down(activation(self.c["activation"], self.up(x)))


class Layer(nn.Module):
    """One block: attention and MLP one after the other, or side by side."""

    def __init__(self, c: dict, layer: int):
        super().__init__()
        self.c = c

        def norm(wanted: bool) -> nn.Module:
            return Norm(c["norm"], c["width"], c["norm_eps"]) if wanted else nn.Identity()

        self.pre_attention_norm = norm(c["pre_norms"])
        self.attention = Attention(c, layer)
        self.post_attention_norm = norm(c["post_norms"])
        self.pre_mlp_norm = norm(c["pre_norms"] and not c["parallel_block"])
        self.mlp = Mlp(c)
        self.post_mlp_norm = norm(c["post_norms"])

    def forward(self, x: Tensor, *inputs: Any) -> Tensor:
        factor = self.c["residual_multiplier"]
        y = self.pre_attention_norm(x)
        out = self.post_attention_norm(self.attention(y, *inputs)) * factor
        if self.c["parallel_block"]:
            return x + out + self.post_mlp_norm(self.mlp(y)) * factor
        x = x + out
        return x + self.post_mlp_norm(self.mlp(self.pre_mlp_norm(x))) * factor


class Table(nn.Module):
    """A row of numbers for each id."""

    def __init__(self, rows: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(rows, width))

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight)


class Decoder(nn.Module):
    """Embedding, layers, final norm and vocabulary head; as an adapter without table and head."""

    def __init__(self, c: dict, table: bool = True):
        super().__init__()
        self.c = c
        if table:
            self.embedder = nn.Embedding(c["vocab_size"], c["width"])
            if not c["tied_head"]:
                self.head = Table(c["vocab_size"], c["width"])
        self.layers = nn.ModuleList(Layer(c, i) for i in range(c["depth"]))
        self.final_norm = Norm(c["norm"], c["width"], c["norm_eps"])

    def scaled(self, x: Tensor) -> Tensor:
        """Rows of the table as the layers read them."""
        if self.c["scale_embedding"]:
            x = x * torch.tensor(self.c["width"] ** 0.5, dtype=x.dtype)
        return x * self.c["embedding_multiplier"]

    def embed(self, ids: Tensor) -> Tensor:
        return self.scaled(self.embedder(ids))

    def logits(self, hidden: Tensor) -> Tensor:
        table = self.embedder if self.c["tied_head"] else self.head
        logits = F.linear(hidden, table.weight).float() * self.c["logits_multiplier"]
        cap = self.c["final_softcap"]
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def forward(self, x: Tensor, positions: Tensor, valid: Tensor | None = None, cache: Any = None) -> Tensor:
        """Hidden states of slots x [B, T, D] at `positions` [B, T]; `valid` [B, S] is 0 for padding, cached or not."""
        c, past = self.c, 0 if cache is None else cache.get_seq_length()
        length = past + x.shape[1]
        most = c["rotary"]["longest"]
        if most is not None and length > most:
            raise ValueError(f"The language model reads rows of up to {most} slots, and this one has {length}.")
        queries = torch.arange(past, length, device=x.device)[:, None]
        distance = queries - torch.arange(length, device=x.device)
        seen = distance >= 0 if c["causal"] else torch.ones_like(distance, dtype=torch.bool)
        near = seen & (distance.abs() < c["window"]) if c["window"] else seen
        # A padded slot sees itself: what nothing is seen by has no softmax.
        padding = None if valid is None else valid[:, None, None, :].bool()
        masks = [m[None, None] if padding is None else m & padding | (distance == 0) for m in (seen, near)]
        rotations = [self.rotation(x, positions, kind) for kind in ("global", "local")]
        pattern, ropes = c["attention_pattern"], c["rope_pattern"]
        for i, layer in enumerate(self.layers):
            local = pattern[i % len(pattern)] == "local"
            x = layer(x, masks[local], rotations[local] if ropes[i % len(ropes)] else None, cache)
        return self.final_norm(x)

    def rotation(self, x: Tensor, positions: Tensor, kind: str) -> tuple[Tensor, Tensor]:
        rotary = self.c["rotary"]
        angles = positions[..., None].float() * torch.tensor(rotary[kind], dtype=torch.float32, device=x.device)
        magnitude = rotary["magnitude"] if kind == "global" else 1.0
        return magnitude * angles.sin(), magnitude * angles.cos()


# Adapters: visual tokens [B, F, P, E] to soft tokens [B, R, D]


class MlpAdapter(nn.Module):
    """A map of each visual token, or of each square of them."""

    def __init__(self, c: dict, inputs: int, width: int):
        super().__init__()
        self.c = c
        inputs *= c["pixel_shuffle"] ** 2
        for i in range(c["depth"]):
            outputs = width if i == c["depth"] - 1 else c["hidden_dim"] or width
            setattr(self, f"dense_{i}", nn.Linear(inputs, outputs))
            inputs = outputs

    def forward(self, visual: Tensor) -> Tensor:
        side = self.c["pixel_shuffle"]
        if side > 1:
            batch, frames, patches, width = visual.shape
            grid = math.isqrt(patches) // side
            x = visual.reshape(batch, frames, grid, side, grid, side, width).transpose(3, 4)
            visual = x.reshape(batch, frames, grid * grid, side * side * width)
        x = visual.flatten(1, 2).to(self.dense_0.weight.dtype)
        for i in range(self.c["depth"]):
            x = getattr(self, f"dense_{i}")(x if i == 0 else F.gelu(x))
        return x


class CrossAttention(nn.Module):
    """Attention from queries to keys and values of another width."""

    def __init__(self, width: int, keys: int, hidden: int, count: int):
        super().__init__()
        self.count = count
        self.query = nn.Linear(width, hidden, False)
        self.key = nn.Linear(keys, hidden, False)
        self.value = nn.Linear(keys, hidden, False)
        self.out = nn.Linear(hidden, width, False)

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        query = heads(self.query(queries), self.count)
        key, value = heads(self.key(keys), self.count), heads(self.value(keys), self.count)
        return self.out(attend(query, key, value, None, query.shape[-1] ** -0.5))


class FeedForward(nn.Module):
    """Norm, map, GELU, map."""

    def __init__(self, width: int, ratio: int):
        super().__init__()
        self.norm = Norm("layer", width)
        self.up = nn.Linear(width, ratio * width, False)
        self.down = nn.Linear(ratio * width, width, False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(activation("gelu_tanh", self.up(self.norm(x))))


class ResamplerLayer(nn.Module):
    """Cross-attention of the queries to the visual tokens, then an FFN."""

    def __init__(self, c: dict, keys: int):
        super().__init__()
        self.c, placement = c, c["layer_norm"]
        if placement == "shared":
            self.norm = Norm("layer", c["query_dim"])
        elif placement.startswith("separate"):
            self.norm_query, self.norm_key = Norm("layer", c["query_dim"]), Norm("layer", keys)
        self.attention = CrossAttention(c["query_dim"], keys, c["hidden_dim"], c["num_heads"])
        if c["ffn"]:
            self.ffn = FeedForward(c["query_dim"], c["ffn_ratio"])

    def forward(self, x: Tensor, visual: Tensor) -> Tensor:
        queries, keys, placement = x, visual, self.c["layer_norm"]
        if placement == "shared":
            queries, keys = self.norm(x), self.norm(visual)
        elif placement.startswith("separate"):
            queries, keys = self.norm_query(x), self.norm_key(visual)
        if self.c["concat_keys"]:
            keys = torch.cat([keys, queries], 1)
        x = x + self.attention(queries, keys)
        return x + self.ffn(x) if self.c["ffn"] else x


def with_time(module: nn.Module, visual: Tensor) -> Tensor:
    """Adds the embedding of each frame to its tokens."""
    frames, most = visual.shape[1], len(module.time_embedding)
    if frames > most:
        raise ValueError(f"The adapter has time embeddings for {most} frames and was given {frames}.")
    return visual + module.time_embedding[:frames, None].to(visual.dtype)


class Perceiver(nn.Module):
    """Perceiver resampler."""

    def __init__(self, c: dict, inputs: int):
        super().__init__()
        self.c, width = c, c["query_dim"]
        if c["time_embedding"]:
            self.time_embedding = nn.Parameter(torch.zeros(c["num_frames"], inputs))
        if inputs != width and (c["concat_keys"] or c["layer_norm"] == "shared"):
            self.input_projection = nn.Linear(inputs, width, False)
            inputs = width
        self.queries = nn.Parameter(torch.zeros(c["num_queries"], width))
        self.layers = nn.ModuleList(ResamplerLayer(c, inputs) for _ in range(c["num_layers"]))
        self.final_norm = Norm("layer", width) if c["layer_norm"].endswith("final") else nn.Identity()

    def forward(self, visual: Tensor) -> Tensor:
        visual = visual.to(self.queries.dtype)
        if self.c["time_embedding"]:
            visual = with_time(self, visual)
        visual = visual.flatten(1, 2)
        if hasattr(self, "input_projection"):
            visual = self.input_projection(visual)
        x = self.queries.expand(len(visual), -1, -1)
        for layer in self.layers:
            x = layer(x, visual)
        return self.final_norm(x)


class Pooler(nn.Module):
    """Attentional pooler."""

    def __init__(self, c: dict, inputs: int):
        super().__init__()
        self.c, width = c, c["query_dim"]
        if c["time_embedding"]:
            self.time_embedding = nn.Parameter(torch.zeros(c["num_frames"], inputs))
        self.queries = nn.Parameter(torch.zeros(c["num_queries"], width))
        self.attention = CrossAttention(width, inputs, width, c["num_heads"])
        self.norm = Norm("layer", width)
        if c["residual"]:
            self.residual_gate = nn.Parameter(torch.zeros(width))
            self.ffn = FeedForward(width, c["ffn_ratio"])

    def forward(self, visual: Tensor) -> Tensor:
        visual = visual.to(self.queries.dtype)
        if self.c["time_embedding"]:
            visual = with_time(self, visual)
        queries = self.queries.expand(len(visual), -1, -1)
        x = self.norm(self.attention(queries, visual.flatten(1, 2)))
        if self.c["residual"]:
            x = x + self.residual_gate * queries
            x = x + self.ffn(x)
        return x


class Resampler(nn.Module):
    """Perceiver or pooler, and a map to the language model's width."""

    def __init__(self, c: dict, inputs: int, width: int):
        super().__init__()
        kind = Perceiver if c["class"] == "PerceiverConfig" else Pooler
        self.resampler = kind(c, inputs)
        self.projection = nn.Linear(c["query_dim"], width)

    def forward(self, visual: Tensor) -> Tensor:
        return self.projection(self.resampler(visual))


class LMAdapter(nn.Module):
    """A tiny language model between two maps."""

    def __init__(self, c: dict, inputs: int, width: int):
        super().__init__()
        self.c, lm = c, c["lm"]
        self.front = make_adapter(c["front"], inputs, lm["width"])
        self.lm = Decoder(lm, table=c["num_words"] > 0)
        self.projection = nn.Linear(lm["width"], width)
        for name in ("prefix", "suffix", "queries"):
            if c[f"num_{name}"]:
                setattr(self, name, nn.Parameter(torch.zeros(c[f"num_{name}"], lm["width"])))

    def forward(self, visual: Tensor) -> Tensor:
        c = self.c
        x = self.front(visual)
        read = x.shape[1]
        if c["num_prefix"]:
            x = torch.cat([self.prefix.expand(len(x), -1, -1), x], 1)
        if c["num_suffix"]:
            x = torch.cat([x, self.suffix.expand(len(x), -1, -1)], 1)
        first = x.shape[1] - 1  # where the LM says its first word
        if c["num_words"]:
            x = torch.cat([x, self.lm.embed(self.words(x)).to(x.dtype)], 1)
        if c["num_queries"]:
            x = torch.cat([x, self.queries.expand(len(x), -1, -1)], 1)
            read = c["num_queries"]
        hidden = self.lm(x, torch.arange(x.shape[1], device=x.device)[None])
        wrote = hidden[:, first : first + c["num_words"]]
        return self.projection(torch.cat([wrote, hidden[:, -read:]], 1))

    @torch.no_grad()
    def words(self, x: Tensor) -> Tensor:
        """The ids [B, W] that the LM writes after x, each the most probable one."""
        cache, positions, found = DynamicCache(), torch.arange(x.shape[1], device=x.device)[None], []
        for _ in range(self.c["num_words"]):
            hidden = self.lm(x, positions, cache=cache)
            found.append(self.lm.logits(hidden[:, -1:]).argmax(-1))
            x, positions = self.lm.embed(found[-1]), positions[:, -1:] + 1
        return torch.cat(found, 1)


def make_adapter(c: dict, inputs: int, width: int) -> nn.Module:
    """The adapter that a configuration describes."""
    kinds = {"MlpConfig": MlpAdapter, "LMAdapterConfig": LMAdapter}
    return kinds.get(c["class"], Resampler)(c, inputs, width)


# The whole


class VAdapterForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """Reads text with pictures and videos in it, and goes on with the text."""

    config_class = VAdapterConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    _no_split_modules = ["VisionLayer", "Layer"]
    _supports_sdpa = True

    def __init__(self, config: VAdapterConfig):
        super().__init__(config)
        self.encoder = VisionEncoder(config.vision)
        self.adapter = make_adapter(config.adapter, config.vision["width"], config.language["width"])
        self.decoder = Decoder(config.language)
        self.post_init()

    def _init_weights(self, module):
        """Nothing: all parameters are read from the file."""

    def get_input_embeddings(self):
        return self.decoder.embedder

    def set_input_embeddings(self, value):
        self.decoder.embedder = value

    def get_output_embeddings(self):
        return None if self.config.language["tied_head"] else self.decoder.head

    def soft_tokens(self, pixels: Tensor) -> Tensor:
        """What the language model reads in place of media [N, F, 3, h, w]: [N, R, D]."""
        count, frames = pixels.shape[:2]
        visual = self.encoder(pixels.flatten(0, 1)).unflatten(0, (count, frames))
        if frames == 1 and self.config.repeat_stills:
            visual = visual.repeat_interleave(self.config.num_frames, 1)
        soft = self.adapter(visual)
        return soft if self.config.quantization is None else self.as_words(soft)

    def as_words(self, soft: Tensor) -> Tensor:
        """Soft tokens as words of the embedding table, or as mixtures of them."""
        settings, table = self.config.quantization, self.decoder.embedder.weight
        near = F.normalize(soft.float(), dim=-1) @ F.normalize(table.float(), dim=-1).T
        if settings["kind"] != "softmax":
            return self.decoder.embed(near.argmax(-1))
        end = settings["end_temperature"]
        temperature = settings["temperature"] if end is None else end
        weights = (near * math.sqrt(table.shape[1]) / temperature).softmax(-1)
        return self.decoder.scaled((weights @ table.float()).to(table.dtype))

    def with_media(self, ids: Tensor, images: Tensor | None, videos: Tensor | None) -> Tensor:
        """Text embeddings [B, T, D] with the soft tokens in their slots."""
        marks = {self.config.image_token_index: images, self.config.video_token_index: videos}
        text = ids
        for mark in marks:
            text = text.masked_fill(ids == mark, 0)
        x = self.decoder.embed(text)
        for mark, pixels in marks.items():
            slots = ids == mark
            if pixels is None:
                if slots.any():
                    raise ValueError("The text has a place for a picture or a video, and none was given.")
                continue
            soft = self.soft_tokens(pixels if pixels.ndim == 5 else pixels[:, None]).to(x.dtype)
            if int(slots.sum()) != soft.shape[0] * soft.shape[1]:
                raise ValueError(
                    f"The text has {int(slots.sum())} slots for pictures or videos, and they give "
                    f"{soft.shape[0]} x {soft.shape[1]} tokens. Write it with the processor."
                )
            x = x.masked_scatter(slots[..., None], soft)
        return x

    def forward(
        self,
        input_ids=None,
        pixel_values=None,
        pixel_values_videos=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        cache=None,
        inputs_embeds=None,
        labels=None,
        use_cache=None,
        logits_to_keep=0,
        return_dict=None,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Logits of the next token at each slot.

        Args:
            input_ids: [B, T]; a picture's slots have `image_token_index`, a video's `video_token_index`.
            pixel_values: normalised pictures [N, 3, h, w], in the order of their slots.
            pixel_values_videos: normalised videos [N, F, 3, h, w].
            attention_mask: [B, past + T], 0 for padding, on the left or on the right.
            position_ids: [B, T]; by default they follow from the mask.
            past_key_values: a `Cache`; `cache` is its new name.
            inputs_embeds: [B, T, D] in place of `input_ids`, as the layers read them.
            labels: [B, T]; -100 has no loss.
            use_cache: whether to make a cache.
            logits_to_keep: how many last slots have logits; 0 is all.
        """
        cache = past_key_values if cache is None else cache
        if cache is None and use_cache:
            cache = DynamicCache()
        if inputs_embeds is None:
            inputs_embeds = self.with_media(input_ids, pixel_values, pixel_values_videos)
        past = 0 if cache is None else cache.get_seq_length()
        if attention_mask is not None and attention_mask.ndim != 2:
            raise ValueError("Expected an attention_mask [batch, length].")
        if position_ids is None:
            if attention_mask is None:
                position_ids = torch.arange(past, past + inputs_embeds.shape[1], device=inputs_embeds.device)[None]
            else:
                position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
        position_ids = position_ids[:, -inputs_embeds.shape[1] :]
        x = inputs_embeds.to(self.decoder.final_norm.weight.dtype)
        hidden = self.decoder(x, position_ids, attention_mask, cache)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) and logits_to_keep else slice(None)
        logits = self.decoder.logits(hidden[:, kept])
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        name = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"
        return CausalLMOutputWithPast(loss=loss, logits=logits, **{name: cache})

    def prepare_inputs_for_generation(self, input_ids, inputs_embeds=None, **kwargs):
        """Gives the pixels to the first step alone: later ones find their tokens in the cache."""
        inputs = super().prepare_inputs_for_generation(input_ids, inputs_embeds=inputs_embeds, **kwargs)
        cache = inputs.get("cache", inputs.get("past_key_values"))
        if cache is not None and cache.get_seq_length() > 0:
            inputs.pop("pixel_values", None)
            inputs.pop("pixel_values_videos", None)
        return inputs
