"""Frozen weights in int8, from checkpoint to logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec

from tests import saved
from tests.models import small as models
from tests.training import small
from vadapter.base import quantization, trees
from vadapter.models import stacks
from vadapter.models.decoder import Decoder
from vadapter.models.vlm import VLM
from vadapter.training import freezing, initialize
from vadapter.training.loop import TrainConfig, train
from vadapter.training.objectives import make_objective
from vadapter.training.sources import Source
from vadapter.training.storage import Storage

pytestmark = pytest.mark.slow

CONFIG = models.vlm("queries")
BATCH = models.batch(CONFIG)
TRAINABLE = ("adapter/(queries|projection/.*|front/.*)",)


def run(root, name, placed, remat="none", steps=2):
    """Returns the result of a short training, and the values that it started from."""
    model = VLM(models.vlm("queries", decoder=models.decoder(remat=remat), encoder=models.vit(remat=remat)))
    optimizer, folder = small.optimizer(learning_rate=0.001), str(root / name)
    config = TrainConfig(steps=steps, trainable=TRAINABLE, frozen_dtype="int8", optimizer=optimizer, tensorboard=False)
    program = config.program(model, BATCH, make_objective(model), placed)
    params, references = initialize.initial_params(
        program, jax.random.key(0), sources=[Source(str(root / "source"))], model_dir=folder
    )
    before = {path: np.asarray(quantization.values(x)) for path, x in trees.flatten(params).items()}
    start = initialize.begin(program, folder, lambda: (params, references))
    data = lambda start: iter([BATCH] * steps)  # noqa: E731
    return train(config, program=program, start=start, batches=data, model_dir=folder), before


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    saved.save_params(str(folder / "source"), small.params(VLM(CONFIG), example=BATCH))
    return folder


@pytest.fixture(scope="module")
def sharded(root):
    return run(root, "sharded", small.partitioner(data=2, fsdp=2, tensor=2))


def test_a_run_trains_on_int8_and_leaves_it_as_it_was(root, sharded):
    result, before = sharded
    after = trees.flatten(result.params)
    quantized = {path for path, x in after.items() if quantization.is_quantized(x)}
    assert quantized == {path for path in after if stacks.quantizes(path)}
    assert {path.split("/")[0] for path in quantized} == {"encoder", "adapter", "decoder"}
    assert after["decoder/embedder/embedding"].dtype == jnp.bfloat16
    trained = saved.load_params(str(root / "sharded"))
    for path, x in after.items():
        same = np.asarray(quantization.values(x)).tobytes() == before[path].tobytes()
        assert same == (path not in trained), path
    info = (root / "sharded/model-info.txt").read_text()
    assert "frozen   decoder/layers/mlp/up/kernel  (2, 32, 64)  int8  P(None, 'fsdp', 'tensor')" in info


def test_sharded_is_unsharded_recomputed_or_not(root, sharded):
    alone, _ = run(root, "alone", small.partitioner(), remat="full")
    for name, tolerance in (("loss", 1e-5), ("grad_norm", 1e-4)):
        assert sharded[0].metrics[name] == pytest.approx(alone.metrics[name], rel=tolerance)


def test_a_run_is_found_again(root, sharded):
    found = initialize.restore(str(root / "sharded"), small.boxed(VLM(CONFIG), BATCH), small.partitioner(fsdp=4))
    for a, b in zip(*(jax.tree.leaves(tree) for tree in (sharded[0].params, found.params)), strict=True):
        assert (a.dtype, np.asarray(a).tobytes()) == (b.dtype, np.asarray(b).tobytes())
    kernel = found.params["decoder"]["layers"]["mlp"]["up"]["kernel"]
    assert kernel.qvalue.sharding.spec == PartitionSpec(None, "fsdp", None)


def test_logits_are_near_those_of_f32_and_kernels_take_a_quarter():
    config = models.decoder(width=128, depth=4, mlp_dim=256, head_dim=32)
    model, ids = Decoder(config), jnp.ones((2, 8), jnp.int32)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (2, 8))

    def predict(decoder, tokens):
        hidden, _ = decoder(decoder.embed(tokens), ids, jnp.cumsum(ids, axis=1))
        return decoder.logits(hidden)

    shapes = nn.unbox(jax.eval_shape(lambda key: model.init(key, tokens, method=predict), jax.random.key(0)))["params"]
    rng = np.random.default_rng(1)
    flat = {path: np.sqrt(1 / x.shape[-1]) * rng.normal(size=x.shape) for path, x in trees.flatten(shapes).items()}
    exact = {"decoder": trees.unflatten({path: jnp.asarray(x, jnp.float32) for path, x in flat.items()})}
    rough = Storage((), "int8").keep_all(exact)
    logits = jax.jit(lambda params: model.apply({"params": params["decoder"]}, tokens, method=predict))
    a, b = np.asarray(logits(exact)), np.asarray(logits(rough))
    assert 1e-4 < np.sqrt(np.mean((b - a) ** 2) / np.mean(a**2)) < 0.02

    def layers(dtype):
        kept = {"decoder": {"layers": Storage((), dtype).keep_all(exact)["decoder"]["layers"]}}
        (row,) = freezing.summarize({}, kept, {})
        return row

    assert layers("int8").weight_bytes / layers("float32").weight_bytes == pytest.approx(0.25, rel=0.1)
    assert layers("int8").weight_bytes / layers("bfloat16").weight_bytes == pytest.approx(0.5, rel=0.1)
    assert layers("int8").parameters == layers("float32").parameters


@pytest.mark.parametrize("remat", ["none", "full"])
def test_no_floating_copy_of_all_layers_is_made(remat):
    config = models.decoder(width=64, depth=32, mlp_dim=512, num_heads=2, head_dim=32, remat=remat)
    model = Decoder(config)
    x, ids = jnp.ones((1, 4, config.width)), jnp.ones((1, 4), jnp.int32)
    shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), x, ids, ids))["params"]

    def temporary_bytes(dtype):
        frozen = jax.eval_shape(Storage((), dtype).keep_all, {"decoder": shapes})["decoder"]

        def total(x, frozen):
            return model.apply({"params": frozen}, x, ids, ids)[0].sum()

        return jax.jit(jax.grad(total)).lower(x, frozen).compile().memory_analysis().temp_size_in_bytes

    kernels = 4 * sum(x.size for path, x in trees.flatten(shapes).items() if path.endswith("/kernel"))
    assert temporary_bytes("int8") < kernels / 4  # a layer or two in f32, gradients and activations
    if remat == "none":  # the copy would be found: bf16 weights, cast to f32 to compute, are kept for the backward pass
        assert temporary_bytes("bfloat16") > kernels
