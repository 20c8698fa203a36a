"""JSON that others wrote: read so that nothing in it ends in another error than `ValueError`. And lines of JSON that
name what others named.
"""

import json
import os
from collections.abc import Callable
from typing import Any

from vadapter.base import local_files

MAX_BYTES = 256 << 20  # of a file; that of the largest checkpoints' lists of tensors is a tenth of it


def loads(text: str | bytes, object_pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """Parses JSON.

    Args:
        text: as text, or as bytes in UTF-8 with or without a byte order mark.
        object_pairs_hook: as of `json.loads`.

    Raises:
        ValueError: it is no JSON, no UTF-8, or nested deeper than Python reads.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8-sig")
    try:
        return json.loads(text, object_pairs_hook=object_pairs_hook)
    except RecursionError:
        raise ValueError("brackets are nested too deeply") from None


def line(value: Any) -> str:
    """Returns a line of JSON that can be written as UTF-8: names of files may have bytes that are none, and texts
    halves of surrogate pairs. These are escaped, so who reads the line has the same names."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace").decode() + "\n"


def read(path: str | os.PathLike[str]) -> Any:
    """Returns what a JSON file says, here or at an address.

    Raises:
        OSError: there is none, it is no regular file, or it has more than `MAX_BYTES`.
        ValueError: as `loads`.
    """
    return loads(local_files.content_of(path, MAX_BYTES))
