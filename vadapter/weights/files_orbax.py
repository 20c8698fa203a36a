"""Orbax checkpoints of parameters, OCDBT or a folder for each array, in zarr 2 or 3: read by TensorStore, lazily."""

import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vadapter.base import json_text
from vadapter.base.errors import UserError
from vadapter.weights.tensors import TensorInfo

METADATA = "_METADATA"
# Values that a checkpoint records and that have no array.
_EMPTY = ("None", "Dict", "List", "Tuple", "NamedTuple", "string")


class StoredArrays:
    """Arrays that TensorStore opens, and small ones that are in memory already.

    Args:
        where: the folder, for messages.
        specs: TensorStore's specs by name.
        held: arrays by name.

    Raises:
        UserError: an array is missing or corrupt.
    """

    def __init__(self, where: str, specs: Mapping[str, Any], held: Mapping[str, np.ndarray] | None = None):
        import tensorstore as ts

        self.where = where
        self._held = dict(held or {})
        context = ts.Context({"cache_pool": {"total_bytes_limit": 64 << 20}})
        opening = {name: ts.open(spec, read=True, open=True, context=context) for name, spec in specs.items()}
        self._stores = {name: _checked(where, name, future.result) for name, future in opening.items()}
        self.infos = {name: TensorInfo(x.shape, x.dtype) for name, x in self._held.items()}
        for name, store in self._stores.items():
            self.infos[name] = TensorInfo(tuple(store.shape), np.dtype(store.dtype.numpy_dtype))

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Returns entries start..stop of the first axis. See `Tensors.read`."""
        shape = self.infos[name].shape
        # TensorStore does not cut a range at the end, as numpy does.
        rows = slice(*slice(start, stop).indices(shape[0])) if shape else ()
        if name in self._held:
            return self._held[name][rows]
        return _checked(self.where, name, lambda: self._stores[name][rows].read().result())


def names_of(folder: str) -> dict[str, str]:
    """Returns `{slash path: name on disk}` of the arrays of an Orbax checkpoint.

    Raises:
        UserError: its list of arrays is corrupt.
    """
    tree, _ = _metadata(folder)
    names = {}
    for entry in tree.values():
        keys = [str(key["key"]) for key in entry["key_metadata"]]
        if entry["value_metadata"]["value_type"] not in _EMPTY:
            names["/".join(keys)] = ".".join(keys)
    return names


def open_arrays(folder: str, names: Mapping[str, str]) -> StoredArrays:
    """Opens arrays of an Orbax checkpoint.

    Args:
        folder: that has `_METADATA`.
        names: name on disk of each, by the name to give it.

    Raises:
        UserError: an array is missing or corrupt.
    """
    zarr3 = _metadata(folder)[1]
    ocdbt = os.path.exists(os.path.join(folder, "manifest.ocdbt"))
    base = os.path.abspath(folder)

    def kvstore(name: str) -> dict[str, Any]:
        if ocdbt:
            return {"driver": "ocdbt", "base": {"driver": "file", "path": base + "/"}, "path": name + "/"}
        return {"driver": "file", "path": f"{base}/{name}/"}

    return StoredArrays(folder, {path: spec(kvstore(name), zarr3) for path, name in names.items()})


def spec(kvstore: Mapping[str, Any], zarr3: bool = False) -> dict[str, Any]:
    """Returns TensorStore's spec to read an array."""
    return {
        "driver": "zarr3" if zarr3 else "zarr",
        "kvstore": dict(kvstore),
        "recheck_cached_data": False,
        # What is missing on disk is an error, not zeros.
        "fill_missing_data_reads": False,
    }


def _metadata(folder: str) -> tuple[dict[str, Any], bool]:
    """The entries of a checkpoint's tree, and whether its arrays are in zarr 3."""
    path = os.path.join(folder, METADATA)
    try:
        content = json_text.read(path)
        return content["tree_metadata"], bool(content.get("use_zarr3", False))
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UserError(f"{path} is no list of the arrays of an Orbax checkpoint: {e!r}. Fetch it again.") from e


def _checked(where: str, name: str, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except (ValueError, OSError) as e:
        raise UserError(
            f"{where}: {name} cannot be read ({str(e).splitlines()[0]}). Files of the checkpoint are missing or "
            "damaged; fetch it again."
        ) from e
