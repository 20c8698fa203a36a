"""What can be set of a dataclass or a function: names and defaults, and the meanings that docstrings give them."""

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple


class Parameter(NamedTuple):
    """A parameter of a configurable: its name, its default or `inspect.Parameter.empty`, and its meaning."""

    name: str
    default: Any
    meaning: str


def parameters(thing: Callable[..., Any]) -> list[Parameter]:
    """Returns the parameters of a dataclass or function, with the meanings that its docstring gives."""
    meanings = dict(_meanings(inspect.getdoc(thing) or ""))
    signature: Any = inspect.signature(thing)
    factories = {f.name: f.default_factory for f in getattr(thing, "__dataclass_fields__", {}).values()}
    found = []
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            continue
        factory: Any = factories.get(name, dataclasses.MISSING)
        default = parameter.default if factory is dataclasses.MISSING else factory()
        found.append(Parameter(name, default, meanings.get(name, "")))
    return found


def made_by(thing: Callable[..., Any]) -> type | None:
    """Returns the dataclass that a function makes, whose fields it takes too (`encoder`, `decoder`), or None."""
    made = None if inspect.isclass(thing) else inspect.signature(thing).return_annotation
    return made if inspect.isclass(made) and dataclasses.is_dataclass(made) else None


def _meanings(doc: str) -> Iterator[tuple[str, str]]:
    """The (name, meaning) of a docstring's section `Attributes:` or `Args:`."""
    section = re.search(r"^(?:Attributes|Args):\n(.*?)(?=^\S|\Z)", doc, re.MULTILINE | re.DOTALL)
    for entry in re.split(r"\n(?=    \S)", "\n" + section[1].rstrip() if section else ""):
        names, colon, meaning = entry.partition(":")
        for name in names.split(",") if colon else ():
            yield name.strip(" *"), " ".join(meaning.split()).removesuffix(".")
