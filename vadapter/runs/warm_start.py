"""Training that starts from a bundle."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from vadapter.base import trees
from vadapter.base.errors import UserError
from vadapter.base.paths import relative
from vadapter.models.serialization import to_json
from vadapter.runs.bundle import Bundle
from vadapter.training.program import Program
from vadapter.training.sources import Reference, check_fits

# How a model computes, not what: these may change between two runs.
_RUNTIME = {"dtype", "attention_impl", "remat", "query_init"}


def warm_start(
    params: trees.Tree,
    references: Sequence[Reference],
    bundle: Bundle,
    program: Program,
    model: Any,
    model_dir: str,
) -> tuple[dict[str, Any], Reference]:
    """Lays what a bundle has over the parameters that a run trains.

    Args:
        params: of the run, on the device, as they are kept.
        references: the run's sources.
        bundle: to start from.
        program: of the run.
        model: configuration of the run's model.
        model_dir: folder of the run.

    Returns:
        All parameters, and the record of the bundle for the run's checkpoints.

    Raises:
        UserError: the bundle is damaged, has another adapter, LoRA or other backbones than the run, or parameters that
            the run freezes at other values (merged kernels too).
    """
    what = f"The bundle {bundle.folder}"
    _check_adapter(bundle, model)
    _check_backbones(bundle, references)
    arrays, flat, storage = bundle.arrays(), trees.flatten(params), program.storage
    check_fits(arrays, flat, what)
    for path, x in arrays.items():
        kept = storage.keep(path, x)
        if path not in storage.trained and not _equal(kept, flat[path]):
            raise UserError(
                f"{what} has other values for {path} than the sources of this run, which freezes it. Train it, give "
                "the source that the bundle was trained with, or, if LoRA was merged into it, export without --merge."
            )
        flat[path] = kept
    trained = sum(path in storage.trained for path in arrays)
    return trees.unflatten(flat), dataclasses.replace(reference(bundle, model_dir), initial=trained)


def reference(bundle: Bundle, model_dir: str) -> Reference:
    """Returns the record of a bundle that a run started from; how many parameters it gave is not counted."""
    return Reference(relative(bundle.folder, model_dir), bundle.step, (), bundle.sha256, frozen=0, initial=0)


def _equal(a: Any, b: Any) -> bool:
    """Whether two parameters are equal in all of their shards."""
    same = jax.jit(lambda a, b: jnp.all(a == b))
    return all(bool(same(x, y)) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


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
    for part in ("encoder", "decoder"):
        before, now = (getattr(getattr(x, part, None), "lora", None) for x in (bundle.description.model, model))
        if before is not None and before != now:  # another alpha would change what its LoRA computes
            raise UserError(
                f"The bundle {bundle.folder} has {before} in its {part}, and this run has {now or 'no LoRA'}. Use the "
                "bundle's, or a bundle of a run before LoRA."
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
