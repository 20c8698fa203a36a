"""JSON objects in files that may be damaged, or not ours at all."""

import json
from typing import Any

from etils import epath

_LARGEST = 64 << 20  # bytes; what vadapter writes has a hundredth of it


def read_object(path: epath.PathLike, largest: int = _LARGEST) -> dict[str, Any]:
    """Reads a file that holds one JSON object.

    Args:
        path: of the file.
        largest: bytes; a larger file is not read.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it holds something else, or too much. The message completes "the file ...".
    """
    file = epath.Path(path)
    if (size := file.stat().length) > largest:
        raise ValueError(f"has {size:,} bytes, more than the {largest:,} that are read")
    try:
        found = json.loads(file.read_bytes().decode())
    except RecursionError as e:
        raise ValueError("is nested too deeply") from e
    except ValueError as e:  # also of a wrong encoding
        raise ValueError(f"is no JSON ({e})") from e
    if not isinstance(found, dict):
        raise ValueError(f"holds a JSON {type(found).__name__}, not an object")
    return found
