"""What is compiled: one training step, evaluation, generation and initialisation for each kind of adapter.

Everything is compiled ahead, side by side, and once: learning rate and length of a run are inputs, so that all seeds,
rates and arms of one kind share a program.
"""

import dataclasses
from collections.abc import Mapping
from concurrent import futures
from typing import Any

import jax
import jax.numpy as jnp
import models
import numpy as np
import optax
import rows as rows_lib
from flax import linen as nn

from vadapter.base import trees
from vadapter.base.batch import Batch
from vadapter.generation.config import DecodingConfig
from vadapter.generation.decoding import decode
from vadapter.models import adapters
from vadapter.partitioning import Partitioner, abstract_params
from vadapter.training import freezing, state
from vadapter.training.objectives import vlm_objective
from vadapter.training.optimizers import Optimizer, OptimizerConfig, make_optimizer
from vadapter.training.step import make_train_step

OPTIMIZER = OptimizerConfig(clip_norm=1.0, schedule="constant", warmup_steps=0)
WARMUP = 0.1  # share of a run


def paced(config: OptimizerConfig, params: Any) -> Optimizer:
    """vadapter's optimizer with its warm-up and cosine, highest rate and length of the run being part of the state."""

    def init(params: Any) -> dict[str, Any]:
        inner = make_optimizer(config, params, 1).transform.init(params)
        return {"peak": jnp.zeros(()), "steps": jnp.ones(()), "done": jnp.zeros(()), "inner": inner}

    def update(gradients: Any, now: dict[str, Any], params: Any) -> tuple[Any, dict[str, Any]]:
        warm = WARMUP * now["steps"]
        rise = jnp.minimum(1.0, (now["done"] + 1) / warm)
        left = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip((now["done"] - warm) / (now["steps"] - warm), 0.0, 1.0)))
        rate: Any = now["peak"] * rise * left
        step = make_optimizer(dataclasses.replace(config, learning_rate=rate), params, 1).transform
        updates, inner = step.update(gradients, now["inner"], params)
        return updates, {**now, "done": now["done"] + 1, "inner": inner}

    return Optimizer(optax.GradientTransformation(init, update), make_optimizer(config, params, 1).schedule)


@dataclasses.dataclass
class Program:
    """One kind of adapter.

    Attributes:
        name: of `models.PROGRAM_OF`'s values.
        text: the tokeniser of its rows.
        frozen: `{slash path: array}` of all that it never trains but the adapter's own frozen part.
        trained: paths that it trains.
        rows, prompts: rows with and without their captions, on the device.
        train, evaluate, generate, make, places, begin, take: compiled functions; `places` where there are queries.
        parameters: trained ones.
    """

    name: str
    text: str
    frozen: Mapping[str, Any]
    trained: list[str]
    rows: Mapping[str, jax.Array]
    prompts: Mapping[str, jax.Array]
    parameters: int
    train: Any = None
    evaluate: Any = None
    generate: Any = None
    make: Any = None
    places: Any = None
    begin: Any = None
    take: Any = None


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Shapes of the experiment: rows of a training batch, pictures of a part of an evaluation, ids of a caption."""

    batch: int
    chunk: int
    new_ids: int = rows_lib.LENGTH


def struct(x: Any, partitioner: Partitioner) -> Any:
    """Returns the shapes of a tree of arrays."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=partitioner.replicated), x)


class Compiler:
    """Lowers functions one by one and compiles them side by side."""

    def __init__(self, partitioner: Partitioner):
        self._partitioner = partitioner
        self._pool = futures.ThreadPoolExecutor(16)
        self._pending: list[tuple[Any, str, futures.Future]] = []

    def add(self, owner: Any, name: str, function: Any, *args: Any) -> None:
        """Compiles `function` (jitted or not) for the shapes of `args`; becomes `owner.name` in `finish`."""
        jitted = function if hasattr(function, "lower") else jax.jit(function)
        with self._partitioner.activate():
            lowered = jitted.lower(*struct(args, self._partitioner))
        self._pending.append((owner, name, self._pool.submit(lowered.compile)))

    def finish(self) -> list[Any]:
        """Waits for all; returns the owners of what could not be compiled, for the others may do all the same."""
        failed = []
        for owner, name, compiled in self._pending:
            try:
                setattr(owner, name, compiled.result())
            except Exception as e:
                print(
                    f"{getattr(owner, 'name', 'hidden')}.{name} cannot be compiled: {type(e).__name__}: {e}", flush=True
                )
                failed.append(owner)
        self._pending = []
        return failed


