"""seqio tasks and mixtures: those of scenes, of a user's own JSONL files, and of pairs at scale.

The functions register under names and return the name, so that a .gin file can say `LoaderConfig.mixture =
@jsonl_task()`. Registering again replaces.
"""

import functools
from collections.abc import Sequence
from typing import Any

import seqio
import tensorflow as tf

from vadapter.base.errors import UserError
from vadapter.data.reading import video
from vadapter.data.reading.jsonl import MEDIA_KEYS, JsonlSource
from vadapter.data.reading.pair_formats import Fields
from vadapter.data.reading.pairs import PairsSource
from vadapter.data.reading.sources import ArrayRecordSource, RandomAccessSource
from vadapter.data.rows import formats, prompts
from vadapter.data.rows import preprocessors as pre
from vadapter.data.rows import vocabulary as vocabularies
from vadapter.data.rows.vocabulary import TextVocabulary
from vadapter.data.scenes import builder as scenes_builder
from vadapter.data.scenes.config import ScenesConfig


def _remove(name: str) -> None:
    for registry in (seqio.TaskRegistry, seqio.MixtureRegistry):
        if name in registry.names():
            registry.remove(name)


def _check_name(name: str, function: str) -> None:
    if not seqio.utils.re.fullmatch(r"[\w\d_]+", name):
        raise UserError(f"Expected letters, digits and underscores in {function}.name; found {name!r}. Rename it.")


def _features(vocabulary: TextVocabulary, kind: str) -> dict[str, Any]:
    return {
        "inputs": seqio.Feature(vocabulary, add_eos=False, dtype=tf.int32),
        "targets": seqio.Feature(vocabulary, add_eos=True, dtype=tf.int32),
        "media": pre.MediaFeature(kind=kind),
    }


def add_task(
    name: str,
    source: RandomAccessSource,
    preprocessors: Sequence[pre.Preprocessor],
    *,
    vocabulary: TextVocabulary | None = None,
    labels: bool = False,
) -> str:
    """Registers a seqio task, replacing one of the same name, and returns the name.

    Args:
        name: letters, digits and underscores.
        source: where the records are.
        preprocessors: make `inputs` and `targets` (see `vadapter.data.rows.preprocessors`), one example a record.
        vocabulary: of inputs and targets; the default is the scenes vocabulary.
        labels: the records are images with `labels` instead of text.
    """
    _remove(name)
    if labels:
        classes = seqio.Feature(seqio.PassThroughVocabulary(1), add_eos=False)
        features = {"media": pre.MediaFeature(kind="image"), "labels": classes}
    else:
        features = _features(vocabulary or default_vocabulary(), source.media)
    seqio.TaskRegistry.add(name, source=source, output_features=features, preprocessors=list(preprocessors))
    return name


def add_mixture(name: str, rates: Sequence[tuple[str, float]]) -> str:
    """Registers a seqio mixture of tasks, replacing one of the same name, and returns the name.

    Args:
        name: letters, digits and underscores.
        rates: (task, rate); a task's share of the rows is its rate over the sum of all.
    """
    _remove(name)
    seqio.MixtureRegistry.add(name, list(rates))
    return name


@functools.cache
def default_vocabulary() -> TextVocabulary:
    """Returns the scenes vocabulary."""
    return vocabularies.load()


