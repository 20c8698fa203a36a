"""Checksums of the files of a checkpoint, so that damage on a disk or on the way is found before arrays are read.

Files are compared, not arrays: so metadata are covered too, and the mesh that wrote or reads them does not matter.
CRC-32 finds every change within 32 bits and all but one in 4e9 others, at 1 to 3 GB/s; it is no protection against
someone who wants to deceive.
"""

import json
import zlib
from collections.abc import Iterator
from concurrent import futures

from etils import epath

from vadapter.base import files

FILE = "checksums.json"
# Orbax changes its marks of a finished checkpoint last.
MARK = "_CHECKPOINT_METADATA"
_LAST = {FILE, MARK, "commit_success.txt"}
_THREADS = 8  # more than a disk needs, and a bucket answers slowly
_PIECE = 4 << 20


def write(folder: epath.Path) -> None:
    """Writes `checksums.json`: the size and the CRC-32 of each file in a folder, which are complete."""
    listed = list_files(folder)
    with futures.ThreadPoolExecutor(_THREADS) as pool:
        sums = pool.map(lambda path: [path.stat().length, _crc32(path)], listed.values())
    (folder / FILE).write_text(json.dumps({"crc32": dict(zip(listed, sums, strict=True))}) + "\n")


def damage(folder: epath.Path, share: tuple[int, int] = (0, 1)) -> str | None:
    """Compares the files of a folder with its `checksums.json`.

    Args:
        folder: what `write` was called on.
        share: (i, n) looks for all files, and reads every n-th from the i-th on.

    Returns:
        What is wrong, such as "params/d/1e68 has changed since it was written"; None if nothing is.
    """
    try:
        recorded = files.read_object(folder / FILE).get("crc32")
    except FileNotFoundError:
        return f"{FILE} is missing"
    except (ValueError, OSError) as e:
        return f"{FILE} {e}"
    if not isinstance(recorded, dict):
        return f"{FILE} has no checksums"
    listed = list_files(folder)
    if missing := sorted(recorded.keys() - listed.keys()):
        return f"{missing[0]} is missing"
    if more := sorted(listed.keys() - recorded.keys()):
        return f"{more[0]} was not written with it"
    with futures.ThreadPoolExecutor(_THREADS) as pool:
        read = [i % share[1] == share[0] for i in range(len(listed))]
        wrong = list(pool.map(_difference, listed.values(), map(recorded.get, listed), read))
    return next((f"{name} {why}" for name, why in zip(listed, wrong, strict=True) if why), None)


def _difference(path: epath.Path, recorded: object, read: bool) -> str | None:
    try:
        if not isinstance(recorded, list) or len(recorded) != 2:
            return "has no checksum"
        if (size := path.stat().length) != recorded[0]:
            return f"has {size} bytes instead of {recorded[0]}"
        if read and _crc32(path) != recorded[1]:
            return "has changed since it was written"
    except OSError as e:
        return f"cannot be read ({e})"
    return None


def _crc32(path: epath.Path) -> int:
    value = 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            value = zlib.crc32(piece, value)
    return value


def list_files(folder: epath.Path) -> dict[str, epath.Path]:
    """Returns the files that have a checksum, sorted: `{path in the folder: path}`. The marks have none."""
    return {name: path for name, path in sorted(_walk(folder)) if name not in _LAST}


def _walk(folder: epath.Path, prefix: str = "") -> Iterator[tuple[str, epath.Path]]:
    for path in folder.iterdir():
        if path.is_dir():
            yield from _walk(path, f"{prefix}{path.name}/")
        else:
            yield prefix + path.name, path
