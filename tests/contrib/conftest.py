"""A small world of scenes, and runs in it that vadapter itself has trained: what the bridges are compared with."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from vadapter.data.scenes import builder
from vadapter.data.scenes.config import ScenesConfig

ROOT = Path(__file__).parents[2]
STEPS = 20
STAGES = ("stage1", "stage2")  # stage 2: the arm `queries` with its hand-off
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
        settings: by name, of an experiment that starts from nothing.
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

    def from_weights(self, stage="stage1"):
        """Settings of a stage on frozen weights, of which the adapter, or what the arm trains of it, is trained."""
        weights, more = {"ENCODER_WEIGHTS": "start", "TINY_WEIGHTS": "start"}, {"TRAINABLE": "['adapter/.*']"}
        if stage == "stage2":
            weights, more = {"ENCODER_WEIGHTS": "start", "LARGE_WEIGHTS": "large", "STAGE1_RUN": "start"}, {}
        sources = {name: f"'{self.folder / run}'" for name, run in weights.items()}
        return {**self.settings, **sources, **more, "TrainConfig.frozen_dtype": "'bfloat16'"}

    def train(self, name, settings, *more, gin_file="experiments/scenes_stage1.gin"):
        """Trains by `vadapter train`."""
        flags = [f"--gin.{key}={value}" for key, value in {**settings, "MODEL_DIR": f"'{self.folder / name}'"}.items()]
        run("vadapter", "train", f"--gin_file={gin_file}", *flags, *more, cwd=self.folder)

    def captions(self, name):
        """What `vadapter infer` says of the first pictures of the validation split, by a run or a bundle."""
        records = builder.builder(str(self.folder / "data"), "images", SCENES).as_data_source("validation")
        files = [self.folder / f"{i}.png" for i in range(4)]
        for file, record in zip(files, records, strict=False):
            Image.fromarray(record["image"]).save(file)
        out = self.folder / f"{name}.jsonl"
        run(
            "vadapter", "infer", f"--model_dir={self.folder / name}", f"--out={out}", "--media", *files, cwd=self.folder
        )
        return [json.loads(line)["text"] for line in out.read_text().splitlines()]


def experiment(stage):
    """The gin file of a stage."""
    return f"experiments/scenes_{'stage1' if stage == 'stage1' else 'queries'}.gin"


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    world = World(tmp_path_factory.mktemp("bridges"))
    # Long enough that texts differ from picture to picture.
    whole = {**world.settings, "TRAIN_STEPS": "150", "SOURCES": "[]", "TRAINABLE": "['.*']"}
    world.train("start", {**whole, "OptimizerConfig.learning_rate": "2e-3"})
    world.train(
        "large", {k: v for k, v in whole.items() if k != "EVALUATIONS"}, gin_file="experiments/scenes_large.gin"
    )
    for stage in STAGES:
        world.train(f"ours_{stage}", world.from_weights(stage), gin_file=experiment(stage))
    return world


@pytest.fixture(scope="module", params=STAGES)
def stage(request):
    """Tests of training are made in both stages."""
    return request.param
