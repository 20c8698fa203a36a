"""The TFDS builder of the benchmarks, and `prepare`, which builds a split where it is absent. Needs no network.

The records of a data set hold the files themselves, so that it is one self-contained folder that is read at random, on
disk or in a bucket. Files that several records show (the questions about an image) are in the first of them only; the
others say in `at` which record that is.

With Apache Beam (`pip install vadapter[beam]`) files are read and records written by many workers.
"""

import logging
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from vadapter.base.errors import UserError
from vadapter.base.paths import is_remote
from vadapter.base.quiet import quiet
from vadapter.benchmarks import media, table
from vadapter.benchmarks.files import Item, Picture
from vadapter.benchmarks.media import Entry


class BenchmarkConfig(tfds.core.BuilderConfig):
    """A split of a benchmark. Its name on disk is the benchmark's and the split's.

    Attributes:
        benchmark, split: which.
        text_only: no media, and answers as people write them: what examples in prompts are taken from.
        manual_dir, max_bad_share: see `media.entries`.
        beam: whether Beam writes it.
    """

    def __init__(
        self,
        benchmark: str,
        split: str,
        text_only: bool = False,
        manual_dir: str = "",
        max_bad_share: float = 0.01,
        beam: bool = False,
    ):
        self.benchmark, self.split, self.text_only = benchmark, split, text_only
        self.manual_dir, self.max_bad_share, self.beam = manual_dir, max_bad_share, beam
        name = f"{benchmark}_{split}" + ("_text" if text_only else "")
        super().__init__(name=name, description=f"{benchmark}, {split}")


class _Writer(tfds.core.ExampleWriter):
    """Writes shards. ArrayRecord is written to local files only, so one for a bucket is written here and copied."""

    def write(self, path: epath.PathLike, examples: Iterable[Any]) -> Any:
        if not is_remote(path):
            return super().write(path, examples)
        with tempfile.TemporaryDirectory() as folder:
            local = epath.Path(folder) / epath.Path(path).name
            found = super().write(local, examples)
            local.copy(path, overwrite=True)
        return found


class Benchmarks(tfds.core.GeneratorBasedBuilder):
    """Captions of, or questions about, images and videos, from the official files of public benchmarks."""

    VERSION = tfds.core.Version("1.0.0")
    code_path = None  # nothing to look up beside the code: no downloads, so no checksums

    @property
    def _config(self) -> BenchmarkConfig:
        assert isinstance(self.builder_config, BenchmarkConfig)
        return self.builder_config

    def _info(self) -> tfds.core.DatasetInfo:
        text, texts = tfds.features.Text(), tfds.features.Sequence(tfds.features.Text())
        features = {
            **dict.fromkeys(("id", "file_name", "question", "question_type", "answer_type", "domain"), text),
            **dict.fromkeys(("captions", "answers", "options"), texts),
            # An older data set has one file a record, which is stored as a list of one is.
            "file": tfds.features.Sequence(tfds.features.Tensor(shape=(), dtype=np.object_)),
            "at": tfds.features.Scalar(np.int64),
        }
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(),
        )

    def _example_writer(self) -> tfds.core.ExampleWriter:
        return _Writer(tfds.core.FileFormat.ARRAY_RECORD)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager
        config = self._config
        if config.text_only:
            items = media.read_items(config.benchmark, config.split, config.manual_dir)
            entries, left_out = [Entry(item, (), i) for i, item in enumerate(items)], []
        else:
            entries, left_out = media.entries(config.benchmark, config.split, config.manual_dir, config.max_bad_share)
        assert self.info.metadata is not None
        most = max((len(entry.pictures) for entry in entries), default=0)
        self.info.metadata.update(rows=len(entries), left_out=left_out, max_media=most)
        return {config.split: self._generate_examples(entries)}

    def _generate_examples(self, entries: list[Entry]) -> Any:
        plain = self._config.text_only
        if self._config.beam:
            beam = tfds.core.lazy_imports.apache_beam
            numbered = [(i, entry, plain) for i, entry in enumerate(entries)]
            return beam.Create(numbered) | beam.MapTuple(_example)
        return _examples(entries, plain)


