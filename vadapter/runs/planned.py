"""The programs of an experiment on devices that this machine need not have: what `vadapter plan` compiles.

They are made by the functions that training and evaluation use, of shapes in place of arrays; no data are read and no
weights are opened.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec

from vadapter.base import trees
from vadapter.base.batch import Batch
from vadapter.base.errors import UserError
from vadapter.generation.decoding import DecodingConfig, make_generate
from vadapter.models import flops, stacks
from vadapter.partitioning import Partitioner, make_mesh
from vadapter.planning.search import Setting
from vadapter.runs.experiment import Experiment, Parts
from vadapter.training import freezing, optimizers, state, step


@dataclasses.dataclass
class PlannedParts(Parts):
    """The parts of an experiment on given devices.

    Attributes:
        devices: of a topology.
        video: whether batches hold videos of the model's frames, in place of still images.
        known: shapes of all parameters, if they were made before: a search makes them once.
    """

    devices: Sequence[Any] = ()
    video: bool = False
    known: Any = None

    @functools.cached_property
    def partitioner(self) -> Partitioner:
        return Partitioner(make_mesh(self.experiment.mesh, self.devices), tuple(self.experiment.rules))

    @functools.cached_property
    def example(self) -> Any:
        """Shapes of a global batch.

        Raises:
            UserError: it is to hold videos, and the model reads none.
        """
        model, data = self.experiment.model, self.experiment.data
        if self.video and (model.encoder is None or model.num_frames == 1):
            raise UserError("--video plans batches of videos, and this model reads none (VLMConfig.num_frames).")
        return model.example_batch(data.batch_size, data.lengths, frames=model.num_frames if self.video else 1)

    @functools.cached_property
    def abstract(self) -> Any:
        """Shapes of all parameters, with their logical axes."""
        return super().abstract if self.known is None else self.known

    @functools.cached_property
    def params(self) -> tuple[Any, Any]:
        """(trained, frozen) parameters as a run stores them: shapes, dtypes and shardings."""
        train = self.experiment.train
        shardings = trees.flatten(self.partitioner.param_shardings(self.abstract))
        both = freezing.partition(nn.unbox(self.abstract), train.trainable)

        def stored(path: str, x: Any, trained: bool) -> Any:
            if freezing.is_quantized(path, trained, train.frozen_dtype):
                return _quantized(path, x, shardings[path])
            dtype = freezing.storage_dtype(path, x.dtype, trained, train.frozen_dtype)
            return jax.ShapeDtypeStruct(x.shape, dtype, sharding=shardings[path])

        trained, frozen = (
            trees.unflatten({path: stored(path, x, trained) for path, x in trees.flatten(tree).items()})
            for tree, trained in zip(both, (True, False), strict=True)
        )
        return trained, frozen

    @functools.cached_property
    def optimizer(self) -> optimizers.Optimizer:
        train = self.experiment.train
        return optimizers.make_optimizer(train.optimizer, self.params[0], train.steps)

    @functools.cached_property
    def train_state(self) -> state.TrainState:
        """Shapes and shardings of the training state."""
        trained = self.params[0]
        abstract = state.abstract_state(self.optimizer, trained)
        shardings = state.state_shardings(
            abstract, jax.tree.map(lambda x: x.sharding, trained), self.partitioner.replicated
        )
        return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings)

    @functools.cached_property
    def placed_batch(self) -> Any:
        """Shapes and shardings of a global batch."""
        put = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.partitioner.batch_sharding)  # noqa: E731
        return jax.tree.map(put, self.example)

    def lower_train_step(self) -> jax.stages.Lowered:
        """Lowers the training step for the devices; the options of the TPU compiler are left to who compiles it.

        Raises:
            UserError: batch, parameters or mesh do not fit one another.
        """
        self.partitioner.check_rows(self.experiment.data.batch_size)
        sharding_of = lambda tree: jax.tree.map(lambda x: x.sharding, tree)  # noqa: E731
        train_step: Any = step.make_train_step(
            self.objective,
            self.optimizer,
            state_shardings=sharding_of(self.train_state),
            frozen_shardings=sharding_of(self.params[1]),
            batch_sharding=self.partitioner.batch_sharding,
            replicated=self.partitioner.replicated,
            accumulate=self.experiment.train.optimizer.accumulate,
        )
        with self.partitioner.activate():
            return train_step.lower(self.train_state, self.params[1], self.placed_batch)

    def lower_decode(self, decoding: DecodingConfig, rows: int) -> jax.stages.Lowered:
        """Lowers the generation of texts for `rows` prompts.

        Raises:
            UserError: the model generates no text, or as `lower_train_step`.
        """
        if self.experiment.model.vocab_size is None:
            raise UserError("--decode plans the generation of text, and this model writes none. Leave it out.")
        self.partitioner.check_rows(rows)
        # No id is the end token: every row goes on to the limit, as the longest text does.
        model: Any = self.model
        generate = make_generate(model, self.partitioner, decoding, eos_id=-1)
        length = self.example.tokens.shape[1] - self.experiment.data.lengths["targets"]
        texts = ("tokens", "segment_ids", "positions", "media_index")

        def prompt(name: str) -> Any:
            x = getattr(self.placed_batch, name)
            shape = (rows, length) if name in texts else (rows, *x.shape[1:])
            return jax.ShapeDtypeStruct(shape, x.dtype, sharding=x.sharding)

        prompts = Batch(**{f.name: prompt(f.name) for f in dataclasses.fields(self.placed_batch)})
        return jax.jit(generate).lower(trees.merge(*self.params), prompts)

    def useful_flops(self) -> dict[str, float]:
        """FLOPs of a step that are needed, by part: frozen parts cost less, and no row is padded."""
        return self.flops()(self.full_batch())

    def tokens(self) -> int:
        """Text and visual tokens of a step that the decoder reads."""
        return flops.count(self.full_batch()).tokens

    def full_batch(self) -> Any:
        """A batch without padding. Its media stay shapes: nothing that counts reads them."""
        ones = {
            f.name: np.ones(x.shape, x.dtype)
            for f in dataclasses.fields(self.example)
            if (x := getattr(self.example, f.name)).ndim <= 2
        }
        return self.example.replace(**ones)

    def summary(self) -> list[freezing.PartSummary]:
        """Parameters and bytes of each part, of the whole arrays."""
        return freezing.summarize(*self.params, self.train_state.opt_state)

    def argument_bytes(self) -> int:
        """Bytes of the state, the frozen parameters and the batch on one device: less a step cannot need."""
        leaves = jax.tree.leaves((self.train_state, self.params[1], self.placed_batch))
        return sum(int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize for x in leaves)


def _quantized(path: str, x: Any, sharding: NamedSharding) -> Any:
    """Shapes and shardings of a quantised kernel; its scale has size 1 in the axes that are summed over."""
    made = jax.eval_shape(functools.partial(stacks.quantize, path), jax.ShapeDtypeStruct(x.shape, x.dtype))
    spec = [*sharding.spec, *[None] * (len(x.shape) - len(sharding.spec))]

    def placed(leaf: Any) -> Any:
        axes = PartitionSpec(*(a if n == m else None for a, n, m in zip(spec, leaf.shape, x.shape, strict=True)))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(sharding.mesh, axes))

    return jax.tree.map(placed, made)


def setting_of(experiment: Experiment, parts: PlannedParts) -> Setting:
    """Returns what an experiment says of all that a search may change.

    Where there is no backward pass, because nothing up to there is trained, remat makes no difference and is left out.
    """
    shape, model = parts.partitioner.mesh.shape, experiment.model
    found = stacks.layer_stacks(model)
    counters = flops.counters(model.parts, nn.unbox(parts.abstract), trees.flatten(parts.params[0]))
    return Setting(
        shape["data"],
        shape["fsdp"],
        shape["tensor"],
        experiment.train.optimizer.accumulate,
        tuple((part, config.remat) for part, config in found.items() if counters[part.split("/")[0]].flows),
        tuple((part, config.attention_impl) for part, config in found.items()),
    )


def with_setting(experiment: Experiment, setting: Setting) -> Experiment:
    """Returns the experiment with another setting."""
    mesh = dataclasses.replace(experiment.mesh, data=setting.data, fsdp=setting.fsdp, tensor=setting.tensor)
    optimizer = dataclasses.replace(experiment.train.optimizer, accumulate=setting.accumulate)
    train = dataclasses.replace(experiment.train, optimizer=optimizer)
    model: Any = experiment.model
    for part, config in stacks.layer_stacks(model).items():
        remat = dict(setting.remat).get(part, config.remat)
        model = stacks.with_stack(model, part, remat=remat, attention_impl=dict(setting.attention)[part])
    return dataclasses.replace(experiment, mesh=mesh, train=train, model=model)
