"""Parameters from other runs: stage hand-off by path rules, recorded with a hash so that they are found again.

A run's checkpoint holds what the run trained. Everything else it took from `Source`s, and the checkpoint records them:
`restore` reads them again, refuses other weights than the run had, and lays the run's own parameters over them.
"""

import dataclasses
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from vadapter import trees
from vadapter.array_types import Array, PyTree
from vadapter.errors import UserError
from vadapter.partitioning import Partitioner, init_params
from vadapter.training import checkpoints, freezing

_QUERIES = "adapter/queries"


@dataclasses.dataclass(frozen=True)
class Source:
    r"""A run to take parameters from.

    Attributes:
        path: its MODEL_DIR, or one of its `checkpoint_<step>` folders.
        rules: (regex, replacement): a parameter whose whole path matches is taken, under the path that the replacement
            gives, such as `("decoder/(.*)", r"adapter/lm/\1")`. The first match counts; what none matches is not taken.
        step: which checkpoint; default the latest.
    """

    path: str
    rules: tuple[tuple[str, str], ...] = (("(.*)", r"\1"),)
    step: int | None = None


@dataclasses.dataclass(frozen=True)
class Reference:
    """What was taken from a source, as the checkpoint records it.

    Attributes:
        path: MODEL_DIR of the source, relative to that of the run that took it (so that a folder of runs can be moved).
        step: its checkpoint.
        rules: as in `Source`.
        sha256: `fingerprint` of what was taken, under its new paths, in the dtype it was saved in.
        frozen: parameters (paths) taken that the run did not train: those that must be found again.
        initial: parameters taken as a start only.
    """

    path: str
    step: int
    rules: tuple[tuple[str, str], ...]
    sha256: str
    frozen: int
    initial: int

    def to_json(self) -> dict[str, Any]:
        """Returns a JSON-serialisable dict."""
        return {**dataclasses.asdict(self), "rules": [list(r) for r in self.rules]}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Reference":
        """Reads `to_json`'s dict."""
        return cls(**{**record, "rules": tuple((a, b) for a, b in record["rules"])})


def fingerprint(tree: trees.Tree) -> str:
    """Returns the sha256 of a tree of host arrays: of the sorted (path, dtype, shape, bytes)."""
    digest = hashlib.sha256()
    for path, leaf in trees.flatten(tree).items():
        array = np.ascontiguousarray(leaf)
        digest.update(f"{path}\0{array.dtype.name}\0{tuple(array.shape)}\0".encode())
        digest.update(array.view(np.uint8).data if array.ndim else array.tobytes())
    return digest.hexdigest()


def rename(flat: Mapping[str, Any], rules: Sequence[tuple[str, str]], where: str) -> dict[str, Any]:
    """Applies a source's rules to `{path: value}`.

    Raises:
        UserError: a rule matches nothing or is malformed, or two parameters get the same path.
    """
    matched = trees.match([pattern for pattern, _ in rules], flat, f"rule of the source {where}:")
    renamed: dict[str, Any] = {}
    for path, index in matched.items():
        pattern, replacement = rules[index]
        try:
            match = re.fullmatch(pattern, path)
            assert match is not None
            new = match.expand(replacement)
        except (re.error, IndexError) as e:
            raise UserError(f"The replacement {replacement!r} of {where} is malformed: {e}. Change the rule.") from e
        if new in renamed:
            raise UserError(f"Two parameters of the source {where} get the path {new}. Change its rules.")
        renamed[new] = flat[path]
    return renamed


def load_sources(
    sources: Sequence[Source], abstract: Mapping[str, Any], frozen: Sequence[str], model_dir: str
) -> tuple[dict[str, np.ndarray], list[Reference]]:
    """Reads what a run takes from other runs. A later source wins over an earlier one.

    Args:
        sources: where from.
        abstract: `{slash path: shape struct}` of all of the run's parameters.
        frozen: paths that the run does not train.
        model_dir: of the run; the references are relative to it.

    Returns:
        `{slash path: array}` on the host, in the dtypes that they were saved in, and the references.

    Raises:
        UserError: a source or a match is missing, or a parameter has no place in the model or another shape.
    """
    taken: dict[str, np.ndarray] = {}
    references = []
    for source in sources:
        folder, step = checkpoints.locate(source.path, source.step)
        where = f"{folder}/checkpoint_{step}"
        found = rename(checkpoints.load_params(folder, step), source.rules, where)
        _check_fits(found, abstract, where)
        count = len(found.keys() & set(frozen))
        path = _relative(folder, model_dir)
        references.append(Reference(path, step, source.rules, fingerprint(found), count, len(found) - count))
        taken.update(found)
    return taken, references


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
) -> tuple[dict[str, Any], list[Reference]]:
    """Makes a run's parameters: from its sources, and at random what no source gives.

    Args:
        model: a module called on one batch.
        example: a batch of arrays or shape structs.
        rng: key of `jax.random.key`.
        partitioner: places the parameters.
        trainable: patterns of the parameters to train; see `freezing.partition`.
        sources: other runs.
        model_dir: folder of this run.
        frozen_dtype: dtype in which frozen parameters are kept.

    Returns:
        Nested dict of all parameters on the device (trained ones f32), and the references for the checkpoint.

    Raises:
        UserError: as `load_sources`; or a frozen parameter comes from no source.
    """
    boxed = jax.eval_shape(model.init, jax.random.key(0), example)["params"]
    abstract = trees.flatten(nn.unbox(boxed))
    trained_tree, frozen_tree = freezing.partition(nn.unbox(boxed), trainable)
    trained, frozen = trees.flatten(trained_tree), trees.flatten(frozen_tree)
    taken, references = load_sources(sources, abstract, list(frozen), model_dir)
    _check_covered(frozen, taken, [s.path for s in sources])
    shardings = trees.flatten(partitioner.param_shardings(boxed))
    params = _place(taken, trained, shardings, frozen_dtype)
    if rest := [p for p in abstract if p not in taken]:
        random = init_params(model, example, rng, partitioner, only=rest)
        params |= trees.flatten(freezing.cast(random, is_trainable=True))
    if _QUERIES in rest and _starts_at_positions(model):
        params[_QUERIES] = _position_queries(model, trees.unflatten(params), shardings[_QUERIES])
    return trees.unflatten(params), references


