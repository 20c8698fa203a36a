"""Hugging Face's format: one .safetensors file, or several with an index of which tensor is in which."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from vadapter.base import local_files
from vadapter.base.errors import UserError
from vadapter.weights.tensors import TensorInfo

_DTYPES = {
    "BOOL": np.dtype(np.bool_),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    **{f"{kind}{8 * size}": np.dtype(f"{kind.lower()}{size}") for kind in "IU" for size in (1, 2, 4, 8)},
}


class SafetensorsFiles:
    """Tensors of one or several .safetensors files.

    Args:
        where: the file or folder, for messages.
        files: paths.
        weight_map: file name of each tensor, as the index of several files says.

    Raises:
        UserError: a file is corrupt, or lacks a tensor that the index says it has.
    """

    def __init__(self, where: str, files: Sequence[str], weight_map: Mapping[str, str] | None = None):
        self.where = where
        self.infos: dict[str, TensorInfo] = {}
        self._files: dict[str, str] = {}
        for path in files:
            for name, info in _headers(path).items():
                wanted = (weight_map or {}).get(name)
                if wanted in (None, os.path.basename(path)):
                    self.infos[name], self._files[name] = info, path
        if missing := [name for name in weight_map or {} if name not in self.infos]:
            name, file = missing[0], (weight_map or {})[missing[0]]
            raise UserError(
                f"The index of {where} says that {name} is in {file}, which does not have it ({len(missing)} such "
                "tensors in all). The files are not of one download; fetch all of them again."
            )

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Returns entries start..stop of the first axis. See `Tensors.read`."""
        path = self._files[name]
        # Opened for each read: the library maps files into memory, and what was read stays resident while one is open.
        try:
            with safe_open(path, framework="np") as file:
                if not self.infos[name].shape:
                    return file.get_tensor(name)
                return file.get_slice(name)[start:stop]
        except (SafetensorError, OSError, ValueError, TypeError) as e:
            raise _corrupt(path, f"{name}: {e}") from e


def _headers(path: str) -> dict[str, TensorInfo]:
    try:
        local_files.check(path)  # the library would wait for a FIFO
        with safe_open(path, framework="np") as file:
            # A key of one that is open; the views are of the header alone.
            slices: dict[str, Any] = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {name: _info(path, name, view) for name, view in slices.items()}
    except (SafetensorError, OSError, ValueError) as e:
        if isinstance(e, UserError):
            raise
        raise _corrupt(path, str(e)) from e


def _info(path: str, name: str, view: Any) -> TensorInfo:
    kind = view.get_dtype()
    if kind not in _DTYPES:
        raise UserError(
            f"{path}: {name} is stored as {kind}, which is not read; known are {', '.join(sorted(_DTYPES))}. Use a "
            "version of these weights that is not quantised."
        )
    return TensorInfo(tuple(view.get_shape()), _DTYPES[kind])


def _corrupt(path: str, what: str) -> UserError:
    return UserError(
        f"{path} is no complete safetensors file ({what}). It was cut off or damaged; fetch it again and compare its "
        "size with the publisher's."
    )
