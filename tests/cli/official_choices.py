"""The official files of benchmarks with pictures inside, read anew, and their scores by the published rules, written
anew: of the texts that `test_benchmark_scores` has the model say."""

import csv
import json
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from pyarrow import parquet

References = dict[str, list[str]]
Said = Mapping[str, str]


def _rows(folder: Path, pattern: str) -> list[dict]:
    return [row for path in sorted(folder.rglob(pattern)) for row in parquet.read_table(path).to_pylist()]


def _percent(values: list) -> float:
    return 100 * float(np.mean(values))


def _mmmu(folder: Path) -> References:
    answers = {row["id"]: row["answer"] for row in _rows(folder, "validation-*.parquet")}
    return {k: json.loads(a.replace("'", '"')) if a.startswith("[") else [a] for k, a in answers.items()}


def _mmmu_scores(folder: Path, said: Said) -> dict[str, float]:
    """Of options the submission has the letter. Of texts what the fixture has: an amount, or the same in dollars."""
    right = {
        key: said[key] in answers if len(answers) == 1 else "6000" in said[key].replace(",", "")
        for key, answers in _mmmu(folder).items()
    }
    art = [value for key, value in right.items() if "Art_Theory" in key]
    return {"accuracy": _percent(list(right.values())), "accuracy/Art_Theory": _percent(art)}


def _mmstar_scores(folder: Path, said: Said) -> dict[str, float]:
    categories = defaultdict(list)
    for row in _rows(folder, "mmstar.parquet"):
        text = said[str(row["index"])]
        opening = re.match(r"(\(|option |the answer is )?(.)", text.lower())
        categories[row["category"]].append(bool(opening) and opening[2] == row["answer"].lower())
    return {"accuracy": float(np.mean([_percent(values) for values in categories.values()]))}


def _letter(text: str) -> str:
    """The only capital that stands alone; the fixtures' texts are short and have no option's words."""
    found = re.findall(r"\b[A-H]\b", text)
    return found[0] if len(set(found)) == 1 else ""


def _ai2d(folder: Path) -> References:
    return {str(i): ["ABCD"[int(row["answer"])]] for i, row in enumerate(_rows(folder, "test-*.parquet"))}


def _ai2d_scores(folder: Path, said: Said) -> dict[str, float]:
    return {"accuracy": _percent([_letter(said[key]) == right for key, (right,) in _ai2d(folder).items()])}


def _problems(folder: Path) -> dict[str, dict]:
    found = json.loads((folder / "problems.json").read_text())
    return {key: row for key, row in found.items() if row["split"] == "test"}


def _scienceqa_scores(folder: Path, said: Said) -> dict[str, float]:
    """The submission has the place of an option."""
    problems = _problems(folder)
    right = {key: int(said[key]) == row["answer"] for key, row in problems.items()}

    def where(test: Callable[[dict], bool]) -> float:
        return _percent([value for key, value in right.items() if test(problems[key])])

    return {
        "accuracy": where(bool),
        "image_accuracy": where(lambda row: row["image"]),
        "text_accuracy": where(lambda row: row["hint"]),
        "no_context_accuracy": where(lambda row: not row["hint"] and not row["image"]),
        "accuracy/grades_7-12": where(lambda row: int(row["grade"][5:]) > 6),
    }


def _mmbench(folder: Path) -> References:
    with open(folder / "MMBench_DEV_EN.tsv", encoding="utf-8", newline="") as file:
        return {row["index"]: [row["answer"]] for row in csv.DictReader(file, delimiter="\t")}


def _mmbench_scores(folder: Path, said: Said) -> dict[str, float]:
    right = {key: _letter(said[key]) == answer for key, (answer,) in _mmbench(folder).items()}
    base = [key for key in right if int(key) < 1_000_000]
    circular = [all(right[other] for other in right if int(other) % 1_000_000 == int(key)) for key in base]
    return {"circular_accuracy": _percent(circular), "accuracy_of_rotations": _percent(list(right.values()))}


def _mme(folder: Path) -> References:
    found = {}
    for path in folder.rglob("*.txt"):
        category = path.relative_to(folder).parts[0]
        (image,) = (p for p in (folder / category).rglob(f"{path.stem}.*") if p.suffix != ".txt")
        for i, line in enumerate(path.read_text().splitlines(), 1):
            found[f"{category}/{image.name}#{i}"] = [line.split("\t")[1]]
    return found


def _mme_scores(folder: Path, said: Said) -> dict[str, float]:
    images = defaultdict(lambda: defaultdict(list))
    for key, (answer,) in _mme(folder).items():
        start = said[key].lower()[:4]
        text = "Yes" if "yes" in start else "No" if "no" in start else "-"
        images[key.split("/")[0]][key.split("#")[0]].append(text == answer)
    scores = {
        name: _percent([x for pair in pairs.values() for x in pair]) + _percent([all(pair) for pair in pairs.values()])
        for name, pairs in images.items()
    }
    thinking = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
    cognition = sum(scores[name] for name in thinking)
    total = sum(scores.values())
    return {"score": total, "cognition": cognition, "perception": total - cognition, "score/OCR": scores["OCR"]}


def _ocrbench(folder: Path) -> References:
    rows = json.loads((folder / "OCRBench.json").read_text())
    return {str(row["id"]): [row["answers"]] if isinstance(row["answers"], str) else row["answers"] for row in rows}


def _ocrbench_scores(folder: Path, said: Said) -> dict[str, float]:
    right = []
    for row in json.loads((folder / "OCRBench.json").read_text()):
        formula = row["dataset_name"] == "HME100k"
        texts = [said[str(row["id"])], *_ocrbench(folder)[str(row["id"])]]
        text, *answers = [t.replace(" ", "") if formula else t.lower() for t in texts]
        right.append(any(answer in text for answer in answers))
    return {"score": sum(right), "accuracy": _percent(right)}


OFFICIAL: dict[str, Callable[[Path], References]] = {
    "mmmu": _mmmu,
    "mmstar": lambda folder: {str(row["index"]): [row["answer"]] for row in _rows(folder, "mmstar.parquet")},
    "ai2d": _ai2d,
    "scienceqa": lambda folder: {key: ["ABCDE"[row["answer"]]] for key, row in _problems(folder).items()},
    "mmbench": _mmbench,
    "mme": _mme,
    "ocrbench": _ocrbench,
}
SCORES: dict[str, Callable[[Path, Said], dict[str, float]]] = {
    "mmmu": _mmmu_scores,
    "mmstar": _mmstar_scores,
    "ai2d": _ai2d_scores,
    "scienceqa": _scienceqa_scores,
    "mmbench": _mmbench_scores,
    "mme": _mme_scores,
    "ocrbench": _ocrbench_scores,
}
