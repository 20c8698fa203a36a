"""Benchmarks whose questions have options to choose from: MMMU, MMStar, AI2D, ScienceQA, MMBench. `table` registers
their records.

A question is written with its options below it, `A. a dog`, and what to answer; its reference is the right letter.
"""

import ast
import csv
import functools
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from vadapter.base.errors import UserError
from vadapter.benchmarks import files, media, protocols, tables
from vadapter.benchmarks.benchmark import Benchmark, Split
from vadapter.benchmarks.files import Item, Picture
from vadapter.evaluation import choices, mmmu
from vadapter.evaluation.scoring import Record, whole_answer

LETTER = "Answer with the option's letter from the given choices directly."
FEW_WORDS = "Answer the question using a single word or phrase."
PROMPTS = {"prompt": "<media>\n<question>", "prompt_with_examples": "<examples>\n<media>\n<question>"}


def question(text: str, options: Sequence[str], context: str = "") -> str:
    """A question as a model reads it: the context, the question, the options by letters, and how to answer."""
    lines = [f"Context: {context}"] if context else []
    lines += [text.strip(), *(f"{a}. {b}" for a, b in zip(choices.letters(options), options, strict=True))]
    return "\n".join([*lines, LETTER if options else FEW_WORDS])


def _letter(path: epath.Path, row: object, at: Any, options: Sequence[Any]) -> str:
    """The letter of the option at a place, checked."""
    try:
        place = int(at)
    except (TypeError, ValueError):
        place = -1
    if not 0 <= place < len(options) <= 26:
        raise UserError(
            f"Expected the answer of each question in {path} to be the place of an option, from 0; that of {row} is "
            f"{at!r}, and it has {len(options)} options. Download the official file again."
        )
    return choices.letters(options)[place]


def _check_letter(path: epath.Path, row: object, answer: Any, options: Sequence[str]) -> str:
    if not isinstance(answer, str) or len(answer) != 1 or answer not in choices.letters(options):
        raise UserError(
            f"Expected the answer of each question in {path} to be the letter of an option; that of {row} is "
            f"{answer!r}, and it has {len(options)} options. Download the official file again."
        )
    return answer


def _named(picture: Picture | None, name: str) -> tuple[Picture, ...]:
    return (Picture(name, picture.read),) if picture is not None else ()


def _need(path: epath.Path, row: object, pictures: tuple[Picture, ...]) -> tuple[Picture, ...]:
    if not pictures:
        raise UserError(f"Expected an image with each question in {path}; {row} has none. Download the file again.")
    return pictures


# --- MMMU -------------------------------------------------------------------------------------------------------------

_MMMU_IMAGES = tuple(f"image_{i}" for i in range(1, 8))
_MMMU_NEEDED = ("id", "question", "options", "answer", "question_type")
_MMMU_OTHERS = ("explanation", "img_type", "topic_difficulty", "subfield")
_DISCIPLINES = {
    "Art_and_Design": "Art Art_Theory Design Music",
    "Business": "Accounting Economics Finance Manage Marketing",
    "Science": "Biology Chemistry Geography Math Physics",
    "Health_and_Medicine": "Basic_Medical_Science Clinical_Medicine Diagnostics_and_Laboratory_Medicine Pharmacy "
    "Public_Health",
    "Humanities_and_Social_Science": "History Literature Sociology Psychology",
    "Tech_and_Engineering": "Agriculture Architecture_and_Engineering Computer_Science Electronics Energy_and_Power "
    "Materials Mechanical_Engineering",
}
_DISCIPLINE_OF = {subject: name for name, subjects in _DISCIPLINES.items() for subject in subjects.split()}


def read_mmmu(folder: epath.Path, names: Sequence[str], part: str = "") -> list[Item]:
    """MMMU: Parquet files, one a subject or all together; `options` is a list as Python writes it.

    The subject is in the id. Images are those that the question or an option names, `<image 2>`, in this order. The
    `part` test has no answers.
    """
    items = []
    for path in tables.shards(folder, names[0]):
        rows = tables.read_parquet(path, _MMMU_NEEDED, _MMMU_OTHERS, _MMMU_IMAGES)
        items += [_mmmu_item(path, row, part) for row in rows]
    files.check_unique(folder / names[0], (item.id for item in items))
    return items


