"""A run that goes on sees pictures as it did before, whatever a recipe of today says."""

import dataclasses

import pytest

import vadapter
from tests.models import small
from vadapter.base.errors import UserError
from vadapter.data.rows.vocabulary import SCENES
from vadapter.models.vlm import VLMConfig
from vadapter.runs import description
from vadapter.runs.description import Description


def described(resize="stretch", **encoder):
    return Description(VLMConfig(small.decoder(), small.vit(**encoder), small.mlp()), resize=resize)


def check(folder, before, now):
    description.save(str(folder), before)
    description.check_same_pictures(str(folder), now)


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ({}, {}),
        ({}, {"position_grid": 2, "position_resampling": "bicubic"}),  # its own size: nothing is resampled
        ({"resize": "center_crop"}, {"resize": "center_crop bilinear"}),
        ({"position_grid": 5}, {"position_grid": 5, "dtype": "bfloat16", "remat": "full"}),
    ],
)
def test_what_is_the_same_goes_on(tmp_path, before, now):
    check(tmp_path, described(**before), described(**now))


@pytest.mark.parametrize(
    ("now", "message"),
    [
        ({"resize": "stretch bicubic"}, "by 'stretch'; it is now given 'stretch bicubic'. Set encoder.resize"),
        ({"position_grid": 5}, "had positions of its own image size.*of 5 x 5 patches.*position_grid to None"),
    ],
)
def test_another_way_to_see_pictures_is_refused(tmp_path, now, message):
    with pytest.raises(UserError, match=message):
        check(tmp_path, described(), described(**now))


def test_a_run_without_a_record_is_not_compared(tmp_path):
    description.check_same_pictures(str(tmp_path), described("pad"))


def test_training_that_goes_on_with_another_resize_stops_before_it_writes(tmp_path):
    (tmp_path / "own.jsonl").write_text('{"image": "a.png", "caption": "a"}\n')
    for part in ("run", "params"):
        (tmp_path / "run" / "checkpoint_5" / part).mkdir(parents=True)
    (tmp_path / "run" / "checkpoint_5" / "run" / "metadata").write_text('{"format": 1, "step": 5, "sources": []}')
    (tmp_path / "run" / "checkpoint_5" / "params" / "_METADATA").write_text("{}")
    (tmp_path / "run" / "checkpoint_5" / "_CHECKPOINT_METADATA").write_text('{"commit_timestamp_nsecs": 1}')
    model = VLMConfig(small.decoder(vocab_size=512), small.vit(), small.mlp())
    description.save(str(tmp_path / "run"), Description(model))
    published = dataclasses.replace(model, encoder=small.vit(resize="center_crop bicubic"))
    with pytest.raises(UserError, match="it is now given 'center_crop bicubic'"):
        vadapter.train(
            published,
            tmp_path / "own.jsonl",
            tmp_path / "run",
            weights={"encoder": tmp_path, "decoder": tmp_path},
            vocabulary=SCENES,
            validation=tmp_path / "own.jsonl",
            batch_size=8,
        )
    assert description.load(str(tmp_path / "run")).resize == "stretch"