def build(
    name: str,
    model: Any,
    frozen: Mapping[str, Any],
    pictures: rows_lib.Pictures,
    pixels: jax.Array,
    index: Mapping[str, Any],
    sizes: Sizes,
    chunks: int,
    compiler: Compiler,
    partitioner: Partitioner,
) -> Program:
    """Lays out the rows of a program and hands its functions to the compiler.

    Args:
        name: of `models.PROGRAM_OF`'s values.
        model: its model.
        frozen: `{slash path: array}` of encoder and, in stage 2, decoder.
        pictures: all of them.
        pixels: of all pictures, on the device.
        index: the pack's `index.json`.
        sizes: shapes.
        chunks: parts of `sizes.chunk` pictures that an evaluation has.
        compiler: compiles.
        partitioner: places all arrays.
    """
    text = "smollm2" if name == "stage1" else "gemma3"
    soft = adapters.num_tokens(model.config.adapter, 1, model.config.encoder.num_patches)
    laid = [pictures.rows(text, index["prompts"][text], soft, answer) for answer in (True, False)]
    rows, prompts = jax.device_put(laid, partitioner.replicated)
    picked = np.zeros(sizes.batch, np.int32)
    example = jax.eval_shape(rows_lib.batch_of, rows, pixels, picked, picked)
    params = trees.flatten(nn.unbox(abstract_params(model, example)))
    trainable, _ = freezing.partition(trees.unflatten(params), models.TRAINABLE.get(name, (r"adapter/.*",)))
    trained = trees.flatten(trainable)
    own = {p: x for p, x in params.items() if p not in frozen}
    count = sum(int(np.prod(x.shape)) for x in trained.values())
    program = Program(name, text, frozen, list(trained), rows, prompts, count)

    objective = vlm_objective(model)
    optimizer = paced(OPTIMIZER, trainable)
    abstract = state.abstract_state(optimizer, trainable)
    everywhere = jax.tree.map(lambda _: partitioner.replicated, abstract)
    kept = {p: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16) for p, x in params.items() if p not in trained}
    kept_tree = trees.unflatten(kept)
    step = make_train_step(
        objective,
        optimizer,
        state_shardings=everywhere,
        frozen_shardings=jax.tree.map(lambda _: partitioner.replicated, kept_tree),
        batch_sharding=partitioner.batch_sharding,
        replicated=partitioner.replicated,
    )
    compiler.add(program, "train", step, abstract, kept_tree, example)
    whole = np.zeros((chunks, sizes.chunk), np.int32)

    def evaluate(params: Any, frozen: Any, rows: Any, pixels: Any, index: Any, media: Any) -> Any:
        def one(part: tuple[Any, Any]) -> Any:
            sums = objective(trees.merge(params, frozen), rows_lib.batch_of(rows, pixels, *part))
            return sums.loss_sum, sums.weight_sum, sums.correct_sum

        return jax.lax.map(one, (index, media))

    compiler.add(program, "evaluate", evaluate, trainable, kept_tree, rows, pixels, whole, whole)
    greedy, eos = DecodingConfig(max_new_tokens=sizes.new_ids), index["eos"][text]

    def generate(params: Any, frozen: Any, rows: Any, pixels: Any, index: Any) -> Any:
        def one(part: Any) -> Any:
            batch: Batch = rows_lib.batch_of(rows, pixels, part, part)
            return decode(model, trees.merge(params, frozen), batch, greedy, eos).ids

        return jax.lax.map(one, index)

    if name != "stage1":
        compiler.add(program, "generate", generate, trainable, kept_tree, prompts, pixels, whole)

    def make(key: Any) -> dict[str, Any]:
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), example)
        flat = trees.flatten(nn.unbox(model.init(key, zeros)["params"]))
        return {p: x for p, x in flat.items() if p.startswith("adapter/")}

    def begin(params: Any) -> tuple[Any, Any]:
        # Copies: the step reuses the memory of what it is given, and other runs start from the same arrays.
        return jax.tree.map(jnp.copy, params), optimizer.transform.init(params)

    compiler.add(program, "begin", begin, trainable)
    if name in models.STARTS_AS:
        return program  # its initial values are another program's
    compiler.add(program, "make", make, jax.random.key(0))
    if isinstance(model.config.adapter, adapters.LMAdapterConfig):
        size = model.config.encoder.image_size
        grey = np.full((1, 1, 1, size, size, 3), 128, np.uint8)  # as vadapter.training.initialize has it

        def places(own: Any, frozen: Any) -> Any:
            return model.apply({"params": trees.unflatten({**own, **frozen})}, grey, method="query_places")

        compiler.add(program, "places", places, own, {p: x for p, x in frozen.items() if p.startswith("encoder/")})
    return program
