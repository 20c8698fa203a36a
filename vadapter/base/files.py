"""Small files of a run: written whole or not at all, and read back with patience for what a full disk has cut, or what
is not ours at all."""

import json
import os
import uuid
from typing import Any

from etils import epath

from vadapter.base import json_text, local_files
from vadapter.base.paths import is_remote

_LARGEST = 64 << 20  # bytes of a JSON file; what vadapter writes has a hundredth of it


def write_text(path: epath.PathLike, text: str) -> None:
    """Writes a file in the place of an older one: whoever reads it finds the old text or the new one.

    On a disk the text is written under another name, which is then changed. In a bucket a file is whole by itself.

    Raises:
        OSError: there is no room or no right; the older file is left as it was.
    """
    content = text.encode("utf-8", "replace")
    if is_remote(path):
        epath.Path(path).write_bytes(content)
        return
    place = os.path.realpath(path)  # of a link, the file that it names
    partial = f"{place}.{uuid.uuid4().hex[:8]}.partial"
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # or a power cut may leave the new name with nothing in it
        os.replace(partial, place)
    except BaseException:
        if os.path.exists(partial):
            os.unlink(partial)
        raise


def write_json(path: epath.PathLike, content: Any, indent: int = 2) -> None:
    """Writes a JSON file as `write_text`."""
    write_text(path, json.dumps(content, indent=indent) + "\n")


def read_object(path: epath.PathLike, largest: int = _LARGEST) -> dict[str, Any]:
    """Reads a file that holds one JSON object.

    Args:
        path: of the file.
        largest: bytes; a larger file is not read.

    Raises:
        FileNotFoundError: it is not there.
        OSError: it is no regular file, or cannot be read.
        ValueError: it holds something else, or too much. The message completes "the file ...".
    """
    file = epath.Path(path)
    if (size := file.stat().length) > largest:
        raise ValueError(f"has {size:,} bytes, more than the {largest:,} that are read")
    try:
        found = json_text.loads(local_files.content_of(path))
    except ValueError as e:  # also of a wrong encoding
        raise ValueError(f"is no JSON ({e})") from e
    if not isinstance(found, dict):
        raise ValueError(f"holds a JSON {type(found).__name__}, not an object")
    return found


def read_json(path: epath.PathLike) -> Any:
    """Returns the content of a JSON file; None where there is no regular file, or one that is cut or is no JSON."""
    try:
        return json_text.read(path)
    except (FileNotFoundError, local_files.NotAFile, ValueError):
        return None


def read_record(path: epath.PathLike) -> dict[str, Any]:
    """Returns the object in a JSON file; an empty one where `read_json` gives none."""
    content = read_json(path)
    return content if isinstance(content, dict) else {}


def split_lines(text: str) -> tuple[list[dict[str, Any]], list[int]]:
    """Reads JSON objects, one a line.

    Returns:
        The objects, and the numbers (from 1) of the lines that hold none, such as a last line that was cut.
    """
    found, broken = [], []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            content = json_text.loads(line) if line.strip() else {}
        except ValueError:
            content = None
        if not isinstance(content, dict):
            broken.append(number)
        elif content:
            found.append(content)
    return found, broken
