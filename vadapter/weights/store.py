"""Parameters into an Orbax checkpoint that runs can take as a `Source`, a few pieces in memory at a time.

Orbax writes the structure; the arrays are streamed by TensorStore, each into a zarr folder of its own. The checkpoint
gets its name when it is complete.
"""

import dataclasses
import hashlib
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from etils import epath

from vadapter.base import checksums, fingerprints, trees
from vadapter.base.errors import UserError
from vadapter.base.fingerprints import ArrayHash
from vadapter.base.paths import is_remote
from vadapter.base.quiet import quiet
from vadapter.weights.mapping import Parameter

STEP = 0
_ITEM = "params"
# Name of the checkpoint until it is complete.
_UNFINISHED = "importing"
_FINISHED = "_CHECKPOINT_METADATA"
_COPIES = 32  # at the same time, within a bucket
# The version of `training.checkpoints` that this is read by.
_FORMAT = 1
# A device that needs a part of a chunk reads all of it.
_CHUNK_BYTES = 16 << 20
_SPARE = 1.02

Progress = Callable[[int], None]


def write(
    out: str,
    parameters: Sequence[Parameter],
    dtype: Literal["bfloat16", "float32"],
    run: Mapping[str, Any],
    progress: Progress | None = None,
) -> dict[str, ArrayHash]:
    """Writes `out/checkpoint_0/{params,run}` and `out/sha256.json`.

    The checkpoint is there when it is complete, or not at all: what was written is removed when an error or an
    interrupt ends the writing.

    Args:
        out: the folder; made if needed.
        parameters: floating-point ones, read in passing.
        dtype: to write them in.
        run: JSON-serialisable; more about the checkpoint than its format and step.
        progress: called with the number of bytes written since the last call.

    Returns:
        What is in sha256.json: the hash of each array by its path.

    Raises:
        UserError: a parameter is not floating-point, the disk is too small, or the source cannot be read.
    """
    # TensorStore wants an absolute path.
    folder = epath.Path(out) if is_remote(out) else epath.Path(out).resolve()
    final, unfinished = folder / f"checkpoint_{STEP}", folder / _UNFINISHED
    if final.exists():
        raise UserError(f"{final} is there already. Give a new folder, or remove this one first.")
    _check_floats(parameters)
    _check_space(out, parameters, dtype)
    streams = {p.path: _Stream(p, np.dtype(dtype), progress or (lambda _: None)) for p in parameters}
    folder.mkdir(parents=True, exist_ok=True)
    _remove(folder, _UNFINISHED)  # of a process that was killed
    try:
        with quiet():
            _write_all_but_arrays(
                unfinished, streams, {"format": _FORMAT, "step": STEP, "sources": [], **run, "checksums": True}
            )
        for stream in streams.values():
            stream.write(str(unfinished / _ITEM / stream.name))
        checksums.write(unfinished)
        _publish(unfinished, final)
        hashes = {path: stream.hash for path, stream in sorted(streams.items())}
        fingerprints.save(str(folder), STEP, hashes)
    except BaseException:
        _remove(folder, _UNFINISHED, final.name, fingerprints.FILE)
        raise
    return hashes


def size(parameters: Sequence[Parameter], dtype: str) -> int:
    """Returns the bytes of parameters in a dtype."""
    return sum(p.size for p in parameters) * np.dtype(dtype).itemsize


class _Stream:
    """A leaf of the tree that Orbax is given: a parameter that is read, hashed and written piece by piece.

    Args:
        parameter: the parameter.
        dtype: to write it in.
        progress: as of `write`.
    """

    def __init__(self, parameter: Parameter, dtype: np.dtype, progress: Progress):
        self.shape, self.dtype = parameter.shape, dtype
        self._parameter = parameter
        self._progress = progress
        self.name = ""  # of its folder
        self.hash = ArrayHash(dtype.name, parameter.shape, "")

    def write(self, path: str) -> None:
        """Writes the zarr folder `path`."""
        array = ts.open(
            {
                "driver": "zarr",
                "kvstore": path + "/" if is_remote(path) else {"driver": "file", "path": path + "/"},
                # Orbax takes a chunk that is not there for lost.
                "store_data_equal_to_fill_value": True,
                # Weights hardly compress.
                "metadata": {"compressor": None, "chunks": chunks(self._parameter, self.dtype)},
            },
            create=True,
            shape=self.shape,
            dtype=self.dtype,
        ).result()
        digest = hashlib.sha256()
        writing: Any = None
        try:
            for piece in self._parameter.pieces:
                read = piece.read().astype(self.dtype, order="C", copy=False)
                digest.update(read.reshape(-1).view(np.uint8).data)
                # The next piece is read while one is written, and no more than these two are in memory.
                _wait(writing, path)
                place = array[piece.start : piece.stop] if self.shape else array
                writing = place.write(read, can_reference_source_data_indefinitely=True)
                self._progress(read.nbytes)
        finally:
            _wait(writing, path)
        self.hash = dataclasses.replace(self.hash, sha256=digest.hexdigest())