def _mmmu_item(path: epath.Path, row: Mapping[str, Any], part: str) -> Item:
    name = row["id"]
    options = texts(path, name, row["options"]) if row["question_type"] == mmmu.MULTIPLE_CHOICE else ()
    asked = question(row["question"], options)
    mentioned = [int(number) for number in sorted(set(re.findall(r"<image (\d)>", asked)))]
    there = [i for i, column in enumerate(_MMMU_IMAGES, 1) if row.get(column) is not None]
    if lost := [number for number in mentioned if number not in there]:
        raise UserError(
            f"Expected the images that {name} in {path} names; <image {lost[0]}> is none of its images. Download the "
            "file again."
        )
    pictures = [Picture(f"{name}_{i}", row[f"image_{i}"].read) for i in mentioned or there]
    if row["question_type"] == mmmu.MULTIPLE_CHOICE and part != "test":
        answers: tuple[str, ...] = (_check_letter(path, name, row["answer"], options),)
    else:
        answer = row["answer"]
        answers = texts(path, name, answer) if answer.startswith("[") and answer.endswith("]") else (answer,)
    subject = "_".join(name.split("_")[1:-1])
    return Item(
        *(name, None),
        question=asked,
        answers=() if part == "test" else answers,
        question_type=subject,
        answer_type=row["question_type"],
        domain=_DISCIPLINE_OF.get(subject, ""),
        pictures=_need(path, name, tuple(pictures)),
        options=options,
    )


def texts(path: epath.Path, row: str, text: Any) -> tuple[str, ...]:
    """A list of texts, as Python writes it."""
    try:
        found = ast.literal_eval(text) if isinstance(text, str) else None
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        found = None
    if not isinstance(found, list) or not found:
        raise UserError(
            f"Expected a list of texts, such as \"['a', 'b']\", in {path}; {row} has {str(text)[:80]!r}. Download the "
            "file again."
        )
    return tuple(map(str, found))


def mmmu_row(record: Record, text: str) -> dict[str, Any]:
    """Of a question with options the letter that its text means, else the text."""
    options = record.get("options")
    said = mmmu.chosen_letter(text, options, str(record["id"])) if options else text
    return {"id": record["id"], "prediction": said}


# --- MMStar and AI2D --------------------------------------------------------------------------------------------------

# "... Options: A: one, B: two"
_OPTION = re.compile(r"(?:^|[\s,])([A-Z]): ")


def read_mmstar(folder: epath.Path, names: Sequence[str], part: str = "") -> list[Item]:
    """MMStar: a Parquet file. The question has its options in it, so it is asked as it is; `answer` is a letter."""
    del part
    path = files.find(folder, names[0])
    needed = ("index", "question", "answer", "category", "l2_category")
    rows = tables.read_parquet(path, needed, ("meta_info",))
    files.check_unique(path, (row["index"] for row in rows), "index")
    items = []
    for row in rows:
        found = _OPTION.findall(row["question"].rpartition("Options:")[2])
        options = tuple(found) if found == list(choices.letters(found)) and found else tuple("ABCD")
        items.append(
            Item(
                *(str(row["index"]), None),
                question=f"{row['question'].strip()}\n{LETTER}",
                answers=(_check_letter(path, row["index"], row["answer"], options),),
                question_type=row["category"],
                domain=row["l2_category"],
                pictures=_need(path, row["index"], _named(row.get("image"), str(row["index"]))),
                options=options,
            )
        )
    return items


def read_ai2d(folder: epath.Path, names: Sequence[str], part: str = "") -> list[Item]:
    """AI2D: Parquet files of `question`, `options` and `answer`, the right one's place. A row's number is its id."""
    del part
    items: list[Item] = []
    for path in tables.shards(folder, names[0]):
        for row in tables.read_parquet(path, ("question", "options", "answer")):
            name, options = str(len(items)), files.texts(row["options"])
            items.append(
                Item(
                    *(name, None),
                    question=question(row["question"], options),
                    answers=(_letter(path, f"row {name}", row["answer"], options),),
                    pictures=_need(path, f"row {name}", _named(row.get("image"), name)),
                    options=options,
                )
            )
    return items


# --- ScienceQA --------------------------------------------------------------------------------------------------------

_SQA_NEEDED = ("question", "choices", "answer", "subject", "grade")
_SQA_OTHERS = ("hint", "image", "task", "topic", "category", "skill", "lecture", "solution", "split")


