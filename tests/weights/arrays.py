"""Checkpoints in memory, and what the importer makes of them."""

import numpy as np

from vadapter.weights.checkpoint import Checkpoint
from vadapter.weights.mapping import map_tensors
from vadapter.weights.recognise import parameter_shapes
from vadapter.weights.tensors import TensorInfo


class Arrays:
    """A checkpoint in memory."""

    where = "memory"

    def __init__(self, arrays):
        self.arrays = dict(arrays)
        self.infos = {name: TensorInfo(x.shape, x.dtype) for name, x in self.arrays.items()}

    def read(self, name, start=0, stop=None):
        x = self.arrays[name]
        return x[start:stop] if x.ndim else x


def opened(kind, arrays):
    return Checkpoint(kind, Arrays(arrays), None, None, {})


def random_params(config, seed=0):
    """Random numbers for each parameter of a model, by path."""
    rng = np.random.default_rng(seed)
    shapes = parameter_shapes(config)
    return {path: rng.normal(size=x.shape).astype(np.float32) for path, x in shapes.items()}


def imported(architecture, tensors):
    """The parameters that an architecture's table makes of a checkpoint."""
    parameters = map_tensors(tensors, architecture.rules, parameter_shapes(architecture.config), architecture.ignored)
    pieces = {p.path: [piece.read() for piece in p.pieces] for p in parameters}
    return {path: x[0] if x[0].ndim == 0 else np.concatenate(x) for path, x in pieces.items()}


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for path, x in wanted.items():
        np.testing.assert_array_equal(found[path], x, err_msg=path)
