"""seqio tasks and mixtures of a user's own JSONL files, and of pairs at scale.

The functions register under names and return the name, so that a .gin file can say `LoaderConfig.mixture =
@jsonl_task()`. Registering again replaces.
"""

import re
from collections.abc import Sequence
from typing import Any

import seqio

from vadapter.base.errors import UserError
from vadapter.data import seqio_tasks
from vadapter.data.reading import storage, video
from vadapter.data.reading.conversation_source import Augment, ConversationSource
from vadapter.data.reading.jsonl import MEDIA_KEYS, JsonlSource, folders_of, read_splits
from vadapter.data.reading.pair_formats import Fields
from vadapter.data.reading.pairs import PairsSource
from vadapter.data.reading.sources import RandomAccessSource
from vadapter.data.rows import formats
from vadapter.data.rows import vocabulary as vocabularies
from vadapter.data.rows.converters import Rows, TextRows
from vadapter.data.rows.preprocessors import Caption, Chat, Preprocessor, Question
from vadapter.data.rows.text_vocabulary import TextVocabulary


def _check_name(name: str, function: str) -> None:
    if not re.fullmatch(r"[\w\d_]+", name):
        raise UserError(f"Expected letters, digits and underscores in {function}.name; found {name!r}. Rename it.")


def add_task(
    name: str,
    source: RandomAccessSource,
    preprocessors: Sequence[Any],
    *,
    vocabulary: TextVocabulary | None = None,
    rows: Rows | None = None,
) -> str:
    """Registers a seqio task, replacing one of the same name, and returns the name.

    Args:
        name: letters, digits and underscores.
        source: where the records are.
        preprocessors: what makes `inputs` and `targets` of a record (see `vadapter.data.rows.preprocessors`), or
            seqio's own, functions of a tf.data.Dataset. One example a record.
        vocabulary: of inputs and targets.
        rows: how examples become a batch; the default is `TextRows(vocabulary)`.

    Raises:
        UserError: neither a vocabulary nor rows.
    """
    if rows is None and vocabulary is None:
        raise UserError(f"Expected a vocabulary for the task {name}; found none. Give add_task its vocabulary.")
    made: Rows = rows or TextRows(vocabulary)  # type: ignore[arg-type] not None: see above
    seqio_tasks.remove(name)
    seqio.TaskRegistry.add(
        name,
        source=seqio_tasks.SeqioSource(source),
        output_features=seqio_tasks.features(made, source.media),
        preprocessors=[seqio_tasks.SeqioPreprocessor(p) if isinstance(p, Preprocessor) else p for p in preprocessors],
        task_cls=seqio_tasks.Task,
        rows=made,
    )
    return name


