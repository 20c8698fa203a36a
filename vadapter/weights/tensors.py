"""Named tensors of a checkpoint, read one at a time: what the readers of all formats offer to the mapping engine."""

import dataclasses
from collections.abc import Mapping
from typing import Protocol

import numpy as np


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
