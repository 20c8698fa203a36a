"""Small copies of the official files of the benchmarks that bring pictures inside their files, or in folders of their
own; as `official_files`, which has these writers too."""

import base64
import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from tests.benchmarks.expected import Expected
from tests.data.files import picture

COLOURS = [(220, 30, 30), (30, 220, 30), (30, 30, 220)]
ENDING = "Answer with the option's letter from the given choices directly."
SHORT = "Answer the question using a single word or phrase."
HUB_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
OPTIONS = ["a red dog", "a green cat", "a blue cow", "a house"]


def png(folder: Path, i: int = 0) -> bytes:
    """A picture's encoded bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "temporary.png"
    picture(path, COLOURS[i % 3])
    content = path.read_bytes()
    path.unlink()
    return content


def hub(folder: Path, i: int = 0) -> dict[str, Any]:
    """A picture as a hub's files have it."""
    return {"bytes": png(folder, i), "path": f"{i}.png"}


def table(path: Path, rows: Sequence[dict[str, Any]], **types: Any) -> None:
    """Writes Parquet with two rows a group. `types` of the columns whose values do not tell them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = list(rows[0])
    columns = [pa.array([row[name] for row in rows], types.get(name)) for name in names]
    parquet.write_table(pa.table(dict(zip(names, columns, strict=True))), path, row_group_size=2)


def listed(question: str, options: Sequence[str], context: str = "") -> str:
    """A question with its options, as a row has it."""
    lines = [f"{letter}. {option}" for letter, option in zip("ABCDEFGH", options, strict=False)]
    return "\n".join([*([f"Context: {context}"] if context else []), question, *lines, ENDING])


def mmmu(folder: Path, items: int = 0) -> list[Expected]:
    """Subjects by turns; the second question has two pictures, the third none to choose from."""
    count, subjects, rows = items or 3, ("Accounting", "Art_Theory"), []
    expected = []
    for i in range(count):
        subject, is_open = subjects[i % 2], i % 4 == 2
        name = f"validation_{subject}_{i + 1}"
        question = f"What is in <image 1>{' and <image 2>' if i == 1 else ''} here {i}?"
        images = {f"image_{k}": hub(folder, i + k) if k <= 1 + (i == 1) else None for k in range(1, 8)}
        answer = "['$6,000', '6000 dollars']" if is_open else "ABCD"[i % 4]
        row = {
            **{"id": name, "question": question, "options": "[]" if is_open else str(OPTIONS), "explanation": ""},
            **images,
            **{"img_type": "['Plots']", "answer": answer, "topic_difficulty": "Easy", "subfield": "Cost"},
            "question_type": "open" if is_open else "multiple-choice",
        }
        rows.append((subject, row))
        asked = f"{question}\n{SHORT}" if is_open else listed(question, OPTIONS)
        answers = ["$6,000", "6000 dollars"] if is_open else [answer]
        domain = "Business" if subject == "Accounting" else "Art_and_Design"
        extra = {"question_type": subject, "domain": domain, "answer_type": row["question_type"]}
        extra["image"] = f"{name}_1 {name}_2" if i == 1 else f"{name}_1"
        expected.append(Expected(name, answers, asked, extra))
    types = {f"image_{k}": HUB_IMAGE for k in range(1, 8)}
    for subject in subjects:
        own = [row for other, row in rows if other == subject]
        if own:
            table(folder / subject / "validation-00000-of-00001.parquet", own, **types)
            unanswered = {**own[0], "id": f"test_{subject}_1", "answer": "?", "question_type": "multiple-choice"}
            table(folder / subject / "test-00000-of-00001.parquet", [{**unanswered, "options": str(OPTIONS)}], **types)
    return sorted(expected, key=lambda row: row.id.split("_")[1])


def mmstar(folder: Path, items: int = 0) -> list[Expected]:
    rows, expected = [], []
    for i in range(items or 3):
        question = f"What is here {i}?\nOptions: A: a red dog, B: a green cat, C: a blue cow, D: a house"
        category, ability = ("math", "geometry") if i % 2 else ("coarse perception", "image emotion")
        rows.append(
            {
                **{"index": i, "question": question, "image": png(folder, i), "answer": "ABCD"[i % 4]},
                **{"category": category, "l2_category": ability},
                "meta_info": {"source": "AI2D", "split": "test", "image_path": f"images/{i}.jpg"},
            }
        )
        extra = {"question_type": category, "domain": ability, "image": str(i)}
        expected.append(Expected(str(i), ["ABCD"[i % 4]], f"{question}\n{ENDING}", extra))
    table(folder / "mmstar.parquet", rows)
    return expected


def ai2d(folder: Path, items: int = 0) -> list[Expected]:
    rows, expected = [], []
    for i in range(items or 3):
        options = OPTIONS[: 3 + i % 2]
        row = {"question": f"which one is {i}?", "options": options, "answer": str(i % 3), "image": hub(folder, i)}
        rows.append(row)
        expected.append(Expected(str(i), ["ABC"[i % 3]], listed(row["question"], options), {"image": str(i)}))
    half = (len(rows) + 1) // 2
    table(folder / "data" / "test-00000-of-00002.parquet", rows[:half])
    table(folder / "data" / "test-00001-of-00002.parquet", rows[half:])
    return expected


def scienceqa(folder: Path, items: int = 0) -> list[Expected]:
    """Of two questions the first has an image, of three the second a text as context."""
    problems, expected = {}, []
    for start, split, count in ((1, "train", 6), (101, "val", 1), (201, "test", items or 4)):
        for i in range(count):
            hint = "Look well." if i % 3 == 1 else ""
            row = {
                **{"question": f"Which is {i}?", "choices": OPTIONS[: 2 + i % 3], "answer": i % 2, "hint": hint},
                **{"image": "image.png" if i % 2 == 0 else None, "task": "closed choice", "grade": f"grade{2 + 7 * i}"},
                **{"subject": ("natural science", "social science")[i % 2], "topic": "biology", "category": "-"},
                **{"skill": "-", "lecture": "", "solution": "", "split": split},
            }
            problems[str(start + i)] = row
            if row["image"]:
                place = folder / "images" / split / str(start + i) / "image.png"
                place.parent.mkdir(parents=True)
                picture(place, COLOURS[i % 3])
            if split == "test":
                context = " ".join([*(["text"] if hint else []), *(["image"] if row["image"] else [])]) or "neither"
                extra = {"question_type": row["subject"], "answer_type": context, "image": ""}
                extra["domain"] = "grades 1-6" if i == 0 else "grades 7-12"
                extra["image"] = str(start + i) if row["image"] else ""
                asked = listed(row["question"], row["choices"], hint)
                expected.append(Expected(str(start + i), ["AB"[i % 2]], asked, extra))
    (folder / "problems.json").write_text(json.dumps(problems))
    (folder / "pid_splits.json").write_text(json.dumps({"test": [row.id for row in expected]}))
    return expected


def scienceqa_hub(folder: Path) -> None:
    """The same test questions as a hub has them: without ids, the pictures inside."""
    found = json.loads((folder / "problems.json").read_text())
    rows = [row for row in found.values() if row["split"] == "test"]
    for i, row in enumerate(rows):
        row.update(image=hub(folder, i) if row["image"] else None)
        del row["split"]
    table(folder / "hub" / "data" / "test-00000-of-00001-f0e719df791966ff.parquet", rows, image=HUB_IMAGE)


def tsv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes a table as VLMEvalKit's are: what pandas writes."""
    out = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(out, names, delimiter="\t", lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(out.getvalue(), encoding="utf-8")


def mmbench(folder: Path, items: int = 0) -> list[Expected]:
    """Each question and one rotation of it, which names the row that has its picture."""
    rows, expected = [], []
    for i in range(items or 4):
        index, turned = 241 + i // 2, i % 2
        options = OPTIONS[turned:3] + OPTIONS[:turned]
        right = options.index(OPTIONS[index % 3])
        image = str(index) if turned else base64.b64encode(png(folder, i // 2)).decode()
        hint = 'Read "this".\nThen look.' if index == 242 else ""
        row = {
            **{"index": 1_000_000 * turned + index, "question": f"Which is in {index}?", "hint": hint},
            **dict(zip("ABC", options, strict=True)),
            **{"answer": "ABC"[right], "category": "image_style", "image": image, "source": "-"},
            **{"l2-category": "finegrained_perception (instance-level)", "comment": "", "split": "dev"},
        }
        rows.append(row)
        extra = {"question_type": row["l2-category"], "answer_type": "image_style", "image": str(index)}
        asked = listed(row["question"], options, hint)
        expected.append(Expected(str(row["index"]), [row["answer"]], asked, extra))
    tsv(folder / "MMBench_DEV_EN.tsv", rows)
    tsv(folder / "MMBench_TEST_EN.tsv", [{k: v for k, v in row.items() if k != "answer"} for row in rows])
    return expected


PERCEPTION = ("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR")
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
NESTED = ("posters", "celebrity", "scene", "landmark", "artwork")


def mme(folder: Path, items: int = 0) -> list[Expected]:
    """An image of each category, in whose folder it and its text are, or in two folders within it."""
    expected = []
    for i, category in enumerate((*PERCEPTION, *COGNITION)):
        place, name = folder / category, f"{i:04}"
        images, texts = (place / "images", place / "questions_answers_YN") if category in NESTED else (place, place)
        images.mkdir(parents=True)
        texts.mkdir(parents=True, exist_ok=True)
        ending = ".png" if category == "code_reasoning" else ".jpg"
        picture(images / f"{name}{ending}", COLOURS[i % 3])
        questions = [f"Is there a thing {k} in {i}? Please answer yes or no." for k in range(2)]
        (texts / f"{name}.txt").write_text(f"{questions[0]}\tYes\n{questions[1]}\tNo\n")
        for k, (question, answer) in enumerate(zip(questions, ("Yes", "No"), strict=True), 1):
            image = f"{category}/{name}{ending}"
            extra = {"question_type": category, "image": image}
            expected.append(Expected(f"{image}#{k}", [answer], question, extra))
    return expected


def mme_hub(folder: Path, expected: Sequence[Expected]) -> None:
    """The same as a hub has them."""
    rows = [
        {
            **{"question_id": row.extra["image"], "image": hub(folder, i // 2), "question": row.question},
            **{"answer": row.references[0], "category": row.extra["question_type"]},
        }
        for i, row in enumerate(expected)
    ]
    table(folder / "hub" / "data" / "test-00000-of-00001-a25b1baf7395dcf0.parquet", rows)


TYPES = ("Regular Text Recognition", "Doc-oriented VQA", "Handwritten Mathematical Expression Recognition")
DATASETS = ("IIIT5K", "docVQA", "HME100k")


def ocrbench(folder: Path, items: int = 0) -> list[Expected]:
    """The official JSON file; `ocrbench_hub` and `ocrbench_tsv` write the other two."""
    rows, expected = [], []
    for i in range(items or 3):
        answers: Any = ["CENTRE", f"$ {i} , 000"] if i % 2 else f"x ^ {{ {i} }}"
        row = {
            **{"dataset_name": DATASETS[i % 3], "image_path": f"{DATASETS[i % 3]}/{i}.jpg", "id": i},
            **{"question": f"what is written in image {i}?", "answers": answers, "type": TYPES[i % 3]},
        }
        rows.append(row)
        place = folder / "OCRBench_Images" / row["image_path"]
        place.parent.mkdir(parents=True, exist_ok=True)
        picture(place, COLOURS[i % 3])
        extra = {"question_type": row["type"], "domain": row["dataset_name"], "image": row["image_path"]}
        right = answers if isinstance(answers, list) else [answers]
        expected.append(Expected(str(i), right, row["question"].removesuffix("?"), extra))
    (folder / "OCRBench.json").write_text(json.dumps(rows))
    return expected


def ocrbench_hub(folder: Path, expected: Sequence[Expected]) -> None:
    """The same as a hub has them."""
    rows = [
        {
            **{"dataset": row.extra["domain"], "question": f"{row.question}?", "answer": row.references},
            **{"question_type": row.extra["question_type"], "image": hub(folder, i)},
        }
        for i, row in enumerate(expected)
    ]
    table(folder / "data" / "test-00000-of-00001.parquet", rows)


def ocrbench_tsv(folder: Path, expected: Sequence[Expected]) -> None:
    """The same as VLMEvalKit has them."""
    rows = [
        {
            **{"index": i, "image": base64.b64encode(png(folder, i)).decode(), "question": f"{row.question}?"},
            **{"answer": str(row.references), "category": row.extra["question_type"]},
        }
        for i, row in enumerate(expected)
    ]
    tsv(folder / "OCRBench.tsv", rows)


WRITERS = {f.__name__: f for f in (mmmu, mmstar, ai2d, scienceqa, mmbench, mme, ocrbench)}
WITHOUT_EXAMPLES = tuple(WRITERS)  # most have no training split; with options in each, examples are long
