"""What the files beside a vocabulary say about its tokens."""

from typing import Any

from etils import epath

from vadapter.base import json_text
from vadapter.base.errors import UserError


def named(folder: epath.Path) -> dict[str, str]:
    """Returns start and end token by `bos_token` and `eos_token`, as the files beside a tokenizer.json name them.

    Raises:
        UserError: a file is no JSON.
    """
    found: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        settings = _settings(folder / name)
        for key in ("bos_token", "eos_token"):
            value = settings.get(key)
            value = value.get("content") if isinstance(value, dict) else value
            if isinstance(value, str):
                found[key] = value
    return found


def end_ids(folder: epath.Path) -> list[int]:
    """Returns the ids of the end tokens by a generation_config.json: one, several or none.

    Raises:
        UserError: the file is no JSON.
    """
    value = _settings(folder / "generation_config.json").get("eos_token_id")
    found = value if isinstance(value, list) else [value]
    return [i for i in found if isinstance(i, int) and not isinstance(i, bool)]


def _settings(file: epath.Path) -> dict[str, Any]:
    """What a JSON file has at its top; {} where it is not there."""
    if not file.is_file():
        return {}
    try:
        content = json_text.read(file)
    except (OSError, ValueError) as e:
        raise UserError(f"{file} is not valid JSON: {e}. Use the file as it was published.") from e
    return content if isinstance(content, dict) else {}
