"""Configurations of models as JSON and back, for files that outlive the code that wrote them.

A configuration is an object with the name of its `class` and all of its fields, the defaults too: a default that
changes later does not change a model that was trained before. The classes are those of `configuration.REGISTRY`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from vadapter.base import typed
from vadapter.base.errors import UserError
from vadapter.models import classifier, vlm  # noqa: F401  so that the shipped configurations are registered
from vadapter.models.configuration import REGISTRY

CLASS = "class"  # a word of Python, so no field is called so


def to_json(config: Any) -> dict[str, Any]:
    """Returns a JSON-serialisable dict of a model's configuration.

    Raises:
        TypeError: it is none of the configurations of models, or holds something else than numbers, texts and these.
    """
    if type(config).__name__ not in REGISTRY:
        raise TypeError(f"{type(config).__name__} is no configuration of a model that is registered")
    fields = {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}
    return {CLASS: type(config).__name__, **fields}


def from_json(record: Mapping[str, Any], where: str = "The record") -> Any:
    """Returns the configuration that `to_json` was given: equal, and hashable.

    A field that the record lacks has its default: an older version wrote it.

    Args:
        record: as `to_json` gives it.
        where: what it was read from, for messages.

    Raises:
        UserError: a class or a field is unknown or missing, or the values do not fit one another.
    """
    name = record.get(CLASS) if isinstance(record, Mapping) else None
    if not isinstance(record, Mapping) or not isinstance(name, str) or name not in REGISTRY:
        found = repr(name if isinstance(record, Mapping) else record)[:80]
        raise UserError(
            f"{where} describes a model of the class {found}; known are {', '.join(REGISTRY.names)}. If the class is "
            "your own, import the module that defines it, or name it with --module. If a newer version of vadapter "
            "wrote the file, install that one."
        )
    kind = REGISTRY[record[CLASS]]
    fields = {field.name: field for field in dataclasses.fields(kind)}
    values = {name: _value(value, where) for name, value in record.items() if name != CLASS}
    if unknown := sorted(values.keys() - fields.keys()):
        raise UserError(
            f"{where} has {', '.join(unknown)} in its {record[CLASS]}, which this version of vadapter does not know. "
            "Was it written by a newer version? Install that one."
        )
    needed = [name for name, field in fields.items() if field.default is dataclasses.MISSING]
    if missing := [name for name in needed if name not in values]:
        raise UserError(f"{where} lacks {', '.join(missing)} in its {record[CLASS]}. Use the file as it was written.")
    if problem := typed.wrong(kind, values):
        raise UserError(f"{where} has a {record[CLASS]} whose {problem}. Use the file as it was written.")
    try:
        return kind(**values)
    except UserError:
        raise
    except Exception as e:  # what a class says of values that do not fit one another
        raise UserError(
            f"{where} has a {record[CLASS]} that cannot be made ({e}). Use the file as it was written."
        ) from e


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return to_json(value)


def _value(value: Any, where: str) -> Any:
    if isinstance(value, list):
        return tuple(_value(item, where) for item in value)
    return from_json(value, where) if isinstance(value, Mapping) else value
