"""Projections, norms and gated MLPs whose parameters carry logical axis names."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype

from vadapter.base import quantization
from vadapter.base.array_types import Array, Float
from vadapter.base.errors import UserError
from vadapter.models import lora as lora_lib
from vadapter.models.lora import LoraConfig
from vadapter.models.tpu_kernels import RESIDUALS
from vadapter.partitioning import constrain, is_one_cpu

NormKind = Literal["rms", "rms_plus_one", "layer", "layer_no_bias"]
Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "silu", "relu"]
Remat = Literal["none", "full", "dots"]

fan_in = nn.initializers.variance_scaling(1.0, "fan_in", "normal")


def known(what: str, name: str, names: Sequence[str]) -> str:
    """Returns `name`, or raises a `UserError` that lists `names`."""
    if name not in names:
        raise UserError(f"{what} {name!r} is unknown. Known: {', '.join(names)}.")
    return name


def activation(name: Activation) -> Callable[[Array], Array]:
    """Returns the function. `quick_gelu` is CLIP's x * sigmoid(1.702 x)."""
    functions: dict[str, Callable[[Array], Array]] = {
        "gelu": lambda x: jax.nn.gelu(x, approximate=False),
        "gelu_tanh": jax.nn.gelu,
        "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
        "silu": jax.nn.silu,
        "relu": jax.nn.relu,
    }
    return functions[known("Activation", name, get_args(Activation))]


def remat(module: type[nn.Module], policy: Remat) -> type[nn.Module]:
    """Wraps a layer so that its backward pass recomputes what it needs.

    Args:
        module: the layer.
        policy: `none` recomputes nothing, `full` everything, `dots` all but the results of matrix products with
            parameters and of attention by a kernel for TPUs, which is not run again (`xla`'s and `cudnn`'s is).
    """
    policies = jax.checkpoint_policies
    if known("Remat policy", policy, get_args(Remat)) == "none":
        return module
    dots = policies.save_from_both_policies(
        policies.dots_with_no_batch_dims_saveable, policies.save_only_these_names(RESIDUALS)
    )
    return nn.remat(module, policy=policies.nothing_saveable if policy == "full" else dots, prevent_cse=False)


def named(init: Callable, *names: str | None) -> Callable:
    """Attaches logical axis names to what an initialiser makes."""
    return nn.with_logical_partitioning(init, names)


def _promote(*args: Any, dtype: Any = None, inexact: bool = True) -> list[Any]:
    # Of (input, kernel, bias). A quantised kernel goes on to `_dot_general` as it is.
    floating = [x for x in args if not quantization.is_quantized(x)]
    promoted = iter(promote_dtype(*floating, dtype=dtype, inexact=inexact))
    return [x if quantization.is_quantized(x) else next(promoted) for x in args]


def _dot_general(x: Array, kernel: Any, dims: Any, precision: Any = None) -> Array:
    if not quantization.is_quantized(kernel):
        # As a matrix: of [embed, heads, kv] the TPU compiler gathers what fsdp splits while nothing else runs.
        (over, inputs), _ = dims
        rows, outputs = x.shape[: x.ndim - len(over)], kernel.shape[len(inputs) :]
        x = x.reshape(*rows, -1)
        kernel = kernel.reshape(x.shape[-1], -1)
        if is_one_cpu():
            # To sum a kernel's gradient over two axes, batch and length, XLA on a CPU turns both factors over first.
            x = x.reshape(math.prod(rows), x.shape[-1])
        y = jax.lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())), precision=precision)
        return y.reshape(*rows, *outputs)

    def product(x: Array, kernel: Any) -> Array:
        return jax.lax.dot_general(x, quantization.dequantize(kernel, x.dtype), dims, precision=precision)

    # The gradient with respect to x needs the kernel. Without this, the backward pass would keep the floating kernels
    # of all layers; so it keeps the int8 ones, which are there anyway, and turns each back once more.
    return jax.checkpoint(product, prevent_cse=False)(x, kernel)


def _dot_general_cls() -> Callable:
    return _dot_general


