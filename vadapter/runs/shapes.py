"""Sizes that follow from the model: those of its data, and the shapes of a batch. Reads no data."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from vadapter.base.batch import Batch, LabelledImages
from vadapter.data.order.config import LoaderConfig
from vadapter.models.classifier import ClassifierConfig
from vadapter.models.vlm import VLMConfig


def for_model(data: LoaderConfig, model: VLMConfig | ClassifierConfig) -> LoaderConfig:
    """Returns loader settings with the sizes that the model dictates: resolution, frames, visual tokens."""
    if model.encoder is not None:
        data = dataclasses.replace(data, image_size=model.encoder.image_size)
    if isinstance(model, VLMConfig):
        frames = model.num_frames
        tokens = {n: model.num_visual_tokens(n) for n in {1, frames}}
        data = dataclasses.replace(data, num_frames=frames, num_visual_tokens=tokens)
    return data


def example(
    model: VLMConfig | ClassifierConfig, rows: int = 1, lengths: Mapping[str, int] | None = None
) -> Batch | LabelledImages:
    """Returns shapes of a batch that uses every part of the model: what its parameters are made from.

    Args:
        model: its configuration; where it has an encoder, the batch has a still image a row.
        rows: of the batch.
        lengths: `inputs` and `targets`, see `LoaderConfig`; the parameters do not depend on them.
    """
    lengths = lengths or {"inputs": 1, "targets": 1}

    def array(dtype: type, *shape: int) -> Any:
        return jax.ShapeDtypeStruct((rows, *shape), dtype)

    size = model.encoder.image_size if model.encoder else 1
    if isinstance(model, ClassifierConfig):
        labels = array(np.int32, model.cells**2 * len(model.num_classes))
        return LabelledImages(array(np.uint8, size, size, 3), labels, array(np.float32))
    length = lengths["inputs"] + model.num_visual_tokens(1) + lengths["targets"]
    row, target = array(np.int32, length), array(np.int32, lengths["targets"])
    return Batch(
        tokens=row,
        segment_ids=row,
        positions=row,
        media_index=row,
        media=array(np.uint8, 1 if model.encoder else 0, 1, size, size, 3),
        target_positions=target,
        target_ids=target,
        target_weights=array(np.float32, lengths["targets"]),
    )
