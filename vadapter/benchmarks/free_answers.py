"""MME and OCRBench: questions that are answered in free words, whose media lie in folders of their own or inside the
files. `table` registers their records."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from vadapter.base.errors import UserError
from vadapter.benchmarks import files, media, options, protocols, tables
from vadapter.benchmarks.benchmark import Benchmark, Split
from vadapter.benchmarks.files import Item, Picture
from vadapter.evaluation import mme, ocrbench
from vadapter.evaluation.scoring import Record, whole_answer

# --- MME --------------------------------------------------------------------------------------------------------------

_CATEGORIES = (*mme.PERCEPTION, *mme.COGNITION)
_IMAGES = (".jpg", ".png", ".jpeg")


def read_mme(folder: epath.Path, names: Sequence[str], part: str = "") -> list[Item]:
    """MME: a folder a category, with a text beside each image: two lines, a question, a tab, and Yes or No. Or Parquet.

    Some categories have both in one folder, others have `images` and `questions_answers_YN`. The ids are the image's
    with the number of the question, `OCR/0001.jpg#1`.
    """
    del part
    if list(folder.glob(names[1])) or list(folder.glob(f"*/{names[1]}")):
        return _mme_of_hub(folder, names[1])
    if lost := [name for name in _CATEGORIES if not (folder / name).is_dir()]:
        raise UserError(
            f"Expected a folder of each of the {len(_CATEGORIES)} categories of MME in {folder}, or {names[1]}; there "
            f"is no {', '.join(lost)}. Scores are sums over all of them: unpack the whole archive, and give the folder "
            "that has them as manual_dir."
        )
    return [item for name in _CATEGORIES for item in _category(folder / name)]


def _category(folder: epath.Path) -> list[Item]:
    texts, images = folder / "questions_answers_YN", folder / "images"
    texts, images = (place if place.is_dir() else folder for place in (texts, images))
    shown = {path.stem: path for path in sorted(images.iterdir()) if path.suffix.lower() in _IMAGES}
    items: list[Item] = []
    for path in sorted(texts.glob("*.txt")):
        lines = [line.rstrip() for line in files.read_text(path).splitlines() if line.strip()]
        pairs = [line.rsplit("\t", 1) for line in lines]
        if len(pairs) != 2 or any(len(pair) != 2 or pair[1].strip() not in ("Yes", "No") for pair in pairs):
            raise UserError(
                f"Expected two lines in {path}, each a question, a tab, and Yes or No; found {len(lines)} lines, such "
                f"as {(lines or [''])[0]!r}. Take the official files."
            )
        image = shown.get(path.stem)
        name = f"{folder.name}/{image.name if image else path.stem}"
        pictures = (media.of_file(image, name),) if image and image.stat().length else ()
        items += [
            _mme_item(folder.name, name, i, question, answer, pictures) for i, (question, answer) in enumerate(pairs, 1)
        ]
    if not items:
        raise UserError(f"Expected texts with questions in {texts}; found no .txt file. Unpack the archive again.")
    return items


def _mme_of_hub(folder: epath.Path, pattern: str) -> list[Item]:
    items: list[Item] = []
    asked: dict[str, int] = {}
    for path in tables.shards(folder, pattern):
        for row in tables.read_parquet(path, ("question_id", "image", "question", "answer", "category")):
            name = row["question_id"]
            asked[name] = asked.get(name, 0) + 1
            if row["category"] not in _CATEGORIES or row["answer"] not in ("Yes", "No"):
                raise UserError(
                    f"Expected a category of MME ({', '.join(_CATEGORIES)}) and the answer Yes or No in {path}; "
                    f"{name} has {row['category']!r} and {row['answer']!r}. Download the file again."
                )
            pictures = (Picture(name, row["image"].read),)
            items.append(_mme_item(row["category"], name, asked[name], row["question"], row["answer"], pictures))
    if odd := [name for name, count in asked.items() if count != 2]:
        raise UserError(
            f"Expected two questions about each image in {folder}; {odd[0]} has {asked[odd[0]]}. Download it again."
        )
    return items


def _mme_item(category: str, name: str, number: int, question: str, answer: str, pictures: tuple[Picture, ...]) -> Item:
    return Item(
        f"{name}#{number}",
        None if pictures else name,  # which no folder has: it is left out, and said
        question=question.strip(),
        answers=(answer.strip(),),
        question_type=category,
        pictures=pictures,
    )


def mme_texts(records: Sequence[Record], clean: Callable[[str], str]) -> dict[str, str]:
    """What MME's own program reads: a text a category, with lines of image, question, answer and prediction."""
    found: dict[str, list[str]] = {}
    for record in records:
        image = str(record["image"]).rpartition("/")[2]
        right = (record.get("references") or [""])[0]
        fields = (image, record["question"], right, clean(record["prediction"]))
        line = "\t".join(" ".join(str(field).split()) for field in fields)
        found.setdefault(str(record["question_type"]), []).append(line)
    return {f"mme_results/{name}.txt": "\n".join([*lines, ""]) for name, lines in found.items()}


