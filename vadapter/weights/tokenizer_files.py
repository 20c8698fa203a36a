"""The files of a tokenizer, copied beside the weights that were trained with it."""

import hashlib
import os
from collections.abc import Mapping

from etils import epath

from vadapter.base import local_files
from vadapter.base.errors import UserError

FOLDER = "tokenizer"
_JSON, _MODEL = "tokenizer.json", "tokenizer.model"
_BESIDE = ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "added_tokens.json")


def find(path: str) -> dict[str, str]:
    """Returns the files of a tokenizer: where each is, by the name to give it; {} if there is none.

    Args:
        path: a folder (of a model, of a tokenizer, or of imported weights), or one file: a SentencePiece model or
            tokenizer.json.

    Raises:
        UserError: the file is neither.
    """
    path = os.path.expanduser(path)
    if not os.path.isdir(path):
        name = _JSON if path.endswith(".json") else _MODEL
        if not os.path.isfile(path) or not path.endswith((".json", ".model")):
            raise UserError(
                f"{path} is no tokenizer. Expected {_JSON}, a SentencePiece file that ends in .model, or a folder with "
                "one of them."
            )
        return {name: path}
    if os.path.isdir(os.path.join(path, FOLDER)):
        path = os.path.join(path, FOLDER)
    there = sorted(name for name in os.listdir(path) if os.path.isfile(os.path.join(path, name)))
    chosen = {name: name for name in (_JSON, _MODEL) if name in there}
    if not chosen:
        models = [name for name in there if name.endswith(".model")]
        chosen = {_MODEL: models[0]} if len(models) == 1 else {}
    if chosen:
        chosen |= {name: name for name in _BESIDE if name in there}
    return {name: os.path.join(path, file) for name, file in chosen.items()}


def copy(files: Mapping[str, str | bytes], folder: str) -> dict[str, str]:
    """Copies files into `folder/tokenizer`: those that `find` gave, or contents. Returns the sha256 of each by name."""
    target = epath.Path(folder) / FOLDER
    target.mkdir(parents=True)
    hashes = {}
    for name, file in files.items():
        content = file if isinstance(file, bytes) else local_files.content_of(file)
        hashes[name] = hashlib.sha256(content).hexdigest()
        (target / name).write_bytes(content)
    return hashes
