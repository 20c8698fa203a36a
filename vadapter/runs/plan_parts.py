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

from vadapter.base import trees
from vadapter.base.batch import Batch
from vadapter.base.errors import UserError
from vadapter.generation.decoding import DecodingConfig, make_generate
from vadapter.models import flops, stacks
from vadapter.partitioning import Partitioner, make_mesh
from vadapter.planning.search import Setting
from vadapter.runs import tiny_text
from vadapter.runs.experiment import Experiment, Parts, packed_example
from vadapter.training import freezing
from vadapter.training.program import Program


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
            UserError: it has no rows, or not as many in each micro-batch; it is to hold videos, and the model reads
                none.
        """
        model, data = self.experiment.model, self.experiment.data
        accumulate = self.experiment.train.optimizer.accumulate
        if data.batch_size < 1 or accumulate < 1 or data.batch_size % accumulate:
            raise UserError(
                f"Expected batches that divide into OptimizerConfig.accumulate = {accumulate} micro-batches of one row "
                f"or more, found batches of {data.batch_size} rows. Change BATCH_SIZE or OptimizerConfig.accumulate."
            )
        if self.video and (model.encoder is None or model.num_frames == 1):
            raise UserError("--video plans batches of videos, and this model reads none (VLMConfig.num_frames).")
        frames = model.num_frames if self.video else 1
        example = packed_example(model.example_batch(data.batch_size, data.lengths, frames=frames), data)
        return tiny_text.example(self.experiment, example)

    @functools.cached_property
    def program(self) -> Program:
        """The training step, of shapes."""
        train = self.experiment.train
        return train.program(self.model, self.example, self.objective, self.partitioner, self.known)

    def lower_decode(self, decoding: DecodingConfig, rows: int) -> jax.stages.Lowered:
        """Lowers the generation of texts for `rows` prompts.

        Raises:
            UserError: the model generates no text, or `rows` do not fit the mesh.
        """
        if self.experiment.model.vocab_size is None:
            raise UserError("--decode plans the generation of text, and this model writes none. Leave it out.")
        self.partitioner.check_rows(rows)
        # Nothing is an end token: every row goes on to the limit, as the longest text does.
        model: Any = self.model
        generate = make_generate(model, self.partitioner, decoding, end_ids=())
        unpacked = self.experiment.model.example_batch(rows, self.experiment.data.lengths, self.example.media.shape[2])
        length = unpacked.tokens.shape[1] - self.experiment.data.lengths["targets"]
        texts = ("tokens", "segment_ids", "positions", "media_index")

        def prompt(name: str) -> Any:
            x = getattr(self.program.abstract_batch, name)
            shape = (rows, length) if name in texts else getattr(unpacked, name).shape
            return jax.ShapeDtypeStruct(shape, x.dtype, sharding=x.sharding)

        names = (f.name for f in dataclasses.fields(Batch) if f.name != "tiny")
        prompts = Batch(**{name: prompt(name) for name in names})
        return jax.jit(generate).lower(trees.merge(*self.program.abstract_params), prompts)

    def useful_flops(self) -> dict[str, float]:
        """FLOPs of a step that are needed, by part: frozen parts cost less, and no row is padded."""
        return self.flops()(self.full_batch())

    def tokens(self) -> int:
        """Text and visual tokens of a step that the decoder reads."""
        return flops.count(self.full_batch()).tokens

    def full_batch(self) -> Any:
        """A batch without padding. Its media stay shapes: nothing that counts reads them."""
        full = jax.tree.map(lambda x: np.ones(x.shape, x.dtype) if x.ndim <= 2 else x, self.example)
        if packing := self.experiment.data.packing:  # as many segments as samples are drawn, of equal lengths
            slots, targets = full.tokens.shape[1], full.target_ids.shape[1]
            segments = 1 + np.arange(slots, dtype=np.int32) * packing.samples // slots
            positions = np.arange(targets, dtype=np.int32) * slots // targets
            full = full.replace(
                segment_ids=full.segment_ids * segments, target_positions=full.target_positions * positions
            )
        return full

    def summary(self) -> list[freezing.PartSummary]:
        """Parameters and bytes of each part, of the whole arrays."""
        state = self.program.abstract_state
        return freezing.summarize(*self.program.abstract_params, (state.opt_state, state.ema))

    def argument_bytes(self) -> int:
        """Bytes of the state, the frozen parameters and the batch on one device: less a step cannot need."""
        program = self.program
        leaves = jax.tree.leaves((program.abstract_state, program.abstract_params[1], program.abstract_batch))
        return sum(int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize for x in leaves)


def setting_of(experiment: Experiment, parts: PlannedParts) -> Setting:
    """Returns what an experiment says of all that a search may change.

    Where there is no backward pass, because nothing up to there is trained, remat makes no difference and is left out.
    """
    shape, model, program = parts.partitioner.mesh.shape, experiment.model, parts.program
    found = stacks.layer_stacks(model)
    counters = flops.counters(model.parts, trees.unflatten(program.shapes), program.storage.trained)
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
