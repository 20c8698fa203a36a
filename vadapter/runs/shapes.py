"""Sizes that follow from the model: those of its data, and the shapes of a batch. Reads no data."""

import dataclasses

from vadapter.data.order.config import LoaderConfig
from vadapter.models.configuration import ModelConfig


def for_model(data: LoaderConfig, model: ModelConfig) -> LoaderConfig:
    """Returns loader settings with the sizes that the model dictates: resolution, frames, visual tokens."""
    return dataclasses.replace(data, **model.data_sizes())
