"""Sizes that follow from the model: those of its data, and the shapes of a batch. Reads no data."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from vadapter.data.order.config import LoaderConfig
from vadapter.models.configuration import ModelConfig


def for_model(data: LoaderConfig, model: ModelConfig) -> LoaderConfig:
    """Returns loader settings with the sizes that the model dictates: resolution, frames, visual tokens."""
    return dataclasses.replace(data, **model.data_sizes())


def example(model: ModelConfig, rows: int = 1, lengths: Mapping[str, int] | None = None) -> Any:
    """Returns shapes of a batch that uses every part of the model; see `ModelConfig.example_batch`."""
    return model.example_batch(rows, lengths)
