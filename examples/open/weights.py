"""The pack's models as vadapter's parameters, by vadapter's own import rules, without writing them anywhere."""

from concurrent import futures
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from vadapter.weights import mapping
from vadapter.weights.checkpoint import open_checkpoint
from vadapter.weights.recognise import parameter_shapes, recognise

BF16 = np.dtype(ml_dtypes.bfloat16)


def load(source: Path) -> tuple[Any, dict[str, np.ndarray]]:
    """Reads a model.

    Args:
        source: a GGUF file or a Hugging Face folder.

    Returns:
        vadapter's configuration of it, and `{slash path: bf16 array}`, as `vadapter import` would write them.
    """
    checkpoint = open_checkpoint(str(source))
    found = recognise(checkpoint)
    shapes = parameter_shapes(found.config)
    parameters = mapping.map_tensors(checkpoint.tensors, found.rules, shapes, found.ignored)

    def read(parameter: mapping.Parameter) -> np.ndarray:
        made = np.empty(parameter.shape, BF16)
        for piece in parameter.pieces:
            made[piece.start : piece.stop] = piece.read()
        return made

    with futures.ThreadPoolExecutor() as pool:
        return found.config, dict(zip((p.path for p in parameters), pool.map(read, parameters), strict=True))