# --- OCRBench ---------------------------------------------------------------------------------------------------------


def read_ocrbench(folder: epath.Path, names: Sequence[str], part: str = "") -> list[Item]:
    """OCRBench: its JSON file with images in a folder, a hub's Parquet files, or VLMEvalKit's tab-separated file."""
    del part
    items: list[Item] = []
    json_name, pattern, tsv = names
    if (folder / json_name).exists():
        path = folder / json_name
        needed = ("dataset_name", "image_path", "question", "answers", "type")
        rows = files.check_rows(path, files.read_json(path, list), needed, ("id",))
        return [
            _ocr_item(
                path, i, row["question"], row["answers"], row["type"], row["dataset_name"], _ocr_file(folder, row)
            )
            for i, row in enumerate(rows)
        ]
    if (folder / tsv).exists():
        path = folder / tsv
        rows = tables.read_tsv(path, ("question", "answer", "category"), ("dataset", "split", "image_path"))
        for row in rows:
            answers = options.texts(path, row["index"], row["answer"])
            asked = (row["question"], answers, row["category"], row.get("dataset", ""))
            items.append(_ocr_item(path, row["index"], *asked, (row["image"],)))
        return items
    for path in tables.shards(folder, pattern):
        for row in tables.read_parquet(path, ("dataset", "question", "question_type", "answer", "image")):
            name = str(len(items))
            shown = (Picture(name, row["image"].read),)
            items.append(
                _ocr_item(path, name, row["question"], row["answer"], row["question_type"], row["dataset"], shown)
            )
    return items


def _ocr_file(folder: epath.Path, row: Mapping[str, Any]) -> tuple[Picture, ...] | str:
    name = row["image_path"]
    places = (folder / name, folder / "OCRBench_Images" / name)
    path = next((place for place in places if place.is_file() and place.stat().length), None)
    return (media.of_file(path, name),) if path else name


def _ocr_item(
    path: epath.Path,
    name: object,
    question: str,
    answers: Any,
    kind: str,
    dataset: str,
    shown: tuple[Picture, ...] | str,
) -> Item:
    right = (answers,) if isinstance(answers, str) else tuple(answers or ())
    if not right or not all(isinstance(text, str) and text.strip() for text in right):
        raise UserError(
            f"Expected a text, or a list of texts, as the answer of each question in {path}; that of {name} is "
            f"{answers!r}. An empty answer would be in every text: download the file again."
        )
    return Item(
        *(str(name), shown if isinstance(shown, str) else None),
        question=question,
        answers=right,
        question_type=kind,
        domain=dataset or ("HME100k" if kind == ocrbench.FORMULAS else ""),
        pictures=() if isinstance(shown, str) else shown,
    )


def ocrbench_row(record: Record, text: str) -> dict[str, Any]:
    """A row as OCRBench's own program scores it."""
    return {
        "id": record["id"],
        "dataset_name": record.get("domain", ""),
        "type": record["question_type"],
        "question": record["question"],
        "answers": list(record.get("references") or ()),
        "predict": text,
    }


# --- the records ------------------------------------------------------------------------------------------------------

_record = functools.partial(Benchmark, media="image", question=True, **options.PROMPTS)
_asked = functools.partial(protocols.questions, clean=whole_answer)

BENCHMARKS = (
    _record(
        name="mme",
        read=read_mme,
        splits={"test": Split(("<category>/*.txt", "test-*.parquet"), ("<category>", "<category>/images"), 2_374)},
        evaluated="test",
        protocol=_asked("id", metrics=mme.METRICS, by="question_type", texts=mme_texts),
        site="github.com/BradyFU/Awesome-Multimodal-Large-Language-Models, or huggingface.co/datasets/lmms-lab/MME",
        example="existence/000000006040.jpg",
        files_note="some categories have their texts in `questions_answers_YN/`; or the hub's files",
        media_note="the hub's files have the images inside",
    ),
    _record(
        name="ocrbench",
        read=read_ocrbench,
        splits={"test": Split(("OCRBench.json", "test-*.parquet", "OCRBench.tsv"), ("OCRBench_Images",), 1_000)},
        evaluated="test",
        protocol=_asked("id", metrics=ocrbench.METRICS, by="question_type", row=ocrbench_row),
        site="github.com/Yuliang-Liu/MultimodalOCR, or huggingface.co/datasets/echo840/OCRBench",
        files_note="the first with the images in a folder; the hub's; or VLMEvalKit's",
        media_note="the hub's and VLMEvalKit's files have the images inside",
    ),
)
