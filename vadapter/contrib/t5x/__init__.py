"""Trains vadapter's models by t5x's launchers: `python -m t5x.train`, `t5x.eval`, `t5x.infer`.

The experiment is vadapter's own gin file. `train.gin`, beside this file, hands it to t5x:

    python -m t5x.train --gin_file=vadapter/contrib/t5x/train.gin --gin_file=experiments/scenes_stage1.gin \
        --gin.MODEL_DIR='"runs/stage1"' --gin.DATA_DIR='"scenes"' ...

A gin file that imports this package can also use its parts by themselves. docs/bridges.md has the whole story.
"""

from vadapter.contrib.t5x.data import get_dataset, get_training_eval_datasets, task_feature_lengths
from vadapter.contrib.t5x.evaluation import Evaluator
from vadapter.contrib.t5x.initializer import Initializer
from vadapter.contrib.t5x.model import VLMModel
from vadapter.contrib.t5x.optimizer import TrainedOnly, learning_rate
from vadapter.contrib.t5x.partitioning import logical_axis_rules
from vadapter.recipes import experiments, gin_front

__all__ = [
    "Evaluator",
    "Initializer",
    "TrainedOnly",
    "VLMModel",
    "get_dataset",
    "get_training_eval_datasets",
    "learning_rate",
    "logical_axis_rules",
    "task_feature_lengths",
]

# A gin file that imports this package may include vadapter's own ones.
experiments.register()
gin_front.share()
