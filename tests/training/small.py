"""A model of a few hundred weights, with the parts of a VLM, and its data: for what does not depend on models."""

import jax
import numpy as np
from flax import linen as nn

from vadapter.base import trees
from vadapter.models.losses import LossSums, label_cross_entropy
from vadapter.partitioning import MeshConfig, Partitioner, abstract_params, make_mesh
from vadapter.training.optimizers import OptimizerConfig
from vadapter.training.program import Program

CLASSES = 4


class Layer(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x):
        init = nn.initializers.normal(0.5)
        kernel = self.param(
            "kernel", nn.with_logical_partitioning(init, ("embed", "mlp")), (x.shape[-1], self.features)
        )
        bias = self.param("bias", nn.with_logical_partitioning(nn.initializers.zeros, ("mlp",)), (self.features,))
        return jax.numpy.tanh(x @ kernel.astype(x.dtype) + bias.astype(x.dtype))


class Adapter(nn.Module):
    def setup(self):
        self.front, self.lm = Layer(8), Layer(8)

    def __call__(self, x):
        return self.lm(self.front(x))


class Model(nn.Module):
    """encoder -> adapter/front -> adapter/lm -> decoder; stage 1 has no adapter."""

    stage: int = 2

    def setup(self):
        self.encoder, self.decoder, self.head = Layer(8), Layer(8), Layer(CLASSES)
        if self.stage == 2:
            self.adapter = Adapter()

    def __call__(self, batch):
        x = self.encoder(batch["x"])
        x = self.adapter(x) if self.stage == 2 else x
        return (4 * self.head(self.decoder(x)),)


def objective(model):
    def loss(params, batch) -> LossSums:
        return label_cross_entropy(model.apply({"params": params}, batch), batch["y"], batch["w"])

    return loss


def batch(step: int, rows: int = 8):
    """A pure function of the step."""
    rng = np.random.default_rng(step)
    x = rng.normal(size=(rows, 6)).astype(np.float32)
    y = np.argmax(x[:, :CLASSES], axis=1).astype(np.int32)[:, None]
    return {"x": x, "y": y, "w": rng.integers(0, 3, rows).astype(np.float32)}


def batches(start: int):
    step = start
    while True:
        yield batch(step)
        step += 1


def partitioner(data=1, fsdp=1, tensor=1, slices=1) -> Partitioner:
    devices = jax.devices()[: data * fsdp * tensor * slices]
    return Partitioner(make_mesh(MeshConfig(data, fsdp, tensor, slices), devices))


def params(model=None, placed: Partitioner | None = None, seed=0, example=None):
    """Random parameters made on the host: nothing is compiled for them."""
    shapes = boxed(model, example)
    shardings = trees.flatten((placed or partitioner()).param_shardings(shapes))
    rng = np.random.default_rng(seed)

    def value(path, x):
        name = path.split("/")[-1]
        if name in ("scale", "bias"):
            return np.full(x.shape, float(name == "scale"), np.float32)
        return (rng.normal(size=x.shape).astype(np.float32) * np.prod(x.shape[:-1]) ** -0.5).astype(np.float32)

    flat = trees.flatten(nn.unbox(shapes))
    return trees.unflatten({p: jax.device_put(value(p, x), shardings[p]) for p, x in flat.items()})


def boxed(model=None, example=None):
    return abstract_params(model or Model(), batch(0) if example is None else example)


def program(model=None, placed: Partitioner | None = None, example=None, loss=None, **changes) -> Program:
    """The program of a run of the model."""
    model = model or Model()
    fields = dict(trainable=("adapter/.*", "head/.*"), optimizer=optimizer(), steps=6)
    shapes = batch(0) if example is None else example
    return Program(model, shapes, loss or objective(model), placed or partitioner(), **{**fields, **changes})


def optimizer(**changes) -> OptimizerConfig:
    return OptimizerConfig(**{**dict(learning_rate=0.02, warmup_steps=1), **changes})
