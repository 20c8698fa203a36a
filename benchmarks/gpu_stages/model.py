"""The model of the paper's stage 2 as gin/experiments/paper_stage2_*.gin has it, with random weights, and its step."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpu_stages.record import gib
from vadapter.base import trees
from vadapter.base.batch import Batch
from vadapter.models import stacks, variants
from vadapter.models.adapters import LMAdapterConfig
from vadapter.models.resampler import PerceiverConfig
from vadapter.models.vlm import VLMConfig
from vadapter.partitioning import MeshConfig, Partitioner, make_mesh
from vadapter.training.optimizers import OptimizerConfig
from vadapter.training.program import Program
from vadapter.training.storage import FROZEN_DTYPE, Storage

PROMPT, TARGETS, FRAMES = 16, 64, 8
TRAINABLE = ("adapter/.*",)
_SMALL_LM = {"width": 64, "depth": 2, "num_heads": 2, "head_dim": 32, "mlp_dim": 128}


def one_device() -> Partitioner:
    """Returns a mesh of the first device."""
    return Partitioner(make_mesh(MeshConfig(), jax.devices()[:1]))


def config(encoder: str, decoder: str, small: bool, attention: str = "xla", remat: str = "dots") -> VLMConfig:
    """Returns the configuration of a recipe.

    Args:
        encoder: a variant, such as `vit_g`.
        decoder: a variant, such as `palm_8b`.
        small: a few layers of the same kinds, for a rehearsal.
        attention: `attention_impl` of every part.
        remat: of the decoder and the tiny LM.
    """
    vit = {"image_size": 32, "patch_size": 8, "width": 64, "depth": 2, "num_heads": 2, "mlp_dim": 128} if small else {}
    lm: dict[str, Any] = _SMALL_LM | {"vocab_size": 512} if small else {}
    front = {"num_queries": 16, "query_dim": 32, "hidden_dim": 64, "num_heads": 2} if small else {"num_queries": 256}
    shared: dict[str, Any] = {"attention_impl": attention}
    tiny = variants.decoder("palm_108m", **lm, **shared, remat=remat)
    return VLMConfig(
        decoder=variants.decoder(decoder, **lm, **shared, remat=remat),
        encoder=variants.encoder(encoder, **vit, **shared),
        adapter=LMAdapterConfig(tiny, PerceiverConfig(num_layers=1, num_frames=FRAMES, **front, **shared)),
        num_frames=FRAMES,
    )


def batch(config: VLMConfig, rows: int) -> Batch:
    """Makes rows of an image, a prompt and a caption, all of full length: no slot is padding."""
    rng = np.random.default_rng(0)
    visual = config.num_visual_tokens(1)
    length, vocab_size = visual + PROMPT + TARGETS, config.decoder.vocab_size
    slots = np.arange(length, dtype=np.int32)
    index = np.tile(np.where(slots < visual, slots, -1), (rows, 1)).astype(np.int32)
    size = config.encoder.image_size if config.encoder else 1
    return Batch(
        tokens=np.where(index < 0, rng.integers(1, vocab_size, index.shape), 0).astype(np.int32),
        segment_ids=np.ones_like(index),
        positions=np.tile(slots, (rows, 1)),
        media_index=index,
        media=rng.integers(0, 256, (rows, 1, 1, size, size, 3), np.uint8),
        target_positions=np.tile(slots[-TARGETS - 1 : -1], (rows, 1)),
        target_ids=rng.integers(1, vocab_size, (rows, TARGETS)).astype(np.int32),
        target_weights=np.ones((rows, TARGETS), np.float32),
    )


def program(
    config: VLMConfig, rows: int = 1, frozen_dtype: str = FROZEN_DTYPE, accumulate: int = 1, boxed: Any = None
) -> Program:
    """Returns the recipe's training step of a model on the first device.

    Args:
        config: of the model.
        rows: of a batch.
        frozen_dtype: how frozen parameters are kept.
        accumulate: micro-batches.
        boxed: the model's abstract parameters, where they were made before.
    """
    return Program(
        config.make(),
        batch(config, rows),
        partitioner=one_device(),
        trainable=TRAINABLE,
        frozen_dtype=frozen_dtype,
        optimizer=OptimizerConfig(accumulate=accumulate),
        steps=60_000,
        boxed=boxed,
    )


def random_params(structs: trees.Tree) -> dict[str, Any]:
    """Makes random parameters where they belong, from their shapes, dtypes and shardings."""
    flat = trees.flatten(structs)

    def make(seed: Any, path: str, x: Any) -> Any:
        name = path.split("/")[-1]
        if name in ("scale", "bias"):
            return jnp.full(x.shape, float(name == "scale"), x.dtype)
        # Spread by the inputs of a kernel: all axes but the layers and the outputs.
        shape = x.shape[1:] if stacks.is_stacked(path) else x.shape
        outputs = 1 if len(shape) <= 2 or path.endswith("out/kernel") else 2
        inputs = shape[-1] if name != "kernel" else int(np.prod(shape[:-outputs]))
        return (_noise(seed, x.shape) * (3 / inputs) ** 0.5).astype(x.dtype)

    def make_all(seed: Any) -> dict[str, Any]:
        return {path: make(seed + i, path, x) for i, (path, x) in enumerate(flat.items())}

    # The seed is an argument, lest the compiler take all for constants.
    made = jax.jit(make_all, out_shardings={path: x.sharding for path, x in flat.items()})(jnp.uint32(1))
    return trees.unflatten(made)


def _noise(seed: Any, shape: tuple[int, ...]) -> Any:
    """Returns numbers spread evenly over -1..1: MurmurHash3's last steps on each index.

    Unlike those of jax.random it is one elementwise kernel, which needs no memory besides its result's.
    """
    stride, x = 1, seed * jnp.uint32(0x9E3779B1)
    for axis in reversed(range(len(shape))):
        x = x + jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride % 2**32)
        stride *= shape[axis]
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ (x >> shift)) * jnp.uint32(factor)
    x = x ^ (x >> 16)
    return x.astype(jnp.float32) * 2.0**-31 - 1


class Steps:
    """The training step of one model with random parameters, for any batch size and variant of its configuration.

    Attributes:
        config: of the model.
        trainable: the trained parameters; copied for each use, as a step takes its state over.
        frozen: the frozen ones.
    """

    def __init__(self, config: VLMConfig, frozen_dtype: str = FROZEN_DTYPE):
        """Makes the parameters. `frozen_dtype` says how the frozen ones are kept."""
        self.config, self._frozen_dtype = config, frozen_dtype
        made = program(config)
        self.trainable, self.frozen = made.storage.split(random_params(trees.merge(*made.abstract_params)))
        self._boxed, self.flops_of = made.boxed, flops_of(made)
        if frozen_dtype != FROZEN_DTYPE:
            # All kernels in one program: to compile one for each takes longer than the rest of the stage.
            kept = program(config, frozen_dtype=frozen_dtype, boxed=made.boxed).abstract_params[1]
            shardings = jax.tree.map(lambda x: x.sharding, kept)
            keep = Storage((), frozen_dtype).keep_all
            self.frozen = jax.jit(keep, out_shardings=shardings)(self.frozen)

    def measure(self, config: VLMConfig, rows: int, timed: Callable, entry: dict[str, Any], accumulate: int) -> None:
        """Compiles and times a step.

        Args:
            config: a variant of the model's configuration with the same parameters.
            rows: of the batch.
            timed: a function of (a function that makes one step) that returns its times.
            entry: is filled in as figures come.
            accumulate: micro-batches.
        """
        made = program(config, rows, self._frozen_dtype, accumulate, self._boxed)
        # A copy under jit: a step takes over the buffers of its state.
        copied = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))(self.trainable)
        state, frozen = made.start(trees.merge(copied, self.frozen))
        placed = made.put(made.example)
        start = time.perf_counter()
        compiled = made.lower().compile()
        entry["compile_s"] = round(time.perf_counter() - start, 2)
        if memory := compiled.memory_analysis():
            entry["planned_gib"] = gib(memory.argument_size_in_bytes + memory.temp_size_in_bytes)
            entry["temporary_gib"] = gib(memory.temp_size_in_bytes)
        metrics: dict[str, Any] = {}

        def update() -> None:
            nonlocal state, metrics
            state, metrics = compiled(state, frozen, placed)
            jax.block_until_ready((state, metrics))

        entry |= timed(update)
        entry["loss"] = round(float(metrics["loss"]), 4)
        if stats := jax.devices()[0].memory_stats():
            entry["peak_gib_of_process"] = gib(stats["peak_bytes_in_use"])


def flops_of(program: Program) -> Callable[[Batch], dict[str, float]]:
    """Returns the library's own count of a step's needed FLOPs by part; frozen parts count for less."""
    return program.model.config.flops(trees.unflatten(program.shapes), program.storage.trained)
