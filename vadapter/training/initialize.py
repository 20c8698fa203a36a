"""Parameters of a run: read from other runs, each to the devices that hold it, and at random what no source gives.

A run's checkpoint holds what the run trained. Everything else it took from `Source`s, and the checkpoint records them:
`restore` reads them again, refuses other weights than the run had, and lays the run's own parameters over them.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Sharding

from vadapter.base import trees
from vadapter.base.array_types import Array, PyTree
from vadapter.base.errors import UserError
from vadapter.base.paths import relative, resolve
from vadapter.models import stacks
from vadapter.partitioning import Partitioner, init_params
from vadapter.training import checkpoints, freezing
from vadapter.training.sources import Offer, Reference, Source, check_fits, check_same, look, rename

__all__ = ["Reference", "Restored", "Source", "assemble", "check_same", "initial_params", "rename", "restore"]


def _print_once(line: str) -> None:
    if jax.process_index() == 0:
        print(line, flush=True)


def initial_params(
    model: nn.Module,
    example: Any,
    rng: Array,
    partitioner: Partitioner,
    *,
    trainable: Sequence[str],
    sources: Sequence[Source] = (),
    model_dir: str,
    frozen_dtype: str = "bfloat16",
    say: Callable[[str], None] = _print_once,
) -> tuple[dict[str, Any], list[Reference]]:
    """Makes a run's parameters: from its sources, and at random what no source gives.

    Each process reads what its devices hold and nothing else. A later source wins over an earlier one.

    Args:
        model: a module called on one batch.
        example: a batch of arrays or shape structs.
        rng: key of `jax.random.key`.
        partitioner: places the parameters.
        trainable: patterns of the parameters to train; see `freezing.partition`.
        sources: other runs.
        model_dir: folder of this run.
        frozen_dtype: dtype in which frozen parameters are kept; see `loop.TrainConfig`.
        say: is given a line a source: what was taken, and what was left.

    Returns:
        Nested dict of all parameters on the device (trained ones f32), and the references for the checkpoint.

    Raises:
        UserError: as `sources.look`; or a frozen parameter comes from no source.
    """
    boxed = jax.eval_shape(model.init, jax.random.key(0), example)["params"]
    abstract = trees.flatten(nn.unbox(boxed))
    trained_tree, frozen_tree = freezing.partition(nn.unbox(boxed), trainable)
    frozen = trees.flatten(frozen_tree)
    offers = [look(source, abstract) for source in sources]
    taken = {path for offer in offers for path in offer.taken}
    _check_covered(frozen, taken, [s.path for s in sources])
    storage = _Storage(partitioner, boxed, trees.flatten(trained_tree), frozen_dtype)
    references = [offer.reference(relative(offer.folder, model_dir), frozen) for offer in offers]
    params = _read(offers, taken, storage)
    for offer in offers:
        say(offer.summary())
    if rest := [p for p in abstract if p not in taken]:
        random = init_params(model, example, rng, partitioner, only=rest)
        params |= trees.flatten(freezing.cast(random, is_trainable=True))
    config = getattr(model, "config", None)
    for path in [p for p in getattr(config, "starts", dict)() if p in rest]:
        params[path] = _start(model, path, trees.unflatten(params), storage.shardings[path])
    return trees.unflatten(params), references


def _start(model: nn.Module, path: str, params: PyTree, sharding: Sharding) -> Any:
    """The first value of a parameter that starts from others; see `AdapterConfig`."""
    run = jax.jit(lambda params: model.apply({"params": params}, path, method="start"), out_shardings=sharding)
    return run(params)


@dataclasses.dataclass(frozen=True)
class Restored:
    """A run's model as it was at a step.

    Attributes:
        params: nested dict of all parameters on the device, dtypes as in training.
        step: of the checkpoint.
        run: the checkpoint's JSON object.
    """

    params: dict[str, Any]
    step: int
    run: dict[str, Any]


def restore(
    model_dir: str, boxed: PyTree, partitioner: Partitioner, step: int | None = None, frozen_dtype: str | None = None
) -> Restored:
    """Reads a trained model: the run's sources again, checked by hash, under the parameters that the run trained.

    Args:
        model_dir: a MODEL_DIR, or one of its `checkpoint_<step>` folders.
        boxed: the model's abstract parameters (`partitioning.abstract_params`).
        partitioner: places the parameters; need not be that of the training.
        step: which checkpoint; default the latest.
        frozen_dtype: dtype of the frozen parameters; default the one that the run trained with.

    Raises:
        UserError: a checkpoint is missing, a source has other weights than the run had, or shapes differ.
    """
    model_dir, step = checkpoints.locate(model_dir, step)
    with checkpoints.Checkpointer(model_dir, read_only=True) as checkpointer:
        run, stored = checkpointer.run(step), checkpointer.shapes(step)
        check_fits(stored, trees.flatten(nn.unbox(boxed)), f"{model_dir}/checkpoint_{step}")
        dtype: str = frozen_dtype or run.get("frozen_dtype", "bfloat16")
        storage = _Storage(partitioner, boxed, stored, dtype)
        own = checkpointer.read(step, {path: storage.struct(path, x) for path, x in stored.items()})
    params = assemble(
        own,
        [Reference.from_json(r) for r in run["sources"]],
        boxed,
        partitioner,
        resolve=lambda reference: resolve(reference.path, model_dir),
        frozen_dtype=dtype,
        what=f"The run {model_dir}",
    )
    return Restored(params, step, run)


def assemble(
    own: Mapping[str, Any],
    references: Sequence[Reference],
    boxed: PyTree,
    partitioner: Partitioner,
    *,
    resolve: Callable[[Reference], str],
    frozen_dtype: str,
    what: str,
    untrained: Collection[str] = (),
) -> dict[str, Any]:
    """Lays trained parameters over what their run took from other runs, which is read again and checked by hash.

    Args:
        own: `{slash path: array}` of what was trained: numpy arrays, or f32 arrays that lie where they belong.
        references: what the run took; those of initial values only are not needed.
        boxed: the model's abstract parameters (`partitioning.abstract_params`).
        partitioner: places the parameters.
        resolve: gives the folder to read a reference from.
        frozen_dtype: dtype in which frozen parameters are kept; see `loop.TrainConfig`.
        what: whose parameters these are, for errors, such as "The run runs/queries".
        untrained: paths of `own` that were frozen all the same, and so are kept as frozen ones are.

    Returns:
        Nested dict of all parameters on the device (trained ones f32).

    Raises:
        UserError: `own` does not fit the model, or a source is missing or has other weights than the run had; or a
            parameter is neither in `own` nor in a reference.
    """
    abstract = trees.flatten(nn.unbox(boxed))
    check_fits(own, abstract, what)
    frozen = [path for path in abstract if path not in own]
    storage = _Storage(partitioner, boxed, own.keys() - set(untrained), frozen_dtype)
    offers = []
    for reference in references:
        if reference.frozen:
            offer = look(Source(resolve(reference), reference.rules, reference.step), abstract)
            check_same(reference, offer.reference(offer.folder, frozen), what)
            offers.append(offer)
    _check_covered(frozen, {p for offer in offers for p in offer.taken}, [r.path for r in references])
    params = _read(offers, frozen, storage)
    placed = {path: x if isinstance(x, jax.Array) else storage.place(path, x) for path, x in own.items()}
    return trees.unflatten({**params, **placed})


class _Storage:
    """How a run keeps each parameter: where, in which dtype, quantised or not.

    Args:
        partitioner: places the parameters.
        boxed: the model's abstract parameters.
        trained: paths that the run trains or trained.
        frozen_dtype: of the others.
    """

    def __init__(self, partitioner: Partitioner, boxed: PyTree, trained: Collection[str], frozen_dtype: str):
        self.shardings: dict[str, Sharding] = trees.flatten(partitioner.param_shardings(boxed))
        self._trained, self._frozen_dtype = trained, frozen_dtype

    def quantizes(self, path: str) -> bool:
        return freezing.is_quantized(path, path in self._trained, self._frozen_dtype)

    def struct(self, path: str, stored: Any) -> jax.ShapeDtypeStruct:
        """Returns what to read a parameter as. What is quantised afterwards keeps its dtype, and so its precision."""
        dtype = freezing.storage_dtype(path, stored.dtype, path in self._trained, self._frozen_dtype)
        dtype = stored.dtype if self.quantizes(path) else dtype
        return jax.ShapeDtypeStruct(stored.shape, dtype, sharding=self.shardings[path])

    def place(self, path: str, x: np.ndarray) -> Any:
        """Puts a host array where it belongs: each process gives its own shards."""
        x = x.astype(self.struct(path, x).dtype)
        placed = jax.make_array_from_callback(x.shape, self.shardings[path], lambda index: x[index])
        return stacks.quantize(path, placed) if self.quantizes(path) else placed


def _read(offers: Sequence[Offer], wanted: Collection[str], storage: _Storage) -> dict[str, Any]:
    """Reads parameters, each from the last offer that has it."""
    giver = {path: offer for offer in offers for path in offer.taken if path in set(wanted)}
    params: dict[str, Any] = {}
    for offer in offers:
        if mine := [path for path in giver if giver[path] is offer]:
            params |= _read_offer(offer, mine, storage)
    return params


def _read_offer(offer: Offer, paths: Sequence[str], storage: _Storage) -> dict[str, Any]:
    params: dict[str, Any] = {}
    with checkpoints.Checkpointer(offer.folder, read_only=True) as checkpointer:

        def read(wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, Any]:
            found = checkpointer.read(offer.step, {offer.taken[path]: x for path, x in wanted.items()})
            return {path: found[offer.taken[path]] for path in wanted}

        together = {}
        for path in paths:
            stored = offer.stored[offer.taken[path]]
            if how := offer.resampled.get(path):
                from vadapter.models.position_embeddings import resample

                table = np.asarray(read({path: stored})[path], np.float32)
                params[path] = storage.place(path, resample(table, how.tokens, how.extra))
            elif storage.quantizes(path):
                # One by one, so that never more than one array lies on the devices unquantised.
                made = stacks.quantize(path, read({path: storage.struct(path, stored)})[path])
                params[path] = jax.block_until_ready(made)
            else:
                together[path] = storage.struct(path, stored)
        if together:
            params |= read(together)
    return params


def _check_covered(frozen: Collection[str], taken: Collection[str], sources: Sequence[str]) -> None:
    if missing := [p for p in frozen if p not in taken]:
        nearest = ", ".join(trees.nearest(missing[0], taken)) or "(none)"
        raise UserError(
            f"{len(missing)} frozen parameters come from no source, the first is {missing[0]}; frozen parameters are "
            f"not saved, so random ones would be lost. The sources {', '.join(sources) or '(none)'} give, nearest to "
            f"it: {nearest}. Add a source or a rule for it, or make it trainable."
        )
