"""The adapter bundle: a folder with what a run trained and all that is needed to use it, but for the backbones.

    adapter.safetensors    the parameters, named by their slash paths
    bundle.json            `description.Description`, the backbones with their hashes, the hash of the parameters
    README.md              a card for people

The parameters are those that the run trained, and those inside the adapter that it took frozen from another run.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

import vadapter
from vadapter.base import folders, local_files, patterns, typed
from vadapter.base.errors import UserError
from vadapter.runs import card
from vadapter.runs import description as descriptions
from vadapter.runs.description import Description

FILE = "bundle.json"
ADAPTER = "adapter.safetensors"
CARD = "README.md"
_MAX_REPLACEMENT = 1000  # characters


@dataclasses.dataclass(frozen=True)
class Backbone:
    """Weights that a bundle needs and does not have.

    Attributes:
        parts: how many weights they give to which part of the model: `{"encoder": 92_884_224}`.
        path: the MODEL_DIR or imported folder that has them, relative to the bundle.
        step: checkpoint in it.
        rules: (regex, replacement) from its paths to those of the model.
        sha256: `fingerprints.combine` of what the rules give.
    """

    parts: Mapping[str, int]
    path: str
    step: int
    rules: tuple[tuple[str, str], ...]
    sha256: str

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Backbone":
        """Reads what `dataclasses.asdict` gives, after a passage through JSON."""
        rules = tuple((pattern, replacement) for pattern, replacement in record["rules"])
        if problem := typed.wrong(cls, {**record, "rules": rules, "parts": {}}):
            raise TypeError(problem)
        for part, count in record["parts"].items():
            if isinstance(count, bool) or not isinstance(count, int):
                raise TypeError(f"{part} has {repr(count)[:80]} parameters")
        if any(len(replacement) > _MAX_REPLACEMENT for _, replacement in rules):
            raise ValueError("a rule whose replacement is too long")
        patterns.check((pattern for pattern, _ in rules), "A backbone")
        return cls(**{**record, "rules": rules})


@dataclasses.dataclass(frozen=True)
class Bundle:
    """A bundle on disk.

    Attributes:
        folder: where it is.
        description: of the model.
        backbones: what else it needs.
        sha256: of the file with the parameters.
        step: checkpoint of the run that it was made from.
        frozen: paths in the file that the run did not train.
    """

    folder: str
    description: Description
    backbones: tuple[Backbone, ...]
    sha256: str
    step: int
    frozen: tuple[str, ...]

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns the parameters by slash path, on the host.

        Raises:
            UserError: the file is not the one that was exported.
        """
        file = os.path.join(self.folder, ADAPTER)
        found = _hash(file)
        if found != self.sha256:
            raise UserError(
                f"{file} was exported with the sha256 {self.sha256}; it now has {found}. It is incomplete or was "
                "changed: copy or download the bundle again."
            )
        try:
            return dict(sorted(safetensors.numpy.load_file(file).items()))
        except safetensors.SafetensorError as e:
            raise UserError(f"{file} cannot be read as safetensors: {e}. Export the bundle again.") from e


def write(
    out: str,
    description: Description,
    arrays: Mapping[str, np.ndarray],
    *,
    step: int,
    backbones: Sequence[Backbone] = (),
    frozen: Collection[str] = (),
    repository: str | None = None,
) -> Bundle:
    """Writes a bundle. The folder appears when it is complete.

    Args:
        out: the folder; must not exist or be empty.
        description: of the model, with paths relative to `out`.
        arrays: `{slash path: array}`.
        step: checkpoint that they are from.
        backbones: what else the model needs, with paths relative to `out`.
        frozen: paths of `arrays` that were not trained.
        repository: `owner/name` on the hub, for the card; None names the folder.

    Raises:
        UserError: there is something at `out`.
    """
    with folders.appearing(out) as partial:
        plain = {path: np.ascontiguousarray(x).reshape(x.shape) for path, x in arrays.items()}
        safetensors.numpy.save_file(plain, partial / ADAPTER, metadata={"format": "vadapter"})
        adapter = {
            "file": ADAPTER,
            "sha256": _hash(str(partial / ADAPTER)),
            "parameters": sum(x.size for x in plain.values()),
            "bytes": (partial / ADAPTER).stat().st_size,
            "frozen": sorted(frozen),
        }
        record = {
            **description.to_json(),
            "backbones": [dataclasses.asdict(backbone) for backbone in backbones],
            "adapter": adapter,
            "step": step,
        }
        (partial / FILE).write_text(json.dumps(record, indent=2) + "\n")
        (partial / ADAPTER).chmod((partial / FILE).stat().st_mode)  # safetensors lets nobody else read it
        sizes = {path: x.size for path, x in plain.items()}
        text = card.of_bundle(Path(out).name, description, backbones, sizes, adapter["bytes"], step, repository)
        (partial / CARD).write_text(text, encoding="utf-8")
    return read(out)


def is_bundle(path: str) -> bool:
    """Returns whether there is a bundle at a path."""
    return os.path.isfile(os.path.join(path, FILE))


def read(path: str) -> Bundle:
    """Opens a bundle. Reads `bundle.json` only.

    Raises:
        UserError: the folder is no bundle, or one of another version of vadapter.
    """
    file = os.path.join(path, FILE)
    if not is_bundle(path):
        raise UserError(
            f"A bundle was expected in {path}; found no {FILE} there. Give a folder that vadapter export wrote."
        )
    record = descriptions.read_json(file)
    description = Description.from_json(record, file)
    try:
        fields = {
            "folder": path,
            "description": description,
            "backbones": tuple(Backbone.from_json(backbone) for backbone in record["backbones"]),
            "sha256": record["adapter"]["sha256"],
            "step": record["step"],
            "frozen": tuple(record["adapter"]["frozen"]),
        }
        if problem := typed.wrong(Bundle, {**fields, "step": 0}) or ("" if type(fields["step"]) is int else "step"):
            raise TypeError(problem)
        return Bundle(**fields)
    except UserError as e:
        raise UserError(f"{file}: {e}") from e
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise UserError(
            f"{file} is not as vadapter {vadapter.__version__} writes it ({e}). Export the bundle again."
        ) from e


def _hash(file: str) -> str:
    if not os.path.isfile(file):
        raise UserError(f"{file} is missing from its bundle. Copy or download the bundle again.")
    with local_files.open_file(file) as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