def _examples(entries: list[Entry], plain: bool) -> Iterator[tuple[int, dict]]:
    for i, entry in enumerate(entries):
        yield _example(i, entry, plain)


def _example(i: int, entry: Entry, plain: bool) -> tuple[int, dict[str, Any]]:
    item: Item = entry.item
    return i, {
        "id": item.id,
        "file_name": item.shown,
        "question": item.question,
        "question_type": item.question_type,
        "answer_type": item.answer_type,
        "domain": item.domain,
        "captions": list(item.captions),
        "answers": list((item.plain_answers or item.answers) if plain else item.answers),
        "options": list(item.options),
        "file": [_content(item, picture) for picture in entry.pictures],
        "at": entry.at,
    }


def _content(item: Item, picture: Picture) -> bytes:
    content = picture.read()
    if not content:
        raise UserError(
            f"Expected an image or video {picture.name} of the record {item.id}; found an empty one. Download the file "
            "that has it again."
        )
    return content


def builder(data_dir: str, benchmark: str, split: str, text_only: bool = False, **settings: Any) -> Benchmarks:
    """Returns the TFDS builder of a split under `data_dir`, built or not; `settings` as of `BenchmarkConfig`."""
    table.split(benchmark, split)
    config = BenchmarkConfig(benchmark, split, text_only, **settings)
    with quiet():
        return Benchmarks(data_dir=data_dir, config=config, file_format="array_record")


def prepare(
    data_dir: str,
    benchmark: str,
    split: str,
    manual_dir: str = "",
    *,
    text_only: bool = False,
    max_bad_share: float = 0.01,
    beam: bool = False,
    beam_options: tuple[str, ...] = (),
) -> Benchmarks:
    """Writes a split of a benchmark as ArrayRecord files under `data_dir`, unless it is there already.

    It appears at once when it is complete: an interrupted run leaves nothing that looks finished.

    Args:
        data_dir: where it is or will be written.
        benchmark, split: which; see `table`.
        manual_dir: folder with the official files and the media, as data/README.md says. Not needed where the data set
            is built.
        text_only: questions and answers without media.
        max_bad_share: share of the rows that may have no file.
        beam: write with Apache Beam.
        beam_options: options of its pipeline, such as `--runner=DataflowRunner`; none is the runner of this machine.

    Returns:
        The builder, built.

    Raises:
        UserError: Beam is not installed, or as `media.entries`.
    """
    settings: dict[str, Any] = {"manual_dir": manual_dir, "max_bad_share": max_bad_share, "beam": beam}
    made = builder(data_dir, benchmark, split, text_only, **settings)
    if made.data_path.exists():
        left_out = (made.info.metadata or {}).get("left_out", [])
        if left_out:
            logging.warning("%s %s was built without %d rows, first %s", benchmark, split, len(left_out), left_out[0])
        return made
    tfds.disable_progress_bar()
    logging.info("writing %s to %s", made.builder_config.name, made.data_path)  # type: ignore[union-attr]
    download = tfds.download.DownloadConfig(
        try_download_gcs=False, beam_options=_beam_options(beam_options) if beam else None
    )
    try:
        made.download_and_prepare(download_config=download)
    except OSError:
        if not made.data_path.exists():  # else another process was faster
            raise
    return made


def _beam_options(options: tuple[str, ...]) -> Any:
    try:
        from apache_beam.options.pipeline_options import PipelineOptions  # type: ignore[import-not-found]
    except ImportError as e:
        raise UserError(
            "Expected Apache Beam, which --beam writes with; it is not installed. Run: pip install 'vadapter[beam]', "
            "or build without --beam."
        ) from e
    return PipelineOptions(list(options))