def add_mixture(name: str, rates: Sequence[tuple[str, float]]) -> str:
    """Registers a seqio mixture of tasks, replacing one of the same name, and returns the name.

    Args:
        name: letters, digits and underscores.
        rates: (task, rate); a task's share of the rows is its rate over the sum of all.
    """
    seqio_tasks.remove(name)
    seqio.MixtureRegistry.add(name, list(rates))
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
    captions: Preprocessor | None = None,
    questions: Preprocessor | None = None,
    resize: str | None = None,
    frame_sampling: str = "uniform",
    vocabulary: str = "",
    prompt_format: str = formats.PLAIN,
    max_bad_share: float = 0.01,
    media_folders: str | Sequence[str] = (),
) -> str:
    """Registers a user's own images and videos, listed in JSONL files (see `jsonl.read_jsonl`), and returns `name`.

    A task for each kind of record that the file has (<name>_image_caption, <name>_image_question, <name>_video_caption,
    <name>_video_question) and the mixture `name` of them, in proportion to their numbers.

    Args:
        name: letters, digits and underscores.
        train: the JSONL file to train on.
        validation: the JSONL file to evaluate on. Without, the share `holdout` of the media of `train` is held out.
        holdout: share of the media of `train` to evaluate on, where `validation` is not given.
        caption_prompt: a name in data/prompts, or a template with `<media>`.
        question_prompt, video_question_prompt: a name in data/prompts, or a template with `<media>` and `<question>`.
        captions, questions: preprocessors of captions and of questions, in place of `Caption` and `Question` with
            these prompts.
        resize: stretch, crop, pad, or another text of `resizing.parse`; default as the encoder has it.
        frame_sampling: uniform, centre or random, see `video.decode`.
        vocabulary: a SentencePiece model, a tokenizer.json, or a folder with one, such as an imported language model's;
            "scenes" is the 512-piece vocabulary of the demo's models, which writes any text.
        prompt_format: `plain`; `chat`, the turns of the vocabulary's family; or a name of `formats.FORMATS`.
        max_bad_share: share of the lines that may be malformed.
        media_folders: folders that images and videos may lie in beside those of the JSONL files: for absolute paths,
            `..`, links that lead out, and addresses. `["/"]` is all of this machine.

    Raises:
        UserError: `train` or `vocabulary` is not given or not readable, too many lines are bad, a prompt is not a
            template, or the vocabulary lacks the tokens of the format.
    """
    if not train:
        raise UserError("Expected a JSONL file in jsonl_task.train; found nothing. Set it to the path of your file.")
    _check_name(name, "jsonl_task")
    video.check_sampling(frame_sampling)
    words = vocabularies.load_given(vocabulary, prompt_format, "jsonl_task.vocabulary")
    asking = {"image": question_prompt, "video": video_question_prompt}
    texts = {
        (media, asks): (questions or Question(asking[media])) if asks else (captions or Caption(caption_prompt))
        for media in MEDIA_KEYS
        for asks in (False, True)
    }
    folders = folders_of([train, validation], media_folders)
    lines = read_splits(train, validation, holdout=holdout, max_bad_share=max_bad_share, folders=folders)
    reading: dict[str, Any] = {"folders": folders, "threads": storage.default_threads(train), "name": train}
    reading |= {"resize": resize, "frame_sampling": frame_sampling}
    used: list[tuple[str, float]] = []
    for (media, asks), text in texts.items():
        source = JsonlSource(lines, media=media, question=asks, **reading)
        task = f"{name}_{media}_{'question' if asks else 'caption'}"
        seqio_tasks.remove(task)
        if "train" in source.splits:
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
    captions: Preprocessor | None = None,
    resize: str | None = None,
    frame_sampling: str = "uniform",
    vocabulary: str = "",
    prompt_format: str = formats.PLAIN,
    cache_dir: str = "",
    threads: int = 0,
    max_bad_share: float = 0.01,
    media_folders: str | Sequence[str] = (),
) -> str:
    """Registers images or videos with captions in any number of files, local or gs://, and returns `name`.

    Args:
        name: letters, digits and underscores.
        files: to train on: a pattern such as `gs://bucket/web/{00000..09999}.tar` or `clips/*.parquet`, or several.
        validation: to evaluate on, the same. Without, the share `holdout` of the records of `files` is held out.
        media: image or video.
        format: tar (WebDataset: `KEY.jpg` and `KEY.txt` or `KEY.json`), tfrecord and array_record (of
            tf.train.Example), parquet, jsonl; `auto` tells it by the files' names.
        media_field: feature or column with the encoded file or frames, or the path of a file; empty is `media`.
        caption_field: feature, column or JSON field with the caption or several; empty is `caption`. For tar, empty
            takes KEY.txt where there is one, and a name looks into KEY.json only.
        holdout: share of the records of `files` to evaluate on, where `validation` is not given; 0 is none. They are
            drawn from all over the files, the same in every run.
        prompt: a name in data/prompts, or a template with `<media>`.
        captions: preprocessor of the records, in place of `Caption(prompt)`.
        resize: stretch, crop, pad, or another text of `resizing.parse`; default as the encoder has it.
        frame_sampling: uniform, centre or random, see `video.decode`.
        vocabulary: a tokeniser's file or folder; see `jsonl_task`.
        prompt_format: `plain`, `chat` or a family; see `jsonl_task`.
        cache_dir: where the indexes of the files are kept, see `shards.indexes`. Hosts that share it share the work.
        threads: records that are read at once; 0 is one a core, and 32 for remote files.
        max_bad_share: share of the records that may be unusable for reasons seen without reading their media.
        media_folders: folders that files named by records may lie in beside those of `files`; see `jsonl_task`.

    Raises:
        UserError: no or missing files, no vocabulary, fields that are not there, too many unusable records, a prompt
            that is not a template, or an argument that is none of those listed.
    """
    _check_name(name, "pairs_task")
    if not files:
        raise UserError("Expected files in pairs_task.files; found none. Set it to a pattern such as 'web/{0..9}.tar'.")
    if media not in MEDIA_KEYS:
        raise UserError(f"Expected pairs_task.media to be image or video; found {media!r}. Choose one of them.")
    captions = captions or Caption(prompt)
    words = vocabularies.load_given(vocabulary, prompt_format, "pairs_task.vocabulary")
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
        media_folders=media_folders,
    )
    return add_task(name, source, [captions], vocabulary=words)