def read_scienceqa(folder: epath.Path, names: Sequence[str], part: str) -> list[Item]:
    """ScienceQA: `problems.json` with images in `<split>/<id>/image.png`, or a hub's Parquet files, without ids.

    `part` is the split; with ` image` only its questions that have an image.
    """
    split, _, only = part.partition(" ")
    items: list[Item] = []
    if any((place / names[0]).exists() for place in (folder, folder / "annotations")):
        path = files.find(folder, names[0])
        problems = files.read_json(path, dict, unique=True)
        rows = files.check_rows(path, list(problems.values()), (*_SQA_NEEDED, "split"), _SQA_OTHERS)
        for name, row in zip(problems, rows, strict=True):
            if row["split"] == split:
                items.append(_sqa_item(path, name, row, _sqa_file(folder, split, name, row.get("image"))))
    else:
        for path in tables.shards(folder, names[1]):
            for row in tables.read_parquet(path, _SQA_NEEDED, _SQA_OTHERS):
                name = str(len(items))
                items.append(_sqa_item(path, name, row, _named(row.get("image"), name)))
    return [item for item in items if not only or item.pictures or item.media]


def _sqa_file(folder: epath.Path, split: str, name: str, file: str | None) -> tuple[Picture, ...] | str:
    """The image of a question; its name where the file is missing."""
    if not file:
        return ()
    places = (folder / top / split / name / file for top in ("", "images"))
    path = next((place for place in places if place.exists()), None)
    return (media.of_file(path, name),) if path else f"{split}/{name}/{file}"


def _sqa_item(path: epath.Path, name: str, row: Mapping[str, Any], shown: tuple[Picture, ...] | str) -> Item:
    options, hint = files.texts(row["choices"]), (row.get("hint") or "").strip()
    context = [word for word, there in (("text", hint), ("image", shown)) if there]
    grade = str(row["grade"]).removeprefix("grade")
    if not grade.isdigit():
        raise UserError(f"Expected grades such as grade7 in {path}; {name} has {row['grade']!r}. Download it again.")
    return Item(
        *(name, shown if isinstance(shown, str) else None),
        question=question(row["question"], options, hint),
        answers=(_letter(path, name, row["answer"], options),),
        question_type=row["subject"],
        answer_type=" ".join(context) or "neither",
        domain="grades 1-6" if int(grade) < 7 else "grades 7-12",
        pictures=() if isinstance(shown, str) else shown,
        options=options,
    )


def _sqa(part: str, hub: str, size: int, note: str = "") -> Split:
    return Split(("problems.json", f"{hub}-*.parquet"), (part.split(" ")[0],), size, part, note)


def scienceqa_row(record: Record, text: str) -> dict[str, Any]:
    """The place of the option that a text means, from 0; -1 for none."""
    options = record.get("options") or ()
    return {"id": record["id"], "answer": choices.letters(options).find(choices.chosen_letter(text, options) or "?")}


# --- MMBench ----------------------------------------------------------------------------------------------------------

_MMBENCH = ("hint", "category", "l2-category", "answer", "source", "comment", "split", "g_index", *"CDEFGH")


def read_mmbench(folder: epath.Path, names: Sequence[str], part: str = "") -> list[Item]:
    """MMBench: VLMEvalKit's tab-separated file, in which a question comes once for each rotation of its options.

    A rotation's `index` is that of the question plus a million, two, and so on. The `part` test has no answers.
    """
    path = files.find(folder, names[0])
    rows = tables.read_tsv(path, ("question", "A", "B"), _MMBENCH)
    if odd := [row["index"] for row in rows if not row["index"].isdecimal()]:
        raise UserError(f"Expected whole numbers as index in {path}; found {odd[0]!r}. Download the file again.")
    indices = {int(row["index"]) for row in rows}
    files.check_known(path, (i for i in indices if i % 1_000_000 not in indices), (), "the unrotated questions")
    if max(indices) < 1_000_000:
        raise UserError(
            f"Expected the questions in {path} with their options rotated, at index + 1,000,000 and on; found no "
            "rotation, without which there is no circular accuracy. Take the file of VLMEvalKit."
        )
    return [_mmbench_item(path, row, part) for row in rows]


def _mmbench_item(path: epath.Path, row: Mapping[str, Any], part: str) -> Item:
    options = tuple(row[letter] for letter in "ABCDEFGH" if letter in row)
    if tuple(letter for letter in "ABCDEFGH" if letter in row) != tuple(choices.letters(options)):
        raise UserError(
            f"Expected options A, B, ... without a gap in {path}; {row['index']} has one. Download it again."
        )
    answers = () if part == "test" else (_check_letter(path, row["index"], row.get("answer"), options),)
    return Item(
        *(row["index"], None),
        question=question(row["question"], options, row.get("hint", "")),
        answers=answers,
        question_type=row.get("l2-category", ""),
        answer_type=row.get("category", ""),
        pictures=(row["image"],),
        options=options,
    )


