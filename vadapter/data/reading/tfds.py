"""Data sets that TFDS's own builders prepared, as tasks: captions of, or questions about, still images."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from vadapter.base.errors import UserError
from vadapter.data.reading import contents, images
from vadapter.data.reading.sources import Medium, RandomAccessSource
from vadapter.data.rows import formats
from vadapter.data.rows import vocabulary as vocabularies
from vadapter.data.rows.preprocessors import Caption, Preprocessor, Question
from vadapter.data.rows.sizes import Shape
from vadapter.data.tasks import add_task

Record = dict[str, Any]


class TfdsSource(RandomAccessSource):
    """A prepared data set, read through `as_data_source`. Its images are decoded as everywhere in vadapter."""

    media = "image"

    def __init__(self, builder: tfds.core.DatasetBuilder, image: str, texts: dict[str, str], resize: str | None = None):
        """Args:
            builder: prepared in a file format with random access.
            image: feature with the image.
            texts: which feature is `id`, `captions`, `question` or `answers`; `captions/text` is one inside another.
            resize: see `RandomAccessSource`.

        Raises:
            UserError: the data set is not prepared or in another file format, or has no such feature.
        """
        found = builder.info.file_format if builder.info.splits.total_num_examples else None
        if found is not tfds.core.FileFormat.ARRAY_RECORD:
            raise UserError(
                f"Expected {builder.name} as ArrayRecord files in {builder.data_path}, which can be read at random; "
                f"found {found.value if found else 'nothing'}. Prepare it: tfds build "
                f"{builder.name} --file_format=array_record --data_dir=..."
            )
        features: Any = builder.info.features
        for path in (image, *texts.values()):
            if path not in features and path.partition("/")[0] not in features:
                raise UserError(
                    f"Expected the feature {path!r} in {builder.name}; it has {', '.join(features)}. Name one of these."
                )
        self._image, self._texts, self.resize = image, texts, resize
        pictures = {image, *(key for key in features if isinstance(features[key], tfds.features.Image))}
        self._decoders = dict.fromkeys(pictures, tfds.decode.SkipDecoding())
        self._builder: Any = builder
        self._readers: dict[str, Any] = {}  # of each split; shared with what `resized` returns, pass for pass
        self.splits = tuple(builder.info.splits)

    def __str__(self) -> str:
        return f"TfdsSource({self._builder.data_path})"

    def _records(self, split: str) -> Any:
        if split not in self._readers:
            self._readers[split] = self._builder.as_data_source(split, decoders=self._decoders)
        return self._readers[split]

    def num_examples(self, split: str) -> int:
        return self._builder.info.splits[split].num_examples

    def fingerprint(self, split: str) -> str:
        """Of what the builder wrote down: its configuration, and numbers and bytes of its records."""
        return contents.of_split(self._builder, split)

    def read(self, split: str, indices: np.ndarray) -> list[Record]:
        return self._records(split).__getitems__([int(i) for i in indices])

    def features(self, record: Record) -> dict[str, Any]:
        texts = {key: _texts(_find(record, path)) for key, path in self._texts.items()}
        return {key: found if key in ("captions", "answers") else found[0] for key, found in texts.items()}

    def read_media(self, record: Record, shape: Shape, choice: int = 0) -> np.ndarray:
        return images.decode(record[self._image], shape[2], self.resize)[None, None]

    def contents(self, record: Record) -> list[bytes]:
        return [record[self._image]]

    def medium(self, record: Record) -> Medium:
        return Medium.of_bytes([record[self._image]])


def _find(record: Record, path: str) -> Any:
    head, _, rest = (path, "", "") if path in record else path.partition("/")
    return _find(record[head], rest) if rest else record[head]


def _texts(value: Any) -> list[str]:
    values = value if isinstance(value, Sequence | np.ndarray) and not isinstance(value, bytes | str) else [value]
    return [v.decode(errors="replace") if isinstance(v, bytes) else str(v) for v in values]


def tfds_task(
    name: str,
    dataset: str,
    data_dir: str | None = None,
    *,
    image: str = "image",
    id_field: str = "image/id",
    captions: str = "captions/text",
    question: str = "",
    answers: str = "",
    prompt: str = "",
    preprocessor: Preprocessor | None = None,
    resize: str | None = None,
    vocabulary: str = "",
    prompt_format: str = formats.PLAIN,
) -> str:
    """Registers a data set that `tfds build` prepared as a seqio task, and returns `name`: for .gin files.

    Args:
        name: of the task: letters, digits and underscores.
        dataset: TFDS's name, such as `coco_captions` or `laion400m/images:1.0.0`.
        data_dir: where it is prepared; None is TFDS's default folder.
        image, id_field, captions: features that have the image, its name, and the caption or captions. The defaults are
            those of `coco_captions`; `captions/text` is the feature `text` in the feature `captions`.
        question, answers: features that have a question and its answer or answers; `captions` is not read then.
        prompt: a name in data/prompts, or a template; default the paper's.
        preprocessor: what is done with a record's text, in place of `Caption` or `Question` with `prompt`.
        resize, vocabulary, prompt_format: as of `tasks.jsonl_task`.

    Raises:
        UserError: as `TfdsSource`; the data set is not known to TFDS, or a prompt is not a template.
    """
    words = vocabularies.load_given(vocabulary, prompt_format, "tfds_task.vocabulary")
    if preprocessor is None:
        preprocessor = Question(prompt or "image_question") if question else Caption(prompt or "caption")
    try:
        builder = tfds.builder(dataset, data_dir=data_dir, file_format="array_record")
    except tfds.core.DatasetNotFoundError as e:
        raise UserError(
            f"Expected a data set that TFDS knows, or one prepared in {data_dir or 'its default folder'}; found "
            f"{dataset!r}. Correct the name, or data_dir."
        ) from e
    texts = {"id": id_field, **({"question": question, "answers": answers} if question else {"captions": captions})}
    source = TfdsSource(builder, image, texts, resize)
    return add_task(name, source, [preprocessor], vocabulary=words)
