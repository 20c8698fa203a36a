"""Vision transformer with big_vision's parameter names and semantics, and the switches of the other families."""

import dataclasses
import functools
from typing import ClassVar, Literal, get_args

import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import linen as nn

from vadapter.base import resizing
from vadapter.base.array_types import Array, Float, UInt8
from vadapter.base.errors import UserError
from vadapter.models import layers, position_embeddings
from vadapter.models.attention import AttentionImpl, attend
from vadapter.models.configuration import encoder
from vadapter.models.flops import FlopCounter
from vadapter.models.layers import Norm, dense, named
from vadapter.models.lora import DROPOUT, LoraConfig
from vadapter.models.positions import Rotation, apply_rope
from vadapter.partitioning import constrain

Positions = Literal["learned", "rotary", "sines"]
# The maps of a block that may have a bias; `mlp` is all of the MLP's.
BIASES = ("query", "key", "value", "out", "mlp")

_xavier = nn.initializers.xavier_uniform()


@encoder
@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """Shape and kind of a ViT. `models/variants.py` has the published ones.

    Attributes:
        image_size: pixels of each side of the square input.
        patch_size: pixels of each side of a patch.
        width: channels of a token, D.
        depth: number of layers.
        num_heads: number of heads, N; the head dimension is width / num_heads.
        mlp_dim: hidden size of the MLP.
        activation: `gelu_tanh` (big_vision), `gelu` (DINOv2), `quick_gelu` (OpenAI CLIP); with `gated`, of the gate.
        gated: the MLP has a gate, `Dense_1(act(Gate(x)) * Dense_0(x))` (SwiGLU of DINOv2's giant size, AIMv2).
        biases: the maps of a block that have one: all by default, all but `key` in DINOv3, none in AIMv2.
        norm: `layer`, or `rms` (AIMv2); see `layers.Norm`.
        norm_eps: of every norm; 1e-6 (big_vision), 1e-5 (CLIP).
        positions: `learned`, a table; `rotary`, angles of row and column in each attention (DINOv3); `sines`, computed
            like a table (AIMv2 native). Only the table belongs to one image size.
        position_grid: patches along each side of the table, where `image_size` may be another than that of the
            pretraining: the table is then resampled whenever it is read. None: the table is that of `image_size`, and
            weights with another are resampled once, at loading, by `bilinear_aligned`.
        position_resampling: how the table of `position_grid` is resampled, see `position_embeddings.resample`; each
            family has its own.
        rope_base: of rotary positions.
        class_token: a learned token before the patches; it is dropped from the result (CLIP, DINOv2).
        num_registers: learned tokens between the class token and the patches, without positions; dropped from the
            result as well (DINOv2 with registers).
        layer_scale: a learned factor for each channel of what attention and MLP add (DINOv2).
        patch_norm: a norm of the embedded patches, before positions are added (AIMv2).
        pre_norm: a norm between embedding and layers (CLIP).
        final_norm: a norm after the layers; off for CLIP's patch tokens as LLaVA reads them.
        patch_bias: bias of the patch embedding; off in CLIP.
        drop_edges: `image_size` may be no multiple of `patch_size`; the pixels right of and below the last whole patch
            are then not read (SigLIP so400m at 384 pixels sees 378 of them).
        mean: of the pixels in 0..1, for R, G, B; 0.5 with std 0.5 maps to -1..1 (big_vision, SigLIP).
        std: of the pixels in 0..1, for R, G, B.
        resize: how pictures become square before they are read, where a task does not say it: `stretch`, `crop`,
            `pad`, or as an image processor was published, such as "center_crop bicubic"; see `resizing.parse`.
        attention_impl: `xla` everywhere, `cudnn` on NVIDIA GPUs, `splash` on TPUs; see `attention.attend`.
        dtype: of the computation; patch and position embeddings are always in f32.
        remat: what the backward pass recomputes: `none`, `full` or `dots`.
        lora: small trained maps beside those of the layers; None has none.
    """

    stack: ClassVar[str] = "Transformer/encoderblock"

    image_size: int
    patch_size: int
    width: int
    depth: int
    num_heads: int
    mlp_dim: int
    activation: layers.Activation = "gelu_tanh"
    gated: bool = False
    biases: tuple[str, ...] = BIASES
    norm: layers.NormKind = "layer"
    norm_eps: float = 1e-6
    positions: Positions = "learned"
    position_grid: int | None = None
    position_resampling: position_embeddings.Resampling = "bilinear_aligned"
    rope_base: float = 100.0
    class_token: bool = False
    num_registers: int = 0
    layer_scale: bool = False
    patch_norm: bool = False
    pre_norm: bool = False
    final_norm: bool = True
    patch_bias: bool = True
    drop_edges: bool = False
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    resize: str = resizing.DEFAULT
    attention_impl: AttentionImpl = "xla"
    dtype: str = "bfloat16"
    remat: layers.Remat = "none"
    lora: LoraConfig | None = None

    def __post_init__(self):
        resizing.parse(self.resize)
        if self.image_size % self.patch_size and not self.drop_edges:
            raise UserError(
                f"ViTConfig: image_size {self.image_size} is no multiple of patch_size {self.patch_size}. Change one, "
                "or set drop_edges."
            )
        if self.width % self.num_heads:
            raise UserError(
                f"ViTConfig: width {self.width} is not a multiple of num_heads {self.num_heads}. Change one."
            )
        layers.known("positions", self.positions, get_args(Positions))
        layers.known("position_resampling", self.position_resampling, get_args(position_embeddings.Resampling))
        for name in self.biases:
            layers.known("The map with a bias", name, BIASES)
        if self.positions != "learned" and self.position_grid is not None:
            raise UserError(
                f"ViTConfig: position_grid {self.position_grid} is the size of a table, and {self.positions} positions "
                "have none. Leave position_grid at None."
            )
        if self.lora is not None:
            self.lora.check(self._maps, "the vision encoder")
        rotated = {"rotary": self.head_dim, "sines": self.width}.get(self.positions, 0)
        if rotated % 4:
            raise UserError(
                f"ViTConfig: {self.positions} positions need a multiple of 4 channels "
                f"({'a head' if self.positions == 'rotary' else 'a token'}), and these are {rotated}. Change width or "
                "num_heads."
            )

    @property
    def _maps(self) -> dict[str, tuple[int, int]]:
        square, wide = (self.width, self.width), (self.width, self.mlp_dim)
        attention = {f"MultiHeadDotProductAttention_0/{name}": square for name in ("query", "key", "value", "out")}
        mlp = {f"MlpBlock_0/{name}": wide for name in (("Gate", "Dense_0") if self.gated else ("Dense_0",))}
        return attention | mlp | {"MlpBlock_0/Dense_1": (self.mlp_dim, self.width)}

    @property
    def head_dim(self) -> int:
        """H, the channels of a head."""
        return self.width // self.num_heads

    @property
    def grid(self) -> int:
        """Patches along each side."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        """P, the patch tokens of a frame."""
        return self.grid**2

    @property
    def extra_tokens(self) -> int:
        """Tokens before the patches, which are dropped from the result: class token and registers."""
        return self.class_token + self.num_registers

    def make(self, name: str | None = None) -> nn.Module:
        """See `configuration.EncoderConfig`."""
        if self.position_grid and 2 * self.grid < self.position_grid:
            _warn_of_few_patches(self.grid, self.position_grid, self.patch_size)
        return ViT(self, name=name)

    def flops(self, counter: FlopCounter, frames: float) -> dict[str, float]:
        """See `configuration.EncoderConfig`."""
        each = self.extra_tokens + self.num_patches
        attention = counter.attention(frames * each, each, self.width, self.depth)
        kernels = counter.kernels(lambda path: frames * (self.num_patches if path == "embedding/kernel" else each))
        return {counter.name: kernels + attention}


@functools.cache  # a model is made many times
def _warn_of_few_patches(grid: int, table: int, patch_size: int) -> None:
    logging.warning(
        "The encoder was trained on %d x %d patches and sees %d x %d: its positions become so coarse that its tokens "
        "may be of little use. An image_size of %d or more keeps at least half of the side.",
        *(table, table, grid, grid, -(-table // 2) * patch_size),
    )


class MlpBlock(nn.Module):
    """big_vision's MLP: Dense_0, activation, Dense_1; with a gate, the activation is the gate's."""

    config: ViTConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B P D"]) -> Float[Array, "B P D"]:
        c = self.config
        options = {"bias": "mlp" in c.biases, "dtype": c.dtype, "init": _xavier, "lora": c.lora}

        def wide(name: str) -> Array:
            y = dense(c.mlp_dim, ("embed", "mlp"), name=name, **options)(x)
            return constrain(y, "batch", "length", "activation_mlp")

        act = layers.activation(c.activation)
        hidden = act(wide("Gate")) * wide("Dense_0") if c.gated else act(wide("Dense_0"))
        return dense(c.width, ("mlp", "embed"), name="Dense_1", **options)(hidden)


class LayerScale(nn.Module):
    """A factor for each channel (CaiT, arXiv 2103.17239)."""

    @nn.compact
    def __call__(self, x: Float[Array, "B P D"]) -> Float[Array, "B P D"]:
        return x * self.param("scale", named(nn.initializers.ones, None), (x.shape[-1],)).astype(x.dtype)


class SelfAttention(nn.Module):
    """Full attention among the patches of one frame."""

    config: ViTConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B P D"]) -> Float[Array, "B P D"]:
        c = self.config

        def heads(name: str) -> Array:
            shape, names = (c.num_heads, c.head_dim), ("embed", "heads", "kv")
            y = dense(shape, names, name=name, bias=name in c.biases, dtype=c.dtype, init=_xavier, lora=c.lora)(x)
            return constrain(y, "batch", "length", "activation_heads", None)

        query, key, value = heads("query"), heads("key"), heads("value")
        if c.positions == "rotary":
            angles = position_embeddings.rotary_angles(c.grid, c.head_dim, c.rope_base, c.extra_tokens)[None]
            rotation = Rotation(jnp.asarray(np.sin(angles)), jnp.asarray(np.cos(angles)))
            query, key = apply_rope(query, rotation), apply_rope(key, rotation)
        y = attend(query, key, value, None, scale=c.head_dim**-0.5, impl=c.attention_impl)
        names, bias = ("heads", "kv", "embed"), "out" in c.biases
        out = dense(c.width, names, name="out", axis=(-2, -1), bias=bias, dtype=c.dtype, init=_xavier, lora=c.lora)
        return out(y)


class EncoderBlock(nn.Module):
    """Pre-norm block, a scan body."""

    config: ViTConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B P D"], _) -> tuple[Array, None]:
        c = self.config

        def scaled(name: str, y: Array) -> Array:
            return LayerScale(name=name)(y) if c.layer_scale else y

        y = Norm(c.norm, c.norm_eps, name="LayerNorm_0")(x)
        x = x + scaled("LayerScale_0", SelfAttention(c, name="MultiHeadDotProductAttention_0")(y))
        y = Norm(c.norm, c.norm_eps, name="LayerNorm_1")(x)
        x = x + scaled("LayerScale_1", MlpBlock(c, name="MlpBlock_0")(y))
        return constrain(x, "batch", "length", "activation_embed"), None


class Transformer(nn.Module):
    """The blocks, stacked on a leading layer axis as big_vision's scanned checkpoints are."""

    config: ViTConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B P D"]) -> Float[Array, "B P D"]:
        c = self.config
        blocks = nn.scan(
            layers.remat(EncoderBlock, c.remat),
            variable_axes={"params": 0},
            split_rngs={"params": True, DROPOUT: True},
            length=c.depth,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        x, _ = blocks(c, name="encoderblock")(x, None)
        return Norm(c.norm, c.norm_eps, name="encoder_norm")(x) if c.final_norm else x


class ViT(nn.Module):
    """Frames to patch tokens."""

    config: ViTConfig

    @nn.compact
    def __call__(self, frames: UInt8[Array, "B h w C"]) -> Float[Array, "B P D"]:
        """Encodes each frame by itself.

        Args:
            frames: RGB pixels 0..255 at `image_size`.

        Returns:
            Patch tokens, row by row of the image, in the compute dtype.
        """
        c = self.config
        if frames.shape[1:] != (c.image_size, c.image_size, 3):
            raise UserError(
                f"The ViT takes frames of {(c.image_size, c.image_size, 3)} and was given {frames.shape[1:]}. "
                "Make the loader's image_size the encoder's."
            )
        # bf16 pixels and positions lose what separates neighbours, hence f32 up to the first block.
        pixels = (frames.astype(jnp.float32) / 255.0 - jnp.array(c.mean)) / jnp.array(c.std)
        x = nn.Conv(
            c.width,
            (c.patch_size, c.patch_size),
            strides=(c.patch_size, c.patch_size),
            padding="VALID",
            use_bias=c.patch_bias,
            kernel_init=named(nn.initializers.lecun_normal(), None, None, None, "embed"),
            bias_init=named(nn.initializers.zeros, None),
            name="embedding",
        )(pixels)
        x = x.reshape(x.shape[0], c.num_patches, c.width)
        if c.patch_norm:
            x = Norm(c.norm, c.norm_eps, name="patch_norm")(x)

        def learned(name: str, count: int) -> Array:
            tokens = self.param(name, named(nn.initializers.zeros, None, None, "embed"), (1, count, c.width))
            return jnp.broadcast_to(tokens.astype(x.dtype), (x.shape[0], count, c.width))

        first = 1 if c.class_token else 0
        if c.class_token:
            x = jnp.concatenate([learned("cls", 1), x], axis=1)
        if c.positions == "sines":
            x = x.at[:, first:].add(position_embeddings.sines(c.grid, c.width))
        if c.positions == "learned":
            x = x + self.table(first)
        if c.num_registers:
            x = jnp.concatenate([x[:, :first], learned("registers", c.num_registers), x[:, first:]], axis=1)
        x = constrain(x.astype(jnp.dtype(c.dtype)), "batch", "length", "activation_embed")
        if c.pre_norm:
            x = Norm(c.norm, c.norm_eps, name="pre_norm")(x)
        x = Transformer(c, name="Transformer")(x)
        return x[:, c.extra_tokens :]

    def table(self, extra: int) -> Float[Array, "1 P D"]:
        """Returns the learned positions of `extra` tokens and the patches, in f32."""
        c = self.config
        stored = extra + (c.position_grid or c.grid) ** 2
        init = named(nn.initializers.normal(c.width**-0.5), None, "positions", "embed")
        table = self.param("pos_embedding", init, (1, stored, c.width)).astype(jnp.float32)
        return position_embeddings.resample(table, extra + c.num_patches, extra, c.position_resampling)
