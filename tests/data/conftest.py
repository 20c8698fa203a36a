"""A small scenes world, written once a session and registered."""

import pytest

from vadapter.data.scenes.config import ScenesConfig

SMALL = ScenesConfig(
    train=150,
    validation=20,
    test=20,
    video_train=30,
    video_eval=8,
    text_train=60,
    text_eval=10,
    resolution=32,
    train_paraphrases=4,
)


@pytest.fixture(scope="session")
def scenes_dir(tmp_path_factory):
    from vadapter.data.scenes.scenes_tasks import register_scenes

    data_dir = str(tmp_path_factory.mktemp("scenes"))
    register_scenes(data_dir, SMALL)
    return data_dir
