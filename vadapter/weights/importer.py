"""Takes open weights into a folder that runs, bundles and Python can use."""

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from etils import epath

from vadapter.base import buckets
from vadapter.base.errors import UserError
from vadapter.base.paths import absolute, is_remote
from vadapter.weights import hub, mapping, store, tokenizer_files
from vadapter.weights.checkpoint import Checkpoint, open_checkpoint
from vadapter.weights.family import Architecture, Config, ModelPart
from vadapter.weights.recognise import parameter_shapes, part_of, recognise

RECORD = "import.json"
_DTYPES: Mapping[str, Literal["bfloat16", "float32"]] = {"bf16": "bfloat16", "f32": "float32"}


@dataclasses.dataclass(frozen=True)
class Imported:
    """What `import_weights` has written.

    Attributes:
        folder: absolute path of the imported weights.
        kind: of the checkpoint: `huggingface`, `gguf`, `big_vision`, `t5x` or `gemma`.
        family: for example `siglip`, `gemma3`, `qwen2`.
        part: `encoder` or `decoder`.
        config: the model's `ViTConfig` or `DecoderConfig`.
        dtype: `bfloat16` or `float32`.
        parameters: how many numbers.
        bytes: their size as written.
        tokenizer: sha256 of each file of the tokenizer, by its name; {} without one.
        prompt_format: name of the chat format of the family's instruction-tuned models, or None.
        notes: sentences about the checkpoint that the user should read.
    """

    folder: str
    kind: str
    family: str
    part: ModelPart
    config: Config
    dtype: str
    parameters: int
    bytes: int
    tokenizer: Mapping[str, str]
    prompt_format: str | None
    notes: tuple[str, ...]


def import_weights(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    part: ModelPart | None = None,
    dtype: Literal["bf16", "f32"] = "bf16",
    variant: str | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
    more_files: Callable[[Imported], Mapping[str, str]] | None = None,
) -> Imported:
    """Imports an encoder or a decoder.

    The source is read piece by piece and is not changed. A model of Hugging Face's hub is fetched first, into the cache
    of `huggingface_hub` (see `weights.hub`); without such a name nothing uses the network.

    `out` gets a checkpoint of the parameters, their hashes, the files of the tokenizer, and import.json. It is there
    when it is complete, or not at all; in a bucket, where folders cannot be renamed, this holds for the checkpoint
    alone.

    Args:
        source: a Hugging Face folder with safetensors, a .gguf file of llama.cpp, a .npz file of big_vision, a
            checkpoint of t5x, or an Orbax checkpoint of Gemma. Or the name of a model of the hub: hf:owner/name,
            hf:owner/name@revision, or hf:owner/name/file.gguf.
        out: a new folder for what is imported, local or gs://.
        part: the one to take of a source that has two models.
        dtype: of the imported weights.
        variant: the published size, where a source does not say its settings itself.
        tokenizer: tokenizer.json, a SentencePiece model, or a folder with one; default what lies beside a decoder,
            or in its file.
        progress: called with the bytes written so far and those in all.
        more_files: gives texts by their file names, to be written beside the rest before the folder gets its name.

    Returns:
        What was imported.

    Raises:
        UserError: the source is of no family that is known, incomplete or corrupt, or cannot be fetched; `out` is in
            use; the disk is too small; or an argument is wrong.
    """
    source, out = os.fspath(source), absolute(os.fspath(out))
    if dtype not in _DTYPES:
        raise UserError(f"The dtype {dtype!r} is unknown; expected {' or '.join(_DTYPES)}.")
    buckets.check(out)
    _check_free(out)
    fetched = (
        hub.fetch(source, lambda settings, where: part_of(settings, where, part)) if hub.is_hub_id(source) else None
    )
    checkpoint = open_checkpoint(fetched.path if fetched else source)
    found = recognise(checkpoint, part, variant)
    files = _tokenizer(os.fspath(tokenizer) if tokenizer else None, found.part, checkpoint)
    shapes = parameter_shapes(found.config)
    parameters = [
        dataclasses.replace(p, path=f"{found.part}/{p.path}")
        for p in mapping.map_tensors(checkpoint.tensors, found.rules, shapes, found.ignored)
    ]
    license = (fetched.license if fetched else None) or checkpoint.license
    with _staged(out) as folder:
        _write_parameters(folder, parameters, _DTYPES[dtype], found, checkpoint.kind, progress)
        imported = Imported(
            folder=out,
            kind=checkpoint.kind,
            family=found.family,
            part=found.part,
            config=found.config,
            dtype=_DTYPES[dtype],
            parameters=sum(p.size for p in parameters),
            bytes=store.size(parameters, _DTYPES[dtype]),
            tokenizer=tokenizer_files.copy(files, folder) if files else {},
            prompt_format=found.prompt_format,
            notes=(*(fetched.notes if fetched else ()), *found.notes),
        )
        for name, text in (more_files(imported) if more_files else {}).items():
            (epath.Path(folder) / name).write_text(text)
        (epath.Path(folder) / RECORD).write_text(
            json.dumps(_record(imported, fetched or source, license), indent=1) + "\n"
        )
    return imported


