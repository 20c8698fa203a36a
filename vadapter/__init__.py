"""Vision-language adapters by progressive alignment: the names that a script or a notebook needs.

    import vadapter

    model = vadapter.load("bundles/owl")
    model.caption(["photo.jpg", "clip.mp4"])
    model.answer("photo.jpg", "What animal is this?")

docs/python.md shows the rest. Importing this is quick: a name brings its module when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "vadapter.base.batch": ("Batch",),
    "vadapter.base.errors": ("UserError",),
    "vadapter.data.rows.vocabulary": ("load_vocabulary",),
    "vadapter.generation.config": ("DecodingConfig",),
    "vadapter.models.adapters": ("LMAdapterConfig", "MlpConfig"),
    "vadapter.models.decoder": ("DecoderConfig",),
    "vadapter.models.resampler": ("PerceiverConfig", "PoolerConfig"),
    "vadapter.models.variants": ("decoder", "encoder"),
    "vadapter.models.vit": ("ViTConfig",),
    "vadapter.models.vlm": ("VLM", "VLMConfig"),
    "vadapter.models.words": ("WordQuantizationConfig",),
    "vadapter.partitioning": ("MeshConfig", "Partitioner", "make_mesh"),
    "vadapter.runs.batches": ("make_batch",),
    "vadapter.runs.export": ("export",),
    "vadapter.runs.handoff": ("Handoff",),
    "vadapter.runs.load": ("load",),
    "vadapter.runs.model": ("TrainedModel",),
    "vadapter.runs.save": ("save",),
    "vadapter.runs.train": ("train",),
    "vadapter.runs.weights": ("initial_params",),
    "vadapter.training.optimizers": ("OptimizerConfig",),
    "vadapter.training.program": ("Program",),
    "vadapter.weights.importer": ("import_weights",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]

if TYPE_CHECKING:
    from vadapter.base.batch import Batch
    from vadapter.base.errors import UserError
    from vadapter.data.rows.vocabulary import load_vocabulary
    from vadapter.generation.config import DecodingConfig
    from vadapter.models.adapters import LMAdapterConfig, MlpConfig
    from vadapter.models.decoder import DecoderConfig
    from vadapter.models.resampler import PerceiverConfig, PoolerConfig
    from vadapter.models.variants import decoder, encoder
    from vadapter.models.vit import ViTConfig
    from vadapter.models.vlm import VLM, VLMConfig
    from vadapter.models.words import WordQuantizationConfig
    from vadapter.partitioning import MeshConfig, Partitioner, make_mesh
    from vadapter.runs.batches import make_batch
    from vadapter.runs.export import export
    from vadapter.runs.handoff import Handoff
    from vadapter.runs.load import load
    from vadapter.runs.model import TrainedModel
    from vadapter.runs.save import save
    from vadapter.runs.train import train
    from vadapter.runs.weights import initial_params
    from vadapter.training.optimizers import OptimizerConfig
    from vadapter.training.program import Program
    from vadapter.weights.importer import import_weights


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'vadapter' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