def _starts_at_positions(model: Any) -> bool:
    adapter = getattr(getattr(model, "config", None), "adapter", None)
    return getattr(adapter, "query_init", None) == "positions"


def _position_queries(model: Any, params: PyTree, sharding: Any) -> Array:
    """What the adapter's front makes of a grey image at evenly spaced places: all that tells its tokens apart."""
    size = model.config.encoder.image_size
    grey = np.full((1, 1, 1, size, size, 3), 128, np.uint8)

    def places(params: PyTree) -> Array:
        return model.apply({"params": params}, grey, method="query_places")

    return jax.jit(places, out_shardings=sharding)(params)


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
        run, own = checkpointer.run(step), checkpointer.params(step)
    abstract = trees.flatten(nn.unbox(boxed))
    _check_fits(own, abstract, f"{model_dir}/checkpoint_{step}")
    frozen = {p: x for p, x in abstract.items() if p not in own}
    taken: dict[str, np.ndarray] = {}
    references = [Reference.from_json(r) for r in run["sources"]]
    for reference in references:
        if reference.frozen:
            source = Source(_resolve(reference.path, model_dir), reference.rules, reference.step)
            found, (now,) = load_sources([source], abstract, list(frozen), model_dir)
            check_same(reference, now, model_dir)
            taken.update(found)
    _check_covered(frozen, taken, [r.path for r in references])
    shardings = trees.flatten(partitioner.param_shardings(boxed))
    dtype: str = frozen_dtype or run.get("frozen_dtype", "bfloat16")
    params = _place({**{p: taken[p] for p in frozen}, **own}, own, shardings, dtype)
    return Restored(trees.unflatten(params), step, run)


def check_same(recorded: Reference, now: Reference, model_dir: str) -> None:
    """Raises `UserError` if a source does not give the weights that the run in `model_dir` had from it."""
    if recorded.sha256 != now.sha256:
        raise UserError(
            f"The run {model_dir} was trained with weights of {recorded.path} at step {recorded.step} whose sha256 is "
            f"{recorded.sha256}; {now.path} at step {now.step} now gives {now.sha256}. Put the former weights back, or "
            "train the run again in a new MODEL_DIR."
        )


def _place(
    flat: Mapping[str, np.ndarray], trained: Mapping[str, Any], shardings: Mapping[str, Any], frozen_dtype: str
) -> dict[str, Array]:
    def place(path: str, x: np.ndarray) -> Array:
        x = x.astype(freezing.storage_dtype(path, x.dtype, path in trained, frozen_dtype))
        # Each process gives its own shards; the whole array never lies on one device.
        return jax.make_array_from_callback(x.shape, shardings[path], lambda index: x[index])

    return {path: place(path, x) for path, x in flat.items()}


def _check_fits(found: Mapping[str, Any], abstract: Mapping[str, Any], where: str) -> None:
    for path, x in found.items():
        if path not in abstract:
            raise UserError(
                f"{where} gives the parameter {path}, which the model does not have; the nearest are "
                f"{', '.join(trees.nearest(path, abstract))}. Change the source's rules or the model."
            )
        if tuple(x.shape) != tuple(abstract[path].shape):
            raise UserError(
                f"{where} gives {path} with the shape {tuple(x.shape)}; the model expects "
                f"{tuple(abstract[path].shape)}. Use the model that wrote it, or change the source or its rules."
            )


def _check_covered(frozen: Mapping[str, Any], taken: Mapping[str, Any], sources: Sequence[str]) -> None:
    if missing := [p for p in frozen if p not in taken]:
        nearest = ", ".join(trees.nearest(missing[0], taken)) or "(none)"
        raise UserError(
            f"{len(missing)} frozen parameters come from no source, the first is {missing[0]}; frozen parameters are "
            f"not saved, so random ones would be lost. The sources {', '.join(sources) or '(none)'} give, nearest to "
            f"it: {nearest}. Add a source or a rule for it, or make it trainable."
        )


def _relative(path: str, model_dir: str) -> str:
    return path if "://" in path or "://" in model_dir else os.path.relpath(path, model_dir)


def _resolve(path: str, model_dir: str) -> str:
    return path if "://" in path else os.path.normpath(os.path.join(model_dir, path))
