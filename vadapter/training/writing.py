"""What a run tells: TensorBoard, `curve.jsonl`, and a progress bar or lines."""

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from vadapter.base import files, terminal
from vadapter.base.errors import UserError
from vadapter.base.evaluator import EvalResult, whole_names
from vadapter.base.paths import is_remote

_CAPTION_WIDTH = 224
_METHODS = ("write_scalars", "flush", "close")  # all need them; the others are asked for what they can show
_COLUMNS = ("id", "question", "prediction", "references", "score")
_TABLE_ROWS, _CELL_LENGTH = 100, 500


class CurveFile:
    """`curve.jsonl`: a JSON object a line, `{"step": ..., "split": "train" or an evaluator's name, ...}`.

    Args:
        path: of the file.
        resume_step: lines of later steps, written before a run was interrupted, are dropped; so are lines that are no
            JSON, such as the last one when a disk was full. A line of the same step and split that is added again, such
            as that of a last evaluation that ended before `done.json` was written, takes the former one's place.
    """

    def __init__(self, path: str, resume_step: int):
        self._path = epath.Path(path)
        text = self._path.read_bytes().decode("utf-8", "replace") if self._path.exists() else ""
        found, broken = files.split_lines(text)
        if broken:
            print(
                f"{terminal.line(path)}: dropped {len(broken)} lines that are no JSON, the first is line {broken[0]}.",
                flush=True,
            )
        kept = [x for x in found if isinstance(x.get("step"), int) and x["step"] <= resume_step]
        self._lines = [json.dumps(line) for line in kept]
        self._former = {(x["step"], x.get("split")): line for x, line in zip(kept, self._lines, strict=True)}
        self._write_all()

    def add(self, step: int, split: str, values: Mapping[str, Any]) -> None:
        """Appends a line; it is in the file when this returns."""
        former = self._former.pop((step, split), None)
        if former is not None:
            self._lines.remove(former)
        self._lines.append(json.dumps({"step": step, "split": split, **values}))
        if is_remote(self._path) or former is not None:
            self._write_all()  # object stores cannot append
        else:
            with open(self._path, "a") as f:
                f.write(self._lines[-1] + "\n")

    def _write_all(self) -> None:
        files.write_text(self._path, "".join(line + "\n" for line in self._lines))


