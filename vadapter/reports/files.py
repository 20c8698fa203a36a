"""What evaluation leaves in a run's folder, and how the report reads it back.

MODEL_DIR/config.gin            the configuration as it was given (written by the training command)
MODEL_DIR/curve.jsonl           {"step", "split", "loss", ...}    (written by the loop; split: train or an evaluator)
MODEL_DIR/done.json             step, seconds, goodput, ...       (written when a run is finished)
MODEL_DIR/inference_eval/       records, <evaluator>-<step>.jsonl (written by the loop)
MODEL_DIR/metrics.json          scores of `vadapter eval`         (here: `save_metrics`)
MODEL_DIR/evaluation.html       the same as a page, with examples (`evaluation.write_page`)
MODEL_DIR/predictions.jsonl     records of `vadapter eval`        (here: `save_predictions`)
MODEL_DIR/thumbnails/00000.png  their pictures, by row number
"""

import dataclasses
import json
import logging
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from vadapter.base import files, json_text, pictures
from vadapter.base.errors import UserError
from vadapter.reports import data
from vadapter.reports.data import Comparison, Prediction, Run, SavedEvaluation, compare


def save_metrics(model_dir: epath.PathLike, content: Mapping[str, Any]) -> None:
    """Writes `metrics.json`, replacing an older one; `content` is that of `evaluation.metrics_json`."""
    _write(epath.Path(model_dir) / "metrics.json", json.dumps(content, indent=2, allow_nan=False) + "\n")


