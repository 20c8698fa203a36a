"""Sizes that follow from the model: those of its data, and the shapes of a batch. Reads no data."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from vadapter.base.batch import Batch, LabelledImages
from vadapter.data.rows.sizes import Sizes
from vadapter.models.classifier import ClassifierConfig
from vadapter.models.vlm import VLMConfig


def for_model(model: VLMConfig | ClassifierConfig) -> Sizes:
    """Returns what the model takes: resolution, frames, visual tokens."""
    image_size = model.encoder.image_size if model.encoder else 1
    if not isinstance(model, VLMConfig):
        return Sizes(image_size)
    tokens = {n: model.num_visual_tokens(n) for n in {1, model.num_frames}}
    return Sizes(image_size, model.num_frames, tokens)


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
