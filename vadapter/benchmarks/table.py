"""The table of benchmarks: official files, folders of media, splits, sizes. data/README.md is its catalogue."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from etils import epath

from vadapter.base import trees
from vadapter.base.errors import UserError
from vadapter.benchmarks import captions, questions
from vadapter.benchmarks.files import Item

Reader = Callable[[epath.Path, Sequence[str], str], list[Item]]


@dataclasses.dataclass(frozen=True)
class Split:
    """One split of a benchmark.

    Attributes:
        files: official annotation files; the reader knows their roles.
        folders: where the media lie, relative to manual_dir; all are looked in, the first that has a file wins.
        size: rows of the official split; None where we do not know it exactly.
        part: what the reader needs to know beside the names.
    """

    files: tuple[str, ...]
    folders: tuple[str, ...]
    size: int | None
    part: str = ""


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A benchmark.

    Attributes:
        media: image or video.
        read: reads the items of a split, `(manual_dir, Split.files, Split.part)`.
        splits: by name.
        evaluated: the split that papers report and whose references are public.
        question: rows are questions; else captions.
    """

    media: str
    read: Reader
    splits: Mapping[str, Split]
    evaluated: str
    question: bool


def _coco(year: int, part: str, size: int) -> Split:
    name = f"{part}{year}"
    return Split((f"captions_{name}.json",), (name, f"images/{name}"), size)


_COCO_2014 = ("val2014", "train2014", "images/val2014", "images/train2014")


def _karpathy(part: str, size: int) -> Split:
    return Split(("dataset_coco.json",), _COCO_2014, size, part)


def _vqa(prefix: str, annotations: str, name: str, size: int) -> Split:
    return Split(
        (f"{prefix}_mscoco_{name}_questions.json", f"{annotations}_{name}_annotations.json"),
        (name, f"images/{name}"),
        size,
        name,
    )


def _vqav2(name: str, size: int) -> Split:
    if name.startswith("test"):
        return Split((f"v2_OpenEnded_mscoco_{name}_questions.json",), ("test2015", "images/test2015"), size, "test2015")
    return _vqa("v2_OpenEnded", "v2_mscoco", name, size)


def _one(name: str, folders: tuple[str, ...], size: int | None) -> Split:
    return Split((name,), folders, size)


_TEXTVQA = ("train_images", "train_val_images/train_images")
_MSRVTT = ("TrainValVideo", "TestVideo", "videos/all", "videos")
_MSVD_FILES = ("AllVideoDescriptions.txt", "youtube_mapping.txt", "MSR Video Description Corpus.csv")
_MSVD = ("YouTubeClips", "videos")
_VIDEOS = ("videos",)


def _msvd(part: str, size: int) -> Split:
    return Split(_MSVD_FILES, _MSVD, size, part)


