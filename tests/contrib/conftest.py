"""A small world of scenes, and runs in it that vadapter itself has trained: what the bridges are compared with."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vadapter.data.scenes.config import ScenesConfig

ROOT = Path(__file__).parents[2]
STEPS = 4
_SIZES = {"train": 64, "validation": 16, "test": 8, "video_train": 8, "video_eval": 8, "text_train": 32, "text_eval": 8}
SCENES = ScenesConfig(**_SIZES, num_frames=2)


def missing(package):
    """Why tests of a package are skipped."""
    return f"{package} is on no registry, so it is not installed here: `make bridges` fetches it and runs these tests"


def run(module, *args, cwd):
    """Runs a module of Python in a process of its own, in the checkout's version of vadapter."""
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    env["XLA_FLAGS"] = ""  # one device: t5x makes all CPUs of a host its model axis
    command = [sys.executable, "-m", module, *args]
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}"


class World:
    """Folders of the world, and the settings of its experiments.

    Attributes:
        folder: of all.
        settings: by name, of stage 1.
    """

    def __init__(self, folder):
        self.folder = folder
        self.settings = {
            "DATA_DIR": f"'{folder / 'data'}'",
            "BATCH_SIZE": "8",
            "TRAIN_STEPS": str(STEPS),
            "TrainConfig.log_every": "1",
            "OptimizerConfig.warmup_steps": "0",
            "EVALUATIONS": "[@val/Evaluation()]",
            **{f"ScenesConfig.{name}": str(size) for name, size in _SIZES.items()},
        }

    def from_weights(self):
        """Settings of stage 1 on frozen weights, of which the adapter alone is trained."""
        sources = {"ENCODER_WEIGHTS": f"'{self.folder / 'start'}'", "TINY_WEIGHTS": f"'{self.folder / 'start'}'"}
        return {**self.settings, **sources, "TRAINABLE": "['adapter/.*']", "TrainConfig.frozen_dtype": "'bfloat16'"}

    def train(self, name, settings, *more):
        """Trains by `vadapter train`."""
        flags = [f"--gin.{key}={value}" for key, value in {**settings, "MODEL_DIR": f"'{self.folder / name}'"}.items()]
        run("vadapter", "train", "--gin_file=experiments/scenes_stage1.gin", *flags, *more, cwd=self.folder)


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    world = World(tmp_path_factory.mktemp("bridges"))
    world.train("start", {**world.settings, "TRAIN_STEPS": "1", "SOURCES": "[]", "TRAINABLE": "['.*']"})
    world.train("ours", world.from_weights())
    return world
