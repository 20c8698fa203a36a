"""The folder of `vadapter embed`: files of embeddings, and a line a record that says where its are."""

import json
import os
from typing import Any

import numpy as np

from vadapter.base import json_text
from vadapter.base.errors import UserError
from vadapter.cli import record_files

RECORDS, ABOUT = "records.jsonl", "embeddings.json"
ROWS = 256  # records of a Parquet file


class Folder:
    """What is written, and what a former command wrote.

    A record's line comes after its embeddings are on disk, so a command that was stopped loses none.

    Attributes:
        done: records that have a line.
    """

    def __init__(
        self, path: str, names: list[dict[str, Any]], kind: str, *, whole: bool = False, prompt: str | None = None
    ):
        """Opens it.

        Args:
            path: of the folder, which is made if it is not there.
            names: of all records.
            kind: `safetensors` or `parquet`.
            whole: whether the embeddings are those of whole prompts.
            prompt: of those; None is that of the training.

        Raises:
            UserError: it cannot be written, or holds something else.
        """
        self._path, self._names, self._kind = path, names, kind
        self._about: dict[str, Any] = {"format": kind, "prompt_embeds": whole, "prompt": prompt}
        self._waiting: list[tuple[int, np.ndarray | None, str | None]] = []
        try:
            os.makedirs(path, exist_ok=True)
            there = os.listdir(path)
            self._former = json_text.read(os.path.join(path, ABOUT)) if ABOUT in there else None
        except (OSError, ValueError) as e:
            raise UserError(f"The folder {path} of --out cannot be written ({e}). Give another.") from e
        others = sorted(
            {*there} - {RECORDS, f"{ABOUT}.partial"}
        )  # the first file, which a command that was stopped early leaves alone
        if others and not isinstance(self._former, dict):
            raise UserError(f"{path} has files that vadapter embed did not write, such as {others[0]}. Give another.")
        self._check(tuple(self._about))
        self._lines = record_files.Output(os.path.join(path, RECORDS), names)
        self.done = self._next = self._lines.done

    @property
    def failed(self) -> list[int]:
        """Places of the records that have an error."""
        return self._lines.failed

    def __enter__(self) -> "Folder":
        return self

    def __exit__(self, *_: Any) -> None:
        self._flush()
        self._lines.close()

    def describe(self, trained: Any) -> None:
        """Writes, or compares, which model the embeddings are of.

        Raises:
            UserError: those that are there are of another model.
        """
        decoder = trained.description.model.decoder
        self._about |= {
            "model": os.path.basename(os.path.abspath(trained.folder)),
            "step": trained.step,
            "width": decoder.width,
            "dtype": decoder.dtype,
            # What text embeddings were multiplied by: a program that does it once more has to leave it out.
            "text_scale": (decoder.width**0.5 if decoder.scale_embedding else 1.0) * decoder.embedding_multiplier,
        }
        self._check(tuple(self._about))
        path = os.path.join(self._path, ABOUT)
        with open(f"{path}.partial", "w", encoding="utf-8") as file:
            file.write(json.dumps(self._about, indent=2) + "\n")
        os.replace(f"{path}.partial", path)

    def _check(self, keys: tuple[str, ...]) -> None:
        for key in keys:
            if self._former and self._former.get(key) != self._about[key]:
                raise UserError(
                    f"{self._path} holds embeddings whose {key} is {self._former.get(key)!r}; now it is "
                    f"{self._about[key]!r}. Give --out another folder, or remove this one to begin anew."
                )

    def write(self, values: np.ndarray | None, error: str | None) -> None:
        """Adds what came of the next record."""
        self._waiting.append((self._next, values, error))
        self._next += 1
        if self._kind == "safetensors" or self._next % ROWS == 0:
            self._flush()

    def _flush(self) -> None:
        made = [(i, values) for i, values, _ in self._waiting if values is not None]
        name = self._save(made) if made else ""
        for i, values, error in self._waiting:
            said = {"error": error} if values is None else {"file": name, "shape": list(values.shape)}
            if values is None:
                self.failed.append(i)
            self._lines.write(self._names[i] | said)
        self._waiting.clear()

    def _save(self, made: list[tuple[int, np.ndarray]]) -> str:
        first = made[0][0]
        name = f"{first:08}.{self._kind}"
        path = os.path.join(self._path, name)
        partial = f"{path}.partial"
        if self._kind == "safetensors":
            import safetensors.numpy

            about = {key: str(value) for key, value in self._about.items()}
            safetensors.numpy.save_file({"embeds": made[0][1]}, partial, metadata=about)
            os.chmod(partial, 0o644)  # safetensors lets nobody else read it
        else:
            self._save_parquet(partial, made)
        os.replace(partial, path)
        return name

    def _save_parquet(self, path: str, made: list[tuple[int, np.ndarray]]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        width = made[0][1].shape[1]
        embeds = pa.array(
            [list(values.astype(np.float32)) for _, values in made], pa.list_(pa.list_(pa.float32(), width))
        )
        keys = sorted({key for i, _ in made for key in self._names[i]})
        named = {key: pa.array([str(self._names[i].get(key, "")) for i, _ in made]) for key in keys}
        record = pa.array([i for i, _ in made], pa.int64())
        pq.write_table(pa.table({"record": record, **named, "embeds": embeds}), path)
