"""sha256 of parameters: of one array, and of a set of them, so that weights are found again and others refused.

The hash of an array covers its bytes in C order; that of a set covers each path, dtype, shape and array hash. Imported
weights come with the hashes of their arrays in `sha256.json`, so that no run has to read all of them to know them.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping

import numpy as np
from etils import epath

from vadapter.base import files

FILE = "sha256.json"


@dataclasses.dataclass(frozen=True)
class ArrayHash:
    """Identity of an array.

    Attributes:
        dtype: name of the dtype, such as `bfloat16`.
        shape: its shape.
        sha256: hex digest of its bytes in C order.
    """

    dtype: str
    shape: tuple[int, ...]
    sha256: str


def of_array(array: np.ndarray) -> ArrayHash:
    """Hashes a host array."""
    contiguous = np.ascontiguousarray(array)
    digest = hashlib.sha256(contiguous.reshape(-1).view(np.uint8).data)
    return ArrayHash(array.dtype.name, tuple(array.shape), digest.hexdigest())


def combine(hashes: Mapping[str, ArrayHash]) -> str:
    """Returns the sha256 of a set of arrays by path, whatever their order."""
    digest = hashlib.sha256()
    for path, one in sorted(hashes.items()):
        digest.update(f"{path}\0{one.dtype}\0{one.shape}\0{one.sha256}\n".encode())
    return digest.hexdigest()


def save(folder: str, step: int, hashes: Mapping[str, ArrayHash]) -> None:
    """Records the hashes of a checkpoint's parameters in its MODEL_DIR."""
    record = {"step": step, "parameters": {path: dataclasses.asdict(one) for path, one in sorted(hashes.items())}}
    files.write_json(epath.Path(folder) / FILE, record, indent=1)


def load(folder: str, step: int) -> dict[str, ArrayHash] | None:
    """Returns the recorded hashes of a checkpoint's parameters by path, or None where there are none."""
    file = epath.Path(folder) / FILE
    if not file.exists():
        return None
    record = json.loads(file.read_text())
    if record["step"] != step:
        return None
    return {path: ArrayHash(x["dtype"], tuple(x["shape"]), x["sha256"]) for path, x in record["parameters"].items()}