class Linear(nn.DenseGeneral):
    """`nn.DenseGeneral`, with LoRA beside its kernel where that is asked for.

    Attributes:
        lora: what to add, to maps whose path in a layer it matches.
        axis_names: logical axis names of the kernel.
    """

    lora: LoraConfig | None = None
    axis_names: tuple[str | None, ...] = ()

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        y = super().__call__(inputs)
        if self.lora is None or not self.lora.matches("/".join(self.path[-2:])):
            return y
        axes = (self.axis,) if isinstance(self.axis, int) else tuple(self.axis)
        outputs = (self.features,) if isinstance(self.features, int) else tuple(self.features)
        return y + lora_lib.add(self, self.lora, inputs.astype(y.dtype), axes, outputs, self.axis_names)


def dense(
    features: int | Sequence[int],
    names: Sequence[str | None],
    *,
    name: str | None = None,
    axis: int | Sequence[int] = -1,
    bias: bool = False,
    dtype: str = "float32",
    init: Callable = fan_in,
    lora: LoraConfig | None = None,
) -> nn.DenseGeneral:
    """A linear map over `axis` of its input to `features`, parameters `kernel` (input axes, then features) and `bias`.

    The kernel may be a quantised one (`vadapter.base.quantization`).

    Args:
        features: size or sizes of the output dimensions.
        names: logical axis names of the kernel.
        name: name of the submodule, for compact modules.
        axis: axes of the input that are summed over.
        bias: whether there is one.
        dtype: of the computation; parameters are made in f32.
        init: kernel initialiser.
        lora: adds a low-rank map where it matches the last two words of the map's path.
    """
    outputs = 1 if isinstance(features, int) else len(features)
    return Linear(
        lora=lora,
        axis_names=tuple(names),
        features=features,
        axis=axis,
        use_bias=bias,
        dtype=jnp.dtype(dtype),
        kernel_init=named(init, *names),
        # As norms: a vector is too small to be split over fsdp, and every use would gather it.
        bias_init=named(nn.initializers.zeros, *(None if n == "embed" else n for n in tuple(names)[-outputs:])),
        promote_dtype=_promote,
        dot_general_cls=_dot_general_cls,
        name=name,
    )


class Norm(nn.Module):
    """RMSNorm or LayerNorm over the last axis, computed in f32; returns the input's dtype.

    Attributes:
        kind: `rms` (x * scale), `rms_plus_one` (x * (1 + scale), Gemma's, scale starts at 0), `layer`, `layer_no_bias`.
        eps: added to the variance or mean square.
        axis_name: logical name of the normalised axis. Default whole: gathering so small a vector in each layer takes
            longer than keeping it.
    """

    kind: NormKind = "rms"
    eps: float = 1e-6
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        known("Norm", self.kind, get_args(NormKind))
        y = x.astype(jnp.float32)
        if self.kind.startswith("layer"):
            y = y - y.mean(-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.eps)
        zero, one = nn.initializers.zeros, nn.initializers.ones
        scale_init = zero if self.kind == "rms_plus_one" else one
        scale = self.param("scale", named(scale_init, self.axis_name), (x.shape[-1],)).astype(jnp.float32)
        y = y * (1 + scale if self.kind == "rms_plus_one" else scale)
        if self.kind == "layer":
            y = y + self.param("bias", named(zero, self.axis_name), (x.shape[-1],)).astype(jnp.float32)
        return y.astype(x.dtype)


class GatedMlp(nn.Module):
    """`down(act(gate(x)) * up(x))`, or `down(act(up(x)))` when not gated.

    Attributes:
        mlp_dim: hidden size.
        act: activation of the gate.
        gated: whether there is a gate (GeGLU, SwiGLU, ...).
        dtype: of the computation.
        lora: of the maps.
    """

    mlp_dim: int
    act: Activation = "gelu_tanh"
    gated: bool = True
    dtype: str = "float32"
    lora: LoraConfig | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        def wide(name: str) -> Array:
            maps = dense(self.mlp_dim, ("embed", "mlp"), name=name, dtype=self.dtype, lora=self.lora)
            return constrain(maps(x), "batch", "length", "activation_mlp")

        act = activation(self.act)
        hidden = act(wide("gate")) * wide("up") if self.gated else act(wide("up"))
        return dense(x.shape[-1], ("mlp", "embed"), name="down", dtype=self.dtype, lora=self.lora)(hidden)
