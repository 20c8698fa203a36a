"""Data sets of TFDS's own builders as tasks."""

import io
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from tests.data.loaders import make_loader
from vadapter.base.errors import UserError


def png(shade):
    file = io.BytesIO()
    Image.new("RGB", (30, 20), (shade, 0, 0)).save(file, "png")
    return io.BytesIO(file.getvalue())


class SmallCaptions(tfds.core.GeneratorBasedBuilder):
    """The features of TFDS's coco_captions, and a question."""

    VERSION = tfds.core.Version("1.0.0")
    code_path = None

    def _info(self):
        features: dict[str, Any] = {
            "image": tfds.features.Image(),
            "image/filename": tfds.features.Text(),
            "image/id": np.int64,
            "captions": tfds.features.Sequence({"id": np.int64, "text": tfds.features.Text()}),
            "question": tfds.features.Text(),
            "answer": tfds.features.Text(),
        }
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features), disable_shuffling=True)

    def _split_generators(self, dl_manager):
        return {"val": self._generate_examples(3), "train": self._generate_examples(5)}

    def _generate_examples(self, count):
        for i in range(count):
            captions = [{"id": k, "text": f"Wall {i}, {k}"} for k in range(i + 1)]
            texts = {"question": f"How red is {i}?", "answer": f"{i}é"}
            yield (
                i,
                {"image": png(60 * i), "image/filename": f"{i}.png", "image/id": 100 + i, "captions": captions} | texts,
            )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("tfds"))
    SmallCaptions(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


def rows(name, split="val"):
    made = make_loader(name, split=split, batch_size=3, lengths={"inputs": 99, "targets": 40})
    ((batch, found),) = made.eval_batches()
    return batch, found


def test_captions(prepared):
    from vadapter.data.reading.tfds import tfds_task

    batch, found = rows(tfds_task("small", "small_captions", prepared, vocabulary="scenes"))
    assert [row["id"] for row in found] == ["100", "101", "102"]
    assert found[2]["references"] == ["Wall 2, 0", "Wall 2, 1", "Wall 2, 2"]
    assert batch.media[:, 0, 0, 8, 8, 0].tolist() == [0, 60, 120]


def test_questions(prepared):
    from vadapter.data.reading.tfds import tfds_task

    fields = {"id_field": "image/filename", "question": "question", "answers": "answer", "vocabulary": "scenes"}
    _, found = rows(tfds_task("small", "small_captions:1.0.0", prepared, **fields))
    assert [(row["id"], row["question"], row["answers"]) for row in found][1] == ("1.png", "How red is 1", ["1é"])


def test_mistakes_are_messages(prepared, tmp_path):
    from vadapter.data.reading.tfds import tfds_task

    with pytest.raises(UserError, match="found nothing. Prepare it: tfds build small_captions --file_format"):
        tfds_task("small", "small_captions", str(tmp_path), vocabulary="scenes")
    with pytest.raises(UserError, match="the feature 'caption' in small_captions; it has .*captions"):
        tfds_task("small", "small_captions", prepared, captions="caption", vocabulary="scenes")
    with pytest.raises(UserError, match="found 'smal_captions'"):
        tfds_task("small", "smal_captions", prepared, vocabulary="scenes")
