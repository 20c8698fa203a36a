"""A checkpoint to be imported: finds out of what kind it is, by looking at its files, and opens it."""

import dataclasses
import functools
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

from vadapter.base import json_text
from vadapter.base.errors import UserError
from vadapter.base.paths import is_remote
from vadapter.weights import files_gguf, files_orbax, files_t5x, gguf_tokenizer
from vadapter.weights.files_npz import NpzFile
from vadapter.weights.files_safetensors import SafetensorsFiles
from vadapter.weights.gguf_model import GgufModel
from vadapter.weights.tensors import Tensors

HUGGING_FACE, GGUF, BIG_VISION, T5X, GEMMA = "huggingface", "gguf", "big_vision", "t5x", "gemma"

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_SAFETENSORS, _GGUF, _NPZ = ".safetensors", ".gguf", ".npz"
_EXTRA = ("preprocessor_config.json", "processor_config.json", "tokenizer_config.json", "generation_config.json")
# Where an Orbax checkpoint may lie in the folder that it is known by.
_ITEMS = ("", "default", "state", "params")
_GEMMA_NAMES = re.compile(r"(.*/)?(embedder/input_embedding|layer_\d+/attn/.*)")
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
# Where the parameters are in a train state.
_T5X_PREFIXES = ("target/", "optimizer/target/", "params/")
_KNOWN = (
    "a Hugging Face folder (config.json and .safetensors files), a .gguf file of llama.cpp, a .npz file of big_vision, "
    "a checkpoint of t5x (checkpoint_<step>), or an Orbax checkpoint of Gemma (with _METADATA)"
)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that is opened for reading.

    Attributes:
        kind: `huggingface`, `gguf`, `big_vision`, `t5x` or `gemma`.
        tensors: its tensors.
        config: parsed config.json, or None. Of a GGUF file, what its metadata say, in the words of config.json.
        folder: where files of a tokenizer may lie, or None.
        extra: other parsed JSON files by name, for example `preprocessor_config.json`; {} without any.
        tokenizer: makes the files of the tokenizer that the checkpoint has in itself, by their names; None where it has
            none.
        license: of the weights, where the checkpoint itself says it; None where it does not.
    """

    kind: str
    tensors: Tensors
    config: Mapping[str, Any] | None
    folder: str | None
    extra: Mapping[str, Mapping[str, Any]]
    tokenizer: Callable[[], Mapping[str, bytes]] | None = None
    license: str | None = None


def open_checkpoint(path: str) -> Checkpoint:
    """Opens a checkpoint to be imported; reads names and shapes only.

    Args:
        path: a folder or a file on this machine; `~` is the home folder.

    Returns:
        The checkpoint, of the kind that its files show.

    Raises:
        UserError: there is no such file or folder, it is of no known kind, its files are incomplete or corrupt, or it
            has pickles only.
    """
    path = os.path.expanduser(path)
    if is_remote(path):
        raise UserError(f"{path} is not on this machine. Copy it to a local folder first, and give that as the source.")
    if not os.path.exists(path):
        hint = f" A model of Hugging Face's hub is named hf:{path}." if _HUB_NAME.fullmatch(path) else ""
        raise UserError(f"{path} does not exist. Expected {_KNOWN}.{hint}")
    return _open_folder(path) if os.path.isdir(path) else _open_file(path)


def _open_file(path: str) -> Checkpoint:
    if path.endswith(_SAFETENSORS):
        return _huggingface(path, os.path.dirname(path) or ".", [path], None)
    if path.endswith(_GGUF):
        return _gguf(path)
    if path.endswith(_NPZ):
        return Checkpoint(BIG_VISION, NpzFile(path), None, None, {})
    if path.endswith(PICKLES):
        raise _pickles([path])
    raise UserError(f"{path} is no file of weights that is known. Expected {_KNOWN}.")


def _open_folder(folder: str) -> Checkpoint:
    names = sorted(os.listdir(folder))
    if INDEX in names:
        return _sharded(folder)
    for ending, open_one in ((_SAFETENSORS, _huggingface_file), (_NPZ, _npz_file)):
        files = [name for name in names if name.endswith(ending)]
        if files:
            return open_one(folder, _only(folder, files, ending))
    if ggufs := [name for name in names if name.endswith(_GGUF)]:
        return _gguf(files_gguf.choose(folder, ggufs))
    for item in (os.path.join(folder, name) if name else folder for name in _ITEMS):
        if os.path.isfile(os.path.join(item, files_orbax.METADATA)):
            return _orbax(folder, item)
    if os.path.isfile(os.path.join(folder, files_t5x.FILE)):
        return Checkpoint(T5X, files_t5x.open_legacy(folder), None, folder, {})
    if pickles := [os.path.join(folder, name) for name in names if name.endswith(PICKLES)]:
        raise _pickles(pickles)
    listed = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    raise UserError(f"{folder} holds no weights of a known kind. Expected {_KNOWN}; found {listed or 'nothing'}.")


def _only(folder: str, files: list[str], ending: str) -> str:
    if SINGLE in files:
        return SINGLE
    if len(files) > 1:
        index = f"and no {INDEX} that says which belong together; " if ending == _SAFETENSORS else ""
        raise UserError(
            f"{folder} has {len(files)} {ending} files ({', '.join(files[:5])}), {index}give one of them as the "
            "source, or complete the download."
        )
    return files[0]


def _huggingface_file(folder: str, file: str) -> Checkpoint:
    return _huggingface(folder, folder, [os.path.join(folder, file)], None)


def _npz_file(folder: str, file: str) -> Checkpoint:
    return Checkpoint(BIG_VISION, NpzFile(os.path.join(folder, file)), None, folder, {})


def _gguf(path: str) -> Checkpoint:
    files = files_gguf.GgufFiles(path)
    model = GgufModel(files)
    tokenizer = functools.partial(gguf_tokenizer.make, files.metadata, path)
    license = files.metadata.get("general.license")
    return Checkpoint(GGUF, model, model.config, None, {}, tokenizer, license if isinstance(license, str) else None)


def _sharded(folder: str) -> Checkpoint:
    index = os.path.join(folder, INDEX)
    weight_map = _json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise UserError(f"{index} has no 'weight_map' from tensors to files. Fetch it again.")
    files = sorted(set(weight_map.values()))
    for file in files:
        if os.path.basename(file) != file or not os.path.isfile(os.path.join(folder, file)):
            raise UserError(f"{index} names {file}, which {folder} does not have. Fetch the missing files.")
    return _huggingface(folder, folder, [os.path.join(folder, file) for file in files], weight_map)


def _huggingface(where: str, folder: str, files: list[str], weight_map: Mapping[str, str] | None) -> Checkpoint:
    there = [name for name in ("config.json", *_EXTRA) if os.path.isfile(os.path.join(folder, name))]
    # The small files first: what is wrong with them is told without a look at the large ones.
    parsed = {name: _json(os.path.join(folder, name)) for name in there}
    config = parsed.pop("config.json", None)
    return Checkpoint(HUGGING_FACE, SafetensorsFiles(where, files, weight_map), config, folder, parsed)


def _orbax(folder: str, item: str) -> Checkpoint:
    names = files_orbax.names_of(item)
    if any(_GEMMA_NAMES.fullmatch(name) for name in names):
        return Checkpoint(GEMMA, files_orbax.open_arrays(item, names), None, folder, {})
    for prefix in _T5X_PREFIXES:
        parameters = {n.removeprefix(prefix): stored for n, stored in names.items() if n.startswith(prefix)}
        if parameters:
            return Checkpoint(T5X, files_orbax.open_arrays(item, parameters), None, folder, {})
    raise UserError(
        f"{item} is an Orbax checkpoint of no known kind. Expected parameters of t5x under 'target/', or of Gemma with "
        f"'embedder/input_embedding'; found {', '.join(sorted(names)[:8]) or 'nothing'}."
    )


def _json(path: str) -> dict[str, Any]:
    try:
        content = json_text.read(path)
    except (OSError, ValueError) as e:
        raise UserError(f"{path} is no JSON: {e}. Fetch it again.") from e
    if not isinstance(content, dict):
        raise UserError(f"{path} holds {type(content).__name__}; expected a JSON object. Fetch it again.")
    return content


def _pickles(paths: list[str]) -> UserError:
    return UserError(
        f"{', '.join(paths[:3])}: PyTorch pickles are not read, because unpickling a file runs what is in it. Download "
        "the safetensors version of these weights, or convert them (transformers' save_pretrained writes it)."
    )