def mmbench_table(records: Sequence[Record], clean: Callable[[str], str]) -> dict[str, str]:
    """The table that the server takes as a spreadsheet: index, question, options and prediction of each row."""
    out = io.StringIO()
    most = max((len(record.get("options") or ()) for record in records), default=0)
    table = csv.writer(out, delimiter="\t", lineterminator="\n")
    table.writerow(["index", "question", *choices.letters("x" * most), "prediction"])
    for record in records:
        options = list(record.get("options") or ())
        padded = options + [""] * (most - len(options))
        table.writerow([record["id"], record["question"].split("\n")[0], *padded, clean(record["prediction"])])
    return {"mmbench_results.tsv": out.getvalue()}


def _mmbench(name: str, size: int | None, part: str = "", note: str = "") -> Split:
    return Split((f"{name}.tsv",), (), size, part, note)


# --- the records ------------------------------------------------------------------------------------------------------

_record = functools.partial(Benchmark, media="image", question=True, **PROMPTS)
_asked = functools.partial(protocols.questions, clean=whole_answer)
_INSIDE = ()  # images are inside the files

BENCHMARKS = (
    _record(
        name="mmmu",
        read=read_mmmu,
        splits={
            "dev": Split(("dev-*.parquet",), _INSIDE, 150, note="5 a subject, for examples"),
            "validation": Split(("validation-*.parquet",), _INSIDE, 900),
            "test": Split(("test-*.parquet",), _INSIDE, 10_500, "test", "no answers"),
        },
        evaluated="validation",
        # As many questions a subject in validation; the official overall score is over all questions in any case.
        protocol=_asked("id", metrics=(mmmu.ACCURACY,), by=("domain", "question_type"), row=mmmu_row, as_mapping=True),
        site="huggingface.co/datasets/MMMU/MMMU",
        files_note="in folders of the subjects, or in one",
        media_note="images are inside the files",
    ),
    _record(
        name="mmstar",
        read=read_mmstar,
        splits={"validation": Split(("mmstar.parquet",), _INSIDE, 1_500)},
        evaluated="validation",
        protocol=_asked("index", int, (choices.MMSTAR,), by=("question_type", "domain")),
        site="huggingface.co/datasets/Lin-Chen/MMStar",
        media_note="images are inside the files",
    ),
    _record(
        name="ai2d",
        read=read_ai2d,
        splits={"test": Split(("test-*.parquet",), _INSIDE, 3_088)},
        evaluated="test",
        protocol=_asked("id", metrics=(choices.ACCURACY,)),
        site="huggingface.co/datasets/lmms-lab/ai2d",
        media_note="images are inside the files",
    ),
    _record(
        name="scienceqa",
        read=read_scienceqa,
        splits={
            "train": _sqa("train", "train", 12_726),
            "validation": _sqa("val", "validation", 4_241),
            "test": _sqa("test", "test", 4_241, "half of them without an image"),
            "test_image": _sqa("test image", "test", 2_017, "those of test with one"),
        },
        evaluated="test",
        protocol=_asked(
            *("id", str, choices.SCIENCEQA),
            by=("question_type", "domain"),
            row=scienceqa_row,
            as_mapping=True,
            under="results",
        ),
        site="scienceqa.github.io, or huggingface.co/datasets/derek-thomas/ScienceQA",
        example="test/5/image.png",
        files_note="the first where it is there, as only it has ids; else the hub's",
        media_note="the hub's files have the images inside",
    ),
    _record(
        name="mmbench",
        read=read_mmbench,
        splits={
            "validation": _mmbench("MMBench_DEV_EN", 4_329),
            "validation_v11": _mmbench("MMBench_DEV_EN_V11", None),
            "validation_cn": _mmbench("MMBench_DEV_CN", 4_329),
            "test": _mmbench("MMBench_TEST_EN", 6_666, "test", "no answers"),
            "test_v11": _mmbench("MMBench_TEST_EN_V11", None, "test", "no answers"),
        },
        evaluated="validation",
        protocol=_asked(
            *("index", int, (choices.CIRCULAR, choices.VANILLA)),
            by=("question_type", "answer_type"),
            row=protocols.row("index", "prediction", int),
            texts=mmbench_table,
        ),
        site="github.com/open-compass/VLMEvalKit",
        media_note="images are inside the files",
    ),
)
