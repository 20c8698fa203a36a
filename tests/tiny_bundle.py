"""A bundle of a model that knows nothing, for whatever needs one quickly."""

import numpy as np

from tests.models import small as models
from tests.training import small
from vadapter.base import trees
from vadapter.data.rows import vocabulary as vocabularies
from vadapter.models.vlm import VLM
from vadapter.runs import bundle
from vadapter.runs.description import Description, Text


def write_bundle(folder, name="bundle", lengths=None, resize="stretch", adapter="perceiver", **decoder):
    """A model with random weights, all of them in one bundle. Returns its path."""
    sizes = {"depth": 1, "num_heads": 2}
    parts = {"decoder": models.decoder(**sizes, vocab_size=512, **decoder), "encoder": models.vit(**sizes)}
    config = models.vlm(adapter, **parts, num_frames=2)
    params = small.params(VLM(config), example=models.batch(config, rows=1))
    arrays = {path: np.asarray(x) for path, x in trees.flatten(params).items()}
    lengths = lengths or {"inputs": 16, "targets": 16}
    text = Text("", vocabularies.sha256(""), lengths)  # the vocabulary that ships with vadapter
    bundle.write(str(folder / name), Description(config, text, resize, frozen_dtype="float32"), arrays, step=1)
    return folder / name
