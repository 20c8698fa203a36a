"""t5x's legacy checkpoints: a msgpack of the train state, whose large arrays are zarr folders beside it."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from vadapter.base import local_files
from vadapter.base.errors import UserError
from vadapter.weights import files_orbax

FILE = "checkpoint"


def open_legacy(folder: str) -> files_orbax.StoredArrays:
    """Opens the parameters of `checkpoint_N/checkpoint`, named without `optimizer/target/`.

    Raises:
        UserError: the file is no train state of t5x, or an array is missing or corrupt.
    """
    from flax import serialization

    path = os.path.join(folder, FILE)
    try:
        content = serialization.msgpack_restore(local_files.read_bytes(path))
        target = content["optimizer"]["target"]
        leaves = dict(_leaves(target))
    except Exception as e:  # msgpack and flax raise what they like on what is no msgpack.
        raise UserError(
            f"{path} is no checkpoint of t5x ({type(e).__name__}: {e}): expected msgpack with 'optimizer' and in it "
            "'target'. Fetch it again, or give the folder of another checkpoint."
        ) from e
    specs = {name: _spec(folder, x) for name, x in leaves.items() if isinstance(x, Mapping)}
    held = {name: np.asarray(x) for name, x in leaves.items() if name not in specs}
    return files_orbax.StoredArrays(folder, specs, held)


def _leaves(tree: Any, prefix: str = ""):
    for key, value in tree.items():
        if isinstance(value, Mapping) and "driver" not in value:
            yield from _leaves(value, f"{prefix}{key}/")
        elif value is not None:
            yield prefix + key, value


def _spec(folder: str, stored: Mapping[str, Any]) -> dict[str, Any]:
    """The spec that t5x stored, for the folder of now: it may have been written elsewhere."""
    kvstore = stored.get("kvstore", {})
    # Specs of old versions have the path at the top.
    name = str(kvstore.get("path", stored.get("path", ""))).rstrip("/").rsplit("/", 1)[-1]
    path = os.path.join(os.path.abspath(folder), name) + "/"
    return files_orbax.spec({"driver": "file", "path": path}, zarr3=stored["driver"] == "zarr3")
