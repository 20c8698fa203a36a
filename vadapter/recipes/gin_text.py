"""An imported model's configuration as gin text, to be given to an experiment as one more `--gin_file`."""

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

from vadapter.models.vit import ViTConfig

# What a run chooses, whatever the weights are.
_OF_THE_RUN = ("dtype", "remat", "attention_impl")


def gin_files(config: Any, folder: str, header: str) -> dict[str, str]:
    """Returns the gin files of a model by name: `encoder.gin`, or `tiny.gin` and `large.gin` of a decoder.

    Args:
        config: a `ViTConfig` or `DecoderConfig`.
        folder: absolute path of the imported weights.
        header: lines of a comment.
    """
    if isinstance(config, ViTConfig):
        return {"encoder.gin": _file(config, "encoder", "ENCODER_WEIGHTS", folder, header)}
    return {
        f"{s}.gin": _file(config, f"{s}/decoder", f"{s.upper()}_WEIGHTS", folder, header) for s in ("tiny", "large")
    }


def _file(config: Any, name: str, macro: str, folder: str, header: str) -> str:
    comment = [f"# {line}".rstrip() for line in header.splitlines()]
    # A variant that the recipe names would fill in what is left at its default here.
    lines = [f"{macro} = {json.dumps(folder)}", "", f"{name}.variant = None", *_bindings(config, name)]
    return "\n".join([*comment, "", *lines, ""])


def _bindings(config: Any, name: str) -> Iterator[str]:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value == field.default or field.name in _OF_THE_RUN:
            continue
        if dataclasses.is_dataclass(value):
            scope, slash, _ = name.rpartition("/")
            inner = f"{scope}{slash}{type(value).__name__}"
            yield f"{name}.{field.name} = @{inner}()"
            yield from _bindings(value, inner)
        else:
            yield f"{name}.{field.name} = {value!r}"