BENCHMARKS: Mapping[str, Benchmark] = {
    "coco_caption": Benchmark(
        "image",
        captions.coco,
        {
            "train": _coco(2014, "train", 82_783),
            "validation": _coco(2014, "val", 40_504),
            "train_2017": _coco(2017, "train", 118_287),
            "validation_2017": _coco(2017, "val", 5_000),
        },
        "validation",
        question=False,
    ),
    "coco_karpathy": Benchmark(
        "image",
        captions.karpathy,
        {
            "train": _karpathy("train+restval", 113_287),
            "validation": _karpathy("val", 5_000),
            "test": _karpathy("test", 5_000),
        },
        "test",
        question=False,
    ),
    "nocaps": Benchmark(
        "image",
        captions.coco,
        {
            "validation": _one("nocaps_val_4500_captions.json", ("val", "validation", "images"), 4_500),
            "test": _one("nocaps_test_image_info.json", ("test", "images"), 10_600),
        },
        "validation",
        question=False,
    ),
    "msrvtt_caption": Benchmark(
        "video",
        captions.msrvtt,
        {
            "train": Split(("train_val_videodatainfo.json",), _MSRVTT, 6_513, "train"),
            "validation": Split(("train_val_videodatainfo.json",), _MSRVTT, 497, "validate"),
            "test": Split(("test_videodatainfo.json",), _MSRVTT, 2_990, "test"),
        },
        "test",
        question=False,
    ),
    "vatex_caption": Benchmark(
        "video",
        captions.vatex,
        {
            "train": _one("vatex_training_v1.0.json", _VIDEOS, 25_991),
            "validation": _one("vatex_validation_v1.0.json", _VIDEOS, 3_000),
            "test": _one("vatex_public_test_english_v1.1.json", _VIDEOS, 6_000),
        },
        "test",
        question=False,
    ),
    "msvd_caption": Benchmark(
        "video",
        captions.msvd,
        {"train": _msvd("1-1200", 1_200), "validation": _msvd("1201-1300", 100), "test": _msvd("1301-1970", 670)},
        "test",
        question=False,
    ),
    "vqav2": Benchmark(
        "image",
        questions.vqa,
        {
            "train": _vqav2("train2014", 443_757),
            "validation": _vqav2("val2014", 214_354),
            "test_dev": _vqav2("test-dev2015", 107_394),
            "test": _vqav2("test2015", 447_793),
        },
        "validation",
        question=True,
    ),
    "textvqa": Benchmark(
        "image",
        questions.textvqa,
        {
            "train": _one("TextVQA_0.5.1_train.json", _TEXTVQA, 34_602),
            "validation": _one("TextVQA_0.5.1_val.json", _TEXTVQA, 5_000),
            "test": _one("TextVQA_0.5.1_test.json", ("test_images",), 5_734),
        },
        "validation",
        question=True,
    ),
    "vizwiz_vqa": Benchmark(
        "image",
        questions.vizwiz,
        {
            "train": _one("train.json", ("train",), 20_523),
            "validation": _one("val.json", ("val",), 4_319),
            "test": _one("test.json", ("test",), 8_000),
        },
        "validation",
        question=True,
    ),
    "okvqa": Benchmark(
        "image",
        questions.vqa,
        {
            "train": _vqa("OpenEnded", "mscoco", "train2014", 9_009),
            "validation": _vqa("OpenEnded", "mscoco", "val2014", 5_046),
        },
        "validation",
        question=True,
    ),
    "gqa": Benchmark(
        "image",
        questions.gqa,
        {
            "train": _one("train_balanced_questions.json", ("images",), 943_000),
            "validation": _one("val_balanced_questions.json", ("images",), 132_062),
            "testdev": _one("testdev_balanced_questions.json", ("images",), 12_578),
        },
        "testdev",
        question=True,
    ),
    "msrvtt_qa": Benchmark(
        "video",
        questions.video_qa,
        {
            "train": Split(("train_qa.json",), _MSRVTT, 158_581, "video"),
            "validation": Split(("val_qa.json",), _MSRVTT, 12_278, "video"),
            "test": Split(("test_qa.json",), _MSRVTT, 72_821, "video"),
        },
        "test",
        question=True,
    ),
    "msvd_qa": Benchmark(
        "video",
        questions.video_qa,
        {
            "train": Split(("train_qa.json", "youtube_mapping.txt"), _MSVD, 30_933),
            "validation": Split(("val_qa.json", "youtube_mapping.txt"), _MSVD, 6_415),
            "test": Split(("test_qa.json", "youtube_mapping.txt"), _MSVD, 13_157),
        },
        "test",
        question=True,
    ),
    "ivqa": Benchmark(
        "video",
        questions.ivqa,
        {
            "train": _one("train.csv", _VIDEOS, None),
            "validation": _one("val.csv", _VIDEOS, None),
            "test": _one("test.csv", _VIDEOS, None),
        },
        "test",
        question=True,
    ),
}


def benchmark(name: str) -> Benchmark:
    """Returns a benchmark by name. Raises `UserError` if there is none."""
    if name not in BENCHMARKS:
        near = trees.nearest(name, BENCHMARKS, 1)[0] if name else "vqav2"
        raise UserError(
            f"Expected the name of a benchmark, one of {', '.join(BENCHMARKS)}; found {name!r}. Did you mean {near!r}?"
        )
    return BENCHMARKS[name]


def split(name: str, which: str) -> Split:
    """Returns a split of a benchmark. Raises `UserError` if there is none."""
    splits = benchmark(name).splits
    if which not in splits:
        raise UserError(f"Expected a split of {name}, one of {', '.join(splits)}; found {which!r}. Choose one.")
    return splits[which]


def benchmark_split(name: str, split: str = "") -> str:
    """Returns the name of a split: for .gin files.

    Args:
        name: the benchmark.
        split: returned as it is; empty is the split that papers report.
    """
    return split or benchmark(name).evaluated