class MetricWriter:
    """Writes TensorBoard files: `MODEL_DIR/train`, and `MODEL_DIR/training_eval/<name>` for each evaluator.

    Records of evaluators go to `MODEL_DIR/inference_eval/<name>-<step>.jsonl`.

    Args:
        model_dir: folder of the run.
        enabled: False writes nothing, as on all processes but the first.
        tensorboard: False writes the records only.
        writers: make others that are told the same, given `model_dir`. A writer has clu's `write_scalars`,
            `write_images`, `write_texts`, `flush` and `close`; one with `write_table` is given tables in place of
            texts. Names are whole: `train/loss`, `val/loss`, and as in `metrics.json`.

    Raises:
        UserError: what one of `writers` makes is no writer.
    """

    def __init__(
        self,
        model_dir: str,
        *,
        enabled: bool = True,
        tensorboard: bool = True,
        writers: Sequence[Callable[[str], Any]] = (),
    ):
        self._model_dir = epath.Path(model_dir)
        self._enabled = enabled
        self._tensorboard = enabled and tensorboard
        self._writers: dict[str, Any] = {}
        self._others = [_made(make, model_dir) for make in writers] if enabled else []

    def _writer(self, folder: str) -> Any:
        if folder not in self._writers:
            from clu import metric_writers  # imports TensorFlow

            writer = metric_writers.SummaryWriter(str(self._model_dir / folder))
            self._writers[folder] = metric_writers.AsyncWriter(writer)
        return self._writers[folder]

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes scalars of the training."""
        if self._tensorboard:
            self._writer("train").write_scalars(step, dict(values))
        for writer in self._others:
            writer.write_scalars(step, {f"train/{name}": value for name, value in values.items()})

    def text(self, step: int, values: Mapping[str, str]) -> None:
        """Writes texts, shown as Markdown."""
        if self._tensorboard:
            self._writer("train").write_texts(step, dict(values))

    def evaluation(self, step: int, name: str, result: EvalResult) -> None:
        """Writes what an evaluator found."""
        if not self._enabled:
            return
        if result.records:
            folder = self._model_dir / "inference_eval"
            folder.mkdir(parents=True, exist_ok=True)
            lines = (json.dumps(r, ensure_ascii=False) for r in result.records)
            files.write_text(folder / f"{name}-{step}.jsonl", "".join(line + "\n" for line in lines))
        for writer in self._others:
            writer.write_scalars(step, whole_names(name, result.scalars))
            if result.images:
                writer.write_images(step, {f"{name}/predicted_on_images": captioned_images(result.images)})
            if result.records:
                _write_table(writer, step, f"{name}/predictions", result.records)
        if not self._tensorboard:
            return
        writer = self._writer(f"training_eval/{name}")
        writer.write_scalars(step, dict(result.scalars))
        if result.images:
            # TensorBoard shows a tag in one place only: these must not be the name of a scalar.
            writer.write_images(step, {"predicted_on_images": captioned_images(result.images)})
            writer.write_texts(step, {"predicted_texts": "\n\n".join(caption for _, caption in result.images)})

    def flush(self) -> None:
        """Returns when everything is on disk."""
        for writer in [*self._writers.values(), *self._others]:
            writer.flush()

    def close(self) -> None:
        """Flushes and gives up the threads."""
        for writer in [*self._writers.values(), *self._others]:
            writer.close()


def _made(make: Callable[[str], Any], model_dir: str) -> Any:
    writer = make(model_dir)
    if missing := [method for method in _METHODS if not callable(getattr(writer, method, None))]:
        name = getattr(make, "__name__", make)
        raise UserError(
            f"Expected each of TrainConfig.writers to make a writer with the methods of clu's MetricWriter; that of "
            f"{name!s:.200} has no {', '.join(missing)}. In gin a configuration ends with brackets: @WandbConfig()."
        )
    return writer


def _write_table(writer: Any, step: int, name: str, records: Sequence[Mapping[str, Any]]) -> None:
    """Tells a writer the first predictions: as a table where it takes one, else as Markdown."""
    shown = records[:_TABLE_ROWS]
    columns = [key for key in _COLUMNS if any(key in record for record in shown)]
    rows = [[_cell(record.get(key, "")) for key in columns] for record in shown]
    if hasattr(writer, "write_table"):
        writer.write_table(step, name, columns, rows)
        return
    lines = [columns, ["---"] * len(columns), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    writer.write_texts(step, {name: "\n".join(f"| {' | '.join(line)} |" for line in lines)})


def _cell(value: Any) -> str:
    text = "; ".join(map(str, value)) if isinstance(value, list) else str(value)
    return " ".join(text.split())[:_CELL_LENGTH]


def captioned_images(images: Sequence[tuple[np.ndarray, str]]) -> np.ndarray:
    """Draws each caption under its picture.

    Args:
        images: (uint8 [h, w, 3], caption); sizes may differ.

    Returns:
        uint8 [N, H, W, 3], white where a picture is smaller than the largest.
    """
    drawn = [_captioned(image, caption) for image, caption in images]
    height, width = (max(x.shape[i] for x in drawn) for i in (0, 1))
    page = np.full((len(drawn), height, width, 3), 255, np.uint8)
    for i, x in enumerate(drawn):
        page[i, : x.shape[0], : x.shape[1]] = x
    return page


def _captioned(image: np.ndarray, caption: str) -> np.ndarray:
    from PIL import Image, ImageDraw, ImageFont

    picture = Image.fromarray(np.asarray(image, np.uint8))
    factor = -(-_CAPTION_WIDTH // picture.width)
    if factor > 1:  # whole multiples keep the pixels of tiny pictures sharp
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    font = ImageFont.load_default(size=14)
    text = "\n".join(_wrap(caption, lambda line: font.getlength(line) <= picture.width - 8))
    probe = ImageDraw.Draw(picture)
    bottom = probe.multiline_textbbox((4, 4), text, font=font)[3]
    page = Image.new("RGB", (picture.width, picture.height + int(bottom) + 6), "white")
    page.paste(picture, (0, 0))
    ImageDraw.Draw(page).multiline_text((4, picture.height + 4), text, fill="black", font=font)
    return np.asarray(page)


def _wrap(text: str, fits: Any) -> Iterable[str]:
    for paragraph in text.split("\n"):
        line = ""
        for word in paragraph.split():
            longer = f"{line} {word}".strip()
            if line and not fits(longer):
                yield line
                longer = word
            line = longer
        yield line


class Console:
    """A rich progress bar if stdout is a terminal, else lines.

    Args:
        total: steps of the run.
        enabled: False prints nothing, as on all processes but the first.
    """

    def __init__(self, total: int, *, enabled: bool = True):
        self._total = total
        self._enabled = enabled
        self._bar: Any = None
        self._task: Any = None
        if enabled and sys.stdout.isatty():
            from rich import progress

            columns = (progress.TextColumn("step"), progress.MofNCompleteColumn(), progress.BarColumn())
            columns += (progress.TimeRemainingColumn(), progress.TextColumn("{task.description}"))
            self._bar = progress.Progress(*columns)
            self._task = self._bar.add_task("", total=total)

    def __enter__(self) -> "Console":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def line(self, text: str) -> None:
        """Prints a text."""
        if self._bar:
            self._bar.console.print(text, markup=False, highlight=False)
        elif self._enabled:
            print(text, flush=True)

    def step(self, step: int, summary: str = "") -> None:
        """Shows how far the run is. Without a terminal only a step with a summary is printed."""
        if self._bar:
            self._bar.update(self._task, completed=step, **({"description": summary} if summary else {}))
        elif summary:
            self.line(f"step {step}/{self._total}  {summary}")
