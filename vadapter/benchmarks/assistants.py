"""The benchmarks that papers on assistants quote: their readers, and their records, which `table` registers."""

from collections.abc import Sequence

from etils import epath

from vadapter.base.errors import UserError
from vadapter.benchmarks import files, protocols
from vadapter.benchmarks.benchmark import Benchmark, Split
from vadapter.benchmarks.files import Item
from vadapter.evaluation import answers, yes_no

# --- POPE: is an object in the picture? -------------------------------------------------------------------------------


def pope(folder: epath.Path, names: Sequence[str], part: str = "") -> list[Item]:
    """POPE: JSON lines of `question_id`, `image`, `text` and `label`, yes or no.

    The question's type is how its objects were chosen, as the file's name says. Each file numbers its questions from
    1, so where several are read `adversarial_1` is the id of the first one's.
    """
    del part
    items = []
    for name in names:
        path = files.find(folder, name)
        rows = files.check_rows(path, files.read_json_lines(path), ("question_id", "image", "text", "label"))
        files.check_unique(path, (row["question_id"] for row in rows), "question_id")
        kind = name.removesuffix(".json").rsplit("_", 1)[-1]
        for row in rows:
            if row["label"] not in ("yes", "no"):
                raise UserError(
                    f"Expected the label yes or no in each line of {path}; found {row['label']!r} of question "
                    f"{row['question_id']}. Download the official file again."
                )
            items.append(
                Item(
                    f"{kind}_{row['question_id']}" if len(names) > 1 else str(row["question_id"]),
                    epath.Path(row["image"]).stem,
                    question=row["text"],
                    answers=(row["label"],),
                    question_type=kind,
                )
            )
    return items


def _pope(*kinds: str) -> Split:
    names = tuple(f"coco_pope_{kind}.json" for kind in kinds)
    return Split(names, ("val2014", "images/val2014"), 3_000 * len(kinds))


_POPE = ("random", "popular", "adversarial")

# --- DocVQA and ChartQA: reading documents and charts -----------------------------------------------------------------

_DOCVQA = ("docId", "ucsf_document_id", "ucsf_document_page_no", "data_split", "question_types")


def docvqa(folder: epath.Path, names: Sequence[str], part: str = "") -> list[Item]:
    """DocVQA (single page): `data`, questions with their `answers`, but for the test split (`part`), which has none.

    The first of `names` that is there is read: the newer release has the questions' types, too.
    """
    there = (name for name in names for place in (folder, folder / "annotations") if (place / name).exists())
    path = files.find(folder, next(there, names[0]))
    rows = files.part(path, files.read_json(path, dict), "data")
    rows = files.check_rows(path, rows, ("questionId", "question", "image"), (*_DOCVQA, "answers"))
    files.check_unique(path, (row["questionId"] for row in rows), "questionId")
    if lost := [row["questionId"] for row in rows if part != "test" and not row.get("answers")]:
        raise UserError(
            f"Expected answers of each question in {path}; {len(lost)} have none, first question {lost[0]}. Download "
            "the official file again."
        )
    return [
        Item(
            str(row["questionId"]),
            epath.Path(row["image"]).stem,
            question=row["question"],
            answers=files.texts(row.get("answers")),
        )
        for row in rows
    ]


def _documents(part: str, size: int, note: str = "") -> Split:
    names = (f"{part}_v1.0.json",) if part == "test" else (f"{part}_v1.0_withQT.json", f"{part}_v1.0.json")
    return Split(names, ("spdocvqa_images", "documents", f"{part}/documents"), size, part, note)


def chartqa(folder: epath.Path, names: Sequence[str], part: str = "") -> list[Item]:
    """ChartQA: lists of `imgname`, `query` and `label`, of people and of a machine; which is the question's type.

    There are no ids: `human_0` is the first question of people.
    """
    del part
    items = []
    for name in names:
        path = files.find(folder, name)
        rows = files.check_rows(path, files.read_json(path, list), ("imgname", "query", "label"))
        kind = name.removesuffix(".json").rsplit("_", 1)[-1]
        items += [
            Item(
                f"{kind}_{i}",
                epath.Path(row["imgname"]).stem,
                question=row["query"],
                answers=(row["label"],),
                question_type=kind,
            )
            for i, row in enumerate(rows)
        ]
    return items


def _charts(part: str, size: int) -> Split:
    return Split((f"{part}/{part}_human.json", f"{part}/{part}_augmented.json"), (f"{part}/png",), size)


# --- the records ------------------------------------------------------------------------------------------------------

BENCHMARKS = (
    Benchmark(
        name="pope",
        media="image",
        question=True,
        read=pope,
        splits={"test": _pope(*_POPE), **{kind: _pope(kind) for kind in _POPE}},
        evaluated="test",
        # Papers give F1 or accuracy, of each kind of objects and their mean.
        protocol=protocols.questions(
            *("question_id", str, (yes_no.F1, yes_no.ACCURACY, yes_no.PRECISION, yes_no.RECALL, yes_no.YES_RATIO)),
            by="question_type",
        ),
        site="github.com/AoiDragon/POPE, output/coco",
        example="val2014/COCO_val2014_000000310196.jpg",
        media_note="of COCO",
    ),
    Benchmark(
        name="docvqa",
        media="image",
        question=True,
        read=docvqa,
        splits={
            "train": _documents("train", 39_463),
            "validation": _documents("val", 5_349),
            "test": _documents("test", 5_188, "no answers"),
        },
        evaluated="validation",
        protocol=protocols.questions("questionId", int, (answers.ANLS,)),
        site="rrc.cvc.uab.es, challenge 17, task 1",
        example="spdocvqa_images/xnbl0037_1.png",
        files_note="of the two names of a split the first that is there is read",
    ),
    Benchmark(
        name="chartqa",
        media="image",
        question=True,
        read=chartqa,
        splits={"train": _charts("train", 28_299), "validation": _charts("val", 1_920), "test": _charts("test", 2_500)},
        evaluated="test",
        protocol=protocols.questions("id", metrics=(answers.RELAXED_ACCURACY,), by="question_type"),
        site="github.com/vis-nlp/ChartQA",
        example="test/png/41699051005347.png",
        media_note="manual_dir is its folder `ChartQA Dataset`",
    ),
)
