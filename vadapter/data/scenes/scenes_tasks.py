"""The tasks and mixtures of the scenes world."""

import seqio

from vadapter.base.errors import UserError
from vadapter.data.reading.array_records import ArrayRecordSource
from vadapter.data.rows import vocabulary as vocabularies
from vadapter.data.rows.preprocessors import Caption, Document, Question
from vadapter.data.scenes import builder
from vadapter.data.scenes.config import ScenesConfig
from vadapter.data.scenes.labels import LabelRows, Labels
from vadapter.data.tasks import add_mixture, add_task


def register_scenes(data_dir: str, config: ScenesConfig | None = None, vocabulary: str = vocabularies.SCENES) -> None:
    """Writes the scenes data sets if they are absent, and registers their tasks and mixtures.

    Tasks: scenes_caption, scenes_question, scenes_video_caption, scenes_video_question, scenes_labels, scenes_text.
    Mixtures: scenes_images (captions and questions), scenes_videos, scenes_all (images 3 : videos 1).

    Args:
        data_dir: where they are or will be written.
        config: which scenes.
        vocabulary: see `vocabulary.locate`; the default is made for scenes.
    """
    builder.prepare(data_dir, config)
    words = vocabularies.load_vocabulary(vocabulary)
    sources = {kind: ArrayRecordSource(builder.builder(data_dir, kind, config)) for kind in builder.KINDS}
    caption = Caption(first=(config or ScenesConfig()).train_paraphrases)
    video_question = Question("image_question")  # answers such as "top left" are not one word
    add_task("scenes_caption", sources["images"], [caption], vocabulary=words)
    add_task("scenes_question", sources["images"], [Question()], vocabulary=words)
    add_task("scenes_video_caption", sources["videos"], [caption], vocabulary=words)
    add_task("scenes_video_question", sources["videos"], [video_question], vocabulary=words)
    add_task("scenes_labels", sources["images"], [Labels()], rows=LabelRows())
    add_task("scenes_text", sources["text"], [Document()], vocabulary=words)
    add_mixture("scenes_images", [("scenes_caption", 1), ("scenes_question", 1)])
    add_mixture("scenes_videos", [("scenes_video_caption", 1), ("scenes_video_question", 1)])
    add_mixture("scenes_all", [("scenes_images", 3), ("scenes_videos", 1)])


def scenes_task(
    name: str = "scenes_images",
    data_dir: str = "scenes_data",
    config: ScenesConfig | None = None,
    vocabulary: str = vocabularies.SCENES,
) -> str:
    """Registers the scenes as `register_scenes` does and returns `name`: for .gin files.

    Args:
        name: one of its tasks or mixtures.
        data_dir: folder where the data sets are or will be written.
        config: which scenes.
        vocabulary: a tokeniser's file or folder; the default is made for scenes.

    Raises:
        UserError: there is no such task or mixture.
    """
    register_scenes(data_dir, config, vocabulary)
    known = [*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()]
    if name not in known:
        ours = ", ".join(sorted(n for n in known if n.startswith("scenes_")))
        raise UserError(f"Expected the name of a scenes task or mixture; found {name!r}. Choose one of {ours}.")
    return name
