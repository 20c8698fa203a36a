import io

import numpy as np

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