def _write_parameters(
    folder: str,
    parameters: Sequence[mapping.Parameter],
    dtype: Literal["bfloat16", "float32"],
    found: Architecture,
    kind: str,
    progress: Callable[[int, int], None] | None,
) -> None:
    total, done = store.size(parameters, dtype), 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress:
            progress(done, total)

    summary = {"kind": kind, "family": found.family, "part": found.part}
    store.write(folder, parameters, dtype, {"imported": summary}, advance)


def _record(imported: Imported, source: str | hub.Fetched, license: str | None) -> dict[str, Any]:
    """What import.json says: nothing of the folder's own place, as it may be moved."""
    fields = dataclasses.asdict(imported)
    del fields["folder"]
    if isinstance(source, hub.Fetched):
        named: dict[str, Any] = {"name": source.id.repository.split("/")[1], "files": list(source.files)}
        named |= {"hub": str(source.id), "commit": source.commit}
    else:
        named = {"name": os.path.basename(os.path.abspath(source)), "files": _file_names(source)}
    return {"source": {**named, **({"license": license} if license else {})}, **fields}


def _file_names(source: str) -> list[str]:
    source = os.path.expanduser(source)
    if not os.path.isdir(source):
        return [os.path.basename(source)]
    return sorted(name for name in os.listdir(source) if os.path.isfile(os.path.join(source, name)))


def _tokenizer(given: str | None, part: ModelPart, checkpoint: Checkpoint) -> Mapping[str, str | bytes]:
    """The files of the tokenizer, by the name to give each: where it is, or what is in it."""
    if part == "encoder":
        if given:
            raise UserError(f"A tokenizer was given ({given}), and a vision encoder reads no text. Leave it out.")
        return {}
    if not given and checkpoint.tokenizer:
        return checkpoint.tokenizer()
    place = given or checkpoint.folder
    found = tokenizer_files.find(place) if place else {}
    if given and not found:
        raise UserError(f"The tokenizer {given} has neither tokenizer.json nor a SentencePiece .model file.")
    return found


def _check_free(out: str) -> None:
    folder = epath.Path(out)
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{out} is a file; expected the name of a new folder for what is imported.")
    if names := sorted(path.name for path in folder.iterdir()):
        what = "weights that were imported before" if RECORD in names else f"other files ({', '.join(names[:3])})"
        raise UserError(f"{out} holds {what}. Give a new folder for what is imported, or remove this one first.")


@contextlib.contextmanager
def _staged(out: str) -> Iterator[str]:
    """A folder beside `out` that becomes `out` when everything is in it, and is removed if it does not come to that.

    In a bucket it is `out` itself.
    """
    if is_remote(out):
        yield out
        return
    parent, name = os.path.split(out)
    stage = os.path.join(parent, f".{name}.importing")
    if os.path.exists(stage):  # of an import that was killed
        shutil.rmtree(stage)
    try:
        yield stage
        os.replace(stage, out)
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        raise
