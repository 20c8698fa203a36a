"""A small scenes world, written once a session and registered."""

import pytest

from vadapter.data.order import loader
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


@pytest.fixture(autouse=True)
def _no_record_named_before():
    """Each test is as a process of its own, which names a bad record once."""
    loader.tell_skipped.cache_clear()


@pytest.fixture(scope="session")
def _scenes_folder(tmp_path_factory):
    return str(tmp_path_factory.mktemp("scenes"))


@pytest.fixture(scope="module")
def scenes_dir(_scenes_folder):
    """Registered for each module anew: tests of another may have registered other scenes under the same names."""
    from vadapter.data.scenes.scenes_tasks import register_scenes

    register_scenes(_scenes_folder, SMALL)
    return _scenes_folder
