"""What is compiled: one training step, evaluation, generation and initialisation for each kind of adapter.

Everything is compiled ahead, side by side, and once: learning rate and length of a run are inputs, so that all seeds,
rates and arms of one kind share a program.
"""

import dataclasses
import functools
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
from vadapter.models.losses import ObjectiveConfig
from vadapter.partitioning import Partitioner
from vadapter.training.objectives import make_objective
from vadapter.training.optimizers import Optimizer, OptimizerConfig, make_optimizer
from vadapter.training.program import Program

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


class PacedProgram(Program):
    """vadapter's training step, with the optimizer above."""

    @functools.cached_property
    def update_rule(self) -> Optimizer:
        return paced(self.optimizer, self.abstract_params[0])


@dataclasses.dataclass
class Kind:
    """One kind of adapter, compiled.

    Attributes:
        name: of `models.KIND_OF`'s values.
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
    """Shapes of the experiment: rows of a training batch, pictures of a part of an evaluation, ids of a caption, and
    parts that a batch is computed in."""

    batch: int
    chunk: int
    new_ids: int = rows_lib.LENGTH
    accumulate: int = 1


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
        """Compiles `function` for the shapes of `args`; becomes `owner.name` in `finish`."""
        with self._partitioner.activate():
            lowered = jax.jit(function).lower(*struct(args, self._partitioner))
        self.add_lowered(owner, name, lowered)

    def add_lowered(self, owner: Any, name: str, lowered: jax.stages.Lowered) -> None:
        """Compiles what is lowered already; becomes `owner.name` in `finish`."""
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
) -> Kind:
    """Lays out the rows of a kind of adapter and hands its functions to the compiler.

    Args:
        name: of `models.KIND_OF`'s values.
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
    soft = model.config.num_visual_tokens(1)
    laid: list[dict[str, Any]] = [pictures.rows(text, index["prompts"][text], soft, answer) for answer in (True, False)]
    keeps_loss = name == "words_supervised"
    if keeps_loss:
        laid[0]["tiny"] = pictures.rows("smollm2", index["prompts"]["smollm2"], model.config.num_tiny_tokens(1))
    rows, prompts = jax.device_put(laid, partitioner.replicated)
    picked = np.zeros(sizes.batch, np.int32)
    program = PacedProgram(
        model,
        jax.eval_shape(rows_lib.batch_of, rows, pixels, picked, picked),
        objective=make_objective(model, ObjectiveConfig(tiny_loss=float(keeps_loss))),
        partitioner=partitioner,
        trainable=models.TRAINABLE.get(name, ("adapter/.*",)),
        optimizer=dataclasses.replace(
            OPTIMIZER, accumulate=sizes.accumulate, lr_multipliers=models.LR_MULTIPLIERS.get(name, ())
        ),
    )
    trainable, kept = program.abstract_params
    trained = trees.flatten(trainable)
    count = sum(int(np.prod(x.shape)) for x in trained.values())
    kind = Kind(name, text, frozen, list(trained), rows, prompts, count)
    compiler.add(kind, "take", rows_lib.batch_of, rows, pixels, picked, picked)
    compiler.add_lowered(kind, "train", program.lower())

    def begin(params: Any) -> tuple[Any, Any]:
        # Copies: the step reuses the memory of what it is given, and other runs start from the same arrays.
        return jax.tree.map(jnp.copy, params), program.update_rule.transform.init(params)

    compiler.add(kind, "begin", begin, trainable)
    whole = np.zeros((chunks, sizes.chunk), np.int32)
    compiler.add(kind, "evaluate", _evaluation(program), trainable, kept, rows, pixels, whole, whole)
    if name != "stage1":
        generate = _generation(program, DecodingConfig(max_new_tokens=sizes.new_ids), index["eos"][text])
        compiler.add(kind, "generate", generate, trainable, kept, prompts, pixels, whole)
    if name not in models.STARTS_AS:  # whose initial values are another kind's
        _add_starts(kind, program, compiler)
    return kind


def _evaluation(program: Program) -> Any:
    """Returns a function that sums loss, weight and right targets of each part of an evaluation."""

    def evaluate(params: Any, frozen: Any, rows: Any, pixels: Any, index: Any, media: Any) -> Any:
        def one(part: tuple[Any, Any]) -> Any:
            sums = program.objective(trees.merge(params, frozen), rows_lib.batch_of(rows, pixels, *part))
            return sums.loss_sum, sums.weight_sum, sums.correct_sum

        return jax.lax.map(one, (index, media))

    return evaluate


def _generation(program: Program, greedy: DecodingConfig, eos: int) -> Any:
    """Returns a function that writes a caption of each picture."""

    def generate(params: Any, frozen: Any, rows: Any, pixels: Any, index: Any) -> Any:
        def one(part: Any) -> Any:
            batch: Batch = rows_lib.batch_of(rows, pixels, part, part)
            return decode(program.model, trees.merge(params, frozen), batch, greedy, eos).ids

        return jax.lax.map(one, index)

    return generate


def _add_starts(kind: Kind, program: Program, compiler: Compiler) -> None:
    """Compiles what makes initial values: random ones, and queries that start at positions."""
    model: Any = program.model

    def make(key: Any) -> dict[str, Any]:
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), program.example)
        flat = trees.flatten(nn.unbox(model.init(key, zeros)["params"]))
        return {p: x for p, x in flat.items() if p.startswith("adapter/")}

    compiler.add(kind, "make", make, jax.random.key(0))
    if models.QUERIES in model.config.starts():

        def places(own: Any, frozen: Any) -> Any:
            return model.apply({"params": trees.unflatten({**own, **frozen})}, models.QUERIES, method="start")

        own = {p: x for p, x in program.shapes.items() if p not in kind.frozen}
        encoder = {p: x for p, x in kind.frozen.items() if p.startswith("encoder/")}
        compiler.add(kind, "places", places, own, encoder)
