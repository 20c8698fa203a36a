"""Results of compilations, kept as JSON files: a compilation takes minutes."""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

FORMAT = 2
"""Raise it when the same compilation gives another result."""


def default_folder() -> Path:
    """Returns `vadapter/plan` in XDG_CACHE_HOME, or in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vadapter" / "plan"


def key(parts: Iterable[str]) -> str:
    """Returns the name of a result: a hash of everything that it depends on, in order."""
    digest = hashlib.sha256(str(FORMAT).encode())
    for part in parts:
        digest.update(b"\0")
        digest.update(part.encode())
    return digest.hexdigest()


def load(folder: Path, name: str) -> dict[str, Any] | None:
    """Returns a result; None if there is none, or if its file is damaged."""
    try:
        found = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def save(folder: Path, name: str, result: dict[str, Any]) -> None:
    """Writes a result, whole or not at all. A folder that cannot be written to is only logged."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, path = tempfile.mkstemp(dir=folder, suffix=".part")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(result, file)
        os.replace(path, folder / f"{name}.json")
    except OSError as error:
        logging.warning("The result of the compilation is not kept: %s", error)