def register_scenes(data_dir: str, config: ScenesConfig | None = None, vocabulary: str = "") -> None:
    """Writes the scenes data sets if they are absent, and registers their tasks and mixtures.

    Tasks: scenes_caption, scenes_question, scenes_video_caption, scenes_video_question, scenes_labels, scenes_text.
    Mixtures: scenes_images (captions and questions), scenes_videos, scenes_all (images 3 : videos 1).

    Args:
        data_dir: where they are or will be written.
        config: which scenes.
        vocabulary: path of a SentencePiece model; the default is the scenes vocabulary.
    """
    scenes_builder.prepare(data_dir, config)
    words = vocabularies.load(vocabulary) if vocabulary else default_vocabulary()
    sources = {k: ArrayRecordSource(scenes_builder.builder(data_dir, k, config)) for k in scenes_builder.KINDS}
    caption = pre.caption(first=(config or ScenesConfig()).train_paraphrases)
    video_question = pre.question(prompt="image_question")  # answers such as "top left" are not one word
    add_task("scenes_caption", sources["images"], [caption], vocabulary=words)
    add_task("scenes_question", sources["images"], [pre.question()], vocabulary=words)
    add_task("scenes_video_caption", sources["videos"], [caption], vocabulary=words)
    add_task("scenes_video_question", sources["videos"], [video_question], vocabulary=words)
    add_task("scenes_labels", sources["images"], [pre.labels()], labels=True)
    add_task("scenes_text", sources["text"], [pre.document()], vocabulary=words)
    add_mixture("scenes_images", [("scenes_caption", 1), ("scenes_question", 1)])
    add_mixture("scenes_videos", [("scenes_video_caption", 1), ("scenes_video_question", 1)])
    add_mixture("scenes_all", [("scenes_images", 3), ("scenes_videos", 1)])


def scenes_task(
    name: str = "scenes_images", data_dir: str = "scenes_data", config: ScenesConfig | None = None, vocabulary: str = ""
) -> str:
    """Registers the scenes as `register_scenes` does and returns `name`: for .gin files.

    Args:
        name: one of its tasks or mixtures.
        data_dir: folder where the data sets are or will be written.
        config: which scenes.
        vocabulary: path of a SentencePiece model; the default is the scenes vocabulary.

    Raises:
        UserError: there is no such task or mixture.
    """
    register_scenes(data_dir, config, vocabulary)
    known = [*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()]
    if name not in known:
        ours = ", ".join(sorted(n for n in known if n.startswith("scenes_")))
        raise UserError(f"Expected the name of a scenes task or mixture; found {name!r}. Choose one of {ours}.")
    return name


def jsonl_task(
    name: str = "own",
    train: str = "",
    validation: str | None = None,
    *,
    holdout: float = 0.05,
    caption_prompt: str = "caption",
    question_prompt: str = "image_question",
    video_question_prompt: str = "video_question",
    resize: str = "stretch",
    frame_sampling: str = "uniform",
    vocabulary: str = "",
    prompt_format: str = formats.PLAIN,
    max_bad_share: float = 0.01,
) -> str:
    """Registers a user's own images and videos, listed in JSONL files (see `sources.JsonlSource`), and returns `name`.

    A task for each kind of record that the file has (<name>_image_caption, <name>_image_question, <name>_video_caption,
    <name>_video_question) and the mixture `name` of them, in proportion to their numbers.

    Args:
        name: letters, digits and underscores.
        train: the JSONL file to train on.
        validation: the JSONL file to evaluate on. Without, the share `holdout` of the media of `train` is held out.
        holdout: share of the media of `train` to evaluate on, where `validation` is not given.
        caption_prompt: a name in data/prompts, or a template with `<media>`.
        question_prompt, video_question_prompt: a name in data/prompts, or a template with `<media>` and `<question>`.
        resize: stretch, crop or pad.
        frame_sampling: uniform, centre or random, see `video.decode`.
        vocabulary: a SentencePiece model, a tokenizer.json, or a folder with one, such as an imported language model's;
            the default is the scenes vocabulary, which writes any text.
        prompt_format: `plain`; `chat`, the turns of the vocabulary's family; or a name of `formats.FORMATS`.
        max_bad_share: share of the lines that may be malformed.

    Raises:
        UserError: `train` is not given or not readable, too many lines are bad, a prompt is not a template, or the
            vocabulary cannot be read or lacks the tokens of the format.
    """
    if not train:
        raise UserError("Expected a JSONL file in jsonl_task.train; found nothing. Set it to the path of your file.")
    _check_name(name, "jsonl_task")
    video.check_sampling(frame_sampling)
    words = vocabularies.load(vocabulary, prompt_format)
    used: list[tuple[str, float]] = []
    for media in MEDIA_KEYS:
        for question in (False, True):
            settings: dict[str, Any] = {"holdout": holdout, "max_bad_share": max_bad_share, "resize": resize}
            settings["frame_sampling"] = frame_sampling
            source = JsonlSource(train, validation, media=media, question=question, **settings)
            task = f"{name}_{media}_{'question' if question else 'caption'}"
            _remove(task)
            if "train" not in source.splits:
                continue
            prompt = (video_question_prompt if media == "video" else question_prompt) if question else caption_prompt
            prompts.resolve(prompt, question)
            text = (pre.question if question else pre.caption)(prompt=prompt)
            add_task(task, source, [text], vocabulary=words)
            used.append((task, source.num_examples("train")))
    return add_mixture(name, used)


