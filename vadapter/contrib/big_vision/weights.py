"""Weights for models of big_vision: from vadapter's runs and bundles, and from big_vision's own files."""

import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import flags
from big_vision import utils
from big_vision.models import vit

from vadapter.base import quantization, trees
from vadapter.base.errors import UserError
from vadapter.contrib import launch
from vadapter.runs.experiment import Parts
from vadapter.runs.load import load
from vadapter.training.sources import check_fits

EXPERIMENT = "experiment"


def workdir() -> str:
    """Returns the folder that big_vision was told to work in. Raises `UserError` if it was told none."""
    found = getattr(flags.FLAGS, "workdir", None) if flags.FLAGS.is_parsed() else None
    if not found:
        raise UserError("big_vision was given no --workdir, which is the experiment's MODEL_DIR. Give it one.")
    return os.path.abspath(found)


def find(source: str | Mapping[str, Any], shapes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `{slash path: array}` of what a source has, as `vlm.load` says.

    Raises:
        UserError: see there.
    """
    if isinstance(source, str):
        return _fitting(_whole(source), shapes, source)
    if EXPERIMENT in source:
        with jax.transfer_guard("allow"):
            return launch.begin(Parts(launch.experiment_of(source[EXPERIMENT], workdir())))
    found: dict[str, Any] = {}
    for part, path in source.items():
        wanted = {p.removeprefix(f"{part}/"): x for p, x in shapes.items() if p.startswith(f"{part}/")}
        if not wanted:
            known = ", ".join(sorted({p.split("/")[0] for p in shapes}))
            raise UserError(f"model_init names the part {part!r}; the model's parts are {known}. Correct the name.")
        taken = _part(part, path, wanted)
        found |= {f"{part}/{p}": x for p, x in _fitting(taken, wanted, path).items()}
    return found


def _part(part: str, path: str, wanted: Mapping[str, Any]) -> dict[str, Any]:
    if _is_ours(path):
        whole = _whole(path)
        return {p.removeprefix(f"{part}/"): x for p, x in whole.items() if p.startswith(f"{part}/")}
    if part == "encoder":  # with all that big_vision knows of old files, other image sizes and names of papers
        dont_load = [pattern for pattern in ("head/.*", "MAPHead_0/.*") if _has(path, pattern.split("/")[0])]
        loaded = vit.load(trees.unflatten(wanted), path, {"scan": True}, dont_load)
    else:
        loaded = utils.load_params(path)
    return trees.flatten(loaded)


def _has(path: str, module: str) -> bool:
    return module in utils.load_params(vit.VANITY_NAMES.get(path, path))


def _is_ours(path: str) -> bool:
    return any(os.path.exists(os.path.join(path, name)) for name in ("model.json", "bundle.json"))


def _whole(path: str) -> dict[str, Any]:
    if not _is_ours(path):
        return trees.flatten(utils.load_params(path if "/" in path else f"./{path}"))
    with jax.transfer_guard("allow"):
        flat = trees.flatten(load(path).params)
        if any(quantization.is_quantized(x) for x in flat.values()):
            raise UserError(
                f"{path} was trained between int8 weights, which big_vision does not have. Use another run."
            )
        return {p: np.asarray(x) for p, x in flat.items()}


def _fitting(found: Mapping[str, Any], shapes: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What the model has a place for, in f32 as big_vision trains."""
    taken = {path: x for path, x in found.items() if path in shapes}
    check_fits(taken, {path: shapes[path] for path in taken}, where)
    return {path: np.asarray(x).astype(shapes[path].dtype) for path, x in taken.items()}
