"""The benchmarks of data/README.md. `catalogue` makes its table of these records."""

from vadapter.base import trees
from vadapter.base.errors import UserError
from vadapter.benchmarks import assistants, captions, free_answers, options, protocols, questions
from vadapter.benchmarks.benchmark import Benchmark, Split
from vadapter.evaluation import answers


def _coco(year: int, part: str, size: int) -> Split:
    name = f"{part}{year}"
    return Split((f"captions_{name}.json",), (name, f"images/{name}"), size)


_COCO_2014 = ("val2014", "train2014", "images/val2014", "images/train2014")


def _karpathy(part: str, size: int, note: str = "") -> Split:
    return Split(("dataset_coco.json",), _COCO_2014, size, part, note)


def _vqa(prefix: str, annotations: str, name: str, size: int, note: str = "") -> Split:
    return Split(
        (f"{prefix}_mscoco_{name}_questions.json", f"{annotations}_{name}_annotations.json"),
        (name, f"images/{name}"),
        size,
        name,
        note,
    )


def _vqav2(name: str, size: int) -> Split:
    if name.startswith("test"):
        folders = ("test2015", "images/test2015")
        return Split((f"v2_OpenEnded_mscoco_{name}_questions.json",), folders, size, "test2015", "no answers")
    return _vqa("v2_OpenEnded", "v2_mscoco", name, size)


def _one(name: str, folders: tuple[str, ...], size: int | None, note: str = "") -> Split:
    return Split((name,), folders, size, note=note)


_TEXTVQA = ("train_images", "train_val_images/train_images")
_MSRVTT = ("TrainValVideo", "TestVideo", "videos/all", "videos")
_MSVD_FILES = ("AllVideoDescriptions.txt", "youtube_mapping.txt", "MSR Video Description Corpus.csv")
_MSVD = ("YouTubeClips", "videos")
_VIDEOS = ("videos",)


def _msvd(part: str, size: int) -> Split:
    return Split(_MSVD_FILES, _MSVD, size, part, f"vid{part.replace('-', ' to ')}")


def _msrvtt_qa(name: str, size: int) -> Split:
    return Split((f"{name}_qa.json",), _MSRVTT, size, "video")


def _msvd_qa(name: str, size: int) -> Split:
    return Split((f"{name}_qa.json", "youtube_mapping.txt"), _MSVD, size)


_COCO_RESULTS = "captions_{split}_vadapter_results.json"
_QA_SITE = "github.com/xudejing/video-question-answering"
_BENCHMARKS: dict[str, Benchmark] = {}


def register(benchmark: Benchmark) -> Benchmark:
    """Makes a benchmark known by its name, and returns it.

    Raises:
        UserError: another one has the name.
    """
    if _BENCHMARKS.setdefault(benchmark.name, benchmark) is not benchmark:
        raise UserError(f"There is a benchmark {benchmark.name!r} already. Give the new one another name.")
    return benchmark


def registered() -> list[Benchmark]:
    """All benchmarks: those of vadapter, then others in the order of their registration."""
    return list(_BENCHMARKS.values())


def benchmark(name: str) -> Benchmark:
    """Returns a benchmark by name. Raises `UserError` if there is none."""
    if name not in _BENCHMARKS:
        near = trees.nearest(name, _BENCHMARKS, 1)[0] if name else "vqav2"
        raise UserError(
            f"Expected a benchmark, one of {', '.join(_BENCHMARKS)}; found {name!r}. Did you mean {near!r}? "
            "A benchmark of your own is known once the module that registers it is imported."
        )
    return _BENCHMARKS[name]


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


# --- captions ---------------------------------------------------------------------------------------------------------

