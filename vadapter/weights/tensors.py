"""Named tensors of a checkpoint, read one at a time: what the readers of all formats offer to the mapping engine."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Protocol

import numpy as np

_BLOCK_BYTES = 64 << 20


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """Shape and dtype of a stored tensor."""

    shape: tuple[int, ...]
    dtype: np.dtype


class Tensors(Protocol):
    """A checkpoint opened for reading. Opening it reads names and shapes only.

    Attributes:
        where: the file or folder, for messages.
        infos: shape and dtype of every tensor by its name in the checkpoint.
    """

    @property
    def where(self) -> str: ...

    @property
    def infos(self) -> Mapping[str, TensorInfo]: ...

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Returns entries start..stop of the first axis of a tensor (all of it by default); scalars as they are.

        No more of the tensor than asked for is held in memory. bf16 comes as `ml_dtypes.bfloat16`.

        Raises:
            UserError: the file is truncated or corrupt.
        """
        ...


def blocks(info: TensorInfo) -> Iterator[tuple[int, int]]:
    """Returns start and stop, on the first axis, of parts of a tensor that are small enough to be held in memory."""
    rows = max(1, _BLOCK_BYTES // max(1, math.prod(info.shape[1:]) * info.dtype.itemsize))
    return ((start, min(start + rows, info.shape[0])) for start in range(0, info.shape[0], rows))
