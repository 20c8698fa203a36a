"""The JSON object of a checkpoint: `checkpoint_<step>/run/metadata`.

Attributes of it: `format` and `step`; `data`, facts that fix the data; `sources`, what the run took from others
(`sources.Reference`); `trainable` and `frozen_dtype`; `ema`, whether its moving average is what to use of it;
`seconds`, and `goodput`, the same by use; `checksums`, whether the checkpoint has them. A loop of one's own may leave
out all but the first two.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

from etils import epath

from vadapter.base import files

FORMAT = 1
FILE = "run/metadata"
# Of each key that may be there: what it is, and how it is said.
_KINDS = {
    "data": (dict, "an object"),
    "sources": (list, "a list"),
    "trainable": (list, "a list"),
    "frozen_dtype": (str, "a text"),
    "seconds": ((int, float), "a number"),
    "goodput": (dict, "an object"),
    "ema": (bool, "true or false"),
    "checksums": (bool, "true or false"),
    "went_back_to": (list, "a list"),
}
_SOURCE_KINDS = {"path": str, "step": int, "rules": list, "sha256": str, "frozen": int, "initial": int}


def make(step: int, record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the object to be written."""
    return {"format": FORMAT, "step": step, **record, "checksums": True}


def read(checkpoint: epath.Path) -> dict[str, Any]:
    """Reads the object of a checkpoint.

    Raises:
        ValueError: it is missing or damaged; the message says how. Another format's is not looked into.
    """
    try:
        found = files.read_object(checkpoint / FILE)
    except FileNotFoundError as e:
        raise ValueError(f"{FILE} is missing") from e
    except OSError as e:
        raise ValueError(f"{FILE} cannot be read ({e})") from e
    except ValueError as e:
        raise ValueError(f"{FILE} {e}") from e
    if found.get("format") == FORMAT and (why := _wrong(found, checkpoint.name)):
        raise ValueError(f"{FILE}: {why}")
    return found


def _wrong(found: Mapping[str, Any], name: str) -> str | None:
    step = found.get("step")
    if not _is_count(step) or name != f"checkpoint_{step}":
        return f"the step is {step!r:.80} in {name}"
    for key, (kind, said) in _KINDS.items():
        if key in found and not isinstance(found[key], kind):
            return f"{key} is {found[key]!r:.80}; expected {said}"
    if not all(isinstance(pattern, str) for pattern in found.get("trainable", [])):
        return "trainable holds more than texts"
    if not all(_is_count(step) for step in found.get("went_back_to", [])):
        return "went_back_to holds more than steps"
    if not 0 <= found.get("seconds", 0.0) < math.inf:
        return f"seconds are {found['seconds']}"
    if not all(isinstance(x, int | float) and 0 <= x < math.inf for x in found.get("goodput", {}).values()):
        return "goodput holds more than seconds"
    return next((why for why in map(_wrong_source, found.get("sources", [])) if why), None)


def _wrong_source(source: Any) -> str | None:
    if not isinstance(source, dict) or source.keys() != _SOURCE_KINDS.keys():
        return f"a source is {source!r:.80}; expected an object of {', '.join(_SOURCE_KINDS)}"
    for key, kind in _SOURCE_KINDS.items():
        value = source[key]
        if not (_is_count(value) if kind is int else isinstance(value, kind)):
            return f"{key} of a source is {value!r:.80}"
    rules = source["rules"]
    if not all(isinstance(rule, list) and [type(x) for x in rule] == [str, str] for rule in rules):
        return f"the rules of a source are {rules!r:.80}; expected pairs of texts"
    return None


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def write(checkpoint: epath.Path, record: Mapping[str, Any]) -> None:
    """Writes the object of a checkpoint."""
    file = checkpoint / FILE
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(record))
