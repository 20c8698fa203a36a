"""Sizes of data that follow from the model. Reads no data."""

from vadapter.data.rows.sizes import Sizes
from vadapter.models.configuration import ModelConfig


def for_model(model: ModelConfig) -> Sizes:
    """Returns what a model takes: resolution, frames, visual tokens."""
    return Sizes(**model.data_sizes())