register(
    Benchmark(
        name="coco_caption",
        media="image",
        question=False,
        read=captions.coco,
        splits={
            "train": _coco(2014, "train", 82_783),
            "validation": _coco(2014, "val", 40_504),
            "train_2017": _coco(2017, "train", 118_287),
            "validation_2017": _coco(2017, "val", 5_000),
        },
        evaluated="validation",
        protocol=protocols.captions(int, file=_COCO_RESULTS),
        site="cocodataset.org",
        example="train2014/COCO_train2014_000000000009.jpg",
    )
)
register(
    Benchmark(
        name="coco_karpathy",
        media="image",
        question=False,
        read=captions.karpathy,
        splits={
            "train": _karpathy("train+restval", 113_287, "with restval"),
            "validation": _karpathy("val", 5_000),
            "test": _karpathy("test", 5_000),
        },
        evaluated="test",
        protocol=protocols.captions(int, file=_COCO_RESULTS),
        site="cs.stanford.edu/people/karpathy/deepimagesent",
        example="val2014/COCO_val2014_000000391895.jpg",
    )
)
register(
    Benchmark(
        name="nocaps",
        media="image",
        question=False,
        read=captions.coco,
        splits={
            "validation": _one(
                *("nocaps_val_4500_captions.json", ("val", "validation", "images"), 4_500),
                "in, near and out of domain 648, 2,938, 914",
            ),
            "test": _one("nocaps_test_image_info.json", ("test", "images"), 10_600, "no captions"),
        },
        evaluated="validation",
        # CIDEr of a domain counts document frequencies over that domain alone.
        protocol=protocols.captions(int, by="domain"),
        site="nocaps.org; images of Open Images",
        example="val/0013ea2087020901.jpg",
    )
)
register(
    Benchmark(
        name="msrvtt_caption",
        media="video",
        question=False,
        read=captions.msrvtt,
        splits={
            "train": Split(("train_val_videodatainfo.json",), _MSRVTT, 6_513, "train"),
            "validation": Split(("train_val_videodatainfo.json",), _MSRVTT, 497, "validate"),
            "test": Split(("test_videodatainfo.json",), _MSRVTT, 2_990, "test", "7010 to 9999"),
        },
        evaluated="test",
        # No server: COCO's rows, with the video's name.
        protocol=protocols.captions(),
        site="ms-multimedia-challenge.com (2016)",
        example="TestVideo/video7010.mp4",
    )
)
register(
    Benchmark(
        name="vatex_caption",
        media="video",
        question=False,
        read=captions.vatex,
        splits={
            "train": _one("vatex_training_v1.0.json", _VIDEOS, 25_991),
            "validation": _one("vatex_validation_v1.0.json", _VIDEOS, 3_000),
            "test": _one("vatex_public_test_english_v1.1.json", _VIDEOS, 6_000, "the public one"),
        },
        evaluated="test",
        protocol=protocols.captions(as_mapping=True),
        site="eric-xw.github.io/vatex-website",
        example="videos/G9zN5TTuGO4_000179_000189.mp4",
        media_note="cut to the seconds in the id",
    )
)
register(
    Benchmark(
        name="msvd_caption",
        media="video",
        question=False,
        read=captions.msvd,
        splits={
            "train": _msvd("1-1200", 1_200),
            "validation": _msvd("1201-1300", 100),
            "test": _msvd("1301-1970", 670),
        },
        evaluated="test",
        protocol=protocols.captions(),
        site="www.cs.utexas.edu/users/ml/clamp/videoDescription",
        example="YouTubeClips/-4wsuPCjDBc_5_15.avi",
        files_note="where the first is missing, the English rows of the last, Microsoft's original, are read",
    )
)

# --- questions --------------------------------------------------------------------------------------------------------

