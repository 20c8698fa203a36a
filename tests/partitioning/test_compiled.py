"""What XLA makes of the shardings: read from compiled programs."""

import re

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from tests.models import small
from vadapter.models.vlm import VLM, VLMConfig
from vadapter.partitioning import MeshConfig, Partitioner, abstract_params, constrain, make_mesh, slices

DEPTH = 5  # no other dimension has this size


def collectives(text: str, kind: str) -> list[tuple[bool, tuple[int, ...]]]:
    """Of each such operation of a compiled program: whether it is in the body of a loop, and its result's shape."""
    bodies, name, found = set(re.findall(r"body=%?([\w.\-]+)", text)), "", []
    for line in text.splitlines():
        if header := re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            name = header.group(1)
        if operation := re.search(rf"= \(?\w+\[([\d,]*)\].* {kind}(?:-start)?\(", line):
            found.append((name in bodies, tuple(map(int, filter(None, operation.group(1).split(","))))))
    return found


def test_fsdp_gathers_weights_layer_by_layer():
    partitioner = Partitioner(make_mesh(MeshConfig(data=1, fsdp=8)))
    model = VLM(VLMConfig(decoder=small.decoder(depth=DEPTH, mlp_dim=48, remat="full")))
    batch = small.batch(small.vlm("mlp"))
    no_media = {"media": np.zeros((8, 0, 1, 8, 8, 3), np.uint8), "media_index": np.full_like(batch.media_index, -1)}
    batch = batch.replace(**no_media)
    boxed = abstract_params(model, batch)
    shardings = partitioner.param_shardings(boxed)

    def place(x, sharding):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    params = jax.tree.map(place, nn.unbox(boxed), shardings)
    rows = jax.tree.map(lambda x: place(x, partitioner.batch_sharding), batch)
    gradient = jax.grad(lambda params, batch: jnp.sum(model.apply({"params": params}, batch) ** 2))
    with partitioner.activate():
        text = jax.jit(gradient, out_shardings=shardings).lower(params, rows).compile().as_text()
    found = collectives(text, "all-gather")
    of_mlp = [shape for in_loop, shape in found if in_loop and sorted(shape) == [32, 48]]
    assert len(of_mlp) >= 6  # three kernels forward, and again backward
    assert not [shape for _, shape in found if DEPTH in shape]


def test_what_slices_compute_by_themselves_crosses_between_them_once():
    """Gradients of parts of a batch, one after the other, summed over the slices at the end."""
    partitioner = Partitioner(make_mesh(MeshConfig(slices=2, data=2, fsdp=2)))
    rng = np.random.default_rng(0)
    kernel, rows = rng.normal(size=(6, 4)).astype(np.float32), rng.normal(size=(32, 6)).astype(np.float32)

    def gradient(kernel, rows):
        return jax.grad(lambda kernel: jnp.sum(jnp.tanh(constrain(rows @ kernel, "batch", None)) ** 2))(kernel)

    def parts_of(kernel, rows):
        each = slices.per_slice(gradient)
        start = jnp.zeros((slices.num_slices(), *kernel.shape))
        add = lambda total, part: (total + each(kernel, part), None)  # noqa: E731
        return jax.lax.scan(add, start, slices.split_rows(rows, 4))[0].sum(axis=0)

    with partitioner.activate():
        shardings = {"in_shardings": (None, partitioner.batch_sharding), "out_shardings": partitioner.replicated}
        compiled = jax.jit(parts_of, **shardings).lower(kernel, rows).compile()
    np.testing.assert_allclose(compiled(kernel, rows), gradient(kernel, rows), rtol=1e-4, atol=1e-5)
    # The sum over slices is outside of the loop: each turn adds up what one slice has.
    where = [in_loop for in_loop, _ in collectives(compiled.as_text(), "all-reduce")]
    assert sorted(where) == [False, True]
