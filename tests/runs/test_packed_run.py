"""A run that packs its samples: it is stopped and goes on, says how full its rows are, and evaluates unpacked."""

import json
import os
import signal

import numpy as np
import pytest

from tests import saved
from tests.models import small
from vadapter.base.errors import UserError
from vadapter.data.order import loader
from vadapter.data.order.config import LoaderConfig, PackingConfig
from vadapter.data.scenes.config import ScenesConfig
from vadapter.models.vlm import VLMConfig
from vadapter.runs import train
from vadapter.runs.experiment import Evaluation, Experiment
from vadapter.training import checkpoints, loop
from vadapter.training.optimizers import OptimizerConfig

STEPS = 4
PACKING = PackingConfig()


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    from vadapter.data.scenes.scenes_tasks import register_scenes

    splits = dict.fromkeys(("train", "validation", "test", "video_train", "video_eval", "text_train", "text_eval"), 24)
    register_scenes(str(tmp_path_factory.mktemp("scenes")), ScenesConfig(**splits))


def experiment(folder, packing: PackingConfig | None = PACKING, rows=8):
    model = VLMConfig(small.decoder(vocab_size=512), small.vit(), small.mlp())
    lengths = {"inputs": 8, "targets": 40}
    data = LoaderConfig("scenes_caption", batch_size=rows, lengths=lengths, packing=packing)
    validation = Evaluation(LoaderConfig("scenes_caption", "validation", batch_size=8, lengths=lengths))
    config = loop.TrainConfig(
        steps=STEPS, optimizer=OptimizerConfig(warmup_steps=0), log_every=1, checkpoint_every=1, tensorboard=False
    )
    return Experiment(model, str(folder), data, config, evaluations=(validation,))


def curve(folder, split):
    rows = [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]
    return [row for row in rows if row["split"] == split]


@pytest.fixture(scope="module")
def packed(scenes, tmp_path_factory):
    """Folder of a packed run that was not stopped."""
    folder = tmp_path_factory.mktemp("packed") / "run"
    assert train.run(experiment(folder)).step == STEPS
    return folder


def test_a_packed_run_that_is_stopped_and_goes_on_ends_as_one_that_was_not(packed, tmp_path, monkeypatch):
    given = loader.Loader.batches

    def batches(self, start):
        for step, batch in enumerate(given(self, start), start):
            if step == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    with monkeypatch.context() as patched:
        patched.setattr(loader.Loader, "batches", batches)
        stopped = train.run(experiment(tmp_path / "stopped"))
    assert stopped.interrupted and stopped.step < STEPS
    for other in (None, PackingConfig(window=2)):
        with pytest.raises(UserError, match="the packing of samples into rows was"):
            train.run(experiment(tmp_path / "stopped", other))
    assert train.run(experiment(tmp_path / "stopped")).step == STEPS
    assert checkpoints.steps(str(tmp_path / "stopped"))[-1] == STEPS
    whole, gone_on = (saved.load_params(str(folder)) for folder in (packed, tmp_path / "stopped"))
    assert whole.keys() == gone_on.keys()
    for name, values in whole.items():
        np.testing.assert_array_equal(gone_on[name], values, err_msg=name)
    last = curve(packed, "train")[-1]
    assert 0.5 < last["data/packing_efficiency"] < 1 and last["data/unpacked_share"] == 0


def test_a_packed_run_learns_and_is_evaluated_as_one_with_four_times_the_rows(packed, tmp_path):
    train.run(experiment(tmp_path / "plain", packing=None, rows=32))
    for split, count in (("train", STEPS), ("val", 1)):
        found, expected = ([row["loss"] for row in curve(folder, split)] for folder in (packed, tmp_path / "plain"))
        assert len(found) == count
        np.testing.assert_allclose(found, expected, rtol=1e-4, err_msg=split)
