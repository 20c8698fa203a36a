import io

import numpy as np
import pytest

from vadapter.base.errors import UserError
from vadapter.base.evaluator import EvalResult
from vadapter.training import writing

RED = np.zeros((48, 48, 3), np.uint8) + np.array([255, 0, 0], np.uint8)


def test_captions_are_drawn_under_their_pictures():
    page = writing.captioned_images([(RED, "a red square"), (RED, "word " * 40), (RED[:20], "")])
    assert page.shape[0] == 3
    assert page.dtype == np.uint8
    assert page.shape[2] == 240  # 48 pixels, enlarged five times
    assert (page[0, :240] == [255, 0, 0]).all()
    dark = (page < 100).all(axis=-1)
    assert dark[0, 240:270].any()
    assert not dark[0, 275:].any()
    assert dark[1, 300:].any()  # wrapped into more lines


def test_tensorboard_shows_scalars_and_pictures(tmp_path):
    from PIL import Image
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    writer = writing.MetricWriter(str(tmp_path))
    writer.scalars(10, {"loss": 0.5, "grad_norm/adapter/lm": 2.0})
    writer.evaluation(10, "caption", EvalResult({"cider": 80.0}, images=[(RED, "a red square")] * 2))
    writer.close()
    train = EventAccumulator(str(tmp_path / "train")).Reload()
    assert train.Tags()["tensors"] == ["loss", "grad_norm/adapter/lm"]
    caption = EventAccumulator(str(tmp_path / "training_eval/caption")).Reload()
    assert {"cider", "predicted_on_images", "predicted_texts"} <= set(caption.Tags()["tensors"])
    values = [x.tensor_proto.string_val for x in caption.Tensors("predicted_on_images")]
    pictures = next(v for v in values if len(v) == 4)  # width, height, two pictures
    assert Image.open(io.BytesIO(pictures[2])).size[0] == 240


def test_processes_but_the_first_write_nothing(tmp_path):
    writer = writing.MetricWriter(str(tmp_path), enabled=False)
    writer.scalars(1, {"loss": 0.5})
    writer.evaluation(1, "val", EvalResult({"loss": 1.0}, records=[{"a": 1}]))
    writer.close()
    assert list(tmp_path.iterdir()) == []


def test_console_prints_lines_where_there_is_no_terminal(capsys):
    with writing.Console(5) as console:
        console.step(1)
        console.step(2, "loss 3")
    with writing.Console(5, enabled=False) as console:
        console.step(2, "loss 3")
    assert capsys.readouterr().out == "step 2/5  loss 3\n"


RECORDS = [{"id": "1", "question": "a|b?", "prediction": "a\ndog", "references": ["dog", "hound"], "score": 1.0}]


class Kept:
    def __init__(self, folder):
        self.folder, self.told = folder, []

    def write_scalars(self, *args):
        self.told.append(("write_scalars", *args))

    def write_texts(self, *args):
        self.told.append(("write_texts", *args))

    def close(self):
        self.told.append(("close",))


def test_another_writer_is_told_the_same_by_whole_names(tmp_path):
    made = []
    writer = writing.MetricWriter(str(tmp_path), tensorboard=False, writers=[lambda f: made.append(Kept(f)) or made[0]])
    writer.scalars(10, {"loss": 0.5})
    writer.evaluation(10, "val", EvalResult({"loss": 1.5, "vqav2/vqa_accuracy": 2.0}, records=RECORDS))
    writer.close()
    table = "| id | question | prediction | references | score |\n| --- | --- | --- | --- | --- |\n"
    table += "| 1 | a\\|b? | a dog | dog; hound | 1.0 |"
    assert made[0].told == [
        ("write_scalars", 10, {"train/loss": 0.5}),
        ("write_scalars", 10, {"val/loss": 1.5, "vqav2/vqa_accuracy": 2.0}),
        ("write_texts", 10, {"val/predictions": table}),
        ("close",),
    ]


def test_weights_and_biases_offline(tmp_path):
    pytest.importorskip("wandb")
    from vadapter.training.wandb_writer import WandbConfig

    ids = []
    for step in (10, 5):  # a run that goes back goes on
        writer = writing.MetricWriter(str(tmp_path), tensorboard=False, writers=[WandbConfig(mode="offline")])
        writer.scalars(step, {"loss": 0.5})
        writer.evaluation(step, "val", EvalResult({"loss": 1.5}, images=[(RED, "red")], records=RECORDS))
        writer.close()
        ids.append((tmp_path / "wandb.json").read_text())
    assert ids[0] == ids[1]
    logs = [path.read_bytes() for path in sorted(tmp_path.rglob("*.wandb"))]
    assert len(logs) == 2
    assert all(name in log for log in logs for name in (b"train/loss", b"val/loss", b"val/predictions"))


def test_without_wandb_it_says_what_to_install(monkeypatch):
    from vadapter.training import wandb_writer

    monkeypatch.setattr(wandb_writer.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'vadapter\[wandb\]'"):
        wandb_writer.WandbConfig()
