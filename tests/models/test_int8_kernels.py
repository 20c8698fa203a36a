import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from vadapter.base import quantization
from vadapter.models import stacks
from vadapter.partitioning import MeshConfig, make_mesh

QUERY, OUT, UP = (f"decoder/layers/{name}/kernel" for name in ("attention/query", "attention/out", "mlp/up"))
MLP = "encoder/Transformer/encoderblock/MlpBlock_0/Dense_0/kernel"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (QUERY, True),
        (MLP, True),
        ("adapter/lm/layers/mlp/down/kernel", True),
        ("decoder/layers/attention/query/bias", False),
        ("decoder/layers/pre_mlp_norm/scale", False),
        ("decoder/embedder/embedding", False),
        ("decoder/head/embedding", False),
        ("encoder/embedding/kernel", False),
        ("adapter/projection/kernel", False),
        ("adapter/front/resampler/layers/attention/query/kernel", False),
    ],
)
def test_only_kernels_of_stacked_layers_are_quantised(path, expected):
    assert stacks.quantizes(path) == expected


@pytest.mark.parametrize(
    ("path", "shape", "scale"),
    [
        (QUERY, (2, 8, 4, 6), (2, 1, 4, 6)),
        (OUT, (2, 4, 6, 8), (2, 1, 1, 8)),
        (UP, (2, 8, 16), (2, 1, 16)),
        (MLP, (2, 8, 16), (2, 1, 16)),
    ],
)
def test_each_layer_and_output_channel_has_a_scale(path, shape, scale):
    kernel = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    kernel[1] *= 100  # one layer's size is not another's affair
    made = stacks.quantize(path, jnp.asarray(kernel))
    assert (made.qvalue.dtype, made.qvalue.shape, made.scale.dtype, made.scale.shape) == (
        jnp.int8,
        shape,
        jnp.float32,
        scale,
    )
    axes = tuple(i for i, n in enumerate(scale) if n == 1)
    np.testing.assert_allclose(made.scale, np.abs(kernel).max(axes, keepdims=True) / 127.5, rtol=0.01)
    error = np.abs(np.asarray(quantization.dequantize(made, jnp.float32)) - kernel)
    assert (error <= np.asarray(made.scale) * 0.51).all()
    assert quantization.nbytes(made) == kernel.size + 4 * np.prod(scale)
    assert quantization.is_quantized(made)
    assert not quantization.is_quantized(kernel)


def test_values_and_scale_lie_as_the_kernel_does():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    kernel = np.random.default_rng(0).normal(size=(2, 8, 4, 6)).astype(np.float32)
    spec = PartitionSpec(None, "fsdp", "tensor")
    made = stacks.quantize(QUERY, jax.device_put(kernel, NamedSharding(mesh, spec)))
    assert made.qvalue.sharding == NamedSharding(mesh, spec)
    assert made.scale.sharding.is_equivalent_to(NamedSharding(mesh, PartitionSpec(None, None, "tensor")), 4)
    whole = stacks.quantize(QUERY, jnp.asarray(kernel))
    np.testing.assert_array_equal(made.qvalue, whole.qvalue)
    np.testing.assert_array_equal(made.scale, whole.scale)