def pairs_task(
    name: str = "pairs",
    files: str | Sequence[str] = "",
    validation: str | Sequence[str] = "",
    *,
    media: str = "image",
    format: str = "auto",  # noqa: A002 the name in gin
    media_field: str = "",
    caption_field: str = "",
    holdout: float = 0.001,
    prompt: str = "caption",
    resize: str = "stretch",
    frame_sampling: str = "uniform",
    vocabulary: str = "",
    prompt_format: str = formats.PLAIN,
    cache_dir: str = "",
    threads: int = 0,
    max_bad_share: float = 0.01,
) -> str:
    """Registers images or videos with captions in any number of files, local or gs://, and returns `name`.

    Args:
        name: letters, digits and underscores.
        files: to train on: a pattern such as `gs://bucket/web/{00000..09999}.tar` or `clips/*.parquet`, or several.
        validation: to evaluate on, the same. Without, the last `holdout` of the records of `files` is held out.
        media: image or video.
        format: tar (WebDataset: `KEY.jpg` and `KEY.txt` or `KEY.json`), tfrecord and array_record (of
            tf.train.Example), parquet, jsonl; `auto` tells it by the files' names.
        media_field: feature or column with the encoded file or frames, or the path of a file; empty is `media`.
        caption_field: feature, column or JSON field with the caption or several; empty is `caption`. For tar, empty
            takes KEY.txt where there is one, and a name looks into KEY.json only.
        holdout: share of the records of `files` to evaluate on, where `validation` is not given; 0 is none.
        prompt: a name in data/prompts, or a template with `<media>`.
        resize: stretch, crop or pad.
        frame_sampling: uniform, centre or random, see `video.decode`.
        vocabulary: a tokeniser's file or folder; see `jsonl_task`.
        prompt_format: `plain`, `chat` or a family; see `jsonl_task`.
        cache_dir: where the indexes of the files are kept, see `shards.indexes`. Hosts that share it share the work.
        threads: records that are read at once; 0 is one a core, and 32 for remote files.
        max_bad_share: share of the records that may be unusable for reasons seen without reading their media.

    Raises:
        UserError: no or missing files, fields that are not there, too many unusable records, a prompt that is not a
            template, or an argument that is none of those listed.
    """
    _check_name(name, "pairs_task")
    if not files:
        raise UserError("Expected files in pairs_task.files; found none. Set it to a pattern such as 'web/{0..9}.tar'.")
    if media not in MEDIA_KEYS:
        raise UserError(f"Expected pairs_task.media to be image or video; found {media!r}. Choose one of them.")
    prompts.resolve(prompt, question=False)
    source = PairsSource(
        files,
        validation,
        fields=Fields(media, media_field, caption_field),
        format=format,
        holdout=holdout,
        resize=resize,
        frame_sampling=frame_sampling,
        cache_dir=cache_dir,
        threads=threads,
        max_bad_share=max_bad_share,
    )
    words = vocabularies.load(vocabulary, prompt_format)
    return add_task(name, source, [pre.caption(prompt=prompt)], vocabulary=words)