def chat_task(
    name: str = "chat",
    files: str | Sequence[str] = "",
    validation: str | Sequence[str] = "",
    *,
    media: str = "",
    max_media: int = 0,
    max_tiles: int = 0,
    loss: str = "all",
    augment: Augment | None = None,
    holdout: float = 0.001,
    resize: str | None = None,
    frame_sampling: str = "uniform",
    vocabulary: str = "",
    prompt_format: str = formats.CHAT,
    cache_dir: str = "",
    threads: int = 0,
    max_bad_share: float = 0.01,
    media_folders: str | Sequence[str] = (),
) -> str:
    """Registers conversations with any number of images and videos, local or gs://, and returns `name`.

    The format of the files (JSON Lines, a JSON array, Parquet, tar) and the layout of their records (OpenAI, LLaVA,
    the_cauldron, FineVision, LLaMA-Factory) are found by looking; see `vadapter.data.reading.conversations`.

    Args:
        name: letters, digits and underscores.
        files: to train on: a pattern such as `cauldron/*.parquet`, or several, all of one format.
        validation: to evaluate on, the same. Without, the share `holdout` of the records of `files` is held out.
        media: none, image or video: what rows hold. Rows with videos take images too, as clips that stand still.
            Empty finds it by the first 1,000 records.
        max_media: most images and videos a row; further turns are cut, and counted as text that is too long. 0 takes
            the most of the first 1,000 records, up to 8.
        max_tiles: an image is followed by up to so many tiles of itself, on the grid of columns and rows that fits its
            shape (AnyRes, as LLaVA-NeXT chooses it): each is a medium of its own, and counts among `max_media`. 0 is
            the image alone; see `vadapter.data.reading.tiles`.
        loss: `all` answers are learnt, or the `last` one of each row only.
        augment: a function of (frames, uint8 [F, h, w, 3], numpy Generator) that returns such frames. It is called for
            each medium of the split train; the generator is seeded by the loader's seed and the place in the order of
            data.
        holdout: share of the records of `files` to evaluate on, where `validation` is not given; 0 is none. They are
            drawn from all over the files, the same in every run.
        resize: stretch, crop, pad, or another text of `resizing.parse`; default as the encoder has it. Tiles keep
            the aspect ratio.
        frame_sampling: uniform, centre or random, see `video.decode`.
        vocabulary: a tokeniser's file or folder; see `jsonl_task`.
        prompt_format: `chat`, `plain` or a family; see `jsonl_task`.
        cache_dir: where the indexes of the files are kept, see `shards.indexes`.
        threads: records that are read at once; 0 is one a core, and 32 for remote files.
        max_bad_share: share of the records that may be unusable as the files are opened.
        media_folders: folders that files named by records may lie in beside those of `files`; see `jsonl_task`.

    Raises:
        UserError: no, missing or unknown files, no vocabulary, too many unusable records, or an argument that is none
            of those listed.
    """
    _check_name(name, "chat_task")
    if not files:
        raise UserError("Expected files in chat_task.files; found none. Set it to a pattern such as 'chats/*.parquet'.")
    if loss not in ("all", "last"):
        raise UserError(f"Expected chat_task.loss to be all or last; found {loss!r}. Choose one of them.")
    words = vocabularies.load_given(vocabulary, prompt_format, "chat_task.vocabulary")
    source = ConversationSource(
        files,
        validation,
        media=media,
        max_media=max_media,
        max_tiles=max_tiles,
        augment=augment,
        holdout=holdout,
        resize=resize,
        frame_sampling=frame_sampling,
        cache_dir=cache_dir,
        threads=threads,
        max_bad_share=max_bad_share,
        media_folders=media_folders,
    )
    return add_task(name, source, [Chat()], rows=TextRows(words, last_only=loss == "last"))