def _wait(writing: Any, path: str) -> None:
    try:
        if writing is not None:
            writing.result()
    except (ValueError, OSError) as e:
        raise UserError(f"{path} cannot be written: {str(e).splitlines()[0]}. Is the disk full?") from e


class _Announced(ocp.type_handlers.TypeHandler):
    """What Orbax does with `_Stream`s: records that there is a numpy array of that name, and writes nothing."""

    def typestr(self) -> str:
        return "np.ndarray"

    async def serialize(self, values: Sequence[Any], infos: Sequence[Any], args: Any = None) -> Sequence[Any]:
        for value, info in zip(values, infos, strict=True):
            value.name = info.name
        return []

    async def deserialize(self, infos: Sequence[Any], args: Any = None) -> Sequence[Any]:
        raise NotImplementedError

    async def metadata(self, infos: Sequence[Any]) -> Sequence[Any]:
        raise NotImplementedError


def _write_all_but_arrays(path: epath.Path, streams: Mapping[str, _Stream], run: Mapping[str, Any]) -> None:
    """Writes a checkpoint of which only the arrays are missing."""
    registry = ocp.type_handlers.create_type_handler_registry((_Stream, _Announced()))
    items = {
        _ITEM: ocp.PyTreeCheckpointHandler(use_ocdbt=False, type_handler_registry=registry),
        "run": ocp.JsonCheckpointHandler(),
    }
    args = {_ITEM: ocp.args.PyTreeSave(trees.unflatten(streams)), "run": ocp.args.JsonSave(dict(run))}
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler(**items)) as checkpointer:
        checkpointer.save(path, args=ocp.args.Composite(**args))


def chunks(parameter: Parameter, dtype: np.dtype) -> list[int]:
    """Returns the shape of the chunks of a parameter: parts of a piece, so that each is written once and by itself."""
    if not parameter.shape:
        return []
    chunk = list(parameter.shape)
    chunk[0] = max(1, parameter.pieces[0].stop - parameter.pieces[0].start)
    first = 1 if len(parameter.pieces) > 1 else 0
    while math.prod(chunk) * dtype.itemsize > _CHUNK_BYTES and max(chunk[first:], default=1) > 1:
        longest = max(range(first, len(chunk)), key=lambda i: chunk[i])
        chunk[longest] = -(-chunk[longest] // 2)
    return [max(1, n) for n in chunk]


def _publish(unfinished: epath.Path, final: epath.Path) -> None:
    """Gives a checkpoint its name.

    Folders of a bucket cannot be renamed: the files are copied there, last the one that tells of a finished checkpoint.
    """
    if not is_remote(final):
        unfinished.rename(final)
        return

    def copy(path: epath.Path) -> None:
        target = final / path.relative_to(unfinished)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.copy(target)

    with futures.ThreadPoolExecutor(_COPIES) as pool:
        list(pool.map(copy, (path for path in _files(unfinished) if path.name != _FINISHED)))
    copy(unfinished / _FINISHED)
    unfinished.rmtree()


def _files(folder: epath.Path) -> Iterator[epath.Path]:
    for path in folder.iterdir():
        if path.is_dir():
            yield from _files(path)
        else:
            yield path


def _remove(folder: epath.Path, *names: str) -> None:
    """Removes what has these names, or names that begin so: while Orbax writes, it adds to them."""
    for path in folder.iterdir():
        if path.name.startswith(names):
            path.rmtree() if path.is_dir() else path.unlink()


def _check_floats(parameters: Sequence[Parameter]) -> None:
    for p in parameters:
        if not jnp.issubdtype(p.dtype, jnp.floating) or p.dtype.itemsize < 2:
            raise UserError(
                f"The tensor for {p.path} has the dtype {p.dtype}; expected floating-point numbers of 16 bits or more. "
                "Use a version of these weights that is not quantised."
            )


def _check_space(out: str, parameters: Sequence[Parameter], dtype: str) -> None:
    if is_remote(out):
        return
    folder = epath.Path(out).resolve()
    while not folder.exists():
        folder = folder.parent
    need, free = int(size(parameters, dtype) * _SPARE), shutil.disk_usage(folder).free
    if need > free:
        raise UserError(
            f"{out} needs {need / 1e9:.2f} GB, and the disk has {free / 1e9:.2f} GB free. Make room, or give --out on "
            "another disk."
        )
