"""A benchmark as a user defines it, in a module of their own: questions about photographs in one JSON file."""

import json
from collections.abc import Sequence
from pathlib import Path

from etils import epath

from tests.data.files import picture
from vadapter.benchmarks import files, protocols, table
from vadapter.benchmarks.benchmark import Benchmark, Split
from vadapter.benchmarks.files import Item
from vadapter.evaluation.metrics import Metric

ANSWERS = {"p0": "red", "p1": "green", "p2": "blue", "p3": "red"}


def read(folder: epath.Path, names: Sequence[str], part: str) -> list[Item]:
    """Reads `{"photo", "asked", "answer"}` of the split `part`."""
    path = files.find(folder, names[0])
    rows = files.check_rows(path, files.read_json(path, list), ("photo", "asked", "answer", "split"))
    return [
        Item(row["photo"], row["photo"], question=row["asked"], answers=(row["answer"],), question_type="colour")
        for row in rows
        if row["split"] == part
    ]


def first_letter(prediction: str, answers: Sequence[str]) -> float:
    """1 where the answer begins like the right one."""
    return float(prediction[:1] == answers[0][:1])


LETTER = Metric("letter", "letter", "answers with the right first letter", "answers", first_letter, scale=100.0)

ZOO = table.register(
    Benchmark(
        name="zoo",
        media="image",
        question=True,
        read=read,
        splits={"test": Split(("zoo.json",), ("photos",), part="test")},
        evaluated="test",
        protocol=protocols.questions(
            *("photo", str, (LETTER,)), by="question_type", file="{name}-{split}.json", tokenizer="python"
        ),
        prompt="<media> <question> ?",
    )
)


def write_files(folder: Path) -> None:
    """Writes the benchmark's files, as somebody else made them."""
    (folder / "photos").mkdir(parents=True)
    colours = {"red": (220, 30, 30), "green": (30, 220, 30), "blue": (30, 30, 220)}
    for name, answer in ANSWERS.items():
        picture(folder / "photos" / f"{name}.png", colours[answer])
    rows = [{"photo": n, "asked": "what colour", "answer": a, "split": "test"} for n, a in ANSWERS.items()]
    (folder / "zoo.json").write_text(json.dumps(rows))
