"""vadapter's models in big_vision: `big_vision.trainers.proj.paligemma.train` and its other trainers.

big_vision finds models and data by names below its own package. `register` gives vadapter's such names:

    model_name = "vadapter"         a whole VLM: `vlm.py`
    model_name = "vadapter_vit"     a ViT with pooling and head, as big_vision's own `vit`: `vit.py`
    img_model = "vadapter_vision"   ViT and adapter, for `proj.paligemma.paligemma`: `vision.py`
    data.name = "bv:vadapter"       the batches of an experiment: `dataset.py`
    evals.NAME.type = "vadapter"    an evaluation of an experiment: `evaluator.py`

`config.py` is a configuration for an experiment of vadapter; docs/bridges.md has the whole story.
"""

import importlib
import sys

import jax

_NAMES = {
    "big_vision.models.vadapter": "vlm",
    "big_vision.models.vadapter_vit": "vit",
    "big_vision.models.vadapter_vision": "vision",
    "big_vision.datasets.vadapter": "dataset",
    "big_vision.evaluators.vadapter": "evaluator",
}


def register() -> None:
    """Makes models, data and evaluators known to big_vision by name. Configurations call it; twice does no harm."""
    for name, module in _NAMES.items():
        sys.modules[name] = importlib.import_module(f"{__name__}.{module}")
    if not hasattr(jax.sharding, "PositionalSharding"):
        from big_vision import utils

        # Its last call before a launch ends uses a class that jax has removed.
        utils.sync = _sync


def _sync() -> None:
    from jax.experimental import multihost_utils

    with jax.transfer_guard("allow"):
        multihost_utils.sync_global_devices("big_vision")
