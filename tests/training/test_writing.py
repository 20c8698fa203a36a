import io
import json
import struct
from typing import Any

import numpy as np
import pytest

from vadapter.base.errors import UserError
from vadapter.base.evaluator import EvalResult
from vadapter.training import wandb_writer, writing
from vadapter.training.config import TrainConfig

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

    def flush(self):
        pass

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


def logged(path):
    """The projects and the logged values of a file that Weights & Biases wrote, which is a log as LevelDB has it."""
    from wandb.proto import wandb_internal_pb2 as protos

    data, at, record = path.read_bytes(), 7, b""
    projects, rows = [], []
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:  # the rest of a block has no room for a head
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        record, at = record + data[at + 7 : at + 7 + length], at + 7 + length
        if kind in (1, 4):  # whole, or the last part
            found = protos.Record.FromString(record)
            projects += [found.run.project] if found.HasField("run") else []
            items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in found.history.item}
            rows += [{key: value for key, value in items.items() if key[0] != "_"}] if items else []
            record = b""
    return projects, rows


def test_weights_and_biases_offline_has_what_tensorboard_has(tmp_path):
    wandb = pytest.importorskip("wandb")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util import tensor_util

    made = [wandb_writer.WandbConfig(project, mode="offline") for project in ("one", "two")]
    ids = []
    for step in (10, 5):  # a run that goes back goes on
        writer = writing.MetricWriter(str(tmp_path), writers=made)
        writer.scalars(step, {"loss": 0.5 + step, "grad_norm/adapter": 2.5})
        found = EvalResult({"loss": 1.5, "vqav2/vqa_accuracy": 0.25}, images=[(RED, "red")], records=RECORDS)
        writer.evaluation(step, "val", found)
        writer.close()
        ids.append(json.loads((tmp_path / "wandb.json").read_text()))
    assert ids[0] == ids[1] and len(set(ids[0].values())) == 2
    wandb.teardown()  # its service has written everything

    expected = {}
    for folder, start in (("train", "train/"), ("training_eval/val", "val/")):
        events = EventAccumulator(str(tmp_path / folder)).Reload()
        for name in events.Tags()["tensors"]:
            whole = name if name.startswith("vqav2/") else start + name
            for event in events.Tensors(name):
                if not event.tensor_proto.string_val:
                    expected[whole, event.step] = float(tensor_util.make_ndarray(event.tensor_proto))
    assert len(expected) == 8
    files = [logged(path) for path in sorted(tmp_path.rglob("*.wandb"))]
    assert len(files) == 4
    for project in ("one", "two"):
        rows = [row for projects, rows in files for row in rows if projects[0] == project]
        scalars = [(k, row["step"], v) for row in rows for k, v in row.items() if isinstance(v, float)]
        assert {(name, step): value for name, step, value in scalars} == pytest.approx(expected)
        assert len(scalars) == len(expected)  # nothing is told twice
        assert len([row for row in rows if "val/predicted_on_images/count" in row]) == 2
        tables = [row["val/predictions/path"] for row in rows if "val/predictions/path" in row]
        assert len(tables) == 2
        table = json.loads(next(tmp_path.rglob(tables[0])).read_text())
        assert table["columns"] == ["id", "question", "prediction", "references", "score"]
        assert table["data"] == [["1", "a|b?", "a dog", "dog; hound", "1.0"]]


@pytest.mark.parametrize(
    ("writers", "why"),
    [
        ("WandbConfig", "found 'WandbConfig'"),
        (["tensorboard"], r"\[@WandbConfig\(\)\]"),
        (lambda: [wandb_writer.WandbConfig(name=name) for name in "ab"], "2 writers for the project 'vadapter'"),
    ],
)
def test_writers_that_make_no_sense_are_refused(monkeypatch, writers, why):
    monkeypatch.setattr(wandb_writer.importlib.util, "find_spec", lambda name: name)
    given: Any = writers() if callable(writers) else writers
    with pytest.raises(UserError, match=why):
        TrainConfig(steps=1, trainable=(".*",), writers=given).check()


def test_what_makes_no_writer_is_refused_before_the_first_step(tmp_path):
    with pytest.raises(UserError, match="has no write_scalars, flush, close"):
        writing.MetricWriter(str(tmp_path), writers=[wandb_writer.WandbConfig])


def test_without_wandb_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(wandb_writer.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'vadapter\[wandb\]'"):
        wandb_writer.WandbConfig()
