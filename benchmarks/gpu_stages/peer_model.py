"""The same model in PyTorch, of transformers' modules: SigLIP's ViT, a perceiver, Gemma-shaped language models.

Shapes, trained parameters and the loss are those of `gpu_stages.model`. What differs: Gemma's block applies attention
and MLP one after the other, with a norm each, where PaLM's applies both at once; the products are the same.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GemmaConfig, GemmaForCausalLM, GemmaModel, SiglipVisionConfig, SiglipVisionModel

from vadapter.models.decoder import DecoderConfig
from vadapter.models.vit import ViTConfig
from vadapter.models.vlm import VLMConfig


def _gemma(config: DecoderConfig, vocab_size: int) -> GemmaConfig:
    return GemmaConfig(
        vocab_size=vocab_size,
        hidden_size=config.width,
        intermediate_size=config.mlp_dim,
        num_hidden_layers=config.depth,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        hidden_act="silu",
        attn_implementation="sdpa",
        eos_token_id=None,
    )


def language_model(config: DecoderConfig, device: str) -> GemmaForCausalLM:
    """Makes the decoder with random weights, bf16."""
    with torch.device(device):
        return GemmaForCausalLM._from_config(_gemma(config, config.vocab_size), dtype=torch.bfloat16)


def vision(config: ViTConfig, dtype: torch.dtype = torch.bfloat16) -> SiglipVisionModel:
    """Makes the encoder with random weights."""
    settings = SiglipVisionConfig(
        hidden_size=config.width,
        intermediate_size=config.mlp_dim,
        num_hidden_layers=config.depth,
        num_attention_heads=config.num_heads,
        image_size=config.image_size,
        patch_size=config.patch_size,
        attn_implementation="sdpa",
    )
    settings.vision_use_head = False
    return SiglipVisionModel._from_config(settings, dtype=dtype)


class Perceiver(nn.Module):
    """One layer: queries read the visual tokens and themselves, then a feed-forward block."""

    def __init__(self, config: VLMConfig, width: int):
        super().__init__()
        c, visual = config.adapter.front, config.encoder.width
        d, inner = c.query_dim, c.hidden_dim
        self.heads = c.num_heads
        self.queries = nn.Parameter(torch.randn(c.num_queries, d) * d**-0.5)
        self.time = nn.Parameter(torch.randn(c.num_frames, visual) * visual**-0.5)
        # Visual tokens of the queries' width are read as they are.
        self.project = nn.Identity() if visual == d else nn.Linear(visual, d, bias=False)
        self.norm_query, self.norm_key, self.norm = nn.LayerNorm(d), nn.LayerNorm(d), nn.LayerNorm(d)
        self.q, self.k, self.v = (nn.Linear(d, inner, bias=False) for _ in range(3))
        self.out = nn.Linear(inner, d, bias=False)
        self.up, self.down = nn.Linear(d, c.ffn_ratio * d, bias=False), nn.Linear(c.ffn_ratio * d, d, bias=False)
        self.last = nn.Linear(d, width)

    def forward(self, visual: torch.Tensor) -> torch.Tensor:
        """Maps [B, F, P, E] to [B, R, width]."""
        x = self.project((visual + self.time[:, None].to(visual.dtype)).flatten(1, 2))
        queries = self.queries.to(x.dtype).expand(x.shape[0], -1, -1)
        asked = self.norm_query(queries)
        read = torch.cat([self.norm_key(x), asked], dim=1)
        q, k, v = (f(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f, y in self._maps(asked, read))
        found = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        queries = queries + self.out(found)
        queries = queries + self.down(F.gelu(self.up(self.norm(queries)), approximate="tanh"))
        return self.last(queries)

    def _maps(self, asked: torch.Tensor, read: torch.Tensor):
        return (self.q, asked), (self.k, read), (self.v, read)


class Adapter(nn.Module):
    """Perceiver, tiny language model, map to the decoder's width. Weights are f32."""

    def __init__(self, config: VLMConfig):
        super().__init__()
        tiny = config.adapter.lm
        self.front = Perceiver(config, tiny.width)
        self.lm = GemmaModel._from_config(_gemma(tiny, 8), dtype=torch.float32)
        self.lm.embed_tokens = nn.Identity()  # it is given embeddings
        self.projection = nn.Linear(tiny.width, config.decoder.width)

    def forward(self, visual: torch.Tensor) -> torch.Tensor:
        """Maps [B, F, P, E] to [B, R, D]."""
        soft = self.front(visual)
        return self.projection(self.lm(inputs_embeds=soft, use_cache=False).last_hidden_state)


class Peer(nn.Module):
    """Frozen ViT and decoder in bf16 around a trained adapter, which computes in bf16 under autocast."""

    def __init__(self, config: VLMConfig, device: str):
        super().__init__()
        self.frames = config.num_frames
        with torch.device(device):
            self.encoder = vision(config.encoder).requires_grad_(False).eval()
            self.adapter = Adapter(config).train()
        self.decoder = language_model(config.decoder, device).requires_grad_(False).train()
        self.device_type = device.split(":")[0]

    def forward(self, pixels: torch.Tensor, text: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Returns the mean cross-entropy of `targets` [B, L], the last L tokens of `text` [B, prompt + L]."""
        with torch.no_grad():
            scaled = (pixels.to(torch.bfloat16) / 127.5 - 1).contiguous()
            visual = self.encoder(pixel_values=scaled).last_hidden_state
        visual = visual[:, None].expand(-1, self.frames, -1, -1)
        with torch.autocast(self.device_type, torch.bfloat16):
            soft = self.adapter(visual)
        embedded = self.decoder.get_input_embeddings()(text)
        x = torch.cat([soft.to(embedded.dtype), embedded], dim=1)
        hidden = self.decoder.model(inputs_embeds=x, use_cache=False).last_hidden_state
        count = targets.shape[1]
        logits = self.decoder.lm_head(hidden[:, -count - 1 : -1])  # at the targets only
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    def compile_layers(self, compiled: bool, backend: str = "inductor") -> None:
        """Compiles the perceiver and a layer of each kind, which all layers of the kind then share; or undoes it."""
        stacks = (self.encoder.encoder.layers, self.adapter.lm.layers, self.decoder.model.layers)
        for module in (self.adapter.front, *(layer for layers in stacks for layer in layers)):
            if compiled:
                module.compile(dynamic=False, backend=backend)
            else:
                module._compiled_call_impl = None