register(
    Benchmark(
        name="vqav2",
        media="image",
        question=True,
        read=questions.vqa,
        splits={
            "train": _vqav2("train2014", 443_757),
            "validation": _vqav2("val2014", 214_354),
            "test_dev": _vqav2("test-dev2015", 107_394),
            "test": _vqav2("test2015", 447_793),
        },
        evaluated="validation",
        protocol=protocols.questions("question_id", int, by="answer_type", file="vqa_{split}_vadapter_results.json"),
        site="visualqa.org",
        example="val2014/COCO_val2014_000000262148.jpg",
        media_note="of COCO",
    )
)
register(
    Benchmark(
        name="textvqa",
        media="image",
        question=True,
        read=questions.textvqa,
        splits={
            "train": _one("TextVQA_0.5.1_train.json", _TEXTVQA, 34_602),
            "validation": _one("TextVQA_0.5.1_val.json", _TEXTVQA, 5_000),
            "test": _one("TextVQA_0.5.1_test.json", ("test_images",), 5_734, "no answers"),
        },
        evaluated="validation",
        protocol=protocols.questions("question_id", int),
        site="textvqa.org",
        example="train_images/003a8ae2ef43b901.jpg",
        media_note="train_images has the images of validation, too",
    )
)
register(
    Benchmark(
        name="vizwiz_vqa",
        media="image",
        question=True,
        read=questions.vizwiz,
        splits={
            "train": _one("train.json", ("train",), 20_523),
            "validation": _one("val.json", ("val",), 4_319),
            "test": _one("test.json", ("test",), 8_000, "no answers"),
        },
        evaluated="validation",
        # "unanswerable" is an answer like others. The server knows questions by their images.
        protocol=protocols.questions("image", by="answer_type"),
        site="vizwiz.org",
        example="val/VizWiz_val_00000000.jpg",
    )
)
register(
    Benchmark(
        name="okvqa",
        media="image",
        question=True,
        read=questions.vqa,
        splits={
            "train": _vqa("OpenEnded", "mscoco", "train2014", 9_009),
            "validation": _vqa("OpenEnded", "mscoco", "val2014", 5_046, "papers call it test"),
        },
        evaluated="validation",
        protocol=protocols.questions(
            *("question_id", int, (answers.OKVQA_ACCURACY, answers.UNSTEMMED_ACCURACY)), by="answer_type"
        ),
        site="okvqa.allenai.org",
        example="val2014/COCO_val2014_000000297147.jpg",
        files_note="version 1.1",
        media_note="of COCO",
    )
)
register(
    Benchmark(
        name="gqa",
        media="image",
        question=True,
        read=questions.gqa,
        splits={
            "train": _one("train_balanced_questions.json", ("images",), 943_000),
            "validation": _one("val_balanced_questions.json", ("images",), 132_062),
            "testdev": _one("testdev_balanced_questions.json", ("images",), 12_578),
        },
        evaluated="testdev",
        protocol=protocols.exact(row=protocols.row("questionId", "prediction"), by="question_type"),
        site="cs.stanford.edu/people/dorarad/gqa",
        example="images/2370799.jpg",
    )
)
register(
    Benchmark(
        name="msrvtt_qa",
        media="video",
        question=True,
        read=questions.video_qa,
        splits={
            "train": _msrvtt_qa("train", 158_581),
            "validation": _msrvtt_qa("val", 12_278),
            "test": _msrvtt_qa("test", 72_821),
        },
        evaluated="test",
        # No server: a list with the annotation file's ids. So it is with the two below.
        protocol=protocols.exact(by="question_type"),
        site=_QA_SITE,
        example="TestVideo/video7010.mp4",
    )
)
register(
    Benchmark(
        name="msvd_qa",
        media="video",
        question=True,
        read=questions.video_qa,
        splits={
            "train": _msvd_qa("train", 30_933),
            "validation": _msvd_qa("val", 6_415),
            "test": _msvd_qa("test", 13_157),
        },
        evaluated="test",
        protocol=protocols.exact(by="question_type"),
        site=_QA_SITE,
        example="YouTubeClips/-4wsuPCjDBc_5_15.avi",
    )
)
register(
    Benchmark(
        name="ivqa",
        media="video",
        question=True,
        read=questions.ivqa,
        splits={
            "train": _one("train.csv", _VIDEOS, None, "about 6,000"),
            "validation": _one("val.csv", _VIDEOS, None, "about 2,000"),
            "test": _one("test.csv", _VIDEOS, None, "about 2,000"),
        },
        evaluated="test",
        protocol=protocols.exact(answers.IVQA_ACCURACY),
        site="antoyang.github.io/just-ask.html",
        example="videos/<video_id>.mp4",
        media_note="cut to the clips",
    )
)

for _benchmark in (*assistants.BENCHMARKS, *options.BENCHMARKS, *free_answers.BENCHMARKS):
    register(_benchmark)

SHIPPED = tuple(registered())
