"""Training that starts from a bundle."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from vadapter.base import trees
from vadapter.base.errors import UserError
from vadapter.base.paths import relative
from vadapter.models.serialization import to_json
from vadapter.runs import bundle as bundles
from vadapter.runs.bundle import Bundle
from vadapter.training import freezing
from vadapter.training.sources import Reference, check_fits

if TYPE_CHECKING:
    from vadapter.runs.experiment import Experiment

# How a model computes, not what: these may change between two runs.
_RUNTIME = {"dtype", "attention_impl", "remat", "query_init"}


def warm_start(
    params: trees.Tree, references: Sequence[Reference], experiment: "Experiment"
) -> tuple[dict[str, Any], Reference]:
    """Lays what a bundle has over the parameters that a run trains.

    Args:
        params: of the run, on the device.
        references: the run's sources.
        experiment: of the run; its `bundle` is the folder.

    Returns:
        All parameters, and the record of the bundle for the run's checkpoints.

    Raises:
        UserError: the bundle is damaged, has another adapter or other backbones than the run, or parameters that the
            run freezes at other values.
    """
    assert experiment.bundle
    bundle = bundles.read(experiment.bundle)
    what = f"The bundle {bundle.folder}"
    _check_adapter(bundle, experiment.model)
    _check_backbones(bundle, references)
    arrays, flat = bundle.arrays(), trees.flatten(params)
    check_fits(arrays, flat, what)
    trained = trees.flatten(freezing.partition(params, experiment.train.trainable)[0])
    start = {path: _place(x, flat[path].sharding) for path, x in arrays.items() if path in trained}
    for path, x in arrays.items():
        if path not in trained and not _equal(path, x, flat[path], experiment.train.frozen_dtype):
            raise UserError(
                f"{what} has other values for {path} than the sources of this run, which freezes it. Train it, or give "
                "the source that the bundle was trained with."
            )
    path = relative(bundle.folder, experiment.model_dir)
    record = Reference(path, bundle.step, (), bundle.sha256, frozen=0, initial=len(start))
    return trees.unflatten({**flat, **start}), record


def _place(x: np.ndarray, sharding: Any) -> jax.Array:
    x = x.astype(np.float32)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def _equal(path: str, x: np.ndarray, kept: Any, frozen_dtype: str) -> bool:
    """Whether a run keeps an array of the bundle as `kept`, in all of its shards."""
    cast = trees.flatten(freezing.cast(trees.unflatten({path: jnp.asarray(x)}), False, frozen_dtype))[path]
    same = jax.jit(lambda a, b: jnp.all(a == b))
    return all(bool(same(a, b)) for a, b in zip(jax.tree.leaves(cast), jax.tree.leaves(kept), strict=True))


def _check_adapter(bundle: Bundle, model: Any) -> None:
    if getattr(model, "adapter", None) is None:
        raise UserError(
            f"The bundle {bundle.folder} is an adapter; the model of this run has none. Leave --bundle out."
        )
    theirs, ours = (_lasting(to_json(x)["adapter"]) for x in (bundle.description.model, model))
    if theirs != ours:
        raise UserError(
            f"The bundle {bundle.folder} has another adapter than this run: {_difference(theirs, ours)}. Use the "
            "adapter's configuration of the bundle (its bundle.json)."
        )


def _lasting(record: Any) -> Any:
    """A configuration as JSON without what may change between two runs."""
    if isinstance(record, Mapping):
        return {name: _lasting(value) for name, value in record.items() if name not in _RUNTIME}
    return record


def _difference(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    name = next(name for name in theirs if theirs.get(name) != ours.get(name))
    a, b = theirs[name], ours.get(name)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return f"{name}.{_difference(a, b)}"
    return f"{name} is {a!r} there and {b!r} here"


def _check_backbones(bundle: Bundle, references: Sequence[Reference]) -> None:
    now = {reference.sha256 for reference in references}
    for backbone in bundle.backbones:
        if backbone.sha256 not in now:
            there = "; ".join(f"{reference.path} gives {reference.sha256}" for reference in references) or "no source"
            raise UserError(
                f"The bundle {bundle.folder} was trained with the {' and '.join(backbone.parts)} whose sha256 is "
                f"{backbone.sha256}; of this run's sources {there}. Give the run that backbone, with the rules "
                f"{list(backbone.rules)}, or train without the bundle."
            )