def save_predictions(model_dir: epath.PathLike, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes records as `predictions.jsonl`, replacing an older one, and their pictures as files beside it.

    Args:
        model_dir: the run's folder; made if missing.
        records: dicts as `GenerationEvaluator` gives them. "thumbnail" is a data URI, or a uint8 array
            [h, w, 3] or [F, h, w, 3]; in the file it becomes a path. File names come from the row number, never from
            an id, so no text of a data set can choose where a file goes.
    """
    folder = epath.Path(model_dir)
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, record in enumerate(records):
        row = {key: value for key, value in record.items() if key != "picture"}
        picture = row.pop("thumbnail", None)
        if picture is not None:
            uri = pictures.data_uri(picture) if isinstance(picture, np.ndarray) else str(picture)
            kind, content = pictures.bytes_of(uri)
            name = f"thumbnails/{number:05d}.{kind}"
            (folder / "thumbnails").mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
            row["thumbnail"] = name
        lines.append(json.dumps(row, ensure_ascii=False))
    _write(folder / "predictions.jsonl", "".join(f"{line}\n" for line in lines))


def load_scores(model_dir: str | Path) -> dict[str, Any]:
    """The scores in `metrics.json` by name; empty where there is none."""
    scores = _read_json(Path(model_dir) / "metrics.json").get("scores")
    return scores if isinstance(scores, dict) else {}


def load_evaluations(model_dir: str | Path) -> list[SavedEvaluation]:
    """Reads each `metrics.json` of a run's folder and of the folders in it (`--output=MODEL_DIR/vqav2`)."""
    folder = Path(model_dir)
    found = []
    for path in [folder / "metrics.json", *sorted(folder.glob("*/metrics.json"))]:
        content = _read_json(path)
        scores = content.get("scores")
        if not isinstance(scores, dict):
            continue
        intervals = {name: (float(low), float(high)) for name, (low, high) in content.get("intervals", {}).items()}
        page = path.with_name("evaluation.html")
        known = {name: value for name, score in scores.items() if (value := _float(score)) is not None}
        checkpoint = str(content.get("checkpoint", path.parent.name))
        found.append(SavedEvaluation(checkpoint, known, intervals, page if page.is_file() else None))
    return found


def load_predictions(model_dir: str | Path) -> list[Prediction]:
    """Reads `predictions.jsonl`, or else the latest records of each evaluator in `inference_eval/`.

    A thumbnail that is missing, no picture, or outside the folder is left out.
    """
    folder = Path(model_dir)
    records = _read_lines(folder / "predictions.jsonl")
    if not records:
        records = [r for path in _latest_records(folder / "inference_eval") for r in _read_lines(path)]
    rows = []
    for record in records:
        score = record.get("score")
        rows.append(
            Prediction(
                id="/".join(str(record[key]) for key in ("task", "id") if key in record),
                prediction=str(record.get("prediction", "")),
                references=tuple(str(r) for r in record.get("references") or ()),
                question=str(record["question"]) if record.get("question") else None,
                score=float(score) if score is not None else None,
                thumbnail=_thumbnail(folder, record.get("thumbnail")),
                words=[[(str(text), float(x)) for text, x in token] for token in record.get("words") or ()],
            )
        )
    return rows


def _latest_records(folder: Path) -> list[Path]:
    latest: dict[str, tuple[int, Path]] = {}
    for path in sorted(folder.glob("*-*.jsonl")):
        name, _, step = path.stem.rpartition("-")
        if step.isdigit() and int(step) >= latest.get(name, (-1, path))[0]:
            latest[name] = (int(step), path)
    return [path for _, path in latest.values()]


def _thumbnail(folder: Path, value: Any) -> str | None:
    """A picture's data URI, given as one or as a path inside the folder."""
    if not isinstance(value, str):
        return None
    if value.startswith("data:"):
        try:
            pictures.bytes_of(value)
        except ValueError:
            return None
        return value
    path = (folder / value).resolve()
    if not path.is_relative_to(folder.resolve()) or not path.is_file():
        return None
    return pictures.uri_of(path.read_bytes())


def load_run(model_dir: str | Path, name: str | None = None, description: str = "") -> Run:
    """Reads a run's folder, finished or not, trained by any experiment.

    Args:
        model_dir: the run's MODEL_DIR.
        name: shown in the report; the folder's name by default.
        description: one line about it.

    Returns:
        The run; what the folder does not tell is None.

    Raises:
        UserError: there is no such folder, or it holds neither a curve nor an evaluation.
    """
    folder = Path(model_dir)
    if not folder.is_dir():
        raise UserError(f"A report reads a run's folder, its MODEL_DIR, and {str(folder)!r} is not a folder. Check it.")
    lines = _read_lines(folder / "curve.jsonl")
    evaluation = load_scores(folder)
    if not lines and not evaluation:
        raise UserError(
            f"Expected curve.jsonl or metrics.json of a training run in {str(folder)!r} and found neither. "
            "Give the MODEL_DIR of a run that has logged at least once."
        )
    done = _done(folder / "done.json")
    latest: dict[str, Any] = {}
    for line in lines:
        if line.get("split") != "train":
            latest |= {k: v for k, v in line.items() if v is not None}
    latest |= {k: v for k, v in evaluation.items() if v is not None}
    splits = [str(line.get("split")) for line in lines if _float(line.get("loss")) is not None]
    held_out = [s for s in splits if s != "train"]
    curve = _curve(lines, "val" if "val" in held_out or not held_out else held_out[0])
    train_curve = _curve(lines, "train")
    config = folder / "config.gin"
    config_text = config.read_text(encoding="utf-8", errors="replace") if config.is_file() else ""
    return Run(
        name=name or folder.resolve().name,
        description=description,
        trainable_params=_int(done.get("trainable_params")),
        steps=_int(done.get("steps", done.get("step", max((s for s, _ in curve + train_curve), default=None)))),
        seconds=_float(done.get("seconds")),
        curve=curve,
        val_loss=curve[-1][1] if curve else _float(latest.get("loss")),
        scores={m.name: value for m in data.score_metrics() if (value := _score(latest, m.name)) is not None},
        reliance=_reliance(latest),
        predictions=load_predictions(folder),
        train_curve=train_curve,
        evaluations=load_evaluations(folder),
        time=_seconds(done.get("goodput")),
        config_text=config_text,
        seed=_seed(config_text),
    )


def _seed(config_text: str) -> int | None:
    found = dict(re.findall(r"^(Experiment\.seed|SEED) = (\d+)$", config_text, re.MULTILINE))
    seed = found.get("Experiment.seed", found.get("SEED"))
    return None if seed is None else int(seed)


def _begins_with(run: Run, folders: Mapping[str, Path]) -> Run:
    """The run with the names of those whose folders its configuration names, wherever the report is made."""
    # A word alone is a folder where the setting's name says so: "float32" may be the name of a run's folder too.
    texts = set(re.findall(r"""['"]([^'"\n\0]*/[^'"\n\0]*)['"]""", run.config_text))
    texts |= set(re.findall(r"""(?:_WEIGHTS|_RUN|\.path) = [\\\s]*['"]([^'"\n\0]+)['"]""", run.config_text))
    texts = {re.sub(r"/checkpoint_\d+/?$", "", text) for text in texts}
    begun_in = _begun_in(folders[run.name], run.config_text)
    named = {Path(os.path.normpath(base / text)) for text in texts for base in begun_in}
    named |= {path.resolve() for path in map(Path, texts)}
    return dataclasses.replace(run, begins_with=[n for n, f in folders.items() if n != run.name and f in named])


def _begun_in(folder: Path, config_text: str) -> list[Path]:
    """Where a run's command was started, which relative paths of its configuration belong to: its MODEL_DIR tells, if
    that is relative too. Where the folder was renamed since, or MODEL_DIR is absolute, all folders around it."""
    found = re.search(r"""^MODEL_DIR = [\\\s]*['"]([^'"\n\0]+)['"]$""", config_text, re.MULTILINE)
    parts = Path(os.path.normpath(found[1])).parts if found else ("/",)
    ups, below = parts.count(".."), tuple(part for part in parts if part != "..")
    if below and folder.parts[-len(below) :] == below and not os.path.isabs(below[0]):
        return [Path(*folder.parts[: -len(below)], *ups * "_")]  # folders left by "..", whatever their names
    return list(folder.parents)


def load_curve(model_dir: str | Path, split: str) -> list[tuple[int, float]]:
    """Returns (step, loss) of a split or evaluation in a run's `curve.jsonl`, by rising step; none without the file."""
    return _curve(_read_lines(Path(model_dir) / "curve.jsonl"), split)


def comparison_of_runs(
    model_dirs: Sequence[str | Path], *, baseline: str | None = None, title: str | None = None, **fields: Any
) -> Comparison:
    """Reads run folders for `vadapter report RUN_DIR ...`.

    Args:
        model_dirs: one MODEL_DIR or more. Folders of one name are told apart by their parents' names.
        baseline: name of the folder to compare with.
        title: heading; made of the names by default.
        fields: further fields of `Comparison`, such as environment; the seed is that of the runs, if they have one.
    """
    folders = [Path(d).resolve() for d in model_dirs]
    names = [f.name for f in folders]
    if len(set(names)) < len(names):
        names = [f"{f.parent.name}/{f.name}" for f in folders]
    runs = [load_run(folder, name) for folder, name in zip(folders, names, strict=True)]
    runs = [_begins_with(run, dict(zip(names, folders, strict=True))) for run in runs]
    seeds = {run.seed for run in runs}
    fields = {"seed": seeds.pop() if len(seeds) == 1 else None, **fields}
    return Comparison(title or f"Report on {', '.join(names)}", compare(runs, baseline), baseline, **fields)


def _curve(lines: list[dict[str, Any]], split: str) -> list[tuple[int, float]]:
    """(step, loss) of a split by rising step. A step that was logged again, after a resume, counts once: the later."""
    points = {}
    for line in lines:
        loss = _float(line.get("loss"))
        if line.get("split") == split and loss is not None and line.get("step") is not None:
            points[int(line["step"])] = loss
    return sorted(points.items())


def _score(scalars: Mapping[str, Any], key: str) -> float | None:
    """The scalar of this name, bare or under an evaluator's name (`caption/cider`)."""
    found = [v for k, v in scalars.items() if k == key or k.endswith(f"/{key}")]
    return _float(found[-1]) if found else None


def _reliance(scalars: Mapping[str, Any]) -> dict[str, float] | None:
    values = {}
    for kind in ("right", "shuffled", "blank"):
        value = _score(scalars, f"reliance/{kind}")
        if value is not None:
            values[kind] = value
    return values or None


def _seconds(found: Any) -> dict[str, float]:
    """Seconds by kind, as far as they are such."""
    values = {str(k): _float(v) for k, v in found.items()} if isinstance(found, dict) else {}
    return {kind: value for kind, value in values.items() if value is not None and value >= 0}


def _float(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _int(value: Any) -> int | None:
    number = _float(value)
    return None if number is None else int(number)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json_text.loads(path.read_bytes())
    except ValueError as e:
        raise UserError(f"{path} should be JSON and cannot be read: {e}. Delete it and evaluate again.") from e
    return content if isinstance(content, dict) else {}


def _done(path: Path) -> dict[str, Any]:
    """The content of a run's `done.json`; nothing where it was cut: the run then counts as not done."""
    content = files.read_record(path)
    if not content and path.is_file():
        logging.warning("%s was cut or is no JSON: the run counts as not finished.", path)
    return content


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """Reads JSON lines. A last line that is cut short, as by a killed run or a full disk, is left out."""
    if not path.is_file():
        return []
    text = path.read_bytes().decode("utf-8", "replace")
    found, broken = files.split_lines(text)
    if inside := [number for number in broken if number < len(text.splitlines())]:
        raise UserError(
            f"Line {inside[0]} of {path} is no JSON object. Remove that line; of a training that goes on, the same "
            "command removes it."
        )
    return found


def _write(path: epath.Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, text)
